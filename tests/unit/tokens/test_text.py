"""Foreign text in messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.tokens.text import one_line, sample


@given(st.text(max_size=400), st.integers(2, 300))
def test_one_line_is_one_bounded_line(text: str, length: int) -> None:
    shown = one_line(text, length)
    assert shown.isprintable() or shown == ""
    assert len(shown) <= length


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"]), max_size=200))
def test_plain_text_is_kept(text: str) -> None:
    assert one_line(text) == text


def test_a_sample_tells_how_many_more() -> None:
    assert sample([1, 2, 3]) == "1, 2, 3"
    assert sample(list(range(7))) == "0, 1, 2, 3, 4 and 2 more"
    assert sample(["a"], total=1_000_001) == "a and 1,000,000 more"
