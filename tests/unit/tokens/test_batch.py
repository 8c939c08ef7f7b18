"""Batches, as operators get them."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.nativetypes import NativeEnvironment

from airflow_provider_picas.tokens.batch import Batch, label


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
def test_batches_are_parsed(given: Any, batch: Batch | None) -> None:
    assert Batch.parse(given) == batch


def test_what_is_handed_on_is_read_again() -> None:
    batch = Batch("genomes", "pool", 3)
    assert Batch.parse(batch.as_dict()) == batch


@pytest.mark.parametrize(
    "given", [5, ["genomes"], {}, {"batch": None}, {"batch": "b", "tokens": "3"}, {"batch": "b", "database": 1}]
)
def test_invalid_batches_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="output of the push operator"):
        Batch.parse(given)


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("genomes", ["a"], "genomes"),
        (None, ["a", "b"], "a, b"),
        (None, ["a", {"input": "b"}, {"cores": 2}, "d", "e"], "a, b, {'cores': 2} and 2 more"),
        (None, ["x" * 100], "x" * 19 + "…"),
        (None, "s3://bucket/folder/genomes.csv", "genomes.csv"),
        (None, iter([]), "tokens"),
        (None, lambda: [], "tokens"),
        (None, [], "tokens"),
        ("2026", None, "tokens 2026"),
        (None, [1, 2, 3], "tokens 1, 2, 3"),
        (None, ["None"], "tokens None"),
        (None, ["a\nb"], "a\\nb"),
    ],
)
def test_a_label_is_a_short_string_whatever_renders_it(name: str | None, given: Any, shown: str) -> None:
    made = label(name, given)
    assert made == shown
    assert len(made) <= 60
    assert NativeEnvironment().from_string("{{ made }}").render(made=made) == made
