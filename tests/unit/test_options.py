"""Configuration objects set the arguments of operators, and are checked when the DAG is parsed."""

from __future__ import annotations

import inspect
import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, task

from airflow_provider_picas.lifecycle.pilot_config import Config, parse_config
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.options import (
    PilotOptions,
    PilotWatch,
    Scaling,
    WaitPolicy,
    read_rendered,
    values_of,
)
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.task_groups import picas_run

OPERATORS = [
    (PicasSubmitPilotsOperator, Scaling, {}),
    (PicasTokenStateSensor, WaitPolicy, {}),
    (PicasTokenStateSensor, PilotWatch, {"interval": "pilots_interval"}),
]


def submit(**arguments: Any) -> PicasSubmitPilotsOperator:
    return PicasSubmitPilotsOperator(task_id="pilots", command="true", **arguments)


def wait(**arguments: Any) -> PicasTokenStateSensor:
    return PicasTokenStateSensor(task_id="wait", **arguments)


@pytest.mark.parametrize(("operator", "kind", "renamed"), OPERATORS)
def test_fields_have_the_names_and_defaults_of_arguments(operator: Any, kind: Any, renamed: dict[str, str]) -> None:
    parameters = inspect.signature(operator.__init__).parameters
    for name, default in values_of(kind()).items():
        assert parameters[renamed.get(name, name)].default == default, name


@pytest.mark.parametrize(("operator", "kind", "renamed"), OPERATORS)
def test_a_field_takes_a_template_where_the_argument_does(operator: Any, kind: Any, renamed: dict[str, str]) -> None:
    for name in values_of(kind()):
        if renamed.get(name, name) in operator.template_fields:
            kind(**{name: "{{ params.x }}"})
        else:
            with pytest.raises(ValueError, match=f"{kind.__name__}: `{name}` is not a template field"):
                kind(**{name: "{{ params.x }}"})


def test_pilot_options_are_those_of_the_pilot_that_no_other_argument_or_connection_sets() -> None:
    elsewhere = {
        "command",
        "submission",
        "database",
        "batch",
        "credentials",
        "tls_verify",
        "files",
        "profile",
        "stages",
    }
    assert set(values_of(PilotOptions())) == set(Config._fields) - elsewhere
    assert PilotOptions().as_dict() == {}
    given = PilotOptions(lease=60, slots=2, stop_exit_codes=(9,), classes=["1//"], max_scrubs=3)
    assert given.as_dict() == {"lease": 60, "slots": 2, "stop_exit_codes": [9], "classes": ["1//"]}
    parse_config(json.dumps({"command": "true", "submission": "s", **given.as_dict()}))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Scaling, "pilots", 0),
        (Scaling, "pilots", "many"),
        (Scaling, "tokens_per_pilot", 0),
        (Scaling, "tokens_per_pilot", True),
        (Scaling, "max_pilots", 1.5),
        (Scaling, "max_queued", -1),
        (Scaling, "max_running", "x"),
        (Scaling, "resource_classes", "perhaps"),
        (Scaling, "resource_classes", {"4//": 3}),
        (PilotOptions, "lease", 1),
        (PilotOptions, "lease", None),
        (PilotOptions, "lease", "120"),
        (PilotOptions, "slots", 1.5),
        (PilotOptions, "max_retries", 10),
        (PilotOptions, "stop_exit_codes", ["9"]),
        (PilotOptions, "margin", object()),
        (WaitPolicy, "max_errors", -1),
        (WaitPolicy, "max_errors", "few"),
        (WaitPolicy, "fail_fast", "yes"),
        (WaitPolicy, "success_threshold", 0),
        (WaitPolicy, "success_threshold", "most"),
        (WaitPolicy, "no_progress", "1 hour"),
        (WaitPolicy, "no_progress", timedelta(0)),
        (PilotWatch, "resubmit", -1),
        (PilotWatch, "max_scrubs", 10),
        (PilotWatch, "max_lock_age", "old"),
        (PilotWatch, "interval", 0),
        (PilotWatch, "on_kill", "shoot"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_field(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*\b{name}\b"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", [Scaling, PilotOptions, WaitPolicy, PilotWatch])
def test_a_wrong_name_is_an_error(kind: Any) -> None:
    with pytest.raises(TypeError, match="'leese'"):
        kind(leese=5)


def test_objects_set_the_arguments() -> None:
    scaling = Scaling(
        pilots="auto", tokens_per_pilot=20, max_pilots=9, max_queued=5, max_running=4, resource_classes=True
    )
    task = submit(scaling=scaling, pilot=PilotOptions(lease=60))
    assert {name: getattr(task, name) for name in values_of(scaling)} == values_of(scaling)
    assert task.pilot == {"lease": 60}
    sensor = wait(
        policy=WaitPolicy(max_errors=0.1, fail_fast=True, success_threshold=5, no_progress=timedelta(hours=1)),
        watch=PilotWatch(resubmit=2, max_scrubs=1, max_lock_age=60, interval=7, on_kill="drain"),
    )
    assert (sensor.max_errors, sensor.fail_fast, sensor.success_threshold, sensor.no_progress) == (0.1, True, 5, 3600)
    assert (sensor.resubmit, sensor.max_scrubs, sensor.max_lock_age) == (2, 1, 60)
    assert (sensor.pilots_interval, sensor.on_kill_how) == (7, "drain")


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (submit, {"scaling": Scaling(), "tokens_per_pilot": 10}, "either `scaling` or `tokens_per_pilot`, not both"),
        (submit, {"scaling": Scaling(), "pilots": 1, "max_pilots": 2}, "`scaling` or `pilots`, `max_pilots`"),
        (wait, {"policy": WaitPolicy(), "max_errors": 0}, "`policy` or `max_errors`"),
        (wait, {"watch": PilotWatch(), "pilots_interval": 9}, "`watch` or `pilots_interval`"),
        (submit, {"scaling": {"pilots": 4}}, "`scaling` takes a Scaling, not {'pilots': 4}"),
        (wait, {"policy": PilotWatch()}, "`policy` takes a WaitPolicy, not PilotWatch"),
        (PicasSubmitPilotsOperator.partial, {"task_id": "t", "scaling": Scaling(), "pilots": 1}, "`scaling` or `pilots`"),
        (PicasTokenStateSensor.partial, {"task_id": "t", "policy": WaitPolicy(), "max_errors": 1}, "`policy` or"),
    ],
)  # fmt: skip
def test_both_an_object_and_its_argument_is_an_error_when_the_dag_is_parsed(
    make: Any, arguments: dict[str, Any], words: str
) -> None:
    """The argument counts as given even if its value is the default."""
    with pytest.raises(TypeError, match=words):
        make(**arguments)


