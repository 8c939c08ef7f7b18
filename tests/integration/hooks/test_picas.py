"""The hooks on a real database, through proxies and faults."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.couchdb.http import Request, Response
from airflow_provider_picas.couchdb.pool import FIRST_PAGE, PAGE, PAGE_BYTES
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.counts import Counts, of_documents
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration.faults import Fault, Proxy, html_site, self_signed, silent_host
from tests.odd_tokens import odd_tokens

Result = TypeVar("Result")
Connect = Callable[..., str]
PLAIN = {
    State.TODO: (0, 0, ""),
    State.LOCKED: (5, 0, ""),
    State.DONE: (5, 6, 0),
    State.ERROR: (5, 6, 1),
    None: (0, 6, 0),
}


@pytest.fixture
def connect(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Makes ``picas_default`` a connection to the pool, but for the fields and extras that are given."""

    def change(extra: dict[str, Any] | None = None, **fields: Any) -> str:
        connection = {**native.picas_connection(pool), **fields, "extra": extra or {}}
        monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(connection))
        return "picas_default"

    change()
    return change


@pytest.fixture
def hook(connect: Connect) -> PicasHook:
    return PicasHook()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets repetitions follow at once; the pauses that there would have been."""
    pauses: list[float] = []
    real = http.wait_before

    def wait_before(attempt: int, retry_after: str | None = None) -> float:
        pauses.append(real(attempt, retry_after))
        return 0.0

    monkeypatch.setattr(http, "wait_before", wait_before)
    return pauses


def tokens(number: int, batch: str = "b", push: str = "p") -> Iterator[dict[str, Any]]:
    for ordinal in range(number):
        yield new_token({"input": f"x{ordinal}"}, batch=batch, push=push, ordinal=ordinal)


def write(couchdb: CouchDBAdmin, pool: Pool, documents: list[dict[str, Any]]) -> None:
    """Write documents as they are, behind the hook's back."""
    body = json.dumps({"docs": documents}).encode()
    path = f"/{urllib.parse.quote(pool.database, safe='')}/_bulk_docs"
    for document in documents:
        assert document["_id"]
    status, rows = couchdb.request("POST", path, json.loads(body))
    assert status == 201
    assert not [row for row in rows if "error" in row]


def in_states(number: int, batch: str = "b") -> list[dict[str, Any]]:
    """So many tokens in each of the states and in none."""
    documents = []
    for place, (lock, done, exit_code) in enumerate(PLAIN.values()):
        for token in tokens(number, batch):
            name = f"{batch}:{place}-{token['ordinal']:06d}"
            documents.append({**token, "_id": name, "lock": lock, "done": done, "exit_code": exit_code})
    return documents


def run(work: Callable[[PicasAsyncHook], Coroutine[Any, Any, Result]]) -> Result:
    """Do something with an async hook."""

    async def whole() -> Result:
        async with PicasAsyncHook() as hook:
            return await work(hook)

    return asyncio.run(whole())


ASKS: list[Callable[[], Any]] = [lambda: PicasHook().get("x"), lambda: run(lambda hook: hook.get("x"))]
"""The same question of both hooks."""


