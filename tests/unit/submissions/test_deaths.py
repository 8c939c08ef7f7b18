"""Which pilots count as dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.ids import lease_id
from airflow_provider_picas.slurm.jobs import Job, SlurmStatus
from airflow_provider_picas.submissions import deaths
from airflow_provider_picas.submissions.deaths import Evaluation, Holders, Lease

NOW = 10_000
KEY = "picas-x.1"


def lease(**fields: Any) -> Lease:
    document = {
        "pilot": "p1", "submission": KEY, "job": "12_0", "hostname": "n1", "renewed": NOW - 10, "lease": 60, "ended": False,
    }  # fmt: skip
    return Lease.parse({**document, **fields})


def held(lock: int = NOW - 100, **fields: Any) -> dict[str, Any]:
    return {"_id": "b:1", "pilot": "p1", "claim": f"abc-{lock}", "lock": lock, "slurm_job_id": "12_0", **fields}


def slurm(ahead: float = 0, **jobs: Any) -> SlurmStatus:
    """What Slurm tells, with a clock that is so many seconds ahead of the database's."""
    fields = {"started": int(NOW - 200 + ahead), **jobs}
    return SlurmStatus({"12_0": Job("12_0", fields.pop("state", "RUNNING"), **fields)}, at=int(NOW + ahead))


def watched(tokens: list[dict[str, Any]], found: Sequence[Lease], seconds: float) -> Mapping[str, float]:
    """What an observer makes of leases that it has read for so long."""
    observer = deaths.ObservedLeases()
    observer.note(deaths.holders(tokens), {lease.pilot: lease for lease in found}, 0)
    return observer.silent(tokens, NOW, seconds, 0)


def death(
    token: dict[str, Any],
    found: Lease | None = None,
    told: SlurmStatus | None = None,
    *,
    seen: float = 60,
    **fields: Any,
) -> str | None:
    """``seen``: seconds since the observer has first read this lease, or that there is none."""
    known = [found] if found else []
    silent = watched([token], known, seen)
    return Evaluation(NOW, {lease.pilot: lease for lease in known}, KEY, told, NOW - 1, silent=silent, **fields).death(
        token
    )


def test_a_pilot_that_renews_its_lease_lives() -> None:
    assert death(held(), lease()) is None
    assert death(held(), lease(), slurm()) is None
    assert death(held(), lease(renewed=NOW - 61), slurm()) is None  # whole seconds: a grace of one


@pytest.mark.parametrize("told", [None, slurm()])
def test_a_silent_pilot_is_dead_when_its_lease_is_over(told: SlurmStatus | None) -> None:
    cause = death(held(), lease(renewed=NOW - 62), told)
    assert cause == "pilot p1 (job 12_0 on n1) did not renew its lease for 62 s"


def test_a_lease_that_is_over_is_read_for_half_a_lease_before_its_pilot_is_dead() -> None:
    silent = lease(renewed=NOW - 100)
    assert death(held(), silent, slurm(), seen=29) is None
    assert death(held(), silent, slurm(), seen=30) == "pilot p1 (job 12_0 on n1) did not renew its lease for 100 s"
    assert death(held(), lease(renewed=NOW - 100, ended=True), seen=0) == "pilot p1 (job 12_0 on n1) has ended"
    assert death(held(), silent, slurm(state="NODE_FAIL"), seen=0) == "pilot p1 (job 12_0 on n1) has ended: NODE_FAIL"


def test_leases_that_may_be_old_prove_nothing() -> None:
    observer, known = deaths.ObservedLeases(), {"p1": lease(renewed=NOW - 1000)}
    observer.note(["p1"], known, 0)
    silent = observer.silent([held()], NOW, None, 0)
    assert Evaluation(NOW, known, KEY, slurm(), silent=silent).death(held()) is None
    ended = slurm(state="NODE_FAIL")
    assert Evaluation(NOW, known, KEY, ended, silent=silent).death(held()), "Slurm's answer is not older for that"


def test_a_pilot_that_left_in_good_order_holds_nothing() -> None:
    assert death(held(), lease(ended=True)) == "pilot p1 (job 12_0 on n1) has ended"


