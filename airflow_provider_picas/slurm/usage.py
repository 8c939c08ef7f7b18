"""The resource usage of a submission's pilots, from sacct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_picas.slurm.jobs import Job, Phase

MIN_CORE_HOURS = 0.01  # the log omits the figures of shorter runs: they would be meaningless


@dataclass(frozen=True)
class Figures:
    """Figures of a submission. ``cpu_efficiency`` is the share of the allocated core time that processes used, or None
    while Slurm has not accounted for it; ``tokens_per_hour`` counts from the submission to the end of the wait."""

    jobs: dict[str, int]  #: number of jobs by cause of their end, or by state
    core_hours: float
    cpu_efficiency: float | None
    tokens: int  #: done or in error since the submission
    tokens_per_hour: float

    def as_dict(self) -> dict[str, Any]:
        """The figures for XCom, rounded."""
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return rounded

    def table(self) -> str:
        """The figures for the log."""
        lines = [f"{number:6,}  {cause}" for cause, number in sorted(self.jobs.items(), key=lambda item: -item[1])]
        if self.core_hours >= MIN_CORE_HOURS:
            used = f", of which {self.cpu_efficiency:.0%} were used" if self.cpu_efficiency is not None else ""
            lines.append(f"{self.core_hours:.2f} core-hours{used}; {self.tokens_per_hour:,.0f} tokens an hour")
        return "\n".join(["  Jobs  How they ended", *lines])


def figures(jobs: Iterable[Job], tokens: int, seconds: float) -> Figures:
    """Figures from jobs, the number of tokens that have finished since the submission, and the seconds since."""
    jobs = list(jobs)
    core_seconds = sum(job.elapsed * job.cpus for job in jobs)
    accounted = [job for job in jobs if job.cpu_seconds > 0]
    allocated = sum(job.elapsed * job.cpus for job in accounted)
    return Figures(
        jobs=dict(Counter(job.cause if job.phase is Phase.ENDED else job.state for job in jobs)),
        core_hours=core_seconds / 3600,
        cpu_efficiency=sum(job.cpu_seconds for job in accounted) / allocated if allocated else None,
        tokens=tokens,
        tokens_per_hour=tokens * 3600 / seconds if seconds > 0 else 0.0,
    )
