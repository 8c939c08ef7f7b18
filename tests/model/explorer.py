"""Explores all states that a model can reach, breadth first, so that a violation comes with a shortest way to it.

A model has ``initial``, a state, and ``steps``, which names and makes the next states of a state. States are hashable. Nothing
in here knows what they mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

State = Hashable
LONGEST_WAY = 120  # steps without faults after which the work should be done


class Model(Protocol):
    """What can be explored."""

    def initial(self) -> State:
        """The first state."""

    def steps(self, state: Any) -> Iterable[tuple[str, State]]:
        """The next states, each with the name of the step."""

    def violations(self, state: Any) -> Iterator[str]:
        """What must not be, in this state."""

    def is_complete(self, state: Any) -> bool:
        """Whether the work is done."""

    def recover(self, state: Any) -> State | None:
        """A next state without further faults, on the way to the end of the work; None if there is none."""


@dataclass
class Result:
    """What was explored."""

    states: int = 0
    steps: int = 0
    depth: int = 0
    complete: int = 0  #: states in which the work is done
    recovered: int = 0  #: states outside of the explored ones, on the ways to the end of the work
    violation: str = ""  #: the first one; empty: none
    trace: list[str] = field(default_factory=list)  #: the steps that lead to it

    def __str__(self) -> str:
        text = f"{self.states:,} states, {self.steps:,} steps, depth {self.depth}, {self.complete:,} complete"
        return text + (f"\n{self.violation}, after:\n  " + "\n  ".join(self.trace) if self.violation else "")


class TooManyStatesError(AssertionError):
    """The state space is larger than expected: nothing was shown."""


def explore(model: Model, most: int = 2_000_000, liveness: bool = True) -> Result:
    """Explore a model until a violation is found, or all states are known. Raises TooManyStatesError."""
    first = model.initial()
    parents: dict[State, tuple[State, str] | None] = {first: None}
    predecessors: dict[State, list[State]] = {}
    queue = deque([(first, 0)])
    result, done = Result(), []
    while queue:
        state, depth = queue.popleft()
        result.states, result.depth = result.states + 1, depth
        for violation in model.violations(state):
            return _violated(result, violation, parents, state)
        if model.is_complete(state):
            done.append(state)
        for name, after in model.steps(state):
            result.steps += 1
            if liveness:
                predecessors.setdefault(after, []).append(state)
            if after not in parents:
                if len(parents) >= most:
                    raise TooManyStatesError(f"more than {most:,} states: {result}")
                parents[after] = state, name
                queue.append((after, depth + 1))
    result.complete = len(done)
    if liveness:
        _check_completion(model, parents, predecessors, done, result)
    return result


def _violated(result: Result, violation: str, parents: Any, state: State) -> Result:
    result.violation, result.trace = violation, trace(parents, state)
    return result


def trace(parents: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    """The names of the steps from the first state to this one."""
    names = []
    while (step := parents.get(state)) is not None:
        state, name = step
        names.append(name)
    return names[::-1]


def _check_completion(
    model: Model, parents: Any, predecessors: dict[State, list[State]], done: list[State], result: Result
) -> None:
    """From each state the work can be completed: by steps that were explored, or by ``recover``, without the model's bounds."""
    good = set(done)
    _spread(good, done, predecessors)
    for state in parents:
        if state in good:
            continue
        path, now = [], state
        while now is not None and now not in good and now not in path and len(path) < LONGEST_WAY:
            path.append(now)
            now = state if model.is_complete(now) else model.recover(now)
            if now is state and model.is_complete(path[-1]):
                break
        if not (now in good or model.is_complete(path[-1])):
            _violated(result, f"the work cannot be completed ({len(path)} steps were tried)", parents, state)
            return
        result.recovered += sum(one not in parents for one in path)
        good.update(path)
        _spread(good, path, predecessors)


def _spread(good: set[State], found: Iterable[State], predecessors: dict[State, list[State]]) -> None:
    todo = list(found)
    while todo:
        for before in predecessors.get(todo.pop(), ()):
            if before not in good:
                good.add(before)
                todo.append(before)


_KNOWN: list[dict[Any, Any]] = []


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the results of a function of hashable arguments, until ``forget``."""
    known: dict[tuple[Any, ...], Any] = {}
    _KNOWN.append(known)

    def call(*arguments: Any) -> Any:
        found = known.get(arguments)
        if found is None:
            found = known[arguments] = function(*arguments)
        return found

    return call


def forget() -> None:
    """Forget all remembered results: the code that made them has changed."""
    for known in _KNOWN:
        known.clear()
