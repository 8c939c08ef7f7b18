"""Decides from the counts of a batch, or of a pool, whether a wait is over."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from airflow_provider_picas.tokens.chain import Chain, ChainCounts
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.text import sample

SETTLE_SECONDS = 10.0
"""Seconds until an error counts: the PiCaS client's pilots save a failed token and scrub it a moment later."""


REFUSED_SECONDS = 900.0
"""Seconds of refused requests until a wait fails: the database was deleted, or rejects the login. Pilots continue for as long."""


class Outcome(StrEnum):
    """The outcome of a wait."""

    WAITING = "waiting"
    COMPLETE = "complete"  #: all tokens done, or in error within the budget
    ENOUGH = "enough"  #: the required number of tokens is done; others may not have finished
    READY = "ready"  #: the required number of tokens waits, or no more can appear
    TOO_MANY_ERRORS = "too_many_errors"  #: more in error than allowed; all have finished, unless ``fail_fast`` is set
    TOO_FEW_DONE = "too_few_done"  #: fewer tokens done than required, and no more to come
    LOST = "lost"  #: tokens are missing or in no state, so the batch can never be complete
    NO_PROGRESS = "no_progress"  #: no token has finished for too long
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"  #: the named batch has no tokens
    AWAY = "away"  #: the pool was unavailable for too long: deleted, access refused, or no answer
    UNWATCHED = "unwatched"  #: the trigger cannot log in to the cluster; a task may be able to
    NO_PILOTS = "no_pilots"  #: tokens wait, and no pilots of the submission remain to claim them

    @property
    def success(self) -> bool:
        """True if the downstream tasks may run."""
        return self in (Outcome.COMPLETE, Outcome.ENOUGH, Outcome.READY)


@dataclass(frozen=True)
class Threshold:
    """The number of tokens that must be done for success: an integer, or a fraction above 0 and at most 1 (``1.0`` is
    all)."""

    limit: float

    def __post_init__(self) -> None:
        number = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        whole = number and math.isfinite(self.limit) and self.limit == int(self.limit) and self.limit >= 1
        if not whole and not (number and 0 < self.limit <= 1):
            raise ValueError(
                f"success_threshold must be a number of tokens from 1 or a fraction up to 1.0, not {self.limit!r:.80}."
            )

    @classmethod
    def parse(cls, value: Any) -> Threshold | None:
        """A threshold from what an author wrote, or a template rendered. Raises ValueError."""
        if value in (None, "", "None"):
            return None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # the constructor's message names the value
                value = float(value) if "." in value else int(value)
        return cls(value)

    def needed(self, total: int) -> int:
        """The number of tokens that must be done, of ``total``."""
        if isinstance(self.limit, float) and self.limit <= 1:
            return math.ceil(round(self.limit * total, 6))
        return int(self.limit)

    def reached(self, completeness: Completeness) -> bool:
        """True if enough tokens are done."""
        if completeness.growing and isinstance(self.limit, float) and self.limit <= 1:
            return False  # a fraction of a number that is not known yet
        return completeness.counts.done >= self.needed(completeness.total)

    def possible(self, completeness: Completeness) -> bool:
        """True if enough tokens can still become done, without a reset of tokens in error."""
        return bool(completeness.growing) or (
            completeness.total - completeness.counts.error >= self.needed(completeness.total)
        )


