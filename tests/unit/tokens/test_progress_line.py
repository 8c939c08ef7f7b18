"""The lines in a wait's log: their content and when they are logged."""

from __future__ import annotations

import pytest

from airflow_provider_picas.slurm.jobs import Job, pilots
from airflow_provider_picas.tokens.counts import Completeness, Counts
from airflow_provider_picas.tokens.progress_line import ProgressLines, Rate, line, rate_text, time_left


def some(done: int = 0, locked: int = 0, error: int = 0, total: int = 500) -> Completeness:
    return Completeness(Counts(total - done - locked - error, locked, done, error), total)


def measured(*samples: tuple[float, int], locked: int = 5) -> Rate:
    rate = Rate()
    for now, finished in samples:
        rate.note(some(finished, locked).counts, now)
    return rate


def jobs(*states: str, reason: str = "None") -> list[Job]:
    return [Job(str(number), state, reason=reason) for number, state in enumerate(states)]


def test_a_line_has_all_parts() -> None:
    rate = measured((0, 0), (300, 70), (522, 122))
    seen = pilots([*jobs(*["RUNNING"] * 6), *jobs("PENDING", "PENDING", reason="Priority")])
    assert line(some(120, 30, 2), rate, seen) == (
        "120 of 500 done, 2 in error, 30 running, 348 to do; 14/min, about 27 min left; 6 pilots running, 2 pending (Priority)"
    )


@pytest.mark.parametrize(
    ("completeness", "expected"),
    [
        (some(total=3), "0 of 3 done, 3 to do"),
        (some(3, total=3), "3 of 3 done"),
        (Completeness(Counts(done=1, stateless=1), 4), "1 of 4 done, 1 in no state, 2 missing"),
        (some(1_200, total=1_000_000), "1,200 of 1,000,000 done, 998,800 to do"),
    ],
)
def test_what_is_not_known_is_not_said(completeness: Completeness, expected: str) -> None:
    assert line(completeness) == expected
    assert line(completeness, Rate()) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "no pilots in Slurm"),
        (jobs("RUNNING"), "1 pilot running"),
        (jobs("COMPLETED"), "the pilot has ended"),
        (jobs("COMPLETED", "FAILED"), "all 2 pilots have ended"),
        (jobs("PENDING", "RUNNING", "COMPLETING", "TIMEOUT"), "1 pilot running, 1 completing, 1 pending, 1 ended"),
        (jobs("PENDING", "PENDING", reason="QOSMaxJobsPerUserLimit"), "2 pilots pending (QOSMaxJobsPerUserLimit)"),
        (
            [*jobs("PENDING", reason="Resources"), *jobs("PENDING", "PENDING", reason="Priority")],
            "3 pilots pending (Priority, Resources)",
        ),
        (jobs("PENDING", reason="\x1b[31m" + "x" * 500), f"1 pilot pending (\\x1b[31m{'x' * 51}…)"),
    ],
)
def test_pilots_in_the_words_of_slurm(given: list[Job], expected: str) -> None:
    assert pilots(given).text == expected


@pytest.mark.parametrize(
    ("per_second", "expected"),
    [(250, "250/s"), (1.26, "1.3/s"), (0.23, "14/min"), (1 / 600, "6/h"), (1 / 7200, "12/day")],
)
def test_rates_have_a_fitting_unit(per_second: float, expected: str) -> None:
    assert rate_text(per_second) == expected


class TestTimeLeft:
    def test_few_tokens_give_a_range_and_many_a_number(self) -> None:
        counts = some(100, 10).counts
        assert time_left(counts, 0.2, 4) == "about 22 to 67 min left"
        assert time_left(counts, 0.2, 100) == "about 33 min left"

    @pytest.mark.parametrize(
        ("per_second", "expected"),
        [(100, "4 s"), (4, "1.7 min"), (0.04, "2.8 h"), (0.001, "4.6 days")],
    )
    def test_units_fit_the_number(self, per_second: float, expected: str) -> None:
        assert time_left(some(100, 10).counts, per_second, 100) == f"about {expected} left"

    def test_it_is_not_known_while_no_token_runs_or_the_last_ones_do(self) -> None:
        assert time_left(some(100).counts, 1, 100) is None
        assert time_left(some(490, 10).counts, 1, 100) is None


