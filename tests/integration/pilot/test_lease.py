"""The lease of a pilot, and what it does when it loses it or one of its tokens."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.pilot.main import Pilot
from airflow_provider_picas.pilot.work import GO, STOP
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.integration import faults
from tests.integration.pilots import COUNT, GATE, Pool, Proxy, Submission, left_behind, until


def test_progress_is_in_the_lease(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    submission.start("echo '{\"step\": 3}' > $PICAS_PROGRESS_FILE; sleep 30", lease=3)
    until(
        lambda: [lease.get("running", {}).get("b:0000", {}).get("progress") for lease in pool.leases()] == [{"step": 3}]
    )


def test_the_output_of_a_command_is_in_the_lease_while_somebody_watches(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    submission.start("seq 1000; echo problem >&2; sleep 60", lease=3)

    def tails() -> list[Any]:
        return [lease.get("running", {}).get("b:0000", {}).get("tail") for lease in pool.leases()]

    until(lambda: pool.states() == {State.LOCKED: 1} and tails() == [None])
    soon = int(time.time()) + 600
    assert pool.request("PUT", "_local/picas-watched-sub-1", {"until": soon})[0] == 201
    until(lambda: tails() != [None])
    (tail,) = tails()
    assert (tail.endswith("999\n1000\n\nproblem\n"), len(tail) <= 2_048) == (True, True)
    flag = pool.request("GET", "_local/picas-watched-sub-1")[1]
    assert pool.request("PUT", "_local/picas-watched-sub-1", {**flag, "until": 1})[0] == 201
    until(lambda: tails() == [None])


def test_a_drained_pilot_finishes_its_token_and_stops(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 4)
    process = submission.start(f"{COUNT}; {GATE}", lease=12)
    until(lambda: submission.runs().total() == 1)
    assert pool.request("PUT", "_local/picas-submission-sub-1", {"drain": True})[0] == 201
    until(lambda: "drained" in submission.log())
    submission.open_gate()
    assert process.wait(30) == 0
    assert pool.states() == {State.DONE: 1, State.TODO: 3}


def test_a_pilot_that_waits_for_work_notices_soon_that_it_is_drained(pool: Pool, submission: Submission) -> None:
    """Long before it renews its lease."""
    process = submission.start(COUNT, lease=3600, wait_for_work=3600)
    until(lambda: "Pilot " in submission.log())
    assert pool.request("PUT", "_local/picas-submission-sub-1", {"drain": True})[0] == 201
    assert process.wait(120) == 0
    assert "drained" in submission.log()


def test_a_pilot_whose_token_was_taken_stops_work_on_it(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(COUNT + "; sleep 60", lease=3)
    until(lambda: submission.runs().total() == 1)
    doc = pool.get("b:0000")
    pool.put({**doc, "claim": "other-1", "pilot": "other", "lock": doc["lock"] + 1})
    until(lambda: "was taken by another pilot" in submission.log())
    until(lambda: not [line for line in left_behind(submission) if "sleep" in line])
    assert pool.get("b:0000")["claim"] == "other-1"
    process.terminate()
    assert process.wait(20) == 0
    assert pool.get("b:0000")["claim"] == "other-1"


def test_a_lost_lease_stops_the_work(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, submission: Submission
) -> None:
    pool.push([{}])
    write = 'date +%s.%N >> "$RUNS.times"'
    cut_off = behind_proxy.start(f'{COUNT}; until [ -e "$RUNS.go" ]; do {write}; sleep 0.05; done', lease=4)
    until(lambda: behind_proxy.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    (lease,) = pool.leases()  # it lasts longer for others: a lease this short has no room for a slow machine
    assert pool.request("PUT", lease["_id"], {**lease, "renewed": lease["renewed"] + 4})[0] == 201
    other = submission.start(f"{write}; sleep 0.5; echo 2 > output.json", lease=4, wait_for_work=20)
    until(lambda: "has expired. Stopping b:0000" in behind_proxy.log())
    until(lambda: state_of(pool.get("b:0000")) is State.DONE)
    first, second = ((made.folder / "runs.times").read_text().split() for made in (behind_proxy, submission))
    assert float(first[-1]) < float(second[0]), "the other pilot ran the token while the first one still did"
    proxy.fault = lambda request: ""
    until(lambda: "is refused" in behind_proxy.log())
    assert pool.get("b:0000")["output"] == 2
    for process in (cut_off, other):
        process.terminate()
        assert process.wait(20) == 0


@contextlib.contextmanager
def frozen(process: subprocess.Popen[bytes], pool: Pool) -> Iterator[None]:
    """Stop a pilot, but not its commands, until its lease is over."""
    process.send_signal(signal.SIGSTOP)
    yield
    (lease,) = pool.leases()
    until(lambda: time.time() > lease["renewed"] + lease["lease"] + 1)
    process.send_signal(signal.SIGCONT)


def commands(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """The running commands of a pilot that were started for a token, by pid: the token's id."""
    found = {}
    for folder in Path(f"/proc/{process.pid}/task").iterdir():
        for pid in (folder / "children").read_text().split():
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found |= {int(pid): value[15:].decode() for value in variables if value.startswith(b"PICAS_TOKEN_ID=")}
    return found


