"""Profiles from the design documents of pools: which views are read, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.lifecycle.conditions import UnreadableError, text_of
from airflow_provider_picas.lifecycle.profile import PICAS, SHIPPED
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.design_reader import conditions_of, profile_of

OF_GRID_LRT = {
    "todo": "doc.lock ==  0 && doc.done == 0 ",
    "locked": "doc.lock > 0 && doc.done == 0 ",
    "done": 'doc.status == "done" ',
    "error": 'doc.status == "error" ',
}


def design(conditions: dict[str, str], kind: str = "token") -> dict[str, Any]:
    """A design document as the scripts of PiCaS and GRID_LRT write it."""
    text = '\nfunction(doc) {{\n   if(doc.type == "{}") {{\n    if({}) {{\n      emit(doc._id, doc._id);\n    }}\n  }}\n}}\n'
    return {"views": {name: {"map": text.format(kind, condition)} for name, condition in conditions.items()}}


def test_our_own_monitor_is_plain() -> None:
    reading = profile_of(views.monitor(), "Monitor")
    assert (reading.profile, reading.remarks) == (PICAS._replace(name="Monitor"), [])


def test_a_further_condition_on_one_field_selects_a_batch() -> None:
    reading = profile_of(views.monitor('doc.workflow == "ddcal"'), "ddcal")
    assert reading.profile == SHIPPED["picas_cortex"]._replace(name="ddcal")
    assert reading.remarks == ["Its tokens are the batch 'ddcal': the views ask for workflow == \"ddcal\"."]


def test_states_by_a_status_are_read_in_the_order_in_which_they_win() -> None:
    reading = profile_of(design(OF_GRID_LRT, "SKSP_pref_cal1"), "SKSP_pref_cal1")
    assert reading.profile is not None
    assert reading.profile.types == ("SKSP_pref_cal1",)
    assert [(row.state, text_of(row.conditions)) for row in reading.profile.states] == [
        ("todo", "lock == 0 && done == 0"),
        ("done", 'status == "done"'),
        ("error", 'status == "error"'),
        ("locked", "lock > 0 && done == 0"),
    ]


@pytest.mark.parametrize(
    ("source", "alternatives"),
    [
        ("function(doc){if(doc.a==1)emit(doc._id,null);}", ["a == 1"]),
        ("function (doc) { // a comment\n if (doc.a == 1) { /* { */ emit(doc._id, [doc.b, f(')')]); } ; }", ["a == 1"]),
        ("function(doc) { if (doc.a == 1) { emit(1, 1); } if (doc.b == 2 || doc.c > 0) emit(2, 2) }",
         ["a == 1", "b == 2", "c > 0"]),
        ("function(doc) { if (doc.a == \"//x\") { if (doc.b == 2) { emit(1, 1); } } }", ['a == "//x" && b == 2']),
        ("function(doc) { emit(doc._id, 1); }", [""]),
    ],
)  # fmt: skip
def test_views_are_read(source: str, alternatives: list[str]) -> None:
    assert [text_of(parts) for parts in conditions_of(source)] == alternatives


@pytest.mark.parametrize(
    "source",
    [None, "", "doc => 1", "function(doc) { var a = doc.lock; if (a > 0) { emit(1, 1); } }", "function(d) { emit(d._id); }",
     "function(doc) { if (doc.a == 1) { emit(1); } else { emit(2); } }", "function(doc) { if (doc.a == 1) { emit(1);",
     "function(doc) { if (doc.input.x == 1) { emit(1); } }", "function(doc) { if (!doc.a) { emit(1); } }", "x" * 30_000,
     "function(doc) { for (;;) { emit(1); } }", "function(doc) { if (doc.a == 1 emit(1); }", "function(doc) { } }"],
)  # fmt: skip
def test_other_views_are_refused(source: Any) -> None:
    with pytest.raises(UnreadableError):
        conditions_of(source)


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"done": None}, "It has no view 'done'."),
        ({"done": "doc.output.code == 0"}, "View 'done': the condition 'doc.output.code == 0' cannot be read at"),
        ({"done": 'doc.type == "x"'}, "Its views do not all ask for the same `type`."),
        ({"done": "doc.lock >= 0 || doc.done >= 0"}, ""),
    ],
)
def test_what_cannot_be_read_is_said(changed: dict[str, Any], remark: str) -> None:
    wanted = {name: text for name, text in {**OF_GRID_LRT, **changed}.items() if text is not None}
    reading = profile_of(design(wanted), "x")
    assert (reading.profile is None) is bool(remark)
    assert remark in "".join(reading.remarks)


@pytest.mark.parametrize("broken", [{}, {"views": None}, {"views": {"todo": None}}, {"views": {"todo": {"map": 5}}}])
def test_other_design_documents_give_no_profile(broken: dict[str, Any]) -> None:
    reading = profile_of(broken, "x")
    assert reading.profile is None
    assert len(reading.remarks) == 4


def test_a_condition_of_all_views_that_is_no_field_s_value_is_said() -> None:
    conditions = {name: f"{text} && doc.cores > 1" for name, text in OF_GRID_LRT.items()}
    assert profile_of(design(conditions), "x").remarks == [
        "All views also ask for cores > 1, which is not the value of one field."
    ]
