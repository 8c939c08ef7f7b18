"""The attempts that a token keeps, and their kinds, also in the words of the version before."""

from __future__ import annotations

import pytest

from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.attempts import (
    MAX_ATTEMPTS,
    add_attempt,
    attempt_number,
    attempts_by_kind,
    reason_of,
)
from airflow_provider_picas.lifecycle.transitions import (
    Token,
    conclude,
    for_display,
    reap,
)
from airflow_provider_picas.tokens.states import State, state_of
from tests.unit.lifecycle.claimed import CONFIG, claimed, failed


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


def test_attempts_count_since_the_last_reset() -> None:
    reasons = ["failed: x", "reaped: y", "pushed again", "failed: x", "NODE_FAIL", "given back: told to", "failed: z"]
    doc = {"attempts": [{"reason": reason} for reason in reasons]}
    assert attempts_by_kind(doc) == {"failed": 2, "reaped": 1, "released": 1}
    assert attempts_by_kind({"attempts": "nonsense"}) == {}


def test_attempt_numbers_are_not_used_twice() -> None:
    assert attempt_number({}) == 1
    assert attempt_number({"attempts": [{}, {}]}) == 3
    logs = {"attempt-7.err": {}, "attempt-x.out": {}, "attempt-99.txt": {}, "attempt-9.out\n": {}}
    assert attempt_number({"attempts": [{}], "_attachments": logs}) == 8


def test_attempts_that_are_not_kept_any_more_still_count() -> None:
    """Else a token that fails, and whose pilots die, in turns would never come to its limits."""
    config, ends = CONFIG._replace(max_retries=9, max_scrubs=20), {"failed": 0, "died": 0}
    doc = claimed(attempts=[{"reason": "failed: x"}] * 20 + [{"reason": "reset: by hand"}])
    while state_of(doc) is State.LOCKED and sum(ends.values()) < 99:
        died = sum(ends.values()) % 3 != 0
        ends["died" if died else "failed"] += 1
        change = reap(doc, "x", 20, 1010) if died else conclude(Token(doc), failed(), config, 1010)
        doc = change.apply()
        assert len(doc["attempts"]) <= 10
        doc = {**claimed(), **doc, "lock": 1000} if state_of(doc) is State.TODO else doc
    assert ends == {"failed": 10, "died": 18}


def test_pilots_that_die_are_counted_beyond_ten_and_anew_after_a_reset() -> None:
    doc, deaths = claimed(), 0
    while state_of(doc) is State.LOCKED and deaths < 99:
        doc, deaths = reap(doc, "x", 15, 1010).apply(), deaths + 1
        doc = {**claimed(), **doc, "lock": 1000} if state_of(doc) is State.TODO else doc
    assert deaths == 16
    assert "16 pilots died" in doc["error"][-1]["message"]
    assert attempts_by_kind(transitions.scrubbed(doc, "reset: by hand")) == {}


def test_at_most_ten_attempts_and_their_logs_are_kept() -> None:
    stubs = {f"attempt-{n}.out": {"stub": True} for n in range(1, 16)} | {"data.bin": {"stub": True}}
    doc = claimed(attempts=[{"reason": "pushed again", "n": n} for n in range(10)], _attachments=stubs)
    config = CONFIG._replace(max_retries=1)
    new = conclude(Token(doc), failed(out=b"x"), config, 1010).apply()
    assert [attempt.get("n") for attempt in new["attempts"]] == [*range(1, 10), None]
    assert set(new["_attachments"]) == {"data.bin", *(f"attempt-{n}.out" for n in range(6, 17))}
