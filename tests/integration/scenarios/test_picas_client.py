"""The real PiCaS client and its examples on our pools, and the provider on theirs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm.credentials import picasconfig
from airflow_provider_picas.tokens import waiting
from airflow_provider_picas.tokens.counts import Counts
from stack import install, paths
from stack.pool import Pool
from tests.integration.tasks import context

EXAMPLES = Path(__file__).parent.with_name("picas_client")
OVERVIEW = """
import json, picasconfig
from picas.clients import CouchDB
c = picasconfig
client = CouchDB(url=c.PICAS_HOST_URL, db=c.PICAS_DATABASE, username=c.PICAS_USERNAME, password=c.PICAS_PASSWORD)
print(json.dumps({row.key: row.value for row in client.view("overview_total", group=True)}))
"""

Client = Callable[..., str]


@pytest.fixture
def client(pool: Pool, tmp_path: Path) -> Client:
    """Runs one of the examples, or other code (``-c``), in the client's environment, with the credentials as a job finds them."""
    install.install(["picas"])
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "picasconfig.py").write_bytes(picasconfig(pool.url, pool.database, pool.user, pool.password))

    def run(*arguments: str) -> str:
        ended = subprocess.run(
            [str(paths.PICAS_VENV / "bin" / "python"), *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.1)


@pytest.fixture(autouse=True)
def hook(picas_default: str) -> PicasHook:
    return PicasHook()


def overview(client: Client) -> dict[str, int]:
    """The client's own count, with zeros for what it leaves out."""
    counted: dict[str, int] = json.loads(client("-c", OVERVIEW))
    return {"todo": 0, "locked": 0, "done": 0, "error": 0, **counted}


def push(inputs: list[Any]) -> dict[str, Any]:
    output: dict[str, Any] = PicasPushTokensOperator(task_id="push", inputs=inputs).execute(context())
    return output


def wait(batch: Any = None, **arguments: Any) -> Any:
    sensor = PicasTokenStateSensor(task_id="wait", batch=batch, poke_interval=0.1, timeout=5, **arguments)
    return sensor.execute(context("wait"))


def test_the_client_is_the_one_that_sites_have(client: Client) -> None:
    assert client("-c", "from importlib import metadata; print(metadata.version('picas'))").strip() == "1.1.2"
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("picas")  # it cannot live beside Airflow


def test_its_run_actor_processes_tokens_that_the_operator_pushed(client: Client, hook: PicasHook) -> None:
    batch = push([0, 0, 3, "nonsense", 0, 0])
    client("actor.py", "4")
    assert hook.count().as_dict() == overview(client)
    assert hook.count().finished == 4
    client("actor.py")
    assert hook.count().as_dict() == overview(client) == {"todo": 0, "locked": 0, "done": 4, "error": 2}
    assert hook.count(batch["batch"]) == Counts(done=4, error=2)
    assert wait(batch, max_errors=2) == {"todo": 0, "locked": 0, "done": 4, "error": 2}
    failed = {token["ordinal"]: token for token in hook.tokens("error", batch["batch"])}
    assert failed[2]["exit_code"] == 3
    assert "invalid literal" in failed[3]["error"][-1]["exception"] + failed[3]["error"][-1]["message"]
    assert {token["output"] for token in hook.tokens("done")} == {"was 0"}

    # Clearing the push task runs just what failed, and the client takes it again.
    push([0, 0, 3, "nonsense", 0, 0])
    assert overview(client) == {"todo": 2, "locked": 0, "done": 4, "error": 0}
    client("actor.py")
    assert hook.count(batch["batch"]) == Counts(done=4, error=2)
    again = hook.get(f"{batch['batch']}:00000002")
    assert (again["scrub_count"], again["attempts"][0]["exit_code"]) == (1, 3)
    assert list(again["_attachments"]) == [f"logs_{again['_id']}.out"]


def test_its_views_are_left_alone_and_serve_both(client: Client, hook: PicasHook) -> None:
    client("create_views.py")
    before = hook.get("_design/Monitor")
    batch = push([0, 1])
    assert hook.get("_design/Monitor") == before
    client("actor.py")
    assert hook.count().as_dict() == overview(client) == {"todo": 0, "locked": 0, "done": 1, "error": 1}
    assert wait(batch, max_errors=1)["done"] == 1


def test_its_views_can_be_made_over_ours(client: Client, hook: PicasHook) -> None:
    batch = push([0, 1])
    client("create_views.py")
    client("create_views.py", "autopilot")
    assert hook.count(batch["batch"]) == Counts(todo=2)
    assert hook.count().as_dict() == overview(client)
    assert hook.deploy_views().written == []


def test_tokens_that_the_client_pushes_are_counted(client: Client, hook: PicasHook) -> None:
    client("create_views.py")
    client("push_tokens.py")
    assert hook.count() == Counts(todo=3)
    first = push([0])
    client("push_tokens.py")  # numbers its tokens by the number of documents, ours included
    assert hook.count() == Counts(todo=7)
    names = {token["_id"]: token["input"] for token in hook.tokens("todo")}
    assert "echo 'this is token A'" in names.values()
    client("-c", open_and_finish())
    assert hook.count().as_dict() == overview(client) == {"todo": 0, "locked": 0, "done": 7, "error": 0}
    assert wait()["done"] == 7
    assert wait(first)["done"] == 1


def open_and_finish() -> str:
    """A pilot that finishes whatever it takes."""
    return (EXAMPLES / "actor.py").read_text().replace('int(token["input"])', "0")


def test_the_clients_reset_works_on_our_tokens(client: Client, hook: PicasHook) -> None:
    batch = push([0, 3, 4])
    client("actor.py")
    assert "Number of reset tokens: 2" in client("resetTokens.py", "Monitor/error", "0")
    assert hook.count(batch["batch"]) == Counts(todo=2, done=1)
    assert hook.get(f"{batch['batch']}:00000001")["scrub_count"] == 1
    client("actor.py")
    with pytest.raises(AirflowFailException, match="2 of 3 tokens"):
        wait(batch)


def test_its_delete_works_on_our_tokens_and_the_wait_names_them(client: Client, hook: PicasHook) -> None:
    batch = push([0, 3, 4])
    client("actor.py")
    client("deleteTokens.py", "Monitor/error")
    assert hook.count(batch["batch"]) == Counts(done=1)
    with pytest.raises(AirflowFailException, match=r"2 pushed tokens are missing \(.*:00000001, .*:00000002\)"):
        wait(batch)
    assert push([0, 3, 4])["tokens"] == 3  # which the message advises
    assert hook.count(batch["batch"]) == Counts(todo=2, done=1)
