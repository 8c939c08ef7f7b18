"""The states of a token, as the pilot checks them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.lifecycle.states import is_todo
from airflow_provider_picas.tokens.states import State, state_of


@pytest.mark.parametrize(
    ("lock", "done"), [(0, 0), ("0", 0), (False, 0), (1, 0), (0, 1), (None, 0), (0, None), ("x", 0)]
)
def test_todo_is_what_the_views_say(lock: Any, done: Any) -> None:
    doc = {"_id": "a", "type": "token", "lock": lock, "done": done}
    assert is_todo(doc) is (state_of(doc) is State.TODO)
    assert not is_todo({**doc, "type": "other"})
