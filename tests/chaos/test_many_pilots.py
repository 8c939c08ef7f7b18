"""Many pilots on many short tokens, and the PiCaS client's beside ours."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.tokens.states import State
from tests.chaos.run import Run, tell
from tests.integration.tasks import context

MANY = 2_000
CLIENT_SCRIPT = Path(__file__).parent / "client_pilot.sh"


def counted(run: Run) -> Counter[str]:
    """How often each token was run, whoever ran it."""
    lines = run.file.read_text().splitlines() if run.file.exists() else []
    return Counter(line.split()[1] for line in lines)


def submit(run: Run, task_id: str, pilots: int, **arguments: Any) -> dict[str, Any]:
    operator = PicasSubmitPilotsOperator(task_id=task_id, ssh_conn_id="spider", pilots=pilots, **arguments)
    output: Any = operator.execute(context(task_id, run_id=run.pool.database))
    return dict(output)


def exit_codes(run: Run, job: str) -> Counter[str]:
    """States and exit codes of the tasks of an array, by sacct."""
    text = run.cluster.run("sacct", "-n", "-X", "-P", f"--jobs={job}", "--format=State,ExitCode").stdout
    return Counter(text.split())


def test_32_pilots_on_2000_short_tokens(run: Run) -> None:
    run.push(MANY)
    begin = time.monotonic()
    run.submitted = submit(
        run, "pilots", 32, command=f'echo ours "$PICAS_TOKEN_ID" >> {run.file}', batch=run.pushed, pilot={"lease": 60}
    )
    run.wait()
    assert run.result(280)["done"] == MANY
    tell(f"32 pilots: {MANY / (time.monotonic() - begin):.0f} tokens/s, from the submission to the end of the wait")
    assert Counter(counted(run).values()) == {1: MANY}
    job = run.submitted["job_ids"][0]
    run.until(
        lambda: exit_codes(run, job) == {"COMPLETED|0:0": 32}, f"The end of 32 pilots: {exit_codes(run, job)}", 30
    )
    assert not any(token["scrub_count"] for token in run.pool.tokens())


def test_the_picas_clients_pilots_beside_ours(run: Run) -> None:
    """Ours never run a token that another holds. The client (1.1.2) locks what it has fetched without a look at its lock, so it
    takes a token now and then that a pilot of either kind has just claimed; then the late one of two results is refused."""
    run.push(600)
    both = f"until grep -qs ^client {run.file}; do sleep 0.1; done"
    command = f'{both}; echo ours "$PICAS_TOKEN_ID" >> {run.file}; sleep 0.05'
    run.submitted = submit(run, "ours", 3, command=command, batch=run.pushed, pilot={"lease": 60})
    run.until(lambda: run.states()[State.LOCKED], "The first token of ours")
    theirs = submit(run, "theirs", 3, script=str(CLIENT_SCRIPT), env={"RUNS": str(run.file)})
    run.wait()
    assert run.result(280)["done"] == 600
    lines = [line.split() for line in run.file.read_text().splitlines()]
    by_whom = Counter(who for who, _ in lines)
    assert min(by_whom["client"], by_whom["ours"]) > 20
    runs = counted(run)
    ours = Counter(token for who, token in lines if who == "ours")
    twice = {token for token, times in runs.items() if times > 1}
    tell(
        f"beside the PiCaS client: {dict(by_whom)} of 600 tokens; {len(twice)} run twice, {len(twice & set(ours))} of them ours"
    )
    assert set(ours.values()) == {1}
    assert len(runs) == 600
    refused = {json.loads(path.read_text())["change"]["token"] for path in run.files("refused")}
    taken_by_a_client = twice & set(ours)
    assert taken_by_a_client == refused
    assert len(taken_by_a_client) < 12
    for job in (theirs["job_ids"][0], run.submitted["job_ids"][0]):
        run.until(lambda job=job: exit_codes(run, job) == {"COMPLETED|0:0": 3}, f"The end of {job}", 60)  # type: ignore[misc]
