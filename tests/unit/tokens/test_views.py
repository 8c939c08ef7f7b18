"""The design documents: missing views, differences, and that they match PiCaS's."""

from __future__ import annotations

import re

import pytest

from airflow_provider_picas.tokens import views

PICAS_CONDITIONS = {  # examples/create_views.py of the PiCaS client 1.1.2
    "todo": "doc.lock == 0 && doc.done == 0",
    "locked": "doc.lock > 0 && doc.done == 0",
    "done": "doc.lock > 0 && doc.done > 0 && parseInt(doc.exit_code) == 0",
    "error": "doc.lock > 0 && doc.done > 0 && parseInt(doc.exit_code) != 0",
}


@pytest.mark.parametrize("state", PICAS_CONDITIONS)
def test_conditions_are_those_of_picas(state: str) -> None:
    source = views.monitor()["views"][state]["map"]
    assert f"if ({PICAS_CONDITIONS[state]})" in source
    assert "emit(doc._id, doc._id)" in source
    overview = views.monitor()["views"]["overview_total"]
    assert f"if ({PICAS_CONDITIONS[state]}) {{ emit('{state}', 1); }}" in overview["map"]
    assert overview["reduce"] == "_sum"


def test_a_further_condition_is_in_every_view() -> None:
    design = views.monitor("doc.cores == 4")
    assert all("&& doc.cores == 4)" in view["map"] for view in design["views"].values())
    assert design["views"]["overview_total"]["map"].count("&& doc.cores == 4)") == 4


def test_counting_views_use_built_in_reduces() -> None:
    reduces = {view.get("reduce") for design in views.design_documents().values() for view in design["views"].values()}
    assert reduces == {None, "_sum", "_count"}
    assert re.fullmatch(r"airflow-picas-\d+", views.PROVIDER)


def test_missing_views_are_found() -> None:
    wanted = views.monitor()
    assert views.missing_views(None, wanted) == ["done", "error", "locked", "overview_total", "todo"]
    assert views.missing_views({"views": {"todo": {}, "mine": {}}}, wanted) == [
        "done",
        "error",
        "locked",
        "overview_total",
    ]
    assert (
        views.missing_views({"views": None}, wanted)
        == views.missing_views({}, wanted)
        == views.missing_views(None, wanted)
    )
    assert views.missing_views({"_id": "_design/Monitor", **wanted}, wanted) == []


def test_differences_are_found() -> None:
    wanted = views.provider()
    assert views.differs(None, wanted)
    assert not views.differs({"_id": "_design/x", "_rev": "1-a", **wanted}, wanted)
    assert views.differs({**wanted, "views": {**wanted["views"], "mine": {"map": "x"}}}, wanted)
    assert views.differs({"views": wanted["views"]}, wanted)
