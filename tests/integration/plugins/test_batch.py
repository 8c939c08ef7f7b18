"""What the page shows of a batch, on a real API server and a real database."""

from __future__ import annotations

import base64
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.couchdb.http import Request, json_body
from airflow_provider_picas.lifecycle.ids import lease_id
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.states import State
from stack.couchdb import CouchDBAdmin
from tests.integration.lives import LIVES, NOW, attach, change, fill, write
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.plugins.server import DAG

EVIL = "<script>alert(1)</script>\x1b[31m\u202eevil\u2066 javascript:alert(1)"
ESCAPED = "<script>alert(1)</script>\\x1b[31m\\u202eevil\\u2066 javascript:alert(1)"
TAIL = ESCAPED.replace("\\x1b[31m", "")  # output loses its colours


def put_local(page: Page, document: dict[str, Any]) -> None:
    page.hook.do(_put(page, document))


def _put(page: Page, document: dict[str, Any]) -> Any:
    yield Request("PUT", page.hook.pool.document_path(document["_id"]), body=json_body(document))


def lease(page: Page, pilot: str, **fields: Any) -> None:
    own = {
        "pilot": pilot,
        "submission": "s.1",
        "job": "12_3",
        "hostname": "n1",
        "renewed": page.hook.now(),
        "lease": 60,
    }
    put_local(page, {"_id": lease_id(pilot), "renewals": 1, "ended": False, "state": "working", **own, **fields})


# -- the overview -----------------------------------------------------------------------------------------------------


def test_a_batch_at_a_glance(page: Page) -> None:
    fill(page.hook, {State.TODO: 3, State.LOCKED: 2, State.DONE: 4, State.ERROR: 1})
    found = page.ask("batch")
    assert found["counts"] == {"todo": 3, "locked": 2, "done": 4, "error": 1, "stateless": 0, "named": {}}
    assert (found["views"], found["trouble"], found["budget"]) == ("page", None, None)
    assert sum(done for _, done, _ in found["history"]["points"]) == 4
    assert found["history"]["points"] == [[NOW + 60 - (NOW + 60) % found["history"]["step"], 4, 1]]
    assert all(action["allowed"] for action in found["actions"].values())
    assert abs(found["at"] - time.time()) < 60


def test_the_error_budget_is_that_of_the_runs_wait(page: Page) -> None:
    fill(page.hook, {State.DONE: 9, State.ERROR: 1})
    wait = {"role": "wait", "max_errors": 0.2, "expected": 20}
    page.server.name_batch(page.run_id, "wait", CONN, page.pool.database, "b", **wait)
    found = page.ask("batch", user="viewer", **page.of_run)
    assert (found["expected"], found["budget"]) == (20, {"allowed": 4, "failed": 1})
    assert {action["allowed"] for action in found["actions"].values()} == {False}
    assert "edit the task instances" in found["actions"]["rerun"]["why_not"]


def test_pilots_are_counted_by_their_leases_or_by_slurm(page: Page) -> None:
    fill(page.hook, {State.TODO: 1})
    pilots = {"submission": "s.1", "folder": "/h/s.1", "submitted": "2026-01-01T00:00:00+00:00", "job_ids": ["12"]}
    page.hook.do(batch_pilots.note(page.hook.pool, "b", {**pilots, "ssh_conn_id": "spider"}))
    lease(page, "a")
    lease(page, "b", renewed=page.hook.now() - 1_000)
    lease(page, "c", ended=True)
    lease(page, "d", submission="of another batch")
    lease(page, "e", submission="other", running={"b:00000000": {"seconds": 3}})
    summary = page.ask("batch")["pilots"]
    names = ("running", "waiting", "silent", "ended", "source")
    assert [summary[name] for name in names] == [2, 0, 1, 1, "leases"]


