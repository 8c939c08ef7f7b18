"""Driving an operation: a generator that yields what is to be done and receives what came of it.

Operations hold a protocol's decisions (``couchdb.pool``, ``slurm.submission``); hooks do the I/O, sync or async, and share the
operations.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Outcome = TypeVar("Outcome")
Result = TypeVar("Result")


def drive(operation: Generator[Step, Outcome, Result], perform: Callable[[Step], Outcome]) -> Result:
    """Perform each step and return the operation's result. What ``perform`` raises is raised inside the operation."""
    try:
        step = next(operation)
        while True:
            try:
                outcome = perform(step)
            except Exception as error:
                step = operation.throw(error)
            else:
                step = operation.send(outcome)
    except StopIteration as end:
        result: Result = end.value
        return result


async def drive_async(
    operation: Generator[Step, Outcome, Result], perform: Callable[[Step], Awaitable[Outcome]]
) -> Result:
    """``drive`` on an event loop."""
    try:
        step = next(operation)
        while True:
            try:
                outcome = await perform(step)
            except Exception as error:
                step = operation.throw(error)
            else:
                step = operation.send(outcome)
    except StopIteration as end:
        result: Result = end.value
        return result
