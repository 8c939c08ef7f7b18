"""The wait sends all results that dead pilots could not send before it releases their tokens; on a real pool and cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.couchdb.http import Request
from airflow_provider_picas.hooks import slurm as slurm_module
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.hooks.pilots import PilotsHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.lifecycle.exit_codes import EXIT_BAD_OUTPUT
from airflow_provider_picas.lifecycle.transitions import Change, Token, release
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.sansio import drive, drive_async
from airflow_provider_picas.slurm.remote import RemoteError, RemoteFile, Send, UnreachableError, quote
from airflow_provider_picas.submissions import unsent, watch
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.wait import check_twice
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.triggers.cluster import cluster_for
from stack import native
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.faults import Proxy

pytestmark = pytest.mark.usefixtures("spider")

PILOT = "dead"
CLAIM = {"lock": lives.NOW, "hostname": "n1", "pilot": PILOT, "claim": f"00112233445566aa-{lives.NOW}"}


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    """The pool, where a pilot has ended."""
    hook = PicasHook(picas_default)
    lease = {"pilot": PILOT, "submission": "s", "job": None, "hostname": "n1", "renewed": lives.NOW, "lease": 2}
    hook.do(hook.pool.put({"_id": f"_local/picas-pilot-{PILOT}", **lease, "ended": True}))
    return hook


@pytest.fixture
def proxy(pool: Pool) -> Iterator[Proxy]:
    with Proxy(pool.url) as between:
        yield between


@pytest.fixture
def behind(pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> PicasHook:
    """The pool, through the proxy."""
    return PicasHook(set_connection(monkeypatch, "behind", {**native.picas_connection(pool), "host": proxy.url}))


@pytest.fixture
def watched(remote: SlurmHook) -> Iterator[Submission]:
    """A submission of which Slurm knows no job."""
    name = f"picas-test-{secrets.token_hex(4)}.1"
    folder = f"{remote.run('pwd').stdout.strip()}/{name}"
    assert remote.run(f"mkdir -p {quote(folder)}/unsent").code == 0
    yield Submission(name, folder, int(time.time()) - 60, "spider")
    remote.run(f"rm -r {quote(folder)}")


def leave(remote: SlurmHook, watched: Submission, changes: Iterable[Change], folder: Path) -> None:
    """Put these into the submission's folder, as a pilot does."""
    outbox = Outbox(str(folder), "any")
    for change in changes:
        outbox.keep(change)
    files = [
        RemoteFile(f"{watched.folder}/unsent/{path.name}", path.read_bytes())
        for path in (folder / "unsent").glob("*.json")
    ]
    assert remote.perform(Send(files)).code == 0


def result(token: dict[str, Any], output: Any) -> Change:
    done = {"done": lives.NOW + 60, "exit_code": 0, "output": output}
    return Change.of("done", token, set=done, unset=("pilot",))


def files(remote: SlurmHook, watched: Submission) -> list[str]:
    return remote.run(f"cd {quote(watched.folder)} && find unsent refused -type f").stdout.split()


def look(watched: Submission, hook: PicasHook) -> PilotStatus:
    """As a sensor that pokes, and the operator that cancels, do it."""
    with PilotsHook(hook, watched.ssh_conn_id) as hooks:
        return hooks.do(check_twice(hook.pool, "b", watched, max_scrubs=3, max_lock_age=None))


def look_from_a_trigger(watched: Submission, hook: PicasHook) -> PilotStatus:
    async def once() -> PilotStatus:
        async with PicasAsyncHook() as picas, cluster_for(watched.ssh_conn_id).use() as slurm:
            return await drive_async(
                watch.check_pilots(picas.pool, "b", watched, max_scrubs=3, max_lock_age=None),
                lambda step: picas.send(step) if isinstance(step, Request) else slurm.perform(step),
            )

    return asyncio.run(once())


