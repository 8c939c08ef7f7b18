"""What happened in a round, and whether it was allowed to. Nothing here uses the code under test.

A round records what commands wrote down, what passed the proxies between the database and everybody, which processes it hurt,
and what is in the database and in the submission's folder in the end. ``check`` looks for violations in these records alone.
Every run keeps its records in a file: ``python -m tests.chaos.history FILE`` checks them again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MOST_ATTEMPTS = 10  # that a token keeps
AFTERWARDS = 5.0  # seconds that a pilot has after a freeze to end the commands of a lease that it lost
MOMENT = 0.5  # seconds between what a command writes down and its end
FINISHED = ("done", "error")

Rule = Callable[["History"], Iterator[str]]


@dataclass(frozen=True)
class Run:
    """One run of a token's command. Each claim is run at most once, so it names the run. Times: seconds since 1970."""

    token: str
    claim: str
    pilot: str
    begun: float
    ended: float | None = None  #: None: it was killed
    code: int | None = None


@dataclass(frozen=True)
class Overlap:
    """A command found that the one of another claim on its token still ran: it held the token's lock file."""

    token: str
    claim: str
    holder: str  #: the claim of the one that ran
    at: float


@dataclass(frozen=True)
class Hurt:
    """A pilot's process was ``frozen`` from ``begin`` to ``end``, or ``killed`` at ``begin``; with its commands or not."""

    kind: str
    pilot: str
    begin: float
    end: float
    commands: bool


@dataclass(frozen=True)
class Write:
    """A result that somebody sent to the database: ``accepted``, ``refused``, or ``unknown`` when its answer does not tell."""

    token: str
    claim: str
    outcome: str
    at: float
    code: Any = None


@dataclass(frozen=True)
class Claimed:
    """The first write of a claim that somebody sent to the database: ``accepted``, ``refused``, or ``unknown``."""

    token: str
    claim: str
    outcome: str
    at: float


@dataclass(frozen=True)
class Kept:
    """A result in a file of the submission's folder, ``refused`` or ``unsent``."""

    kind: str
    token: str
    claim: str


