"""Results in files of the submission's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot.outbox import Outbox


def test_a_change_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    change = Change("done", "b:1", "abc-1000", 1000, {"done": 1, "output": deep})
    with pytest.raises(RecursionError):
        Outbox(str(tmp_path), "d").keep(change)
    assert list((tmp_path / "unsent").iterdir()) == []
