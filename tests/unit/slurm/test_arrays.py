"""How many pilots of which class are submitted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.slurm import arrays
from airflow_provider_picas.slurm.arrays import Array
from airflow_provider_picas.slurm.sbatch import OptionError


@pytest.mark.parametrize(
    ("name", "given_options", "options"),
    [
        ("//", {"partition": "normal"}, {"partition": "normal"}),
        ("4//", {}, {"cpus-per-task": 4}),
        ("4//", {"cpus_per_task": 1}, {"cpus-per-task": 4}),
        ("0/0/0", {"time": "10"}, {"time": "10"}),
        ("/1/", {}, {"gres": "gpu:1"}),
        ("/a100:2/", {}, {"gres": "gpu:a100:2"}),
        ("//60", {}, {"time": 65}),
        ("//60.0", {}, {"time": 65}),
        ("//60", {"time": "00:10:00"}, {"time": 65}),
        ("//60", {"time": "02:00:00"}, {"time": "02:00:00"}),
        ("//60", {"time": "UNLIMITED"}, {"time": "UNLIMITED"}),
        ("2/1/30", {"mem": "4G"}, {"mem": "4G", "cpus-per-task": 2, "gres": "gpu:1", "time": 35}),
    ],
)
def test_a_class_becomes_sbatch_options(name: str, given_options: dict[str, Any], options: dict[str, Any]) -> None:
    assert arrays.class_options(name, given_options) == options


@pytest.mark.parametrize(
    "name", ["", "4", "x//", "-1//", "/a b/", "/$(id)/", "//1e9", "4//60//", "999999//", "/;reboot/"]
)
def test_a_class_that_is_nothing_to_sbatch(name: str) -> None:
    with pytest.raises(OptionError, match="Tokens request cores/gpu/time"):
        arrays.class_options(name, {})


@given(st.text(max_size=20))
def test_whatever_a_token_says_only_words_of_sbatchs_come_out(name: str) -> None:
    try:
        options = arrays.class_options(name, {})
    except OptionError:
        return
    assert set(options) <= {"cpus-per-task", "gres", "time"}
    assert all(isinstance(value, int) or str(value).removeprefix("gpu:").replace(":", "").replace("_", "").isalnum()
               for value in options.values())  # fmt: skip


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("5", 5), ("5:30", 5.5), ("01:30:00", 90), ("1-0", 1440), ("1-2", 1560), ("1-02:30", 1590), ("1-02:30:30", 1590.5),
        ("UNLIMITED", math.inf), ("infinite", math.inf),
    ],
)  # fmt: skip
def test_slurms_times_are_parsed(text: str, minutes: float) -> None:
    assert arrays.minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1 hour"])
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="'time'"):
        arrays.minutes_of(text)


def test_a_cap_on_running_pilots_is_shared_out() -> None:
    made = [Array(8), Array(4), Array(1)]
    assert arrays.running_limits(made, None) == [None, None, None]
    assert sum(number or 0 for number in arrays.running_limits(made, 6)) == 6
    assert min(number or 0 for number in arrays.running_limits(made, 6)) == 1
    assert arrays.running_limits(made, 2) == [1, 1, 1]
    assert arrays.running_limits([Array(None)], 3) == [1]


def test_pilots_are_computed_from_tokens() -> None:
    assert arrays.pilots_for(0, 10, None) == 0
    assert arrays.pilots_for(1, 10, None) == 1
    assert arrays.pilots_for(101, 10, None) == 11
    assert arrays.pilots_for(101, 10, 5) == 5
    assert arrays.pilots_for(3, 0.5, None) == 6


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 50), max_size=6),
    st.none() | st.integers(-3, 60),
)
def test_room_is_shared_between_classes(wanted: dict[str, int], room: int | None) -> None:
    """Never more than there is room for, nor than is wanted; all of the room if so much is wanted; none for nothing."""
    given_room = arrays.share(wanted, room)
    total = sum(wanted.values())
    assert all(0 < number <= wanted[name] for name, number in given_room.items())
    if room is None or total <= room:
        assert given_room == {name: number for name, number in wanted.items() if number}
    else:
        assert sum(given_room.values()) <= max(0, room)
        classes = sum(number > 0 for number in wanted.values())
        if room >= classes:
            assert len(given_room) == classes, "each class gets a pilot while that fits"
        assert sum(given_room.values()) == max(0, room)
