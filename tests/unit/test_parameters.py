"""Arguments that a template may have rendered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_picas.parameters import (
    flag,
    number_above_zero,
    optional_positive_number,
    optional_seconds,
    positive_number,
    whole_number,
)


@pytest.mark.parametrize("value", [True, "True", "true", " YES ", "on", "1", 1])
def test_words_for_true_are_true(value: Any) -> None:
    assert flag("dry_run", value) is True


@pytest.mark.parametrize("value", [False, "False", "no", "OFF", "0", 0, None, "None", ""])
def test_words_for_false_are_false(value: Any) -> None:
    assert flag("dry_run", value) is False


@pytest.mark.parametrize("value", ["ja", "y", "2", 2, [], {"a": 1}, "tru"])
def test_other_words_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`dry_run` is .*; it takes true or false"):
        flag("dry_run", value)


@pytest.mark.parametrize(("value", "number"), [(1, 1), ("7", 7), (3.0, 3), (" 12 ", 12)])
def test_positive_numbers_are_read(value: Any, number: int) -> None:
    assert positive_number("pilots", value) == number
    assert optional_positive_number("pilots", value) == number


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1.5", "x", [], float("inf"), float("nan")])
def test_other_numbers_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`pilots` is .*; it takes a whole number from 1"):
        positive_number("pilots", value)


@pytest.mark.parametrize("value", [None, "", "None"])
def test_none_and_empty_are_none(value: Any) -> None:
    assert optional_positive_number("max_pilots", value) is None
    assert optional_seconds("max_lock_age", value) is None


@pytest.mark.parametrize("value", [-1, 10, True, 1.5, "x", None])
def test_numbers_out_of_bounds_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`max_scrubs` is .*; it takes a whole number from 0 to 9"):
        whole_number("max_scrubs", value, most=9)


@pytest.mark.parametrize(("value", "seconds"), [(0, 0), ("7.5", 7.5), (timedelta(minutes=2), 120)])
def test_seconds_are_read(value: Any, seconds: float) -> None:
    assert optional_seconds("older_than", value) == seconds


@pytest.mark.parametrize("value", [-1, "soon", "nan", True, [], timedelta(seconds=-1)])
def test_other_seconds_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`older_than` is .*; it takes a number of seconds, or a timedelta"):
        optional_seconds("older_than", value)


@pytest.mark.parametrize("value", [0, -1, True, "x", None, float("nan")])
def test_numbers_that_are_not_above_zero_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`tokens_per_pilot` is .*; it takes a number above 0"):
        number_above_zero("tokens_per_pilot", value)
