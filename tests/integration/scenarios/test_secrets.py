"""The pool's password is in the credentials file, and nowhere else."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from stack import processes
from stack.pool import Pool
from tests.integration.tasks import context

LIMIT = 60  # seconds to wait for anything
HELD = """\
#!/bin/bash
#SBATCH --time=5
python3 -c 'import picasconfig; print(len(picasconfig.PICAS_PASSWORD))'
until [ -e "$HOME/go" ]; do sleep 0.1; done
"""

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


@contextmanager
def words_of_all_processes() -> Iterator[set[bytes]]:
    """The arguments of all processes on this machine while the ``with`` lasts, looked at all the time."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(file.read_bytes())
                except OSError:
                    continue  # ended meanwhile

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def environments(mark: bytes) -> list[bytes]:
    """The environments of the processes that have this in theirs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = file.read_bytes()
        except OSError:
            continue
        if mark in text:
            found.append(text)
    return found


@pytest.fixture
def remote(cluster: Any) -> Iterator[SlurmHook]:
    with SlurmHook("spider") as hook:
        hook.run("rm -f ~/go")
        yield hook
        hook.run("touch ~/go; scancel --me --state=PENDING")


def running(remote: SlurmHook, job: str) -> None:
    def all_run() -> bool:
        return set(remote.run(f"squeue -h -t all -o %T -j {job}").stdout.split()) == {"RUNNING"}

    processes.wait_for(all_run, what=f"Job {job}", seconds=LIMIT)


def what_slurm_keeps(remote: SlurmHook, job: str) -> str:
    """Everything that Slurm's commands tell of a job."""
    output = remote.run(
        f"scontrol --details show job {job}; squeue -o %all -j {job}; squeue --json -j {job};"
        f" sacct --parsable2 --format=ALL -j {job}; sacct --json -j {job};"
        f" sacct --batch-script -j {job}; sacct --env-vars -j {job}; scontrol write batch_script {job} -"
    )
    return output.stdout + output.stderr


@pytest.mark.parametrize("own", [False, True], ids=["script", "command"])
def test_the_password_goes_to_the_cluster_as_a_file_and_no_other_way(
    monkeypatch: pytest.MonkeyPatch,
    own: bool,
    pool: Pool,
    remote: SlurmHook,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for hook in (SlurmHook, PicasHook):  # Airflow's own loggers drop what is below INFO
        monkeypatch.setattr(hook, "log", logging.getLogger("hooks"))
    (tmp_path / "held.sh").write_text(HELD)
    with words_of_all_processes() as words:
        push = PicasPushTokensOperator(task_id="push", inputs=["x"])
        batch = push.execute(context("push"))
        work: dict[str, Any] = {"script": str(tmp_path / "held.sh")}
        if own:
            work = {
                "command": 'env; cat "$PICAS_TOKEN_FILE"; until [ -e "$HOME/go" ]; do sleep 0.1; done',
                "setup": "true",
            }
        task = PicasSubmitPilotsOperator(
            task_id=f"pilots_{own}", **work, batch=batch, pilots=1, ssh_conn_id="spider", env={"SOME": "thing"},
            sbatch={"comment": "a comment"},
        )  # fmt: skip
        output = task.execute(context(task.task_id))
        assert output is not None
        (job,) = output["job_ids"]
        running(remote, job)
        if own:
            processes.wait_for(lambda: PicasHook().count().locked == 1, what="The claim", seconds=LIMIT)
        kept = what_slurm_keeps(remote, job)
        job_environments = environments(f"SLURM_JOB_NAME={output['submission']}".encode())
        remote.run("touch ~/go")
        if own:
            # It would remove the file that is looked at below.
            wait = PicasTokenStateSensor(task_id="wait", batch=batch, pilots=False, poke_interval=0.2, timeout=LIMIT)
            assert wait.execute(context("wait"))["done"] == 1
    secret = pool.password.encode()
    # The batch script becomes the pilot.
    assert any(b"slurm_script" in argv or archive.FILE.encode() in argv for argv in words)
    assert [argv for argv in words if secret in argv] == []
    assert job_environments
    assert [text for text in job_environments if secret in text] == []
    assert output["submission"] in kept
    assert pool.password not in kept

    files = remote.run(f"cd {output['folder']} && find . -type f -exec stat -c '%a %n' {{}} + | sort -k 2").stdout
    modes = {name: mode for mode, _, name in (line.partition(" ") for line in files.splitlines())}
    assert modes["./credentials/picasconfig.py"] == "600"
    assert remote.run(f"stat -c %a {output['folder']} {output['folder']}/credentials").stdout == "700\n700\n"
    for name in modes:
        text = remote.run(f"base64 -w0 {output['folder']}/{name}").stdout
        if secret in base64.b64decode(text):  # Python keeps a compiled copy beside the file
            assert name.startswith("./credentials/")
            assert modes[name] == "600", name

    rendered = {field: getattr(each, field) for each in (push, task) for field in each.template_fields}
    captured = capfd.readouterr()
    told = [
        repr(rendered),
        repr(vars(task)),
        repr(task),
        json.dumps([batch, output]),
        captured.out,
        captured.err,
        caplog.text,
    ]
    assert output["submission"] in captured.out
    assert [text for text in told if pool.password in text] == []


def test_the_password_is_in_no_error(
    pool: Pool, remote: SlurmHook, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import traceback

    caplog.set_level(logging.DEBUG)
    (tmp_path / "held.sh").write_text(HELD)
    told = []
    wrong: list[dict[str, Any]] = [
        {"sbatch": {"partition": "nope"}}, {"remote_folder": "nowhere"}, {"workdir": "nowhere"}, {"database": "Upper"},
    ]  # fmt: skip
    for number, arguments in enumerate(wrong):
        task = PicasSubmitPilotsOperator(
            task_id=f"bad_{number}", script=str(tmp_path / "held.sh"), ssh_conn_id="spider", **arguments
        )
        with pytest.raises(AirflowException) as caught:
            task.execute(context(task.task_id))
        frames = traceback.TracebackException.from_exception(caught.value, capture_locals=False)
        told += ["".join(frames.format()), repr(caught.value)]
    captured = capfd.readouterr()
    assert [text for text in [*told, captured.out, captured.err, caplog.text] if pool.password in text] == []
