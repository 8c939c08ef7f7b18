"""A month of work in one pool that only the server may compact: a hundred runs, each of which pushes ten thousand tokens,
has them done, and archives or deletes them.

Every tenth run also submits real pilots to a Slurm, for some tokens more: their leases and the folders of their
submissions must not pile up. The folders are made older between runs, so that the runs span a month. The runs are then
repeated in another pool while CouchDB's automatic compaction, smoosh, is switched off; this needs an Apache CouchDB.
``PICAS_BENCH_CHURN="10 1000"`` sets other numbers of runs and tokens.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook
from airflow_provider_picas.lifecycle.ids import lease_id
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasDeleteTokensOperator, PicasPushTokensOperator
from airflow_provider_picas.submissions.end import end
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.tokens import views
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from benchmarks import bulk, slurm_site
from benchmarks.measure import Goal, Result, clock
from benchmarks.push import inputs
from benchmarks.server import CONN_ID, Server, context
from stack import paths
from stack.cluster import Cluster

RUNS, TOKENS = (int(number) for number in os.environ.get("PICAS_BENCH_CHURN", "100 10000").split())
DAYS = 30.0  # that the runs span
KEEP_DAYS = 7.0  # for folders of submissions
SUBMIT_EVERY = max(1, RUNS // 10)
PILOT_TOKENS = 20
COUNTS = 15  # in one measurement


def _count(hook: PicasHook, batch: str) -> float:
    """Seconds of a count."""
    with clock() as taken:
        hook.count(batch)
    return taken.seconds


@dataclass
class Run:
    """What one run took, and what it left in the pool."""

    seconds: float
    counting: float  #: seconds of a count
    database: float  #: bytes of the database's files
    views: float  #: bytes of the views' files
    live: float  #: bytes that the database needs
    leases: int
    folders: int


@dataclass
class Month:
    """All runs in one pool."""

    runs: list[Run] = field(default_factory=list)

    def part(self, last: bool) -> list[Run]:
        """The first tenth of the runs, or the last."""
        number = max(1, len(self.runs) // 10)
        return self.runs[-number:] if last else self.runs[:number]

    def median(self, name: str, last: bool) -> float:
        """The median of a figure, over the first tenth of the runs, or the last."""
        return float(median(getattr(run, name) for run in self.part(last)))


def run(server: Server, pairs: int) -> Iterator[Result]:
    """A month with automatic compaction as it is set on the server, and one without. Each is measured once."""
    yield from _results("CouchDB's automatic compaction", _month(server))
    if server.compacts:
        with server.without_compaction():
            yield from _results("no compaction", _month(server), goals=False)


def _results(how: str, month: Month, goals: bool = True) -> Iterator[Result]:
    tokens = f"{RUNS} runs of {TOKENS:,} tokens, {how}"
    limit = Goal(1.5) if goals else None
    for name, what in (("seconds", "time of a run"), ("counting", "time of a count")):
        first, last = month.median(name, False), month.median(name, True)
        figures = {"first runs": f"{first * 1_000:,.1f} ms", "last runs": f"{last * 1_000:,.1f} ms"}
        yield Result(f"{tokens}: {what}, last runs to first", figures, last / first, limit)
    first, last = month.median("database", False), month.median("database", True)
    end = month.runs[-1]
    yield Result(
        f"{tokens}: bytes of the database for each token that was ever in it",
        {
            "database, first runs": f"{first / 1e6:,.1f} MB",
            "last runs": f"{last / 1e6:,.1f} MB",
            "needed": f"{end.live / 1e6:,.1f} MB",
            "views, first runs": f"{month.median('views', False) / 1e6:,.1f} MB",
            "last ones": f"{month.median('views', True) / 1e6:,.1f} MB",
        },
        end.database / (RUNS * TOKENS),
        unit="bytes",
    )
    yield Result(
        f"{tokens}: leases that remain",
        {"most": str(max(run.leases for run in month.runs))},
        float(end.leases),
        Goal(0),
        unit="leases",
    )
    kept = int(KEEP_DAYS / DAYS * RUNS / SUBMIT_EVERY) + 1
    yield Result(
        f"{tokens}: folders of submissions that remain",
        {"submissions": str(len(range(0, RUNS, SUBMIT_EVERY))), "kept for": f"{KEEP_DAYS:g} days"},
        float(end.folders),
        Goal(kept),
        unit="folders",
    )


def _month(server: Server) -> Month:
    folder = paths.RUN / f"bench-churn-{os.getpid()}"
    month = Month()
    try:
        with Cluster(folder / "cluster") as cluster, server.pool(views=True) as pool:
            slurm_site.connect(cluster)
            hook = PicasHook(CONN_ID)
            for number in range(RUNS):
                if number % SUBMIT_EVERY == 0:
                    asyncio.run(_pilots(number))
                batch = f"run-{number}"
                with clock() as worked:
                    _run(hook, batch)
                counting = median(_count(hook, batch) for _ in range(COUNTS))
                with clock() as deleted:
                    _delete(hook, batch, folder / "archive" if number % 2 else None)
                _age(cluster, DAYS / RUNS)
                seconds = worked.seconds + deleted.seconds
                month.runs.append(_left(server, hook, pool.database, seconds, counting, cluster))
                if number % 10 == 9:
                    print(f"  after {number + 1} runs: {month.runs[-1]}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return month


def _run(hook: PicasHook, batch: str) -> None:
    """Push a batch, have it done, and count it."""
    PicasPushTokensOperator(
        task_id="push", inputs=lambda: inputs(TOKENS), batch=batch, picas_conn_id=CONN_ID, deploy_views=False
    ).execute(context())
    bulk.finish(hook, batch)
    if (counts := hook.count(batch)).done != TOKENS:
        raise RuntimeError(f"{counts} were counted after {batch}.")


def _delete(hook: PicasHook, batch: str, archive: Path | None) -> None:
    """Delete the tokens of a batch, or archive them."""
    delete = PicasDeleteTokensOperator(
        task_id="delete", batch=batch, archive=str(archive) if archive else None, picas_conn_id=CONN_ID
    )
    if (report := delete.execute(context()))["deleted"] != TOKENS:
        raise RuntimeError(f"Not all tokens of {batch} were deleted: {report}")
    if hook.count(batch).total:
        raise RuntimeError(f"Tokens of {batch} remain.")


async def _pilots(number: int) -> None:
    """Submit pilots for some tokens, wait for these, and delete them."""
    push = PicasPushTokensOperator(
        task_id=f"push-{number}", inputs=list(range(PILOT_TOKENS)), picas_conn_id=CONN_ID, deploy_views=False
    )
    batch: Any = await asyncio.to_thread(push.execute, context(f"push-{number}"))
    submit = PicasSubmitPilotsOperator(
        task_id=f"pilots-{number}",
        command=["/bin/true"],
        batch=batch,
        pilots=2,
        pilot={"lease": 30},
        keep_days=KEEP_DAYS,
        ssh_conn_id=slurm_site.CONN_ID,
        picas_conn_id=CONN_ID,
    )
    pilots: Any = await asyncio.to_thread(submit.execute, context(f"pilots-{number}"))
    trigger = PicasTokenStateTrigger(
        CONN_ID, batch["database"], batch["batch"], batch["tokens"], 0, time.time() + 900, pilots=pilots
    )
    async for event in trigger.run():
        if event.payload["outcome"] != "complete":
            raise RuntimeError(f"The wait ended with {event.payload}.")
    await asyncio.to_thread(_end, pilots)
    delete = PicasDeleteTokensOperator(task_id="delete", batch=batch, picas_conn_id=CONN_ID)
    await asyncio.to_thread(delete.execute, context())


def _end(pilots: dict[str, Any]) -> None:
    """Clean up as the sensor does after a wait."""
    submission = Submission.parse(pilots)
    assert submission is not None
    hook = PicasHook(CONN_ID)
    with PilotsHook(hook, submission.ssh_conn_id) as hooks:
        hooks.do(end(hook.pool, submission, PILOT_TOKENS))


def _age(cluster: Cluster, days: float) -> None:
    """Let the folders of submissions look older by ``days``."""
    for folder in _folders(cluster):
        for path in [*folder.rglob("*"), folder]:
            changed = path.lstat().st_mtime - days * 86_400
            os.utime(path, (changed, changed), follow_symlinks=False)


def _folders(cluster: Cluster) -> list[Path]:
    return [path for path in cluster.home.rglob("picas-*.[0-9]*") if path.is_dir()]


def _left(server: Server, hook: PicasHook, database: str, seconds: float, counting: float, cluster: Cluster) -> Run:
    """What is in the pool after a run."""
    path = "/" + quote(database, safe="")
    sizes = server.admin.request("GET", path)[1].get("sizes") or {}
    indexes = 0.0
    for design in (views.PROVIDER, views.MONITOR):
        answer = server.admin.request("GET", f"{path}/_design/{design}/_info")[1]
        indexes += answer.get("view_index", {}).get("sizes", {}).get("file", 0)
    leases, _ = hook.do(hook.pool.local_documents(lease_id("")))
    return Run(
        seconds,
        counting,
        float(sizes.get("file", 0)),
        indexes,
        float(sizes.get("active", 0)),
        len(leases),
        len(_folders(cluster)),
    )
