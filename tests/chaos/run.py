"""A run under faults: tokens that are pushed, pilots, a wait as the triggerer has it, and what the commands wrote down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens.states import State, state_of
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import paths, processes
from stack.cluster import Cluster
from stack.pool import Pool
from tests.chaos import history
from tests.chaos.history import History
from tests.integration.tasks import context

LEASE = 15  # seconds, of pilots in these tests
INTERVAL = 5.0  # seconds between two looks at the pilots
PATIENCE = 300.0  # seconds to wait for anything


figures: list[str] = []
"""What the tests measured, for the end of the session."""


def tell(figure: str) -> None:
    """Note a figure."""
    figures.append(figure)
    print(f"\n{figure}")


@dataclass(frozen=True)
class Line:
    """What a command wrote down when it began, or ended well."""

    ended: bool
    token: str
    at: float  #: seconds since 1970
    job: str  #: as Slurm calls it: ``12_0``
    claim: str


class Run:
    """One batch of tokens and its pilots. Each command writes down when it begins and when it ends."""

    def __init__(self, cluster: Cluster, pool: Pool, name: str) -> None:
        self.cluster = cluster
        self.pool = pool
        self.name = name
        self.file = cluster.home / f"runs-{pool.database}"
        self.pushed: Any = None
        self.submitted: Any = None
        self._sensor: PicasTokenStateSensor | None = None
        self._thread: threading.Thread | None = None
        self._outcome: Any = None
        self.context = context("wait", run_id=pool.database)

    # -- the tasks ----------------------------------------------------------------------------------------------------

    def push(self, tokens: int | Sequence[dict[str, Any]]) -> None:
        """Push tokens: so many, or these."""
        given = [{"input": ordinal} for ordinal in range(tokens)] if isinstance(tokens, int) else list(tokens)
        push = PicasPushTokensOperator(task_id="push", tokens=given)
        self.pushed = push.execute(context("push", run_id=self.pool.database))

    def command(self, work: str) -> str:
        """Shell text that does ``work`` between two notes."""
        who = (
            '"$PICAS_TOKEN_ID" "$(date +%s.%N)" "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" "${PICAS_FIELD_CLAIM:--}"'
        )
        return f"echo begin {who} >> {self.file}; {work} || exit; echo end {who} >> {self.file}"

    def submit_operator(self, work: str, pilots: int = 2, **arguments: Any) -> PicasSubmitPilotsOperator:
        """The operator; ``pilot`` adds options to those of these tests."""
        options = {"lease": LEASE, **arguments.pop("pilot", {})}
        return PicasSubmitPilotsOperator(
            task_id="pilots", command=self.command(work), batch=self.pushed, ssh_conn_id="spider", pilots=pilots,
            pilot=options, **arguments,
        )  # fmt: skip

    def submit(self, work: str, pilots: int = 2, **arguments: Any) -> None:
        """Submit pilots that do ``work`` for each token."""
        operator = self.submit_operator(work, pilots, **arguments)
        self.submitted = operator.execute(context("pilots", run_id=self.pool.database))

    def wait(self, **arguments: Any) -> None:
        """Begin to wait, in a thread with an event loop, as a triggerer does."""
        self._sensor = PicasTokenStateSensor(
            task_id="wait",
            batch=self.pushed,
            **{
                "pilots": self.submitted,
                "deferrable": True,
                "timeout": 600,
                "pilots_interval": INTERVAL,
                **arguments,
            },
        )
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        assert self._sensor is not None
        method: Callable[..., Any] = self._sensor.execute
        arguments: dict[str, Any] = {}
        while True:
            try:
                self._outcome = method(self.context, **arguments)
                return
            except TaskDeferred as deferred:
                # The trigger travels through the database as JSON, and so does its event.
                _, fields = deferred.trigger.serialize()
                trigger = PicasTokenStateTrigger(**json.loads(json.dumps(fields)))
                payload = asyncio.run(first_event(trigger))
                method = getattr(self._sensor, deferred.method_name)
                arguments = {"event": json.loads(json.dumps(payload)), **(deferred.kwargs or {})}
            except Exception as error:
                self._outcome = error
                return

    def result(self, seconds: float = PATIENCE) -> dict[str, int]:
        """What the wait returned; raises what it raised."""
        assert self._thread is not None
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the wait goes on after {seconds:g} s: {self.states()}; {self.jobs()}"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        outcome: dict[str, int] = self._outcome
        return outcome

    # -- what there is ------------------------------------------------------------------------------------------------

    def lines(self) -> list[Line]:
        """What the commands wrote down so far."""
        found = []
        with suppress(FileNotFoundError):
            for line in self.file.read_text().splitlines():
                words = line.split()
                if len(words) == 5:
                    found.append(Line(words[0] == "end", words[1], float(words[2]), words[3], words[4]))
        return found

    def begun(self) -> Counter[str]:
        """How often each token's command was begun."""
        return Counter(line.token for line in self.lines() if not line.ended)

    def ended(self) -> Counter[str]:
        """How often each token's command ended well."""
        return Counter(line.token for line in self.lines() if line.ended)

    def next_claim(self, tokens: Sequence[str], since: float) -> float:
        """Seconds from a time (since 1970) until all these tokens' commands had begun again. Raises StackError if they do not."""
        first: dict[str, float] = {}

        def all_claimed() -> bool:
            for line in self.lines():
                if line.token in tokens and not line.ended and line.at > since:
                    first.setdefault(line.token, line.at)
            return len(first) == len(tokens)

        processes.wait_for(all_claimed, what=f"The next claim of {', '.join(tokens)}", seconds=PATIENCE)
        return max(first.values()) - since

    def long_token(self) -> tuple[str, str]:
        """The id of the token with a priority, which is claimed first and takes long, once it runs; and its pilot's job."""
        long = next(token["_id"] for token in self.pool.tokens() if token.get("priority"))
        self.until(lambda: self.begun()[long], f"The start of {long}")
        return long, next(line.job for line in self.lines() if line.token == long)

    def states(self) -> Counter[State | None]:
        """How many tokens are in each state."""
        return Counter(state_of(token) for token in self.pool.tokens())

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Wait for something to become true. Raises StackError."""
        processes.wait_for(condition, what=what, seconds=seconds)

    def running(self, tokens: int) -> None:
        """Wait until so many tokens have been begun."""
        self.until(lambda: len(self.begun()) >= tokens, f"The start of {tokens} tokens")

    def job(self, task: int = 0) -> str:
        """The n-th pilot of the array as Slurm calls it."""
        return f"{self.submitted['job_ids'][0]}_{task}"

    def jobs(self) -> str:
        """What squeue says of the submission's jobs."""
        return self.cluster.run("squeue", "--array", "--states=all", "--format=%i %T %N %j").stdout

    def node_of(self, job: str) -> str:
        """The node on which a job runs."""
        return self.cluster.run("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%N").stdout.strip()

    def pids(self, job: str) -> list[int]:
        """The processes of a job's pilots: one, but for requeued jobs. Without their children: before a child executes its
        command, it has its pilot's command line."""
        array, _, task = job.partition("_")
        wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
        found: dict[int, int] = {}  # with their parents
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                pilot = len(words) > 2 and words[2].endswith(f"/{archive.FILE}".encode())
                if pilot and wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        return [pid for pid, parent in found.items() if parent not in found]

    def kill_pilot(self, job: str) -> None:
        """SIGKILL for the job's pilot."""
        (pid,) = self.pids(job)
        os.kill(pid, signal.SIGKILL)

    def cluster_command(self, text: str) -> str:
        """Run shell text on the login node; what it prints."""
        with SlurmHook("spider") as hook:
            output = hook.run(text)
        assert output.code == 0, output.message
        return output.stdout

    def logs(self) -> str:
        """The logs of all pilots."""
        folder = Path(self.submitted["folder"])
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(folder.glob("pilot-*.log")))

    def said_by_each(self, words: str) -> list[int]:
        """How often each pilot has logged these words."""
        folder = Path(self.submitted["folder"])
        return [path.read_text().count(words) for path in sorted(folder.glob("pilot-*.log"))]

    def files(self, kind: str) -> list[Path]:
        """Results in the submission's folder that were not sent (``unsent``), or ``refused``."""
        return sorted((Path(self.submitted["folder"]) / kind).glob("*.json"))

    def history(self) -> tuple[History, Path]:
        """What happened to the tokens and their commands, and the file in which it is kept."""
        lines = self.lines()
        ends = {line.claim: line.at for line in lines if line.ended}
        runs = [
            history.Run(
                line.token, line.claim, line.job, line.at, ends.get(line.claim), 0 if line.claim in ends else None
            )
            for line in lines
            if not line.ended
        ]
        documents = {token["_id"]: token for token in self.pool.tokens()}
        changes = [
            (kind, json.loads(path.read_text())["change"])
            for kind in ("refused", "unsent")
            for path in self.files(kind)
        ]
        kept = [history.Kept(kind, change["token"], change["claim"]) for kind, change in changes]
        found = History(list(documents), documents, runs=runs, kept=kept)
        file = paths.RUN / "histories" / f"{self.pool.database}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        found.save(file)
        return found, file

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check_done_once(self, died_with: Sequence[str] = ()) -> None:
        """All tokens are done, and were run once; those with which a pilot died, at most once for each death."""
        found, file = self.history()
        assert self.states() == {State.DONE: self.pushed["tokens"]}, f"history: {file}\n{self.logs()}"
        assert history.check(found, history.OF_COMMANDS) == [], f"history: {file}"
        allowed = Counter(died_with)
        begun, ended = self.begun(), self.ended()
        for token, document in found.documents.items():
            assert begun[token] <= 1 + allowed[token], (token, begun[token], document, self.logs())
            assert 1 <= ended[token] <= 1 + allowed[token], (token, document)
            assert "pilot" not in document, document

    def close(self) -> None:
        """End what is left of it."""
        if self.submitted and self.submitted["job_ids"]:
            jobs = ",".join(self.submitted["job_ids"])
            self.cluster.run("scancel", *self.submitted["job_ids"])
            # They count as pilots of this user as long as Slurm shows them.
            self.until(
                lambda: not self.cluster.run("squeue", "--noheader", f"--jobs={jobs}").stdout.strip(),
                "The end of the pilots",
            )


async def first_event(trigger: PicasTokenStateTrigger) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")
