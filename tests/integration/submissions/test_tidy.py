"""Leases, credentials, pilots that have not started and old folders are removed when it is safe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.couchdb.http import Request, json_body
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm import sweep
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions import end as ending
from airflow_provider_picas.submissions import tidy
from airflow_provider_picas.submissions.stop import drained
from stack import processes
from stack.pool import Pool
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


def push(pool: Pool, task_id: str = "push") -> Any:
    return PicasPushTokensOperator(task_id=task_id, inputs=[1, 2]).execute(context(task_id, run_id=pool.database))


def submit(pool: Pool, batch: Any, **arguments: Any) -> Any:
    task_id = arguments.pop("task_id", "pilots")
    operator = PicasSubmitPilotsOperator(
        task_id=task_id, command="true", batch=batch, ssh_conn_id="spider", **{"pilots": 2, **arguments}
    )
    return operator.execute(context(task_id, run_id=pool.database))


def wait(pool: Pool, batch: Any, pilots: Any, **arguments: Any) -> dict[str, int]:
    sensor = PicasTokenStateSensor(
        task_id="wait", batch=batch, pilots=pilots, poke_interval=1, timeout=120, deferrable=False, **arguments
    )
    result: dict[str, int] = sensor.execute(context("wait", run_id=pool.database))
    return result


def listed(remote: SlurmHook, pilots: Any) -> list[str]:
    text = f"squeue --noheader --array --name={pilots['submission']} --format=%i"
    return remote.run(text).stdout.split()


def local_documents(hook: PicasHook) -> list[str]:
    answer = hook.send(Request("GET", hook.pool.path("_local_docs")))
    return [row["id"] for row in answer.json()["rows"] if row["id"].startswith("_local/picas-")]


# -- pilots that have not started ------------------------------------------------------------------------------------


def finish(pool: Pool, batch: Any) -> None:
    """As if other pilots had done it."""
    hook = PicasHook("picas_default")
    for token in pool.tokens():
        if token["batch"] == batch["batch"]:
            hook.do(hook.pool.write([json_body({**token, "lock": 1000, "done": 1001, "exit_code": 0})]))


def test_pilots_that_have_not_started_are_cancelled(
    pool: Pool, remote: SlurmHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "END_WAIT", 1.0)
    batch = push(pool)
    pilots = submit(pool, batch, sbatch={"hold": True})
    finish(pool, batch)
    wait(pool, batch, pilots, cancel_pending=False)
    assert len(listed(remote, pilots)) == 2
    assert remote.run(f"ls {pilots['folder']}/credentials").stdout
    assert wait(pool, batch, pilots)["done"] == 2
    assert listed(remote, pilots) == []
    assert remote.run(f"ls {pilots['folder']}/credentials").stdout == ""


@pytest.mark.parametrize("kind", ["pool", "waiting", "by name", "found", "other batch"])
def test_pilots_that_may_find_work_are_left(
    pool: Pool, remote: SlurmHook, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Pilots of the whole pool, where another batch has tokens; pilots that wait for tokens: of the whole pool, of a batch to
    which others may add some, those that the wait has found itself, and those of another batch than the wait's."""
    monkeypatch.setattr(ending, "END_WAIT", 1.0)
    batch = push(pool)
    claimed = push(pool, "other") if kind in ("pool", "other batch") else batch
    pilot = {} if kind == "pool" else {"wait_for_work": 60}
    pilots = submit(pool, None if kind in ("pool", "waiting") else claimed, sbatch={"hold": True}, pilot=pilot)
    finish(pool, batch)
    if kind == "other batch":
        finish(pool, claimed)
    wait(pool, batch["batch"] if kind == "by name" else batch, None if kind == "found" else pilots)
    assert len(listed(remote, pilots)) == 2
    assert f"_local/picas-submission-{pilots['submission']}" not in local_documents(PicasHook("picas_default"))
    remote.run(f"scancel {' '.join(pilots['job_ids'])}")