def test_a_job_that_has_ended_is_believed_at_once() -> None:
    assert death(held(), lease(), slurm(state="NODE_FAIL")) == "pilot p1 (job 12_0 on n1) has ended: NODE_FAIL"
    told = slurm(state="FAILED", exit_code="0:9")
    assert death(held(), lease(), told) == "pilot p1 (job 12_0 on n1) has ended: FAILED, signal 9"


def test_slurm_does_not_decide_about_the_pilots_of_others() -> None:
    """Other clusters share the pool, and job ids are used again."""
    assert death(held(), lease(submission="picas-y.1"), slurm(state="FAILED")) is None
    assert death(held(), lease(job="13_0"), slurm(state="FAILED")) is None
    assert death(held(), lease(), slurm(state="UNKNOWN")) is None


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_what_was_locked_before_its_job_started_again_is_an_orphan(ahead: float) -> None:
    """Whatever the cluster's clock says."""
    restarted = slurm(ahead, started=int(NOW - 50 + ahead))
    assert death(held(NOW - 100), lease(), restarted) == "pilot p1 (job 12_0 on n1) was requeued"
    assert death(held(NOW - 40), lease(), restarted) is None
    assert death(held(NOW - 100), lease(), slurm(ahead)) is None
    assert death(held(NOW - 100), lease(renewed=NOW - 40), restarted) is None, "the database's clock may have stepped"


def test_a_job_that_waits_holds_nothing_but_what_it_claimed_since_the_query() -> None:
    assert (
        death(held(NOW - 100), lease(), slurm(state="PENDING", started=0)) == "pilot p1 (job 12_0 on n1) was requeued"
    )
    assert death(held(NOW), lease(), slurm(state="PENDING", started=0)) is None


def test_a_pilot_without_a_lease_is_given_time() -> None:
    two, one = 2 * int(deaths.LEASE), deaths.LEASE
    assert death(held(NOW - two), seen=one) is None
    assert death(held(NOW - two - 1), seen=one - 1) is None
    assert death(held(NOW - two - 1), seen=one) == "pilot p1 has no lease"


def client(lock: int = NOW - 100, **fields: Any) -> dict[str, Any]:
    """A token that a PiCaS client holds."""
    return {"_id": "t", "lock": lock, "hostname": "n1", "slurm_job_id": "12_0", **fields}


def test_the_picas_clients_pilots_die_with_their_jobs() -> None:
    ended = slurm(state="TIMEOUT", started=int(NOW - 200), ended=int(NOW - 20), node="n7")
    assert death(client(), told=ended) == "job 12_0 on n7 has ended: TIMEOUT"
    unknown = slurm(state="TIMEOUT", started=int(NOW - 200))
    assert death(client(), told=unknown) == "job 12_0 on n1 has ended: TIMEOUT", "sacct tells later when it ended"
    assert death(client(), told=slurm()) is None
    assert death(client(), told=None) is None
    assert death(client(NOW - 500), told=ended) is None, "another cluster's job of the same id"
    assert death(client(slurm_job_id="99"), told=ended) is None
    assert death(client(slurm_job_id=None), told=ended) is None


def test_pilots_without_leases_are_evaluated_by_age_if_that_is_wanted() -> None:
    assert death(client()) is None
    assert death(client(), max_lock_age=100) is None
    assert death(client(), max_lock_age=99) == "it was locked for 100 s"
    assert death(held(), lease(), max_lock_age=5) is None, "its lease counts"


def test_a_token_whose_job_runs_is_never_too_old() -> None:
    """The job id is that of a job of the submission, and the lock fits: another cluster's of the same id may be anything."""
    runs = slurm(state="RUNNING", started=int(NOW - 200))
    assert death(client(), told=runs, max_lock_age=5) is None
    assert death(client(NOW - 500), told=runs, max_lock_age=5) == "it was locked for 500 s"
    assert death(client(slurm_job_id=None, dirac_job_id="12_0"), told=runs, max_lock_age=5) == "it was locked for 100 s"


