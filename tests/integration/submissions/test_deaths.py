"""A pilot that lives is never taken for dead, neither by another pilot nor by a wait; one that is dead is.

Each test has a pilot at work, another one that looks for tokens of the dead, and a wait that does the same. Faults are put
between them and the database, or into the database.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import reap
from airflow_provider_picas.pilot.access import Access
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.submissions import watch
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens.states import State
from stack.couchdb import CouchDBAdmin
from tests.conftest import set_connection
from tests.integration.faults import Fault, Proxy
from tests.integration.pilots import COUNT, GATE, PASSWORD, Pool, Submission, new_pool, until

LEASE = 8  # seconds; renewed every 2.7 s
RENEWAL = "PUT /{name}/_local/picas-pilot-"
READING = "_local_docs?include_docs"  # of leases, by another pilot or the wait


@pytest.fixture
def pool(couchdb: CouchDBAdmin) -> Iterator[Pool]:
    """A pool for one test."""
    with new_pool(couchdb) as made:
        yield made


class Site:
    """A pilot at work on a token, and those that may take it for dead, each behind a proxy of its own."""

    def __init__(self, pool: Pool, folder: Path, proxies: Sequence[Proxy], hook: PicasHook) -> None:
        self.pool, self.proxies = pool, proxies
        self.worker, self.other, _ = proxies
        self.working = Submission(folder / "working", pool, self.worker.url)
        self.looking = Submission(folder / "looking", pool, self.other.url)
        self._hook = hook
        self._observer = ObservedLeases()
        self.renewal = RENEWAL.format(name=pool.name)

    def begin(self, lease: float = LEASE) -> subprocess.Popen[bytes]:
        """Start both pilots, and go on when the token runs and the other pilot has read the lease."""
        pilot = self.work(lease)
        self.start_looking(lease)
        return pilot

    def work(self, lease: float = LEASE) -> subprocess.Popen[bytes]:
        """Start the pilot that runs the token."""
        self.pool.push([{}])
        pilot = self.working.start(f"{COUNT}; {GATE}", lease=lease)
        until(lambda: self.working.runs().total() == 1)
        return pilot

    def start_looking(self, lease: float = LEASE) -> None:
        """Start the other one, and go on when it has read the first one's lease."""
        self.looking.start(COUNT, lease=lease, wait_for_work=300)
        self.readings(1)

    def look(self) -> PilotStatus:
        """The wait's look, which must give nothing back."""
        news = self.look_once()
        assert not news.reaped
        assert not news.given_up
        assert not self.looking.runs(), "the other pilot has run the token, too"
        return news

    def look_once(self) -> PilotStatus:
        """The wait's look."""
        looked = watch.check_pilots(
            self._hook.pool, "b", None, max_scrubs=3, max_lock_age=None, observer=self._observer
        )
        news = self._hook.do(looked)  # type: ignore[arg-type]
        assert isinstance(news, PilotStatus)
        return news

    def renewals(self) -> int:
        """How often the pilot at work has sent its lease."""
        return sum(request.startswith(self.renewal) for request in self.worker.requests)

    def renew(self, times: int) -> None:
        """Wait until it has done so again."""
        wanted = self.renewals() + times
        until(lambda: self.look() and self.renewals() >= wanted, 60)

    def readings(self, times: int) -> None:
        """Wait until the other pilot has read leases again, and the wait as well."""
        wanted = self._read() + times
        until(lambda: self.look() and self._read() >= wanted, 60)

    def _read(self) -> int:
        return sum(READING in request for request in self.other.requests)

    def lease(self) -> dict[str, Any]:
        """The lease of the pilot at work."""
        holder = self.pool.get("b:0000")["pilot"]
        (lease,) = [lease for lease in self.pool.leases() if lease["pilot"] == holder]
        return lease

    def check(self) -> None:
        """End the command: its token was run once, by the pilot that lived all the time, which ends well."""
        self.look()
        self.working.open_gate()
        assert self.working.pilots[0].wait(60) == 0, self.working.log()
        assert self.pool.states() == {State.DONE: 1}
        token = self.pool.get("b:0000")
        assert not token.get("attempts")
        assert token["scrub_count"] == 0
        assert self.working.runs() + self.looking.runs() == {"b:0000": 1}
        assert "has expired" not in self.working.log()

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.let_go.set()
        self.working.close()
        self.looking.close()


