"""The page in a browser, on batches that no run has pushed: release, priority, archive, and hostile text."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.ids import lease_id
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.airflow import Airflow
from stack.pool import Pool
from stack.ui import SECONDS, confirm
from tests.conftest import set_connection
from tests.integration.lives import NOW, change, fill

CONN = "picas_by_hand"
ARCHIVE = "picas_archive_batches"
LONG = 6_500_000  # characters, 7.4 MB as JSON: CouchDB takes documents of 8 MB
# What a browser must not run, what a terminal would act on, and what turns text round.
HOSTILE = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><svg onload='window.ran = 1'></svg>"
    "<a href='javascript:window.ran = 1'>here</a> javascript:window.ran=1 data:text/html,<b>x</b> "
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \u202egnp.exe\u2066 \x00\n"
)

expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def hook(airflow: Airflow, new_pool: Callable[[], AbstractContextManager[Pool]]) -> Iterator[PicasHook]:
    """A pool whose tokens the tests write themselves."""
    with new_pool() as pool, pytest.MonkeyPatch.context() as patch:
        fields = native.picas_connection(pool)
        airflow.connect(CONN, **fields)
        yield PicasHook(set_connection(patch, CONN, fields))


def batch_page(hook: PicasHook, batch: str, **more: str) -> str:
    """The page of a batch in the navigation."""
    query = {"conn": CONN, "db": hook.settings.database, "batch": batch, **more}
    return "plugin/picas?" + urlencode({f"picas_{name}": value for name, value in query.items()})


def tokens(hook: PicasHook, batch: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = hook.do(hook.pool.batch_documents(batch))[0]
    return found


def said(shown: Page) -> str:
    """What came of an action; the dialog is closed then."""
    dialog = shown.get_by_role("dialog")
    text = dialog.get_by_role("status").inner_text()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)
    return text


def lease(hook: PicasHook, pilot: str, running: list[str], ago: int) -> None:
    """The lease of a pilot, last renewed ``ago`` seconds ago."""
    hook.do(
        hook.pool.put({
            "_id": lease_id(pilot), "pilot": pilot, "submission": "s.1", "job": None, "hostname": "n1", "renewals": 1,
            "ended": False, "state": "working", "renewed": hook.now() - ago, "lease": 600,
            "running": {token: {"seconds": 1} for token in running},
        })
    )  # fmt: skip


def test_tokens_of_dead_pilots_are_released_one_by_one_and_together(hook: PicasHook, admin: Page) -> None:
    ids = fill(hook, {State.LOCKED: 5}, batch="held")
    holders = ("dead-1", "dead-2", "dead-2", "alive", "gone")  # the last has no lease: it may live
    for token, pilot in zip(ids, holders, strict=True):
        change(hook, token, pilot=pilot, claim=f"{'0' * 16}-{NOW}", slurm_job_id="")
    for pilot, ago in (("dead-1", 10_000), ("dead-2", 20_000), ("alive", 0)):
        lease(hook, pilot, [token for token, holder in zip(ids, holders, strict=True) if holder == pilot], ago)
    admin.goto(batch_page(hook, "held", tab="pilots"))

    def row(pilot: str):  # type: ignore[no-untyped-def]
        return admin.locator(".picas tbody tr", has_text=pilot)

    expect(row("alive")).to_contain_text("working")
    expect(row("alive").get_by_role("button", name="Release")).to_have_count(0)
    expect(row("gone").get_by_role("button", name="Release")).to_be_visible()
    row("dead-1").get_by_role("button", name="Release").click()
    confirm(admin, "Release")
    assert said(admin) == "1 token waits again."
    expect(admin.locator("[data-state=todo]")).to_have_text("1")
    expect(row("dead-1").get_by_role("button", name="Release")).to_have_count(0)

    admin.get_by_role("button", name="Release tokens").click()
    confirm(admin, "Release")
    assert said(admin) == "2 tokens wait again."
    expect(admin.locator("[data-state=todo]")).to_have_text("3")
    states = [state_of(token) for token in tokens(hook, "held")]
    assert states == [State.TODO] * 3 + [State.LOCKED] * 2


def test_priority_of_the_tokens_that_wait(hook: PicasHook, admin: Page) -> None:
    fill(hook, {State.TODO: 3, State.DONE: 1}, batch="ranked")
    admin.goto(batch_page(hook, "ranked"))
    admin.get_by_role("button", name="Set priority").click()
    dialog = admin.get_by_role("dialog")
    field = dialog.get_by_role("spinbutton")
    field.fill("")
    expect(dialog.get_by_role("button", name="Set priority")).to_be_disabled()
    field.fill("-2.5")
    expect(dialog.locator("li").first).to_contain_text("priority -2.5")
    confirm(admin, "Set priority")
    assert "3 tokens" in said(admin)
    assert [token.get("priority") for token in tokens(hook, "ranked")] == [-2.5, -2.5, -2.5, None]

    admin.get_by_role("tab", name="All tokens").click()
    admin.get_by_role("checkbox", name="Select 00000001").check()
    admin.get_by_role("group", name="Selection").get_by_role("button", name="Set priority").click()
    field.fill("7")
    expect(dialog.locator("li").first).to_contain_text("priority 7")
    confirm(admin, "Set priority")
    assert "1 token " in said(admin)
    assert [token.get("priority") for token in tokens(hook, "ranked")] == [-2.5, 7, -2.5, None]


def test_a_finished_batch_is_archived(hook: PicasHook, airflow: Airflow, admin: Page, tmp_path: Path) -> None:
    processes.wait_for(lambda: airflow.api.has_dag(ARCHIVE), what=f"DAG {ARCHIVE}", seconds=240)
    airflow.api.unpause(ARCHIVE)
    fill(hook, {State.DONE: 3, State.ERROR: 1}, batch="old")
    fill(hook, {State.DONE: 1, State.TODO: 1}, batch="young")
    airflow.api.request("POST", "variables", {"key": "picas_archive", "value": str(tmp_path)})
    try:
        admin.goto(batch_page(hook, "young"))
        admin.get_by_role("button", name="Archive").click()
        dialog = admin.get_by_role("dialog")
        expect(dialog).to_contain_text("not possible yet")
        expect(dialog.get_by_role("button", name="Archive")).to_be_disabled()

        admin.goto(batch_page(hook, "old"))
        admin.get_by_role("button", name="Archive").click()
        confirm(admin, "Archive")
        link = dialog.get_by_role("link", name=f"The run of {ARCHIVE}")
        link.click()
        expect(admin).to_have_url(re.compile(f"{re.escape(airflow.url)}/dags/{ARCHIVE}/runs/manual"))
        run = max(airflow.api.runs(ARCHIVE), key=lambda found: str(found["run_after"]))
        assert airflow.api.wait_for_run(ARCHIVE, run["dag_run_id"])["state"] == "success"
    finally:
        airflow.api.request("DELETE", "variables/picas_archive")
    assert (tokens(hook, "old"), len(tokens(hook, "young"))) == ([], 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_hostile_text_of_8_mb_is_text_and_freezes_nothing(hook: PicasHook, admin: Page) -> None:
    (token,) = fill(hook, {State.ERROR: 1}, batch="hostile")
    errors = [{"time": int(hook.now()), "message": HOSTILE}]
    change(hook, token, error=errors, hostname=HOSTILE, input=HOSTILE, output=(HOSTILE * 40_000)[:LONG],
           slurm_job_id=HOSTILE, pilot=HOSTILE, odd={HOSTILE: HOSTILE})  # fmt: skip
    log = (HOSTILE.encode() * 40_000)[:8_000_000]
    files = {"attempt-1.err": log, "<img src=x onerror='window.ran = 1'>.log": HOSTILE.encode()}
    stubs = {n: {"content_type": "text/html", "data": base64.b64encode(text).decode()} for n, text in files.items()}
    change(hook, token, _attachments=stubs)
    opened: list[str] = []
    admin.on("dialog", lambda dialog: opened.append(dialog.message))
    admin.add_init_script(
        """window.longest = 0; let before = performance.now();
        setInterval(() => {
            const now = performance.now();
            window.longest = Math.max(window.longest, now - before);
            before = now;
        }, 50);"""
    )
    admin.goto(batch_page(hook, "hostile"))
    for tab in ("Overview", "Failures", "Pilots", "All tokens"):
        admin.get_by_role("tab", name=tab).click()
        expect(admin.get_by_role("tabpanel", name=tab)).to_contain_text("<script>")
        expect(admin.get_by_text(re.compile("^Reading "))).to_have_count(0)
    admin.get_by_role("button", name="00000000").click()
    dialog = admin.get_by_role("dialog")
    log_text = dialog.get_by_label("attempt-1.err")
    expect(log_text).to_contain_text("<script>window.ran = 1</script>")
    closed = dialog.locator("details:not([open]) > summary")
    while closed.count():
        closed.first.click()
    expect(admin.get_by_text(re.compile("^Reading "))).to_have_count(0)
    shown = dialog.inner_text()
    assert "red" in log_text.inner_text()
    assert [char for char in shown if not (char.isprintable() or char in "\n\t")] == []
    assert len(shown) < 500_000
    assert admin.evaluate("window.ran") is None
    assert opened == []
    forbidden = (
        "script, img:not(.attachment), svg, iframe, object, [onload], [onerror], a[href^=javascript], a[href^=data]"
    )
    assert dialog.locator(forbidden).count() == 0
    longest = admin.evaluate("window.longest")
    print(f"the page did not react for {longest:.0f} ms at most")
    assert longest < 5_000
