"""Any lives of tokens on a real pool, with two writers at once: one state each, none lost, counts that add up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.attempts import MAX_ATTEMPTS
from airflow_provider_picas.tokens import counts
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.push import OnExisting
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State, state_of
from tests.integration import lives

KEYS = list("abcdef")
WRITERS = (0, 1)
FAILURES = (1, "137", "", None)

keys = st.sets(st.sampled_from(KEYS), min_size=1)
writers = st.sampled_from(WRITERS)
asked_states = st.sets(st.sampled_from([State.LOCKED, State.DONE, State.ERROR]), min_size=1)


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    hook = PicasHook(picas_default)
    hook.deploy_views()
    return hook


def wanted(batch: str, chosen: set[str]) -> Iterator[dict[str, Any]]:
    """New tokens with these keys."""
    for key in sorted(chosen):
        yield new_token({"input": key}, batch=batch, push="p", ordinal=KEYS.index(key), key=key)


class TwoWriters(RuleBasedStateMachine):
    """Two pilots that hold tokens, and tasks that push, reset and delete meanwhile; ``expected`` is what must come of it."""

    hook: PicasHook
    examples = 0

    @initialize()
    def empty_batch(self) -> None:
        type(self).examples += 1
        self.batch = f"b{self.examples}"
        self.expected: dict[str, State] = {}
        self.scrubs: Counter[str] = Counter()
        self.held: dict[tuple[int, str], dict[str, Any]] = {}  # tokens that a writer has claimed, as it knows them
        self.holder: dict[str, int] = {}  # the writer whose claim stands

    @rule(chosen=keys, on_existing=st.sampled_from([OnExisting.KEEP, OnExisting.RESET, OnExisting.REPLACE]))
    def push(self, chosen: set[str], on_existing: OnExisting) -> None:
        report = self.hook.push(wanted(self.batch, chosen), on_existing=on_existing)
        for key in chosen:
            if key not in self.expected or (
                on_existing is OnExisting.REPLACE and self.expected[key] in (State.DONE, State.ERROR)
            ):
                self.expected[key] = State.TODO
                del self.scrubs[key]
            elif on_existing is OnExisting.RESET and self.expected[key] is State.ERROR:
                self.scrub(key)
        assert report.tokens == len(chosen)

    @rule(writer=writers, key=st.sampled_from(KEYS))
    def claim(self, writer: int, key: str) -> None:
        if self.expected.get(key) is State.TODO:
            token = {**self.hook.get(f"{self.batch}:{key}"), **lives.LIVES[State.LOCKED]}
            token["_rev"] = self.hook.do(self.hook.pool.put(token))
            self.held[writer, key] = token
            self.expected[key], self.holder[key] = State.LOCKED, writer

    @precondition(lambda self: self.held)
    @rule(data=st.data(), exit_code=st.sampled_from([0, "0", *FAILURES]))
    def end(self, data: st.DataObject, exit_code: Any) -> None:
        writer, key = data.draw(st.sampled_from(sorted(self.held)))
        token = {**self.held.pop((writer, key)), "done": lives.NOW + 60, "exit_code": exit_code}
        try:
            self.hook.do(self.hook.pool.put(token))
        except errors.ConflictError:
            assert self.holder.get(key) != writer  # it was reset, or deleted, meanwhile
        else:
            assert self.holder.pop(key) == writer
            self.expected[key] = State.DONE if exit_code in (0, "0") else State.ERROR

    @rule(asked=asked_states, chosen=st.none() | keys)
    def reset(self, asked: set[State], chosen: set[str] | None) -> None:
        if not self.expected:
            return
        report = self.hook.editor.reset(Selection.parse(self.batch, states=asked, keys=chosen))
        given_back = [key for key, state in self.expected.items() if state in asked and (not chosen or key in chosen)]
        for key in given_back:
            self.scrub(key)
        assert report.changed == len(given_back)
        left = len(set(chosen or self.expected) - set(given_back))
        assert sum(part.tokens for part in report.skipped.values()) == left

    @rule(chosen=keys)
    def delete(self, chosen: set[str]) -> None:
        tokens = list(self.hook.editor.select(Selection.parse(self.batch, keys=chosen)))
        assert self.hook.editor.delete((token["_id"], token["_rev"]) for token in tokens).changed == len(tokens)
        for key in chosen & set(self.expected):
            del self.expected[key], self.scrubs[key]
            self.holder.pop(key, None)

    def scrub(self, key: str) -> None:
        self.expected[key] = State.TODO
        self.scrubs[key] += 1
        self.holder.pop(key, None)

    @invariant()
    def each_in_one_state_and_none_lost(self) -> None:
        if not hasattr(self, "batch"):
            return
        tokens = {token["_id"].partition(":")[2]: token for token in self.hook.batch_documents(self.batch)}
        assert {key: state_of(token) for key, token in tokens.items()} == self.expected
        assert self.hook.count(self.batch) == counts.of_documents(tokens.values())
        for key, token in tokens.items():
            assert token["scrub_count"] == self.scrubs[key]
            assert len(token.get("attempts", [])) == min(MAX_ATTEMPTS, self.scrubs[key])


def test_any_lives_with_two_writers(hook: PicasHook) -> None:
    machine = type("Machine", (TwoWriters,), {"hook": hook})
    few = settings(max_examples=15, stateful_step_count=20, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=few)


class Writer:
    """Does any of it, in a thread of its own, and counts the tokens and attempts that must be there in the end."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)
        self.hook = PicasHook()
        self.tokens = 0
        self.scrubs = 0

    def work(self) -> None:
        for _ in range(40):
            self.chance.choice([self.push, self.push, self.run, self.run, self.run, self.reset, self.delete])()

    def chosen(self) -> set[str]:
        return set(self.chance.sample(KEYS, self.chance.randint(1, len(KEYS))))

    def push(self) -> None:
        report = self.hook.push(wanted("b", self.chosen()), on_existing=self.chance.choice(["keep", "reset"]))
        self.tokens += report.written
        self.scrubs += report.reset

    def run(self) -> None:
        waiting = list(self.hook.tokens("todo", "b"))
        end = self.chance.choice([lives.LIVES[State.DONE], lives.LIVES[State.ERROR], None])
        if not waiting:
            return
        token = {**self.chance.choice(waiting), **lives.LIVES[State.LOCKED]}
        try:
            token["_rev"] = self.hook.do(self.hook.pool.put(token))
            if end:
                self.hook.do(self.hook.pool.put({**token, **end}))
        except errors.ConflictError:
            pass  # the other writer has it, or has reset or deleted it

    def reset(self) -> None:
        states = self.chance.choice([["error"], ["error", "locked"], ["done"]])
        self.scrubs += self.hook.editor.reset(Selection.parse("b", states=states, keys=self.chosen())).changed

    def delete(self) -> None:
        tokens = list(self.hook.editor.select(Selection.parse("b", keys=self.chosen())))[:2]
        scrubs = {token["_id"]: token["scrub_count"] for token in tokens}
        report = self.hook.editor.delete((token["_id"], token["_rev"]) for token in tokens)
        self.tokens -= report.changed
        self.scrubs -= sum(scrubs[token_id] for token_id in report.changed_ids)


@pytest.mark.parametrize("seed", range(2))
def test_two_writers_at_the_same_time(hook: PicasHook, seed: int) -> None:
    """Whatever came first, the sums are right in the end."""
    lives.fill(hook, {State.DONE: 1})  # so that the batch is never empty
    pair = [Writer(f"{seed} {number}") for number in WRITERS]
    with ThreadPoolExecutor(len(pair)) as threads:
        for result in [threads.submit(writer.work) for writer in pair]:
            result.result()
    tokens = list(hook.batch_documents("b"))
    assert len(tokens) == 1 + sum(writer.tokens for writer in pair)
    assert all(state_of(token) for token in tokens)
    assert sum(token["scrub_count"] for token in tokens) == sum(writer.scrubs for writer in pair)
    assert all(len(token.get("attempts", [])) == min(MAX_ATTEMPTS, token["scrub_count"]) for token in tokens)
    assert hook.count("b") == counts.of_documents(tokens)
