"""One connection per cluster: all waits of a process on a cluster share an SSH connection, and queries of Slurm's jobs.

sshd refuses many connections at once (``MaxStartups``), and squeue and sacct put load on the whole site. Queries that
are requested in the meantime are combined when the next one is due.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from airflow_provider_picas.hooks.slurm import SlurmAsyncHook
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.sansio import drive_async
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.jobs import JobsQuery
from airflow_provider_picas.slurm.remote import (
    LoginError,
    NoSessionError,
    Operation,
    Output,
    Pause,
    RemoteError,
    Result,
    Step,
)

SESSIONS = 4  # concurrent commands: sshd's MaxSessions is 10 per connection
GATHER = 0.2  # seconds before a query begins: others may join it
SHORTEST_PAUSE = 2.0  # seconds between two queries
LOAD = 10.0  # the pause after a query is this many times as long as the query took
LONGEST_PAUSE = 60.0  # seconds; if a query took very long, the connection was slow rather than Slurm
TOGETHER = 200  # submissions in one query: Linux allows 128 KiB for an argument, enough for about 400
FIRST_RECONNECT, LONGEST_RECONNECT = 2.0, 120.0  # seconds, with jitter
LOGIN_PAUSE = 30.0  # seconds at most after a first refused login: sites lock accounts that try too often
REFUSALS = 2  # failed logins before the refusal counts as certain


class Cluster:
    """A login node, shared by all watchers of pilots on this event loop. Get it from ``cluster_for``; connected while
    it is used."""

    def __init__(self, ssh_conn_id: str) -> None:
        self.ssh_conn_id = ssh_conn_id
        self.queries = 0  #: number of queries of Slurm, for measurements
        self._hook = SlurmAsyncHook(ssh_conn_id)
        self._users = 0
        self._most = SESSIONS  #: concurrent sessions: one fewer whenever sshd refuses one
        self._sessions = asyncio.Semaphore(self._most)
        self._open = self._opened = (
            0  #: sessions that are open now, and the total so far, including attempts to open one
        )
        self._asked: dict[JobsQuery, list[asyncio.Future[Output]]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: RemoteError | None = None
        self._refusals = 0  #: consecutive ones
        self._retry_at = 0.0
        self._backoff = _backoff()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Cluster]:
        """Use the connection. It is closed when its last user has left."""
        self._users += 1
        if self._task is None:
            self._task = asyncio.create_task(self._keep_querying(), context=contextvars.Context())
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                await self._close()

    async def _close(self) -> None:
        clusters = _clusters.get(asyncio.get_running_loop(), {})
        if clusters.get(self.ssh_conn_id) is self:
            del clusters[self.ssh_conn_id]
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._hook.close()

    @property
    def refusal(self) -> str | None:
        """Why this process cannot log in, after two failures: a site's user directory may be unavailable for a moment."""
        return str(self._failure) if self._failure is not None and self._refusals >= REFUSALS else None

    async def do(self, operation: Operation[Result]) -> Result:
        """Carry out an operation's steps and return its result."""
        return await drive_async(operation, self.perform)

    async def perform(self, step: Step) -> Output:
        """Carry out one step. Queries of jobs are combined with those of others, and begin only after they were
        requested.

        Raises RemoteError.
        """
        if isinstance(step, Pause):  # does not block other users
            await asyncio.sleep(step.seconds)
            return Output(0)
        if not isinstance(step, JobsQuery):
            return await self._carry_out(step)
        answer: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(step, []).append(answer)
        self._wake.set()
        return await answer

    async def _carry_out(self, step: Step) -> Output:
        """Carry out a step over the connection. While the cluster is unreachable, try only from time to time."""
        output = None
        while output is None:
            self._check_reachable()
            await self._sessions.acquire()
            output = await self._try(step)
        self._failure, self._refusals, self._backoff = None, 0, _backoff()
        return output

    async def _try(self, step: Step) -> Output | None:
        """Carry it out in one of the sessions; None if sshd opened no session, perhaps because others were open."""
        refused = False
        self._open += 1
        self._opened += 1
        alone, opened = self._open == 1, self._opened
        try:
            self._check_reachable()  # an earlier step may have found the cluster unreachable
            return await self._hook.perform(step)
        except NoSessionError:
            if alone and self._opened == opened:
                raise
            refused = self._most > 1
            self._most -= refused
            return None
        except RemoteError as error:
            if not self._hook.connected and error is not self._failure:
                self._note(error)
            raise
        finally:
            self._open -= 1
            if not refused:
                self._sessions.release()

    def _note(self, error: RemoteError) -> None:
        """Record that there is no connection, and when to try again."""
        refused = isinstance(error, LoginError)
        self._refusals = self._refusals + 1 if refused else 0
        self._failure = error
        self._retry_at = time.monotonic() + self._backoff.pause(LOGIN_PAUSE if refused else 0.0)

    def _check_reachable(self) -> None:
        if self._failure is not None and time.monotonic() < self._retry_at:
            raise self._failure

    async def _keep_querying(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER)
            self._wake.clear()
            asked, self._asked = self._asked, {}
            begin = time.monotonic()
            await self._query(asked)
            took = time.monotonic() - begin
            pause = min(max(SHORTEST_PAUSE, LOAD * took), LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.9, 1.0))

    async def _query(self, asked: dict[JobsQuery, list[asyncio.Future[Output]]]) -> None:
        for start in range(0, len(asked), TOGETHER):
            await self._query_together(dict(list(asked.items())[start : start + TOGETHER]))

    async def _query_together(self, asked: dict[JobsQuery, list[asyncio.Future[Output]]]) -> None:
        steps = list(asked)
        try:
            self.queries += 1
            outputs = jobs.split_output(await self._carry_out(jobs.combine(steps)), steps)
        except Exception as error:
            for answer in (answer for answers in asked.values() for answer in answers if not answer.done()):
                answer.set_exception(error)
            return
        for step, output in zip(steps, outputs, strict=True):
            for answer in asked[step]:
                if not answer.done():
                    answer.set_result(output)


def _backoff() -> Backoff:
    return Backoff(FIRST_RECONNECT, LONGEST_RECONNECT, jitter=(0.5, 1.0))


_clusters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Cluster]] = WeakKeyDictionary()


def cluster_for(ssh_conn_id: str) -> Cluster:
    """The cluster of a connection on the running event loop. All callers get the same one while it is in use."""
    clusters = _clusters.setdefault(asyncio.get_running_loop(), {})
    if ssh_conn_id not in clusters:
        clusters[ssh_conn_id] = Cluster(ssh_conn_id)
    return clusters[ssh_conn_id]
