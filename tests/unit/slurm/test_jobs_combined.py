"""Several queries in one command, and its output split between them."""

from __future__ import annotations

from airflow_provider_picas.slurm.jobs import JobsQuery, combine, split_output
from airflow_provider_picas.slurm.remote import Output

STEPS = [
    JobsQuery("", key=key, folder=f"/home/me/my {key}", since=since)
    for key, since in (("picas-a.1", 50), ("picas-b.1", 40))
]
OUTPUT = """T|1790000000
Q|1|1|N/A|RUNNING|None|40|0:10|1|node1|picas-a.1
Q|2|2|N/A|PENDING|Priority|N/A|0:00|1||picas-b.1-1
Q|3|3|N/A|PENDING|Priority|N/A|0:00|1||picas-c.1
A|1|RUNNING|0:0|None|40|Unknown|10|1|00:00:00|node1|picas-a.1
A|1.batch|RUNNING|0:0||40|Unknown|10|1|00:00:00|node1|batch
E|sacct: error: something|picas-b.1"""


def test_each_gets_its_own_rows_without_the_name() -> None:
    first, second = (output.stdout.splitlines() for output in split_output(Output(0, OUTPUT), STEPS))
    assert first == [
        "T|1790000000",
        "Q|1|1|N/A|RUNNING|None|40|0:10|1|node1",
        "A|1|RUNNING|0:0|None|40|Unknown|10|1|00:00:00|node1",
    ]
    assert second == ["T|1790000000", "Q|2|2|N/A|PENDING|Priority|N/A|0:00|1|", "E|sacct: error: something"]


def test_a_failure_reaches_all_queries() -> None:
    failed = Output(5, "T|1790000000", "squeue: error: Unable to contact slurm controller")
    assert [(output.code, output.stderr) for output in split_output(failed, STEPS)] == [(5, failed.stderr)] * 2


def test_one_command_names_all_queries() -> None:
    text = combine(STEPS).text
    assert "add picas-a.1 '/home/me/my picas-a.1' -250" in text
    assert "add picas-b.1 '/home/me/my picas-b.1' -260" in text
    assert (text.count("squeue "), text.count("sacct ")) == (1, 1)
