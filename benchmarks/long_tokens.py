"""What 1,000 pilots with tokens of an hour cost the server: their leases, and a claim and a result each.

The pilots' own code sends the requests, with a connection for each lease, one pilot after the other and without the
pauses between. The figures are for an hour.
"""

from __future__ import annotations

import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Ended, Token, conclude
from airflow_provider_picas.pilot.access import Access
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.lease import Lease
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.pilot.work import Work
from benchmarks.measure import Result
from benchmarks.pilots import push_tokens, requests_of
from benchmarks.server import Server

PILOTS = 1_000
ROUNDS = 3  # renewals of each lease that are measured
HOUR = 3_600.0
IDLE = 10.0  # seconds of a server without requests
BYTES = struct.Struct("=120xQQ")  # those that were sent and received, in the kernel's tcp_info


class Pilot:
    """The parts of a pilot that send requests while a token runs, and around it."""

    def __init__(self, access: Access, config: Config, place: int) -> None:
        clock = Clock(config.lease / 2)
        self.config, self.clock, self.work = config, clock, Work(config)
        self.me = Identity(f"{place}-bench-{place:08x}", "node", str(place), (place, PILOTS))
        self.database = Database(access, config, clock)
        self.lease = Lease(self.database, config, self.me, clock, self.work)

    def begin(self) -> None:
        """Write the lease and claim a token."""
        self.lease.renew()
        session = Session(self.database, self.config, self.me, self.clock, self.lease.contact)
        self.work.add(Claims(session, False, Conflicts(session)).take(1, lambda doc: True, 0))
        for token in self.work.held():
            self.work.next_run(lambda token: _Run(token))  # type: ignore[arg-type, return-value]

    def renew(self) -> None:
        """What the lease's thread does each third of a lease."""
        self.lease.renew()
        self.lease.check_tokens()

    def bytes(self) -> int:
        """The bytes that its connection has sent and received."""
        info = self.database._connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES.size)
        return sum(BYTES.unpack(info))

    def end(self) -> None:
        """Write the result."""
        for token in self.work.held():
            change = conclude(token, Ended("exit", 0, HOUR), self.config, int(self.clock.now()))
            self.database.bulk([change.apply()])


class _Run:
    """A command that runs."""

    def __init__(self, token: Token) -> None:
        self.token, self.started = token, time.monotonic()

    def progress(self) -> None:
        """It reports none."""


def run(server: Server, pairs: int) -> Iterator[Result]:
    """The cost of an hour. Measured once: it is a sum over many requests."""
    if server.cpu() is None:
        raise RuntimeError("The cost of an hour needs a CouchDB on this machine.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    before = server.cpu() or 0.0
    time.sleep(IDLE)
    idle = ((server.cpu() or 0.0) - before) * HOUR / IDLE
    with server.pool(views=True) as pool:
        config = Config(command="true", submission="bench", batch=push_tokens(PILOTS))
        access = Access(pool.url, pool.database, pool.user, pool.password, "")
        pilots = [Pilot(access, config, place) for place in range(PILOTS)]
        renewals = 3 * HOUR / config.lease
        begins = _cost(server, pilots, Pilot.begin)
        sent = pilots[0].bytes()
        renews = [_cost(server, pilots, Pilot.renew) for _ in range(ROUNDS)]
        sent = pilots[0].bytes() - sent
        ends = _cost(server, pilots, Pilot.end)
        for pilot in pilots:
            pilot.database.close()
    renewal = tuple(sum(figures) / ROUNDS for figures in zip(*renews, strict=True))
    cpu, requests = (one + other + renewals * each for one, other, each in zip(begins, ends, renewal, strict=True))
    yield Result(
        "1,000 pilots with tokens of an hour: seconds of the server's CPU in an hour",
        {
            "leases": f"{renewals * renewal[0]:,.0f} s",
            "claims and results": f"{begins[0] + ends[0]:.1f} s",
            "server without requests": f"{idle:.0f} s",
            "a renewal": f"{renewal[0]:.2f} ms of CPU, {renewal[1] / PILOTS:.1f} requests",
            "requests a second": f"{requests / HOUR:.1f}",
            "bytes of a renewal": f"{sent / ROUNDS:,.0f}",
        },
        cpu,
        unit="s",
    )


def _cost(server: Server, pilots: list[Pilot], what: Callable[[Pilot], None]) -> tuple[float, float]:
    """Seconds of the server's CPU, and requests, if all pilots do something once."""
    cpu, requests = server.cpu() or 0.0, requests_of(server) or 0.0
    for pilot in pilots:
        what(pilot)
    return (server.cpu() or 0.0) - cpu, (requests_of(server) or 0.0) - requests