def test_default_args_give_objects_too() -> None:
    with DAG("d", default_args={"scaling": Scaling(pilots=3)}):
        assert submit().pilots == 3


@pytest.mark.parametrize("native", [False, True])
def test_templates_render_as_those_of_the_arguments_do(native: bool) -> None:
    with DAG("d", render_template_as_native_obj=native):
        pilots = submit(
            scaling=Scaling(pilots="{{ params.pilots }}", resource_classes={"4//": {"time": "{{ params.pilots }}"}}),
            pilot=PilotOptions(lease="{{ params.lease }}", no_retry_exit_codes="{{ params.codes }}"),
        )
        sensor = wait(policy=WaitPolicy(max_errors="{{ params.pilots }}"), watch=PilotWatch(max_scrubs="{{ 12 }}"))
    context: Any = {"params": {"pilots": 4, "lease": 60, "codes": [3, 5]}}
    for rendered in (pilots, sensor):
        rendered.render_template_fields(context)
    number = 4 if native else "4"
    assert (pilots.pilots, pilots.resource_classes) == (number, {"4//": {"time": number}})
    assert read_rendered(pilots.pilot or {}) == {"lease": 60, "no_retry_exit_codes": [3, 5]}
    assert sensor._wait.terms.budget.limit == 4
    with pytest.raises(AirflowFailException, match=r"`max_scrubs` is '?12'?; it takes a whole number from 0 to 9"):
        sensor._max_scrubs()


def test_what_a_template_rendered_and_the_pilot_does_not_take_is_left_for_its_check() -> None:
    options = {"lease": "long", "slots": "__import__('os')", "leese": "5", "time_limit": "None", "ca_file": "5"}
    assert read_rendered(options) == {**options, "time_limit": None}


def test_the_output_of_a_task_makes_a_dependency() -> None:
    @task
    def decide() -> int:
        return 4

    with DAG("d") as dag:
        number: Any = decide()
        submit(scaling=Scaling(pilots=number))
        PicasSubmitPilotsOperator.partial(task_id="mapped", scaling=Scaling(pilots=number)).expand(command=["a", "b"])
    assert dag.task_dict["decide"].downstream_task_ids == {"pilots", "mapped"}