def test_slurms_answer_comes_from_the_record_of_the_wait(page: Page) -> None:
    fill(page.hook, {State.DONE: 4})
    pilots = {"submission": "s.1", "folder": "/h/s.1", "submitted": "2026-01-01T00:00:00+00:00", "job_ids": ["12"]}
    page.hook.do(batch_pilots.note(page.hook.pool, "b", {**pilots, "ssh_conn_id": "spider"}))
    seen = {"at": NOW, "running": 2, "waiting": 3, "ended": 1, "reasons": [["Priority", 3]], "core_hours": 6.0}
    page.hook.do(batch_pilots.note_slurm(page.hook.pool, "b", "s.1", seen))
    found = page.ask("batch")
    summary = found["pilots"]
    assert (summary["source"], summary["running"], summary["waiting"], summary["at"]) == ("slurm", 2, 3, NOW)
    assert summary["reasons"] == [
        {"reason": "Priority", "text": "Other jobs have a higher priority and run first.", "jobs": 3}
    ]
    assert found["core_hours"] == {"total": 6.0, "per_token": 1.5}


def test_without_the_pages_views_there_is_less_and_it_is_said(page: Page) -> None:
    fill(page.hook, {State.DONE: 1, State.ERROR: 1})
    design = page.hook.get("_design/airflow-picas-page-1")
    page.hook.do(page.hook.pool.put({**design, "_deleted": True}))
    found = page.ask("batch")
    assert (found["views"], found["history"]) == ("partial", None)
    assert [cause["tokens"] for cause in page.ask("batch/causes")["causes"]] == [1]
    assert len(page.ask("batch/tokens")["tokens"]) == 2
    for path, query in (("batch/nodes", {}), ("batch/tokens", {"sort": "ended"})):
        reply = page.get(path, **query)
        assert (reply.status, "deploy-views" in reply.json["detail"]) == (409, True)


def test_a_pool_of_the_picas_client_is_one_whole(page: Page) -> None:
    """Its tokens have no batch."""
    write(page.hook, [{"_id": f"token_{n}", "type": "token", **LIVES[State.DONE], "scrub_count": 0} for n in range(3)])
    whole = page.ask("batch", batch=None)
    assert whole["counts"]["done"] == 3
    assert [row["key"] for row in page.ask("batch/tokens", batch=None)["tokens"]] == ["token_0", "token_1", "token_2"]
    assert page.ask("token", batch=None, id="token_1")["state"] == "done"


def test_pools_and_batches(page: Page) -> None:
    fill(page.hook, {State.DONE: 2})
    fill(page.hook, {State.TODO: 1}, batch="older")
    change(page.hook, "b:00000000", exit_code=1)
    (found,) = (pool for pool in page.ask("pools")["pools"] if pool["conn_id"] == CONN)
    assert (found["database"], found["error"]) == (page.pool.database, None)
    assert found["counts"] == {"todo": 1, "locked": 0, "done": 1, "error": 1, "stateless": 0, "named": {}}
    batches = page.ask("pools/batches", batch=None)["batches"]
    assert [(batch["batch"], batch["counts"]["todo"]) for batch in batches] == [("b", 0), ("older", 1)]
    assert [(batch["dag_id"], batch["run_id"]) for batch in batches] == [(DAG, page.run_id), (None, None)]
    assert page.server.get("pools", user="viewer").json["pools"] == []


def test_pages_of_the_batches_have_each_once(page: Page) -> None:
    names = [f"b{n:03}" for n in range(120)]
    tokens = [
        {**new_token({"input": n}, batch=name, push=name, ordinal=n), **LIVES[state]}
        for name in names
        for n, state in enumerate((State.TODO, State.DONE))
    ]
    tokens += [{**new_token({"input": 1}, batch="x", push="x", ordinal=n)} for n in range(600)]
    write(page.hook, [*tokens, {"_id": "alone", "type": "token", "lock": 0, "done": 0}])
    change(page.hook, "b117:00000000", exit_code=1)
    found: list[Any] = []
    cursor = None
    while True:
        answer = page.ask("pools/batches", batch=None, cursor=cursor)
        assert len(answer["batches"]) <= 50
        found += answer["batches"]
        if (cursor := answer["next"]) is None:
            break
    assert [batch["batch"] for batch in found[:3]] == ["b117", "x", "b000"]
    assert sorted(batch["batch"] for batch in found) == [*names, "x"]
    assert [batch["changed"] for batch in found] == [True, True] + [False] * 119
    assert {(batch["counts"]["todo"], batch["counts"]["done"]) for batch in found} == {(1, 1), (600, 0)}
    for odd in ("1", "!", "e30="):
        assert page.get("pools/batches", batch=None, cursor=odd).status == 422


