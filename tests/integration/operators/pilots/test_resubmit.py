"""Submitting the same pilots again from the folder of an earlier submission on a real cluster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import (
    PicasCancelPilotsOperator,
    PicasResubmitPilotsOperator,
    PicasSubmitPilotsOperator,
)
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from stack import processes
from stack.pool import Pool
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default")

# Fails at the first attempt; the second waits for a file, and writes what it got from setup, env and files.
COMMAND = """
[ "$PICAS_ATTEMPT" != 1 ] || exit 3
until [ -e ~/go-again ]; do sleep 0.1; done
echo "{\\"greeting\\": \\"$GREETING $OTHER $(cat words.txt)\\", \\"job\\": \\"$SLURM_JOB_NAME\\"}" > "$PICAS_OUTPUT_FILE"
"""


class Run:
    """The tasks of a run, and of a rerun of it."""

    def __init__(self, pool: Pool, remote: SlurmHook) -> None:
        self.pool, self.remote = pool, remote
        push = PicasPushTokensOperator(task_id="push", inputs=[1, 2])
        self.batch: dict[str, Any] = push.execute(context(run_id=pool.database))

    def submit(self, **arguments: Any) -> Any:
        operator = PicasSubmitPilotsOperator(task_id="pilots", ssh_conn_id="spider", batch=self.batch, **arguments)
        return operator.execute(context("pilots", run_id=self.pool.database))

    def wait(self, pilots: Any, errors: int) -> dict[str, int]:
        sensor = PicasTokenStateSensor(
            task_id="wait", batch=self.batch, pilots=pilots, max_errors=errors, poke_interval=1, timeout=90
        )
        result: dict[str, int] = sensor.execute(context("wait", run_id=self.pool.database))
        return result

    def reset(self) -> None:
        PicasResetTokensOperator(task_id="reset", batch=self.batch).execute(context("reset"))

    def again(self, try_number: int = 1, batch: Any = None, **arguments: Any) -> Any:
        operator = PicasResubmitPilotsOperator(task_id="again", batch=batch or self.batch, **arguments)
        return operator.execute(context("again", run_id=self.pool.database, try_number=try_number))

    def files(self, folder: str) -> dict[str, str]:
        names = self.remote.run(f"cd {folder} && ls submit.sh command.* pilot* words.txt").stdout.split()
        return {
            name: self.remote.run(f"cat {folder}/{name}").stdout for name in names if not name.endswith((".log", ".py"))
        }


@pytest.fixture
def run(pool: Pool, spider: str) -> Iterator[Run]:
    with SlurmHook(spider) as remote:
        yield Run(pool, remote)


def test_all_of_it_is_the_same_but_the_name(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("alpha")
    first = run.submit(
        command=COMMAND, setup="export GREETING=hello", env={"OTHER": "w'or$ld"}, files=[str(tmp_path / "words.txt")],
        pilots=3, pilot={"lease": 10}, sbatch={"time": "00:07:00", "comment": "a b"},
    )  # fmt: skip
    assert run.wait(first, errors=2)["error"] == 2
    stop = PicasCancelPilotsOperator(task_id="stop", pilots=first, batch=run.batch)
    stop.execute(context("stop"))  # its drain flag must not stop the new ones
    assert run.remote.run(f"ls {first['folder']}/credentials").stdout == ""
    run.reset()

    second = run.again(max_pilots=2)
    assert run.again(try_number=2) == second  # a retry finds it, while its pilots run
    before, after = run.files(first["folder"]), run.files(second["folder"])
    renamed = {name: text.replace(first["submission"], second["submission"]) for name, text in before.items()}
    renamed["command.0"] = renamed["command.0"].replace(" --array=0-2 ", " --array=0-1 ")
    assert after == renamed
    modes = run.remote.run(
        f"cd {second['folder']} && stat -c '%a %n' . credentials credentials/* pilot.sh pilot.json"
    ).stdout
    assert modes.split("\n")[:-1] == [
        "700 .", "700 credentials", "600 credentials/picasconfig.py", "700 pilot.sh", "600 pilot.json",
    ]  # fmt: skip
    run.remote.run("touch ~/go-again")
    assert run.wait(second, errors=0) == {"todo": 0, "locked": 0, "done": 2, "error": 0}
    outputs = [token["output"] for token in run.pool.tokens()]
    assert outputs == [{"greeting": "hello w'or$ld alpha", "job": second["submission"]}] * 2
    assert run.remote.run(f"ls {second['folder']}/credentials").stdout == ""
    said = capsys.readouterr().out
    assert f"The same pilots as: {first['submission']}" in said
    assert "By connection: spider" in said
    assert "--comment=a b" in said
    assert "Files: words.txt" in said
    hook = PicasHook()
    known = hook.do(batch_pilots.history(hook.pool, run.batch["batch"]))
    assert {pilots["submission"] for pilots in known} == {first["submission"], second["submission"]}
    assert run.pool.password not in json.dumps(known) + said


def test_a_script_is_submitted_again(run: Run, tmp_path: Path) -> None:
    script = (
        b"#!/bin/bash\n#SBATCH --time=5\n# picas-pilots.1 $0\n"
        b'python3 -c "import picasconfig" && touch "it ran $SLURM_JOB_NAME"\n'
    )
    (tmp_path / "pilot.sh").write_bytes(script)
    first = run.submit(script=str(tmp_path / "pilot.sh"))
    second = run.again()
    assert second["submission"] != first["submission"]
    assert run.remote.run(f"cat {second['folder']}/pilot.sh").stdout.encode() == script
    ran = f"ls {second['folder']}/'it ran {second['submission']}'"
    processes.wait_for(lambda: run.remote.run(ran).code == 0, what="The script", seconds=60)


def test_what_cannot_be_repeated_says_why(run: Run) -> None:
    with pytest.raises(AirflowException, match="No submission of pilots is recorded"):
        run.again()
    first = run.submit(command="true", sbatch={"begin": "now+1hour"})
    run.remote.run(f"scancel {first['job_ids'][0]}")
    hook = PicasHook()
    hook.do(batch_pilots.note(hook.pool, "another", first))
    with pytest.raises(AirflowException, match=r"for batch .*, not for another"):
        run.again(batch="another")
    elsewhere = {**first, "folder": "/tmp/picas-evil-0.1"}
    with pytest.raises(AirflowException, match="is not the folder of submission"):
        run.again(pilots=elsewhere)
    if os.geteuid() == 0:  # only then can a file belong to somebody else
        run.remote.run(f"chown nobody {first['folder']}/pilot.sh")
        with pytest.raises(AirflowException, match="belongs to another account"):
            run.again()
    run.remote.run(f"mv {first['folder']} {first['folder']}.away")
    with pytest.raises(AirflowException, match=re.escape(f"{first['folder']} of the earlier pilots is gone")):
        run.again()
