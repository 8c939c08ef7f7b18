"""When the job ends."""

import os
import re
import subprocess
import threading
import time
from typing import Dict, Optional

from airflow_provider_picas.lifecycle.durations import seconds_of
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.processes import Processes


class WallClock(threading.Thread):
    """Queries Slurm from time to time for the end of the job: the limit may be changed while it runs."""

    EVERY = 300  # seconds

    def __init__(self, clock: Clock, processes: Processes) -> None:
        super().__init__(name="wall-clock", daemon=True)
        self._clock = clock
        self._processes = processes
        self._job = os.environ.get("SLURM_JOB_ID")
        given = os.environ.get("SLURM_JOB_END_TIME", "")
        self._given = float(given) if re.match("[0-9]{1,18}\\Z", given) else None  # seconds since 1970
        self._end: Optional[float] = None  # monotonic
        self.queried = threading.Event()  # set when Slurm has been queried once, or there is no Slurm
        self._again = threading.Event()

    def remaining(self) -> Optional[float]:
        """Seconds until the job ends, by the database's clock; None if unknown or without limit."""
        if self._end is not None:
            return self._end - time.monotonic()
        return None if self._given is None else self._given - self._clock.now()

    def query_again(self) -> None:
        """Query soon: a job's time stops while it is suspended."""
        self._again.set()

    def run(self) -> None:
        """Query until the pilot ends."""
        while self._job:
            self._again.clear()
            # A duration, since the clocks of the cluster and of the database may differ.
            queried_at = time.monotonic()
            left = self._query("scontrol", "show", "job", self._job)
            if left is None:
                left = self._query("squeue", "-h", "-j", self._job, "-o", "TimeLeft=%L")
            if left is not None:
                self._end = queried_at + left
            elif self.remaining() is None and not self.queried.is_set():
                log("Slurm does not report when this job ends.")
            self.queried.set()
            self._again.wait(self.EVERY)
        self.queried.set()

    @staticmethod
    def _environment() -> Dict[str, str]:
        """The environment without variables that change the output of Slurm's commands, such as SQUEUE_PARTITION in a
        profile."""
        needed = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
        changing = re.compile("(SLURM|SQUEUE|SCONTROL)_")
        return {name: value for name, value in os.environ.items() if name in needed or not changing.match(name)}

    def _query(self, *argv: str) -> Optional[float]:
        try:
            process = self._processes.start(argv, stderr=subprocess.DEVNULL, env=self._environment())
        except OSError:
            return None
        killer = threading.Timer(20, process.kill)  # the controller may hang
        killer.start()
        answer = process.stdout.read() if process.stdout else b""
        killer.cancel()
        self._processes.ended(process)
        return parse_time_left(answer.decode("utf-8", "replace"))


def parse_time_left(text: str) -> Optional[float]:
    """Seconds until the job ends, from Slurm's output: ``TimeLeft=``, or ``TimeLimit=`` minus ``RunTime=``. None
    without a limit."""
    found = {name: seconds_of(value) for name, value in re.findall(r"\b(TimeLeft|TimeLimit|RunTime)=(\S+)", text)}
    left, limit, ran = found.get("TimeLeft"), found.get("TimeLimit"), found.get("RunTime")
    return limit - ran if limit is not None and ran is not None else left
