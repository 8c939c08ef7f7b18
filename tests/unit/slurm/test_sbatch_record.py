"""The files of a submission in a real shell: each command runs once, and the folder records the result."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import sbatch_calls, sbatch_record, submission_folder
from airflow_provider_picas.slurm.remote import Output, Pause, RemoteError, Send, Step, quote
from airflow_provider_picas.slurm.sbatch_record import Record


def shell(step: Step) -> Output:
    """What the login node does, without one."""
    if isinstance(step, Pause | Send):
        return Output(0)
    ended = subprocess.run(["bash", "-c", step.text], capture_output=True, text=True, timeout=60, check=False)
    return Output(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A submission's folder, with a name that the shell must not look at twice."""
    made = tmp_path / "it's $HOME"
    made.mkdir()
    return made


def prepare(folder: Path, *commands: str, **environment: str) -> None:
    script = sbatch_record.submit_script(str(folder), str(folder), environment, None)
    (folder / sbatch_record.SUBMIT_SCRIPT).write_text(script)
    for number, command in enumerate(commands):
        (folder / f"command.{number}").write_text(command)


def read(folder: Path) -> Record:
    return drive(sbatch_record.read(str(folder)), shell)


def run(folder: Path) -> None:
    subprocess.run(["bash", f"./{sbatch_record.SUBMIT_SCRIPT}"], cwd=folder, check=True)


def test_each_command_runs_once_whoever_starts_it_and_however_often(folder: Path) -> None:
    prepare(folder, "bash -c 'echo x >> ran; sleep 0.3; echo 41'", "bash -c 'echo y >> ran; echo no >&2; exit 1'")
    at_once = [subprocess.Popen(["bash", f"./{sbatch_record.SUBMIT_SCRIPT}"], cwd=folder) for _ in range(5)]
    assert [process.wait(20) for process in at_once] == [0] * 5
    run(folder)
    assert sorted((folder / "ran").read_text().split()) == ["x", "y"]
    record = read(folder)
    assert [(call.started, call.code, call.job_id) for call in record.calls] == [(True, 0, "41"), (True, 1, None)]
    assert record.calls[1].stderr == "no\n"
    assert record.refused
    assert (record.job_ids, record.open) == (("41",), [1])
    assert not record.acknowledged


def test_calls_that_did_not_start_are_reported(folder: Path) -> None:
    prepare(folder, "echo 1", "echo 2")
    (folder / "started.0").mkdir()
    record = read(folder)
    assert [call.started for call in record.calls] == [True, False]
    assert record.calls[0].may_be_running
    assert record.open == [0, 1]


def test_values_of_the_environment_are_data(folder: Path) -> None:
    nasty = "a'b\"$(touch evil)`id`\nnewline \\"
    prepare(folder, "bash -c 'printf %s \"$NASTY\" > value; echo 1'", NASTY=nasty)
    run(folder)
    assert (folder / "value").read_text() == nasty
    assert not (folder / "evil").exists()


def test_words_of_a_command_are_data(folder: Path) -> None:
    words = ["printf", "%s\n", "a b", "$(touch evil)", "'", "7"]
    prepare(folder, quote(*words))
    run(folder)
    (call,) = read(folder).calls
    assert call.stdout == "a b\n$(touch evil)\n'\n7\n"
    assert call.job_id == "7"


def test_output_of_any_kind_survives(folder: Path) -> None:
    prepare(folder, "printf '\\377\\0 call yes 0 1\\nout x\\n5\\n'")
    run(folder)
    record = read(folder)
    assert len(record.calls) == 1
    assert record.job_ids == ("5",)


def test_an_acknowledged_submission_is_recorded(folder: Path) -> None:
    prepare(folder, "echo 1")
    drive(sbatch_record.acknowledge(str(folder)), shell)
    assert read(folder).acknowledged


def test_a_folder_that_is_gone_is_reported(folder: Path) -> None:
    with pytest.raises(RemoteError, match="The submission's folder cannot be read on the cluster"):
        read(folder / "gone")


def test_more_pilots_are_the_same_calls_under_new_names(folder: Path) -> None:
    key = "picas-x-12ab.1"
    prepare(
        folder,
        f"echo --job-name={key} --array=0-1 /x/{key}/pilot.sh 11",
        f"echo --job-name={key}-1 --array=0-1 /x/{key}/pilot-1.sh 12",
    )
    prepare_round(folder, key, 1, 5)
    assert (folder / "command.2").read_text() == f"echo --job-name={key}-2 --array=0-1 /x/{key}/pilot.sh 11"
    assert (folder / "command.3").read_text() == f"echo --job-name={key}-3 --array=0-1 /x/{key}/pilot-1.sh 12"
    assert rounds(folder) == (1, 5)
    assert rounds(folder, "another batch") == (1, -1)
    prepare_round(folder, key, 2, 7)
    assert (folder / "command.5").read_text().startswith(f"echo --job-name={key}-5 ")
    assert rounds(folder) == (2, 7)


def test_a_round_is_prepared_once_and_completed_when_its_worker_was_killed(folder: Path) -> None:
    key = "picas-x-12ab.1"
    prepare(folder, *(f"echo --job-name={key} {number}" for number in range(12)))
    for finished in (5, 6):
        prepare_round(folder, key, 1, finished, calls=12)
    assert rounds(folder) == (1, 5)
    for number in (13, 20):  # the worker was killed while it put them there
        (folder / f"command.{number}").unlink()
    assert rounds(folder) == (1, 5)
    assert (folder / "command.20").read_text() == f"echo --job-name={key}-20 8"
    assert len(read(folder).calls) == 24
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_rounds_before_the_first_one_is_repeated(folder: Path) -> None:
    prepare(folder, "echo 1", "echo 2")
    assert rounds(folder) == (0, -1)


def prepare_round(folder: Path, key: str, number: int, finished: int, calls: int = 2) -> None:
    drive(submission_folder.prepare_round(str(folder), key, calls, number, finished, "batch"), shell)


def rounds(folder: Path, scope: str = "batch") -> tuple[int, int]:
    return drive(submission_folder.rounds(str(folder), scope), shell)


def test_of_two_tries_that_give_a_call_up_one_starts_it_again(folder: Path) -> None:
    """The slower one saw the call before it was started again."""
    prepare(folder, "bash -c 'echo x >> ran; echo Socket timed out >&2; exit 1'")
    run(folder)
    seen = read(folder)
    (folder / "command.0").write_text("bash -c 'echo x >> ran; echo 42'")
    for _ in range(2):
        drive(sbatch_calls._restart(str(folder), seen), shell)
    assert (folder / "ran").read_text().split() == ["x", "x"]
    record = read(folder)
    assert (record.job_ids, record.calls[0].given_up) == (("42",), 1)


def test_the_late_answer_of_a_call_that_was_given_up_counts_for_nothing(folder: Path) -> None:
    prepare(folder, "bash -c 'touch begun; until [ -e go ]; do sleep 0.05; done; echo 41'")
    late = subprocess.Popen(["bash", f"./{sbatch_record.SUBMIT_SCRIPT}"], cwd=folder)
    while not (folder / "begun").exists():
        time.sleep(0.02)
    seen = read(folder)
    (folder / "command.0").write_text("echo 42")
    drive(sbatch_calls._restart(str(folder), seen), shell)
    (folder / "go").touch()
    assert late.wait(20) == 0
    assert read(folder).job_ids == ("42",)
