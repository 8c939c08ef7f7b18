"""``make screenshots``: the pictures of the page in ``docs/images``, of runs on the demo's stack. ``ARGS=stages`` takes
those of the graph of stages alone."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Locator, Page

from airflow_provider_picas.tokens.states import State, state_of
from stack import install, paths, processes
from stack.airflow import ADMIN
from stack.native import NativeStack
from stack.pool import Pool
from stack.ui import chromium, person, run_page, set_theme

DAG = "sky_survey"
STAGES = "sky_stages"
IMAGES = paths.PROJECT / "docs" / "images"
ENDED = 230  # tokens, of 300, when the pictures are taken
CALIBRATED = 40  # tokens of that stage, of 80, when those of the stages are taken
SECONDS = 600
VIEWS = {
    "page": "",
    "page-failures": "?picas_tab=causes",
    "page-tokens": "?picas_tab=tokens&picas_state=error",
    "page-pilots": "?picas_tab=pilots",
}


def main(words: list[str]) -> int:
    install.interrupt_on_sigterm()
    stack = NativeStack(paths.RUN / "screenshots", dags=Path(__file__).parent / "pictures")
    try:
        stack.start((DAG, STAGES))
        pool = stack.connect("sky")
        if "stages" not in words:
            survey(stack, pool)
        stages(stack, pool)
    except KeyboardInterrupt:
        return 130
    finally:
        stack.stop()
    return 0


def ended(pool: Pool, stage: str | None = None) -> int:
    """The number of tokens that are done or in error."""
    tokens = (token for token in pool.tokens() if token.get("stage") == stage)
    return sum(state_of(token) in (State.DONE, State.ERROR) for token in tokens)


def survey(stack: NativeStack, pool: Pool) -> None:
    """A batch while pilots work on it. Waits for its end: the chain needs the nodes."""
    run_id = stack.api.trigger(DAG)
    processes.wait_for(lambda: ended(pool) >= ENDED, what="The end of most tokens", seconds=SECONDS)
    take(stack, run_id)
    stack.api.wait_for_run(DAG, run_id)


def stages(stack: NativeStack, pool: Pool) -> None:
    """The graph of the stages of a chain, when about half of its work is done."""
    stack.api.trigger(STAGES)
    processes.wait_for(
        lambda: ended(pool, "calibration") >= CALIBRATED and ended(pool, "imaging") and ended(pool, "inspection"),
        what="The end of half of the chain",
        seconds=SECONDS,
    )
    batch = next(str(token["parent"]).partition(":")[0] for token in pool.tokens() if "parent" in token)
    with chromium() as browser, person(browser, stack.airflow, ADMIN, viewport={"width": 1280, "height": 980}) as shown:
        for theme in ("light", "dark"):
            shown.goto("./")
            set_theme(shown, theme)
            shown.goto(f"plugin/picas?picas_conn=picas_default&picas_db={pool.database}&picas_batch={batch}")
            graph = shown.locator(".picas .card", has=shown.get_by_role("list", name="Stages"))
            picture(shown, "stages" if theme == "light" else "stages-dark", graph)


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


def picture(shown: Page, name: str, part: Locator | None = None) -> None:
    """A picture, of the window or a part of the page, once everything is there."""
    shown.locator(".picas .bar").first.wait_for()
    shown.get_by_text("Reading ").first.wait_for(state="detached")
    shown.wait_for_timeout(1_000)  # for the bars' movement to end
    (part or shown).screenshot(path=IMAGES / f"{name}.png", animations="disabled")
    print(f"  docs/images/{name}.png", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
