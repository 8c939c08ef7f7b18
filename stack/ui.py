"""A person's browser before Airflow's UI: headless Chromium, logged in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from stack import browser, page
from stack.airflow import Airflow

SECONDS = 60.0  # for anything to appear, on a busy machine
AXE = page.SOURCE / "node_modules" / "axe-core" / "axe.min.js"


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container may lack; it opens nothing but this Airflow.
        started = playwright.chromium.launch(executable_path=browser.program(), args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def person(started: Browser, airflow: Airflow, user: str, **options: Any) -> Iterator[Page]:
    """A page of somebody who has logged in; fails at the end if it, or another page of its context, had errors of its own.

    Loading Airflow's UI takes seconds of CPU: more pages of the same context find it in the browser's cache.
    """
    # Airflow may be below a path, so the addresses that tests open are relative to it.
    context = started.new_context(
        base_url=f"{airflow.url}/",
        **{"viewport": {"width": 1440, "height": 1000}, "reduced_motion": "reduce", **options},
    )
    context.set_default_timeout(SECONDS * 1000)
    log_in(context, airflow, user)
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context.new_page()
    context.close()
    assert errors == []


def log_in(context: BrowserContext, airflow: Airflow, user: str) -> None:
    """Through the form that a person sees."""
    form = context.new_page()
    form.goto("auth/login/")
    form.fill("input[name=username]", user)
    form.fill("input[name=password]", airflow.passwords[user])
    form.press("input[name=password]", "Enter")
    form.wait_for_url(lambda url: "login" not in url)
    form.close()


def confirm(shown: Page, button: str) -> None:
    """Press the button of the question, once it says what will happen."""
    dialog = shown.get_by_role("dialog")
    dialog.locator("li").first.wait_for()
    dialog.get_by_role("button", name=button, exact=True).click()


def run_page(dag_id: str, run_id: str, query: str = "") -> str:
    """The tab of the page on a DAG run, relative to Airflow's address."""
    return f"dags/{dag_id}/runs/{quote(run_id, safe=':+')}/plugin/picas-run{query}"


def serious_findings(shown: Page, within: str = ".picas") -> list[str]:
    """What axe finds in our part of the page that keeps somebody out, as ``rule: element``."""
    shown.add_script_tag(path=AXE)
    found = shown.evaluate(f"axe.run({json.dumps(within)}, {{resultTypes: ['violations']}})")
    return [
        f"{finding['id']}: {node['html'][:200]}"
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]


def set_theme(shown: Page, theme: str) -> None:
    """Light or dark, as Airflow's menu does."""
    shown.evaluate("theme => localStorage.setItem('theme', theme)", theme)
