"""The model of one submission: tries of a task that submit it, or find out whether it was submitted.

Each try runs the provider's own operation, ``sbatch_calls.settle``, one command after the other. What is modelled is the login
node, sbatch and Slurm's controller: sbatch may be killed with the login node, its request may arrive late, its answer
may be lost, and the controller may not answer. A request may be on its way for ``MessageTimeout`` seconds in which the
controller answers. A step of time is ``STEP`` seconds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from airflow_provider_picas.slurm import sbatch_calls, sbatch_record
from airflow_provider_picas.slurm.remote import Command, Output, Pause, RemoteError
from tests.model.explorer import cached, forget

STEP = 5.0
TIMEOUT = 2  # steps: MessageTimeout
FOLDER, KEY = "/home/folder", "picas-key"


class Sbatch(NamedTuple):
    """A running sbatch. ``attempt``: how often the call had been given up when it was started."""

    attempt: int
    age: int = 0
    asked: bool = False  #: its request has reached the controller


class Cluster(NamedTuple):
    """The folder, and Slurm. ``code`` and ``out``: of the call that is not given up."""

    started: bool = False
    age: int = 0
    code: int | None = None
    out: str = ""
    given_up: int = 0
    sbatch: tuple[Sbatch, ...] = ()
    late: int = 0  #: steps for which a request may be on its way whose sbatch is gone
    jobs: int = 0  #: that were made
    answers: bool = True  #: the controller answers


class Try(NamedTuple):
    """A try of the task. ``answers``: to the commands of its operation. ``pause``: it waits for a step of time."""

    answers: tuple[Output, ...] = ()
    pause: bool = False
    ended: str = ""


class State(NamedTuple):
    """Everything. The last four: what may still happen."""

    cluster: Cluster
    tries: tuple[Try, ...]
    kills: int
    silences: int
    crashes: int
    steps: int


class _End(NamedTuple):
    how: str


@contextmanager
def short_times() -> Iterator[None]:
    """The waits of the code in steps of time: of sbatch one, of a try six."""
    with (
        mock.patch.object(sbatch_calls, "POLL_INTERVAL", STEP),
        mock.patch.object(sbatch_calls, "SETTLE_WAIT", 6 * STEP),
        mock.patch.object(sbatch_record, "SBATCH_LIMIT", STEP),
    ):
        forget()
        yield
    forget()


def _resume(answers: tuple[Output, ...]) -> tuple[Any, Any]:
    operation = sbatch_calls.settle(FOLDER, KEY)
    try:
        step: Any = next(operation)
        for answer in answers:
            step = operation.send(answer)
    except StopIteration as end:
        step = _End("job " + ",".join(end.value.job_ids))
    except RemoteError as error:
        step = _End(f"error: {error}")
    return operation, step


@cached
def run(answers: tuple[Output, ...]) -> Any:
    """The next step of the operation after these answers, or its end."""
    return _resume(answers)[1]


@cached
def position(answers: tuple[Output, ...]) -> str:
    """Where the operation is after these answers, with all that it remembers: the local variables of its generators."""
    operation, step = _resume(answers)
    frames = [repr(step)]
    while operation is not None and (frame := operation.gi_frame) is not None:
        frames.append(f"{operation.__name__} {frame.f_lasti} {sorted(frame.f_locals.items())!r}")
        operation = operation.gi_yieldfrom
    return "\n".join(frames)


class Submissions:
    """The model. ``kills``: tries whose worker is killed; ``silences``: of the controller; ``crashes``: of the login node."""

    def __init__(self, tries: int = 2, kills: int = 1, silences: int = 1, crashes: int = 1, steps: int = 6) -> None:
        self._known: dict[str, tuple[Output, ...]] = {}  # by position: the first answers that lead to it
        self._first = State(Cluster(), (Try(),) * tries, kills, silences, crashes, steps)

    def initial(self) -> State:
        return self._first

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for number, one in enumerate(state.tries):
            if not one.ended:
                for name, cluster, after in self._commands(state.cluster, one):
                    yield f"try {number}: {name}", self._with(state, number, after)._replace(cluster=cluster)
                if state.kills:
                    killed = self._with(state, number, Try())  # the next try of the task begins at once
                    yield f"try {number} is killed", killed._replace(kills=state.kills - 1)
        for name, cluster in self._slurm(state.cluster):
            yield name, state._replace(cluster=cluster)
        yield from self._faults(state)
        if state.steps and (after := self._passed(state)) is not None:
            yield "time passes", after._replace(steps=state.steps - 1)

    @staticmethod
    def _with(state: State, number: int, one: Try) -> State:
        tries = tuple(one if place == number else other for place, other in enumerate(state.tries))
        return state._replace(tries=tuple(sorted(tries, key=repr)))  # they are alike

    def _shortest(self, answers: tuple[Output, ...]) -> tuple[Output, ...]:
        return self._known.setdefault(position(answers), answers)

    # -- commands of a try --------------------------------------------------------------------------------------------

    def _commands(self, cluster: Cluster, one: Try) -> Iterator[tuple[str, Cluster, Try]]:
        step = run(one.answers)
        if isinstance(step, _End):
            yield step.how, cluster, Try(ended=step.how)
        elif isinstance(step, Pause):
            if not one.pause:
                yield "pauses", cluster, one._replace(pause=True)
        else:
            name, after, output = self._carry_out(cluster, step)
            yield name, after, one._replace(answers=self._shortest((*one.answers, output)))

    def _carry_out(self, cluster: Cluster, command: Command) -> tuple[str, Cluster, Output]:
        text = command.text
        if "setsid" in text:
            after = self._start(cluster)
            return "starts", after, self._record(after)
        if "--states=all" in text:
            listed = "".join(f"{100 + number}|{KEY}\n" for number in range(cluster.jobs))
            return "queries jobs", cluster, Output(0, listed) if cluster.answers else Output(5)
        if "MessageTimeout" in text:
            return "reads MessageTimeout", cluster, Output(0, f"{TIMEOUT * STEP:.0f}\n")
        if "given-up" in text and "mv -T" in text:
            return "gives up", self._give_up(cluster, int(text.rpartition(".")[2])), Output(0)
        if "mkdir -p started" in text:
            job = text.partition("echo ")[2].split()[0]
            return "records the job", cluster._replace(started=True, code=0, out=job), Output(0)
        if "scancel" in text:
            return "cancels others", cluster, Output(0)  # a second job is a violation already
        assert sbatch_record.READ in text, text
        return "reads the record", cluster, self._record(cluster)

    @staticmethod
    def _start(cluster: Cluster) -> Cluster:
        if cluster.started:
            return cluster
        running = (*cluster.sbatch, Sbatch(cluster.given_up))
        return cluster._replace(started=True, age=0, code=None, out="", sbatch=running)

    @staticmethod
    def _give_up(cluster: Cluster, number: int) -> Cluster:
        if not cluster.started or cluster.given_up > number:
            return cluster  # another try was faster
        return cluster._replace(started=False, age=0, code=None, out="", given_up=number + 1)

    @staticmethod
    def _record(cluster: Cluster) -> Output:
        code = "-" if cluster.code is None else cluster.code
        age = int(cluster.age * STEP)
        error = base64.b64encode(b"" if cluster.code in (None, 0) else b"Socket timed out").decode()
        lines = [
            "since 1000",
            f"call {'yes' if cluster.started else 'no'} {code} {age} {cluster.given_up}",
            f"out {base64.b64encode(cluster.out.encode()).decode()}",
            f"err {error}",
        ]
        return Output(0, "\n".join(lines))

    # -- Slurm --------------------------------------------------------------------------------------------------------

    def _slurm(self, cluster: Cluster) -> Iterator[tuple[str, Cluster]]:
        for one in cluster.sbatch:
            rest = tuple(other for other in cluster.sbatch if other != one)
            if not one.asked:
                made = cluster._replace(jobs=cluster.jobs + 1, sbatch=(*rest, one._replace(asked=True)))
                yield "the controller makes a job", made
            else:
                yield "sbatch prints the job", self._ended(cluster, one, rest, 0, str(99 + cluster.jobs))
            failed = self._ended(cluster, one, rest, 1, "")
            yield "sbatch times out", failed if one.asked else failed._replace(late=TIMEOUT)
        if cluster.late:
            yield "a late request makes a job", cluster._replace(late=0, jobs=cluster.jobs + 1)

    @staticmethod
    def _ended(cluster: Cluster, one: Sbatch, rest: tuple[Sbatch, ...], code: int, out: str) -> Cluster:
        after = cluster._replace(sbatch=rest)
        if one.attempt != cluster.given_up or cluster.code is not None:
            return after  # the folder was moved, or the job was recorded
        return after._replace(code=code, out=out)

    def _faults(self, state: State) -> Iterator[tuple[str, State]]:
        cluster = state.cluster
        if state.silences and cluster.answers:
            yield (
                "the controller falls silent",
                state._replace(silences=state.silences - 1, cluster=cluster._replace(answers=False)),
            )
        if not cluster.answers:
            yield "the controller answers again", state._replace(cluster=cluster._replace(answers=True))
        if state.crashes and cluster.sbatch:
            late = any(not one.asked for one in cluster.sbatch)
            after = cluster._replace(sbatch=(), late=TIMEOUT if late else cluster.late)
            yield "the login node crashes", state._replace(crashes=state.crashes - 1, cluster=after)

    def _passed(self, state: State) -> State | None:
        """After a step of time; None if sbatch has to end before, at its limit."""
        cluster = state.cluster
        if any(one.age >= 2 for one in cluster.sbatch):
            return None
        if cluster.answers and cluster.late:
            cluster = cluster._replace(late=cluster.late - 1)
        older = tuple(one._replace(age=one.age + 1) for one in cluster.sbatch)
        cluster = cluster._replace(age=min(4, cluster.age + 1) if cluster.started else 0, sbatch=older)
        tries = tuple(
            one._replace(pause=False, answers=self._shortest((*one.answers, Output(0)))) if one.pause else one
            for one in state.tries
        )
        return state._replace(cluster=cluster, tries=tuple(sorted(tries, key=repr)))

    # -- what must hold -----------------------------------------------------------------------------------------------

    def violations(self, state: State) -> Iterator[str]:
        """A submission is never made twice, and a try never reports a job that is not the submission's."""
        if state.cluster.jobs > 1:
            yield "the submission was made twice"
        for one in state.tries:
            if one.ended.startswith("job") and (one.ended != "job 100" or not state.cluster.jobs):
                yield f"a try reports {one.ended!r}, and {state.cluster.jobs} jobs were made"

    def is_complete(self, state: State) -> bool:
        return any(one.ended.startswith("job") for one in state.tries)

    def recover(self, state: State) -> State | None:
        """Further, with a new try where all have ended, without faults."""
        quiet = state._replace(kills=0, silences=0, crashes=0, steps=1)
        if not state.cluster.answers:
            return quiet._replace(steps=state.steps, cluster=state.cluster._replace(answers=True))
        if all(one.ended for one in state.tries):
            return quiet._replace(steps=state.steps, tries=(Try(), *state.tries[1:]))
        after = next((after for name, after in self.steps(quiet) if not name.startswith("sbatch times out")))
        return after._replace(steps=state.steps)
