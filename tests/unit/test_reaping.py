"""What a look at pilots makes of what it finds. The looks themselves are in the chaos tests, on real parts."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from airflow_provider_picas import reaping
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.couchdb.protocol import Answer, Request
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.operation import drive
from airflow_provider_picas.reaping import News, Watched
from airflow_provider_picas.slurm.jobs import Job, Look
from airflow_provider_picas.slurm.remote import Command, Output
from airflow_provider_picas.tokens.states import State, state_of

SUBMITTED = {
    "ssh_conn_id": "spider", "submission": "picas-x.1", "folder": "/home/me/picas-pilots/picas-x.1", "job_ids": ["12", "13"],
    "submitted": "2026-01-01T00:00:10+00:00",
}  # fmt: skip


def test_the_submission_that_is_watched() -> None:
    assert Watched.parse(SUBMITTED) == Watched("picas-x.1", SUBMITTED["folder"], 1767225610, "spider", 2)  # type: ignore[arg-type]
    assert Watched.parse({**SUBMITTED, "submission": None, "submitted": None}) is None
    assert Watched.parse(None) is None
    assert Watched.parse("") is None


@pytest.mark.parametrize(
    "value", ["picas-x.1", 5, {}, {**SUBMITTED, "submitted": "yesterday"}, {**SUBMITTED, "job_ids": None}]
)
def test_what_is_no_submission(value: Any) -> None:
    with pytest.raises(ValueError, match="`pilots` is the output of the operator that submits pilots"):
        Watched.parse(value)


def test_whether_pilots_are_left() -> None:
    assert News().pilots_left is None
    assert News(slurm=Look({}, 1)).pilots_left is False
    assert News(slurm=Look({"1": Job("1", "FAILED")}, 1)).pilots_left is False
    for state in ("PENDING", "RUNNING", "COMPLETING", "WHO_KNOWS"):
        assert News(slurm=Look({"1": Job("1", "FAILED"), "2": Job("2", state)}, 1)).pilots_left is True


def test_troubles_are_told() -> None:
    assert News(slurm=Look({}, 1)).trouble is None
    assert News(outage="gone").trouble == "gone"
    assert "Slurm accounting storage is disabled" in str(
        News(slurm=Look({}, 1, "Slurm accounting storage is disabled")).trouble
    )


LOCKED = {"_id": "b:1", "_rev": "2-a", "type": "token", "lock": 1000, "done": 0, "scrub_count": 0, "hostname": "n1"}
OURS = {**LOCKED, "pilot": "p1", "claim": "abc-1000"}


def test_a_token_is_given_back_with_its_attempt() -> None:
    back = reaping._given_back(OURS, "its pilot is dead", 3, 1100)
    assert state_of(back) is State.TODO
    assert back["scrub_count"] == 1
    assert "pilot" not in back
    assert back["attempts"][0]["reason"] == "reaped: its pilot is dead"


def test_a_token_whose_pilots_die_ends_in_error_with_the_cause() -> None:
    reaped = {"reason": "reaped: before", "lock": 1}
    failed = reaping._given_back({**OURS, "attempts": [reaped] * 3, "scrub_count": 3}, "OUT_OF_MEMORY", 3, 1100)
    assert state_of(failed) is State.ERROR
    assert "4 pilots died" in failed["error"][-1]["message"]
    assert "OUT_OF_MEMORY" in failed["error"][-1]["message"]


def test_a_clients_token_counts_by_its_scrubs() -> None:
    assert state_of(reaping._given_back({**LOCKED, "scrub_count": 2}, "TIMEOUT", 3, 1100)) is State.TODO
    failed = reaping._given_back({**LOCKED, "scrub_count": 3}, "TIMEOUT", 3, 1100)
    assert state_of(failed) is State.ERROR
    assert "TIMEOUT" in json.dumps(failed["error"])


CHANGE = {
    "kind": "done", "token": "b:1", "claim": "abc-1000", "lock": 1000, "set": {"done": 1010, "exit_code": 0, "output": 5},
    "unset": ["pilot"], "error": None, "attempt": None, "number": 1, "attachments": {},
}  # fmt: skip


class Sides:
    """A cluster whose folder holds these files, and a database with this token; answers are scripted."""

    def __init__(self, files: dict[str, Any], token: dict[str, Any] | None) -> None:
        self.files, self.token = files, token
        self.commands: list[str] = []
        self.written: list[dict[str, Any]] = []

    def __call__(self, step: Any) -> Any:
        if isinstance(step, Command):
            self.commands.append(step.text)
            lines = [
                f"{name} {base64.b64encode(json.dumps(content).encode()).decode()}"
                for name, content in self.files.items()
            ]
            return Output(0, "\n".join(lines))
        assert isinstance(step, Request)
        if step.path.endswith("_bulk_docs"):
            self.written += json.loads(step.body or b"")["docs"]
            return Answer(201, {}, json.dumps([{"id": "b:1", "rev": "3-b"}]).encode())
        rows = [{"id": "b:1", "doc": self.token}] if self.token else [{"key": "b:1", "error": "not_found"}]
        return Answer(200, {}, json.dumps({"rows": rows}).encode())


def send(sides: Sides) -> int:
    pool = Pool(Settings(url="http://x", database="db"))
    return drive(reaping.send_unsent(pool, "/f"), sides)


def test_what_a_pilot_left_is_sent_under_its_fence() -> None:
    sides = Sides({"b%3A1-abc.json": {"format": 1, "database": "db", "change": CHANGE}}, OURS)
    assert send(sides) == 1
    (written,) = sides.written
    assert (written["output"], written["_rev"], state_of(written)) == (5, "2-a", State.DONE)
    assert (
        "rm -f -- '/f/unsent/b%3A1-abc.json'" in sides.commands[1]
        or "rm -f -- /f/unsent/b%3A1-abc.json" in sides.commands[1]
    )


@pytest.mark.parametrize("token", [None, {**OURS, "claim": "other-1001", "lock": 1001}])
def test_what_comes_too_late_is_kept_as_refused(token: dict[str, Any] | None) -> None:
    sides = Sides({"x.json": {"format": 1, "database": "db", "change": CHANGE}}, token)
    assert send(sides) == 0
    assert not sides.written
    assert "mv -- /f/unsent/x.json /f/refused/" in sides.commands[1]


def test_a_file_that_holds_no_result_stays_where_it_is() -> None:
    sides = Sides({"x.json": {"hello": 1}, "y.json": [], "z.json": {"change": {"kind": 5}}}, OURS)
    assert send(sides) == 0
    assert len(sides.commands) == 1
