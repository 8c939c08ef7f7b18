"""Tokens of dead pilots that cannot be released are named, by the wait and by a cancel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.couchdb.http import Request, json_body
from airflow_provider_picas.hooks import slurm as slurm_hook
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasCancelPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.slurm.remote import Output, Pause, Step
from airflow_provider_picas.submissions.submission import Operation, Submission
from airflow_provider_picas.submissions.wait import check_twice
from airflow_provider_picas.tokens.states import State
from stack.cluster import Cluster
from stack.pool import Pool
from tests.integration import lives
from tests.integration.faults import Proxy
from tests.integration.tasks import context

LIMIT = 100_000  # bytes

pytestmark = pytest.mark.usefixtures("spider")


def write_lease(hook: PicasHook, pilot: str, **fields: Any) -> None:
    lease = {"pilot": pilot, "renewed": int(time.time()) - 600, "renewals": 3, "lease": 4, **fields}

    def write() -> Operation[None]:
        yield Request("PUT", hook.pool.document_path(f"_local/picas-pilot-{pilot}"), body=json_body(lease))

    hook.do(write())


def tokens_of_a_dead_pilot(proxy: Proxy, pool: Pool, folder: Path) -> tuple[Any, list[str]]:
    """The output of the submit operator, and three tokens that a dead pilot holds; the second one cannot be written again."""
    (folder / "held.sh").write_text("#!/bin/bash\n#SBATCH --hold\nsleep 600\n")
    submit = PicasSubmitPilotsOperator(task_id="pilots", script=str(folder / "held.sh"), ssh_conn_id="spider")
    pilots: Any = submit.execute(context("pilots", run_id=pool.database))
    hook = PicasHook()
    ids = lives.fill(hook, {State.LOCKED: 3}, pilot="dead", claim=f"0123456789abcdef-{lives.NOW}")
    write_lease(hook, "dead", ended=True)
    lives.change(hook, ids[1], input="x" * LIMIT)
    proxy.largest = LIMIT
    return pilots, ids


def test_a_cancel_names_stuck_tokens(
    proxy: Proxy, pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pilots, ids = tokens_of_a_dead_pilot(proxy, pool, tmp_path)
    cancel = PicasCancelPilotsOperator(task_id="cancel", pilots=pilots, batch="b")
    assert cancel.execute(context("cancel")) == 2
    (named,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be released" in line]
    assert f"token {ids[1]} " in named
    assert "too large" in named


def test_a_second_check_that_is_cut_short_does_not_forget_them(
    proxy: Proxy, pool: Pool, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third token's pilot is silent, so a wait that pokes looks twice; the login node goes away in between."""
    if not isinstance(cluster, Cluster):
        pytest.skip("needs a login node that can be taken away")
    pilots, ids = tokens_of_a_dead_pilot(proxy, pool, tmp_path)
    hook = PicasHook()
    lives.change(hook, ids[2], pilot="silent")
    write_lease(hook, "silent")
    watched = Submission.parse(pilots)
    assert watched is not None

    monkeypatch.setattr(slurm_hook, "CONNECT_TRIES", 1)
    try:
        with PilotsHook(hook, watched.ssh_conn_id) as wait:
            perform = wait._slurm.perform

            def go_away(step: Step) -> Output:
                if isinstance(step, Pause):
                    cluster.stop_sshd(0)
                return perform(step)

            wait._slurm.perform = go_away  # type: ignore[method-assign]
            news = wait.do(check_twice(hook.pool, "b", watched, max_scrubs=3, max_lock_age=None))
    finally:
        cluster.start_sshd(0)
        with SlurmHook("spider") as slurm:
            slurm.run(f"scancel {pilots['job_ids'][0]}")
    assert news.outage, "the second look was not cut short"
    assert [token for token, _ in news.reaped] == [ids[0]]
    assert list(news.stuck) == [ids[1]]