def test_a_token_that_is_being_saved_is_not_too_old() -> None:
    """Some scripts save their token at each line of a log. Who has not seen the last save watches for a while first."""
    observer = deaths.ObservedLeases()

    def looked(rev: str, at: float, **fields: Any) -> Evaluation:
        observer.locked = {"t": client(_rev=rev, **fields)}
        return Evaluation(NOW + at, {}, max_lock_age=50, saved=observer.note_revisions(at, NOW + at))

    first = looked("1-a", 0)
    assert first.death(client()) is None
    assert first.holders([client()]).patience == 25
    assert looked("2-a", 20).death(client()) is None
    assert looked("2-a", 69).death(client()) is None
    assert looked("2-a", 71).death(client()) == "it was locked for 171 s"
    assert looked("3-a", 72).death(client()) is None
    fresh = deaths.ObservedLeases()
    fresh.locked = {"t": client(_rev="9-a")}
    assert Evaluation(NOW, {}, max_lock_age=50, saved=fresh.note_revisions(0, NOW)).death(client()) is None
    assert Evaluation(NOW, {}, max_lock_age=50, saved=fresh.note_revisions(25, NOW)).death(client()) is not None


def test_a_token_that_was_reset_by_hand_and_locked_by_a_client_is_the_clients() -> None:
    assert death(held(lock=NOW - 100, claim="abc-5000"), lease(ended=True)) is None


def test_holders_are_named_once() -> None:
    tokens = [held(), held(pilot="p0"), held(), client(), held(claim="abc-1")]
    assert deaths.holders(tokens) == ["p0", "p1"]
    assert lease_id("p1") == "_local/picas-pilot-p1"


def test_holders_of_tokens_are_found() -> None:
    ended, silent = lease(pilot="p2", ended=True, renewed=0), lease(pilot="p3", renewed=NOW - 62)
    known = {found.pilot: found for found in (lease(), ended, silent)}
    tokens = [
        held(),
        held(pilot="p2"),
        client(_id="b:own"),
        client(_id="b:other", slurm_job_id="99"),
        client(_id="b:none", slurm_job_id=None),
    ]
    everybody = [held(pilot="p3"), *tokens]
    judgement = Evaluation(NOW, known, KEY, slurm(), silent=watched(everybody, list(known.values()), 10))
    assert judgement.holders(tokens) == Holders(known=3, foreign=("b:other", "b:none"))
    assert judgement.holders(everybody).patience == 20, "the rest of half of its lease"
    assert Evaluation(NOW, {}).holders([client(_id="b:own")]).foreign == ("b:own",), "Slurm does not answer"


def test_a_broken_lease_is_an_old_one() -> None:
    broken = Lease.parse({"pilot": "p1", "renewed": "x", "lease": None})
    assert death(held(), broken) == "pilot p1 (job None on ) did not renew its lease for 10000 s"


def test_another_submission_that_answers_judges_its_own_pilots() -> None:
    """Its folder may hold their results. When its cluster does not answer, their leases decide."""
    alone = Evaluation(NOW, {"p1": lease(renewed=NOW - 500)}, key="mine.1", silent={"p1": 0.0})
    assert alone.death(held()) == "pilot p1 (job 12_0 on n1) did not renew its lease for 500 s"
    of_two = replace(alone, others={"theirs.1"})
    assert of_two.death(held()) == alone.death(held())
    assert replace(alone, others={lease().submission}).death(held()) is None


@pytest.mark.parametrize(
    ("node", "host", "dies"),
    [
        ("n1", "n1.site", True),
        ("n1", "n2", False),
        ("n[1-2]", "n2", True),
        ("n[1-2]", "tcn7", False),
        ("", "n1", False),
    ],
)
def test_the_host_decides_between_clusters_with_jobs_of_the_same_id(node: str, host: str, dies: bool) -> None:
    ended = slurm(state="TIMEOUT", started=int(NOW - 200), ended=int(NOW - 20), node=node)
    assert death(client(hostname=host), told=ended) is not None
    of_two = Evaluation(NOW, {}, slurm=ended, others=set())
    assert (of_two.death(client(hostname=host)) is not None) is dies
