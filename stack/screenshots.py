"""``make screenshots``: the pictures of the page in ``docs/images``, of a run on the demo's stack."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page

from airflow_provider_picas.tokens.states import State, state_of
from stack import install, paths, processes
from stack.airflow import ADMIN
from stack.native import NativeStack
from stack.ui import chromium, person, run_page, set_theme

DAG = "sky_survey"
IMAGES = paths.PROJECT / "docs" / "images"
ENDED = 230  # tokens, of 300, when the pictures are taken
SECONDS = 600
VIEWS = {
    "page": "",
    "page-failures": "?picas_tab=causes",
    "page-tokens": "?picas_tab=tokens&picas_state=error",
    "page-pilots": "?picas_tab=pilots",
}


def main() -> int:
    install.interrupt_on_sigterm()
    stack = NativeStack(paths.RUN / "screenshots", dags=Path(__file__).parent / "pictures")
    try:
        stack.start((DAG,))
        pool = stack.connect("sky")
        run_id = stack.api.trigger(DAG)
        processes.wait_for(
            lambda: sum(state_of(token) in (State.DONE, State.ERROR) for token in pool.tokens()) >= ENDED,
            what="The end of most tokens",
            seconds=SECONDS,
        )
        take(stack, run_id)
    except KeyboardInterrupt:
        return 130
    finally:
        stack.stop()
    return 0


def take(stack: NativeStack, run_id: str) -> None:
    with chromium() as browser:
        with person(browser, stack.airflow, ADMIN, viewport={"width": 1360, "height": 980}) as shown:
            for theme in ("light", "dark"):
                shown.goto("./")
                set_theme(shown, theme)
                for name, query in VIEWS.items():
                    if theme == "light" or name == "page":
                        shown.goto(run_page(DAG, run_id, query))
                        picture(shown, name if theme == "light" else f"{name}-{theme}")
            set_theme(shown, "light")
            shown.goto(run_page(DAG, run_id, "?picas_tab=causes"))
            shown.locator(".picas tbody .link.mono").first.click()
            shown.get_by_role("dialog").locator("pre").first.wait_for()
            picture(shown, "page-token")
        with person(browser, stack.airflow, ADMIN, viewport={"width": 390, "height": 844}) as phone:
            phone.goto(run_page(DAG, run_id))
            phone.goto(str(phone.get_by_role("link", name="Full page").get_attribute("href")))
            picture(phone, "page-phone")


def picture(shown: Page, name: str) -> None:
    """A picture once everything is there."""
    shown.locator(".picas .bar").first.wait_for()
    shown.get_by_text("Reading ").first.wait_for(state="detached")
    shown.wait_for_timeout(1_000)  # for the bars' movement to end
    shown.screenshot(path=IMAGES / f"{name}.png", animations="disabled")
    print(f"  docs/images/{name}.png", flush=True)


if __name__ == "__main__":
    sys.exit(main())
