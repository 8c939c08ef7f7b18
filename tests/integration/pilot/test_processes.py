"""The pilot as a process among others: what it leaves running, and what must not hold it up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change, Token, release
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.main import Pilot
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.pilot.scratch import remove_stale_scratch
from airflow_provider_picas.pilot.work import GO, STOP
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.integration import faults
from tests.integration.pilots import COUNT, GATE, PASSWORD, Pool, Submission, held, session_of_a_pilot, until


@pytest.fixture(autouse=True)
def nothing_left(submission: Submission) -> Iterator[None]:
    """End what a test that fails would leave running: commands write the pids into files."""
    yield
    for name in ("hidden", "beside", "pids"):
        for pid in pids_in(submission.folder / f"runs.{name}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# --- the log -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that nobody reads, and that takes no more bytes."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"." * 4096):
            pass
    os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def start_with_log(submission: Submission, log: int, command: str, **keys: object) -> subprocess.Popen[bytes]:
    """Start a pilot whose log is a file descriptor."""
    config = submission.write_config("pilot-0", command, **keys)
    process = subprocess.Popen(
        [sys.executable, "-I", str(submission.folder / archive.FILE), str(config)],
        stdout=log,
        stderr=log,
        env=submission.environment(),
    )
    submission.pilots.append(process)
    return process


def test_a_log_that_blocks_stops_no_work(pool: Pool, submission: Submission, full_pipe: tuple[int, int]) -> None:
    """Results are written, and a signal is obeyed; what the pipe takes later tells of it."""
    pool.push([{"input": "exit 3"}, {"input": "exit 3"}, {"input": GATE, "priority": -1}])
    process = start_with_log(submission, full_pipe[1], COUNT + '; eval "$PICAS_INPUT"', lease=30)
    until(lambda: pool.states() == {State.ERROR: 2, State.LOCKED: 1})
    until(lambda: submission.runs().total() == 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert pool.states() == {State.ERROR: 2, State.TODO: 1}
    assert pool.leases()[0]["ended"] is True


def test_entries_that_a_blocked_log_cannot_take_are_counted(full_pipe: tuple[int, int]) -> None:
    text = (
        "import os; from airflow_provider_picas.pilot import log as p\n"
        "p._LOG._most = 10\n"
        "p.log('first'); p._LOG.flush(0.1)\n"
        "while not p._LOG._busy: pass\n"
        "for place in range(25): p.log(f'entry {place}')\n"
        "os.write(2, b'x'); p._LOG.flush(60); os._exit(0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=full_pipe[1], stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.read(1) == b"x", "logging waited for the pipe"
    os.set_blocking(full_pipe[0], False)
    data = b""
    while process.poll() is None:
        with contextlib.suppress(BlockingIOError):
            data += os.read(full_pipe[0], 65536)
    with contextlib.suppress(BlockingIOError):
        data += os.read(full_pipe[0], 65536)
    lines = [line.partition(" ")[2] for line in data.decode().split("\n")]
    missing = "15 entries are missing here: the log could not be written."
    assert lines[-13:-1] == ["first", missing, *(f"entry {place}" for place in range(15, 25))]
    process.stderr.close()


# --- a pilot that is frozen ----------------------------------------------------------------------------------------------


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


# --- what commands leave running, and what a killed pilot leaves ---------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids_in(path: Path) -> list[int]:
    """The pids that commands have written into a file, one a line."""
    return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


HIDE = (  # in a session of its own, without a variable, a file or a parent that shows where it comes from
    f'{sys.executable} -c \'import subprocess as s; print(s.Popen(["sleep", "1000"], env={{}}, cwd="/", '
    "start_new_session=True, stdin=s.DEVNULL, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)' >> $RUNS.hidden"
)
"""A command that leaves a process running."""


@pytest.mark.parametrize("leaves", [HIDE, "setsid env -i sh -c 'echo $$ >> '\"$RUNS.hidden\"'; exec sleep 1000' &"])
def test_what_hides_from_the_pilot_ends_with_its_token(pool: Pool, submission: Submission, leaves: str) -> None:
    pool.push([{"input": leaves}, {"input": GATE, "priority": -1}])
    process = submission.start('eval "$PICAS_INPUT"; until [ -e "$RUNS.hidden" ]; do sleep 0.05; done', max_claim=1)
    until(lambda: pool.states()[State.DONE] == 1)
    (hidden,) = pids_in(submission.folder / "runs.hidden")
    assert not alive(hidden)
    submission.open_gate()
    assert process.wait(30) == 0


def test_what_hides_beside_another_command_spares_that_and_ends_with_it(pool: Pool, submission: Submission) -> None:
    """Of two commands either may have left it: the other's own processes, in sessions of their own, are not touched."""
    beside = f"setsid sh -c 'echo $$ > '\"$RUNS.beside\"'; exec sleep 1000' & {GATE}; kill -0 $(cat $RUNS.beside)"
    pool.push([{"input": beside, "priority": 1}, {"input": HIDE}, {"input": HIDE}, {"input": "true", "priority": -1}])
    config = {"slots": 2, "max_claim": 1}
    process = submission.start('test "$PICAS_INPUT" || exit; eval "$PICAS_INPUT"', **config)
    until(lambda: pool.states()[State.DONE] == 3)
    (other,) = pids_in(submission.folder / "runs.beside")
    assert alive(other)
    submission.open_gate()
    assert process.wait(30) == 0
    assert pool.states() == {State.DONE: 4}, "a process of the other command was killed"
    assert not any(alive(pid) for pid in [other, *pids_in(submission.folder / "runs.hidden")])


