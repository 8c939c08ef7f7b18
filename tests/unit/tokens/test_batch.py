"""A batch as operators are given it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.tokens.batch import Batch


@pytest.mark.parametrize(
    ("given", "batch"),
    [
        (None, None),
        ("", None),
        ("genomes", Batch("genomes")),
        (Batch("genomes", "pool", 3), Batch("genomes", "pool", 3)),
        ({"database": "pool", "batch": "genomes", "tokens": 3}, Batch("genomes", "pool", 3)),
        ({"batch": "genomes"}, Batch("genomes")),
        ({"batch": "genomes", "tokens": 3, "written": 2}, Batch("genomes", None, 3)),
    ],
)
def test_parse(given: Any, batch: Batch | None) -> None:
    assert Batch.parse(given) == batch


def test_what_is_handed_on_is_read_again() -> None:
    batch = Batch("genomes", "pool", 3)
    assert Batch.parse(batch.as_dict()) == batch


@pytest.mark.parametrize(
    "given", [5, ["genomes"], {}, {"batch": None}, {"batch": "b", "tokens": "3"}, {"batch": "b", "database": 1}]
)
def test_what_is_no_batch_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="output of the push operator"):
        Batch.parse(given)