@contextmanager
def new_site(pool: Pool, folder: Path, urls: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """``urls``: of the server, for the pilot at work, the other one, and the wait."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(url)) for url in urls]
        fields = {"conn_type": "picas", "schema": pool.name, "login": pool.member, "password": PASSWORD}
        hook = PicasHook(set_connection(monkeypatch, "wait", {**fields, "host": proxies[2].url}))
        with closing(Site(pool, folder, proxies, hook)) as made:
            yield made


@pytest.fixture
def site(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with new_site(pool, tmp_path, [pool.server.url] * 3, monkeypatch) as made:
        yield made


def test_a_renewal_that_comes_later_than_those_after_it(site: Site) -> None:
    """It sets the lease back to a time that is longer ago than the lease is long."""
    site.begin()
    site.worker.hurt(Fault.LATE, on=site.renewal)
    until(lambda: site.worker.held == 1)
    held = time.monotonic()
    until(lambda: site.look() and time.monotonic() > held + LEASE + 2, 60)
    newest = site.lease()["renewed"]
    site.worker.let_go.set()
    until(lambda: site.lease()["renewed"] < newest - LEASE / 2, 60)
    site.readings(2)
    site.renew(2)
    site.check()


@pytest.mark.parametrize("step", [200, -200])
def test_a_step_of_the_databases_clock_kills_no_pilot(site: Site, step: float) -> None:
    site.begin()
    for proxy in site.proxies:
        proxy.ahead = step
    site.readings(2)
    site.renew(3)
    site.readings(2)
    assert site.lease()["renewed"] == pytest.approx(time.time() + step, abs=60)
    site.check()


def test_a_loss_of_local_documents_kills_no_pilot(site: Site) -> None:
    """As after a fail-over to a replica: leases are never replicated."""
    lease_time = 20  # so that the pilot at work outlasts the start of the other one on a slow machine
    site.work(lease_time)
    for proxy in site.proxies:
        proxy.ahead = 3 * lease_time  # a token that was just locked is no orphan
    heard = site.renewals() + 1
    until(lambda: site.renewals() >= heard, 60)
    site.worker.hurt(Fault.LATE, on=site.renewal)
    lease = site.lease()
    assert site.pool.request("DELETE", f"{lease['_id']}?rev={lease['_rev']}")[0] == 200
    site.start_looking(lease_time)
    site.worker.let_go.set()
    until(lambda: lease["_id"] in [there["_id"] for there in site.pool.leases()])
    site.readings(2)
    site.check()


def test_an_answer_that_is_delayed_does_not_set_the_clock_back(pool: Pool) -> None:
    config = Config(command="true", submission="s")
    clock = Clock()
    with Proxy(pool.server.url) as proxy:
        access = Access(proxy.url, pool.name, pool.member, PASSWORD, "")
        database = Database(access, config, clock)
        database.request("GET", "")
        before = clock.now() - time.time()
        proxy.hurt(Fault.HOLD)
        threading.Timer(3, proxy.let_go.set).start()
        database.request("GET", "")
        assert clock.now() - time.time() == pytest.approx(before, abs=1.1)
        database._connection.close()


def test_who_is_killed_is_dead_for_both(site: Site) -> None:
    pilot = site.begin()
    site.look()
    killed = time.monotonic()
    pilot.kill()
    found: list[PilotStatus] = []
    until(lambda: found.append(site.look_once()) or found[-1].reaped or site.looking.runs())  # type: ignore[func-returns-value]
    print(f"given back {time.monotonic() - killed:.1f} s after the kill, with a lease of {LEASE} s")
    until(lambda: site.pool.states() == {State.DONE: 1})
    (attempt,) = site.pool.get("b:0000")["attempts"]
    assert "did not renew its lease for" in attempt["reason"]


class Cluster:
    """Lets pilots take the database for a cluster, one node of which may be cut off: it answers with the leases that it had."""

    def __init__(self, site: Site) -> None:
        self.cut_off = False
        self._info, self._leases = f"GET /{site.pool.name}", b""
        site.worker.rewrite = site.other.rewrite = self._rewrite

    def _rewrite(self, request: str, status: int, content: bytes) -> tuple[int, bytes]:
        if request == self._info:
            return status, json.dumps({**json.loads(content), "cluster": {"q": 2, "n": 3, "w": 2, "r": 2}}).encode()
        if READING in request and status == 200:
            self._leases = (self.cut_off and self._leases) or content
            return status, self._leases
        return status, content


def test_whoever_is_killed_is_dead_in_a_cluster(site: Site) -> None:
    Cluster(site)
    pilot = site.begin()
    pilot.kill()
    until(lambda: site.pool.states() == {State.DONE: 1}, 60)
    assert site.looking.runs().total() == 1
    (attempt,) = site.pool.get("b:0000")["attempts"]
    assert "did not renew its lease for" in attempt["reason"]


def test_old_leases_of_a_node_that_is_cut_off_prove_nothing(site: Site) -> None:
    """A load balancer has the other pilot read them there, and sends its renewals to the other nodes."""
    cluster = Cluster(site)
    site.begin()
    cluster.cut_off = True
    site.readings(3)
    site.renew(4)
    site.check()


def test_whose_writes_reach_too_few_nodes_takes_nobody_for_dead(site: Site) -> None:
    """As on the smaller side of a cluster that is divided: it sees no renewal of those on the other side."""
    pilot = site.begin()
    for proxy in site.proxies[1:]:
        proxy.minority = True
    site.readings(1)
    pilot.kill()
    until(lambda: site.look_once().outage, 60)
    until(lambda: "cannot be renewed" in site.looking.log())
    assert site.pool.states() == {State.LOCKED: 1}
    for proxy in site.proxies:
        proxy.minority = False
    until(lambda: site.look_once().reaped or site.looking.runs(), 60)
    until(lambda: site.pool.states() == {State.DONE: 1})


@pytest.mark.parametrize(
    ("cause", "stops"),
    [
        ("pilot p (job 1 on n) did not renew its lease for 9 s", False),
        ("pilot p (job 1 on n) has ended: NODE_FAIL", True),
        ("pilot p (job 1 on n) was requeued", True),
    ],
)
def test_a_pilot_whose_token_was_reaped_goes_on_unless_slurm_has_given_it_up(
    pool: Pool, tmp_path: Path, cause: str, stops: bool
) -> None:
    submission = Submission(tmp_path / "submission", pool)
    with closing(submission):
        pool.push([{}, {}])
        pilot = submission.start(f'{COUNT}; test "$PICAS_ATTEMPT" = 2 || {{ {GATE}; }}', lease=3)
        until(lambda: submission.runs().total() == 1)
        (held,) = [doc for doc in pool.docs().values() if doc["lock"]]
        pool.put(reap(held, cause, 3, held["lock"] + 1).apply())
        until(lambda: f"was released (reaped: {cause})" in submission.log())
        if not stops:
            submission.open_gate()
        assert pilot.wait(60) == 0, submission.log()
        assert ("Slurm reported this job as ended or requeued" in submission.log()) is stops
        assert pool.states() == ({State.TODO: 2} if stops else {State.DONE: 2})
