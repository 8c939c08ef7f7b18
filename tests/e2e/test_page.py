"""The page inside Airflow's UI, in a browser, while real pilots work: watched, rerun, drained, cancelled, and used by anyone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.airflow import ADMIN, VIEWER, Airflow
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool
from stack.ui import SECONDS, confirm, person, run_page, serious_findings, set_theme

DAG = "watched_run"
TABS = ("Overview", "Failures", "All tokens", "Pilots")
GOOD, BAD = (
    3,
    3,
)  # more good ones than one pilot has slots, fewer than both: each stays busy, and a slot is free for the bad ones

expect.set_options(timeout=SECONDS * 1000)


class Watched:
    """A run whose good tokens end when its gate opens; its bad tokens have failed once."""

    def __init__(self, airflow: Airflow, pool: Pool, gate: Path) -> None:
        self.api = airflow.api
        self.pool = pool
        self.gate = gate
        inputs = [f"good:{gate}"] * GOOD + ["bad:"] * BAD
        self.id = self.api.trigger(DAG, {"inputs": inputs})

    def tokens(self, *states: State) -> list[dict[str, Any]]:
        """Those of this run's batch in one of these states; all without a state."""
        batch = self.api.xcom(DAG, self.id, "picas_run.push")["batch"]
        tokens = [token for token in self.pool.tokens() if token["batch"] == batch]
        return [token for token in tokens if not states or state_of(token) in states]

    def wait_until_failed(self) -> None:
        self.api.wait_for_task(DAG, self.id, "picas_run.push", ["success"])
        processes.wait_for(lambda: len(self.tokens(State.ERROR)) == BAD, what="The bad tokens' end", seconds=120)


@pytest.fixture(scope="module")
def connected(airflow: Airflow, cluster: Cluster | DockerStack) -> Airflow:
    processes.wait_for(lambda: airflow.api.has_dag(DAG), what=f"DAG {DAG}", seconds=60)
    airflow.connect("spider", **native.ssh_connection(cluster))
    return airflow


@pytest.fixture(scope="module")
def new_run(
    connected: Airflow, cluster: Cluster | DockerStack, new_pool: Callable[[], AbstractContextManager[Pool]]
) -> Iterator[Callable[[str], Watched]]:
    """Makes a run that waits at its gate, in a pool of its own. All gates are open at the end, so that no pilot stays."""
    gates = []
    with new_pool() as pool:
        connected.connect("picas_default", **native.picas_connection(pool))

        def make(name: str) -> Watched:
            gates.append(cluster.home / f"gate-{name}")
            return Watched(connected, pool, gates[-1])

        yield make
        for gate in gates:
            gate.touch()


@pytest.fixture(scope="module")
def runs(new_run: Callable[[str], Watched]) -> dict[str, Watched]:
    """Two runs, which start side by side."""
    return {name: new_run(name) for name in ("watched", "drained")}


@pytest.fixture(scope="module")
def run(runs: dict[str, Watched]) -> Watched:
    """The run that most tests look at; the first test lets it end."""
    runs["watched"].wait_until_failed()
    return runs["watched"]


def count(shown: Page, state: str) -> int:
    return int(shown.locator(f"[data-state={state}]").inner_text().replace(",", ""))


def text_colour(shown: Page) -> list[int]:
    """Red, green and blue of the page's text, whatever way the theme writes it in."""
    script = """() => {
        const context = document.createElement("canvas").getContext("2d");
        context.fillStyle = getComputedStyle(document.querySelector(".picas")).color;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }"""
    found: list[int] = shown.evaluate(script)
    return found


def test_a_run_is_watched_and_what_failed_is_rerun(run: Watched, admin: Page) -> None:
    # Pilots show the output of running tokens from their next renewal on, once somebody looks at them.
    side = admin.context.new_page()
    side.goto(run_page(DAG, run.id, "?picas_tab=pilots"))

    admin.goto(f"dags/{DAG}/runs/{run.id}")
    clicks = 1
    admin.get_by_role("link", name="Tokens", exact=True).click()
    expect(admin.locator("[data-state=error]")).to_have_text(str(BAD))
    assert count(admin, "done") == 0
    expect(admin.get_by_text("live", exact=True)).to_be_visible()

    # A failed token's log, from the DAG run.
    failed = run.tokens(State.ERROR)[0]["_id"]
    clicks += 1
    admin.get_by_role("button", name=re.compile(re.escape(failed.rpartition(":")[2]))).first.click()
    log = admin.get_by_role("dialog").get_by_role("region", name="attempt-1.err")
    expect(log).to_have_text(f"no file /data/{failed} <b>&amp;")
    assert clicks <= 3
    admin.keyboard.press("Escape")
    expect(admin.get_by_role("dialog")).to_have_count(0)

    # A single token, again, by its checkbox.
    admin.get_by_role("tab", name="All tokens").click()
    admin.get_by_role("checkbox", name=f"Select {failed.rpartition(':')[2]}").check()
    admin.get_by_role("group", name="Selection").get_by_role("button", name="Rerun").click()
    expect(admin.get_by_role("dialog")).to_contain_text("1 token in error will run again")
    confirm(admin, "Rerun")
    expect(admin.locator("[data-state=done]")).to_have_text("1")
    expect(admin.locator("[data-state=error]")).to_have_text(str(BAD - 1))
    assert [token["_id"] for token in run.tokens(State.DONE)] == [failed]
    admin.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(admin.get_by_role("group", name="Selection")).to_have_count(0)

    # The cause, again: the pilots that wait for work take its tokens at once.
    admin.get_by_role("tab", name="Failures").click()
    admin.get_by_role("button", name="Rerun", exact=True).first.click()
    expect(admin.get_by_role("dialog")).to_contain_text(f"{BAD - 1} ")
    confirm(admin, "Rerun")
    processes.wait_for(
        lambda: run.tokens(State.LOCKED, State.DONE)[GOOD + 1 :], what="The claim of a token that is rerun", seconds=60
    )

    # Nothing was reloaded: the numbers move by themselves.
    expect(admin.locator("[data-state=done]")).to_have_text(str(BAD))
    admin.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(side.get_by_label(re.compile("^Last lines of ")).first).to_have_text(
        "waiting <b>&amp;</b> red \\u202etxt.exe"
    )
    side.close()
    run.gate.touch()
    expect(admin.locator("[data-state=done]")).to_have_text(str(GOOD + BAD))
    assert run.api.wait_for_run(DAG, run.id)["state"] == "success"
    events = run.api.request("GET", "eventLogs", query={"dag_id": DAG, "run_id": run.id, "limit": 100})["event_logs"]
    assert [log["owner"] for log in events if log["event"] == "picas.rerun"] == [ADMIN, ADMIN]


