"""Explains why a wait failed: logs causes and advice, and names tokens."""

from __future__ import annotations

from itertools import islice
from typing import Any

from airflow_provider_picas.couchdb.errors import CouchDBError, UnavailableError
from airflow_provider_picas.hooks.failures import FailedTokens, report
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens.counts import Completeness
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.waiting import Outcome, Terms

_SAMPLE = 5  # ids named in a message
_FAILED = 1_000  # failed tokens read to find causes
_CAUSES = 3  # causes named in the log


def counts_lag(outcome: Outcome, completeness: Completeness, hook: PicasHook, terms: Terms, log: Any) -> bool:
    """True if the counts lack tokens that exist: in a cluster, the copy of the database that counts them may lag."""
    if (
        outcome is not Outcome.LOST
        or terms.batch is None
        or completeness.expected is None
        or completeness.counts.stateless
    ):
        return False
    try:
        lags = not hook.missing(terms.batch, terms.pushed(completeness), limit=1)
    except CouchDBError as error:
        log.warning("Could not check whether tokens are missing. %s", error)
        return isinstance(error, UnavailableError)
    if lags:
        log.warning(
            "%d tokens of %s exist but are not counted: a copy of the database lags. The wait continues.",
            completeness.missing, terms.where,
        )  # fmt: skip
    return lags


def explain_failure(outcome: Outcome, completeness: Completeness, hook: PicasHook, terms: Terms, log: Any) -> str:
    """Log what to do and why tokens failed. Returns the message of the task's error."""
    samples: dict[str, list[str]] = {}
    if advice := terms.advice(outcome):
        log.error("%s", advice)
    try:
        if outcome in (Outcome.TOO_MANY_ERRORS, Outcome.TOO_FEW_DONE):
            for batch in terms.chain.own if terms.chain else (terms.batch,):
                _log_causes(hook, batch, log)
        if outcome is Outcome.LOST:
            samples["stateless"] = hook.stateless_ids(terms.batch, _SAMPLE)
            if terms.batch is not None and completeness.missing and completeness.expected is not None:
                samples["missing"] = hook.missing(terms.batch, terms.pushed(completeness))
    except CouchDBError as error:
        log.warning("Could not find out which tokens these are: %s", error)
    return terms.explain(outcome, completeness, place=hook.settings.place, **samples)


def _log_causes(hook: PicasHook, batch: str | None, log: Any) -> None:
    """Log why tokens failed: the most frequent causes, and the end of one token's log."""
    failed = FailedTokens(hook)
    failed.add(islice(hook.tokens(State.ERROR, batch), _FAILED))
    causes = failed.summary(_CAUSES)
    for group in causes[1:]:
        group["log"] = None
    for text in report(causes, failed.tokens):
        for line in text.splitlines():
            log.error("%s", line)
