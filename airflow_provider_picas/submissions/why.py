"""Why a token, or a batch, does not run: sentences for people. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.lifecycle.attempts import attempts_by_kind
from airflow_provider_picas.lifecycle.classes import class_name
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.submissions.seen import state_of
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.states import state_of as state_of_token
from airflow_provider_picas.tokens.text import one_line, sample

_TAKES = ("idle", "working")


@dataclass(frozen=True)
class Known:
    """What is known of a batch. ``classes``: waiting tokens by class. ``summary``: of the pilots, as on the page.
    ``drained``: submissions whose pilots are to stop."""

    counts: Counts
    leases: Sequence[Mapping[str, Any]]
    now: float
    summary: Mapping[str, Any]
    submissions: Sequence[str]
    drained: Collection[str] = ()
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def takers(self) -> list[Mapping[str, Any]]:
        """The leases of pilots that live and take tokens."""
        return [
            lease
            for lease in self.leases
            if state_of(lease, self.now) in _TAKES and lease.get("submission") not in self.drained
        ]


def of_batch(known: Known) -> list[str]:
    """Why tokens of the batch wait."""
    counts = known.counts
    if not counts.todo:
        if not counts.total:
            return ["There are no tokens."]
        return [f"No tokens are waiting: {counts.locked:,} running, {counts.done:,} done, {counts.error:,} in error."]
    return [*_pilots(known), *_unserved(known), *_drained(known)]


def of_token(token: Mapping[str, Any], known: Known, ahead: int | None, profile: Profile = PICAS) -> list[str]:
    """Why a token does not run. ``ahead``: waiting tokens of its class with a higher priority; None: unknown."""
    state = state_of_token(token, profile)
    if state is not State.TODO:
        return [_not_waiting(token, state)]
    found, name = [], class_name(dict(token))
    served = _served(known)
    if known.takers and served is not None and name not in served:
        found.append(
            f"No running pilot offers the resources it requests ({_class(name)}). They offer {_classes(served)}."
        )
    if ahead:
        found.append(f"{ahead:,} waiting tokens that request the same resources have a higher priority.")
    deaths = attempts_by_kind(dict(token))["reaped"]
    if deaths:
        beside = "beside others" if deaths == 1 else "alone"
        found.append(
            f"{deaths:,} pilots died or fell silent while running it, so it is claimed later, to run {beside} on a pilot."
        )
    if known.takers and token.get("time"):
        minutes = one_line(str(token["time"]), 20)
        found.append(f"It requests {minutes} minutes: a pilot takes it only if its job has that much time left.")
    return [*found, *_pilots(known), *_drained(known)]


def _not_waiting(token: Mapping[str, Any], state: State | None) -> str:
    if state is State.LOCKED:
        holder = token.get("pilot") or token.get("slurm_job_id") or token.get("hostname") or "a pilot"
        return f"It is held by {one_line(str(holder))}."
    if state is None:
        return "It is in no valid state: its lock and done contradict each other. Reset it."
    return f"It has finished: it is {'done' if state is State.DONE else 'in error'}."


def _pilots(known: Known) -> list[str]:
    summary, takers = known.summary, len(known.takers)
    found = []
    if takers:
        found.append(f"{takers:,} pilots are taking tokens: each takes the next when it has finished one.")
    if summary["waiting"]:
        jobs = summary["waiting"]
        found.append(f"{jobs:,} pilots are pending in Slurm.")
        found += [f"{reason['jobs']:,} of them: {reason['text']}" for reason in summary["reasons"]]
    if summary["silent"]:
        found.append(
            f"{summary['silent']:,} pilots have not renewed their leases. If they are dead, a wait releases their tokens."
        )
    if found:
        return found
    if summary["source"] == "leases" and known.submissions:
        return ["No pilot has started yet. Pilots pending in Slurm are shown only while a DAG run's wait watches them."]
    if known.submissions:
        return ["No pilots are pending or running: all that were submitted have ended. Submit more."]
    return ["The provider has no record of pilots submitted for this batch."]


def _served(known: Known) -> set[str] | None:
    """The classes that the living pilots serve; None: any."""
    classes: set[str] = set()
    for lease in known.takers:
        served = lease.get("classes")
        if not isinstance(served, list):
            return None
        classes.update(name for name in served if isinstance(name, str))
    return classes


def _unserved(known: Known) -> list[str]:
    served = _served(known)
    if not known.takers or served is None:
        return []
    left = {name: number for name, number in known.classes.items() if name not in served}
    return [
        f"{number:,} tokens request {_class(name)}, which no running pilot offers."
        for name, number in list(left.items())[:5]
    ]


def _drained(known: Known) -> list[str]:
    stopped = [one_line(key) for key in known.drained]
    return [f"The pilots of {sample(stopped)} are drained or cancelled, and take no more tokens."] if stopped else []


def _classes(served: Collection[str]) -> str:
    return ", ".join(_class(name) for name in sorted(served)[:5]) or "none"


def _class(name: str) -> str:
    """A class in words."""
    cores, gpu, minutes = [*name.split("/"), "", "", ""][:3]
    parts = [f"{one_line(cores, 20)} cores"] if cores else []
    parts += [f"{one_line(gpu, 20)} GPUs"] if gpu else []
    parts += [f"{one_line(minutes, 20)} minutes"] if minutes else []
    return ", ".join(parts) or "no resources"
