"""Operations: what the provider does in more than one request, written without I/O.

An operation is a generator. It yields one step, such as a request to CouchDB, and receives what came of it::

    def count(pool: Pool) -> Operation[int]:
        answer = yield pool.view_request("todo", reduce=True)
        return sum(row["value"] for row in answer.rows())

A hook runs it: ``hook.do(count(hook.pool))`` performs each step and returns what the operation returns. ``PicasHook``
and ``SlurmHook`` do that in a task, ``PicasAsyncHook`` and ``triggers.cluster`` on an event loop. They share the
operations, so each decision is written once, and a test can play the server by hand: ``next(operation)``,
``operation.send(answer)``.

- Which steps: ``couchdb.http.Operation`` yields requests to CouchDB, ``slurm.remote.Operation`` yields commands, files
  and pauses for the cluster, ``submissions.submission.Operation`` yields both; ``performer`` there sends each step to
  the right side.
- Operations call each other with ``yield from``.
- Errors: what the hook raises for a step is raised inside the operation, at its ``yield``. It may catch it and
  continue, or let it propagate to the caller of ``do``.
- Repeating: hooks repeat a single request that is safe to repeat (``couchdb.retries``). Nobody restarts an
  operation: one that was cut short is run again from its beginning by the next try of the task, so each is written to
  find its own traces.
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
