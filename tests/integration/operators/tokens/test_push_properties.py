"""Any sequence of pushes, with what pilots do in between, leaves every token once, in one state, and counts that add up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airflow_provider_picas.couchdb import http
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.push import OnExisting, PushReport
from airflow_provider_picas.tokens.states import State, state_of
from stack import native
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.faults import Fault, Proxy

KEYS = st.lists(st.sampled_from("abcdef"), unique=True, min_size=1)
PUSHES = st.sampled_from(["p1", "p2"])
_BATCHES = count()


class Losing(Proxy):
    """Loses the answer of a bulk write: the ``lose``th to come."""

    lose = 0

    def fault_of(self, request: str) -> Fault | int | None:
        if "_bulk_docs" in request:
            self.lose -= 1
            if self.lose == 0:
                return Fault.LOSE
        return super().fault_of(request)


class Pushes(RuleBasedStateMachine):
    """A batch, and what should be in it: for each token its state, who pushed it and what it holds."""

    hook: PicasHook
    behind_proxy: PicasHook
    proxy: Losing

    def __init__(self) -> None:
        super().__init__()
        self.batch = f"b{next(_BATCHES)}"
        self.states: dict[str, State] = {}
        self.values: dict[str, int] = {}

    @initialize()
    def views(self) -> None:
        self.hook.deploy_views()

    def documents(self, keys: list[str], push: str, value: int) -> Iterator[dict[str, Any]]:
        for ordinal, key in enumerate(keys):
            yield new_token({"input": value}, batch=self.batch, push=push, ordinal=ordinal, key=key)

    @rule(keys=KEYS, push=PUSHES, value=st.integers(0, 1), how=st.sampled_from(["keep", "reset", "replace"]))
    def push(self, keys: list[str], push: str, value: int, how: str) -> None:
        report = self.hook.push(self.documents(keys, push, value), on_existing=how)
        assert report.tokens == len(keys)
        assert report.written == len([key for key in keys if key not in self.states])
        done = [key for key in keys if self.states.get(key) is State.DONE]
        assert report.done == (0 if how == "replace" else len(done))
        for key in keys:
            self._pushed(key, value, OnExisting(how))

    def _pushed(self, key: str, value: int, how: OnExisting) -> None:
        state = self.states.get(key)
        again = state is State.ERROR and how is OnExisting.RESET
        anew = state is not State.LOCKED and how is OnExisting.REPLACE
        if state is None or again or anew:
            self.states[key], self.values[key] = State.TODO, value

    @rule(keys=KEYS, value=st.integers(0, 1), how=st.sampled_from(["keep", "reset", "replace"]))
    def two_tries_at_once(self, keys: list[str], value: int, how: str) -> None:
        reports: list[PushReport] = []

        def push() -> None:
            reports.append(self.hook.push(self.documents(keys, "p1", value), on_existing=how))

        tries = [threading.Thread(target=push) for _ in range(2)]
        for each in tries:
            each.start()
        for each in tries:
            each.join()
        assert [report.tokens for report in reports] == [len(keys)] * 2
        assert sum(report.written for report in reports) == len([key for key in keys if key not in self.states])
        assert sum(report.reset for report in reports) == len(
            [key for key in keys if how == "reset" and self.states.get(key) is State.ERROR]
        )
        for key in keys:
            self._pushed(key, value, OnExisting(how))

    @rule(
        keys=KEYS,
        push=PUSHES,
        value=st.integers(0, 1),
        how=st.sampled_from(["keep", "reset", "replace"]),
        lose=st.integers(1, 2),
        ends=st.lists(st.sampled_from([State.LOCKED, State.DONE, State.ERROR]), min_size=6, max_size=6),
    )
    def pilots_are_faster_than_an_answer(
        self, keys: list[str], push: str, value: int, how: str, lose: int, ends: list[State]
    ) -> None:
        new = [key for key in keys if key not in self.states]
        before = {key: self.hook.get(f"{self.batch}:{key}")["push"] for key in keys if key not in new}
        ended: dict[str, State] = {}

        def pilots() -> None:
            for key, end in zip(keys, ends, strict=False):
                if (token := self.written(key)) and token["push"] != before.get(key) and state_of(token) is State.TODO:
                    lives.change(self.hook, token["_id"], **lives.LIVES[end])
                    ended[key] = end

        self.proxy.lose, self.proxy.meanwhile = lose, pilots
        report = self.behind_proxy.push(self.documents(keys, push, value), on_existing=how)
        self.proxy.lose = 0
        assert (report.tokens, report.written) == (len(keys), len(new))
        for key in keys:
            self._pushed(key, value, OnExisting(how))
        self.states.update(ended)

    def written(self, key: str) -> dict[str, Any] | None:
        """The token, if it is there."""
        return self.hook.do(self.hook.pool.fetch([f"{self.batch}:{key}"])).get(f"{self.batch}:{key}")

    @precondition(lambda self: {State.TODO, State.LOCKED} & set(self.states.values()))
    @rule(data=st.data(), state=st.sampled_from([State.LOCKED, State.DONE, State.ERROR, State.ERROR]))
    def a_pilot_works(self, data: st.DataObject, state: State) -> None:
        before = (State.TODO,) if state is State.LOCKED else (State.TODO, State.LOCKED)
        keys = sorted(key for key, found in self.states.items() if found in before)
        assume(keys)
        key = data.draw(st.sampled_from(keys))
        lives.change(self.hook, f"{self.batch}:{key}", **lives.LIVES[state])
        self.states[key] = state

    @invariant()
    def every_token_is_there_once_as_it_should_be(self) -> None:
        found = {token["_id"].partition(":")[2]: token for token in self.hook.batch_documents(self.batch)}
        assert {key: state_of(token) for key, token in found.items()} == self.states
        assert {key: token["input"] for key, token in found.items()} == self.values

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.hook.count(self.batch)
        for state in State:
            assert counts[state] == list(self.states.values()).count(state)
        assert counts.total == len(self.states)


@pytest.mark.timeout(600)
def test_any_sequence_of_pushes_leaves_every_token_once(
    picas_default: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)
    Pushes.hook = PicasHook(picas_default)
    with Losing(pool.url) as proxy:
        fields = {**native.picas_connection(pool), "host": proxy.url}
        Pushes.proxy, Pushes.behind_proxy = proxy, PicasHook(set_connection(monkeypatch, "behind_proxy", fields))
        run_state_machine_as_test(
            Pushes,
            settings=settings(
                max_examples=25,
                stateful_step_count=20,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],  # to find a shorter sequence that fails takes minutes
            ),
        )
