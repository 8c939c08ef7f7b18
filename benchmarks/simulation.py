"""A simulation of many pilots on one database: what breaks first with a thousand pilots on a million tokens.

Discrete events: pilots claim portions by ids or from the view, run them, write results and renew leases as
docs/reference/pilot.md says; a wait counts the batch. The database has some cores, first come first served, and one
updater of the index, for which all queries of views wait. The costs are those that ``make bench ARGS='costs --keep'``
measured (``results.json``), with the CPU of a pilot and its process from ``pilots``, and nothing is fitted to measured
rates: these are printed beside the simulated ones. Every run with the same seed is the same.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import re
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.heads import FEW, LOAD, NEIGHBOURS
from airflow_provider_picas.pilot.reporter import GATHER, SHORT
from airflow_provider_picas.pilot.walk import Walk
from airflow_provider_picas.pilot.work import LONG, WORK_A_CLAIM
from benchmarks.costs import PORTION
from benchmarks.measure import Goal, Result
from benchmarks.pilots import OUR_TOKENS, TOKENS_A_PILOT
from benchmarks.server import Server

RESULTS = Path(__file__).with_name("results.json")
SEED = 1
PILOTS, TOKENS = 1_000, 1_000_000
LONGEST = 1_800.0  # seconds that are simulated, unless all tokens are done before
TAIL_TOKENS = 20_000  # of the runs that show the end of a batch
LEASE = 120.0
LATENCY = 0.001  # seconds of a request beside its CPU
MOST = PORTION  # tokens of a claim
OWN_NUMBERS = 1_000  # tokens with numbers of their own in the view


@dataclass(frozen=True)
class Costs:
    """Seconds of the server's CPU."""

    lease: float
    flag: float
    row: tuple[float, float]  #: of a request, and of each row
    page: tuple[float, float]  #: of a read of documents by their ids, and of each document
    write: tuple[float, float]
    index: tuple[float, float]
    count: float
    locked: float  #: of each running token that is read
    leases: float  #: of each lease that is read
    process: float  #: of a pilot and its command's process for a token, not of the server

    @classmethod
    def read(cls, path: Path = RESULTS) -> Costs:
        """The measured costs. Raises KeyError if none were measured."""
        kept = json.loads(path.read_text())
        cost = {result["name"]: result["value"] / 1_000 for result in kept["costs"]["results"]}
        pilots = {result["name"]: result for result in kept["pilots"]["results"]}
        command = pilots["a token's cost beside its process, with one pilot"]["figures"]["CPU of the process"]
        process = pilots["a pilot's CPU for a token beside its process, 1 pilot, in ms"]["value"] + float(
            command.split()[0]
        )

        def line(kind: str) -> tuple[float, float]:
            one, many = cost[f"{kind} 1"], cost[f"{kind} {PORTION}"]
            each = max(0.0, (many - one) / (PORTION - 1))
            return max(0.0, one - each), each

        return cls(
            cost["lease"], cost["flag"], line("rows"), line("page"), line("write"), line("index"), cost["count"],
            cost["locked 500"] / 500, cost["leases 500"] / 500, process / 1_000,
        )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    pilots: int
    tokens: int
    seconds: float  #: mean of a token's command
    cores: int = 2
    shared: bool = False  #: pilots run on the database's cores
    until: float = LONGEST
    idle_load: float = 0.0  #: an idle pilot pauses for this many times as long as its last search took


@dataclass
class Found:
    """What happened."""

    done: int = 0
    at: float = 0.0  #: seconds until the last token was done, or the simulation ended
    busy: float = 0.0  #: CPU seconds of the database
    spent: Counter[str] = field(default_factory=Counter)  #: the same by kind of request
    requests: int = 0
    conflicts: int = 0
    ran: float = 0.0  #: seconds of commands
    longest_gap: float = 0.0  #: seconds between two renewals of a lease
    lost: int = 0  #: leases that were not renewed in time
    slowest_count: float = 0.0  #: seconds of a count of the wait


Process = Generator[Any, Any, None]

# Names of results of ``benchmarks.pilots``.
RATE = re.compile(r"short tokens with (\d+) pilots?")
SERVER_CPU = re.compile(r"the server's CPU for a token, (\d+) pilots?")


