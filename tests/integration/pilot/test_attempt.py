"""What a command sees of its token, and what the token gets from it."""

from __future__ import annotations

import itertools
import socket
import time
from pathlib import Path

from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import COUNT, Pool, Proxy, Submission, left_behind


def test_a_token_is_run_and_its_result_written(pool: Pool, submission: Submission) -> None:
    (submission.folder / "process.sh").write_text(
        "#!/bin/sh\n"
        'echo "input is $PICAS_INPUT"; echo oops >&2; pwd > "$RUNS"\n'
        'test -f token.json && test "$(cat side.txt)" = beside || exit 9\n'
        'echo "{\\"answer\\": \\"$PICAS_FIELD_COLOUR\\", \\"file\\": \\"$PICAS_TOKEN_FILE\\"}" > "$PICAS_OUTPUT_FILE"\n'
    )
    (submission.folder / "process.sh").chmod(0o755)
    (submission.folder / "side.txt").write_text("beside")
    pool.push([{"input": "seven", "colour": "blue", "note": {"kept": [1, 2.5, None]}}])
    before = time.time()
    env = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}
    assert submission.run("./process.sh", files=["process.sh", "side.txt"], env=env) == 0, submission.log()

    doc = pool.get("b:0000")
    assert state_of(doc) is State.DONE
    assert (doc["exit_code"], doc["hostname"], doc["slurm_job_id"]) == (0, socket.gethostname(), "15_2")
    assert doc["output"] == {"answer": "blue", "file": doc["output"]["file"]}
    assert doc["note"] == {"kept": [1, 2.5, None]}
    assert before - 5 < doc["lock"] <= doc["done"] < before + 60
    assert doc["seconds"] > 0
    assert "pilot" not in doc
    assert doc["scrub_count"] == 0
    assert not doc.get("attempts")
    assert pool.attachment("b:0000", "attempt-1.out") == b"input is seven\n"
    assert pool.attachment("b:0000", "attempt-1.err") == b"oops\n"
    assert not Path((submission.folder / "runs").read_text().strip()).exists(), "the scratch folder stayed"
    assert list(submission.scratch.iterdir()) == []
    (lease,) = pool.leases()
    assert lease["ended"] is True
    assert (lease["job"], lease["submission"], lease["counts"]) == ("15_2", "sub-1", {"done": 1})


def test_output_of_any_kind_is_kept(pool: Pool, submission: Submission) -> None:
    """Bytes that are no UTF-8, more than is kept, a folder that is gone or read-only, children that stay."""
    commands = [
        "printf '\\377\\376\\000x'; printf '\\200' >&2",
        "head -c 50000000 /dev/zero | tr '\\0' a; echo the end",
        'rm -rf "$PWD"; echo gone',
        "mkdir -p a/b; touch a/b/c; chmod 000 a/b a .",
        "echo $$ > /dev/null; sleep 300 & setsid sh -c 'exec > /dev/null 2>&1; sleep 301 & sleep 302' & sleep 0.3; echo left",
        "mkfifo output.json; rm -f output.json; mkfifo output.json",
        "echo nonsense > output.json",
        "echo '{\"x\": NaN}' > output.json",
        "head -c 2000000 /dev/zero | tr '\\0' 1 > output.json",
    ]
    pool.push([{"input": command} for command in commands])
    started = time.monotonic()
    assert submission.run('eval "$PICAS_INPUT"', log_bytes=100_000) == 0, submission.log()
    assert time.monotonic() - started < 45
    docs = [pool.docs()[f"b:{place:04d}"] for place in range(len(commands))]
    assert [doc["exit_code"] for doc in docs] == [0, 0, 0, 0, 0, 65, 65, 65, 65], docs
    assert pool.attachment("b:0000", "attempt-1.out") == b"\xff\xfe\x00x"
    assert pool.attachment("b:0000", "attempt-1.err") == b"\x80"
    big = pool.attachment("b:0001", "attempt-1.out")
    assert big.startswith(b"[49,900,008 bytes omitted]\n")
    assert big.endswith(b"aaathe end\n")
    assert len(big) < 100_100
    assert pool.attachment("b:0002", "attempt-1.out") == b"gone\n"
    assert "output.json is not valid JSON" in docs[6]["error"][-1]["message"]
    assert "2,000,000" not in docs[8]["error"][-1]["message"]
    assert list(submission.scratch.iterdir()) == []
    assert not left_behind(submission), "children of a command are still there"


def test_a_gigabyte_of_output_takes_neither_memory_nor_disk(pool: Pool, submission: Submission) -> None:
    command = (
        "head -c 1000000000 /dev/zero | tr '\\0' a; echo the end;"
        ' echo [$(grep VmHWM /proc/$PPID/status | tr -dc 0-9), $(du -sk "$TMPDIR" | cut -f1)] > output.json'
    )
    pool.push([{}])
    assert submission.run(command, log_bytes=2_000_000) == 0, submission.log()
    out = pool.attachment("b:0000", "attempt-1.out")
    assert out.startswith(b"[998,000,008 bytes omitted]\naaa")
    assert out.endswith(b"aaathe end\n")
    assert len(out) < 2_000_100
    memory, disk = pool.get("b:0000")["output"]
    assert memory < 100_000, "KiB that the pilot had at most"
    assert disk < 100, "KiB in its scratch folder"


