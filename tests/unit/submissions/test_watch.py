"""What a check of pilots makes of what it finds. The queries themselves are in the chaos tests, on real parts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Request, Response
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import logs
from airflow_provider_picas.slurm.jobs import Job, SlurmStatus
from airflow_provider_picas.slurm.remote import Command, Output
from airflow_provider_picas.submissions import unsent, watch
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens.states import State, state_of

SUBMITTED = {
    "ssh_conn_id": "spider", "submission": "picas-x.1", "folder": "/home/me/picas-pilots/picas-x.1", "job_ids": ["12", "13"],
    "submitted": "2026-01-01T00:00:10+00:00",
}  # fmt: skip


def shell(step: Any) -> Output:
    """What the login node does, without one."""
    ended = subprocess.run(["bash", "-c", step.text], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return Output(0, ended.stdout, ended.stderr)


def test_a_submission_is_parsed_from_its_output() -> None:
    assert Submission.parse(SUBMITTED) == Submission("picas-x.1", SUBMITTED["folder"], 1767225610, "spider", 2)  # type: ignore[arg-type]
    assert Submission.parse({**SUBMITTED, "submission": None, "submitted": None}) is None
    assert Submission.parse(None) is None
    assert Submission.parse("") is None


@pytest.mark.parametrize(
    "value", ["picas-x.1", 5, {}, {**SUBMITTED, "submitted": "yesterday"}, {**SUBMITTED, "job_ids": None}]
)
def test_an_invalid_submission_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="`pilots` must be the output of the operator that submits pilots"):
        Submission.parse(value)


@pytest.mark.parametrize(("mark", "asked"), [("mine", 5.0), ("of another wait", None), (None, None)])
def test_leases_are_as_new_as_the_probe_in_their_response(mark: str | None, asked: float | None) -> None:
    def answer(request: Request) -> Response:
        assert json.loads(request.body or b"")["keys"] == ["_local/picas-pilot-p1", watch.QUORUM_PROBE]
        docs = [{"_id": "_local/picas-pilot-p1", "_rev": "0-1", "pilot": "p1"}]
        docs += [{"_id": watch.QUORUM_PROBE, "_rev": "0-1", "mark": mark}] if mark else []
        rows = [{"id": doc["_id"], "key": doc["_id"], "value": {}, "doc": doc} for doc in docs]
        date = "Thu, 01 Jan 2026 00:00:00 GMT"
        return Response(200, {"date": date}, json.dumps({"rows": rows}).encode())

    pool = Pool(Settings("http://127.0.0.1", "pool"))
    known, _, read = drive(watch._dated_leases(pool, ["p1"], watch.Probe("mine", 5.0)), answer)
    assert (list(known), read) == (["p1"], asked)


def test_remaining_pilots_are_noticed() -> None:
    assert PilotStatus().pilots_remain is None
    assert PilotStatus(slurm=SlurmStatus({}, 1)).pilots_remain is False
    assert PilotStatus(slurm=SlurmStatus({"1": Job("1", "FAILED")}, 1)).pilots_remain is False
    for state in ("PENDING", "RUNNING", "COMPLETING", "WHO_KNOWS"):
        assert PilotStatus(slurm=SlurmStatus({"1": Job("1", "FAILED"), "2": Job("2", state)}, 1)).pilots_remain is True


def test_troubles_are_reported() -> None:
    assert PilotStatus(slurm=SlurmStatus({}, 1)).trouble is None
    assert PilotStatus(outage="gone").trouble == "gone"
    assert "Slurm accounting storage is disabled" in str(
        PilotStatus(slurm=SlurmStatus({}, 1, "Slurm accounting storage is disabled")).trouble
    )


def test_thousands_of_known_logs_fit_into_a_command(tmp_path: Path) -> None:
    """Linux takes 128 KiB as one argument, and the text is sent as base64."""
    names = [f"pilot-1234567_{number}.log" for number in range(logs.NEWEST)]
    for name in names:
        (tmp_path / name).write_text("one\n")
    sizes = dict.fromkeys(names, 4) | {f"pilot-1234566_{number}.log": 4 for number in range(5_000)}
    with (tmp_path / names[0]).open("a") as file:
        file.write("two\n")
    found = drive(logs.updates(str(tmp_path), sizes), shell)
    assert found == [logs.LogUpdate(names[0], 8, ("two",))]


LOCKED = {"_id": "b:1", "_rev": "2-a", "type": "token", "lock": 1000, "done": 0, "scrub_count": 0, "hostname": "n1"}
OURS = {**LOCKED, "pilot": "p1", "claim": "abc-1000"}


def test_a_token_is_released_with_its_attempt() -> None:
    back = watch._released(OURS, "its pilot is dead", 3, 1100)
    assert state_of(back) is State.TODO
    assert back["scrub_count"] == 1
    assert "pilot" not in back
    assert back["attempts"][0]["reason"] == "reaped: its pilot is dead"


def test_a_token_whose_pilots_die_ends_in_error_with_the_cause() -> None:
    reaped = {"reason": "reaped: before", "lock": 1}
    failed = watch._released({**OURS, "attempts": [reaped] * 3, "scrub_count": 3}, "OUT_OF_MEMORY", 3, 1100)
    assert state_of(failed) is State.ERROR
    assert "4 pilots died" in failed["error"][-1]["message"]
    assert "OUT_OF_MEMORY" in failed["error"][-1]["message"]


def test_a_clients_token_counts_by_its_scrubs() -> None:
    assert state_of(watch._released({**LOCKED, "scrub_count": 2}, "TIMEOUT", 3, 1100)) is State.TODO
    failed = watch._released({**LOCKED, "scrub_count": 3}, "TIMEOUT", 3, 1100)
    assert state_of(failed) is State.ERROR
    assert "TIMEOUT" in json.dumps(failed["error"])


CHANGE = {
    "kind": "done", "token": "b:1", "claim": "abc-1000", "lock": 1000, "set": {"done": 1010, "exit_code": 0, "output": 5},
    "unset": ["pilot"], "error": None, "attempt": None, "number": 1, "attachments": {},
}  # fmt: skip


class Sides:
    """A submission's folder, with a real shell, and a database with this token, whose answers are scripted."""

    def __init__(self, folder: Path, files: dict[str, Any], token: dict[str, Any] | None = None) -> None:
        self.folder, self.token = folder, token
        self.written: list[dict[str, Any]] = []
        (folder / "unsent").mkdir(parents=True)
        for name, content in files.items():
            (folder / "unsent" / name).write_text(json.dumps(content))

    def __call__(self, step: Any) -> Any:
        if isinstance(step, Command):
            return shell(step)
        assert isinstance(step, Request)
        (key,) = json.loads(step.body or b"").get("keys", [None])
        if step.path.endswith("_bulk_docs"):
            self.written += json.loads(step.body or b"")["docs"]
            return Response(201, {}, json.dumps([{"id": "b:1", "rev": "3-b"}]).encode())
        found = self.token and key == self.token["_id"]
        rows = [{"id": key, "doc": self.token}] if found else [{"key": key, "error": "not_found"}]
        return Response(200, {}, json.dumps({"rows": rows}).encode())

    def files(self, kind: str) -> set[str]:
        return {path.name for path in (self.folder / kind).glob("*")}


