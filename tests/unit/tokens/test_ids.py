"""Ids of batches and tokens."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.lifecycle.ids import id_range
from airflow_provider_picas.tokens import ids

NAMES = st.text(max_size=300)


@given(NAMES, NAMES, NAMES, NAMES, st.integers(-1, 10_000))
def test_a_push_id_is_stable_and_fits(deployment: str, dag: str, run: str, task: str, index: int) -> None:
    one = ids.push_id(deployment, dag, run, task, index)
    assert one == ids.push_id(deployment, dag, run, task, index)
    assert ids.TOKEN_ID.fullmatch(ids.token_id(one, ids.ordinal_key(99_999_999)))
    assert ":" not in one
    assert ids.batch_id(one) == one


def test_a_push_id_can_be_read() -> None:
    pushed = ids.push_id("airflow", "word_count", "manual__2026-01-01T00:00:00+00:00", "push")
    assert pushed.startswith("word_count.push.manual__2026-01-01T00_00_00_00_00-")


@pytest.mark.parametrize(
    "other",
    [
        ("other", "dag", "run", "task", -1),
        ("here", "dag2", "run", "task", -1),
        ("here", "dag", "run2", "task", -1),
        ("here", "dag", "run", "task2", -1),
        ("here", "dag", "run", "task", 0),
        ("here", "da", "grun", "task", -1),
        ("here", "dag", "r:n", "task", -1),
    ],
)
def test_each_part_tells_push_ids_apart(other: tuple[str, str, str, str, int]) -> None:
    assert ids.push_id(*other) != ids.push_id("here", "dag", "run", "task", -1)


def test_push_ids_that_read_alike_differ() -> None:
    assert ids.push_id("here", "dag", "r+n", "task") != ids.push_id("here", "dag", "r n", "task")
    long = "x" * 200
    assert ids.push_id("here", "dag", f"{long}1", "task") != ids.push_id("here", "dag", f"{long}2", "task")


@given(st.text(min_size=1, max_size=300))
def test_a_batch_id_fits_and_stays(name: str) -> None:
    batch = ids.batch_id(name)
    assert ids.TOKEN_ID.fullmatch(ids.token_id(batch, ids.ordinal_key(0)))
    assert ":" not in batch
    assert ids.batch_id(batch) == batch


@pytest.mark.parametrize(("name", "batch"), [("genomes-2026.1", "genomes-2026.1"), ("A_b", "A_b"), ("7", "7")])
def test_a_batch_name_that_fits_is_kept(name: str, batch: str) -> None:
    assert ids.batch_id(name) == batch


def test_batch_names_that_read_alike_differ() -> None:
    assert len({ids.batch_id(name) for name in ("a b", "a/b", "a:b", "a  b", "_a_b")}) == 5


@pytest.mark.parametrize("name", ["a:b", "a:", ":a", "-a", "a b", "é", "a\n", "x" * 121])
def test_a_batch_name_that_does_not_fit_is_changed(name: str) -> None:
    batch = ids.batch_id(name)
    assert batch != name
    assert ":" not in batch
    assert ids.TOKEN_ID.fullmatch(batch)


def test_a_digest_tells_its_parts_apart() -> None:
    assert len({ids.digest(*parts) for parts in (("a", "b"), ("a\0b",), ("ab",), ("a", "", "b"), ("b", "a"))}) == 5


def test_an_empty_batch_name_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        ids.batch_id("")


@given(st.one_of(st.text(min_size=1, max_size=300), st.integers()))
def test_a_token_key_fits_in_any_batch(key: str | int) -> None:
    assert ids.TOKEN_ID.fullmatch(ids.token_id("b" * ids.BATCH_LENGTH, ids.token_key(key)))


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=20, unique=True))
def test_different_keys_stay_different(keys: list[str]) -> None:
    assert len({ids.token_key(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("key", [None, True, "", 1.5, ["a"], {}])
def test_what_is_not_a_key_is_refused(key: object) -> None:
    with pytest.raises(ValueError, match="non-empty string or a whole number"):
        ids.token_key(key)


def test_numbered_keys_sort_as_they_were_pushed() -> None:
    keys = [ids.ordinal_key(number) for number in range(0, 2_000_000, 9_999)]
    assert keys == sorted(keys)


def test_the_range_of_a_batch_holds_its_ids_and_no_others_in_code_point_order() -> None:
    first, last = id_range("batch")
    keys = [ids.token_id("batch", key) for key in ("0", "zzz", "~"[:0] + "Z.-_:", ids.ordinal_key(5))]
    assert all(first < key < last for key in keys)
    others = [f"batch{char}x" for char in string.ascii_letters + string.digits + "._-"]
    assert not any(first < key < last for key in others)


def test_case_tells_batches_apart() -> None:
    assert ids.in_batch("Batch:1", "Batch")
    assert not ids.in_batch("batch:1", "Batch")
    assert not ids.in_batch("Batch2:1", "Batch")