class TestConnection:
    def test_a_reachable_pool_passes(self, hook: PicasHook, pool: Pool) -> None:
        ok, text = hook.test_connection()
        assert ok, text
        assert text.startswith("CouchDB 3.")
        assert pool.database in text

    def test_a_connection_without_a_database_passes(self, connect: Connect) -> None:
        connect(schema="")
        ok, text = PicasHook().test_connection()
        assert ok
        assert "has no database" in text

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"password": "wrong"}, "Check login and password of this connection."),
            ({"login": "nobody"}, "CouchDB refused login 'nobody'"),
            ({"login": "", "password": ""}, "refused a request without a login"),
            ({"schema": "nowhere"}, "There is no database nowhere"),
            ({"host": ""}, "This connection: it has no host"),
            (
                {"conn_type": "ssh"},
                "This connection is of type 'ssh'. `picas_conn_id` takes a connection of type 'picas'",
            ),
            ({"extra": {"colour": "red"}}, "unknown extra field 'colour'"),
            ({"extra": {"ca_file": "/nowhere/ca.pem", "verify": True}, "host": "https://127.0.0.1:1"}, "'ca_file'"),
        ],
    )
    def test_faults_of_a_connection_are_reported(
        self, connect: Connect, no_pauses: list[float], fields: dict[str, Any], words: str
    ) -> None:
        connect(**fields)
        hook = PicasHook()
        ok, text = hook.test_connection()
        assert not ok
        assert words in text
        assert "picas_default" not in text  # the Test button makes up a name

    def test_a_missing_connection_is_named(self) -> None:
        with pytest.raises(Exception, match="nowhere_conn"):
            PicasHook("nowhere_conn").count()

    def test_a_user_of_another_pool_is_refused(
        self, connect: Connect, new_pool: Callable[[], AbstractContextManager[Pool]]
    ) -> None:
        with new_pool() as other:
            connect(schema=other.database)
            ok, text = PicasHook().test_connection()
        assert not ok
        assert "Ask the database's administrator" in text

    def test_a_password_with_any_characters(self, couchdb: CouchDBAdmin, pool: Pool, connect: Connect) -> None:
        password = "pä:s/w@rd €\\'\" %41"
        couchdb.delete_user(pool.user)
        couchdb.create_user(pool.user, password)
        connect(password=password)
        assert PicasHook().test_connection()[0]
        assert run(lambda hook: hook.do(hook.pool.info()))["db_name"] == pool.database