def test_what_the_setup_left_running_stays(pool: Pool, submission: Submission) -> None:
    """The pilot takes the place of the job's shell, and its children."""
    pool.push([{"input": HIDE}, {"input": "true"}])
    config = submission.write_config("pilot-0", 'eval "$PICAS_INPUT"; kill -0 $(cat "$RUNS.setup")')
    arguments = f"{sys.executable} -I {submission.folder / archive.FILE} {config}"
    setup = f'sleep 1000 & echo $! > "$RUNS.setup"; exec {arguments}'
    process = subprocess.Popen(
        ["/bin/sh", "-c", setup], env=submission.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    submission.pilots.append(process)
    assert process.wait(60) == 0
    (of_setup,) = pids_in(submission.folder / "runs.setup")
    try:
        assert alive(of_setup)
        assert pool.states() == {State.DONE: 2}
        assert not any(alive(pid) for pid in pids_in(submission.folder / "runs.hidden"))
    finally:
        os.kill(of_setup, signal.SIGKILL)


def guard_of(process: subprocess.Popen[bytes]) -> int:
    """The pid of the process that ends a pilot's commands when that was killed."""
    for folder in Path(f"/proc/{process.pid}/task").iterdir():
        for pid in (folder / "children").read_text().split():
            if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise AssertionError("there is no guard")


RUNNING = f"{COUNT}; echo $$ >> $RUNS.pids; sleep 1000 & echo $! >> $RUNS.pids; setsid sleep 1000 & echo $! >> $RUNS.pids; wait"


def test_a_pilot_that_is_killed_alone_leaves_no_command_and_no_folder(pool: Pool, submission: Submission) -> None:
    """Its lease lasts long yet: whoever takes its token later is alone with it."""
    pool.push([{}, {}])
    victim = submission.start(RUNNING, lease=600, slots=2)
    until(lambda: len(pids_in(submission.folder / "runs.pids")) == 6)
    victim.kill()
    until(lambda: not any(alive(pid) for pid in pids_in(submission.folder / "runs.pids")))
    until(lambda: not list(submission.scratch.iterdir()))


def test_a_signal_to_all_of_a_job_does_not_end_the_guard(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(f"trap '' TERM; {RUNNING}", lease=600)
    until(lambda: len(pids_in(submission.folder / "runs.pids")) == 3)
    guard = guard_of(process)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(guard, number)
    process.terminate()
    until(lambda: "Stopping" in submission.log())
    assert alive(guard)
    assert process.wait(30) == 0
    assert not alive(guard)
    assert pool.states() == {State.TODO: 1}


def test_scratch_folders_of_killed_pilots_are_removed_by_the_next_one(pool: Pool, submission: Submission) -> None:
    """But not those of living pilots, nor while a command runs there, nor what no pilot has made."""
    pool.push([{"input": "wait"}, {"input": "go"}])
    command = 'test "$PICAS_INPUT" = wait || exit 0; ' + RUNNING
    living = submission.start(f"{COUNT}; {GATE}", batch="c", wait_for_work=600)
    until(lambda: len(list(submission.scratch.glob("picas-*/guard.py"))) == 1)
    (of_living,) = submission.scratch.iterdir()
    victim = submission.start(command, lease=600, max_claim=1)
    until(lambda: len(pids_in(submission.folder / "runs.pids")) == 3)
    (of_victim,) = set(submission.scratch.iterdir()) - {of_living}
    os.kill(guard_of(victim), signal.SIGKILL)
    victim.kill()
    victim.wait()
    others = [submission.scratch / "picas-of-somebody", submission.scratch / "other", submission.scratch / "picas-link"]
    for folder in others[:2]:
        folder.mkdir()
    others[2].symlink_to(others[1])

    remove_stale_scratch(str(submission.scratch))
    assert set(submission.scratch.iterdir()) == {of_living, of_victim, *others}
    for pid in pids_in(submission.folder / "runs.pids"):
        os.kill(pid, signal.SIGKILL)
    submission.start("true", batch="c", wait_for_work=600)
    until(lambda: "Removed 1 scratch folders" in submission.log())
    assert not of_victim.exists()
    assert {of_living, *others} <= set(submission.scratch.iterdir())
    assert living.poll() is None


# --- a password that is changed ------------------------------------------------------------------------------------------


@pytest.fixture
def change_password(server: couchdb.CouchDBAdmin, member: str) -> Iterator[Callable[[str], None]]:
    """Gives the pilots' user another password."""

    def change(password: str) -> None:
        server.delete_user(member)
        server.create_user(member, password)

    yield change
    change(PASSWORD)


def test_a_pilot_takes_new_credentials_when_its_own_are_refused(
    pool: Pool, submission: Submission, change_password: Callable[[str], None]
) -> None:
    """All its connections do; but not those of another database, whose password is none of this one's business."""
    pool.push([{}] * 4)
    process = submission.start(f"{COUNT}; {GATE}", slots=2, lease=120, max_claim=1)
    until(lambda: submission.runs().total() == 2)
    change_password("another-password")
    submission.write_credentials("http://127.0.0.1:1", "of-another-database")
    submission.open_gate()
    until(lambda: "are now for another database" in submission.log())
    assert pool.states() == {State.LOCKED: 2, State.TODO: 2}
    config = submission.folder / "credentials" / "picasconfig.py"
    aside = config.with_name("new")
    aside.write_text(
        config.read_text()
        .replace("http://127.0.0.1:1", pool.server.url)
        .replace("of-another-database", "another-password")
    )
    aside.chmod(0o600)
    aside.replace(config)
    assert process.wait(60) == 0, submission.log()
    assert pool.states() == {State.DONE: 4}
    assert set(submission.runs().values()) == {1}
    assert submission.log().count("have changed. The new ones are used from now on") == 1
    assert "another-password" not in submission.log()
    assert pool.leases()[0]["ended"] is True


# --- files in the submission's folder --------------------------------------------------------------------------------------


def test_a_token_that_was_never_started_is_no_refused_result(pool: Pool, submission: Submission) -> None:
    """Its pilot could not give it back, and somebody else has it by now."""
    pool.push(held("other", 2))
    outbox = Outbox(str(submission.folder), pool.name)
    for name, done in (("b:0000", None), ("b:0001", 1010)):
        doc = {**pool.get(name), "claim": "earlier-900", "lock": 900}
        token = Token(doc)
        result = Change.of("done", doc, set={"done": done, "exit_code": 0})
        outbox.keep(result if done else release(token))
    assert submission.run("true") == 0, submission.log()
    assert submission.files("unsent") == []
    assert [path.name for path in submission.files("refused")] == ["b%3A0001-earlier-900.json"]


def test_a_folder_that_hangs_holds_up_no_result(
    pool: Pool, server: couchdb.CouchDBAdmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where refused results are kept, the home, may hang: the results of other tokens are written meanwhile."""
    hangs = threading.Event()
    monkeypatch.setattr(Outbox, "keep", lambda *args: hangs.wait(60))
    pool.push(held("me", 2))
    settled: list[tuple[str, str]] = []
    with session_of_a_pilot(pool, server.url) as session:
        conflicts = Conflicts(session)
        outbox = Outbox(str(tmp_path), pool.name)
        reporter = Reporter(
            session.database, outbox, lambda change, how: settled.append((change.token, how)), conflicts
        )
        reporter.start()
        for name, claim in (("b:0000", "earlier-900"), ("b:0001", None)):
            doc = pool.get(name)
            doc.update({"claim": claim, "lock": 900, "_rev": "1-0"} if claim else {})
            reporter.put(Change.of("done", doc, set={"done": 1010, "exit_code": 0}, unset=("pilot",)))
        until(lambda: len(settled) == 2)
        reporter.close()
        reporter.join(30)
        assert sorted(settled) == [("b:0000", "refused"), ("b:0001", "landed")]
        hangs.set()
        outbox.flush(30)
