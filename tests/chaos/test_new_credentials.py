"""The password changes, on the server and then in the connection, while a wait and its pilot run."""

from __future__ import annotations

import pytest

from airflow_provider_picas.hooks import picas_async
from airflow_provider_picas.tokens.states import State
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.chaos.run import Run
from tests.conftest import set_connection
from tests.integration.hooks.test_pilots_credentials import change_password


def test_pilot_and_wait_go_on_with_the_new_password(
    run: Run, pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pilot finishes the token in hand and takes the next; then it is killed, and the wait gives that one back."""
    monkeypatch.setattr(picas_async, "FIRST_LOOK_UP", 1.0)
    first, second = (run.file.with_name(f"{run.file.name}.{name}") for name in ("first", "second"))
    run.push(2)
    # The command of the first token sees one line of notes, that of the second three.
    run.submit(
        f"gate={first}; [ $(wc -l < {run.file}) -eq 1 ] || gate={second}; while [ ! -e $gate ]; do sleep 0.1; done",
        pilots=1,
    )
    run.wait(resubmit=1)
    run.running(1)
    changed = change_password(couchdb, pool)
    set_connection(monkeypatch, "picas_default", native.picas_connection(changed))
    run.pool = changed
    folder = f"{run.submitted['folder']}/credentials"
    run.until(lambda: changed.password in run.cluster_command(f"cat {folder}/picasconfig.py"), "The new file")
    first.touch()
    run.until(lambda: len(run.begun()) == 2, "The second token")
    run.until(lambda: run.states()[State.DONE] == 1, "The result of the first token")
    token = run.lines()[-1].token
    run.kill_pilot(run.job())
    second.touch()
    assert run.result()["done"] == 2
    run.check_done_once(died_with=[token])
