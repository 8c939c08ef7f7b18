"""Counts by state, the error budget, and completeness."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.tokens import counts
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.states import State, state_of
from tests.odd_tokens import odd_tokens

NUMBERS = st.integers(0, 1_000_000)
COUNTS = st.builds(Counts, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)


def test_rows_of_one_state_add_up() -> None:
    found = counts.from_rows([("todo", 1), (None, 2), ("done", 3), ("todo", 4), (State.ERROR, 5)])
    assert found == Counts(todo=5, done=3, error=5, stateless=2)
    assert (found.total, found.finished, found[State.TODO]) == (15, 8, 5)


def test_documents_are_counted_by_state() -> None:
    documents = list(odd_tokens(500))
    found = counts.of_documents(documents)
    assert found.total == 500
    assert found.error == sum(state_of(document) is State.ERROR for document in documents)


@given(COUNTS)
def test_counts_survive_json(found: Counts) -> None:
    assert Counts(**json.loads(json.dumps(found.as_dict()))) == found


def test_further_names_are_counted_within_their_states() -> None:
    rows: list[tuple[counts.Key, int]] = [("locked", 30), (("locked", "downloading"), 12), ("todo", 2)]
    found = counts.from_rows([*rows, (("locked", "a\x1b[2J"), 1)])
    assert (found.locked, found.total) == (30, 32)
    assert str(found) == "2 todo, 30 locked (1 a\\x1b[2J, 12 downloading), 0 done, 0 error"
    assert Counts(**json.loads(json.dumps(found.as_dict()))) == found
    assert found + counts.from_rows(rows) == counts.from_rows([*rows, *rows, (("locked", "a\x1b[2J"), 1)])
    assert "named" not in Counts(1).as_dict()


def test_counts_are_printed() -> None:
    assert str(Counts(1, 2, 3, 4)) == "1 todo, 2 locked, 3 done, 4 error"
    assert str(Counts(stateless=5)) == "0 todo, 0 locked, 0 done, 0 error, 5 in no state"


@pytest.mark.parametrize(
    ("limit", "total", "allowed"),
    [
        (0, 100, 0), (0.0, 100, 0), (3, 100, 3), (3, 2, 3), (0.1, 100, 10), (0.1, 9, 0), (0.29, 100, 29), (0.07, 100, 7),
        (0.999, 1000, 999), (1, 100, 1), (1.0, 100, 1), (20.0, 100, 20), (0.5, 0, 0),
    ],
)  # fmt: skip
def test_error_budgets_are_parsed(limit: float, total: int, allowed: int) -> None:
    budget = ErrorBudget(limit)
    assert budget.allowed(total) == allowed
    assert not budget.spent(Counts(error=allowed), total)
    assert budget.spent(Counts(error=allowed + 1), total)


@pytest.mark.parametrize("limit", [-1, -0.1, 1.5, float("nan"), float("inf"), True, "3", None])
def test_a_budget_that_makes_no_sense_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="max_errors"):
        ErrorBudget(limit)


@pytest.mark.parametrize(
    ("found", "expected", "complete", "missing", "stuck"),
    [
        (Counts(done=10), 10, True, 0, False),
        (Counts(done=7, error=3), 10, True, 0, False),
        (Counts(done=9, todo=1), 10, False, 0, False),
        (Counts(done=9, locked=1), 10, False, 0, False),
        (Counts(done=9), 10, False, 1, True),
        (Counts(done=9, stateless=1), 10, False, 0, True),
        (Counts(done=8, todo=1), 10, False, 1, False),
        (Counts(done=11), 10, True, 0, False),  # on a batch that was there already
        (Counts(), 0, True, 0, False),
        (Counts(), 3, False, 3, True),
        (Counts(done=5, error=5), None, True, 0, False),
        (Counts(done=5, todo=5), None, False, 0, False),
        (Counts(done=5, stateless=1), None, False, 0, True),
        (Counts(), None, True, 0, False),
    ],
)
def test_completeness_compares_with_the_expected_number(
    found: Counts, expected: int | None, complete: bool, missing: int, stuck: bool
) -> None:
    completeness = Completeness(found, expected)
    assert (completeness.complete, completeness.missing, completeness.stuck) == (complete, missing, stuck)


@given(COUNTS, st.one_of(st.none(), NUMBERS))
def test_a_batch_is_never_both_complete_and_stuck(found: Counts, expected: int | None) -> None:
    completeness = Completeness(found, expected)
    assert not (completeness.complete and completeness.stuck)
    if found.todo or found.locked:
        assert not completeness.stuck


def test_finished_tokens_of_an_earlier_run_do_not_complete_a_batch() -> None:
    assert not Completeness(Counts(todo=3, done=5), expected=3).complete
    assert not Completeness(Counts(locked=1, done=5), expected=3).complete
    assert Completeness(Counts(done=7, error=1), expected=3).complete
