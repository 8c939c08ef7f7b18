"""Output of squeue and sacct (recorded from Slurm 22.05, unless noted otherwise), and what is read from it."""

from __future__ import annotations

import pytest

from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.jobs import Job, Phase, SlurmStatus, parse
from airflow_provider_picas.slurm.remote import Output, Step, UnreachableError

ANSWER = """\
T|1795362402
Q|11_0|11|0|COMPLETED|None|1795362400|0:01|1|n1
Q|11_[2-3%1]|11|2-3%1|PENDING|JobArrayTaskLimit|N/A|0:00|1|
Q|10_0|10|0|RUNNING|None|1795362400|0:02|1|n1
Q|12|12|N/A|PENDING|Resources|1795362999|0:00|2|
A|10_0|RUNNING|0:0|None|1795362400|Unknown|2|1|00:00:00|n1
A|10_0.batch|RUNNING|0:0||1795362400|Unknown|2|1|00:00:00|n1
A|11_0|COMPLETED|0:0|None|1795362400|1795362401|1|1|00:00.808|n1
A|11_0.batch|COMPLETED|0:0||1795362400|1795362401|1|1|00:00.808|n1
A|5|FAILED|0:9|None|1795362355|1795362356|1|1|00:00.008|n1
A|9|CANCELLED by 1000|0:0|None|1795362355|1795362356|1|4|1-00:00:01|n[1-2]
"""


def job(identifier: str, state: str, **fields: object) -> Job:
    return Job(identifier, state, **fields)  # type: ignore[arg-type]


def test_squeue_and_sacct_are_merged() -> None:
    look = parse(ANSWER.splitlines())
    assert (look.at, look.sacct_error) == (1795362402, None)
    assert {name: (found.state, found.phase) for name, found in look.jobs.items()} == {
        "11_0": ("COMPLETED", Phase.ENDED),
        "11_2": ("PENDING", Phase.WAITING),
        "11_3": ("PENDING", Phase.WAITING),
        "10_0": ("RUNNING", Phase.RUNNING),
        "12": ("PENDING", Phase.WAITING),
        "5": ("FAILED", Phase.ENDED),
        "9": ("CANCELLED", Phase.ENDED),
    }
    assert look.jobs["11_0"] == job(
        "11_0", "COMPLETED", exit_code="0:0", reason="None", node="n1", started=1795362400, ended=1795362401, elapsed=1,
        cpus=1, cpu_seconds=0.808,
    )  # fmt: skip
    assert look.jobs["9"].cpu_seconds == 86_401
    assert look.jobs["12"].started == 1795362999


def test_a_requeued_job_runs_again_although_sacct_knows_how_it_ended_before() -> None:
    rows = ["A|5|NODE_FAIL|0:0|None|1000|1100|100|1|00:00:00|n1", "Q|5|5|N/A|RUNNING|None|1200|0:09|1|n2"]
    assert parse(rows).jobs["5"].state == "RUNNING"
    rows[1] = "Q|5|5|N/A|COMPLETING|None|1000|0:09|1|n1"
    assert parse(rows).jobs["5"].state == "NODE_FAIL"


def test_sacct_that_fails_is_reported_with_its_words() -> None:
    look = parse(["T|5", "Q|5|5|N/A|RUNNING|None|1200|0:09|1|n2", "E|Slurm accounting storage is disabled"])
    assert look == SlurmStatus({"5": look.jobs["5"]}, 5, "Slurm accounting storage is disabled")
    assert parse(["E|"]).sacct_error == "no reason given"


def test_what_is_not_a_row_is_left_out() -> None:
    assert parse(["", "welcome", "Q|1|2", "A|x", "Q", "slurm_load_jobs|error"]) == SlurmStatus({}, 0)


@pytest.mark.parametrize(
    ("identifier", "base", "task", "names"),
    [
        ("7", "7", "N/A", ["7"]),
        ("7_4", "7", "4", ["7_4"]),
        ("7_[0-2]", "7", "0-2", ["7_0", "7_1", "7_2"]),
        ("7_[1,3-4,9%5]", "7", "1,3-4,9%5", ["7_1", "7_3", "7_4", "7_9"]),
        ("7_[0-6:3]", "7", "0-6:3", ["7_0", "7_3", "7_6"]),
        ("7_[...]", "7", "...", ["7"]),
        ("7+0", "7", "N/A", ["7"]),
        ("7+1", "8", "N/A", ["7+1"]),
        ("7_[0-6:0]", "7", "0-6:0", ["7"]),
        ("7_[\u00b2]", "7", "\u00b2", ["7"]),
        ("7_\u00b2", "7", "\u00b2", ["7"]),
        ("7_[0-\u0663]", "7", "", ["7"]),
        ("7_[" + "9" * 5000 + "]", "7", "", ["7"]),
        ("7_[0-3000000]", "7", "0-3000000", ["7_[0-3000000]"]),
        ("7_[0-3000000:2%5]", "7", "0-3000000:2%5", ["7_[0-3000000:2%5]"]),
    ],
)
def test_ids_of_tasks_are_expanded(identifier: str, base: str, task: str, names: list[str]) -> None:
    rows = [f"Q|{identifier}|{base}|{task}|PENDING|Priority|N/A|0:00|1|"]
    assert list(parse(rows).jobs) == names


