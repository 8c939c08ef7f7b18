"""Resource classes of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.lifecycle.classes import class_name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "//"),
        ({"cores": 4}, "4//"),
        ({"cores": 4.0, "gpu": "a/100", "time": 30}, "4/a100/30"),
        ({"cores": True, "gpu": None, "time": 0.5}, "//0.5"),
    ],
)
def test_resource_classes_are_named_as_in_the_view(fields: dict[str, Any], name: str) -> None:
    assert class_name(fields) == name
