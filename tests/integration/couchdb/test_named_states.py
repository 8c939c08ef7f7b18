"""States with names of their own, such as ``downloading``: counted with the others, in the same request."""

from __future__ import annotations

import pytest

from airflow_provider_picas.couchdb import changes, edits, overview
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.counts import Completeness, Counts
from airflow_provider_picas.tokens.progress_line import line

STATUS = {"todo": 2, "downloading": 12, "launched": 3, "processing": 4}


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    hook = PicasHook(profile="grid_lrt")
    hook.deploy_views()
    tokens = [
        {
            "_id": f"{status}-{n}",
            "type": "SKSP",
            "status": status,
            "lock": int(status != "todo"),
            "done": 0,
            "output": "",
        }
        for status, number in STATUS.items()
        for n in range(number)
    ]
    tokens.append({"_id": "x", "type": "other", "status": "done", "lock": 1, "done": 2, "output": 0})
    hook.do(hook.pool.write(list(map(documents.encode, tokens))))
    return hook


def test_names_are_counted_for_a_batch_the_pool_and_all_batches(hook: PicasHook) -> None:
    named = {"locked": {"downloading": 12, "launched": 3}}
    expected = Counts(todo=2, locked=19, named=named)  # type: ignore[arg-type]
    assert hook.count("SKSP") == expected
    assert hook.count().as_dict() == {"todo": 2, "locked": 19, "done": 1, "error": 0, "named": named}
    assert hook.do(changes.counts_of(hook.pool, ["SKSP", "other"])) == {"SKSP": expected, "other": Counts(done=1)}
    assert hook.do(edits.batches(hook.pool))["SKSP"] == expected
    first, more = hook.do(overview.batches_by_name(hook.pool, "", 1))
    assert (first, more) == ({"other": Counts(done=1)}, True)
    assert hook.do(overview.batches_by_name(hook.pool, "other", 1)) == ({"SKSP": expected}, False)


def test_the_progress_line_has_the_names(hook: PicasHook) -> None:
    assert line(Completeness(hook.count("SKSP"))) == "0 of 21 done, 19 running (12 downloading, 3 launched), 2 to do"
