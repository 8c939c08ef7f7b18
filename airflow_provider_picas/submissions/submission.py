"""A submission of pilots, and the operations on it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from airflow_provider_picas.couchdb.http import Request
from airflow_provider_picas.slurm.remote import Step

Result = TypeVar("Result")
Operation = Generator[Request | Step, Any, Result]
"""Yields requests to CouchDB and steps on the cluster, receives answers and outputs."""


def performer(send: Callable[[Request], Any], perform: Callable[[Step], Any]) -> Callable[[Request | Step], Any]:
    """A function that performs the steps of an operation: ``send`` gets requests to CouchDB, ``perform`` gets steps on
    the cluster. Both may be asynchronous."""
    return lambda step: send(step) if isinstance(step, Request) else perform(step)


@dataclass(frozen=True)
class Submission:
    """The submission whose pilots are submission."""

    key: str
    folder: str
    since: int  #: seconds since 1970: before its first job
    ssh_conn_id: str
    calls: int = 1  #: sbatch calls of one round

    @classmethod
    def parse(cls, value: Any) -> Submission | None:
        """A submission from the output of the operator that submits pilots; None for None, and if nothing was submitted.

        Raises ValueError for anything else.
        """
        if value is None or value == "":
            return None
        if isinstance(value, list | tuple):
            raise ValueError(f"This takes the pilots of one submission, not a list of {len(value)}.")
        try:
            if value["submission"] is None:
                return None
            since = int(datetime.fromisoformat(value["submitted"]).timestamp())
            calls = max(1, len(value["job_ids"]))
            return cls(str(value["submission"]), str(value["folder"]), since, str(value["ssh_conn_id"]), calls)
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"`pilots` must be the output of the operator that submits pilots, not {value!r:.200}."
            ) from None

    @classmethod
    def parse_all(cls, value: Any) -> list[Submission]:
        """The submissions in the output of one operator that submits pilots, or in a list of such outputs, without those
        that submitted nothing. Raises ValueError for anything else."""
        given = value if isinstance(value, list | tuple) else [value]
        found = {one.key: one for one in map(cls.parse, given) if one is not None}
        return list(found.values())
