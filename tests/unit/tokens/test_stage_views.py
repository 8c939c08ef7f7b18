"""The views of stages in pools of other shapes, whose ids may not name the batch: run as JavaScript, and compared with
Python."""

from __future__ import annotations

import json
import random
import subprocess
from typing import Any

import pytest

from airflow_provider_picas.lifecycle import new_tokens, profile
from airflow_provider_picas.lifecycle.ids import stage_batch
from airflow_provider_picas.lifecycle.profile import SHIPPED, Profile
from airflow_provider_picas.tokens import groups, stage_views
from stack.couchdb import node
from tests.unit.tokens.test_profiles import pool_documents

RUN = """
let rows;
const emit = (key, value) => rows.push([key, value]);
const { map, docs } = JSON.parse(require('fs').readFileSync(0));
const view = eval(`(${map})`);
console.log(JSON.stringify(docs.map((doc) => { rows = []; view(doc); return rows; })));
"""
PROFILES = [
    SHIPPED["picas_cortex"],
    SHIPPED["grid_lrt"],
    profile.read({"base": "picas", "name": "named", "states": [*SHIPPED["grid_lrt"].to_json()["states"]]}),
]


def run(shape: Profile, docs: list[dict[str, Any]]) -> list[list[Any]]:
    given = json.dumps({"map": stage_views.stages(shape)["views"][stage_views.GROUPS]["map"], "docs": docs})
    ended = subprocess.run([node(), "-e", RUN], input=given.encode(), capture_output=True, check=True)
    rows: list[list[Any]] = json.loads(ended.stdout, parse_int=float)  # as JavaScript reads them
    return rows


def chain(shape: Profile, chosen: random.Random) -> list[tuple[dict[str, Any], str | None]]:
    """Parents, the tokens that their commands make, and those of groups; each with the batch of its parent."""
    found: list[tuple[dict[str, Any], str | None]] = []
    for place, doc in enumerate(pool_documents(400, seed=3)):
        doc["_id"] = chosen.choice([doc["_id"], f"token_ddcal_{place}_2026-11-29_04:12:00"])
        batch, claim = shape.batch_of(doc), "0123456789abcdef-1000"
        parent = {**doc, "claim": claim, "lock": 1000, "done": 1010}
        lines = [{"stage": "s", "key": n, **chosen.choice([{}, {"group": "g"}, {"group": 7}])} for n in range(2)]
        text = "\n".join(map(json.dumps, lines)).encode()
        stages = chosen.choice([{"s": "of_s"}, None]) if batch else {"s": "of_s"}
        made = new_tokens.read_list(text, parent, stages, shape)
        assert made.fault is None
        field = {**new_tokens.field(made.tokens, claim, batch), "pending": chosen.random() < 0.5}
        found += [({**parent, new_tokens.FIELD: field}, None), *((dict(token), batch) for token in made.tokens)]
        found.append((groups.group_token("g", [], batch="of_t", stage="t", of="of_s", profile=shape), None))
    return found


def as_number(value: Any) -> float | None:
    """A number in JSON, as JavaScript writes it."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0
    except OverflowError:
        return None


def expected(shape: Profile, doc: dict[str, Any], parents_batch: str | None) -> list[Any]:
    rows: list[Any] = []
    if new_tokens.is_pending(doc) and doc[new_tokens.FIELD]["batch"] is not None:
        rows.append([["pending", shape.batch_of(doc)], 0])
    if "parent" in doc:
        of = parents_batch if parents_batch is not None else doc["parent"].partition(":")[0]
        rows.append([["edge", of, shape.batch_of(doc)], 0])
    if "group_of" in doc:
        rows.append([["made", doc["group_of"], doc["group_name"]], doc["members_ended"]])
    if isinstance(doc.get("group"), str) and doc["group"] and shape.is_token(doc):
        rows.append([["member", shape.batch_of(doc), doc["group"], shape.state_of(doc)], as_number(doc.get("done"))])
    return rows


@pytest.mark.parametrize("shape", PROFILES, ids=lambda shape: shape.name)
def test_python_and_javascript_agree_on_stages(shape: Profile) -> None:
    chosen = random.Random(4)
    pairs = chain(shape, chosen)
    odd = pool_documents(2_000, seed=5, odd=0.3)
    groups_ = ["g", "", 7, None, ["g"]]
    pairs += [({**doc, "group": chosen.choice(groups_)}, None) for doc in odd]
    docs = json.loads(json.dumps([doc for doc, _ in pairs]))
    for (_, batch), doc, rows in zip(pairs, docs, run(shape, docs), strict=True):
        assert rows == expected(shape, doc, batch), doc


def test_tokens_of_any_batch_can_make_others() -> None:
    """The value of a field is the batch: it may hold characters that separate batch and key in our ids."""
    shape = SHIPPED["picas_cortex"]
    for name in ("cal:1", "x y", "é", "-", "b" * 200):
        parent = {"_id": "token_1", "type": "token", "workflow": name, "claim": "0123456789abcdef-1000"}
        ((token,), fault) = new_tokens.read_list(b'{"stage": "s", "key": "k:1"}', parent, None, shape)
        assert fault is None
        listed = json.dumps(token).encode()
        assert new_tokens.read_attachment(listed, parent) == [token]
        assert shape.batch_of(token) == token["_id"].partition(":")[0]
    assert stage_batch("ddcal", "s") == "ddcal.s"
    assert stage_batch("a.b_c-1", "s") == "a.b_c-1.s"