WAIT_FOR_ITS_FILE = f'{COUNT}; echo 5 > output.json; until [ -e "$RUNS.$PICAS_INPUT" ]; do sleep 0.05; done'


def start_two_commands(pool: Pool, submission: Submission, **keys: object) -> tuple[subprocess.Popen[bytes], int]:
    """A pilot with a command for b:0000, which ends when the file ``runs.first`` is there, and one for b:0001, the pid of which
    is returned, too."""
    pool.push([{"input": "first"}, {"input": "second"}])
    process = submission.start(WAIT_FOR_ITS_FILE, slots=2, **keys)
    until(lambda: submission.runs().total() == 2)
    (second,) = [pid for pid, token in commands(process).items() if token == "b:0001"]
    return process, second


def test_a_pilot_that_was_frozen_past_its_lease_keeps_what_nobody_took(pool: Pool, submission: Submission) -> None:
    """The result of a command that ended meanwhile counts, and one that runs yet goes on."""
    process, second = start_two_commands(pool, submission, lease=8)
    revision = pool.get("b:0001")["_rev"]
    with frozen(process, pool):
        (submission.folder / "runs.first").touch()
        until(lambda: set(commands(process).values()) == {"b:0001"})
    until(lambda: state_of(pool.get("b:0000")) is State.DONE or "has expired" in submission.log())
    until(lambda: pool.get("b:0001")["_rev"] != revision)
    assert commands(process) == {second: "b:0001"}, submission.log()
    (submission.folder / "runs.second").touch()
    assert process.wait(30) == 0
    assert pool.states() == {State.DONE: 2}
    assert submission.runs() == {"b:0000": 1, "b:0001": 1}
    assert not any(doc["scrub_count"] for doc in pool.docs().values())


def test_a_pilot_that_was_frozen_past_its_lease_gives_up_what_others_took(pool: Pool, submission: Submission) -> None:
    process, second = start_two_commands(pool, submission, lease=3)
    with frozen(process, pool):
        (submission.folder / "runs.first").touch()
        until(lambda: set(commands(process).values()) == {"b:0001"})
        taken = {
            name: {**doc, "claim": f"other-{doc['lock'] + 1}", "pilot": "other", "lock": doc["lock"] + 1}
            for name, doc in pool.docs().items()
        }
        for doc in taken.values():
            pool.put(doc)
    until(lambda: not Path(f"/proc/{second}").exists())
    until(lambda: submission.files("refused"))
    (kept,) = submission.files("refused")
    assert json.loads(kept.read_text())["change"]["set"]["output"] == 5
    process.terminate()
    assert process.wait(30) == 0
    assert {name: {**doc, "_rev": ""} for name, doc in pool.docs().items()} == {
        name: {**doc, "_rev": ""} for name, doc in taken.items()
    }


def test_a_frozen_pilot_that_cannot_make_sure_of_its_tokens_stops_work(
    pool: Pool, submission: Submission, server: couchdb.CouchDBAdmin
) -> None:
    with faults.Proxy(server.url) as proxy:
        submission.write_credentials(proxy.url)
        process, second = start_two_commands(pool, submission, lease=3)
        with frozen(process, pool):
            proxy.break_after(0)
        until(lambda: not Path(f"/proc/{second}").exists())
        proxy.break_after(None)
        until(lambda: pool.states()[State.LOCKED] == 0 or submission.runs().total() > 2)
        for name in ("b:0000", "b:0001"):
            assert pool.get(name)["attempts"][0]["reason"] == "given back: the pilot lost its lease"


@pytest.mark.parametrize("frozen_before", [True, False])
def test_time_that_a_pilot_was_frozen_is_no_silence_and_no_time_of_its_job(
    pool: Pool, submission: Submission, frozen_before: bool
) -> None:
    """A job that is suspended does not use up its wall-clock: Slurm is asked again before that stops the pilot."""
    config = Config(command="true", submission="s", batch="b")
    for place in range(2):
        made = Pilot(str(submission.folder), config)
        if frozen_before:
            made._watched -= 5000
        if place:
            made.clock._last_answer -= 5000
        else:
            made.wall_clock._end = time.monotonic() - 4000
        made._watch()
        assert made.work.level == (GO if frozen_before else STOP)
        assert made.wall_clock._again.is_set() == frozen_before
