"""Chains of stages in pools of other shapes, run by our pilots and by unmodified ones of the PiCaS client."""

from __future__ import annotations

import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm.credentials import picasconfig
from airflow_provider_picas.tokens import chain, waiting
from airflow_provider_picas.tokens.counts import Counts
from stack import install, paths
from tests.conftest import set_connection
from tests.integration.pilots import PASSWORD, Pool, Submission, member, pool, server
from tests.integration.tasks import context

__all__ = ["member", "pool", "server"]

MAKE = """
for part in 0 1 2; do
  echo '{"stage": "s", "key": "'$PICAS_INPUT-$part'", "group": "'$part'"}' >> "$PICAS_TOKENS_FILE"
done"""
OUTPUT = """echo '"ran"' > "$PICAS_OUTPUT_FILE" """
CLIENT_PILOT = """
import picasconfig
from picas.actors import RunActor
from picas.clients import CouchDB

class Actor(RunActor):
    def process_task(self, token):
        token["exit_code"] = 0
        token["output"] = "ran by a client"
        token.done()

c = picasconfig
client = CouchDB(url=c.PICAS_HOST_URL, db=c.PICAS_DATABASE, username=c.PICAS_USERNAME, password=c.PICAS_PASSWORD)
Actor(client, view="todo", design_doc="imaging").run()
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(chain, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(chain, "LOOK_AGAIN", 0.2)


@pytest.fixture
def submission(tmp_path: Path, pool: Pool) -> Iterator[Submission]:
    made = Submission(tmp_path / "submission", pool)
    yield made
    made.close()


@pytest.fixture
def connection(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The connection's fields, with an admin's login for the views."""
    url = urllib.parse.urlsplit(pool.server.url)
    fields = {"conn_type": "picas", "host": f"http://{url.hostname}", "port": url.port, "schema": pool.name}
    login = {"login": pool.server.admin, "password": pool.server.password}
    set_connection(monkeypatch, "picas_default", {**fields, **login})
    return login


def push(profile: str | None = None) -> dict[str, Any]:
    operator = PicasPushTokensOperator(task_id="push", inputs=[0, 1, 2, 3], batch="b", profile=profile)
    output: dict[str, Any] = operator.execute(context())
    return output


def wait(pushed: dict[str, Any], **arguments: Any) -> Any:
    sensor = PicasTokenStateSensor(
        task_id="wait", batch=pushed, poke_interval=0.2, timeout=240, pilots=False, deferrable=False, **arguments
    )
    return sensor.execute(context("wait"))


@pytest.mark.parametrize("profile", ["picas_cortex", "grid_lrt"])
def test_stages_and_groups_of_a_pool_of_another_shape(
    connection: dict[str, str], submission: Submission, profile: str
) -> None:
    """The batch is in the field of the profile, and its own conditions call members finished."""
    pushed = push(profile)
    stages = {"s": "b.s", "t": "b.t"}
    ours: dict[str, Any] = {"profile": profile, "stages": stages, "lease": 5, "wait_for_work": 600}
    submission.start(MAKE, batch="b", **ours)
    submission.start(OUTPUT, batch="b.s", **ours)
    submission.start(OUTPUT, batch="b.t", **ours)
    counts = wait(pushed, profile=profile, stages=["s", "t"], groups={"t": {"of": "s", "at_least": 0.9}})
    assert counts == Counts(done=4 + 12 + 3).as_dict(), [submission.log(place) for place in range(3)]
    hook = PicasHook(profile=profile)
    assert hook.batches() == {"b": Counts(done=4), "b.s": Counts(done=12), "b.t": Counts(done=3)}
    group = hook.get("b.t:1")
    assert [member["id"] for member in group["input"]["members"]] == [f"b.s:{parent}-1" for parent in range(4)]
    assert {(member["state"], member["output"]) for member in group["input"]["members"]} == {("done", "ran")}


def test_unmodified_client_pilots_run_one_stage(
    connection: dict[str, str], pool: Pool, submission: Submission, tmp_path: Path
) -> None:
    """They find the tokens of a stage, and no others, in a design document that an admin has made for it."""
    install.install(["picas"])
    PicasHook().deploy_views({"imaging": "doc.stage === 's'"})
    pushed = push()
    submission.start(MAKE, batch="b", stages={"s": "b.s"}, wait_for_work=600)
    counts = wait(pushed, stages=["s"], stage="s", ready=12)
    assert counts["batch"] == "b.s"
    pool.push([{}], batch="other")
    (tmp_path / "picasconfig.py").write_bytes(picasconfig(pool.server.url, pool.name, pool.member, PASSWORD))
    (tmp_path / "pilot.py").write_text(CLIENT_PILOT)
    command = [str(paths.PICAS_VENV / "bin" / "python"), "pilot.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert wait(pushed, stages=["s"]) == Counts(done=4 + 12).as_dict()
    tokens = pool.docs()
    assert {tokens[name]["output"] for name in tokens if name.startswith("b.s:")} == {"ran by a client"}
    assert tokens["other:0000"]["lock"] == 0
