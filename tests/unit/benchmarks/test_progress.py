"""The speed of a run is taken from its middle."""

from __future__ import annotations

import pytest

from benchmarks.peers.progress import Progress, speed


def test_neither_the_start_nor_the_end_counts() -> None:
    readings = [
        Progress(0.0, 0, 0.0),
        Progress(10.0, 0, 5.0),  # the workers start
        Progress(11.0, 10, 6.0),
        Progress(13.0, 90, 8.0),
        Progress(20.0, 100, 9.0),  # seen late
    ]
    assert speed(readings, idle=0.5) == (40.0, pytest.approx(1 / 80))


def test_a_pause_after_the_last_results_that_were_written_together_does_not_count() -> None:
    readings = [Progress(float(second), done, 0.0) for second, done in enumerate([0, 1, 1, 61, 61, 121, 121, 121, 180])]
    assert speed(readings, idle=0.0).rate == 30.0


def test_too_few_readings_are_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="Too few readings"):
        speed([Progress(0.0, 0, 0.0), Progress(1.0, 50, 1.0), Progress(2.0, 100, 2.0)], idle=0.0)
