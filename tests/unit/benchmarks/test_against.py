"""Two versions are compared by the results that both have."""

from __future__ import annotations

import pytest

from benchmarks.against import compare


def test_a_result_that_one_version_lacks_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    after = [{"push (second)": 1.0, "new (second)": 2.0}, {"push (second)": 1.02, "new (second)": 2.0}]
    before = [{"push (second)": 1.0, "old (second)": 3.0}, {"push (second)": 1.0, "old (second)": 3.0}]
    assert not compare("push", after, before)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "push: push (second) 1.010 (1.00 to 1.02)",
        "push: new (second) only HEAD has it",
        "push: old (second) only the earlier version has it",
    ]


def test_a_slower_result_fails() -> None:
    assert compare("push", [{"push (second)": 1.06}], [{"push (second)": 1.0}])