def test_a_broken_connection_is_told_and_hides_no_other(page: Page) -> None:
    page.server.send("DELETE", "/api/v2/connections/broken")
    fields = {"connection_id": "broken", "conn_type": "picas", "host": "http://127.0.0.1:9", "schema": "x"}
    page.server.api().request("POST", "connections", {**fields, "login": "me", "password": "s3cret-word"})
    reply = page.get("pools")
    pools = {pool["conn_id"]: pool for pool in reply.json["pools"]}
    assert "does not answer" in pools["broken"]["error"]
    assert pools[CONN]["counts"] is not None
    assert b"s3cret-word" not in reply.body


# -- tokens -----------------------------------------------------------------------------------------------------------


def keys(page: Page, **query: Any) -> list[str]:
    """The keys of all pages."""
    found: list[str] = []
    cursor = None
    for _ in range(100):
        answer = page.ask("batch/tokens", **query, cursor=cursor)
        found += [row["key"] for row in answer["tokens"]]
        cursor = answer["next"]
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("state", [None, "todo", "done", "error", "stateless"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_of_the_table_have_each_token_once(page: Page, state: str | None, descending: bool) -> None:
    fill(page.hook, {State.TODO: 5, State.DONE: 7, State.ERROR: 6})
    fill(page.hook, {State.TODO: 3, State.DONE: 3}, batch="b2")
    change(page.hook, "b:00000001", done=NOW)
    of_state = {"todo": range(5), "done": range(5, 12), "error": range(12, 18), "stateless": [1], None: range(18)}
    expected = [f"{n:08}" for n in of_state[state] if state != "todo" or n != 1]
    found = keys(page, state=state, descending=descending, limit=4)
    assert found == (expected[::-1] if descending else expected)


def test_the_table_is_filtered_by_the_server(page: Page) -> None:
    tokens = fill(page.hook, {State.DONE: 3, State.ERROR: 4})
    change(page.hook, tokens[3], hostname="n2", attempts=[{"lock": 1}, {"lock": 2}])
    change(page.hook, tokens[4], slurm_job_id="77", error=[{"time": NOW, "message": "disk full"}])
    assert keys(page, node="n2") == ["00000003"]
    assert keys(page, pilot="77") == ["00000004"]
    assert keys(page, min_attempts=3) == ["00000003"]
    assert keys(page, key="0000000", state="done") == ["00000000", "00000001", "00000002"]
    assert keys(page, key="no") == []
    causes = {cause["cause"]: cause for cause in page.ask("batch/causes")["causes"]}
    assert {text: cause["tokens"] for text, cause in causes.items()} == {
        "exit code 3: no such file": 3,
        "disk full (exit code 3)": 1,
    }
    assert keys(page, cause=causes["disk full (exit code 3)"]["id"], limit=1) == ["00000004"]
    assert len(keys(page, cause=causes["exit code 3: no such file"]["id"], limit=2)) == 3


@pytest.mark.parametrize("state", [None, "done", "error"])
@pytest.mark.parametrize("descending", [False, True])
def test_the_table_can_be_in_the_order_of_the_ends(page: Page, state: str | None, descending: bool) -> None:
    tokens = fill(page.hook, {State.TODO: 2, State.DONE: 5, State.ERROR: 5})
    for place, token in enumerate(tokens[2:]):
        change(page.hook, token, done=NOW + (place * 7) % 5 * 3_000)
    ends = {token[2:]: NOW + (place * 7) % 5 * 3_000 for place, token in enumerate(tokens[2:])}
    wanted = {"done": tokens[2:7], "error": tokens[7:], None: tokens[2:]}[state]
    found = keys(page, sort="ended", state=state, descending=descending, limit=3)
    assert sorted(found) == sorted(token[2:] for token in wanted)
    times = [ends[key] for key in found]
    assert times == sorted(times, reverse=descending)


@pytest.mark.parametrize("query", [{"cursor": "!"}, {"cursor": "e30="}, {"limit": 201}, {"state": "x"}], ids=str)
def test_odd_questions_are_refused(page: Page, query: dict[str, Any]) -> None:
    fill(page.hook, {State.DONE: 1})
    assert page.get("batch/tokens", sort="ended", **query).status == 422


def test_a_token_is_shown_whole(page: Page) -> None:
    (token,) = fill(page.hook, {State.ERROR: 1}, site="x")
    attempts = [{"lock": NOW - 9, "done": NOW - 5, "exit_code": 2, "hostname": "n7", "reason": "failed: exit code 2"}]
    change(page.hook, token, attempts=attempts, scrub_count=1)
    attach(page.hook, token, **{"attempt-1.err": b"first", "attempt-2.err": b"second", "note.txt": b"n"})
    found = page.ask("token", id=token)
    assert (found["state"], found["key"], found["scrubs"]) == ("error", "00000000", 1)
    assert found["input"] == {"text": "x0", "bytes": 2, "cut": False}
    assert found["fields"]["site"]["text"] == "x"
    first, last = found["attempts"]
    assert (first["node"], first["exit_code"], first["seconds"], first["logs"]) == ("n7", "2", 4, ["attempt-1.err"])
    assert (last["node"], last["exit_code"], last["seconds"], last["logs"]) == ("n1", "3", 60, ["attempt-2.err"])
    assert [file["name"] for file in found["attachments"]] == ["attempt-1.err", "attempt-2.err", "note.txt"]


# -- content that others wrote ----------------------------------------------------------------------------------------


def test_foreign_text_is_text_and_bounded(page: Page) -> None:
    (token,) = fill(page.hook, {State.ERROR: 1})
    huge = "x" * 7_000_000
    errors = [{"time": NOW, "message": EVIL}]
    change(page.hook, token, error=errors, hostname=EVIL, input=EVIL, output=huge, slurm_job_id=EVIL, odd={EVIL: EVIL})
    reply = page.get("token", id=token)
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.body) < 200_000
    found = reply.json
    assert found["input"]["text"] == ESCAPED
    assert found["output"] == {"text": "x" * 65_536, "bytes": 7_000_000, "cut": True}
    for answer in (
        reply,
        page.get("batch/tokens"),
        page.get("batch/causes"),
        page.get("batch/pilots"),
        page.get("batch/nodes"),
    ):
        assert answer.status == 200
        assert [text for text in texts(answer.json) if not text.replace("\n", " ").isprintable()] == []


def texts(value: Any) -> list[str]:
    """All strings in a JSON value."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []


ODD: list[Any] = [None, True, -1, 1e300, "", "x", [], [[]], {}, {"a": 1}, "99999999999999999999", 10**18]


def test_odd_documents_are_shown_and_hide_no_other(page: Page) -> None:
    fields = ("lock", "done", "exit_code", "hostname", "slurm_job_id", "pilot", "seconds", "error", "attempts", "priority",
              "scrub_count", "input", "claim")  # fmt: skip
    tokens = [
        {**new_token({"input": 1}, batch="b", push="b", ordinal=n * 100 + m), **LIVES[State.ERROR], name: value}
        for n, name in enumerate(fields)
        for m, value in enumerate(ODD)
    ]
    write(page.hook, tokens)
    assert sorted(keys(page, limit=200)) == sorted(token["_id"][2:] for token in tokens)
    for path in ("batch", "batch/causes", "batch/pilots", "batch/nodes"):
        page.ask(path)
    for token in tokens[::7]:
        page.ask("token", id=token["_id"])
    keys(page, sort="ended", limit=200)


def test_attachments_cannot_run_in_a_browser(page: Page) -> None:
    (token,) = fill(page.hook, {State.DONE: 1})
    files = {
        "page.html": ("text/html", b"<script>1</script>", "text/plain; charset=utf-8", "inline"),
        "image.svg": ("image/svg+xml", b"<svg onload='1'/>", "application/octet-stream", "attachment"),
        "plot.png": ("image/png", b"\x89PNG\r\n", "image/png", "inline"),
        "data": ("application/x-thing", b"\0\1", "application/octet-stream", "attachment"),
        "attempt-1.err": ("text/plain", b"failed", "text/plain; charset=utf-8", "inline"),
        'a"b\r\nX: 1/../c.log': ("text/plain", b"odd", "text/plain; charset=utf-8", "inline"),
        "../../_security": ("text/plain", b"far", "text/plain; charset=utf-8", "inline"),
        "x.js": ("application/javascript", b"1", "application/octet-stream", "attachment"),
    }
    stubs = {
        n: {"content_type": kind, "data": base64.b64encode(body).decode()} for n, (kind, body, *_) in files.items()
    }
    change(page.hook, token, _attachments=stubs)
    for name, (_, body, kind, how) in files.items():
        reply = page.get("token/attachment", id=token, name=name)
        assert (reply.status, reply.body, reply.headers["content-type"]) == (200, body, kind), name
        disposition = reply.headers["content-disposition"]
        assert disposition.startswith(f"{how}; filename*=UTF-8''")
        assert not set('"/\\\r\n') & set(disposition.partition("''")[2])
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"] == "sandbox; default-src 'none'"
        saved = page.get("token/attachment", id=token, name=name, download=True)
        assert saved.headers["content-disposition"].startswith("attachment; ")


def test_the_end_of_a_long_log_is_enough(page: Page) -> None:
    (token,) = fill(page.hook, {State.DONE: 1})
    attach(page.hook, token, **{"attempt-1.out": b"".join(b"line %d\n" % n for n in range(100_000))})
    reply = page.get("token/attachment", id=token, name="attempt-1.out", tail=11)
    assert reply.body == b"line 99999\n"
    assert len(page.get("token/attachment", id=token, name="attempt-1.out").body) == 1_088_890


@pytest.mark.parametrize(
    "token_id", ["c:x", "b2:00000000", "..", "b:..", "_design/Monitor", "_security", "b:/../../_users", "b"]
)
def test_no_id_leads_out_of_the_batch(page: Page, token_id: str) -> None:
    fill(page.hook, {State.DONE: 1})
    fill(page.hook, {State.DONE: 1}, batch="b2")
    for path, query in (("token", {}), ("token/attachment", {"name": "x"})):
        assert page.get(path, id=token_id, **query).status in (404, 422)
        assert page.get(path, batch=None, id="../_all_docs", **query).status == 404


@pytest.mark.parametrize("name", ["..", ".", "../x", "no such"])
def test_no_name_leads_out_of_the_token(page: Page, name: str) -> None:
    (token,) = fill(page.hook, {State.DONE: 1})
    assert page.get("token/attachment", id=token, name=name).status == 404


def test_no_answer_has_a_secret(page: Page) -> None:
    (token,) = fill(page.hook, {State.DONE: 1})
    for path in ("pools", "batch", "batch/causes", "batch/tokens", "batch/pilots", "batch/nodes", "run", "token"):
        reply = page.get(path, **page.of_run, **({"id": token} if path == "token" else {}))
        assert reply.status == 200, path
        assert page.pool.password.encode() not in reply.body


# -- pilots -----------------------------------------------------------------------------------------------------------


def test_pilots_and_their_runs(page: Page) -> None:
    tokens = fill(page.hook, {State.LOCKED: 2, State.DONE: 2, State.ERROR: 1})
    change(page.hook, tokens[0], pilot="p1", claim=f"{'0' * 16}-{NOW}")
    change(page.hook, tokens[1], slurm_job_id="99", hostname="n9")
    change(page.hook, tokens[2], seconds=10.0)
    running = {tokens[0]: {"seconds": 5, "progress": 0.4, "tail": f"10 %\r20 %\r\n{EVIL}"}}
    lease(page, "p1", running=running, counts={"done": 7, "failed": 2})
    answer = page.ask("batch/pilots")
    pilots = {pilot["pilot"]: pilot for pilot in answer["pilots"]}
    assert (pilots["p1"]["state"], pilots["p1"]["done"], pilots["p1"]["failed"], pilots["p1"]["node"]) == (
        "working", 7, 2, "n1",
    )  # fmt: skip
    (now,) = pilots["p1"]["now"]
    assert (now["token"], now["progress"], now["tail"]) == (tokens[0], 0.4, f"10 %\n20 %\n{TAIL}")
    assert (pilots["99"]["state"], pilots["99"]["now"][0]["token"]) == ("unknown", tokens[1])
    bars = sorted((bar["pilot"], bar["state"], bar["start"], bar["end"]) for bar in answer["bars"])
    assert bars == [
        ("99", "locked", NOW, None),
        ("p1", "done", NOW, NOW + 60),
        ("p1", "done", NOW + 50, NOW + 60),  # claimed in advance, and begun later
        ("p1", "error", NOW, NOW + 60),
        ("p1", "locked", now["since"], None),
    ]
    assert page.ask("batch/nodes")["nodes"] == [{"node": "n1", "done": 2, "error": 1}]


def test_why_a_token_waits(page: Page) -> None:
    tokens = fill(page.hook, {State.TODO: 4, State.DONE: 1})
    for token in tokens[:2]:
        change(page.hook, token, priority=5)
    none = "The provider has no record of pilots submitted for this batch."
    assert page.ask("batch/why")["sentences"] == [none]
    ahead = "2 waiting tokens that request the same resources have a higher priority."
    assert page.ask("batch/why", id=tokens[3])["sentences"] == [ahead, none]
    assert page.ask("batch/why", id=tokens[0])["sentences"] == [none]
    assert page.ask("batch/why", id=tokens[4])["sentences"] == ["It has finished: it is done."]


# -- what changes is pushed -------------------------------------------------------------------------------------------


def events(page: Page, seconds: float = 60) -> Iterator[tuple[str, Any]]:
    """The events of the batch as a browser gets them."""
    url = f"{page.server.url}/picas/api/batch/events?{urllib.parse.urlencode(page.scope)}"
    request = urllib.request.Request(url, headers={"Cookie": f"_token={page.server.token('admin')}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        event = ""
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                yield event, json.loads(value) if event == "overview" else value


def test_a_change_is_pushed(page: Page) -> None:
    tokens = fill(page.hook, {State.TODO: 3})
    stream = events(page)
    assert next(stream)[1]["counts"]["todo"] == 3
    change(page.hook, tokens[0], **LIVES[State.DONE])
    while (found := next(stream))[1]["counts"]["done"] == 0:
        assert found[0] == "overview"
    assert found[1]["counts"] == {"todo": 2, "locked": 0, "done": 1, "error": 0, "stateless": 0, "named": {}}


def test_a_database_that_refuses_is_told_and_the_stream_goes_on(page: Page, couchdb: CouchDBAdmin) -> None:
    couchdb.delete_database(page.pool.database)
    stream = events(page)
    event, text = next(stream)
    assert (event, "There is no database" in text) == ("trouble", True)
    couchdb.create_database(page.pool.database, members=[page.pool.user], admins=[page.pool.user])
    fill(page.hook, {State.TODO: 1})
    while (found := next(stream))[0] != "overview":
        pass
    assert found[1]["counts"]["todo"] == 1