class Progress:
    """When a token last finished, by the caller's clock. ``limit``: seconds that may pass without one; None: no limit."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._finished = -1
        self._since = math.inf  # nothing was counted yet

    def note(self, counts: Counts | ChainCounts, now: float) -> None:
        """Record the counts at ``now`` (seconds). If they are lower than before, as after a reset, the time starts again."""
        if counts.finished != self._finished:
            self._finished, self._since = counts.finished, now

    def remaining(self, now: float) -> float:
        """Seconds until the limit; infinity before the first counts."""
        return math.inf if self.limit is None else self._since + self.limit - now


class Endurance:
    """How long a wait continues while the database does not answer or refuses requests.

    ``limit``: seconds. None: while the database does not answer, until the wait's deadline, since waiting loses nothing
    and pilots continue, too; while it refuses, ``REFUSED_SECONDS``, since a person has to fix that.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._since: float | None = None
        self._refused_since: float | None = None
        self._noticed: bool | None = None  #: the kind of outage that was logged: refused or not; None: there is none

    def over(self, refused: bool, now: float) -> bool:
        """Record that a request failed at ``now`` (seconds, by any clock). True if this has lasted for too long.

        ``refused``: the database refused the request. Otherwise it did not answer, or asked to retry later.
        """
        self._since = now if self._since is None else self._since
        if not refused:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        if self.limit is not None:
            return now - self._since > self.limit
        return self._refused_since is not None and now - self._refused_since > REFUSED_SECONDS

    def answered(self) -> bool:
        """Record that a request succeeded. True if this ends an outage that was logged."""
        noticed = self._noticed is not None
        self._since = self._refused_since = self._noticed = None
        return noticed

    def notice(self, error: object, refused: bool) -> str | None:
        """The line to log: once for an outage, and again when "no answer" becomes a refusal or vice versa."""
        if refused == self._noticed:
            return None
        self._noticed = refused
        return f"{error} {self.promise(refused)}"

    def promise(self, refused: bool) -> str:
        """The sentence for the log that says how long the wait continues."""
        limit = REFUSED_SECONDS if self.limit is None and refused else self.limit
        if limit is None:
            return "The wait continues until its deadline."
        return "The wait continues." if math.isinf(limit) else f"The wait continues for at most {limit / 60:g} minutes."


@dataclass(frozen=True)
class Decision:
    """The decision on a wait. ``settling``: based on errors or gaps, so it is final only if it still holds after
    ``SETTLE_SECONDS``."""

    outcome: Outcome
    settling: bool = False

    @property
    def over(self) -> bool:
        """True if the wait is over."""
        return self.outcome is not Outcome.WAITING


class Settling:
    """Delays a decision that counts only if it still holds a while later."""

    def __init__(self) -> None:
        self._outcome = Outcome.WAITING
        self._since = 0.0

    def over(self, decision: Decision, now: float) -> bool:
        """True if the decision is final."""
        if decision.outcome is not self._outcome:
            self._outcome, self._since = decision.outcome, now
        if not decision.over:
            return False
        return not decision.settling or now - self._since >= SETTLE_SECONDS

    def remaining(self, now: float) -> float:
        """Seconds until the decision is final; infinity while there is none."""
        return math.inf if self._outcome is Outcome.WAITING else self._since + SETTLE_SECONDS - now


def evaluate(
    completeness: Completeness,
    budget: ErrorBudget,
    *,
    named: bool = False,
    fail_fast: bool = False,
    threshold: Threshold | None = None,
) -> Decision:
    """Decide on a wait from the counts alone.

    ``named``: the wait is for a batch, not for the whole pool. If it has no tokens, and no number is expected, the name
    may be wrong. ``fail_fast``: do not wait for the others once the error budget is spent, or ``threshold`` cannot be
    reached. Missing tokens and tokens in no state count only when all others have finished, since the results of the
    others are still wanted.
    """
    counts = completeness.counts
    if named and completeness.expected is None and completeness.growing is None and not counts.total:
        return Decision(Outcome.UNKNOWN, settling=True)
    if threshold is not None and threshold.reached(completeness):
        return Decision(Outcome.COMPLETE if completeness.complete and not counts.stateless else Outcome.ENOUGH)
    failure = _failure(completeness, budget, threshold)
    if fail_fast and failure is not None and counts.error:
        return Decision(failure, settling=True)
    if completeness.complete and not counts.stateless:
        return Decision(failure or Outcome.COMPLETE, settling=counts.error > 0 or completeness.lags)
    if completeness.stuck or completeness.complete:  # complete, except for tokens in no state
        # A token may be invisible for a moment: in a cluster's copy that lags, or while it is deleted and pushed again.
        return Decision(Outcome.LOST, settling=True)
    return Decision(Outcome.WAITING)


