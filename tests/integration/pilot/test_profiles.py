"""Our own pilots on pools of other shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle import profile
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.tokens import views
from stack import couchdb
from tests.integration.pilots import COUNT, GATE, Pool, Submission, new_pool, put_lease, session_of_a_pilot, until

CAL = "SKSP_pref_cal1"
GRID_LRT = profile.SHIPPED["grid_lrt"]
# GRID_LRT's own lists: what its scripts, and people, see.
OF_GRID_LRT = {
    "todo": "doc.lock == 0 && doc.done == 0",
    "locked": "doc.lock > 0 && doc.done == 0",
    "done": 'doc.status == "done"',
    "error": 'doc.status == "error"',
    "overview_done": "doc.lock > 0 && doc.done > 0 && doc.output == 0",
    "overview_error": "doc.lock > 0 && doc.output != 0",
}


def deploy(pool: Pool, shape: Profile) -> None:
    for name, design in views.design_documents(shape).items():
        status, answer = pool.request("PUT", f"_design/{name}", design)
        assert status == 201, answer


@pytest.fixture
def campaign(server: couchdb.CouchDBAdmin, tmp_path: Path) -> Iterator[Submission]:
    """A pool with GRID_LRT's views for one type, and a submission of our pilots for it."""
    with new_pool(server) as pool:
        body = "function (doc) {{ if (doc.type == '" + CAL + "') {{ if ({}) {{ emit(doc._id, doc._id); }} }} }}"
        own = {name: {"map": body.format(condition)} for name, condition in OF_GRID_LRT.items()}
        assert pool.request("PUT", f"_design/{CAL}", {"language": "javascript", "views": own})[0] == 201
        deploy(pool, GRID_LRT)
        made = Submission(tmp_path / "submission", pool)
        yield made
        made.close()