def serialized(dag: DAG) -> Any:
    try:
        from airflow.serialization.serialized_objects import DagSerialization as Serializer
    except ImportError:  # before Airflow 3.2
        from airflow.serialization.serialized_objects import SerializedDAG as Serializer  # type: ignore[no-redef]
    data = json.loads(json.dumps(Serializer.to_dict(dag)))
    Serializer.from_dict(data)
    return {task["__var"]["task_id"]: task["__var"] for task in data["dag"]["tasks"]}


def build(objects: bool) -> DAG:
    scale: dict[str, Any] = {"pilots": 2, "tokens_per_pilot": 5}
    limits: dict[str, Any] = {"max_errors": "{{ params.n }}", "fail_fast": True, "no_progress": timedelta(minutes=5)}
    defaults = {**values_of(Scaling()), **scale}, {**values_of(WaitPolicy()), **limits}
    scaling = {"scaling": Scaling(**scale)} if objects else defaults[0]
    policy = {"policy": WaitPolicy(**limits)} if objects else defaults[1]
    pilot: Any = PilotOptions(slots=2) if objects else {"slots": 2}
    with DAG("d", params={"n": 1}) as dag:
        submit(pilot=pilot, **scaling)
        wait(**policy)
        PicasSubmitPilotsOperator.partial(task_id="many", pilot=pilot, **scaling).expand(command=["a", "b"])
        PicasTokenStateSensor.partial(task_id="waits", **policy).expand(batch=["a", "b"])
    return dag


def test_a_dag_serializes_as_with_plain_arguments() -> None:
    assert serialized(build(objects=True)) == serialized(build(objects=False))


def test_mapped_tasks_get_the_arguments() -> None:
    dag = build(objects=True)
    many: Any = dag.task_dict["many"]
    unmapped = many.unmap({"command": "a"})
    assert (unmapped.command, unmapped.pilots, unmapped.tokens_per_pilot, unmapped.pilot) == ("a", 2, 5, {"slots": 2})
    waits: Any = dag.task_dict["waits"]
    assert waits.unmap({"batch": "a"}).no_progress == 300


def test_objects_can_be_mapped() -> None:
    with DAG("d") as dag:
        PicasSubmitPilotsOperator.partial(task_id="many", command="a").expand(scaling=[Scaling(pilots=2), Scaling()])
    serialized(dag)
    many: Any = dag.task_dict["many"]
    assert many.unmap({"scaling": Scaling(pilots=2)}).pilots == 2


def test_a_run_takes_objects() -> None:
    with DAG("d") as dag:
        picas_run(
            inputs=["a"],
            command="true",
            scaling=Scaling(pilots=3, max_running=2),
            pilot=PilotOptions(max_retries=1),
            policy=WaitPolicy(max_errors=2, fail_fast=True),
            watch=PilotWatch(resubmit=1),
        )
        picas_run.override(group_id="plain")(inputs=["a"], command="true", pilots=4, max_errors=1)
        picas_run.override(group_id="bare")(inputs=["a"], command="true")
        picas_run.override(group_id="mapped").partial(command="true", policy=WaitPolicy(max_errors=3)).expand(
            inputs=[["a"], ["b"]]
        )
    tasks: dict[str, Any] = dag.task_dict
    pilots, sensor = tasks["picas_run.pilots"], tasks["picas_run.wait"]
    assert (pilots.pilots, pilots.max_running, pilots.pilot) == (3, 2, {"max_retries": 1})
    assert (sensor.max_errors, sensor.fail_fast, sensor.resubmit) == (2, True, 1)
    assert tasks["picas_run.collect"].max_errors == 2
    assert (tasks["plain.pilots"].pilots, tasks["plain.wait"].max_errors, tasks["plain.collect"].max_errors) == (
        4,
        1,
        1,
    )
    assert (tasks["bare.pilots"].pilots, tasks["bare.wait"].max_errors, tasks["bare.collect"].max_errors) == (
        None,
        0,
        0,
    )
    assert tasks["mapped.collect"].max_errors == 3
    for arguments in ({"scaling": Scaling(), "pilots": 1}, {"policy": WaitPolicy(), "max_errors": 0}):
        with DAG("e"), pytest.raises(TypeError, match="Give either"):
            picas_run(inputs=["a"], command="true", **arguments)
