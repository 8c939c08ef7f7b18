"""The graph of stages on the page, of a chain whose tokens pilots and a wait have made."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.couchdb import chains, new_tokens
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.documents import new_token
from tests.integration.lives import finish_unmade, write
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.tasks import context

STAGES = ["calibration", "imaging"]
GROUPS = {"imaging": {"of": "calibration", "at_least": 0.5}}


def finish(page: Page, name: str, *lines: dict[str, Any]) -> None:
    finish_unmade(page.hook, name, lines, {stage: f"b.{stage}" for stage in STAGES})


@pytest.fixture
def chain(page: Page) -> Chain:
    """Two tokens were pushed. One has made two tokens for calibration, in two groups; the list of the other is pending."""
    write(page.hook, [new_token({"input": n}, batch="b", push="p", ordinal=n, key=str(n)) for n in range(2)])
    wait = PicasTokenStateSensor(
        task_id="wait", batch="b", stages=STAGES, groups=GROUPS, pilots=False, picas_conn_id=page.hook.picas_conn_id
    )
    assert not wait.poke(context()).is_done
    finish(page, "b:0", *({"stage": "calibration", "key": f"k{n}", "group": f"g{n}"} for n in range(2)))
    page.hook.do(new_tokens.carry_out(page.hook.pool, ["b"]))
    finish(page, "b.calibration:k0")
    finish(page, "b:1", {"stage": "calibration", "key": "k2", "group": "g2"})
    found = Chain.parse("b", STAGES, groups=GROUPS)
    assert found is not None
    return found


def look(page: Page, chain: Chain, **query: Any) -> Any:
    """The graph, once the index of its views is up to date."""
    page.hook.do(new_tokens.lists_of(page.hook.pool, chain.own))
    return page.ask("batch/chain", **query)


def test_a_chain_is_shown_with_what_may_still_come(page: Page, chain: Chain) -> None:
    assert page.ask("batch")["chain"] == {"batch": "b", "stage": None}
    found = look(page, chain)
    shown = {node.pop("stage"): node for node in found["nodes"]}
    counts = {name: (node["counts"]["done"], node["counts"]["todo"]) for name, node in shown.items()}
    assert counts == {None: (2, 0), "calibration": (1, 1), "imaging": (0, 0)}
    assert [(node["pending"], node["growing"]) for node in shown.values()] == [(1, False), (0, True), (0, True)]
    assert [(node["groups"], node["made"], node["at_least"]) for node in shown.values()] == [
        (None, None, None),
        (None, None, None),
        (2, 0, 0.5),
    ]
    assert found["edges"] == [
        {"begin": 0, "end": 1, "tokens": 2, "group": False},
        {"begin": 1, "end": 2, "tokens": 0, "group": True},
    ]
    assert not found["partial"]


def test_a_finished_chain_has_all_its_groups(page: Page, chain: Chain) -> None:
    counted = page.hook.do(new_tokens.count_chain(page.hook.pool, chain, look=True))
    for name in ("b.calibration:k1", "b.calibration:k2"):
        finish(page, name)
    while not (counted := page.hook.do(new_tokens.count_chain(page.hook.pool, chain, look=True))).closed:
        for group in ("g0", "g1", "g2"):
            if counted.counts["b.imaging"].todo == 3:
                finish(page, f"b.imaging:{group}")
    found = look(page, chain)
    assert [node["growing"] for node in found["nodes"]] == [False] * 3
    assert [(node["groups"], node["made"]) for node in found["nodes"][2:]] == [(3, 3)]
    assert [edge["tokens"] for edge in found["edges"]] == [3, 3]


def test_a_stage_leads_back_to_its_chain(page: Page, chain: Chain) -> None:
    assert page.ask("batch", batch="b.imaging")["chain"] == {"batch": "b", "stage": "imaging"}
    assert look(page, chain, batch="b.imaging")["nodes"][0]["batch"] == "b"
    page.hook.push([new_token({"input": 1}, batch="other", push="p", ordinal=0)])
    assert page.ask("batch", batch="other")["chain"] is None
    assert page.ask("batch/chain", batch="other") == {"nodes": [], "edges": [], "partial": False}


def test_a_run_shows_only_the_batches_that_it_names(page: Page, chain: Chain) -> None:
    page.server.name_batch(page.run_id, "wait", CONN, page.pool.database, "b.calibration", role="wait")
    found = look(page, chain, user="viewer", **page.of_run)
    assert [node["counts"] is not None for node in found["nodes"]] == [True, True, False]
    assert found["nodes"][2]["groups"] is None


@pytest.mark.parametrize(
    "record",
    [
        {"batch": "other", "stages": ["imaging"]},
        {"batch": "b", "stages": "imaging"},
        {"batch": "b", "stages": [1]},
        {"batch": ["b"], "stages": ["imaging"]},
        {"batch": "b", "stages": ["imaging"], "groups": {"imaging": 3}},
        {"batch": "b", "stages": [f"s{n}" for n in range(1_000)]},
    ],
)
def test_a_record_that_a_wait_has_not_written_shows_no_chain(page: Page, record: dict[str, Any]) -> None:
    write(page.hook, [new_token({"input": 1}, batch="b", push="p", ordinal=0)])
    page.hook.do(page.hook.pool.put({"_id": chains.record_id("b"), **record}))
    assert page.ask("batch")["chain"] is None


def test_stages_with_batches_of_other_names_are_shown(page: Page) -> None:
    write(page.hook, [new_token({"input": 1}, batch=batch, push="p", ordinal=0) for batch in ("b", "images")])
    named = Chain.parse("b", {"imaging": "images"})
    assert named is not None
    page.hook.do(chains.note(page.hook.pool, named))
    assert page.ask("batch", batch="images")["chain"] == {"batch": "b", "stage": "imaging"}
    assert [node["counts"]["todo"] for node in page.ask("batch/chain")["nodes"]] == [1, 1]


def test_waits_for_parts_of_a_chain_record_the_whole(page: Page) -> None:
    page.hook.deploy_views()
    for stages, groups in ((STAGES[:1], {}), (STAGES, GROUPS), (STAGES[:1], {}), (STAGES, {})):
        part = Chain.parse("b", stages, groups=groups)
        assert part is not None
        page.hook.do(chains.note(page.hook.pool, part))
    for batch in ("b", "b.calibration", "b.imaging"):
        record = page.hook.get(chains.record_id(batch))
        assert (record["stages"], record["groups"]) == (STAGES, GROUPS)