def push(pool: Pool, number: int, kind: str = CAL, **fields: Any) -> list[str]:
    """Tokens as GRID_LRT makes them: without ``exit_code`` and ``batch``."""
    new = {"type": kind, "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "output": "", **fields}
    tokens = [{"_id": f"t_{kind}_L{place:04d}", "OBSID": f"L{place}", **new} for place in range(number)]
    assert all("rev" in row for row in pool.request("POST", "_bulk_docs", {"docs": tokens})[1])
    return [str(token["_id"]) for token in tokens]


def listed(pool: Pool) -> dict[str, list[str]]:
    """The tokens in GRID_LRT's own views."""
    found = {}
    for name in OF_GRID_LRT:
        rows = pool.request("GET", f"_design/{CAL}/_view/{name}")[1]["rows"]
        found[name] = [row["id"].rpartition("_")[2] for row in rows]
    return found


def test_its_own_views_call_our_results_done(campaign: Submission) -> None:
    """What ends well is done for them, what fails is in error, and other types are left alone."""
    pool = campaign.pool
    push(pool, 3)
    push(pool, 1, "SKSP_targ1")
    command = (
        'echo "$PICAS_TOKEN_ID" >> "$RUNS"; echo "{\\"n\\": 7}" > "$PICAS_OUTPUT_FILE"; [ "$PICAS_FIELD_OBSID" != L1 ]'
    )
    assert campaign.run(command, batch=CAL, profile="grid_lrt") == 0, campaign.log()
    assert listed(pool) == {
        "todo": [], "locked": [], "done": ["L0000", "L0002"], "error": ["L0001"],
        "overview_done": ["L0000", "L0002"], "overview_error": ["L0001"],
    }  # fmt: skip
    done = pool.get(f"t_{CAL}_L0000")
    assert (done["status"], done["output"], done["exit_code"], done["result"]) == ("done", 0, 0, {"n": 7})
    failed = pool.get(f"t_{CAL}_L0001")
    assert (failed["status"], failed["output"], failed["exit_code"]) == ("error", 1, 1)
    assert pool.get("t_SKSP_targ1_L0000")["lock"] == 0


def test_a_claimed_and_a_released_token_say_so_in_its_words(campaign: Submission) -> None:
    pool = campaign.pool
    (name,) = push(pool, 1)
    pilot = campaign.start(GATE, batch=CAL, profile="grid_lrt")
    until(lambda: pool.get(name).get("status") == "locked")
    assert listed(pool)["locked"] == ["L0000"]
    pilot.terminate()
    assert pilot.wait(60) == 0, campaign.log()
    token = pool.get(name)
    assert (token["lock"], token["status"], token["output"], token["scrub_count"]) == (0, "todo", "", 1)
    assert listed(pool)["todo"] == ["L0000"]


def test_the_job_is_named_in_the_pools_own_field(campaign: Submission) -> None:
    pool = campaign.pool
    shape = profile.read({"base": "grid_lrt", "name": "jobs", "job_field": "jobid"})
    deploy(pool, shape)
    names = push(pool, 1, dirac_job_id="12")
    pilot = campaign.start(GATE, batch=CAL, profile=shape.to_json(), env={"SLURM_JOB_ID": "345"})
    until(lambda: pool.get(names[0]).get("jobid") == "345")
    assert "slurm_job_id" not in pool.get(names[0])
    campaign.open_gate()
    assert pilot.wait(60) == 0, campaign.log()
    assert pool.get(names[0])["jobid"] == "345"


def test_tokens_of_a_dead_pilot_are_found_in_its_state(campaign: Submission) -> None:
    """One whose pilot died while it was downloading counts as locked; a token that a foreign pilot holds stays its own."""
    pool = campaign.pool
    names = push(pool, 2)
    put_lease(pool, "dead", ended=True)
    claim = {"lock": 1_000, "hostname": "x", "pilot": "dead", "claim": "0-1000", "status": "downloading"}
    pool.put({**pool.get(names[0]), **claim})
    pool.put({**pool.get(names[1]), "lock": 1_000, "status": "launched", "wms_job_id": "5"})
    assert campaign.run(COUNT, batch=CAL, profile="grid_lrt") == 0, campaign.log()
    assert campaign.runs() == {names[0]: 1}
    assert pool.get(names[0])["attempts"][0]["reason"].startswith("reaped: ")
    assert pool.get(names[1])["status"] == "launched"


def test_a_locked_token_is_never_claimed_whatever_its_state(campaign: Submission) -> None:
    """A profile may count tokens as waiting that somebody holds: they still belong to their holder."""
    pool = campaign.pool
    rows = [{"state": "todo", "when": 'status == "ready"'}, *GRID_LRT.to_json()["states"]]
    shape = profile.read({"base": "grid_lrt", "name": "ready", "states": rows})
    deploy(pool, shape)
    names = push(pool, 2, status="ready")
    pool.put({**pool.get(names[0]), "lock": 1_000})
    assert campaign.run(COUNT, batch=CAL, profile=shape.to_json()) == 0, campaign.log()
    assert campaign.runs() == {names[1]: 1}
    assert pool.get(names[0])["lock"] == 1_000


def test_one_workflow_of_a_mixed_pool_is_a_batch(pool: Pool, submission: Submission) -> None:
    """Ids do not name it; two profiles may look at one pool."""
    deploy(pool, profile.SHIPPED["picas_cortex"])
    pool.push([{"workflow": "ddcal"}, {"workflow": "imaging"}, {"workflow": "ddcal"}, {}])
    assert submission.run(COUNT, batch="ddcal", profile="picas_cortex") == 0, submission.log()
    assert sorted(submission.runs()) == ["b:0000", "b:0002"]
    assert submission.run(COUNT, batch=None, profile="picas_cortex") == 0, submission.log()
    assert sorted(submission.runs()) == ["b:0000", "b:0001", "b:0002", "b:0003"]


def test_a_pool_without_the_views_of_a_profile_is_refused(pool: Pool, submission: Submission) -> None:
    pool.push([{"workflow": "ddcal"}])
    assert submission.run(COUNT, batch="ddcal", profile="picas_cortex") != 0
    assert "airflow-picas-1-picas_cortex" in submission.log()


def save_while_locked(pool: Pool, token: str, times: int) -> None:
    """Save a token as scripts of Project MinE do: for each line of a log, and now and then with an attachment."""
    for number in range(times):
        while True:
            doc = pool.get(token)
            doc.update(status=f"line {number}", log=[*doc.get("log", [])[-20:], f"{time.time()}"])
            status, answer = pool.request("PUT", token.replace(":", "%3A"), doc)
            if status == 201:
                break
            assert status == 409, answer
        if number % 100 == 0:
            status, answer = pool.request(
                "PUT", f"{token.replace(':', '%3A')}/part-{number}.txt?rev={answer['rev']}", {"n": number}
            )
            assert status in (201, 409), answer


def test_a_result_lands_on_a_token_that_others_saved_a_thousand_times(pool: Pool, submission: Submission) -> None:
    """Each save is a new revision under our claim: the result must not be refused, and must not undo what they wrote."""
    pool.push([{}])
    pilot = submission.start(f'{GATE}; echo "{{\\"n\\": 7}}" > "$PICAS_OUTPUT_FILE"')
    until(lambda: pool.get("b:0000")["lock"])
    save_while_locked(pool, "b:0000", 1_000)
    submission.open_gate()
    assert pilot.wait(60) == 0, submission.log()
    token = pool.get("b:0000")
    assert (token["output"], token["exit_code"], token["status"]) == ({"n": 7}, 0, "line 999")
    assert len([name for name in token["_attachments"] if name.startswith("part-")]) == 10
    assert int(token["_rev"].partition("-")[0]) > 1_000
    assert json.dumps(token).count("line 999") == 1


@pytest.mark.parametrize("batch", [None, CAL])
def test_all_tokens_are_counted_where_states_have_names(
    campaign: Submission, server: couchdb.CouchDBAdmin, batch: str | None
) -> None:
    """On a cluster, a pilot concludes that no tokens remain only if several counts agree."""
    push(campaign.pool, 5)
    push(campaign.pool, 2, "SKSP_targ1", lock=1, status="downloading")
    with session_of_a_pilot(campaign.pool, server.url, profile="grid_lrt", batch=batch) as session:
        assert Claims(session, True, Conflicts(session)).total() == (7 if batch is None else 5)