@dataclass
class History:
    """The records of a round."""

    tokens: list[str]  #: ids of those that were pushed
    documents: dict[str, dict[str, Any]]  #: the tokens in the end, by id
    leaves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  #: conflicting revisions in the end, by id
    runs: list[Run] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    hurts: list[Hurt] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    claims: list[Claimed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    exits: dict[str, int | None] = field(
        default_factory=dict
    )  #: codes of pilots that nobody killed; None: it did not end
    waits: list[str] = field(default_factory=list)  #: outcomes of the wait, in order; the last one ended it

    def save(self, path: Path) -> None:
        """Write the records to a file."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> History:
        """The records in a file."""
        values = json.loads(path.read_text())
        kinds = {"runs": Run, "overlaps": Overlap, "hurts": Hurt, "writes": Write, "claims": Claimed, "kept": Kept}
        for name, kind in kinds.items():
            values[name] = [kind(**item) for item in values.get(name, [])]
        return cls(**values)

    def pilot_of(self, claim: str) -> str | None:
        """The pilot that began the run of a claim."""
        return next((run.pilot for run in self.runs if run.claim == claim), None)


def state(document: dict[str, Any] | None) -> str:
    """A token's state, as PiCaS's views have it."""
    if not document:
        return "gone"
    lock, done = document.get("lock"), document.get("done")
    if not lock or not done:
        return "locked" if lock else "todo" if not done else "none"
    return "done" if str(document.get("exit_code")) == "0" else "error"


def check(history: History, rules: Iterable[Rule] | None = None) -> list[str]:
    """What was not allowed to happen, for people; nothing when all is well. ``rules``: all, unless only some records exist."""
    rules = RULES if rules is None else rules
    return [f"{rule.__name__}: {found}" for rule in rules for found in rule(history)]


def lost(history: History) -> Iterator[str]:
    """Each token is finished."""
    for token in history.tokens:
        if (found := state(history.documents.get(token))) not in FINISHED:
            yield f"{token} is {found}, not finished"


def accepted_once(history: History) -> Iterator[str]:
    """One result of each token was accepted, and it is what the token shows in the end."""
    written: dict[str, list[Write]] = defaultdict(list)
    for write in history.writes:
        written[write.token].append(write)
    for token in history.tokens:
        document = history.documents.get(token) or {}
        accepted = {write.claim for write in written[token] if write.outcome == "accepted"}
        possible = {write.claim for write in written[token] if write.outcome == "unknown"}
        shown = document.get("claim") if state(document) in FINISHED else None
        if len(accepted) > 1:
            yield f"{token}: {len(accepted)} results were accepted, of {sorted(accepted)}"
        for claim in sorted(accepted - {shown}):
            yield f"{token}: the result of {claim} was accepted and undone; it shows {shown or state(document)}"
        if shown and shown not in accepted | possible:
            yield f"{token}: shows a result of {shown} that nobody sent"


def claimed_first(history: History) -> Iterator[str]:
    """Each run has a claim that was written before, and not refused; each claim is for one token."""
    claims = {item.claim: item for item in history.claims}
    for token_claim, tokens in _tokens_by_claim(history).items():
        if len(tokens) > 1:
            yield f"claim {token_claim} is for {len(tokens)} tokens: {sorted(tokens)}"
    for run in history.runs:
        found = claims.get(run.claim)
        if found is None or found.token != run.token:
            yield f"{run.token}: {run.claim} of pilot {run.pilot} was run and never claimed"
        elif found.outcome == "refused":
            yield f"{run.token}: {run.claim} of pilot {run.pilot} was run, and its claim was refused"
        elif run.begun < found.at - MOMENT:
            yield f"{run.token}: {run.claim} of pilot {run.pilot} began at {run.begun:.3f}, before its claim at {found.at:.3f}"


def _tokens_by_claim(history: History) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for item in (*history.claims, *history.runs):
        found[item.claim].add(item.token)
    return found


def begun_once(history: History) -> Iterator[str]:
    """Each claim is run at most once."""
    for claim, times in Counter(run.claim for run in history.runs).items():
        if times > 1:
            yield f"claim {claim} was run {times} times"


def attempts_complete(history: History) -> Iterator[str]:
    """Each run is the token's last one, one of its attempts, or in a file. The oldest of more than ten attempts are not kept."""
    kept = {item.claim for item in history.kept}
    for token, runs in _by_token(history.runs).items():
        document = history.documents.get(token) or {}
        attempts = document.get("attempts") or []
        known = kept | {document.get("claim")} | {attempt.get("claim") for attempt in attempts}
        missing = [run for run in runs if run.claim not in known]
        for run in missing if len(attempts) < MOST_ATTEMPTS else []:
            yield f"{token}: the run of {run.claim} by pilot {run.pilot} shows nowhere"


def never_at_once(history: History) -> Iterator[str]:
    """Two runs of a token overlap only if the pilot of the first was frozen, or killed without its commands."""
    for overlap in history.overlaps:
        pilot = history.pilot_of(overlap.holder)
        if not _excused(history, pilot, overlap.at):
            yield (
                f"{overlap.token}: claim {overlap.claim} began at {overlap.at:.3f} while {overlap.holder} of pilot {pilot} ran"
            )
    seen = {frozenset((overlap.claim, overlap.holder)) for overlap in history.overlaps}
    for token, runs in _by_token(history.runs).items():
        for first, second in _overlapping(runs):
            if frozenset((first.claim, second.claim)) not in seen and not _excused(history, first.pilot, second.begun):
                yield f"{token}: {first.claim} ran until {first.ended:.3f}, {second.claim} began at {second.begun:.3f}"


def _overlapping(runs: list[Run]) -> Iterator[tuple[Run, Run]]:
    runs = sorted(runs, key=lambda run: run.begun)
    for place, first in enumerate(runs):
        for second in runs[place + 1 :]:
            if first.ended is not None and second.begun < first.ended:
                yield first, second


def _excused(history: History, pilot: str | None, at: float) -> bool:
    """Whether a pilot could not stop its commands at that time: it was frozen, or they outlived it. Nothing can prevent these."""
    for hurt in history.hurts:
        if hurt.pilot == pilot and hurt.kind == "frozen" and hurt.begin <= at <= hurt.end + AFTERWARDS:
            return True
        if hurt.pilot == pilot and hurt.kind == "killed" and not hurt.commands and hurt.begin <= at:
            return True
    return False


def results_kept(history: History) -> Iterator[str]:
    """A command that ended by itself has its result in the token or in a file, unless its pilot was killed before it was sent."""
    kept = {item.claim for item in history.kept}
    accepted = {write.claim for write in history.writes if write.outcome == "accepted"}
    for run in history.runs:
        if run.ended is None or run.claim in kept | accepted:
            continue
        document = history.documents.get(run.token) or {}
        attempts = {attempt.get("claim"): attempt for attempt in document.get("attempts") or []}
        attempt = attempts.get(run.claim)
        shown = document.get("claim") == run.claim and state(document) in FINISHED
        # A failure that is tried again is not sent to a token that was given back meanwhile: that is what it asks for.
        retried = attempt is not None and run.code and _gives_back(attempt, run)
        forgotten = attempt is None and len(attempts) >= MOST_ATTEMPTS
        if not (shown or retried or forgotten or _lost_with_its_pilot(history, run)):
            how = f"its attempt says: {attempt.get('reason')}" if attempt else "it has no attempt"
            yield f"{run.token}: {run.claim} of pilot {run.pilot} ended with {run.code}, and the result is nowhere; {how}"


def _gives_back(attempt: dict[str, Any], run: Run) -> bool:
    return attempt.get("exit_code") == run.code or str(attempt.get("reason")).startswith("reaped:")


def _lost_with_its_pilot(history: History, run: Run) -> bool:
    """The pilot was killed before it sent the result, or it and its commands were frozen in the moment when the command ended."""
    assert run.ended is not None
    for hurt in history.hurts:
        if hurt.pilot == run.pilot and hurt.kind == "killed":
            return True
        if hurt.pilot == run.pilot and hurt.commands and 0 <= hurt.begin - run.ended <= MOMENT:
            return True
    return False


def conflicts(history: History) -> Iterator[str]:
    """No conflicting revision hides a finished result."""
    for token, leaves in history.leaves.items():
        shown = history.documents.get(token)
        for leaf in leaves:
            if state(leaf) in FINISHED and state(shown) not in FINISHED:
                yield f"{token}: the result of {leaf.get('claim')} is hidden by a revision that is {state(shown)}"


def ends(history: History) -> Iterator[str]:
    """Pilots end, with a code that says that all went well, and so does the wait."""
    for pilot, code in history.exits.items():
        if code != 0:
            yield f"pilot {pilot} " + ("did not end" if code is None else f"ended with code {code}")
    wrong = [outcome for outcome in history.waits if outcome not in ("complete", "too_many_errors")]
    if history.waits and wrong:
        yield f"the wait ended with {wrong[0]}"


RULES: tuple[Rule, ...] = (
    lost, accepted_once, claimed_first, begun_once, attempts_complete, never_at_once, results_kept, conflicts, ends,
)  # fmt: skip
#: For runs whose requests were not recorded, and in which a test kills pilots by itself.
OF_COMMANDS: tuple[Rule, ...] = (lost, begun_once, attempts_complete)


def _by_token(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.token].append(run)
    return found


if __name__ == "__main__":
    for violation in check(History.load(Path(sys.argv[1]))):
        print(violation)
