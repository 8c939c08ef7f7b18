"""What ``pilot.json`` may hold, and what is said of anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.exit_codes import EX_CONFIG, Failed
from airflow_provider_picas.lifecycle.pilot_config import _CHECKS, Config, parse_config


def test_defaults_are_valid_and_every_key_is_checked() -> None:
    config = parse_config('{"command": ["a"], "submission": "s", "batch": null}')
    assert config == Config(command=["a"], submission="s")
    assert parse_config(json.dumps(config._asdict())) == config
    assert set(_CHECKS) == set(Config._fields)


@pytest.mark.parametrize(
    "keys",
    [
        {"command": ""},
        {"command": []},
        {"command": ["a", 1]},
        {"slots": 0},
        {"slots": 1.5},
        {"slots": True},
        {"lease": "120"},
        {"lease": 1},
        {"lease": float("nan")},
        {"lease": float("inf")},
        {"lease": None},
        {"classes": []},
        {"files": ["../x"]},
        {"files": [".."]},
        {"max_retries": 10},
        {"stop_exit_codes": ["1"]},
        {"time_limit": 0},
        {"batch": 7},
        {"no_such_key": 1},
    ],
)
def test_an_error_in_the_configuration_names_the_key(keys: dict[str, Any]) -> None:
    with pytest.raises(Failed, match=next(iter(keys))) as caught:
        parse_config(json.dumps({"command": "a", "submission": "s", **keys}))
    assert caught.value.code == EX_CONFIG


@pytest.mark.parametrize("text", ["", "[]", "{", '{"command": "a"}', '{"submission": "a"}'])
def test_a_file_that_is_not_a_configuration_is_refused(text: str) -> None:
    with pytest.raises(Failed):
        parse_config(text)
