"""New lines of the pilots' logs, read by a real shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import logs
from airflow_provider_picas.slurm.logs import LogUpdate
from airflow_provider_picas.slurm.remote import Command, Output, Step


def shell(step: Step) -> Output:
    """What the login node does, without one."""
    assert isinstance(step, Command)
    ended = subprocess.run(["bash", "-c", step.text], capture_output=True, text=True, check=False)
    return Output(ended.returncode, ended.stdout, ended.stderr)


def news(folder: Path, sizes: dict[str, int]) -> list[LogUpdate]:
    return drive(logs.updates(str(folder), sizes), shell)


def test_what_has_come_since_the_last_check(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    log = folder / "pilot-12_0.log"
    log.write_text("one\ntwo\n")
    (folder / "slurm-13.out").write_bytes(b"\xff\x1b[31mred\n")
    (folder / "other.txt").write_text("no log")
    found = {item.name: item for item in news(folder, {})}
    assert set(found) == {"pilot-12_0.log", "slurm-13.out"}
    assert found["pilot-12_0.log"] == LogUpdate("pilot-12_0.log", 8, ("one", "two"))
    assert "\x1b" not in found["slurm-13.out"].lines[0]
    sizes = {name: item.size for name, item in found.items()}
    assert news(folder, sizes) == []
    with log.open("a") as file:
        file.write("three\n")
    assert news(folder, sizes) == [LogUpdate("pilot-12_0.log", 14, ("three",))]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "pilot-1_0.log").write_text("".join(f"line {n}\n" for n in range(10_000)))
    (item,) = news(tmp_path, {})
    assert item.lines == tuple(f"line {n}" for n in range(9_990, 10_000))


def test_only_the_newest_of_many_logs_are_read(tmp_path: Path) -> None:
    for number in range(logs.FILES + 5):
        (tmp_path / f"pilot-1_{number}.log").write_text("x\n")
    assert len(news(tmp_path, {})) == logs.FILES


def test_a_folder_that_is_gone_has_none(tmp_path: Path) -> None:
    assert news(tmp_path / "gone", {}) == []
