"""All that pilots, tokens and the database can do, within bounds: docs/explanation/lifecycle.md says what this shows.

Each scenario is explored to its end. ``test_planted_faults.py`` shows that faults would be found.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.model import operations
from tests.model.explorer import Result, explore
from tests.model.pilots import Pilots

SCENARIOS: dict[str, dict[str, Any]] = {
    "claims": {"claims": 2, "tokens": 2},
    "three pilots": {"claims": 3, "pilots": 3},
    "a killed pilot": {"claims": 3, "kills": 1, "failures": 1},
    "a killed pilot with two tokens": {"claims": 2, "kills": 1, "tokens": 2},
    "lost requests": {"claims": 2, "network": 2, "failures": 1},
    "a stopped pilot": {"claims": 3, "stops": 1, "unsent": 1},
    "a killed pilot with a result in a file": {"claims": 2, "kills": 1, "secured": 1},
    "a result in a file, and lost requests": {"claims": 1, "secured": 1, "network": 1},
    "a clock that steps": {"claims": 2, "kills": 1, "clocks": 1},
    "a frozen pilot": {"claims": 2, "freezes": 1},
    "a pilot that is cut off": {"claims": 2, "partitions": 1},
    "a node that is cut off": {"claims": 2, "cluster": True, "cuts": 1, "timeless": True},
    "a node that is cut off, and other winners": {"claims": 2, "cluster": True, "cuts": 1, "timeless": True, "salt": "x"},
    "a node that is cut off, and lost requests": {
        "claims": 1, "cluster": True, "cuts": 1, "timeless": True, "network": 1
    },
    "a node that is cut off, and a pilot that reaps": {
        "claims": 1, "cluster": True, "cuts": 1, "serial": True, "reapers": "b"
    },
}  # fmt: skip


def explored(scenario: dict[str, Any], *, liveness: bool = True) -> Result:
    with operations.real_code():
        return explore(Pilots(**scenario), most=150_000, liveness=liveness)


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_or_done_twice_and_the_work_can_be_completed(name: str) -> None:
    result = explored(SCENARIOS[name])
    print(f"\n{name}: {result}")
    assert not result.violation, result
    assert result.complete, "the scenario shows nothing"
