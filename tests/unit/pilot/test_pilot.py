"""The pure parts of the pilot: configuration, what is written into tokens, what a command sees."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.attempts import attempt_number, attempts_by_kind
from airflow_provider_picas.lifecycle.classes import class_name
from airflow_provider_picas.lifecycle.credentials import parse_picasconfig
from airflow_provider_picas.lifecycle.exit_codes import EX_CONFIG, Failed
from airflow_provider_picas.lifecycle.pilot_config import _CHECKS, Config, parse_config
from airflow_provider_picas.lifecycle.states import is_todo
from airflow_provider_picas.lifecycle.transitions import Change, Ended, Token, conclude, held_by_pilot, reap, release
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.pilot.access import Access, read_access
from airflow_provider_picas.pilot.attempt import Tail
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.environment import job_environment, read_json, token_environment
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.processes import Processes
from airflow_provider_picas.pilot.scratch import remove_tree
from airflow_provider_picas.pilot.wall_clock import WallClock, parse_time_left
from airflow_provider_picas.pilot.work import DRAIN, STOP, Work
from airflow_provider_picas.tokens.states import State, state_of

CONFIG = Config(command="true", submission="s")


def claimed(**fields: Any) -> dict[str, Any]:
    """A token as a pilot holds it."""
    doc = {"_id": "b:1", "_rev": "2-x", "type": "token", "lock": 1000, "done": 0, "scrub_count": 0, "exit_code": ""}
    return {**doc, "hostname": "n1", "slurm_job_id": "5_1", "pilot": "p", "claim": "abc-1000", **fields}


def failed(code: int = 1, how: str = "exit", **fields: Any) -> Ended:
    return Ended(how, code, 1.25, **fields)


# --- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_stands_alone_and_keeps_to_old_syntax() -> None:
    imported = set()
    for content in archive.sources().values():
        tree = ast.parse(content, feature_version=(3, 6))
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    sent = {name[: -len(".py")].removesuffix("/__init__").replace("/", ".") for name in archive.sources()}
    own = {name for name in imported if name.startswith("airflow_provider_picas.")}
    assert own <= sent
    assert {name.split(".")[0] for name in imported - own} <= sys.stdlib_module_names
    newer = {"dataclasses", "tomllib", "zoneinfo", "graphlib", "contextvars", "__future__"}
    assert not imported & newer


def test_the_same_source_gives_the_same_archive() -> None:
    assert archive.build.__wrapped__() == archive.build.__wrapped__()


def test_an_unpacked_archive_runs(tmp_path: Path) -> None:
    file = tmp_path / archive.FILE
    file.write_bytes(archive.build())
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(file), str(tmp_path / "unpacked")], check=True)
    for program in (file, tmp_path / "unpacked"):
        ended = subprocess.run([sys.executable, "-I", str(program)], capture_output=True, text=True)
        assert (ended.returncode, "Usage: picas_pilot.pyz pilot.json" in ended.stdout) == (64, True), ended.stderr


# --- configuration -----------------------------------------------------------------------------------------------------


def test_defaults_are_valid_and_every_key_is_checked() -> None:
    config = parse_config('{"command": ["a"], "submission": "s", "batch": null}')
    assert config == Config(command=["a"], submission="s")
    assert parse_config(json.dumps(config._asdict())) == config
    assert set(_CHECKS) == set(Config._fields)


@pytest.mark.parametrize(
    "keys",
    [
        {"command": ""},
        {"command": []},
        {"command": ["a", 1]},
        {"slots": 0},
        {"slots": 1.5},
        {"slots": True},
        {"lease": "120"},
        {"lease": 1},
        {"lease": float("nan")},
        {"lease": float("inf")},
        {"lease": None},
        {"classes": []},
        {"files": ["../x"]},
        {"files": [".."]},
        {"max_retries": 10},
        {"stop_exit_codes": ["1"]},
        {"time_limit": 0},
        {"batch": 7},
        {"no_such_key": 1},
    ],
)
def test_bad_configuration_names_the_key(keys: dict[str, Any]) -> None:
    with pytest.raises(Failed, match=next(iter(keys))) as caught:
        parse_config(json.dumps({"command": "a", "submission": "s", **keys}))
    assert caught.value.code == EX_CONFIG


@pytest.mark.parametrize("text", ["", "[]", "{", '{"command": "a"}', '{"submission": "a"}'])
def test_configuration_that_is_none(text: str) -> None:
    with pytest.raises(Failed):
        parse_config(text)


def test_picasconfig_is_read_and_never_executed() -> None:
    text = "import os\nPICAS_HOST_URL=\"https://h:6984\"\nPICAS_PASSWORD = 'a\"b'\nOTHER = 1\nPICAS_DATABASE = ''\nos.abort()\n"
    values, secret = parse_picasconfig(text, "/x/picasconfig.py")
    assert secret == "/x/picasconfig.py"
    assert values == {"PICAS_HOST_URL": "https://h:6984", "PICAS_PASSWORD": 'a"b', "PICAS_DATABASE": ""}


@pytest.mark.parametrize("text", ["PICAS_PASSWORD = get('hunter2')", "PICAS_PASSWORD = 'hunter2"])
def test_an_unreadable_picasconfig_is_told_without_its_text(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"PICAS_PASSWORD is neither a string literal|line 1 is not valid Python"
    ) as caught:
        parse_picasconfig(text)
    assert "hunter2" not in str(caught.value)


def test_credentials_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match=r"no picasconfig\.py in"):
        read_access(str(tmp_path), CONFIG)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "picasconfig.py").write_text("PICAS_HOST_URL='http://h:1'\nPICAS_DATABASE='d'\n")
    monkeypatch.setenv("PYTHONPATH", f"/nowhere{os.pathsep}{folder}")
    access = read_access(str(tmp_path), CONFIG._replace(credentials="existing", database="other"))
    assert access == Access("http://h:1", "other", "", "", str(folder))
    assert read_access(str(tmp_path), CONFIG._replace(credentials="elsewhere")).database == "d"


# --- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lock", "done"), [(0, 0), ("0", 0), (False, 0), (1, 0), (0, 1), (None, 0), (0, None), ("x", 0)]
)
def test_todo_is_what_the_views_say(lock: Any, done: Any) -> None:
    doc = {"_id": "a", "type": "token", "lock": lock, "done": done}
    assert is_todo(doc) is (state_of(doc) is State.TODO)
    assert not is_todo({**doc, "type": "other"})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "//"),
        ({"cores": 4}, "4//"),
        ({"cores": 4.0, "gpu": "a/100", "time": 30}, "4/a100/30"),
        ({"cores": True, "gpu": None, "time": 0.5}, "//0.5"),
    ],
)
def test_resource_class(fields: dict[str, Any], name: str) -> None:
    assert class_name(fields) == name


def test_attempts_count_since_the_last_reset() -> None:
    reasons = ["failed: x", "reaped: y", "pushed again", "failed: x", "NODE_FAIL", "given back: told to", "failed: z"]
    doc = {"attempts": [{"reason": reason} for reason in reasons]}
    assert attempts_by_kind(doc) == {"failed": 2, "reaped": 1, "released": 1}
    assert attempts_by_kind({"attempts": "nonsense"}) == {}


def test_attempt_numbers_are_not_used_twice() -> None:
    assert attempt_number({}) == 1
    assert attempt_number({"attempts": [{}, {}]}) == 3
    logs = {"attempt-7.err": {}, "attempt-x.out": {}, "attempt-99.txt": {}, "attempt-9.out\n": {}}
    assert attempt_number({"attempts": [{}], "_attachments": logs}) == 8


def test_a_lock_of_somebody_else_is_recognised() -> None:
    assert held_by_pilot(claimed())
    assert not held_by_pilot(claimed(lock=2000)), "reset by hand, then locked by a PiCaS client"
    assert not held_by_pilot(claimed(pilot=""))
    assert not held_by_pilot({"lock": 1000})


def test_success() -> None:
    doc = claimed(_attachments={"x": {"stub": True}}, error=[])
    change = conclude(Token(doc), Ended("exit", 0, 1.25, b"out", b"", {"a": 1}, True), CONFIG, 1010)
    new = change.apply()
    assert state_of(new) is State.DONE
    assert (change.kind, new["done"], new["lock"], new["output"], new["seconds"]) == (
        "done",
        1010,
        1000,
        {"a": 1},
        1.25,
    )
    assert "pilot" not in new
    assert new["_rev"] == "2-x"
    assert new["error"] == []
    assert new["_attachments"] == {"x": {"stub": True}, "attempt-1.out": {"content_type": "text/plain", "data": "b3V0"}}
    assert doc["pilot"] == "p", "the document at hand was changed"


def test_the_output_of_an_earlier_attempt_does_not_stay() -> None:
    """A token that was done, and was reset, still has it."""
    for ended in (Ended("exit", 0, 1.0), failed(3)):
        assert "output" not in conclude(Token(claimed(output="earlier")), ended, CONFIG, 1010).apply()
    kept = conclude(Token(claimed(output="earlier")), Ended("exit", 0, 1.0, b"", b"", "new", True), CONFIG, 1010)
    assert kept.apply()["output"] == "new"
    while kept.shrink():
        pass
    assert "output" not in kept.apply()


def test_failure_for_good() -> None:
    ended = failed(3, err=b"first\nlast \xff line\n", output=5, has_output=True)
    new = conclude(Token(claimed(error="odd")), ended, CONFIG, 1010).apply()
    assert state_of(new) is State.ERROR
    assert (new["exit_code"], new["output"]) == (3, 5)
    assert new["error"] == [{"time": 1010, "message": "exit code 3: last \ufffd line"}]
    assert "attempts" not in new


@pytest.mark.parametrize(
    ("earlier", "own", "codes", "retried"),
    [
        (0, None, [], True),
        (1, None, [], True),
        (2, None, [], False),
        (0, 0, [], False),
        (2, 5, [], True),
        (0, None, [1], False),
        (0, "nonsense", [], True),
    ],
)
def test_retries(earlier: int, own: Any, codes: list[int], retried: bool) -> None:
    doc = claimed(attempts=[{"reason": "failed: x"}] * earlier, scrub_count=earlier, error=[{"message": "old"}])
    if own is not None:
        doc["max_retries"] = own
    config = CONFIG._replace(max_retries=2, no_retry_exit_codes=codes)
    change = conclude(Token(doc), failed(), config, 1010)
    new = change.apply()
    assert state_of(new) is (State.TODO if retried else State.ERROR)
    if retried:
        assert (change.kind, new["scrub_count"], new["exit_code"], new["error"]) == ("retried", earlier + 1, "", [])
        kept = {"lock": 1000, "hostname": "n1", "pilot": "p", "claim": "abc-1000", "slurm_job_id": "5_1", "done": 1010}
        kept.update(exit_code=1, error="exit code 1", reason="failed: exit code 1", seconds=1.25)
        assert new["attempts"][-1] == kept
        assert not {"pilot", "claim", "slurm_job_id"} & set(new)


def test_stopped_by_the_pilot_is_no_failure() -> None:
    change = conclude(Token(claimed()), failed(143, "received SIGTERM"), CONFIG, 1010)
    new = change.apply()
    assert state_of(new) is State.TODO
    assert (new["scrub_count"], new["attempts"][0]["reason"]) == (1, "given back: received SIGTERM")


def test_a_stop_exit_code_gives_back_until_it_is_the_tokens_fault() -> None:
    config = CONFIG._replace(stop_exit_codes=[9], max_scrubs=2)
    once = claimed(attempts=[{"reason": "given back: exit code 9 stops the pilot"}])
    twice = claimed(attempts=once["attempts"] * 2)
    assert state_of(conclude(Token(once), failed(9), config, 1).apply()) is State.TODO
    assert state_of(conclude(Token(twice), failed(9), config, 1).apply()) is State.ERROR


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (Ended("time limit", 143, 5.0), 124),
        (Ended("time limit", 0, 5.0), 124),
        (Ended("exit", 0, 5.0, fault="output.json is not valid JSON"), 65),
        (Ended("exit", 2, 5.0, fault="output.json is not valid JSON"), 2),
    ],
)
def test_exit_codes(ended: Ended, code: int) -> None:
    new = conclude(Token(claimed()), ended, CONFIG, 1010).apply()
    assert new["exit_code"] == code
    assert state_of(new) is State.ERROR


def test_unstarted_tokens_go_back_as_they_were() -> None:
    before = {"_id": "b:1", "_rev": "2-x", "type": "token", "lock": 0, "done": 0, "hostname": "", "attempts": [1]}
    token = Token(claimed(attempts=[1]))
    del token.doc["scrub_count"], token.doc["exit_code"]
    assert release(token).apply() == before


def test_reaping() -> None:
    doc = claimed(attempts=[{"reason": "failed: x"}, {"reason": "reaped: y"}])
    new = reap(doc, "pilot p fell silent", 2, 1010).apply()
    assert state_of(new) is State.TODO
    assert new["attempts"][-1]["reason"] == "reaped: pilot p fell silent"
    final = reap(new | claimed(attempts=new["attempts"]), "it died", 2, 1020).apply()
    assert state_of(final) is State.ERROR
    assert "3 pilots died" in final["error"][-1]["message"]
    assert "it died" in final["error"][-1]["message"]
    assert state_of(reap(claimed(exit_code=0), "it died", 0, 1020).apply()) is State.ERROR


def test_attempts_that_are_not_kept_any_more_still_count() -> None:
    """Else a token that fails, and whose pilots die, in turns would never come to its limits."""
    config, ends = CONFIG._replace(max_retries=9, max_scrubs=20), {"failed": 0, "died": 0}
    doc = claimed(attempts=[{"reason": "failed: x"}] * 20 + [{"reason": "reset: by hand"}])
    while state_of(doc) is State.LOCKED and sum(ends.values()) < 99:
        died = sum(ends.values()) % 3 != 0
        ends["died" if died else "failed"] += 1
        change = reap(doc, "x", 20, 1010) if died else conclude(Token(doc), failed(), config, 1010)
        doc = change.apply()
        assert len(doc["attempts"]) <= 10
        doc = {**claimed(), **doc, "lock": 1000} if state_of(doc) is State.TODO else doc
    assert ends == {"failed": 10, "died": 18}


def test_pilots_that_die_are_counted_beyond_ten_and_anew_after_a_reset() -> None:
    doc, deaths = claimed(), 0
    while state_of(doc) is State.LOCKED and deaths < 99:
        doc, deaths = reap(doc, "x", 15, 1010).apply(), deaths + 1
        doc = {**claimed(), **doc, "lock": 1000} if state_of(doc) is State.TODO else doc
    assert deaths == 16
    assert "16 pilots died" in doc["error"][-1]["message"]
    assert attempts_by_kind(transitions.scrubbed(doc, "reset: by hand")) == {}


def test_at_most_ten_attempts_and_their_logs() -> None:
    stubs = {f"attempt-{n}.out": {"stub": True} for n in range(1, 16)} | {"data.bin": {"stub": True}}
    doc = claimed(attempts=[{"reason": "pushed again", "n": n} for n in range(10)], _attachments=stubs)
    config = CONFIG._replace(max_retries=1)
    new = conclude(Token(doc), failed(out=b"x"), config, 1010).apply()
    assert [attempt.get("n") for attempt in new["attempts"]] == [*range(1, 10), None]
    assert set(new["_attachments"]) == {"data.bin", *(f"attempt-{n}.out" for n in range(6, 17))}


# --- changes on later revisions ----------------------------------------------------------------------------------------


DONE = conclude(Token(claimed()), Ended("exit", 0, 1.0), CONFIG, 1010)
RETRY = conclude(Token(claimed()), failed(), CONFIG._replace(max_retries=1), 1010)
RELEASE = release(Token(claimed()))
EDITED = claimed(_rev="3-y", comment="by hand")
RESET = {**claimed(_rev="3-y", lock=0)}
GIVEN_BACK = {name: value for name, value in RESET.items() if name not in ("pilot", "claim")}
ELSEWHERE = claimed(_rev="4-z", claim="def-1005", lock=1005, pilot="q")


@pytest.mark.parametrize(
    ("change", "doc", "verdict"),
    [
        (DONE, None, "refused"),
        (DONE, claimed(), "apply"),
        (DONE, EDITED, "apply"),
        (DONE, DONE.apply(), "landed"),
        (DONE, {**DONE.apply(), "comment": "by hand"}, "landed"),
        # A PiCaS client took it and ended in the same second; then it began in the same one, too.
        (DONE, claimed(lock=1009, done=1010, exit_code=0), "refused"),
        (DONE, claimed(done=1010, exit_code=0), "refused"),
        (DONE, RESET, "refused"),
        (DONE, GIVEN_BACK, "refused"),
        (DONE, ELSEWHERE, "refused"),
        (DONE, claimed(lock=2000), "refused"),  # reset by hand and locked by a PiCaS client
        (DONE, claimed(lock=99, done=99), "refused"),
        (RETRY, EDITED, "apply"),
        (RETRY, RETRY.apply(), "landed"),
        (RETRY, {**RETRY.apply(), "lock": 1005, "claim": "def-1005", "pilot": "q"}, "landed"),
        (RETRY, ELSEWHERE, "refused"),
        (RELEASE, claimed(), "apply"),
        (RELEASE, RELEASE.apply(), "landed"),
        (RELEASE, ELSEWHERE, "refused"),
    ],
)
def test_what_the_current_document_says_of_a_change(change: Change, doc: dict[str, Any] | None, verdict: str) -> None:
    assert change.decide(doc) == verdict
    again = Change.from_json(json.loads(json.dumps(change.to_json())))
    assert again.decide(doc) == verdict


def test_a_change_fits_a_later_revision() -> None:
    again = Change.from_json(json.loads(json.dumps(RETRY.to_json())))
    again.doc = {**EDITED, "scrub_count": 4}
    new = again.apply()
    assert (new["_rev"], new["comment"], new["scrub_count"]) == ("3-y", "by hand", 5)
    assert new["attempts"] == [RETRY.attempt]


@pytest.mark.parametrize(
    "content",
    [[], {}, {"kind": "done"}, *({**DONE.to_json(), name: 7.5} for name in [*vars(DONE), "x"] if name != "lock")],
)
def test_a_file_that_holds_no_change(content: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Change.from_json(content)


def test_what_the_database_refuses_gets_smaller() -> None:
    change = conclude(Token(claimed()), Ended("exit", 0, 1.0, b"x", b"", "big", True), CONFIG, 1010)
    assert change.shrink()
    assert "_attachments" not in change.apply()
    assert change.shrink()
    assert "output" not in change.apply()
    assert state_of(change.apply()) is State.ERROR
    assert not change.shrink()


# --- what a command sees -----------------------------------------------------------------------------------------------


def test_the_tokens_environment() -> None:
    doc = {"_id": "a b", "_rev": "1-x", "input": [1, "x"], "n": 2, "f": 0.5, "yes": False, "none": None, "list": [1]}
    doc |= {"Same": 1, "same": 2, "with space": 1, "ümlaut": 1, "nul": "a\0b", "big": "x" * 65537, "path": "p"}
    doc["n\n"] = 1
    assert token_environment(doc) == {
        "PICAS_TOKEN_ID": "a b",
        "PICAS_INPUT": '[1,"x"]',
        "PICAS_FIELD_N": "2",
        "PICAS_FIELD_F": "0.5",
        "PICAS_FIELD_YES": "false",
        "PICAS_FIELD_PATH": "p",
        "PICAS_OMITTED": "PICAS_FIELD_BIG PICAS_FIELD_NUL",
    }


def test_all_fields_together_are_bounded() -> None:
    doc = {"_id": "a", "input": "i" * 60_000, **{f"f{n}": "x" * 60_000 for n in range(20)}}
    env = token_environment(doc)
    assert sum(len(value) for name, value in env.items() if name != "PICAS_OMITTED") <= 512 * 1024
    assert "PICAS_INPUT" in env
    assert len(env["PICAS_OMITTED"].split()) == 13


def test_the_jobs_environment_without_credentials(tmp_path: Path) -> None:
    base = {"HOME": "/h", "PICAS_PASSWORD": "x", "PICAS_FIELD_A": "x", "PICAS_INPUT": "x", "PICAS_MINE": "kept"}
    path = f"/a{os.pathsep}{tmp_path}/.{os.pathsep}/b"
    env = job_environment({**base, "PYTHONPATH": path}, str(tmp_path))
    assert env == {"HOME": "/h", "PICAS_MINE": "kept", "PYTHONPATH": f"/a{os.pathsep}/b"}
    assert "PYTHONPATH" not in job_environment({"PYTHONPATH": str(tmp_path)}, str(tmp_path))


@pytest.mark.parametrize(
    ("content", "value", "fault"),
    [
        (b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}, None),
        (b" \n", None, None),
        (b"nonsense", None, "not valid JSON"),
        (b"\xff", None, "not valid JSON"),
        (b"NaN", None, "not valid JSON"),
        (b"1e999", None, "not valid JSON"),
        (b'"\\ud800"', None, "not valid JSON"),
        (b"[" * 5000, None, "not valid JSON"),
        (b"[" * 499 + b"{}" + b"]" * 499, functools.reduce(lambda value, _: [value], range(499), {}), None),
        (b"[" * 500 + b"{}" + b"]" * 500, None, "nested more than 500 deep"),
        (b'{"a":' * 700 + b"[]" + b"}" * 700, None, "nested more than 500 deep"),
        (b'"' + b"x" * 9999 + b'"', None, "more than 10,000 bytes"),
    ],
)
def test_what_a_command_writes(tmp_path: Path, content: bytes, value: Any, fault: str | None) -> None:
    (tmp_path / "out.json").write_bytes(content)
    got = read_json(str(tmp_path / "out.json"), 10_000)
    assert got[:2] == (value, value is not None)
    assert (fault or "") in (got[2] or "")
    assert (got[2] is None) is (fault is None)


def test_a_change_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    change = Change("done", "b:1", "abc-1000", 1000, {"done": 1, "output": deep})
    with pytest.raises(RecursionError):
        Outbox(str(tmp_path), "d").keep(change)
    assert list((tmp_path / "unsent").iterdir()) == []


def test_what_a_command_leaves_instead_of_a_file(tmp_path: Path) -> None:
    assert read_json(str(tmp_path / "none"), 10) == (None, False, None)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        assert "not a regular file" in str(read_json(str(tmp_path / name), 10)[2])
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in str(read_json(str(tmp_path / "loop"), 10)[2])


@pytest.mark.parametrize("most", [0, 1, 10, 1000])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_the_tail_of_a_stream(most: int, chunk: int) -> None:
    data = bytes(range(256)) * 2
    tail = Tail(most)
    for start in range(0, len(data), chunk):
        tail.add(data[start : start + chunk])
    if most == 0:
        assert tail.value() == b""
    elif most >= len(data):
        assert tail.value() == data
    else:
        assert tail.value() == b"[%d bytes omitted]\n" % (512 - most) + data[-most:]


def test_scratch_folders_go_whatever_was_done_to_them(tmp_path: Path) -> None:
    inner = tmp_path / "run" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "kept")
    for folder in (inner, inner.parent, tmp_path / "run"):
        folder.chmod(0)
    remove_tree(str(tmp_path / "run"))
    remove_tree(str(tmp_path / "never was"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# --- time --------------------------------------------------------------------------------------------------------------


def test_a_node_an_hour_off_goes_by_the_databases_clock() -> None:
    clock = Clock()
    begin = time.time()
    clock.record(formatdate(begin + 3600, usegmt=True))
    assert begin + 3600 - 0.6 < clock.now() < time.time() + 3600 + 0.6  # the header has whole seconds
    clock.record(None)
    clock.record("nonsense")
    assert begin + 3600 - 0.6 < clock.now() < time.time() + 3600 + 0.6


def test_contact_counts_from_the_first_answer_and_from_the_end_of_the_last_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(
        "airflow_provider_picas.pilot.clock.time", SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
    )
    clock = Clock(longest_gap=10)
    assert clock.contact() == 0
    clock.record(None)
    now += 11
    assert clock.contact() == 11
    clock.record(None)
    assert clock.contact() == 0
    now += 10
    assert clock.contact() == 10
    clock.record(None)
    assert clock.contact() == 10


def test_time_left() -> None:
    shown = "   RunTime=00:01:05 TimeLimit=1-02:00:00 TimeMin=N/A\n   StartTime=2026-01-01T00:00:00 EndTime=2026-01-02T02:00:00\n"
    assert parse_time_left(shown) == 26 * 3600 - 65
    assert parse_time_left("TimeLeft=4:59\n") == 299
    assert parse_time_left("RunTime=00:02:00 TimeLimit=00:01:00") == -60
    unlimited = "RunTime=00:01:05 TimeLimit=UNLIMITED"
    for nothing in (
        unlimited,
        "TimeLeft=INVALID",
        "TimeLeft=NOT_SET",
        "",
        "slurm_load_jobs error: Invalid job id specified",
    ):
        assert parse_time_left(nothing) is None


def test_identity_of_an_array_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert Identity.here().job is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert Identity.here().job == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    first, second = Identity.here(), Identity.here()
    assert first.job == "15_2"
    assert first.pilot.startswith("15_2-")
    assert first.pilot != second.pilot, "a requeued job must be another pilot"


@pytest.mark.parametrize(
    ("task", "least", "count", "share"),
    [
        ("2", "0", "8", (2, 8)),
        ("9", "5", "8", (4, 8)),
        ("40", "0", "3", (1, 3)),
        ("", "", "", (0, 1)),
        ("x", "y", "0", (0, 1)),
    ],
)
def test_share_of_an_array_task(
    monkeypatch: pytest.MonkeyPatch, task: str, least: str, count: str, share: tuple[int, int]
) -> None:
    for name, value in (("ID", task), ("MIN", least), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert Identity.here().share == share


# --- how much to claim -------------------------------------------------------------------------------------------------


def test_as_many_as_can_start_until_tokens_are_known_to_be_short() -> None:
    work = Work(CONFIG._replace(slots=2, max_claim=50))
    assert work.wanted() == 2
    work.add([Token(claimed())])
    assert work.wanted() == 1
    work.learn(0.1)
    assert work.wanted() == 2 * 20 - 1
    work.add([Token(claimed()) for _ in range(20)])
    assert work.wanted() == 0
    for _ in range(20):
        work.learn(60.0)
    assert work.wanted() == 0
    assert len(work.stale(all_of_them=True)) == 21
    assert work.wanted() == 2
    assert work.expected() == 60.0


def test_one_claim_is_bounded() -> None:
    work = Work(CONFIG._replace(max_claim=7))
    work.learn(0.0)
    assert work.wanted() == 7


def test_a_token_that_killed_a_pilot_runs_alone() -> None:
    work = Work(CONFIG)
    assert work.deaths_allowed(pending=0) > 3
    assert work.deaths_allowed(pending=1) == 0
    work.add([Token(claimed())])
    assert work.deaths_allowed(pending=0) == 0


def test_a_stop_goes_before_a_drain() -> None:
    work = Work(CONFIG)
    work.stop(DRAIN, "nothing is left", 0)
    work.stop(DRAIN, "again", 5)
    assert (work.level, work.why, work.code) == (DRAIN, "nothing is left", 0)
    work.stop(STOP, "told to")
    work.stop(DRAIN, "late")
    assert (work.level, work.why) == (STOP, "told to")
    assert work.stopping.is_set()


def test_slurms_input_variables_do_not_reach_the_question_for_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES", "SCONTROL_ALL", "SLURM_CLUSTERS", "SLURM_CONF", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "1")
    clock = WallClock(Clock(), Processes())
    asked = clock._environment()
    assert {name for name in asked if name.startswith("S") and "_" in name} >= {"SLURM_CLUSTERS", "SLURM_CONF"}
    assert not {"SQUEUE_PARTITION", "SQUEUE_STATES", "SCONTROL_ALL", "SLURM_JOB_ID"} & set(asked)