@pytest.mark.parametrize(
    ("state", "life"),
    [
        ("PENDING", Phase.WAITING), ("REQUEUED", Phase.WAITING), ("RUNNING", Phase.RUNNING), ("COMPLETING", Phase.RUNNING),
        ("SUSPENDED", Phase.RUNNING), ("TIMEOUT", Phase.ENDED), ("NODE_FAIL", Phase.ENDED), ("OUT_OF_MEMORY", Phase.ENDED),
        ("PREEMPTED", Phase.ENDED), ("UNKNOWN", Phase.UNKNOWN), ("", Phase.UNKNOWN), ("NEW_IN_SLURM_99", Phase.UNKNOWN),
    ],
)  # fmt: skip
def test_states_become_phases(state: str, life: Phase) -> None:
    assert job("1", state).phase is life


@pytest.mark.parametrize(
    ("state", "code", "cause"),
    [
        ("FAILED", "3:0", "FAILED, exit code 3"),
        ("FAILED", "0:9", "FAILED, signal 9"),
        ("FAILED", "", "FAILED"),
        ("COMPLETED", "0:0", "COMPLETED"),
        ("TIMEOUT", "0:0", "TIMEOUT"),
        ("OUT_OF_MEMORY", "0:125", "OUT_OF_MEMORY"),
    ],
)
def test_causes_are_described(state: str, code: str, cause: str) -> None:
    assert job("1", state, exit_code=code).cause == cause


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:09", 9), ("1:02:03", 3723), ("2-00:00:01", 172_801), ("00:01.500", 1.5), ("", 0), ("INVALID", 0)],
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse([f"A|5|FAILED|0:0|None|1|2|1|1|{text}|n1"]).jobs["5"].cpu_seconds == seconds


def answer(output: Output) -> SlurmStatus:
    asked: list[Step] = []

    def perform(step: Step) -> Output:
        asked.append(step)
        return output

    return drive(jobs.query("picas-x.1", "/home/o'me", 1000), perform)


def test_a_query_that_squeue_does_not_answer_has_no_result() -> None:
    assert answer(Output(0, ANSWER)).jobs["5"].cause == "FAILED, signal 9"
    with pytest.raises(UnreachableError, match="squeue does not answer: slurm_load_jobs error"):
        answer(Output(5, "", "slurm_load_jobs error"))


def test_pilots_that_wait_and_run_are_counted() -> None:
    said = "PENDING|picas-a.1\nRUNNING|picas-a.1\nCOMPLETING|picas-b.1-2\nRUNNING|my|job\nPENDING|other\n"
    assert drive(jobs.count_pilots(), lambda step: Output(0, said)) == (1, 2)
    with pytest.raises(UnreachableError):
        drive(jobs.count_pilots(), lambda step: Output(5))


@pytest.mark.parametrize("word", ["\u00b2", "9" * 5000, "-1", "1e5", "\u0663", "", "1 2", "NaN"])
def test_words_where_numbers_are_expected_count_as_unknown(word: str) -> None:
    look = parse(
        [
            f"T|{word}",
            f"A|5|FAILED|0:0|None|{word}|{word}|{word}|{word}|{word}-{word}:{word}|n1",
            f"Q|6|6|N/A|RUNNING|None|{word}|{word}:{word}|{word}|n1",
        ]
    )
    assert look.at == 0
    known = ("started", "ended", "elapsed", "cpus", "cpu_seconds")
    assert [getattr(job, name) for job in look.jobs.values() for name in known] == [0] * 10


def test_arrays_of_millions_of_tasks_stay_a_job_each() -> None:
    """A row names a task in some ten bytes, or three million of them."""
    rows = [f"A|{n}_[0-3000000]|PENDING|0:0|None|1|2|1|1|0|n1" for n in range(1000)]
    rows += [f"A|{n}_[0-999]|PENDING|0:0|None|1|2|1|1|0|n1" for n in range(1000, 2000)]
    look = parse(rows)
    assert len(look.jobs) == 1000 + jobs.MOST_TASKS + 900
    assert look.jobs["0_[0-3000000]"].phase is Phase.WAITING
    assert not [name for name in look.unqueued if "[" in name]  # squeue lists their tasks one by one


def test_parts_of_a_heterogeneous_job_count_once() -> None:
    """Their rows in squeue and sacct; also their steps, and those of the tasks of an array."""
    rows = [
        "Q|7+0|7|N/A|RUNNING|None|1000|0:09|1|n1",
        "Q|7+1|8|N/A|RUNNING|None|1000|0:09|2|n2",
        "Q|12_3|12|3|RUNNING|None|1000|0:09|1|n1",
        "A|7+0|RUNNING|0:0|None|1000|Unknown|9|1|00:00:00|n1",
        "A|7+0.batch|RUNNING|0:0||1000|Unknown|9|1|00:00:00|n1",
        "A|7+0.extern|RUNNING|0:0||1000|Unknown|9|1|00:00:00|n1",
        "A|7+1|RUNNING|0:0|None|1000|Unknown|9|2|00:00:00|n2",
        "A|7+1.0|RUNNING|0:0||1000|Unknown|9|2|00:00:00|n2",
        "A|12_3|RUNNING|0:0|None|1000|Unknown|9|1|00:00:00|n1",
        "A|12_3.batch|RUNNING|0:0||1000|Unknown|9|1|00:00:00|n1",
    ]
    look = parse(rows)
    assert {name: job.cpus for name, job in look.jobs.items()} == {"7": 1, "7+1": 2, "12_3": 1}
    assert look.unqueued == ()


def test_foreign_text_of_squeue_and_sacct_is_escaped() -> None:
    odd = "\x1b[31m::group::x\u202e"
    look = parse([f"A|5|{odd}|{odd}|{odd}|1|2|1|1|0|{odd}", f"Q|6|6|N/A|{odd}|{odd}|1|0:01|1|{odd}"])
    for job in look.jobs.values():
        for text in (job.cause, job.reason, job.node):
            assert text.isprintable()
            assert "::group::" not in text