class TestPool:
    def test_states_agree_with_the_views_on_odd_tokens(
        self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool
    ) -> None:
        hook.deploy_views()
        documents = list(odd_tokens(2_000))
        for token in documents:
            for field, value in token.items():  # a double's ends are stored, or read, as something else
                if isinstance(value, int | float) and value > 1e300:
                    token[field] = 10**300
                elif value == 5e-324:
                    token[field] = 1e-300
        write(couchdb, pool, documents)
        expected = {token["_id"]: state_of(token) for token in documents}
        for state in State:
            assert set(hook.token_ids(state)) == {name for name, found in expected.items() if found is state}
        assert set(hook.stateless_ids(limit=5_000)) == {name for name, found in expected.items() if found is None}
        assert hook.count() == of_documents(documents)

    def test_counts_are_those_of_the_documents(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        hook.deploy_views()
        write(couchdb, pool, [*in_states(3, "b"), *in_states(2, "B"), *in_states(1, "b2")])
        write(couchdb, pool, [{"_id": "note", "type": "note", "lock": 0, "done": 0}])
        assert hook.count("b") == Counts(3, 3, 3, 3, 3)
        assert hook.count("B") == Counts(2, 2, 2, 2, 2)
        assert hook.count("nobody") == Counts()
        assert hook.count() == Counts(6, 6, 6, 6, 6)
        assert run(lambda hook: hook.count("b")) == Counts(3, 3, 3, 3, 3)
        assert sorted(hook.stateless_ids("b2")) == ["b2:4-000000"]

    def test_a_pool_that_has_only_monitor(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        write(couchdb, pool, [{"_id": "_design/Monitor", **views.monitor()}])
        write(couchdb, pool, [*in_states(3, "b"), *in_states(2, "B"), *in_states(1, "b.2")])
        assert hook.count("b") == Counts(3, 3, 3, 3)  # Monitor does not show those in no state
        assert hook.count("B") == Counts(2, 2, 2, 2)
        assert hook.count() == Counts(6, 6, 6, 6)
        assert hook.stateless_ids() == []
        assert {token["_id"] for token in hook.tokens("done", "B")} == {"B:2-000000", "B:2-000001"}

    def test_a_pool_whose_monitor_has_no_overview(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        design = views.monitor()
        del design["views"]["overview_total"]
        write(couchdb, pool, [{"_id": "_design/Monitor", **design}, *in_states(3, "b")])
        assert hook.count() == Counts(3, 3, 3, 3)

    def test_a_pool_with_no_views_says_which_are_missing(self, hook: PicasHook) -> None:
        with pytest.raises(errors.NotFoundError, match=r"no view 'todo' in design document 'Monitor'.*deploy-views"):
            hook.count()
        with pytest.raises(errors.NotFoundError, match="no view 'error' in design document 'Monitor'"):
            list(hook.tokens("error"))

    def test_an_overview_that_counts_more_than_states(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        design = views.monitor()
        overview = design["views"]["overview_total"]
        overview["map"] = overview["map"].replace("{", "{ emit('all', 1); emit(null, 1);", 1)
        write(couchdb, pool, [{"_id": "_design/Monitor", **design}, *in_states(3, "b")])
        assert hook.count() == Counts(3, 3, 3, 3)

    def test_another_design_document(self, connect: Connect, couchdb: CouchDBAdmin, pool: Pool) -> None:
        write(couchdb, pool, [{"_id": "_design/MultiCore", **views.monitor("doc.cores == 4")}])
        write(couchdb, pool, [{**token, "cores": 1 + 3 * (token["ordinal"] % 2)} for token in tokens(10)])
        connect(extra={"design_document": "MultiCore"})
        assert PicasHook().count() == Counts(todo=5)
        assert {token["cores"] for token in PicasHook().tokens("todo")} == {4}

    def test_tokens_are_read_page_by_page(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        hook.deploy_views()
        number = 2 * PAGE + 3
        hook.push(tokens(number, "B", "p1"))
        hook.push(tokens(number, "b", "p2"))
        assert [token["ordinal"] for token in hook.tokens("todo", "b")] == list(range(number))
        assert Counter(token["batch"] for token in hook.tokens(State.TODO)) == {"b": number, "B": number}
        assert len(set(hook.token_ids("todo"))) == 2 * number
        assert sum(1 for _ in hook.batch_documents("b")) == number
        assert hook.count("b") == Counts(todo=number)

        async def ordinals(hook: PicasAsyncHook) -> list[int]:
            return [token["ordinal"] async for token in hook.tokens("todo", "B")]

        assert run(ordinals) == list(range(number))

    def test_tokens_that_leave_a_state_while_it_is_read_hide_no_others(
        self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool
    ) -> None:
        hook.deploy_views()
        hook.push(tokens(PAGE + 500))
        seen = []
        for token in hook.tokens("todo"):
            seen.append(token["ordinal"])
            if len(seen) in (FIRST_PAGE, FIRST_PAGE + PAGE):  # the next page begins where this token was
                write(couchdb, pool, [{**token, "lock": 5}])
        assert seen == list(range(PAGE + 500))

    def test_pages_of_large_tokens_are_bounded_by_their_bytes(
        self, hook: PicasHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hook.deploy_views()
        hook.push({**token, "input": "x" * 200_000} for token in tokens(FIRST_PAGE + 70))
        read: list[int] = []
        real = hook.send

        def send(request: Request) -> Response:
            answer = real(request)
            read.append(len(answer.body))
            return answer

        monkeypatch.setattr(hook, "send", send)
        for pages in (hook.batch_documents("b"), hook.tokens("todo", "b")):
            read.clear()
            assert [token["ordinal"] for token in pages] == list(range(FIRST_PAGE + 70))
            assert len(read) == 5
            assert max(read[1:]) < 1.1 * PAGE_BYTES

    def test_a_token_is_read_by_its_id(self, hook: PicasHook) -> None:
        hook.push(tokens(3))
        assert hook.get("b:00000001")["input"] == "x1"
        assert run(lambda hook: hook.get("b:00000002"))["input"] == "x2"
        with pytest.raises(errors.NotFoundError):
            hook.get("b:nowhere")

    def test_names_are_quoted(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        names = ["a/b", "a?b=c", "a b+c%41", "ü&é", "x#y", "a//..//b"]
        write(couchdb, pool, [{"_id": name, "type": "token", "lock": 0, "done": 0} for name in names])
        for name in names:
            assert hook.get(name)["_id"] == name
            assert run(partial(PicasAsyncHook.get, token_id=name))["_id"] == name

    def test_a_database_whose_name_has_a_slash(self, couchdb: CouchDBAdmin, pool: Pool, connect: Connect) -> None:
        name = f"team/{pool.database}+x"
        couchdb.create_database(name, members=[pool.user], admins=[pool.user])
        try:
            hook = PicasHook(database=name)
            hook.deploy_views()
            assert hook.push(tokens(3)).written == 3
            assert hook.count("b") == Counts(todo=3)
        finally:
            couchdb.delete_database(name)

    def test_missing_tokens_are_named(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        hook.push(tokens(PAGE + 20))
        for gone in (5, PAGE + 3):
            document = hook.get(f"b:{gone:08d}")
            write(couchdb, pool, [{**document, "_deleted": True}])
        assert hook.missing("b", PAGE + 20) == ["b:00000005", f"b:{PAGE + 3:08d}"]
        assert hook.missing("b", PAGE + 20, limit=1) == ["b:00000005"]


class TestViews:
    def test_deploying_twice_writes_once(self, hook: PicasHook) -> None:
        assert hook.deploy_views().written == ["Monitor", "airflow-picas-1", "airflow-picas-page-1"]
        again = hook.deploy_views()
        assert (again.written, again.unchanged) == ([], ["Monitor", "airflow-picas-1", "airflow-picas-page-1"])
        assert run(lambda hook: hook.deploy_views()).unchanged == ["Monitor", "airflow-picas-1", "airflow-picas-page-1"]

    def test_a_login_without_rights_is_refused_with_the_reason(
        self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool
    ) -> None:
        everybody = {"admins": {"names": [], "roles": ["_admin"]}, "members": {"names": [pool.user], "roles": []}}
        status, _ = couchdb.request("PUT", f"/{pool.database}/_security", everybody)
        assert status == 200
        deployed = hook.deploy_views()
        assert (deployed.written, deployed.refused) == ([], ["Monitor", "airflow-picas-1", "airflow-picas-page-1"])

    def test_a_complete_monitor_is_left_as_it_is(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        mine = {name: {"map": f"function(doc) {{ /* mine */ if (doc.type == 'token') emit(doc._id, '{name}'); }}"}
                for name in ("todo", "locked", "done", "error", "overview_total", "my_own")}  # fmt: skip
        write(couchdb, pool, [{"_id": "_design/Monitor", "views": mine, "language": "javascript", "keep": "me"}])
        before = hook.get("_design/Monitor")
        assert hook.deploy_views().unchanged == ["Monitor"]
        assert hook.get("_design/Monitor") == before

    def test_a_view_that_is_missing_is_added(self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
        mine = {"todo": {"map": "function(doc) { emit(doc._id, 'mine'); }"}, "my_own": {"map": "function(doc) {}"}}
        write(couchdb, pool, [{"_id": "_design/Monitor", "views": mine, "validate_doc_update": "function() {}"}])
        assert "Monitor" in hook.deploy_views().written
        after = hook.get("_design/Monitor")
        wanted = views.monitor()["views"]
        assert after["views"] == {**wanted, **mine}
        assert after["validate_doc_update"] == "function() {}"

    def test_the_providers_own_is_replaced_when_it_differs(
        self, hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool
    ) -> None:
        old = {"counts": {"map": "function(doc) { emit(['old', null], null); }", "reduce": "_count"}}
        write(couchdb, pool, [{"_id": "_design/airflow-picas-1", "views": old, "language": "javascript"}])
        hook.push(tokens(2))
        assert hook.count("b") == Counts()
        assert "airflow-picas-1" in hook.deploy_views().written
        assert hook.get("_design/airflow-picas-1")["views"] == views.provider()["views"]
        assert hook.count("b") == Counts(todo=2)

    def test_several_deploy_at_once(self, connect: Connect) -> None:
        with ThreadPoolExecutor(6) as workers:
            done = list(workers.map(lambda _: PicasHook().deploy_views(), range(6)))
        assert Counter(name for deployment in done for name in deployment.written) == {
            "Monitor": 1,
            "airflow-picas-1": 1,
            "airflow-picas-page-1": 1,
        }


class TestRun:
    """``HttpHook.run``, for anything that the hook has no method for."""

    def test_get_and_post_reach_the_server(self, hook: PicasHook, pool: Pool) -> None:
        hook.push(tokens(3))
        assert hook.run(f"/{pool.database}").json()["doc_count"] == 3
        assert hook.run(f"{pool.database}/_all_docs", data={"limit": 2}).json()["rows"][1]["id"] == "b:00000001"
        found = PicasHook(method="POST").run(
            f"{pool.database}/_find", json={"selector": {"ordinal": 2}}, headers={"Accept": "application/json"}
        )
        assert [document["_id"] for document in found.json()["docs"]] == ["b:00000002"]

    def test_errors_are_typed(self, connect: Connect, pool: Pool) -> None:
        with pytest.raises(errors.NotFoundError) as caught:
            PicasHook().run(f"{pool.database}/nowhere")
        assert (caught.value.status, caught.value.error, caught.value.reason) == (404, "not_found", "missing")
        with pytest.raises(errors.CouchDBError, match="400") as bad:
            PicasHook(method="PUT").run(f"{pool.database}/x", json={"_rev": "no revision"})
        assert type(bad.value) is errors.CouchDBError
        assert PicasHook().run(f"{pool.database}/nowhere", extra_options={"check_response": False}).status_code == 404
        connect(password="wrong")
        with pytest.raises(errors.UnauthorizedError):
            PicasHook().run(pool.database)
        with html_site() as url:
            connect(host=url)
            with pytest.raises(errors.NotCouchDBError, match="Please sign in"):
                PicasHook().run(pool.database)

    def test_timeouts_of_the_connection_apply(self, connect: Connect) -> None:
        with silent_host(accepts=True) as url:
            connect(host=url, extra={"read_timeout": 0.3})
            with pytest.raises(Exception, match=r"read timeout=0\.3"):
                PicasHook().run("x")

    def test_no_extra_is_sent_as_a_header(self, connect: Connect, pool: Pool) -> None:
        with Proxy(pool.url) as proxy:
            connect(
                host=proxy.url, extra={"design_document": "Monitor", "read_timeout": 50, "verify": True, "ca_file": ""}
            )
            PicasHook().run(pool.database)
            PicasHook().test_connection()
            run(lambda hook: hook.do(hook.pool.info()))
        assert len(proxy.headers) == 4
        for headers in proxy.headers:
            assert set(headers) <= {
                "host", "user-agent", "accept", "accept-encoding", "authorization", "connection", "content-type",
                "content-length",
            }  # fmt: skip
            assert headers["user-agent"].startswith("airflow-provider-picas/")


class TestSession:
    def test_the_connection_is_looked_up_once(self, hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
        looked_up: list[str] = []
        real = PicasHook.get_connection

        def get_connection(cls: type[PicasHook], conn_id: str) -> Any:
            looked_up.append(threading.current_thread().name)
            return real(conn_id)

        monkeypatch.setattr(PicasHook, "get_connection", classmethod(get_connection))
        hook.push(tokens(6 * PAGE))
        hook.deploy_views()
        hook.count("b")
        hook.run("/")
        hook.test_connection()
        assert looked_up == ["MainThread"]

    def test_each_thread_has_one_session(self, hook: PicasHook) -> None:
        with ThreadPoolExecutor(1) as worker:
            first, second = (worker.submit(hook.get_conn).result() for _ in range(2))
        assert first is second
        assert hook.get_conn() is hook.get_conn()
        assert hook.get_conn() is not first

    def test_each_thread_has_one_tcp_connection(self, connect: Connect, pool: Pool) -> None:
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)
            hook = PicasHook()
            hook.deploy_views()
            for _ in range(20):
                hook.count("b")
            hook.run("/")
            assert (len(proxy.requests) > 20, proxy.connections) == (True, 1)
            with ThreadPoolExecutor(3) as workers:
                barrier = threading.Barrier(3)

                def count(_: int) -> None:
                    barrier.wait()
                    hook.count("b")

                for _ in range(5):
                    list(workers.map(count, range(3)))
            assert proxy.connections <= 4

    def test_one_tcp_connection_for_an_async_hook(self, connect: Connect, pool: Pool) -> None:
        PicasHook().deploy_views()
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)

            async def count(hook: PicasAsyncHook) -> None:
                for _ in range(20):
                    await hook.count("b")

            run(count)
            assert (len(proxy.requests), proxy.connections) == (20, 1)

    def test_the_environment_does_not_win_over_the_connection(
        self, hook: PicasHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password wrong\n")
        (tmp_path / ".netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert hook.test_connection()[0]
        assert run(lambda hook: hook.do(hook.pool.info()))["doc_count"] == 0


class TestFaults:
    @pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, Fault.DROP, Fault.LOSE, Fault.CUT])
    def test_safe_requests_are_repeated(
        self, connect: Connect, pool: Pool, no_pauses: list[float], fault: Fault | int
    ) -> None:
        PicasHook().deploy_views()
        PicasHook().push(tokens(5))
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)
            proxy.hurt(fault, fault, on="/_view/")  # after each of these, a task asks whether an index is being built
            assert PicasHook().count("b") == Counts(todo=5)
            proxy.hurt(fault, fault, on="/_view/")
            assert run(lambda hook: hook.count("b")) == Counts(todo=5)
            assert sum("/_view/" in request for request in proxy.requests) == 6
        assert len(no_pauses) >= 3  # aiohttp asks once again by itself when a connection broke

    @pytest.mark.parametrize(("fault", "tries"), [(503, 5), (Fault.DROP, 5)])
    def test_a_server_that_stays_away_is_not_asked_for_ever(
        self, connect: Connect, pool: Pool, no_pauses: list[float], fault: Fault | int, tries: int
    ) -> None:
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)
            proxy.hurt(*[fault] * 20)
            with pytest.raises(errors.UnavailableError):
                PicasHook().get("x")
            assert len(proxy.requests) == tries
            with pytest.raises(errors.UnavailableError):
                run(lambda hook: hook.get("x"))
            assert 2 * tries <= len(proxy.requests) <= 3 * tries  # aiohttp asks once again by itself

    def test_a_write_with_a_revision_is_sent_once(self, connect: Connect, pool: Pool, no_pauses: list[float]) -> None:
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)
            proxy.hurt(Fault.LOSE)
            hook = PicasHook()
            with pytest.raises(errors.UnavailableError):
                hook.do(hook.pool.put({"_id": "x", "type": "token"}))
            assert len(proxy.requests) == 1
            assert hook.get("x")["type"] == "token"

    def test_refusals_are_not_repeated(self, connect: Connect, pool: Pool) -> None:
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url, password="wrong")
            with pytest.raises(errors.UnauthorizedError):
                PicasHook().get("x")
            with pytest.raises(errors.UnauthorizedError):
                run(lambda hook: hook.get("x"))
            assert len(proxy.requests) == 2

    @pytest.mark.parametrize("status", [200, 404])
    def test_a_web_page_is_not_taken_for_couchdb(self, connect: Connect, status: int) -> None:
        with html_site(status) as url:
            connect(host=url)
            for ask in ASKS:
                with pytest.raises(errors.NotCouchDBError, match=r"Please sign in.*Check host and port of connection"):
                    ask()
            ok, text = PicasHook().test_connection()
        assert not ok
        assert "is not CouchDB" in text

    @pytest.mark.parametrize("accepts", [True, False])
    def test_a_silent_host_times_out(self, connect: Connect, no_pauses: list[float], accepts: bool) -> None:
        with silent_host(accepts=accepts) as url:
            connect(host=url, extra={"connect_timeout": 0.3, "read_timeout": 0.3})
            for ask in ASKS:
                with pytest.raises(errors.UnavailableError, match=r"does not answer \(.*Check host and port"):
                    ask()

    def test_a_closed_port_is_unavailable(self, connect: Connect, no_pauses: list[float]) -> None:
        connect(host=f"http://127.0.0.1:{processes.free_port()}")
        for ask in ASKS:
            with pytest.raises(errors.UnavailableError, match=r"does not answer \(.*(refused|Connect call failed)"):
                ask()

    def test_an_unknown_host_is_unavailable(self, connect: Connect, no_pauses: list[float]) -> None:
        connect(host="http://no-such-host.invalid")
        for ask in ASKS:
            with pytest.raises(errors.UnavailableError, match=r"no-such-host.invalid:[0-9]+ does not answer"):
                ask()


class TestTLS:
    @pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
    def test_an_invalid_certificate_is_refused(self, connect: Connect, pool: Pool, tmp_path: Path) -> None:
        context, ca_file = self_signed(tmp_path)
        with Proxy(pool.url, context) as proxy:
            connect(host=proxy.url)
            for ask in ASKS:
                with pytest.raises(
                    errors.CouchDBError, match=r"certificate of .* could not be verified .*'ca_file'"
                ) as caught:
                    ask()
                assert not isinstance(caught.value, errors.UnavailableError)
            assert proxy.requests == []
            connect(host=proxy.url, extra={"ca_file": str(ca_file)})
            assert PicasHook().test_connection()[0]
            assert run(lambda hook: hook.do(hook.pool.info()))["doc_count"] == 0
            connect(host=proxy.url, extra={"verify": False})
            assert PicasHook().test_connection()[0]
            assert run(lambda hook: hook.do(hook.pool.info()))["doc_count"] == 0

    def test_a_connection_that_breaks_is_not_a_bad_certificate(
        self, connect: Connect, pool: Pool, tmp_path: Path, no_pauses: list[float]
    ) -> None:
        context, ca_file = self_signed(tmp_path)
        with Proxy(pool.url, context) as proxy:
            connect(host=proxy.url, extra={"ca_file": str(ca_file)})
            hook = PicasHook()
            for fault in (Fault.DROP, Fault.LOSE, Fault.CUT):
                proxy.hurt(fault)
                assert hook.do(hook.pool.info())["doc_count"] == 0
                proxy.hurt(fault)
                assert run(lambda hook: hook.do(hook.pool.info()))["doc_count"] == 0

    def test_a_server_without_tls_is_reported(self, connect: Connect, pool: Pool, no_pauses: list[float]) -> None:
        connect(host=pool.url.replace("http://", "https://"), extra={"connect_timeout": 1})  # CouchDB waits for more
        for ask in ASKS:
            with pytest.raises(errors.CouchDBError, match="http://") as caught:
                ask()
            assert "could not be verified" not in str(caught.value)

    @pytest.mark.parametrize("content", [None, "no certificate"])
    def test_a_ca_file_that_cannot_be_read_is_named(
        self, connect: Connect, pool: Pool, tmp_path: Path, content: str | None
    ) -> None:
        file = tmp_path / "ca.pem"
        if content:
            file.write_text(content)
        connect(host=pool.url.replace("http://", "https://"), extra={"ca_file": str(file)})
        for ask in ASKS:
            with pytest.raises(errors.SettingsError, match=r"'picas_default': 'ca_file'.*ca.pem"):
                ask()


def test_the_password_appears_nowhere(
    connect: Connect,
    pool: Pool,
    caplog: pytest.LogCaptureFixture,
    no_pauses: list[float],
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    with Proxy(pool.url) as proxy:
        connect(host=proxy.url)
        hook = PicasHook()
        hook.deploy_views()
        hook.push(tokens(3))
        hook.run("/")
        proxy.hurt(503, Fault.DROP)
        hook.count()
        for error in (400, 401, 403, 404):
            proxy.hurt(error)
            with pytest.raises(errors.CouchDBError) as caught:
                hook.get("x")
            texts.append(repr(caught.value) + str(caught.value))
        texts += [repr(hook), repr(hook.pool), repr(hook.settings), str(vars(hook))]
        run(lambda hook: hook.count())
    connect(host=f"http://127.0.0.1:{processes.free_port()}")
    with pytest.raises(errors.UnavailableError) as gone:
        PicasHook().count()
    output = capfd.readouterr()
    texts += [repr(gone.getrepr()), caplog.text, output.out, output.err]
    assert len(caplog.text) > 100
    assert not [text for text in texts if pool.password in text]
