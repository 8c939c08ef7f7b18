"""Pushes into a batch that others have pushed to: another Airflow of the same name, another run, an earlier version."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, Variable

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators import instance
from airflow_provider_picas.operators.instance import deployment, submission_keys
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.tokens.states import State
from stack.pool import Pool
from tests.integration import lives
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default")


def push(try_number: int = 1, run_id: str = "run1", **arguments: Any) -> dict[str, Any]:
    """Run the operator as one try of a task instance."""
    output: dict[str, Any] = PicasPushTokensOperator(task_id="push", **arguments).execute(
        context(run_id=run_id, try_number=try_number)
    )
    return output


def inputs(pool: Pool) -> list[Any]:
    return [token["input"] for token in sorted(pool.tokens(), key=lambda token: str(token["_id"]))]


def test_another_airflow_of_the_same_name_is_refused(pool: Pool) -> None:
    """The same dag, run and task there: its tokens would be run instead of ours."""
    push(inputs=["a", "b"])
    with pytest.raises(AirflowFailException, match=r"with a different input .*\[picas\] deployment"):
        push(inputs=["a", "c"])
    assert inputs(pool) == ["a", "b"]
    assert push(inputs=["a", "b"])["tokens"] == 2  # the same work: whose it is does not matter


@pytest.mark.parametrize("state", list(lives.LIVES))
def test_a_retry_keeps_its_own_tokens_and_names_them(
    pool: Pool, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a template renders other inputs than in the try before."""
    push(inputs=["a", "b"])
    lives.change(
        PicasHook(), next(token["_id"] for token in pool.tokens() if token["input"] == "b"), **lives.LIVES[state]
    )
    assert push(inputs=["a", "c"], try_number=2)["tokens"] == 2
    again = state == "error"
    assert inputs(pool) == ["a", "c" if again else "b"]
    assert ("although their input differs" in capsys.readouterr().out) is not again


def test_another_run_with_other_inputs_is_refused(pool: Pool) -> None:
    """Without keys, a named batch's tokens have the same ids in each run."""
    push(inputs=["a", "b"], batch="shared")
    for try_number in (1, 2):
        with pytest.raises(AirflowFailException, match=r"pushed by 'dag.push.run1-.*Give the batch another name"):
            push(inputs=["c"], batch="shared", run_id="run2", try_number=try_number)
    assert push(inputs=["c"], batch="shared", run_id="run2", on_existing="keep")["tokens"] == 1
    assert inputs(pool) == ["a", "b"]
    push(inputs=["c"], batch="shared", run_id="run2", on_existing="replace")
    assert inputs(pool) == ["c", "b"]


def test_another_run_whose_tokens_are_to_be_run_otherwise(pool: Pool) -> None:
    """Priorities and limits may have been changed in the pool since."""
    push(tokens=[{"input": "a", "priority": 1}], batch="shared", key="input")
    lives.change(PicasHook(), "shared:a", priority=9, **lives.LIVES[State.DONE])
    again = push(tokens=[{"input": "a", "priority": 1, "time_limit": 60}], batch="shared", key="input", run_id="run2")
    assert (again["tokens"], again["done_before"]) == (1, 1)


# -- names of Airflows -------------------------------------------------------------------------------------------------


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An Airflow without a name in its configuration. A Variable in its environment stands for one in its database."""
    monkeypatch.delenv("AIRFLOW__PICAS__DEPLOYMENT")
    monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    monkeypatch.setenv(f"AIRFLOW_VAR_{instance.VARIABLE.upper()}", "airflow-12ab34cd")
    return monkeypatch


def test_the_name_comes_from_the_configuration_or_a_variable(unnamed: pytest.MonkeyPatch) -> None:
    for url in ("", "http://localhost:8080", "http://127.0.0.1:8080/x", "http://[::1]:80", "http://0.0.0.0:8080"):
        unnamed.setenv("AIRFLOW__API__BASE_URL", url)
        assert deployment() == "airflow-12ab34cd", url
    unnamed.setenv("AIRFLOW__API__BASE_URL", "https://airflow.site.nl/team/")
    assert deployment() == "airflow.site.nl/team"
    unnamed.setenv("AIRFLOW__PICAS__DEPLOYMENT", "production")
    assert deployment() == "production"


def test_a_name_is_made_once_and_what_two_tasks_made_is_settled(unnamed: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    def keep(key: str, value: str, description: str | None = None) -> None:
        kept.extend([value, "airflow-of-another-task"])

    unnamed.setattr(Variable, "get", lambda key, default=None: kept[-1] if kept else default)
    unnamed.setattr(Variable, "set", keep)
    unnamed.setattr(instance, "SETTLE_SECONDS", 0.0)
    assert [deployment(), deployment()] == ["airflow-of-another-task"] * 2
    assert len(kept) == 2


def test_an_airflow_that_keeps_no_name_is_asked_for_one(unnamed: pytest.MonkeyPatch) -> None:
    unnamed.setattr(Variable, "get", lambda key, default=None: default)
    unnamed.setattr(Variable, "set", lambda key, value, description=None: None)
    unnamed.setattr(instance, "SETTLE_SECONDS", 0.0)
    with pytest.raises(AirflowException, match=r"Set `\[picas\] deployment`"):
        deployment()


def test_a_clear_after_an_upgrade_finds_its_batch(unnamed: pytest.MonkeyPatch, pool: Pool) -> None:
    """Versions that made no names called such an Airflow ``airflow``."""
    unnamed.setenv("AIRFLOW__PICAS__DEPLOYMENT", "airflow")
    old = push(inputs=["a", "b"])["batch"]
    old_keys = submission_keys(context("pilots", try_number=2))
    unnamed.delenv("AIRFLOW__PICAS__DEPLOYMENT")
    assert push(inputs=["a", "b"], try_number=2)["batch"] == old
    assert len(pool.tokens()) == 2
    assert set(old_keys) < set(submission_keys(context("pilots", try_number=2)))
    new = push(inputs=["c"], try_number=1)["batch"]  # another Airflow's, since this one has not run yet
    assert new != old
    assert push(inputs=["c"], try_number=2)["batch"] == new
    assert len(submission_keys(context("pilots"))) == 1