def _failure(completeness: Completeness, budget: ErrorBudget, threshold: Threshold | None) -> Outcome | None:
    """How the wait will fail, unless tokens in error are reset. With a threshold, errors alone do not matter."""
    if threshold is not None:
        return None if threshold.possible(completeness) else Outcome.TOO_FEW_DONE
    if completeness.growing and 0 < budget.limit < 1:
        return None  # a fraction of a number that is not known yet
    return Outcome.TOO_MANY_ERRORS if budget.spent(completeness.counts, completeness.total) else None


_ADVICE = {
    Outcome.TOO_MANY_ERRORS: "Clear the push task to run the failed tokens again; the others keep their results.",
    Outcome.TOO_FEW_DONE: "Clear the push task to run the failed tokens again; the others keep their results.",
    Outcome.NO_PROGRESS: "Check in squeue whether the pilots are pending, and in their logs what they are doing.",
    Outcome.NO_PILOTS: (
        "Check the pilots' logs for why they ended; then clear the task that submits them, or set `resubmit` to submit more."
    ),
    Outcome.TIMED_OUT: "Clear this task to wait again, with a longer `timeout` if the pilots are still working.",
}


def advice(outcome: Outcome) -> str | None:
    """What to do after a wait with this outcome; None if ``explain`` says it."""
    return _ADVICE.get(outcome)


