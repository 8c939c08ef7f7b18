"""``@task.picas_tokens`` pushes what a function yields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from stack.pool import Pool
from tests.integration.tasks import context


@pytest.fixture(autouse=True)
def _connection(picas_default: str) -> None:
    """All tests push to ``pool``."""


def run(output: Any, **variables: Any) -> Any:
    """Execute the task that gives this output."""
    return output.operator.execute({**context(output.operator.task_id), **variables})


def inputs_of(pool: Pool) -> list[Any]:
    return [token.get("input") for token in sorted(pool.tokens(), key=lambda token: int(token["ordinal"]))]


def test_mappings_are_tokens_and_other_values_are_inputs(pool: Pool) -> None:
    @task.picas_tokens(key="name", batch="b")
    def observations(field: str, *, number: int = 1) -> Iterator[Any]:
        for place in range(number):
            yield {"name": f"{field}-{place}", "input": place, "priority": place}

    with DAG("dag"):
        output = observations("m31", number=3)
    assert output.operator.task_id == "observations"
    assert run(output)["tokens"] == 3
    assert sorted(token["_id"] for token in pool.tokens()) == ["b:m31-0", "b:m31-1", "b:m31-2"]
    assert inputs_of(pool) == [0, 1, 2]


def test_it_has_airflows_context_and_its_own_arguments(pool: Pool) -> None:
    @task.picas_tokens
    def observations(part: int, ds: str | None = None, ti: Any = None) -> Iterator[str]:
        yield f"{ds}/{part}/{ti.task_id}"

    with DAG("dag"):
        output = observations(7)
    run(output, ds="2026-11-22")
    assert inputs_of(pool) == ["2026-11-22/7/observations"]


def test_it_may_return_a_list_or_a_path(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "inputs.csv").write_text("input\n5\n")

    @task.picas_tokens(task_id="one")
    def a_list() -> list[int]:
        return [1]

    @task.picas_tokens(task_id="two")
    def a_path() -> str:
        return str(tmp_path / "inputs.csv")

    with DAG("dag"):
        outputs = [a_list(), a_path()]
    assert [run(output)["tokens"] for output in outputs] == [1, 1]
    assert sorted(inputs_of(pool), key=str) == [1, "5"]


def test_the_task_can_be_mapped_and_overridden() -> None:
    @task.picas_tokens
    def observations(field: str, year: int) -> Iterator[str]:
        yield f"{field}-{year}"

    with DAG("dag") as dag:
        observations.partial(year=2026).expand(field=["m31", "m33"])
        observations.override(task_id="other", batch="b")("m31", 2026)
    assert dag.get_task("other").batch == "b"
    assert dag.get_task("observations").is_mapped


def test_arguments_are_rendered() -> None:
    @task.picas_tokens(batch="b-{{ ds }}")
    def observations(field: str) -> Iterator[str]:
        yield field

    with DAG("dag"):
        operator = observations("{{ ds }}").operator
    operator.render_template_fields({"ds": "2026-11-22"})
    assert (operator.batch, operator.op_args) == ("b-2026-11-22", ("2026-11-22",))


@pytest.mark.parametrize("field", ["inputs", "tokens"])
def test_it_takes_no_inputs_beside_the_function(field: str) -> None:
    @task.picas_tokens(**{field: [1]})
    def observations() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=rf"@task.picas_tokens does not take `{field}`"), DAG("dag"):
        observations()
