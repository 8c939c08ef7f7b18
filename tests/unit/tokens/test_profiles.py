"""Pools of other shapes: their conditions, states and views, read as Python and run as JavaScript."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle import conditions, profile
from airflow_provider_picas.lifecycle.conditions import Condition, UnreadableError, parse
from airflow_provider_picas.lifecycle.profile import PICAS, SHIPPED, NamedState, Profile, ProfileError
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.states import State
from stack.couchdb import node
from tests.odd_tokens import ABSENT, EXIT_CODES, TIMES

# Answers a line {"maps": {name: source}, "docs": [...]} with, for each document, the rows of each map by name.
RUN_MAPS = """
let rows;
const emit = (key, value) => rows.push(key);
require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const asked = JSON.parse(line);
  const maps = Object.entries(asked.maps).map(([name, source]) => [name, eval(`(${source})`)]);
  const answers = asked.docs.map((doc) => Object.fromEntries(maps.map(([name, map]) => {
    rows = []; map(doc); return [name, rows];
  })));
  process.stdout.write(JSON.stringify(answers) + '\\n');
});
"""
RunMaps = Callable[[dict[str, str], list[dict[str, Any]]], list[dict[str, Any]]]

VALUES: list[Any] = [
    *TIMES, *EXIT_CODES, "done", "error", "downloading", "launched", "Done", "b", "a\u2028", "é", "\ud800",
]  # fmt: skip
# Values of which several states of a pool make something.
USUAL: dict[str, list[Any]] = {
    "type": ["SKSP_pref_cal1", "token", "SKSP_targ1"],
    "lock": [0, 0, 1_763_820_000, 99, -1],
    "done": [0, 0, 1_763_820_500, 99, -1],
    "exit_code": [0, "", 1, "0"],
    "status": [ABSENT, "done", "error", "downloading", "launched", "todo", "locked", ""],
    "output": [0, "", 1, "0", -1, ABSENT],
    "workflow": ["ddcal", "imaging", ABSENT, ""],
    "batch": [ABSENT, "b", "ddcal"],
}
LITERALS = [
    0, 1, -1, 0.5, 1e21, 1e-7, 1_763_820_000, "", "0", "1", " 1 ", "done", "b", "é\u2028", '"', "NaN", True, False, None,
]  # fmt: skip


@pytest.fixture(scope="module")
def run_maps() -> Iterator[RunMaps]:
    """Runs map functions over documents, in Node."""
    argv = [str(node()), "-e", RUN_MAPS]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(maps: dict[str, str], documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
            stdin.write(json.dumps({"maps": maps, "docs": documents}) + "\n")
            stdin.flush()
            answers: list[dict[str, Any]] = json.loads(stdout.readline())
            return answers

        yield run
        stdin.close()


def pool_documents(number: int, seed: int, odd: float = 0.1) -> list[dict[str, Any]]:
    """Documents of mixed pools; a share of their values are odd ones."""
    chosen = random.Random(seed)
    found = []
    for place in range(number):
        fields = {
            name: chosen.choice(VALUES) if chosen.random() < odd else chosen.choice(usual)
            for name, usual in USUAL.items()
        }
        prefix = chosen.choice(["b:", "ddcal:", "token_ddcal_0_", "t_SKSP_pref_cal1_"])
        kept = {name: value for name, value in fields.items() if value is not ABSENT}
        found.append({"_id": f"{prefix}{place:06d}", **kept})
    return found


def random_condition(chosen: random.Random) -> Condition:
    field = chosen.choice([*USUAL, "a-b", 'q"', "parseInt", "doc", "true"])
    parsed = chosen.random() < 0.2
    operators = ["==", "!=", "===", "!==", "<", "<=", ">", ">="]
    return Condition(field, chosen.choice(operators), parsed, chosen.choice(LITERALS))


def random_profile(chosen: random.Random) -> Profile:
    rows = [
        NamedState(f"s{place}", str(state), tuple(random_condition(chosen) for _ in range(chosen.randint(1, 3))))
        for place, state in enumerate(chosen.sample([*State, *State, *State], 9))
    ]
    kinds = chosen.choice([None, ("token",), ("SKSP_pref_cal1", 'x"y', "1")])
    return Profile("random", kinds, tuple(rows), batch_field=chosen.choice([None, "workflow", "type", "a-b"]))


def agree(run_maps: RunMaps, shape: Profile, documents: list[dict[str, Any]]) -> Counter[str | None]:
    """What Python says of each document is what each view of the profile emits. Returns the number in each state."""
    designs = views.design_documents(shape)
    maps = {f"{name}/{view}": text["map"] for name, design in designs.items() for view, text in design["views"].items()}
    if shape.further_names:  # what the rows are added up with, by name
        counts = maps[f"airflow-picas-1-{shape.name}/counts"]
        maps["values"] = counts.replace("emit([batch, state, doc._id], value)", "emit(value)")
    found: Counter[str | None] = Counter()
    for document, rows in zip(documents, run_maps(maps, documents), strict=True):
        shown = f"{document!r:.300} in {shape!r:.1000}"
        if not shape.is_token(document):
            assert not any(rows.values()), shown
            continue
        state, batch, name = shape.state_of(document), shape.batch_of(document), document["_id"]
        found[state] += 1
        if shape.is_default:
            assert rows["airflow-picas-1/counts"] == [[batch, state]], shown
            continue
        row = shape.named_state_of(document)
        if shape.further_names:
            named = [int(row is not None and (row.state, row.name) == pair) for pair in shape.further_names]
            assert rows["values"][0] == [1, *named], shown
        own, page = f"airflow-picas-1-{shape.name}", f"airflow-picas-page-1-{shape.name}"
        assert rows[f"{own}/counts"] == [[batch, state, name], ["", state, name]], shown
        assert rows[f"{own}/tokens"] == [[batch, name]], shown
        claimable = ([batch] if batch else []) + [""] if shape.is_claimable(document) else []
        assert [key[0] for key in rows[f"{own}/todo"]] == claimable, shown
        ends = [[batch, state]] if state in ("done", "error") else []
        assert [key[:2] for key in rows[f"{page}/ended"]] == ends, shown
        assert [[key[0], key[2]] for key in rows[f"{page}/nodes"]] == ends, shown
    return found


def test_the_views_of_plain_pools_are_those_that_they_have() -> None:
    """A difference of one byte in a view would make CouchDB index each pool again."""
    recorded = Path(__file__).with_name("default_views.json").read_text()
    assert json.dumps(views.design_documents(), indent=1) + "\n" == recorded
    assert json.dumps(views.design_documents(profile.read({"base": "picas"})), indent=1) + "\n" == recorded


def test_python_and_javascript_agree_on_the_shipped_profiles(run_maps: RunMaps) -> None:
    documents = pool_documents(4_000, seed=1) + pool_documents(1_500, seed=2, odd=0.6)
    for shape in [*SHIPPED.values(), profile.read({"base": "grid_lrt", "name": "cal", "types": ["SKSP_pref_cal1"]})]:
        found = agree(run_maps, shape, documents)
        assert all(found[state] > 20 for state in State), (shape.name, found)


def test_only_profiles_with_names_of_their_own_count_them() -> None:
    assert PICAS.further_names == SHIPPED["picas_cortex"].further_names == ()
    assert SHIPPED["grid_lrt"].further_names == (("locked", "downloading"), ("locked", "launched"))
    reduces = {
        name: views.of_profile(SHIPPED[name])["views"]["counts"]["reduce"] for name in ("picas_cortex", "grid_lrt")
    }
    assert reduces == {"picas_cortex": "_count", "grid_lrt": "_sum"}


def test_python_and_javascript_agree_on_any_profile(run_maps: RunMaps) -> None:
    chosen = random.Random(3)
    overlapping = 0
    for seed in range(60):
        shape = random_profile(chosen)
        documents = pool_documents(60, seed=seed, odd=0.4)
        agree(run_maps, shape, documents)
        for document in documents:
            fitting = {row.state for row in shape.states if conditions.all_hold(row.conditions, document)}
            overlapping += len(fitting) > 1
    assert overlapping > 500


def test_python_and_javascript_agree_on_each_comparison(run_maps: RunMaps) -> None:
    """Each operator, literal and odd value, with and without parseInt."""
    documents = [{"_id": "x", "v": value} if value is not ABSENT else {"_id": "x"} for value in VALUES]
    operators = ["==", "!=", "===", "!==", "<", "<=", ">", ">="]
    every = [
        Condition("v", sign, parsed, value) for sign in operators for parsed in (False, True) for value in LITERALS
    ]
    maps = {str(n): f"function (doc) {{ emit({one.javascript()}); }}" for n, one in enumerate(every)}
    for document, rows in zip(documents, run_maps(maps, documents), strict=True):
        for place, condition in enumerate(every):
            assert rows[str(place)] == [condition.holds(document)], f"{condition} on {document!r:.200}"


# GRID_LRT's own views, for the tokens of one type: four lists, and an overview whose states overlap.
OF_GRID_LRT = {
    "todo": "doc.lock == 0 && doc.done == 0",
    "locked": "doc.lock > 0 && doc.done == 0",
    "done": 'doc.status == "done"',
    "error": 'doc.status == "error"',
    "downloading": "doc.lock > 0 && doc.status == 'downloading'",
    "overview done": "doc.lock > 0 && doc.done > 0 && doc.output == 0",
    "overview error": "doc.lock > 0 && doc.output != 0",
}


def test_counts_of_grid_lrt_tokens_are_those_of_its_own_views(run_maps: RunMaps) -> None:
    """A token in several of its views counts once: a waiting token as waiting, and a status counts more than the lock."""
    shape = profile.read({"base": "grid_lrt", "name": "cal", "types": ["SKSP_pref_cal1"]})
    documents = pool_documents(5_000, seed=4, odd=0.05)
    body = "function (doc) {{ if (doc.type == 'SKSP_pref_cal1') {{ if ({}) {{ emit(doc._id); }} }} }}"
    maps = {name: body.format(condition) for name, condition in OF_GRID_LRT.items()}
    once = several = 0
    for document, rows in zip(documents, run_maps(maps, documents), strict=True):
        state = shape.state_of(document) if shape.is_token(document) else None
        theirs = [name for name in State if rows[name]]
        if len(theirs) == 1:
            assert state == theirs[0], document
            once += 1
        elif theirs:
            assert state == next(name for name in ("todo", "done", "error") if name in theirs), document
            several += 1
        elif state is not None:
            assert rows[f"overview {state}"], document
        row = shape.named_state_of(document)
        if rows["downloading"] and theirs == ["locked"]:
            assert row is not None
            assert row.name == "downloading", document
    assert once > 400
    assert several > 50


@pytest.mark.parametrize(
    ("text", "alternatives"),
    [
        ("lock==0&&done == 0", ["lock == 0 && done == 0"]),
        ("doc.lock > 0 && (doc.status == '' || doc.output == 0)", ['lock > 0 && status == ""', "lock > 0 && output == 0"]),
        ("parseInt(doc.exit_code) != 0", ["parseInt(exit_code) != 0"]),
        ('doc["a-b"] === "x\\"y"', ['doc["a-b"] === "x\\"y"']),
        ("a == -1.5e3 && b != null && c == true", ["a == -1500 && b != null && c == true"]),
        ("((a < 2))", ["a < 2"]),
        ("status == 'it\\'s \"so\"'", ['status == "it\'s \\"so\\""']),
    ],
)  # fmt: skip
def test_conditions_are_read(text: str, alternatives: list[str]) -> None:
    found = parse(text)
    assert [conditions.text_of(parts) for parts in found] == alternatives
    assert [parts for one in alternatives for parts in parse(one)] == found


def test_conditions_that_were_written_are_read_again() -> None:
    chosen = random.Random(5)
    for _ in range(2_000):
        condition = random_condition(chosen)
        assert parse(str(condition)) == parse(condition.javascript()) == [(condition,)], str(condition)


@pytest.mark.parametrize(
    "text",
    ["", "lock", "lock ==", "0 == lock", "doc.a.b == 1", "lock == 0 &&", "lock = 0", "lock == 0; evil()", "f(lock) == 0",
     "parseInt(lock, 10) == 0", "lock == other", "lock == 1e999", "(lock == 0", "lock == 0)", "!lock", "doc['a'", "a == 'x",
     "a == 01", "a == 1 /* x */", "a == 0x10", "a\u2028== 1", "doc[0] == 1", "(" * 30 + "a == 1" + ")" * 30],
)  # fmt: skip
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(UnreadableError, match=r"cannot be read at|its end"):
        parse(text)


@pytest.mark.parametrize("name", SHIPPED)
def test_profiles_become_json_and_back(name: str) -> None:
    shape = SHIPPED[name]
    assert profile.read(name) == profile.read(json.dumps(shape.to_json())) == profile.read(shape.to_json()) == shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("picas2", "there is no profile 'picas2'; there are picas, picas_cortex, grid_lrt"),
        ("{", "not valid JSON"),
        (5, "is the name of one, or an object"),
        ({"batchfield": "x"}, "unknown key 'batchfield'; it takes base, name, types"),
        ({"batch_field": "workflow"}, "differs from 'picas', so it needs a `name` of its own"),
        ({"name": "my pool"}, "`name` must be"),
        ({"name": "x", "types": []}, "`types` must be a list"),
        ({"name": "x", "types": [5]}, "`types` must be a list"),
        ({"name": "x", "states": {}}, "`states` must be a list"),
        ({"name": "x", "states": [{"state": "todo"}]}, "must have `state` and `when`"),
        ({"name": "x", "states": [{"state": "ready", "when": "a == 1"}]}, "counts as 'ready'"),
        ({"name": "x", "states": [{"state": "todo", "when": "a = 1"}]}, r"`states` \[0\]: the condition 'a = 1' cannot"),
        ({"name": "x", "states": [{"state": "todo", "when": "a == 1"}]}, "none that counts as 'locked'"),
        ({"name": "x", "writes": {"begin": {}}}, "the event 'begin'"),
        ({"name": "x", "writes": {"done": {"lock": 0}}}, "cannot set the field 'lock'"),
        ({"name": "x", "writes": {"done": {"_rev": 0}}}, "cannot set the field '_rev'"),
        ({"name": "x", "writes": {"done": {"claim": 0}}}, "cannot set the field 'claim'"),
        ({"name": "x", "job_field": "dirac_job_id"}, "cannot hold the id of a Slurm job"),
        ({"name": "x", "priorities": "a == 1"}, "`priorities` must be a list"),
        ({"name": "x", "priorities": ["a == 1 || b == 1"]}, "has several alternatives"),
        ({"name": "x", "priorities": ["urgent"]}, "`priorities`: the condition 'urgent' cannot be read"),
        ({"name": "x", "batch_field": "_id"}, "cannot say which tokens belong together"),
    ],
)  # fmt: skip
def test_wrong_profiles_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        profile.read(given)


def test_priorities_rank_the_rows_that_pilots_claim_from(run_maps: RunMaps) -> None:
    shape = profile.read({"name": "x", "priorities": ['task_type == "urgent"', "tries > 3"]})
    assert profile.read(shape.to_json()) == shape
    waiting = {"_id": "b:1", "type": "token", "lock": 0, "done": 0, "batch": "b", "priority": 9}
    documents = [{**waiting, "task_type": "urgent"}, {**waiting, "tries": 5}, waiting]
    maps = {"todo": views.of_profile(shape)["views"]["todo"]["map"]}
    assert [rows["todo"][0][2] for rows in run_maps(maps, documents)] == [-2, -1, 0]


def test_a_profile_changes_the_one_that_it_is_based_on() -> None:
    shape = profile.read({"base": "grid_lrt", "name": "cal", "types": "SKSP_pref_cal1", "job_field": "job"})
    assert shape == SHIPPED["grid_lrt"]._replace(name="cal", types=("SKSP_pref_cal1",), job_field="job")
    assert profile.read(None) is profile.read("") is profile.read("picas") is PICAS
    assert shape.written("failed", 3) == {"status": "error", "output": 3}
    assert shape.written("failed") == {"status": "error", "output": -1}
