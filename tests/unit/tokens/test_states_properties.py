"""Any life of tokens: each is in exactly one state, none is lost, and the counts add up."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.attempts import MAX_ATTEMPTS
from airflow_provider_picas.tokens import counts, documents
from airflow_provider_picas.tokens.push import Action, OnExisting, action_for, of_execution, run_again
from airflow_provider_picas.tokens.selection import Selection, scrubs_of
from airflow_provider_picas.tokens.states import CONDITIONS, State, state_of

KEYS = list("abcdef")
FAILURES = [1, -1, 137, "1", "", "failed", None, 1.5]
SUCCESSES = [0, "0", 0.0, "0 errors"]

keys = st.sets(st.sampled_from(KEYS), min_size=1)
states = st.sets(st.sampled_from([State.LOCKED, State.DONE, State.ERROR]), min_size=1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), keys, st.sampled_from([OnExisting.KEEP, OnExisting.RESET, OnExisting.REPLACE])),
        st.tuples(st.just("claim"), keys, st.booleans()),
        st.tuples(st.just("finish"), keys, st.sampled_from(SUCCESSES)),
        st.tuples(st.just("fail"), keys, st.sampled_from([*FAILURES, "Task.error", "reaped"])),
        st.tuples(st.just("reset"), keys, states),
        st.tuples(st.just("delete"), keys, st.none()),
    ),
    max_size=30,
)


class Lives:
    """Tokens, what is done to them, and what must come of it."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.expected: dict[str, State] = {}
        self.scrubs: Counter[str] = Counter()
        self.time = 1_763_820_000

    def do(self, step: str, chosen: set[str], how: Any) -> None:
        self.time += 1
        for key in sorted(chosen):
            token_id = f"b:{key}"
            if step == "push":
                self.push(token_id, key, how)
            elif token_id in self.tokens:
                getattr(self, step)(token_id, how)

    def push(self, token_id: str, key: str, on_existing: OnExisting) -> None:
        token = documents.new_token({"input": key}, batch="b", push="p", ordinal=KEYS.index(key), key=key)
        wanted = of_execution(token, str(self.time))
        present = self.tokens.get(token_id)
        if present is None:
            self.tokens[token_id], self.expected[token_id] = wanted, State.TODO
            return
        action = action_for(present, wanted, on_existing)
        if action is Action.RESET:
            assert self.expected[token_id] is State.ERROR
            self.tokens[token_id], self.expected[token_id] = run_again(present, wanted), State.TODO
            self.scrubs[token_id] += 1
        elif action is Action.REPLACE:
            assert self.expected[token_id] is not State.LOCKED
            self.tokens[token_id], self.expected[token_id] = wanted, State.TODO
            del self.scrubs[token_id]
        else:
            assert action is Action.KEEP

    def claim(self, token_id: str, ours: bool) -> None:
        if state_of(self.tokens[token_id]) is State.TODO:
            claim = {"pilot": "p", "claim": f"c-{self.time}"} if ours else {"slurm_job_id": "1_2"}
            self.tokens[token_id].update(lock=self.time, hostname="n1", **claim)
            self.expected[token_id] = State.LOCKED

    def finish(self, token_id: str, exit_code: Any) -> None:
        if state_of(self.tokens[token_id]) is State.LOCKED:
            self.tokens[token_id].update(done=self.time, exit_code=exit_code)
            self.expected[token_id] = State.DONE

    def fail(self, token_id: str, how: Any) -> None:
        token = self.tokens[token_id]
        if state_of(token) is not State.LOCKED:
            return
        if how == "reaped":
            self.tokens[token_id] = transitions.errored(token, "its pilot has died too often", self.time)
        elif how == "Task.error":
            errors = [*token.get("error", []), {"time": self.time, "message": "failed"}]
            token.update(lock=99, done=99, error=errors)
        else:
            token.update(done=self.time, exit_code=how)
        self.expected[token_id] = State.ERROR

    def reset(self, token_id: str, asked: set[State]) -> None:
        token = self.tokens[token_id]
        if Selection("b", frozenset(asked)).objection(token, self.time) is None:
            assert self.expected[token_id] in asked
            self.tokens[token_id] = transitions.scrubbed(token, "reset")
            self.expected[token_id] = State.TODO
            self.scrubs[token_id] += 1
        else:
            assert self.expected[token_id] not in asked

    def delete(self, token_id: str, _: None) -> None:
        del self.tokens[token_id], self.expected[token_id], self.scrubs[token_id]

    def check(self) -> None:
        assert {token_id: state_of(token) for token_id, token in self.tokens.items()} == self.expected
        for token_id, token in self.tokens.items():
            fitting = [state for state, table in CONDITIONS.items() if all(c.holds(token) for c in table)]
            assert fitting == [self.expected[token_id]]
            assert scrubs_of(token) == self.scrubs[token_id]
            assert len(token.get("attempts", [])) == min(MAX_ATTEMPTS, self.scrubs[token_id])
            assert token["input"] == token_id.removeprefix("b:")
        counted = counts.of_documents(self.tokens.values())
        assert counted.total == len(self.tokens)
        assert counted.stateless == 0
        assert {state: counted[state] for state in State if counted[state]} == Counter(self.expected.values())


@settings(max_examples=300)
@given(steps)
def test_any_life_leaves_each_token_in_one_state(life: list[tuple[str, set[str], Any]]) -> None:
    lives = Lives()
    for step, chosen, how in life:
        lives.do(step, chosen, how)
        lives.check()
