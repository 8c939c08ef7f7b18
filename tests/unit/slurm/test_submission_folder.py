"""A submission's decisions, with scripted answers from the cluster. Real ones are in the integration tests."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import sbatch_calls, sbatch_record, submission_folder
from airflow_provider_picas.slurm.remote import (
    Command,
    Output,
    Pause,
    RemoteError,
    RemoteFile,
    Send,
    Step,
    UnreachableError,
)
from airflow_provider_picas.slurm.sbatch_calls import SubmissionRefusedError
from airflow_provider_picas.slurm.sbatch_record import Call, parse_record

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
REFUSED = (
    "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition"
)


def text64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def record(*called: tuple[str, str, str, str], acknowledged: bool = False, age: int = 1, given_up: int = 0) -> str:
    """What READ prints: for each call whether it was started, its code, its output and its errors."""
    lines = ["since 1763820000", *(["acknowledged"] if acknowledged else [])]
    for started, code, out, err in called:
        lines += [f"call {started} {code} {age} {given_up}", f"out {text64(out)}", f"err {text64(err)}"]
    return "\n".join(lines) + "\n"


DONE = record(("yes", "0", "42\n", ""))


class Cluster:
    """Answers each kind of step from a script; the last answer of a kind is given again."""

    def __init__(self, **answers: str | Output | Iterable[str | Output]) -> None:
        self.answers = {
            kind: [given] if isinstance(given, str | Output) else list(given) for kind, given in answers.items()
        }
        self.asked: list[str] = []
        self.sent: list[RemoteFile] = []
        self.paused = 0.0

    KINDS = {
        "find": "umask 077\n",
        "make": "umask 077; mkdir",
        "rename": "mv -T -- /home",
        "start": "setsid -f",
        "acknowledge": "acknowledged",
        "timeout": "scontrol show config",
        "squeue": "squeue --noheader --all --states=all",
        "active": "%F|%T",
        "cancel": "scancel",
        "unlock": "/given-up",
        "note": "echo 0 >code",
        "read": "since $(stat",
        "workdir": "pwd -P",
        "credentials": "-mindepth 1 -delete",
        "remove": "rm -rf --",
    }

    def __call__(self, step: Step) -> Output:
        if isinstance(step, Pause):
            self.paused += step.seconds
            return Output(0)
        if isinstance(step, Send):
            self.sent += step.files
            return Output(0)
        assert isinstance(step, Command)
        kind = next(kind for kind, sign in self.KINDS.items() if sign in step.text)
        if kind == "acknowledge" and sbatch_record.READ in step.text:
            kind = "start" if "setsid" in step.text else "find" if "umask" in step.text else "read"
        self.asked.append(kind)
        answers = self.answers.get(kind, [""])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Output) else Output(0, answer)


def plan(**fields: Any) -> submission_folder.Plan:
    return submission_folder.Plan(
        base_key="picas-t-0",
        files=lambda folder, key: [RemoteFile(f"{folder}/pilot.sh", b"#!/bin/sh\n", 0o700)],
        commands=lambda folder, key: [["sbatch", f"--job-name={key}", f"{folder}/pilot.sh"]],
        **fields,
    )


NOTHING, MADE = "/home/me/picas-pilots\n0\n", "/home/me/picas-pilots\n1\n"
FRESH = [NOTHING, MADE + record()]


def submit(cluster: Cluster, **fields: Any) -> submission_folder.SubmitResult:
    return drive(submission_folder.submit(plan(**fields)), cluster)


def test_a_first_submission_fills_a_folder_and_starts() -> None:
    cluster = Cluster(find=FRESH, start=DONE)
    done = submit(cluster, environment={"A": "it's"})
    assert done == submission_folder.SubmitResult(
        "picas-t-0.1", "/home/me/picas-pilots/picas-t-0.1", ("42",), 1763820000, adopted=False
    )
    assert cluster.asked == ["find", "make", "rename", "find", "start", "acknowledge"]
    files = {file.path.rpartition("/")[2]: file for file in cluster.sent}
    assert list(files) == ["pilot.sh", "submit.sh", "made", "command.0"]
    assert files["command.0"].content == b"sbatch --job-name=picas-t-0.1 /home/me/picas-pilots/picas-t-0.1/pilot.sh"
    assert b"export A='it'\"'\"'s'\n" in files["submit.sh"].content


def test_an_unacknowledged_submission_is_adopted_even_when_it_has_ended() -> None:
    cluster = Cluster(find=MADE + DONE)
    assert submit(cluster).adopted
    assert cluster.asked == ["find", "acknowledge"]


def test_an_acknowledged_submission_that_runs_is_adopted() -> None:
    cluster = Cluster(find=MADE + record(("yes", "0", "42\n", ""), acknowledged=True), active="42|RUNNING\n")
    assert submit(cluster).adopted
    assert cluster.asked == ["find", "active"]


def test_an_acknowledged_submission_that_has_ended_is_followed_by_a_new_one() -> None:
    first = MADE + record(("yes", "0", "42\n", ""), acknowledged=True)
    cluster = Cluster(find=[first, "/home/me/picas-pilots\n2\n" + record()], start=record(("yes", "0", "43\n", "")))
    done = submit(cluster)
    assert (done.key, done.job_ids, done.adopted) == ("picas-t-0.2", ("43",), False)


def test_nothing_is_submitted_while_slurm_does_not_report_whether_the_old_one_runs() -> None:
    cluster = Cluster(
        find=MADE + record(("yes", "0", "42\n", ""), acknowledged=True),
        active=Output(1, stderr="slurm_load_jobs error"),
    )
    with pytest.raises(UnreachableError, match="slurm_load_jobs error"):
        submit(cluster)
    assert cluster.asked == ["find", "active"]


def test_a_refusal_is_reported_in_sbatchs_words_and_the_next_try_is_a_new_one() -> None:
    refused = record(("yes", "1", "", REFUSED))
    cluster = Cluster(find=FRESH, start=refused)
    with pytest.raises(
        SubmissionRefusedError, match="invalid partition specified: nope Batch job submission failed"
    ) as caught:
        submit(cluster)
    assert "error:" not in str(caught.value)
    assert "acknowledge" not in cluster.asked
    assert cluster.asked[-1] == "credentials"
    cluster = Cluster(find=[MADE + refused, "/home/me/picas-pilots\n2\n" + record()], start=DONE)
    assert submit(cluster).key == "picas-t-0.2"


PARTLY = record(("yes", "0", "42\n", ""), ("yes", "1", "", REFUSED))


def test_of_several_calls_the_accepted_jobs_are_cancelled() -> None:
    cluster = Cluster(find=FRESH, start=PARTLY)
    with pytest.raises(SubmissionRefusedError, match="Job 42 had been accepted and was cancelled"):
        submit(cluster)
    assert cluster.asked[-2:] == ["cancel", "credentials"]
    cluster = Cluster(find=FRESH, start=PARTLY, cancel=Output(5))
    with pytest.raises(SubmissionRefusedError, match="Job 42 had been accepted and could not be cancelled"):
        submit(cluster)
    assert cluster.asked[-1] == "cancel", "they may read their credentials yet"


def test_nothing_is_submitted_while_jobs_of_a_refused_submission_may_be_left() -> None:
    cluster = Cluster(find=[MADE + PARTLY], cancel=Output(5))
    with pytest.raises(RemoteError, match="Jobs of a refused submission may still exist"):
        submit(cluster)
    assert cluster.asked == ["find", "cancel"]


def test_a_job_of_an_sbatch_that_timed_out_is_found_by_its_name() -> None:
    cluster = Cluster(find=FRESH, start=record(("yes", "1", "", TIMED_OUT)), squeue="77|picas-t-0.1\n", read=DONE)
    assert submit(cluster).job_ids == ("42",)
    assert cluster.asked[4:] == ["start", "squeue", "note", "read", "acknowledge"]


def test_of_two_jobs_with_the_name_the_earlier_one_counts() -> None:
    found = drive(
        sbatch_calls.find_jobs("k", parse_record(DONE.splitlines())),
        Cluster(squeue="100|k\n99|k\n101_[0-3]|k\n7|kk\nslurm_load_jobs: x\n|k\n"),
    )
    assert found == {0: "99"}


def test_sbatch_is_called_again_only_after_slurm_has_said_no_for_long_enough() -> None:
    uncertain = record(("yes", "1", "", TIMED_OUT))
    again = record(("yes", "0", "42\n", ""), given_up=1)
    cluster = Cluster(find=FRESH, start=[uncertain, again], read=uncertain, squeue="", timeout="10\n")
    assert submit(cluster).job_ids == ("42",)
    assert cluster.asked.count("start") == 2
    assert "unlock" in cluster.asked
    assert "cancel" in cluster.asked
    assert cluster.paused >= 10 + sbatch_calls.MARGIN


def test_the_patience_begins_anew_when_the_controller_goes_away() -> None:
    uncertain = record(("yes", "1", "", TIMED_OUT))
    gone = Output(5)
    cluster = Cluster(
        find=FRESH, start=[uncertain, DONE], read=uncertain, timeout="10\n",
        squeue=["", "", "", "", "", gone, "", "", "", "", "", "", "", "", ""],
    )  # fmt: skip
    submit(cluster)
    assert cluster.paused >= 6 * sbatch_calls.POLL_INTERVAL + 10 + sbatch_calls.MARGIN


def test_an_sbatch_that_still_tries_is_waited_for() -> None:
    trying = record(("yes", "-", "", ""), age=5)
    cluster = Cluster(find=FRESH, start=trying, read=[*[trying] * 12, DONE], squeue="", timeout="1\n")
    assert submit(cluster).job_ids == ("42",)
    assert cluster.asked.count("start") == 1


def test_a_controller_that_stays_away_ends_the_try_but_not_the_submission() -> None:
    uncertain = record(("yes", "1", "", TIMED_OUT))
    cluster = Cluster(find=FRESH, start=uncertain, read=uncertain, squeue=Output(5))
    with pytest.raises(UnreachableError, match="nothing is submitted twice"):
        submit(cluster)
    assert cluster.paused >= sbatch_calls.SETTLE_WAIT
    assert cluster.asked.count("start") == 1


@pytest.mark.parametrize(
    ("answers", "fields", "words"),
    [
        ({"find": Output(3, stderr="cd: runs: No")}, {"folder": "runs"}, "The remote folder 'runs' cannot be entered"),
        ({"find": Output(4, stderr="x")}, {}, "submission's folder cannot be read"),
        ({"find": NOTHING, "make": Output(1, stderr="quota")}, {}, "could not be created on the cluster: quota"),
        ({"find": NOTHING, "workdir": Output(1, stderr="no")}, {"workdir": "w"}, r"The folder 'w' \(workdir\)"),
        ({"find": FRESH, "start": Output(3, stderr="gone")}, {}, "could not be started on the cluster: gone"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(answers: dict[str, Any], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        submit(Cluster(**answers), **fields)


@pytest.mark.parametrize(
    ("code", "out", "err", "judge"),
    [
        (0, "42\n", "", "job"),
        (0, "42;spider\n", "sbatch: warning: can't honor --ntasks", "job"),
        (0, "", "", "uncertain"),
        (1, "", REFUSED, "refused"),
        (1, "", "sbatch: error: Batch job submission failed: Requested time limit is invalid", "refused"),
        (1, "", "sbatch: error: QOSMaxSubmitJobPerUserLimit", "refused"),
        (1, "", TIMED_OUT, "uncertain"),
        (1, "", "sbatch: error: Unable to contact slurm controller (connect failure)", "uncertain"),
        (1, "", "sbatch: error: Zero Bytes were transmitted or received", "uncertain"),
        (124, "", "", "uncertain"),
        (137, "", "", "uncertain"),
        (143, "", "", "uncertain"),
        (None, "", "", "uncertain"),
        (255, "", "sbatch: unrecognized option '--colour=red'", "refused"),
        (255, "", "sbatch: error: Invalid --time specification", "refused"),
        (127, "", "timeout: failed to run command 'sbatch': No such file or directory", "refused"),
        (126, "", "timeout: failed to run command 'sbatch': Permission denied", "refused"),
    ],
)  # fmt: skip
def test_sbatchs_output_is_interpreted(code: int | None, out: str, err: str, judge: str) -> None:
    call = Call(True, code, 1, out, err)
    assert [call.job_id is not None, call.uncertain, call.refused] == [
        judge == "job",
        judge == "uncertain",
        judge == "refused",
    ]


def test_a_call_that_was_not_started_means_nothing_yet() -> None:
    call = Call(False, None, 0, "", "")
    assert (call.job_id, call.uncertain, call.refused, call.may_be_running) == (None, False, False, False)


def test_a_base_key_is_readable_stable_and_a_job_name() -> None:
    key = submission_folder.base_key("my task/ü;x", "here", "dag", "run", "-1")
    assert key == submission_folder.base_key("my task/ü;x", "here", "dag", "run", "-1")
    assert re.fullmatch(r"picas-my_task_x-[0-9a-f]{10}", key)
    assert key != submission_folder.base_key("my task/ü;x", "here", "dag", "run", "0")
    assert len(submission_folder.base_key("x" * 500)) < 80
    key = submission_folder.task_key("here", "my dag/ü;x", "manual__2026-11-28T20:28:00.123+00:00", "group.pilots", 12)
    assert re.fullmatch(r"picas-my_dag_x-group_pilots_12-manual__2026-11-28T20_28_00-[0-9a-f]{10}", key)
    assert key != submission_folder.task_key(
        "here", "my dag/ü;x", "manual__2026-11-28T20:28:00.124+00:00", "group.pilots", 12
    )
    assert re.fullmatch(r"picas-x-x-x-[0-9a-f]{10}", submission_folder.task_key("here", "ü", "-", "", -1))
    assert len(submission_folder.task_key("d" * 500, "d" * 500, "r" * 500, "t" * 500, 10**6)) <= 90
    assert sbatch_record.job_names("k.1", 3) == ["k.1", "k.1-1", "k.1-2"]


@pytest.mark.parametrize("name", ["unused"])
def test_drive_raises_inside_the_operation_what_a_step_raises(name: str) -> None:
    def refuse(step: Step) -> Output:
        raise UnreachableError("gone")

    perform: Callable[[Step], Output] = refuse
    with pytest.raises(UnreachableError, match="gone"):
        drive(submission_folder.submit(plan()), perform)


@pytest.mark.parametrize(
    ("said", "for_now"),
    [
        ("Batch job submission failed: Required partition not available (inactive or drain)", True),
        ("Batch job submission failed: Requested partition configuration not available now", True),
        ("Batch job submission failed: Required node not available (down, drained or reserved)", True),
        (
            "QOSMaxSubmitJobPerUserLimit\nBatch job submission failed: Job violates accounting/QOS policy (job submit limit,",
            True,
        ),
        (
            "AssocMaxSubmitJobLimit\nBatch job submission failed: Job violates accounting/QOS policy (job submit limit,",
            True,
        ),
        (
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time",
            True,
        ),
        ("QOSMaxWallDurationPerJobLimit\nBatch job submission failed: Job violates accounting/QOS policy (job", False),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Batch job submission failed: Invalid account or account/partition combination specified", False),
        ("invalid partition specified: nowhere", False),
    ],
)
def test_temporary_refusals_are_recognised(said: str, for_now: bool) -> None:
    assert sbatch_record.refused_for_now(f"sbatch: error: {said}") is for_now
