"""What a random round does, drawn from its seed before it begins: the same seed is the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.integration.faults import Fault

STATUSES = (429, 500, 502, 503, 504)
DURATION = 24.0  # seconds within which faults begin
SHORT = 8.0  # the same, in a smoke test
TOKENS = 300  # of a round


@dataclass(frozen=True)
class Delay:
    """A request that reaches the server late, when its client may have given up, or whose answer comes late."""

    seconds: float
    answer: bool


@dataclass(frozen=True)
class Event:
    """A fault at a time (seconds after the first commands began) that lasts for some seconds.

    ``kind``: freeze, kill or partition the pilot at the place ``target``; "server freeze", "server kill" and "cut" a node;
    "clock": the database's clock is ``amount`` seconds further from then on. ``commands``: the pilot's commands, too.
    """

    at: float
    kind: str
    target: int = 0
    seconds: float = 0.0
    commands: bool = False
    amount: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One round. ``upstreams``: the node that each pilot asks, by place; None: each request goes to the next node."""

    seed: int
    tokens: tuple[dict[str, Any], ...]
    lease: int
    slots: tuple[int, ...]  #: of each pilot, by place
    upstreams: tuple[int | None, ...]
    hurt: float  #: share of the requests to which something happens
    events: tuple[Event, ...]

    @property
    def ends(self) -> float:
        """Seconds until the last fault is over."""
        return max((event.at + event.seconds for event in self.events), default=0.0)

    def fault(self, place: object, number: int) -> Fault | Delay | int | None:
        """What happens to the n-th request that passes the proxy of a place. A number is the status of an error."""
        dice = random.Random(f"{self.seed}/{place}/{number}")
        if dice.random() >= self.hurt:
            return None
        kind = dice.choices(["status", Fault.DROP, Fault.LOSE, Fault.CUT, "delay"], [30, 15, 20, 10, 25])[0]
        if isinstance(kind, Fault):
            return kind
        if kind == "status":
            return dice.choice(STATUSES)
        long = dice.random() < 0.1  # longer than what is left of a lease
        return Delay(dice.uniform(0.7, 1.6) * self.lease if long else dice.uniform(0.05, 1.5), dice.random() < 0.5)


def draw(seed: int, *, nodes: int = 1, short: bool = False) -> Plan:
    """A plan for a database of so many ``nodes`` (0: a server that cannot be hurt). ``short``: for a smoke test."""
    dice = random.Random(seed)
    pilots = 3 if short else dice.randint(2, 5)
    lease = 6 if short else dice.randint(6, 10)
    duration = SHORT if short else DURATION
    kinds = ["kill", "kill", "freeze", "freeze", "partition"]
    events = [
        _pilot_event(dice, kind, place, lease if not short else 4, at)
        for place in range(pilots)
        for kind, at in zip(dice.sample(kinds, 2), _times(dice, 2, duration), strict=True)
    ]
    if nodes:
        times = _times(dice, 1 if short else 2, duration)
        events += [_server_event(dice, nodes, at) for at in times]
    if dice.random() < 0.5:
        events.append(Event(round(dice.uniform(1, duration), 2), "clock", amount=dice.choice([-200.0, 200.0])))
    return Plan(
        seed,
        tuple(_token(dice) for _ in range(60 if short else TOKENS)),
        lease,
        tuple(dice.randint(1, 2) for _ in range(pilots)),
        tuple(dice.choice([None, *range(nodes)]) if nodes > 1 else 0 for _ in range(pilots)),
        dice.choice([0.02, 0.05, 0.1, 0.15]),
        tuple(sorted(events, key=lambda event: event.at)),
    )


def _token(dice: random.Random) -> dict[str, Any]:
    long = dice.random() < 0.15
    seconds = round(dice.uniform(1, 5) if long else dice.uniform(0.01, 0.25), 2)
    failures = dice.choices([0, 1, 2, 99], [85, 7, 5, 3])[0]
    return {"seconds": seconds, "failures": failures, "priority": dice.choice([0, 0, 0, 1])}


def _times(dice: random.Random, count: int, duration: float) -> list[float]:
    """When faults of one thing begin, each in a part of the time of its own."""
    part = duration / count
    return [round(0.5 + part * (place + dice.uniform(0, 0.5)), 2) for place in range(count)]


def _pilot_event(dice: random.Random, kind: str, place: int, lease: int, at: float) -> Event:
    if kind == "kill":
        return Event(at, "kill", place, round(dice.uniform(0, 3), 2), commands=dice.random() < 0.5)
    seconds = dice.choice([0.5, 1.5, 2.0]) * lease * dice.uniform(0.8, 1.1)
    return Event(at, kind, place, round(seconds, 2), commands=dice.random() < 0.5)


def _server_event(dice: random.Random, nodes: int, at: float) -> Event:
    kinds = ["server freeze", "server kill", *(["cut", "cut"] if nodes > 1 else [])]
    return Event(at, dice.choice(kinds), dice.randrange(nodes), round(dice.uniform(1, 10), 2))