def explain(
    outcome: Outcome,
    completeness: Completeness,
    budget: ErrorBudget,
    *,
    where: str,
    threshold: Threshold | None = None,
    no_progress: float | None = None,
    stateless: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> str:
    """Describe a wait that is over, with the numbers first, since Airflow's pages truncate exceptions. Ids are samples."""
    counts = completeness.counts
    if outcome is Outcome.COMPLETE:
        return f"All {completeness.total:,} tokens of {where} have finished: {counts}."
    if outcome is Outcome.TOO_MANY_ERRORS:
        allowed = budget.allowed(completeness.total)
        return f"{counts.error:,} of {completeness.total:,} tokens failed ({allowed:,} allowed) in {where}."
    if outcome is Outcome.ENOUGH:
        return f"{counts.done:,} tokens of {where} are done, which is enough to continue ({counts})."
    if outcome is Outcome.READY:
        return f"{counts.todo:,} tokens of {where} wait{'' if completeness.growing else ', and no more can appear'} ({counts})."
    if outcome is Outcome.TOO_FEW_DONE:
        needed = threshold.needed(completeness.total) if threshold else completeness.total
        return f"{counts.done:,} of {completeness.total:,} tokens are done ({needed:,} needed) in {where}: {counts}."
    if outcome is Outcome.NO_PROGRESS:
        return f"No token has finished for {(no_progress or 0) / 60:,.0f} minutes in {where}: {counts} of {completeness.total:,}."
    if outcome in (Outcome.LOST, Outcome.UNKNOWN):
        return _explain_lost(outcome, completeness, where, stateless, missing)
    if outcome is Outcome.NO_PILOTS:
        return f"{counts.todo:,} tokens are waiting and no pilots remain to run them, in {where} ({counts})."
    if outcome is Outcome.TIMED_OUT:
        return f"The tokens of {where} did not finish in time: {counts} of {completeness.total:,}."
    others = {
        Outcome.AWAY: f"The tokens of {where} could not be counted.",
        Outcome.UNWATCHED: f"The triggerer cannot watch the pilots of {where}: {counts} of {completeness.total:,}.",
    }
    return others.get(outcome, f"{where}: {counts} of {completeness.total:,}.")


def _explain_lost(
    outcome: Outcome, completeness: Completeness, where: str, stateless: Sequence[str], missing: Sequence[str]
) -> str:
    counts = completeness.counts
    if outcome is Outcome.UNKNOWN:
        return f"There are no tokens in {where}. Check the batch name and the database; the tokens may also have been deleted."
    parts = []
    if completeness.missing:
        named = f" ({sample(missing, total=completeness.missing)})" if missing else ""
        parts.append(f"{completeness.missing:,} pushed tokens are missing{named}")
    if counts.stateless:
        named = f" ({sample(stateless, total=counts.stateless)})" if stateless else ""
        parts.append(f"{counts.stateless:,} tokens are in no state{named}")
    return (
        f"{' and '.join(parts)} in {where}, so it will never be complete ({counts})."
        " Push them again by clearing the push task, or repair them in the database."
    )


@dataclass(frozen=True)
class Terms:
    """What a wait is for, and when it succeeds or fails.

    ``batch``: its id; None is the whole pool. ``expected``: number of tokens that were pushed; None: all that exist.
    ``no_progress``: seconds without a finished token after which the wait fails; None: no limit. ``chain``: the stages
    that make the tokens. ``least_work``: as long as more tokens may appear, pilots are missing only for this number of
    waiting ones. ``ready``: the wait is over when this number of tokens waits, or no more can appear; None: when they
    have finished.
    """

    batch: str | None
    expected: int | None
    budget: ErrorBudget
    threshold: Threshold | None = None
    fail_fast: bool = False
    no_progress: float | None = None
    chain: Chain | None = None
    least_work: int = 1
    ready: int | None = None

    @property
    def where(self) -> str:
        """The tokens' place in messages."""
        if self.chain is not None and self.chain.stage is None:
            return f"batch {self.batch} and its stages"
        return f"batch {self.batch}" if self.batch is not None else "the pool"

    def completeness(self, counts: Counts | ChainCounts) -> Completeness:
        """The counts against the number that is expected."""
        if isinstance(counts, ChainCounts):
            return self.chain.completeness(counts) if self.chain else Completeness(Counts())
        return Completeness(counts, self.expected)

    def advice(self, outcome: Outcome) -> str | None:
        """What to do after a wait with this outcome; None if ``explain`` says it."""
        if self.chain is not None and outcome in (Outcome.TOO_MANY_ERRORS, Outcome.TOO_FEW_DONE):
            return (
                f"Rerun the failed tokens of {self.where} on the page or with the DAG picas_rerun_failed, then clear this task:"
                " what depends on them runs again, too."
            )
        return advice(outcome)

    def pushed(self, completeness: Completeness) -> int:
        """The number of tokens that were pushed, if known: those that tokens have made are not among them."""
        known = self.chain.tokens if self.chain else completeness.expected
        return known or 0

    def lacks_pilots(self, completeness: Completeness) -> bool:
        """True if tokens wait for which pilots should be there."""
        return completeness.counts.todo >= (self.least_work if completeness.growing else 1)

    def evaluate(self, completeness: Completeness) -> Decision:
        """Decide on the wait from the counts alone."""
        if self.ready is not None:
            over = completeness.counts.todo >= self.ready or not completeness.growing
            return Decision(Outcome.READY if over else Outcome.WAITING, settling=over and completeness.lags)
        named = self.batch is not None
        return evaluate(completeness, self.budget, named=named, fail_fast=self.fail_fast, threshold=self.threshold)

    def explain(
        self,
        outcome: Outcome,
        completeness: Completeness,
        *,
        place: str = "",
        stateless: Sequence[str] = (),
        missing: Sequence[str] = (),
    ) -> str:
        """Describe a wait that is over. ``place``: the database, for outcomes that may be due to a wrong one."""
        return explain(
            outcome,
            completeness,
            self.budget,
            where=f"{self.where} in {place}" if outcome is Outcome.UNKNOWN and place else self.where,
            threshold=self.threshold,
            no_progress=self.no_progress,
            stateless=stateless,
            missing=missing,
        )
