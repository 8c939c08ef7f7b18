"""Whether a wait is over: what the counts of a batch, or of a pool, mean for the task that waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from airflow_provider_picas.tokens.counts import Completeness, ErrorBudget
from airflow_provider_picas.tokens.text import sample

SETTLE_SECONDS = 10.0
"""An error counts once it has stood for so long: the PiCaS client's pilots save a failed token and scrub it a moment later."""


class Outcome(StrEnum):
    """How a wait stands."""

    WAITING = "waiting"
    COMPLETE = "complete"  #: all tokens done, or in error within the budget
    TOO_MANY_ERRORS = "too_many_errors"  #: all finished, more in error than allowed
    LOST = "lost"  #: tokens are missing or in no state, so it will never be complete
    TIMED_OUT = "timed_out"
    NO_PILOTS = "no_pilots"  #: tokens wait, and no pilot of the submission is left to take them


@dataclass(frozen=True)
class Verdict:
    """How a wait stands. ``settling``: errors decide, so it holds only if it still does after ``SETTLE_SECONDS``."""

    outcome: Outcome
    settling: bool = False

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.outcome is not Outcome.WAITING


def judge(completeness: Completeness, budget: ErrorBudget) -> Verdict:
    """How a wait stands, from the counts alone.

    Missing tokens and tokens in no state decide only when all others have finished: their results are wanted all the same.
    """
    counts = completeness.counts
    if completeness.complete and not counts.stateless:
        spent = budget.spent(counts, completeness.total)
        outcome = Outcome.TOO_MANY_ERRORS if spent else Outcome.COMPLETE
        return Verdict(outcome, settling=counts.error > 0)
    if completeness.stuck or (completeness.complete and counts.stateless and not counts.todo and not counts.locked):
        return Verdict(Outcome.LOST, settling=counts.error > 0)
    return Verdict(Outcome.WAITING)


def explain(
    outcome: Outcome,
    completeness: Completeness,
    budget: ErrorBudget,
    *,
    where: str,
    in_error: Sequence[str] = (),
    stateless: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> str:
    """What a wait that is over says: what happened, to which tokens, and what to do. Ids are samples."""
    counts = completeness.counts
    if outcome is Outcome.COMPLETE:
        return f"All {completeness.total:,} tokens of {where} have finished: {counts}."
    if outcome is Outcome.TOO_MANY_ERRORS:
        named = f": {sample(in_error, total=counts.error)}" if in_error else ""
        return (
            f"{counts.error:,} of {completeness.total:,} tokens of {where} are in error, and"
            f" {budget.allowed(completeness.total):,} may be{named}. Clear the push task to run just these again."
        )
    if outcome is Outcome.LOST:
        parts = []
        if completeness.missing:
            named = f" ({sample(missing, total=completeness.missing)})" if missing else ""
            parts.append(f"{completeness.missing:,} tokens that were pushed are gone{named}")
        if counts.stateless:
            named = f" ({sample(stateless, total=counts.stateless)})" if stateless else ""
            parts.append(f"{counts.stateless:,} tokens are in no state{named}")
        return (
            f"{' and '.join(parts)} in {where}, so it will never be complete ({counts})."
            " Push them again by clearing the push task, or mend them in the database."
        )
    if outcome is Outcome.NO_PILOTS:
        return (
            f"{counts.todo:,} tokens of {where} wait, and no pilot is left to take them ({counts})."
            " Look at the pilots' ends below; then clear the task that submits them, or set `resubmit`."
        )
    if outcome is Outcome.TIMED_OUT:
        return f"The tokens of {where} did not finish in time: {counts} of {completeness.total:,}."
    return f"{where}: {counts} of {completeness.total:,}."