def test_pilots_are_drained_and_cancelled(runs: dict[str, Watched], admin: Page) -> None:
    run = runs["drained"]
    run.wait_until_failed()
    admin.goto(run_page(DAG, run.id))
    admin.get_by_role("button", name="Drain pilots").click()
    confirm(admin, "Drain")
    expect(admin.get_by_role("dialog").get_by_role("status")).to_be_visible()
    admin.get_by_role("dialog").get_by_role("button", name="Close").click()
    admin.get_by_role("button", name="Cancel pilots").click()
    confirm(admin, "Cancel pilots")
    expect(admin.get_by_role("dialog").get_by_role("status")).to_be_visible()
    processes.wait_for(lambda: run.tokens(State.LOCKED) == [], what="The end of the pilots", seconds=60)
    run.api.set_run_state(DAG, run.id, "failed")


def test_a_viewer_looks_and_reads_why_not_to_act(run: Watched, browser: Browser, connected: Airflow) -> None:
    with person(browser, connected, VIEWER) as viewer:
        viewer.goto(run_page(DAG, run.id))
        rerun = viewer.get_by_role("button", name=re.compile("^Rerun"))
        expect(rerun.first).to_have_attribute("aria-disabled", "true")
        rerun.first.click(force=True)
        expect(viewer.get_by_role("alert")).to_contain_text("requires permission")
        expect(viewer.get_by_role("dialog")).to_have_count(0)


def test_with_the_keyboard_alone(run: Watched, admin: Page) -> None:
    admin.goto(run_page(DAG, run.id, "?picas_tab=tokens"))
    expect(admin.locator(".picas tbody tr").nth(GOOD)).to_be_visible()
    admin.get_by_role("tab", name="All tokens").focus()
    admin.keyboard.press("ArrowLeft")
    expect(admin.get_by_role("tab", name="Failures")).to_be_focused()
    expect(admin.get_by_role("tab", name="Failures")).to_have_attribute("aria-selected", "true")
    admin.keyboard.press("ArrowRight")
    expect(admin.get_by_role("tab", name="All tokens")).to_have_attribute("aria-selected", "true")
    first = admin.locator(".picas tbody .link").first
    for _ in range(40):
        admin.keyboard.press("Tab")
        if first.evaluate("element => element === document.activeElement"):
            break
    expect(first).to_be_focused()
    admin.keyboard.press("Enter")
    expect(admin.get_by_role("dialog")).to_be_visible()
    assert admin.evaluate("document.activeElement.closest('dialog') !== null")
    admin.keyboard.press("Escape")
    expect(admin.get_by_role("dialog")).to_have_count(0)
    expect(first).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_keeps_anybody_out(run: Watched, admin: Page, theme: str) -> None:
    admin.goto("./")
    set_theme(admin, theme)
    admin.goto(run_page(DAG, run.id))
    for tab in TABS:
        admin.get_by_role("tab", name=tab).click()
        expect(admin.get_by_role("tabpanel", name=tab)).to_be_visible()
        expect(admin.get_by_text(re.compile("^Reading "))).to_have_count(0)
        assert serious_findings(admin) == [], tab
    admin.get_by_role("tab", name="All tokens").click()
    admin.locator(".picas tbody .link").first.click()
    expect(admin.get_by_role("dialog").locator("h2")).to_be_visible()
    expect(admin.get_by_text(re.compile("^Reading "))).to_have_count(0)
    assert serious_findings(admin) == [], "a token"
    assert (sum(text_colour(admin)) > 3 * 128) == (theme == "dark")


def test_on_a_phone(run: Watched, browser: Browser, connected: Airflow) -> None:
    with person(browser, connected, ADMIN, viewport={"width": 390, "height": 844}) as phone:
        phone.goto(run_page(DAG, run.id))
        wide = phone.get_by_role("link", name="Full page").get_attribute("href")
        assert wide is not None
        phone.goto(wide)
        for tab in TABS:
            phone.get_by_role("tab", name=tab).click()
            expect(phone.get_by_role("tabpanel", name=tab)).to_be_visible()
            expect(phone.locator(".picas .bar").first).to_be_visible()
            expect(phone.get_by_text(re.compile("^Reading "))).to_have_count(0)
            assert phone.evaluate("document.querySelector('.picas').scrollWidth <= innerWidth"), tab


def test_pools_and_their_batches(run: Watched, admin: Page) -> None:
    admin.goto("./")
    admin.get_by_role("link", name="PiCaS").click()
    admin.get_by_role("button", name=run.pool.database).click()
    admin.locator(".picas tbody .link").first.click()
    expect(admin.locator("[data-state=done]")).to_be_visible()
