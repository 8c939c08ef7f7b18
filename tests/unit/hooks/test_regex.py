"""Patterns of authors: invalid regular expressions, and those that run for ever."""

from __future__ import annotations

import time

import pytest

from airflow_provider_picas.hooks import regex
from airflow_provider_picas.hooks.regex import PatternError


def test_patterns_are_searched_in_texts() -> None:
    texts = ["exit code 1\nNo such file: é", "killed", "", "line\nend\ud800"]
    assert regex.search(r"No such|^end", texts) == [True, False, False, True]
    assert regex.search(r"exit code 1$", texts) == [True, False, False, False]
    assert regex.search(r"x", []) == []


@pytest.mark.parametrize("bad", ["(", "*a", "[a", "(?P<a>x)(?P<a>y)", "a{99999999999}", "x" * 1_001, 5, None])
def test_an_invalid_pattern_is_refused(bad: str) -> None:
    with pytest.raises(PatternError, match="error pattern"):
        regex.check(bad)


def test_a_pattern_that_takes_for_ever_ends() -> None:
    begun = time.monotonic()
    with pytest.raises(PatternError, match=r"took more than 0\.5 s for 2 tokens"):
        regex.search(r"(a+)+$", ["short", "a" * 64 + "b"], seconds=0.5)
    assert time.monotonic() - begun < 10
