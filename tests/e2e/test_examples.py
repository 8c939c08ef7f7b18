"""The example DAGs in a real Airflow, with pilots on a real cluster. Most of them run at the same time, in one pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.states import State, state_of
from stack import install, native, processes
from stack.airflow import Airflow
from stack.airflow_api import AirflowApi
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool
from stack.ui import run_page
from tests.conftest import set_connection

OWN_SCRIPT, SWEEP, MAPPED = "picas_own_script", "picas_sweep", "picas_mapped_runs"
NIGHTLY, REPORT = "picas_nightly_checksums", "picas_checksum_report"
SUNSPOTS = "picas_sunspots"
AUTOPILOT, AFTER_BATCH = "picas_autopilot", "picas_after_batch"
FILES = ["/etc/os-release", "/etc/passwd", "/etc/group"]
WINDOWS = 23
SECONDS = 300  # for the runs of all examples, on a busy machine


@dataclass
class Examples:
    """The runs of the examples that share a pool."""

    api: AirflowApi
    pool: Pool
    runs: dict[str, str]

    def finished(self, dag_id: str, task_id: str) -> Any:
        """What a task of the example returned, after its run has succeeded."""
        run = self.runs[dag_id]
        state = self.api.wait_for_run(dag_id, run, seconds=SECONDS)["state"]
        assert state == "success", {task["task_id"]: task["state"] for task in self.api.tasks(dag_id, run)}
        return self.api.xcom(dag_id, run, task_id)

    def tokens(self, dag_id: str) -> list[dict[str, Any]]:
        """The tokens that its run has pushed."""
        batch = self.api.xcom(dag_id, self.runs[dag_id], "push")["batch"]
        return [token for token in self.pool.tokens() if token["batch"] == batch]


@pytest.fixture(scope="module")
def examples(
    airflow: Airflow, cluster: Cluster | DockerStack, new_pool: Callable[[], AbstractContextManager[Pool]]
) -> Iterator[Examples]:
    api = airflow.api
    if isinstance(cluster, Cluster):
        install.install(["examples"])
        native.install_examples(cluster.home)
    with new_pool() as pool:
        airflow.connect("picas_default", **native.picas_connection(pool))
        airflow.connect("spider", **native.ssh_connection(cluster))
        names = [SUNSPOTS, OWN_SCRIPT, SWEEP, MAPPED, NIGHTLY, REPORT]
        for name in names:
            processes.wait_for(lambda name=name: api.has_dag(name), what=f"DAG {name}", seconds=SECONDS)  # type: ignore[misc]
        started = Examples(api, pool, {SUNSPOTS: api.trigger(SUNSPOTS)})
        # Pilots of the PiCaS client take tokens of any batch: the others begin when its tokens are done.
        api.wait_for_task(SUNSPOTS, started.runs[SUNSPOTS], "wait", ["success", "failed"], seconds=SECONDS)
        started.runs |= {name: api.trigger(name) for name in (OWN_SCRIPT, SWEEP, MAPPED)}
        for name in (REPORT, NIGHTLY):
            api.unpause(name)
        yield started
        for name in (NIGHTLY, REPORT):
            api.pause(name)


def first_run(api: AirflowApi, dag_id: str) -> str:
    """The first run that the scheduler starts of a DAG."""
    processes.wait_for(lambda: api.runs(dag_id), what=f"A run of {dag_id}", seconds=SECONDS)
    return str(min(api.runs(dag_id), key=lambda run: run["run_after"])["dag_run_id"])


def test_sunspots_have_a_cycle_of_eleven_years_and_each_window_a_figure(examples: Examples) -> None:
    report = examples.finished(SUNSPOTS, "report")
    assert 10.5 < report["mean"] < 11.5
    assert report["shortest"] < report["mean"] < report["longest"]
    tokens = examples.tokens(SUNSPOTS)
    assert len(tokens) == WINDOWS
    for token in tokens:
        assert token["_attachments"]["sunspots.png"]["content_type"] == "image/png"
    with examples.pool.open(f"{tokens[0]['_id']}/sunspots.png") as picture:
        assert picture.read().startswith(b"\x89PNG\r\n")


def test_the_page_shows_the_figure_of_a_token(examples: Examples, admin: Page) -> None:
    examples.finished(SUNSPOTS, "report")
    admin.goto(run_page(SUNSPOTS, examples.runs[SUNSPOTS], "?picas_tab=tokens"))
    admin.locator(".picas tbody .link").first.click()
    admin.get_by_role("dialog").get_by_text("sunspots.png").click()
    figure = admin.locator("img.attachment")
    expect(figure).to_be_visible()
    assert figure.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 700


def test_an_own_script_gives_the_checksum_of_each_file(examples: Examples, cluster: Cluster | DockerStack) -> None:
    rows = examples.finished(OWN_SCRIPT, "picas_run.collect")["rows"]
    assert {row["input"] for row in rows} == set(FILES)
    if isinstance(cluster, Cluster):  # its files are those of this machine
        expected = {name: sha256(Path(name).read_bytes()).hexdigest() for name in FILES}
        assert {row["input"]: row["output.sha256"] for row in rows} == expected


def test_the_sweep_runs_again_only_what_failed(examples: Examples) -> None:
    steps = examples.finished(SWEEP, "report")
    assert steps == {str(tenth / 10): 10_000 if tenth > 6 else 1_000 for tenth in range(9)}
    tokens = {token["input"]: token for token in examples.tokens(SWEEP)}
    assert {state_of(token) for token in tokens.values()} == {State.DONE}
    attempts = {number: token["attempts"] for number, token in tokens.items() if token.get("attempts")}
    assert set(attempts) == {0.7, 0.8}
    for (attempt,) in attempts.values():
        assert attempt["exit_code"] == 1
        assert "smaller steps" in attempt["reason"]


def test_mapped_runs_have_a_batch_each(examples: Examples) -> None:
    assert examples.finished(MAPPED, "report") == [1_000, 10_000]
    shown = [task for task in examples.api.tasks(MAPPED, examples.runs[MAPPED]) if task["task_id"] == "picas_run.push"]
    assert len({task["map_index"] for task in shown}) == 2


def test_the_report_starts_when_the_tokens_of_a_night_are_done(examples: Examples) -> None:
    """The scheduler starts the run of the last night when the DAG is unpaused."""
    examples.runs[NIGHTLY] = first_run(examples.api, NIGHTLY)
    counts = examples.finished(NIGHTLY, "wait")
    assert counts["done"] == len(FILES)
    examples.runs[REPORT] = first_run(examples.api, REPORT)
    seen = examples.finished(REPORT, "report")
    assert set(seen) == set(FILES)
    assert {sum(nights.values()) for nights in seen.values()} == {1}


def test_an_autopilot_runs_what_appears_and_a_complete_batch_is_reported(
    airflow: Airflow, cluster: Cluster | DockerStack, pool: Pool, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pool of their own, since the pilots of the autopilot run the tokens of all batches."""
    api = airflow.api
    fields = native.picas_connection(pool)
    airflow.connect("picas_default", **fields)
    airflow.connect("spider", **native.ssh_connection(cluster))
    hook = PicasHook(set_connection(monkeypatch, "picas_default", fields))
    hook.deploy_views()
    hook.push(documents.new_token({"input": file}, batch="words", push="p", ordinal=n) for n, file in enumerate(FILES))
    before = {name: len(api.runs(name)) for name in (AUTOPILOT, AFTER_BATCH)}
    for name in before:
        api.unpause(name)
        api.parse(name)
    try:
        processes.wait_for(
            lambda: all(state_of(token) is State.DONE for token in pool.tokens()), what="The words", seconds=SECONDS
        )
        processes.wait_for(
            lambda: len(api.runs(AFTER_BATCH)) > before[AFTER_BATCH], what="The run after the batch", seconds=SECONDS
        )
        for name in before:
            run = max(api.runs(name), key=lambda found: found["run_after"])
            assert run["run_type"] == "asset_triggered"
            assert api.wait_for_run(name, run["dag_run_id"], seconds=SECONDS)["state"] == "success"
    finally:
        for name in before:
            api.pause(name)
    assert api.xcom(AFTER_BATCH, run["dag_run_id"], "complete_batches") == ["words"]
