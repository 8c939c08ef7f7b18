"""What a person is asked before failed tokens run again."""

from __future__ import annotations

import pytest

from airflow_provider_picas.operators.rerun import code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exit code 3", "` exit code 3 `"),
        ("a `b` ``c``", "``` a `b` ``c`` ```"),
        ("[x](javascript:1)\n# <b>", "` [x](javascript:1)\\n# <b> `"),
    ],
)
def test_foreign_text_is_code(text: str, expected: str) -> None:
    assert code(text) == expected