class Simulation:
    """One run."""

    def __init__(self, setting: Setting, costs: Costs, seed: int = SEED) -> None:
        self.setting = setting
        self.costs = costs
        self.random = random.Random(seed)
        self.now = 0.0
        self.found = Found()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free = setting.cores
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._dirty = 0  # changes that the index lacks
        self._updating = False
        self._waiting: list[Callable[[], None]] = []
        self._next = list(range(setting.tokens + 1))  # by token: itself, or where to look for the next waiting one
        self.waiting_tokens = setting.tokens
        self.locked = 0
        shared = [self.random.random() for _ in range(setting.tokens // NEIGHBOURS + 1)]
        own = [self.random.random() for _ in range(min(setting.tokens, OWN_NUMBERS))]
        numbers = own + [shared[name // NEIGHBOURS] for name in range(OWN_NUMBERS, setting.tokens)]
        self._ids = sorted(range(setting.tokens), key=numbers.__getitem__)  # in the order of the view
        self._rank = [0] * setting.tokens  # by id: its place in the view
        for rank, name in enumerate(self._ids):
            self._rank[name] = rank
        self._numbers = sorted(numbers)

    # -- events and the database ------------------------------------------------------------------------------------

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Do it after some seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), do))

    def start(self, process: Process) -> None:
        """Run a process: it yields ``("sleep", seconds)``, ``("ask", kind, cpu)`` or ``("view", kind, cpu)``."""

        def step() -> None:
            try:
                what, *rest = next(process)
            except StopIteration:
                return
            if what == "sleep":
                self.at(rest[0], step)
            elif what == "ask":
                self.request(rest[0], rest[1], step)
            else:
                self.view(rest[0], rest[1], step)

        step()

    def request(self, kind: str, cpu: float, then: Callable[[], None]) -> None:
        """A request that needs this CPU."""
        self.found.requests += 1
        self.found.spent[kind] += cpu  # type: ignore[assignment]
        self._compute(cpu, lambda: self.at(LATENCY, then))

    def view(self, kind: str, cpu: float, then: Callable[[], None]) -> None:
        """A query of a view: it waits until the index has all changes from before."""
        if not self._dirty and not self._updating:
            self.request(kind, cpu, then)
            return
        self._waiting.append(lambda: self.request(kind, cpu, then))
        if not self._updating:
            self._update()

    def changed(self, number: int) -> None:
        """Tokens were written."""
        self._dirty += number

    def _update(self) -> None:
        self._updating = True
        waiting, self._waiting = self._waiting, []
        base, each = self.costs.index
        cpu, self._dirty = base + each * self._dirty, 0
        self.found.spent["index"] += cpu  # type: ignore[assignment]

        def end() -> None:
            self._updating = False
            for query in waiting:
                query()
            if self._waiting:
                if self._dirty:
                    self._update()
                else:
                    later, self._waiting = self._waiting, []
                    for query in later:
                        query()

        self._compute(cpu, end)

    def _compute(self, cpu: float, then: Callable[[], None]) -> None:
        self.found.busy += cpu
        self._queue.append((cpu, then))
        self._serve()

    def compute_beside(self, cpu: float, then: Callable[[], None]) -> None:
        """Use a core that is shared with the database."""
        self._queue.append((cpu, then))
        self._serve()

    def _serve(self) -> None:
        while self._free and self._queue:
            cpu, then = self._queue.popleft()
            self._free -= 1

            def end(then: Callable[[], None] = then) -> None:
                self._free += 1
                then()
                self._serve()

            self.at(cpu, end)

    # -- tokens -----------------------------------------------------------------------------------------------------

    def first_from(self, place: int) -> int:
        """The first waiting token from a place on; the number of tokens if there is none."""
        path = []
        while self._next[place] != place:
            path.append(place)
            place = self._next[place]
        for one in path:
            self._next[one] = place
        return place

    def rows(self, start: int, end: int, number: int) -> list[int]:
        """Waiting tokens."""
        found: list[int] = []
        place = self.first_from(start)
        while place < end and len(found) < number:
            found.append(place)
            place = self.first_from(place + 1)
        return found

    def page(self, start: int, limit: int) -> tuple[int, list[int]]:
        """The next tokens in the order of their ids: how many there are, and those that are waiting."""
        read = self._rank[start : start + limit]
        return len(read), [token for token in read if self._next[token] == token]

    def random_id(self) -> int | None:
        """The id of a random waiting token; None if there is none."""
        if not self.waiting_tokens:
            return None
        return self._ids[self.random_rows(1)[0]]

    def random_rows(self, number: int) -> list[int]:
        """Waiting tokens from a random place of the view on, as in ``Head.random_places``."""
        tokens = self.setting.tokens
        if self.waiting_tokens < FEW:
            start, skip = 0, self.random.randrange(max(1, self.waiting_tokens))
        else:
            start, skip = self.place_of(self.random.random()), self.random.randrange(NEIGHBOURS)
        found = self.rows(start, tokens, skip + number)[skip:]
        return found + [token for token in self.rows(0, tokens, number - len(found)) if token not in found]

    def claim(self, tokens: list[int]) -> int:
        """Claim those that are still waiting. Returns their number."""
        claimed = [token for token in tokens if self._next[token] == token]
        for token in claimed:
            self._next[token] = token + 1
        self.waiting_tokens -= len(claimed)
        self.locked += len(claimed)
        self.found.conflicts += len(tokens) - len(claimed)
        return len(claimed)

    def finished(self, number: int) -> None:
        """Results were written."""
        self.found.done += number
        self.locked -= number

    def place_of(self, number: float) -> int:
        """The first token with at least this random number."""
        return bisect_left(self._numbers, number)

    @property
    def over(self) -> bool:
        """True if all tokens are done."""
        return self.found.done == self.setting.tokens

    def run(self) -> Found:
        """Simulate until all tokens are done, or ``until``."""
        pilots = [Pilot(self, place) for place in range(self.setting.pilots)]
        for pilot in pilots:
            self.start(pilot.claimer())
            self.start(pilot.lease())
        self.start(self._wait())
        while self._events and self.now < self.setting.until and not self.over:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.found.at = self.now
        for pilot in pilots:
            if not pilot.ended:
                self.found.longest_gap = max(self.found.longest_gap, self.now - pilot.renewed)
        return self.found

    def _wait(self) -> Process:
        """The feed of a wait: a count, and a pause of three times what it took."""
        while not self.over:
            begin = self.now
            yield ("view", "wait", self.costs.count)
            took = self.now - begin
            self.found.slowest_count = max(self.found.slowest_count, took)
            yield ("sleep", min(30.0, max(0.15, 3 * took)))


class Pilot:
    """One pilot with one slot."""

    def __init__(self, simulation: Simulation, place: int) -> None:
        self.world = simulation
        self.place = place
        self.ready = 0
        self.running = False
        self.results = 0
        self.sending = False
        self.renewed = 0.0
        self.ended = False
        self.share_used = False
        self.at: int | None = None  #: the id where the walk goes on
        self.has_begun = False  #: the walk, at this pilot's share
        self.pages = Walk.PAGES  #: read since the view was brought up to date
        self.update_at = self.check_at = 0.0
        self.portion_limit = MOST
        self.known = False  #: how long tokens take
        self.spent = 0.0  #: seconds of a token, with its wait for a core
        self.heads_until = 0.0
        self.idle_since: float | None = None
        self.next_reap = 0.0

    # -- threads

    def claimer(self) -> Process:
        """Claims tokens; ends when none remain, or a lease after it last found some while others work."""
        world, setting = self.world, self.world.setting
        yield ("sleep", world.random.uniform(0.0, 1.0 if setting.shared else 60.0))
        self.renewed = world.now
        while not self.ended:
            wanted = self._wanted()
            if not wanted:
                yield ("sleep", min(0.02, setting.seconds / 4 + 0.001) if setting.seconds < LONG else 0.25)
                continue
            begin = world.now
            claimed, seen = yield from self._take(wanted)
            if claimed:
                self.ready += claimed
                self.idle_since = None
                self._run_next()
            elif seen or self.running or self.ready or self.results:
                yield ("sleep", world.random.uniform(0.01, 0.1) if seen else 0.25)
            else:
                yield from self._be_idle(begin)

    def lease(self) -> Process:
        """Renews the lease, and reads the flags and the tokens in hand."""
        world = self.world
        yield ("sleep", LEASE / 3 * world.random.uniform(0.5, 1))
        while not self.ended and not world.over:
            yield ("ask", "lease", world.costs.lease)
            gap = world.now - self.renewed
            world.found.longest_gap = max(world.found.longest_gap, gap)
            world.found.lost += gap > 0.85 * LEASE and self.renewed > 0
            self.renewed = world.now
            for _ in ("flags", "revisions of the tokens in hand"):
                yield ("ask", "lease", world.costs.flag)
            yield ("sleep", LEASE / 3)

    # -- parts

    def _take(self, wanted: int) -> Generator[Any, Any, tuple[int, int]]:
        """Claim tokens, and write the results that wait in the same request. Returns how many were claimed, and how
        many were found."""
        world = self.world
        wanted = self._limit(wanted)
        tokens = yield from self._walk(wanted)
        if not tokens:
            if world.now >= self.heads_until:
                yield ("view", "heads", world.costs.row[0])
                self.heads_until, self.share_used = world.now + Claims.HEADS_LAST, False
            self.pages, self.check_at = 0, world.now + Walk.CHECK
            self.update_at = world.now + Walk.UPDATE * world.random.uniform(0.5, 1)
            tokens = (yield from self._search(wanted)) if world.waiting_tokens else []
        if not tokens:
            return 0, 0
        claimed = world.claim(tokens)
        along = 0
        if self.ready:  # else the results are on their way
            along, self.results = self.results, 0
        world.changed(claimed + along)
        base, each = world.costs.write
        yield ("ask", "claim", base + each * (len(tokens) + along))
        world.finished(along)
        if claimed < len(tokens):
            self.at = None
        few = claimed < len(tokens) / 2
        self.portion_limit = max(1, len(tokens) // 2) if few else min(MOST, 2 * self.portion_limit)
        return claimed, len(tokens)

    def _limit(self, wanted: int) -> int:
        share = self.world.waiting_tokens // (2 * self.world.setting.pilots)
        return min(wanted, self.portion_limit, max(Claims.AT_ONCE, wanted // 4, share))

    def _walk(self, wanted: int) -> Generator[Any, Any, list[int]]:
        """Candidates by their ids; none if the view has to be queried."""
        world = self.world
        if world.waiting_tokens < Walk.LEAST or self.pages >= Walk.PAGES or world.now >= self.update_at:
            return []
        if world.now >= self.check_at:
            begin = world.now
            yield ("ask", "check", world.costs.row[0])
            self.check_at = world.now + max(Walk.CHECK, LOAD * (world.now - begin))
        for _ in range(2):
            if self.at is None:
                yield ("ask", "place", world.costs.row[0])
                self.at = world.random_id() if self.has_begun else self._first_id()
                if self.at is None:
                    break
            read, found = world.page(self.at, wanted)
            yield ("ask", "page", world.costs.page[0] + world.costs.page[1] * read)
            free = read == wanted and len(found) > read // 2
            self.at = self.at + read if free else None
            if found:
                self.pages += 1
                return found
        self.pages = Walk.PAGES
        return []

    def _first_id(self) -> int:
        self.has_begun = True
        return self.world.setting.tokens * self.place // self.world.setting.pilots

    def _be_idle(self, begin: float) -> Process:
        """Look for tokens of dead pilots now and then, pause, and end when nobody works, or after a lease."""
        world = self.world
        if self.idle_since is None:
            self.idle_since = self.next_reap = world.now
        idle = world.now - self.idle_since
        if world.now >= self.next_reap:
            yield from self._reap()
            self.next_reap = world.now + min(5.0, 0.3 + idle)
        if not world.locked or idle > LEASE + 3:
            self.ended = True
            return
        pause = world.random.uniform(0.5, 1) * min(3.0, 0.2 + idle)
        yield ("sleep", max(pause, world.setting.idle_load * (world.now - begin)))

    def _wanted(self) -> int:
        mean = self.world.setting.seconds
        if not self.known or mean > LONG:
            return int(not self.running and not self.ready)
        target = min(MOST, int(WORK_A_CLAIM / max(mean, self.spent, 0.001)))
        return target - self.ready if self.ready <= target // 4 else 0

    def _search(self, wanted: int) -> Generator[Any, Any, list[int]]:
        world, shares = self.world, self.world.setting.pilots
        limit = max(wanted, 5)
        cost = world.costs.row
        if shares > 1 and not self.share_used:
            low, high = (world.place_of(number / shares) for number in (self.place, self.place + 1))
            tokens = world.rows(low, high, limit)
            yield ("view", "rows", cost[0] + cost[1] * len(tokens))
            self.share_used = len(tokens) < limit
            if tokens:
                return tokens[:wanted]
        found = world.random_rows(limit)
        yield ("view", "rows", cost[0] + cost[1] * len(found))
        return found[:wanted]

    def _run_next(self) -> None:
        world = self.world
        if self.running or not self.ready:
            return
        self.ready -= 1
        self.running = True
        seconds = world.random.expovariate(1 / world.setting.seconds) if world.setting.seconds else 0.0
        world.found.ran += seconds

        begun = world.now

        def end() -> None:
            self.running, self.known = False, True
            self.spent = 0.9 * self.spent + 0.1 * (world.now - begun)
            self.results += 1
            self._run_next()
            if not self.sending:
                self.sending = True
                world.at(GATHER if world.setting.seconds < SHORT and self.ready else 0.0, self._send)

        if world.setting.shared:
            world.at(seconds, lambda: world.compute_beside(world.costs.process, end))
        else:
            world.at(seconds + world.costs.process, end)

    def _send(self) -> None:
        world = self.world
        number, self.results = self.results, 0

        def sent() -> None:
            world.finished(number)
            world.changed(number)
            if self.results:
                world.at(GATHER if self.ready else 0.0, self._send)
            else:
                self.sending = False

        base, each = world.costs.write
        world.request("results", base + each * number, sent)

    def _reap(self) -> Process:
        """Look for the tokens of dead pilots."""
        world = self.world
        locked = min(world.locked, 2_000)
        for start in range(0, max(1, locked), 500):
            some = min(500, locked - start)
            yield ("view", "reap", world.costs.row[0] + world.costs.locked * some)
        yield ("ask", "reap", world.costs.flag + world.costs.leases * locked)


# -- the results -------------------------------------------------------------------------------------------------------


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Simulated rates beside measured ones, then a thousand pilots with tokens of several lengths, then the end of a
    batch."""
    costs = Costs.read()
    yield from _compared(costs)
    for seconds in (2.0, 10.0, 30.0, 60.0, 600.0, 3_600.0):
        yield _pilots(costs, seconds)
    for load in (0.0, 20.0):
        yield _tail(costs, load)


def _compared(costs: Costs) -> Iterator[Result]:
    kept = json.loads(RESULTS.read_text()).get("pilots", {}).get("results", [])
    server = {int(found[1]): result["value"] for result in kept if (found := SERVER_CPU.match(result["name"]))}
    for result in kept:
        found = RATE.match(result["name"])
        if not found:
            continue
        pilots, measured = int(found[1]), float(result["figures"]["pilots"].split()[0].replace(",", ""))
        tokens = max(OUR_TOKENS, pilots * TOKENS_A_PILOT)
        simulated = Simulation(Setting(pilots, tokens, 0.0, shared=True), costs).run()
        rate = simulated.done / simulated.at
        cpu = f"{simulated.busy * 1_000 / simulated.done:.1f}"
        figures = {
            "simulated": f"{rate:,.0f} tokens/s",
            "measured": f"{measured:,.0f} tokens/s",
            "the server's CPU for a token": f"{cpu} and {server[pilots]:.1f} ms" if pilots in server else f"{cpu} ms",
            "requests a token": f"{simulated.requests / simulated.done:.3f}",
        }
        yield Result(
            f"short tokens with {pilots} pilots on 2 cores: simulated rate to measured", figures, rate / measured
        )


def _pilots(costs: Costs, seconds: float) -> Result:
    found = Simulation(Setting(PILOTS, TOKENS, seconds, until=min(LONGEST, max(300.0, seconds))), costs).run()
    kinds = ", ".join(f"{kind} {part / found.busy:.0%}" for kind, part in found.spent.most_common(4))
    figures = {
        "database's CPU": f"{found.busy / found.at:.2f} of 2 cores ({kinds})",
        "requests": f"{found.requests / found.at:,.0f}/s",
        "conflicts a claim": f"{found.conflicts / max(1, found.done):.4f}",
        "longest time between renewals": f"{found.longest_gap:.0f} s of {LEASE:.0f}",
        "leases not renewed in time": f"{found.lost}",
        "slowest count of the wait": f"{found.slowest_count:.1f} s",
    }
    part = found.ran / (PILOTS * found.at)
    name = f"{PILOTS:,} pilots, {TOKENS:,} tokens of {seconds:g} s: part of the pilots' time in commands"
    return Result(name, figures, min(1.0, part), Goal(0.9, at_least=True) if seconds >= 60 else None)


def _tail(costs: Costs, load: float) -> Result:
    found = Simulation(Setting(PILOTS, TAIL_TOKENS, 60.0, until=7_200.0, idle_load=load), costs).run()
    how = f"idle pilots pause {load:g} times their search" if load else "idle pilots search every 3 s"
    figures = {
        "all done after": f"{found.at:,.0f} s",
        "database's CPU": f"{found.busy:,.0f} s, for looking for dead pilots {found.spent['reap'] / found.busy:.0%}",
        "leases not renewed in time": f"{found.lost}",
        "slowest count of the wait": f"{found.slowest_count:.1f} s",
    }
    name = (
        f"{PILOTS:,} pilots, the end of a batch of {TAIL_TOKENS:,} tokens of 60 s, {how}: longest time between renewals"
    )
    return Result(name, figures, found.longest_gap, Goal(0.85 * LEASE), unit="s")
