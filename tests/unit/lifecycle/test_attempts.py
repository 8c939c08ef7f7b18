"""The attempts that a token keeps, and their kinds, also in the words of the version before."""

from __future__ import annotations

import pytest

from airflow_provider_picas.lifecycle.attempts import MAX_ATTEMPTS, add_attempt, attempts_by_kind, reason_of
from airflow_provider_picas.lifecycle.transitions import for_display


@pytest.mark.parametrize("word", ["given back", "released"])
def test_both_words_for_a_release_are_read(word: str) -> None:
    attempts = [{"reason": f"{word}: x: y", "earlier": {word: 2, "reaped": 1}}, {"reason": f"{word}"}]
    assert attempts_by_kind({"attempts": attempts}) == {"released": 4, "reaped": 1}
    assert [reason_of(attempt) for attempt in attempts] == ["released: x: y", "released"]


def test_dropped_attempts_are_counted_in_the_words_of_the_version_before() -> None:
    """Its pilots may work on the same pool."""
    attempts = [{"reason": "given back: x"}, {"reason": "failed: x"}, *[{"reason": "reaped: x"}] * (MAX_ATTEMPTS - 1)]
    kept = add_attempt({"attempts": attempts}, {"reason": "failed: y"})
    assert kept[0]["earlier"] == {"given back": 1, "failed": 1}
    assert attempts_by_kind({"attempts": kept}) == {"released": 1, "failed": 2, "reaped": MAX_ATTEMPTS - 1}


def test_odd_attempts_are_shown_as_they_are() -> None:
    odd = ["x", None, {"reason": ["given back"]}, {"lock": 1}]
    assert for_display({"attempts": odd}) == {"attempts": odd}
    assert for_display({"attempts": "given back"}) == {"attempts": "given back"}
