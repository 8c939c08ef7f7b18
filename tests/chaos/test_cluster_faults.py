"""The way to the cluster fails, or Slurm's own parts do: waits and submissions go on, and say so."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

import pytest

from stack import native
from stack.cluster import Cluster
from stack.pool import Pool
from tests.chaos.run import Run, tell
from tests.conftest import set_connection
from tests.integration import faults


@contextlib.contextmanager
def login_away(cluster: Cluster) -> Iterator[None]:
    """No login node."""
    cluster.stop_sshd(0)
    try:
        yield
    finally:
        cluster.start_sshd(0)


class Said:
    """What the operators and the wait have printed since the test began."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def times(self, *words: str) -> int:
        """How often any of these was said."""
        self._text += self._capsys.readouterr().out
        return sum(self._text.count(word) for word in words)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def test_sshd_goes_away_and_comes_back(run: Run, cluster: Cluster, said: Said) -> None:
    """Meanwhile a pilot dies; the others give its token back, and the wait tells nothing wrong."""
    run.push([{"input": 20, "priority": 1}, *[{"input": 3}] * 15])
    run.submit("sleep $(($PICAS_ATTEMPT == 1 ? $PICAS_INPUT : 2))")
    run.wait()
    long, job = run.long_token()
    with login_away(cluster):
        at = time.time()
        run.kill_pilot(job)
        seconds = run.next_claim([long], at)
        run.until(lambda: said.times("cannot be reached", "broke"), "A look that fails")
    tell(f"sshd away: the token of a killed pilot was claimed again after {seconds:.1f} s")
    assert run.result()["done"] == 16
    run.check_done_once([long])


def test_a_submission_waits_for_sshd(run: Run, cluster: Cluster, said: Said) -> None:
    run.push(4)
    failed: list[BaseException] = []

    def submit() -> None:
        try:
            run.submit("sleep 0.1")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=submit)
    with login_away(cluster):
        thread.start()
        run.until(lambda: said.times("Trying again") >= 3, "The third try")
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()
    assert not failed
    run.wait()
    assert run.result()["done"] == 4


@contextlib.contextmanager
def crowd(cluster: Cluster) -> Iterator[None]:
    """As many connections that never log in as MaxStartups allows: all others are dropped before they can say a word."""
    with contextlib.ExitStack() as connections:
        for _ in range(2):
            connections.enter_context(socket.create_connection(cluster.logins[0]))
        yield


def drops(cluster: Cluster) -> int:
    """How often the login node's sshd has begun to drop connections; it logs the first of a series."""
    return (cluster.folder / "log" / "login0.log").read_text().count("past MaxStartups")


def test_sshd_refuses_connections(run: Run, cluster: Cluster) -> None:
    """MaxStartups is reached, first when the pilots are submitted, then under the wait."""
    cluster.stop_sshd(0)
    cluster.start_sshd(0, max_startups=2)
    try:
        run.push([{"input": 1}] * 30)
        with crowd(cluster):
            submission = threading.Thread(target=run.submit, args=["sleep $PICAS_INPUT"])
            submission.start()
            run.until(lambda: drops(cluster), "The refusal of a submission")
        submission.join(60)
        run.wait()
        run.running(4)
        cluster.stop_sshd(0)  # ends the connections that there are
        cluster.start_sshd(0, max_startups=2)
        before = drops(cluster)
        with crowd(cluster):
            run.until(lambda: drops(cluster) > before, "The refusal of a wait")
        assert run.result()["done"] == 30
        run.check_done_once()
    finally:
        cluster.stop_sshd(0)
        cluster.start_sshd(0)


def test_the_login_host_changes_between_connections(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address for all login nodes, as sites have it: each connection comes to the next one."""
    between = faults.Relay(*cluster.logins)
    connection = native.ssh_connection(cluster)
    set_connection(monkeypatch, "spider", {**connection, "host": "127.0.0.1", "port": between.port})
    try:
        run.push(8)
        run.submit("sleep 1")
        first = run.submitted
        run.submit("sleep 1")
        assert run.submitted == first, "the other login node did not find it"
        run.wait()
        assert run.result()["done"] == 8
        run.check_done_once()
        assert between.connections >= 3
    finally:
        between.close()


def test_sacct_does_not_answer(run: Run, cluster: Cluster, said: Said) -> None:
    """How the pilot ended is then known from squeue, for a while."""
    run.push([{"input": 8, "priority": 1}, *[{"input": 1}] * 5])
    cluster.stop_accounting()
    try:
        run.submit("sleep $PICAS_INPUT")
        run.wait()
        long, job = run.long_token()
        at = time.time()
        run.kill_pilot(job)
        tell(f"no sacct: claimed again after {run.next_claim([long], at):.1f} s")
        assert run.result()["done"] == 6
        run.check_done_once([long])
    finally:
        cluster.start_accounting()
    assert said.times("sacct does not answer")


def test_the_controller_hangs_and_is_restarted(run: Run, cluster: Cluster, said: Said) -> None:
    """Unknown is neither success nor death: no token is taken away."""
    run.push(10)
    run.submit("sleep 4")
    run.wait()
    run.running(2)
    cluster.stop_controller()
    run.until(lambda: said.times("squeue does not answer"), "A look that fails")
    cluster.continue_controller()
    # A controller that is killed forgets what it has not yet saved, and ends jobs that it does not know: let it save these.
    begin = time.time_ns()
    change = ("scontrol", "update", f"jobid={run.submitted['job_ids'][0]}", "comment=changed")
    run.until(lambda: cluster.run(*change).returncode == 0, "The controller's answer")
    run.until(lambda: (cluster.folder / "state" / "job_state").stat().st_mtime_ns > begin, "The controller's record")
    cluster.restart_controller()
    assert run.result()["done"] == 10
    run.check_done_once()
    assert not any(token["scrub_count"] for token in run.pool.tokens())


@pytest.mark.parametrize("hours", [1, -1])
def test_clocks_an_hour_apart(
    pool: Pool, cluster: Cluster, spider: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The clock of this machine cannot be changed, so it is the database whose answers are dated differently."""
    answer = faults._Handler.answer

    def dated(handler: faults._Handler, status: int, headers: list[tuple[str, str]], *rest: Any, **more: Any) -> None:
        dates = [(n, formatdate(parsedate_to_datetime(v).timestamp() + 3600 * hours, usegmt=True))
                 for n, v in headers if n.lower() == "date"]  # fmt: skip
        return answer(handler, status, [(n, v) for n, v in headers if n.lower() != "date"] + dates, *rest, **more)

    monkeypatch.setattr(faults._Handler, "answer", dated)
    with faults.Proxy(pool.url) as proxy:
        set_connection(monkeypatch, "picas_default", native.picas_connection(replace(pool, url=proxy.url)))
        run = Run(cluster, pool, "clock")
        run.push([{"input": 8, "priority": 1}, *[{"input": 2}] * 7])
        run.submit("sleep $PICAS_INPUT")
        run.wait()
        long, job = run.long_token()
        run.kill_pilot(job)
        assert run.result()["done"] == 8
        run.check_done_once([long])
        assert sum(token["scrub_count"] for token in pool.tokens()) == 1
        assert all(abs(token["done"] - time.time() - 3600 * hours) < 300 for token in pool.tokens())
        run.close()