def test_pilots_that_wait_for_work_end_with_the_wait_for_all_tokens_of_their_push(
    pool: Pool, remote: SlurmHook
) -> None:
    """They would hold their nodes for an hour more. They notice it long before they renew their leases."""
    batch = push(pool)
    pilots = submit(pool, batch, pilot={"lease": 3600, "wait_for_work": 3600})
    assert wait(pool, batch, pilots)["done"] == 2
    assert listed(remote, pilots) == []
    assert remote.run(f"ls {pilots['folder']}/credentials").stdout == ""
    hook = PicasHook("picas_default")
    assert hook.do(drained(hook.pool, pilots["submission"])) is False, (
        "they may be submitted again when tokens are reset"
    )


# -- local documents ---------------------------------------------------------------------------------------------------


def test_leases_go_with_the_wait_that_succeeds(pool: Pool) -> None:
    hook = PicasHook("picas_default")
    batch = push(pool)
    now = hook.send(info(hook)).time
    assert now is not None
    lease = {"lease": 60, "submission": "another.1", "ended": False}
    old = now - 2 * 60 - tidy.KEEP_LEASES - 100
    for name, document in {
        "picas-pilot-lives": {**lease, "renewed": now},
        "picas-pilot-died": {**lease, "renewed": now - 3600},
        "picas-pilot-ended": {**lease, "renewed": now - 3600, "ended": True},
        "picas-pilot-long-gone": {**lease, "renewed": old},
        "picas-submission-new.1": {"drain": True, "raised": now},
        "picas-submission-old.1": {"drain": True, "raised": now - tidy.KEEP_OTHERS - 100},
        "picas-pilots-b:old.1": {"pilots": {}, "since": now - tidy.KEEP_OTHERS - 100},
        "picas-wait-new": {"finished": 1, "since": now},
        "picas-wait-old": {"finished": 1, "since": now - tidy.KEEP_OTHERS - 100},
    }.items():
        hook.do(hook.pool.put({"_id": f"_local/{name}", **document}))
    pilots = submit(pool, batch, pilot={"lease": 10})
    assert wait(pool, batch, pilots)["done"] == 2
    assert [name.removeprefix("_local/") for name in local_documents(hook)] == [
        "picas-pilot-died", "picas-pilot-ended", "picas-pilot-lives", f"picas-pilots-{batch['batch']}:{pilots['submission']}",
        "picas-submission-new.1", "picas-wait-new",
    ]  # fmt: skip


def info(hook: PicasHook) -> Any:
    return Request("GET", hook.pool.path())