def send(sides: Sides) -> int:
    pool = Pool(Settings(url="http://x", database="db"))
    sent, left = drive(unsent.send_unsent(pool, str(sides.folder)), sides)
    assert not left
    return sent


def kept(change: dict[str, Any]) -> dict[str, Any]:
    """The content of a file in which a pilot keeps a change."""
    return {"format": 1, "database": "db", "change": change}


def test_what_a_pilot_left_is_sent_under_its_fence(tmp_path: Path) -> None:
    sides = Sides(tmp_path / "it's here", {"b%3A1-abc.json": kept(CHANGE)}, OURS)
    assert send(sides) == 1
    (written,) = sides.written
    assert (written["output"], written["_rev"], state_of(written)) == (5, "2-a", State.DONE)
    assert sides.files("unsent") == sides.files("refused") == set()


@pytest.mark.parametrize("token", [None, {**OURS, "claim": "other-1001", "lock": 1001}])
def test_what_comes_too_late_is_kept_as_refused(token: dict[str, Any] | None, tmp_path: Path) -> None:
    sides = Sides(tmp_path, {"x.json": kept(CHANGE)}, token)
    assert send(sides) == 0
    assert not sides.written
    assert (sides.files("unsent"), sides.files("refused")) == (set(), {"x.json"})


def test_a_file_that_holds_no_result_stays_where_it_is(tmp_path: Path) -> None:
    files = {"u.json": {"change": 5}, "x.json": {"hello": 1}, "y.json": [], "z.json": {"change": {"kind": 5}}}
    sides = Sides(tmp_path, {**files, ".new": {}}, OURS)
    assert send(sides) == 0
    assert sides.files("unsent") == {*files, ".new"}


def test_no_file_keeps_the_others_from_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit go with one command; one that does not fit into any is read in parts."""
    monkeypatch.setattr(unsent, "UNSENT_FILES", 2)
    monkeypatch.setattr(unsent, "UNSENT_BYTES", 1_000)
    large = {**CHANGE, "token": "b:0", "set": {**CHANGE["set"], "output": "x" * 3_500}}
    late = {f"{n}.json": kept({**CHANGE, "token": f"b:{n}"}) for n in range(2, 7)}
    sides = Sides(tmp_path, {"0.json": kept(large), "1.json": kept(CHANGE), "bad.json": "x" * 1_500, **late}, OURS)
    assert send(sides) == 1
    assert (sides.files("unsent"), sides.files("refused")) == ({"bad.json"}, {"0.json", *late})


def test_files_are_read_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "UNSENT_FILES", 3)
    monkeypatch.setattr(unsent, "UNSENT_BYTES", 100)
    sizes = {"a": 500, "b": 60, "c": 40, "d": 1, "e": 0, "f": 0, "g": 0, "h": 101, "i": 100}
    listed = [f"{size} {name}" for name, size in sizes.items()]
    names = ["".join(portion) for portion in unsent._portions([*listed, "no size"])]
    assert names == ["a", "bc", "def", "g", "h", "i"]


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (errors.CouchDBError("", status=413, error="document_too_large"), True),
        (errors.CouchDBError("", status=400, error="bad_request"), True),
        (errors.NotCouchDBError("", status=413), True),
        (errors.NotCouchDBError("", status=400), False),
        (errors.CouchDBError("", status=408, error="timeout"), False),
        (errors.UnauthorizedError("", status=401, error="unauthorized"), False),
        (errors.CouchDBError("The certificate does not verify."), False),
        (UnicodeEncodeError("utf-8", "x", 0, 1, ""), True),
    ],
)
def test_what_is_the_fault_of_a_result(error: errors.CouchDBError | ValueError, blamed: bool) -> None:
    assert unsent._blames_document(error) is blamed