@pytest.mark.parametrize("look", [look, look_from_a_trigger])
def test_results_that_do_not_fit_into_one_round(
    look: Callable[[Submission, PicasHook], PilotStatus],
    hook: PicasHook,
    remote: SlurmHook,
    watched: Submission,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No token is given back whose result lies in the folder, and no file keeps the others from being sent."""
    monkeypatch.setattr(unsent, "UNSENT_FILES", 3)
    monkeypatch.setattr(unsent, "UNSENT_BYTES", 1_000)
    ids = lives.fill(hook, {State.LOCKED: 12}, **CLAIM)
    sent = {token: "x" * 5_000 if place in (0, 7) else place for place, token in enumerate(ids[:-1])}
    leave(remote, watched, (result(hook.get(token), output) for token, output in sent.items()), tmp_path)
    news = look(watched, hook)
    assert (news.outage, news.sent, news.locked) == (None, 11, 0)
    assert [token for token, _ in news.reaped] == ids[-1:]
    assert {token: hook.get(token).get("output") for token in ids[:-1]} == sent
    assert hook.count("b") == Counts(done=11, todo=1)
    assert files(remote, watched) == []


def test_who_dies_meanwhile_is_left_to_the_next_check(
    hook: PicasHook, remote: SlurmHook, watched: Submission, tmp_path: Path
) -> None:
    """Its result may have come after the folder was read."""
    first, second = lives.fill(hook, {State.LOCKED: 2}, **CLAIM)
    lives.change(hook, second, pilot="late")
    lease = {"pilot": "late", "submission": "s", "job": None, "hostname": "n1", "renewed": time.time(), "lease": 60}
    hook.do(hook.pool.put({"_id": "_local/picas-pilot-late", **lease}))
    leave(remote, watched, [result(hook.get(first), 1)], tmp_path / "first")

    def perform(step: Any) -> Any:
        if isinstance(step, Request):
            return hook.send(step)
        if "rm -f" in getattr(step, "text", ""):
            hook.do(hook.pool.put({**hook.get("_local/picas-pilot-late"), "ended": True}))
            leave(remote, watched, [result(hook.get(second), 2)], tmp_path / "second")
        return remote.perform(step)

    news = drive(watch.check_pilots(hook.pool, "b", watched, max_scrubs=3, max_lock_age=None), perform)
    assert (news.sent, news.reaped, news.locked) == (1, [], 1)
    assert look(watched, hook).sent == 1
    assert [hook.get(token)["output"] for token in (first, second)] == [1, 2]


def test_a_result_that_the_database_refuses_is_shortened(
    hook: PicasHook, remote: SlurmHook, watched: Submission, tmp_path: Path
) -> None:
    """It is larger than what is read at once, too, and than what CouchDB takes. The pilot makes the same of it."""
    ids = lives.fill(hook, {State.LOCKED: 4}, **CLAIM)
    large, good, lone, free = (hook.get(token) for token in ids)
    left = [result(large, "x" * 8_100_000), result(good, 5), result(lone, "\ud800")]
    leave(remote, watched, left, tmp_path)
    news = look(watched, hook)
    assert (news.outage, news.sent) == (None, 3)
    assert [token for token, _ in news.reaped] == [free["_id"]]
    assert hook.get(good["_id"])["output"] == 5
    for refused in (large, lone):
        failed = hook.get(refused["_id"])
        assert (failed["exit_code"], "output" in failed) == (EXIT_BAD_OUTPUT, False)
        assert failed["error"][-1]["message"] == "The database refused the token with its output."
    assert files(remote, watched) == []


def test_a_log_that_a_proxy_refuses_does_not_hold_up_the_result(
    hook: PicasHook, proxy: Proxy, behind: PicasHook, remote: SlurmHook, watched: Submission, tmp_path: Path
) -> None:
    (token,) = lives.fill(hook, {State.LOCKED: 1}, **CLAIM)
    change = result(hook.get(token), 5)
    change.attachments = {"attempt-1.out": {"content_type": "text/plain", "data": "bG9nCg=="}}
    leave(remote, watched, [change], tmp_path)
    proxy.hurt(413, on="_bulk_docs")
    assert look(watched, behind).sent == 1
    sent = hook.get(token)
    assert (sent["output"], sent["exit_code"], sent.get("_attachments")) == (5, 0, None)


def test_a_result_that_the_database_never_takes_holds_up_no_other(
    hook: PicasHook, proxy: Proxy, behind: PicasHook, remote: SlurmHook, watched: Submission, tmp_path: Path
) -> None:
    ids = lives.fill(hook, {State.LOCKED: 3}, **CLAIM)
    one, other, free = (hook.get(token) for token in ids)
    leave(remote, watched, [result(one, 1), result(other, 2)], tmp_path)
    proxy.hurt(*[504] * 10, on="_bulk_docs")  # as often as the first is tried
    news = look(watched, behind)
    (waits,) = news.unsent
    assert waits in (one["_id"], other["_id"])
    assert (news.sent, [token for token, _ in news.reaped], news.locked) == (1, [free["_id"]], 1)
    assert waits in str(news.trouble)
    assert len(files(remote, watched)) == 1
    assert look(watched, behind).sent == 1
    assert [hook.get(token["_id"])["output"] for token in (one, other)] == [1, 2]


def test_a_database_that_is_away_moves_no_result(
    hook: PicasHook,
    proxy: Proxy,
    behind: PicasHook,
    remote: SlurmHook,
    watched: Submission,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)
    number = unsent.MOST_FAILED + 1
    tokens = lives.fill(hook, {State.LOCKED: number}, **CLAIM)
    leave(remote, watched, [result(hook.get(token), 5) for token in tokens], tmp_path)
    names = files(remote, watched)
    proxy.hurt(*[503] * 10 * number, on="_bulk_docs")
    with pytest.raises(errors.UnavailableError, match="is not available"):
        look(watched, behind)
    assert files(remote, watched) == names
    assert hook.count("b") == Counts(locked=number)
    assert look(watched, behind).sent == number
    assert [hook.get(token)["output"] for token in tokens] == [5] * number
    assert files(remote, watched) == []


def test_a_command_that_writes_too_much_is_stopped_at_once(remote: SlurmHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_module, "_LARGEST_OUTPUT", 100_000)
    remote.run("true")
    begin = time.monotonic()
    for stream in (1, 2):
        with pytest.raises(RemoteError, match="it wrote more than 100,000 bytes") as caught:
            remote.run(f"yes >&{stream}", timeout=15)
        assert not isinstance(caught.value, UnreachableError)
    assert time.monotonic() - begin < 10
    assert remote.run("head -c 90000 /dev/zero | tr '\\0' x").stdout == "x" * 90_000


def test_a_token_that_was_never_started_is_not_a_refused_result(
    hook: PicasHook, remote: SlurmHook, watched: Submission, tmp_path: Path
) -> None:
    ids = lives.fill(hook, {State.LOCKED: 2}, **CLAIM)
    earlier = [{**hook.get(token), "claim": "0011223344556677-900", "lock": 900} for token in ids]
    leave(remote, watched, [release(Token(earlier[0])), result(earlier[1], 5)], tmp_path)
    assert look(watched, hook).sent == 0
    (kept,) = files(remote, watched)
    assert kept.startswith("refused/")
    assert ids[1].rpartition(":")[2] in kept