def test_many_leases_are_removed_in_portions(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read in pages."""
    monkeypatch.setattr(tidy, "PAGE", 7)
    hook = PicasHook("picas_default")
    now = hook.send(info(hook)).time
    for number in range(30):
        document = {"renewed": now, "lease": 60, "submission": f"s.{number % 2}", "ended": True}
        hook.do(hook.pool.put({"_id": f"_local/picas-pilot-{number:02}", **document}))
    assert hook.do(tidy.local_documents(hook.pool, "s.1")) == 15
    assert local_documents(hook) == [f"_local/picas-pilot-{number:02}" for number in range(0, 30, 2)]


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(remote: SlurmHook, pool: Pool) -> Iterator[str]:
    """A remote folder."""
    path = remote.run(f"mkdir -p ~/sweep-{pool.database} && cd ~/sweep-{pool.database} && pwd -P").stdout.strip()
    yield path
    remote.run(
        f"rm -rf {path}; squeue --noheader --format='%F %j' | grep picas-sweep | cut -d' ' -f1 | xargs -r scancel"
    )


def make(remote: SlurmHook, folder: str, name: str, days: float, *files: str) -> None:
    """A submission in which nothing has changed for so many days."""
    named = " ".join(f"$(dirname {file}) " for file in ("credentials/picasconfig.py", *files))
    touched = " ".join(("credentials/picasconfig.py", *files))
    done = remote.run(
        f"mkdir {folder}/{name} && cd {folder}/{name} && mkdir -p {named} && touch {touched}"
        f" && touch -d @$(($(date +%s) - {int(days * 86400)})) ."
    )
    assert done.code == 0, done.message


def left(remote: SlurmHook, folder: str) -> set[str]:
    return set(remote.run(f"ls -A {folder}").stdout.split())


def test_old_submissions_are_removed(remote: SlurmHook, folder: str) -> None:
    key = "picas-sweep"
    make(remote, folder, f"{key}_old-0123456789.3", 31, "refused/x.json", "unsent/.half")
    make(remote, folder, f"{key}_unsent-0123456789.1", 100, "unsent/x.json")
    make(remote, folder, f"{key}_runs-0123456789.1", 100)
    make(remote, folder, f"{key}_again-0123456789.1", 100)
    make(remote, folder, f"{key}_idle-0123456789.1", 29)
    make(remote, folder, f"{key}_new-0123456789.1", 0.5)
    make(remote, folder, f".{key}_half-0123456789.1.picas-0", 2)
    make(remote, folder, f".{key}_half-0123456789.1.picas-1", 0)
    make(remote, folder, "somebodys.1", 100)
    for name in (f"{key}_runs-0123456789.1", f"{key}_again-0123456789.1-12"):
        assert remote.run(f"sbatch --hold --job-name={name} --wrap=true").code == 0
    assert remote.do(sweep.sweep(folder)) == [f"{key}_old-0123456789.3"]
    kept = {f"{key}_{name}-0123456789.1" for name in ("unsent", "runs", "again", "idle", "new")}
    assert left(remote, folder) == {*kept, f".{key}_half-0123456789.1.picas-1", "somebodys.1", sweep.REMOVED}
    with_credentials = remote.run(f"cd {folder} && ls -d picas-*/credentials/* | sort").stdout.split()
    assert with_credentials == [
        f"{key}_{name}-0123456789.1/credentials/picasconfig.py" for name in ("again", "new", "runs")
    ]


def test_submissions_beyond_the_limit_are_removed(
    remote: SlurmHook, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "KEEP_NUMBER", 2)
    for number in range(1, 6):
        make(remote, folder, f"picas-sweep-0123456789.{number}", 10 - number)
    assert remote.do(sweep.sweep(folder)) == [f"picas-sweep-0123456789.{number}" for number in (1, 2, 3)]


def test_nothing_is_removed_while_squeue_does_not_answer(remote: SlurmHook, folder: str) -> None:
    make(remote, folder, "picas-sweep-0123456789.1", 100)
    bad = sweep.sweep(folder)
    step = next(bad)
    output = remote.run(f"squeue() {{ return 1; }}\n{step.text}")  # type: ignore[union-attr]
    with pytest.raises(RemoteError, match="Old submissions could not be removed"):
        bad.send(output)
    assert left(remote, folder) == {"picas-sweep-0123456789.1"}


def test_a_task_that_submits_sweeps_and_uses_no_key_twice(pool: Pool, remote: SlurmHook, folder: str) -> None:
    """A drained submission's key would have its pilots stop at once."""
    batch = push(pool)
    first = submit(pool, batch, remote_folder=folder)
    wait(pool, batch, first)
    processes.wait_for(lambda: not listed(remote, first), what="The pilots' end", seconds=60)
    remote.run(f"touch -d @$(($(date +%s) - 40 * 86400)) {first['folder']}")
    other = submit(pool, batch, remote_folder=folder, task_id="other")
    assert remote.run(f"[ -e {first['folder']} ]").code == 1
    again = submit(pool, batch, remote_folder=folder)
    assert again["submission"] == first["submission"].removesuffix("1") + "2"
    remote.run(f"scancel {' '.join([*other['job_ids'], *again['job_ids']])}")


@pytest.mark.parametrize("days", [0, "none", None, float("nan")])
def test_invalid_keep_days_are_refused(days: Any, pool: Pool) -> None:
    with pytest.raises(AirflowFailException, match=r"`keep_days` is .*; it takes a number of days from 1"):
        submit(pool, None, keep_days=days)