def test_a_failed_token_is_retried_and_its_attempts_kept(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": 1}, {"input": 1, "max_retries": 0}, {"input": 7}, {"input": 0}])
    command = COUNT + '; echo "try $PICAS_ATTEMPT"; echo because >&2; exit "$PICAS_INPUT"'
    assert submission.run(command, max_retries=2, no_retry_exit_codes=[7]) == 0, submission.log()
    assert submission.runs() == {"b:0000": 3, "b:0001": 1, "b:0002": 1, "b:0003": 1}
    doc = pool.get("b:0000")
    assert state_of(doc) is State.ERROR
    assert (doc["exit_code"], doc["scrub_count"], len(doc["attempts"])) == (1, 2, 2)
    assert doc["attempts"][0]["reason"] == "failed: exit code 1: because"
    assert doc["attempts"][0]["exit_code"] == 1
    assert doc["error"][-1]["message"] == "exit code 1: because"
    assert [pool.attachment("b:0000", f"attempt-{n}.out") for n in (1, 2, 3)] == [b"try 1\n", b"try 2\n", b"try 3\n"]
    assert state_of(pool.get("b:0003")) is State.DONE


def test_a_token_that_waits_again_while_the_pilot_searches_is_run(
    pool: Pool, behind_proxy: Submission, proxy: Proxy
) -> None:
    """The second slot's search finds nothing; before its answer is here, the first slot's token has failed."""
    proxy.fault = lambda request: "hold answer" if b"/_view/todo" in request.split(b"\r\n")[0] else ""
    pool.push([{"input": 1}])
    assert behind_proxy.run(COUNT + "; sleep 0.3; exit 1", max_retries=1, slots=2) == 0, behind_proxy.log()
    assert behind_proxy.runs() == {"b:0000": 2}


def test_retries_keep_ten_logs_at_most(pool: Pool, submission: Submission) -> None:
    old = [{"reason": "pushed again", "lock": 1} for _ in range(10)]
    stubs = {f"attempt-{n}.out": {"content_type": "text/plain", "data": "eA=="} for n in range(1, 16)}
    stubs["input.dat"] = {"content_type": "text/plain", "data": "eA=="}
    pool.push([{"input": "", "attempts": old, "_attachments": stubs}])
    assert submission.run("echo $PICAS_ATTEMPT; false", max_retries=1) == 0
    doc = pool.get("b:0000")
    assert len(doc["attempts"]) == 10
    assert sorted(doc["_attachments"]) == sorted(["input.dat", *(f"attempt-{n}.out" for n in range(7, 18))])
    assert pool.attachment("b:0000", "attempt-17.out") == b"17\n"


def test_limits_hold_for_attempts_that_are_not_kept_any_more(pool: Pool, submission: Submission) -> None:
    failed, died = {"reason": "failed: x"}, {"reason": "reaped: x"}
    many = [{**died, "earlier": {"reaped": 5}}, *[died] * 9]
    pool.push([{"input": 1, "attempts": [failed] * 8 + [died] * 2}, {"input": 0, "attempts": many}])
    assert submission.run(COUNT + '; exit "$PICAS_INPUT"', max_retries=9) == 0, submission.log()
    assert submission.runs() == {"b:0000": 2, "b:0001": 1}
    assert pool.states() == {State.ERROR: 1, State.DONE: 1}


def test_a_command_that_exceeds_its_time_limit_is_stopped(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": "sleep 60"}, {"input": "trap '' TERM; sleep 60", "time_limit": 1}])
    started = time.monotonic()
    assert submission.run('eval "$PICAS_INPUT"', time_limit=0.7, kill_after=1, slots=2) == 0
    assert time.monotonic() - started < 15
    for doc in pool.docs().values():
        assert state_of(doc) is State.ERROR
        assert doc["exit_code"] == 124
        assert "time limit" in doc["error"][-1]["message"]


def test_a_command_that_goes_missing_later_is_the_tokens_fault(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    assert submission.run("cd . && ./missing.sh") == 0
    doc = pool.get("b:0000")
    assert doc["exit_code"] == 127
    assert "missing.sh" in doc["error"][-1]["message"]


def test_an_exit_code_stops_the_pilot(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}] * 3)
    assert submission.run(COUNT + "; exit 42", stop_exit_codes=[42]) == 42
    assert pool.states() == {State.TODO: 3}
    assert sum(submission.runs().values()) == 1
    ((token, _),) = submission.runs().items()
    assert "exit code 42" in pool.get(token)["attempts"][0]["reason"]


def test_a_folder_that_was_left_as_it_was_is_used_again(pool: Pool, submission: Submission) -> None:
    """By the same slot, with another name. Not if the command has changed it, or has left a process or a file."""
    commands = [
        ":",
        "echo 1 > output.json",
        "touch more",
        "chmod 755 .",
        "setsid sleep 5 > /dev/null 2>&1 &",
        "mkdir output.json",
        "mv ../$(basename $PWD) ../other; mkdir -m 700 $PICAS_TOKEN_FILE.new; mv $PICAS_TOKEN_FILE.new $OLDPWD",
        ":",
        ":",
    ]
    pool.push([{"input": command, "priority": -place} for place, command in enumerate(commands)])
    shown = 'OLDPWD=$PWD; echo "$(stat -c %i-%.9W .) $PWD $(ls)" >> "$RUNS"; eval "$PICAS_INPUT"'
    assert submission.run(shown, max_claim=1) == 0, submission.log()
    runs = [line.split(maxsplit=2) for line in (submission.folder / "runs").read_text().splitlines()]
    made, names, files = zip(*runs, strict=True)
    assert set(files) == {"token.json"}
    assert len(set(names)) == len(commands)
    again = [after == before for before, after in itertools.pairwise(made)]
    assert again == [True, True, False, False, False, False, False, True]
    assert list(submission.scratch.iterdir()) == []
