"""The pauses between tries, which the pilot and the provider share."""

from __future__ import annotations

from airflow_provider_picas.lifecycle.backoff import Backoff, growing_pause

EXACT = (1.0, 1.0)


def test_pauses_grow_to_the_longest() -> None:
    backoff = Backoff(2.0, 15.0, jitter=EXACT)
    assert [backoff.pause() for _ in range(5)] == [2, 4, 8, 15, 15]
    backoff.reset()
    assert (backoff.pause(), backoff.tries) == (2, 1)


def test_a_backoff_gives_up_after_the_last_try() -> None:
    backoff = Backoff(1.0, 8.0, most=3, jitter=EXACT)
    assert [backoff.again() for _ in range(3)] == [1, 2, None]


def test_a_pause_may_have_to_be_longer() -> None:
    backoff = Backoff(2.0, 120.0, jitter=EXACT)
    assert [backoff.pause(30.0) for _ in range(6)] == [30, 30, 30, 30, 32, 64]


def test_jitter() -> None:
    pauses = [growing_pause(3, 1.0, 10.0) for _ in range(100)]
    assert all(2 <= pause <= 6 for pause in pauses)
    assert len(set(pauses)) > 50


def test_a_large_number_of_tries() -> None:
    assert growing_pause(10_000, 0.2, 15.0, EXACT) == 15
