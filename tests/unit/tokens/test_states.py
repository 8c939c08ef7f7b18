"""The table of states, read as Python and run as the views' JavaScript."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_picas.tokens import states, views
from airflow_provider_picas.tokens.states import State, state_of
from stack.couchdb import node
from tests.odd_tokens import ABSENT, odd_tokens, token

# Runs all views over each line of documents, and answers with one line: for each document the names of the views of Monitor
# that emit a row, the keys of overview_total, the state in the key of counts, and whether stateless emits.
RUN_VIEWS = """
const views = JSON.parse(process.argv[1]);
let rows;
const emit = (key, value) => rows.push([key, value]);
const compiled = views.map(([name, source]) => [name, eval(`(${source})`)]);
const rowsOf = (map, doc) => { rows = []; map(doc); return rows; };
require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const answers = JSON.parse(line).map((doc) => Object.fromEntries(compiled.map(([name, map]) => [name, rowsOf(map, doc)])));
  process.stdout.write(JSON.stringify(answers) + '\\n');
});
"""

ViewRows = dict[str, list[list[Any]]]


@pytest.fixture(scope="module")
def run_views() -> Iterator[Callable[[list[dict[str, Any]]], list[ViewRows]]]:
    """Runs the views' JavaScript over documents, in Node."""
    functions = [
        (f"{design}/{name}", view["map"])
        for design, document in views.design_documents().items()
        for name, view in document["views"].items()
    ]
    argv = [str(node()), "-e", RUN_VIEWS, json.dumps(functions)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(documents: list[dict[str, Any]]) -> list[ViewRows]:
            stdin.write(json.dumps(documents) + "\n")
            stdin.flush()
            answers: list[ViewRows] = json.loads(stdout.readline())
            return answers

        yield run
        stdin.close()


def agree(documents: list[dict[str, Any]], answers: list[ViewRows]) -> None:
    """What Python says of each document is what each of the views says."""
    for document, rows in zip(documents, answers, strict=True):
        expected = state_of(document)
        shown = f"{document!r:.300}"
        assert [state for state in State if rows[f"Monitor/{state}"]] == ([expected] if expected else []), shown
        assert [key for key, _ in rows["Monitor/overview_total"]] == ([expected] if expected else []), shown
        assert [key for key, _ in rows["airflow-picas-1/counts"]] == [[None, expected]], shown
        assert bool(rows["airflow-picas-1/stateless"]) == (expected is None), shown
        assert bool(rows["airflow-picas-1/todo"]) == (expected is State.TODO), shown


def test_python_and_javascript_agree_on_odd_tokens(run_views: Callable[..., list[ViewRows]]) -> None:
    documents = list(odd_tokens(10_000))
    agree(documents, run_views(documents))
    found = Counter(state_of(document) for document in documents)
    assert all(found[state] > 100 for state in (*State, None)), found


NUMBERS = st.one_of(
    st.integers(),
    st.integers(-2, 2),
    st.integers(1_700_000_000, 1_800_000_000),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.from_regex(r"[ \t\n\u00a0]?[+-]?(0x|0b|0o)?[0-9a-fA-F]{0,4}[.]?[0-9]{0,2}(e[+-]?[0-9])?[ \n]?", fullmatch=True),
    NUMBERS.map(str),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
TIMES = st.one_of(st.just(0), st.just(1_763_820_000), st.just(ABSENT), VALUES)
TOKENS = st.builds(token, st.text(max_size=5), TIMES, TIMES, st.one_of(st.just(ABSENT), VALUES))


@settings(max_examples=30)
@given(documents=st.lists(TOKENS, min_size=40, max_size=80))
def test_python_and_javascript_agree_on_generated_tokens(
    run_views: Callable[..., list[ViewRows]], documents: list[dict[str, Any]]
) -> None:
    agree(documents, run_views(documents))


@settings(max_examples=300)
@given(document=TOKENS)
def test_at_most_one_state_fits(document: dict[str, Any]) -> None:
    fitting = [
        state
        for state, conditions in states.CONDITIONS.items()
        if all(condition.holds(document) for condition in conditions)
    ]
    assert fitting == ([state_of(document)] if state_of(document) else [])


@pytest.mark.parametrize(
    "kind", ["token", ["token"], [["token"]], "Token", "token ", None, True, 0, {}, ["token", "token"]]
)
def test_python_and_javascript_agree_on_what_is_a_token(run_views: Callable[..., list[ViewRows]], kind: Any) -> None:
    from airflow_provider_picas.tokens.documents import is_token

    document = {**token("x", 0, 0, ""), "type": kind}
    (rows,) = run_views([document])
    assert bool(rows["airflow-picas-1/counts"]) == is_token(document)


@pytest.mark.parametrize(
    ("token_id", "field", "batch"),
    [
        ("b:1", "b", "b"),
        ("b:1:2", "b", "b"),
        ("b:1", ABSENT, None),
        ("b", "b", None),
        ("other:1", "mine", None),
        ("b2:1", "b", None),
        ("B:1", "b", None),
        ("b:1:2", "b:1", None),
        (":1", "", None),
        ("1:1", 1, None),
        ("b:1", ["b"], None),
    ],
)
def test_a_token_is_in_a_batch_if_field_and_id_say_so(
    run_views: Callable[..., list[ViewRows]], token_id: str, field: Any, batch: str | None
) -> None:
    document = token(token_id, 0, 0, "")
    if field is not ABSENT:
        document["batch"] = field
    (rows,) = run_views([document])
    assert [key for key, _ in rows["airflow-picas-1/counts"]] == [[batch, "todo"]]
    assert [key[0] for key, _ in rows["airflow-picas-1/todo"]] == ([batch, ""] if batch else [""])


@pytest.mark.parametrize(
    ("lock", "done", "exit_code", "state"),
    [
        (0, 0, "", State.TODO),
        (5, 0, "", State.LOCKED),
        (5, 6, 0, State.DONE),
        (5, 6, "0", State.DONE),
        (5, 6, 1, State.ERROR),
        (5, 6, "", State.ERROR),
        (99, 99, ABSENT, State.ERROR),
        (5, 6, None, State.ERROR),
        (5, 6, 0.5, State.DONE),  # parseInt cuts
        (5, 6, 5e-7, State.ERROR),  # parseInt("5e-7") is 5
        (0, 6, 0, None),
        (-1, 0, "", None),
        (5, -6, 0, None),
        (None, 0, "", None),
        (ABSENT, ABSENT, ABSENT, None),
    ],
)
def test_states_follow_from_the_fields(lock: Any, done: Any, exit_code: Any, state: State | None) -> None:
    assert state_of(token("x", lock, done, exit_code)) is state


@pytest.mark.parametrize("tokens", [30, 1_000])
def test_pilots_that_start_at_random_numbers_start_at_different_tokens(
    run_views: Callable[[list[dict[str, Any]]], list[ViewRows]], tokens: int
) -> None:
    """The numbers of a batch's tokens lie all over the range, though their ids differ in a few digits only."""
    documents = [{**token(f"dag.push.run-1f2e3d:{n:08d}", 0, 0, ""), "scrub_count": 0} for n in range(tokens)]
    numbers = [rows["airflow-picas-1/todo"][0][0][3] for rows in run_views(documents)]
    assert len(set(numbers)) == tokens
    assert all(0 <= number < 2**31 for number in numbers)
    tenths = Counter(number * 10 // 2**31 for number in numbers)
    assert min(tenths[tenth] for tenth in range(10)) >= 1
    assert max(tenths.values()) < 0.3 * tokens


def test_a_hundred_neighbours_of_a_large_batch_share_a_number(
    run_views: Callable[[list[dict[str, Any]]], list[ViewRows]],
) -> None:
    """So a claim of neighbouring tokens changes few pages of the index."""
    documents = [{**token(f"dag.push.run-1f2e3d:{n:08d}", 0, 0, ""), "scrub_count": 0} for n in range(900, 101_100, 50)]
    numbers = {
        doc["_id"]: rows["airflow-picas-1/todo"][0][0][3]
        for doc, rows in zip(documents, run_views(documents), strict=True)
    }
    hundreds: dict[str, set[int]] = {}
    for name, number in numbers.items():
        hundreds.setdefault(name[:-2], set()).add(number)
    assert len(hundreds.pop("dag.push.run-1f2e3d:000009")) == 2, "the first thousand have a number each"
    assert all(len(shared) == 1 for shared in hundreds.values())
    assert len(set.union(*hundreds.values())) == len(hundreds) == 1_001
