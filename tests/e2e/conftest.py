"""A browser in which an admin has logged in, for the tests of the page in Airflow's UI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from stack.airflow import ADMIN, Airflow
from stack.ui import chromium, person


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def logged_in(browser: Browser, airflow: Airflow) -> Iterator[Page]:
    with person(browser, airflow, ADMIN) as shown:
        yield shown


@pytest.fixture
def admin(logged_in: Page) -> Iterator[Page]:
    """A new page of an admin."""
    shown = logged_in.context.new_page()
    yield shown
    shown.close()
