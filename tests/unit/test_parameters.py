"""What templates make of arguments."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.parameters import flag, optional_positive_number, positive_number


@pytest.mark.parametrize("value", [True, "True", "true", " YES ", "on", "1", 1])
def test_on(value: Any) -> None:
    assert flag("dry_run", value) is True


@pytest.mark.parametrize("value", [False, "False", "no", "OFF", "0", 0, None, "None", ""])
def test_off(value: Any) -> None:
    assert flag("dry_run", value) is False


@pytest.mark.parametrize("value", ["ja", "y", "2", 2, [], {"a": 1}, "tru"])
def test_other_words_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`dry_run` is .*; it takes true or false"):
        flag("dry_run", value)


@pytest.mark.parametrize(("value", "number"), [(1, 1), ("7", 7), (3.0, 3), (" 12 ", 12)])
def test_positive_numbers(value: Any, number: int) -> None:
    assert positive_number("pilots", value) == number
    assert optional_positive_number("pilots", value) == number


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1.5", "x", [], float("inf"), float("nan")])
def test_other_numbers_are_errors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`pilots` is .*; it takes a whole number from 1"):
        positive_number("pilots", value)


@pytest.mark.parametrize("value", [None, "", "None"])
def test_no_number(value: Any) -> None:
    assert optional_positive_number("max_pilots", value) is None