class TestRate:
    def test_it_takes_three_tokens(self) -> None:
        assert measured((0, 0), (10, 2)).measure() is None
        assert measured((0, 0), (10, 3)).measure() == (0.3, 3)

    def test_the_time_before_the_first_token_runs_does_not_count(self) -> None:
        rate = measured((0, 0), (3600, 0), locked=0)
        rate.note(some(0, 5).counts, 3605)
        rate.note(some(6, 5).counts, 3660)
        assert rate.measure() == (6 / 60, 6)

    def test_nor_does_a_time_without_pilots(self) -> None:
        rate = measured((0, 0), (60, 60))
        for now in range(70, 7200, 10):
            rate.note(some(60).counts, now)
        assert rate.measure() is None
        rate.note(some(66, 5).counts, 7260)
        assert rate.measure() == (6 / 70, 6)

    def test_the_last_minutes_count_if_enough_tokens_have_finished_in_them(self) -> None:
        rate = measured(
            *((t, t // 60) for t in range(0, 3600, 10)), *((t, 60 + (t - 3600)) for t in range(3600, 4200, 10))
        )
        assert rate.measure() == (1.0, 300)

    def test_a_reset_begins_it_anew(self) -> None:
        assert measured((0, 0), (100, 100), (200, 50)).measure() is None

    def test_it_is_of_limited_size(self) -> None:
        rate = measured(*((float(t), t) for t in range(20_000)))
        assert len(rate._samples) <= 241
        assert rate.measure() == pytest.approx((1.0, 300), rel=0.5)

    def test_a_wait_that_remembers_nothing_has_that_since_the_pilots_started(self) -> None:
        rate = Rate()
        rate.begin(-600.0, 10)
        rate.note(some(70, 5).counts, 0.0)
        assert rate.measure() == (0.1, 60)


class TestWhen:
    def times(self, seconds: int) -> list[int]:
        lines = ProgressLines()
        return [now for now in range(seconds) if lines.next(some(), None, float(now))]

    def test_often_at_first_then_less_often(self) -> None:
        assert self.times(1400) == [0, 10, 20, 30, 40, 50, 60, 120, 240, 480, 780, 1080, 1380]

    def test_it_says_when_the_next_one_is_due(self) -> None:
        lines = ProgressLines()
        assert lines.remaining(0.0) == float("inf")
        lines.next(some(), None, 0.0)
        assert lines.remaining(4.0) == 6.0
        assert lines.remaining(14.0) == 0.0

    def test_at_once_when_something_happens_for_the_first_time(self) -> None:
        lines, now, said = ProgressLines(), 1000.0, []
        steps = [some(), some(0, 2), some(1, 2), some(2, 2), some(1, 2, 1), some(250, 2), some(498, 2)]
        lines.next(steps[0], None, 0.0)
        lines.next(steps[0], None, now)
        for number, step in enumerate(steps):
            said += [text.partition(":")[0] for text in [lines.next(step, None, now + number)] if text]
        assert said == [
            "First token running",
            "First token done",
            "First error",
            "Half finished",
            "Last tokens running",
        ]

    def test_what_was_so_from_the_start_is_not_an_event(self) -> None:
        assert ProgressLines().next(some(300, 10, 2), pilots(jobs("RUNNING")), 0.0) == (
            "300 of 500 done, 2 in error, 10 running, 188 to do; 1 pilot running"
        )

    def test_at_once_when_the_pilots_become_known(self) -> None:
        lines, seen = ProgressLines(), pilots(jobs("RUNNING"))
        texts = [lines.next(some(), known, now) for known, now in ((None, 0.0), (seen, 1.0), (seen, 2.0), (None, 3.0))]
        assert texts == ["0 of 500 done, 500 to do", "0 of 500 done, 500 to do; 1 pilot running", None, None]

    def test_several_events_at_once(self) -> None:
        lines = ProgressLines()
        lines.next(some(total=1), None, 0.0)
        assert (
            lines.next(some(1, total=1), None, 1.0)
            == "First token running, first token done, half finished: 1 of 1 done"
        )

    def test_the_end_of_all_pilots_each_time(self) -> None:
        lines = ProgressLines()
        lines.next(some(), pilots(jobs("RUNNING")), 0.0)
        texts = [
            lines.next(some(), pilots(jobs(state)), 1.0) for state in ("COMPLETED", "COMPLETED", "RUNNING", "FAILED")
        ]
        ended = "All pilots have ended: 0 of 500 done, 500 to do; the pilot has ended"
        assert texts == [ended, None, None, ended]
