"""Foreign text in messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.tokens.text import last_lines, one_line, sample


@given(st.text(max_size=400), st.integers(2, 300))
def test_one_line_is_one_bounded_line(text: str, length: int) -> None:
    shown = one_line(text, length)
    assert shown.isprintable() or shown == ""
    assert len(shown) <= length


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"]), max_size=200))
def test_plain_text_is_kept(text: str) -> None:
    assert one_line(text) == text


def test_a_sample_says_how_many_more() -> None:
    assert sample([1, 2, 3]) == "1, 2, 3"
    assert sample(list(range(7))) == "0, 1, 2, 3, 4 and 2 more"
    assert sample(["a"], total=1_000_001) == "a and 1,000,000 more"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("::group::x", ": :group::x"), ("::endgroup::", ": :endgroup::"), ("::::group::", "::: :group::"), ("a::b", "a::b"),
        ("\x1b[2J", "\\x1b[2J"), ("\u202egnp", "\\u202egnp"), ("\u2028", "\\u2028"),
    ],
)  # fmt: skip
def test_text_cannot_command_a_terminal_or_airflows_log(text: str, safe: str) -> None:
    assert one_line(text) == safe


def test_the_last_lines_are_kept() -> None:
    assert (
        last_lines("x" * 1_000 + "\r\n\x1b[31mred\n::group::\nend", 40) == "x" * 16 + "\n\\x1b[31mred\n: :group::\nend"
    )
    assert last_lines("a" * 2_000, 1_000) == "a" * 499 + "…"
