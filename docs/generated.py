"""The parts of the reference that are made from the package: a line ``% generated: NAME`` of a page becomes Markdown.

So nothing is repeated by hand. Tests compare what cannot be generated.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import messages

from airflow_provider_picas import assets
from airflow_provider_picas.cli import parser
from airflow_provider_picas.lifecycle.profile import read as read_profile
from airflow_provider_picas.provider_info import get_provider_info
from airflow_provider_picas.tokens import stage_views, views

COMPATIBILITY = Path(__file__).with_name("reference") / "compatibility.json"

_LINE = re.compile(r"^% generated: (\S+)$", re.MULTILINE)


def fill(source: str) -> str:
    """The source of a page with its generated parts."""
    return _LINE.sub(lambda line: "\n".join(PARTS[line[1]]()), source)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"


def anchor(title: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def code(text: str) -> str:
    """Text as inline code, which may contain backquotes."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def troubleshooting() -> Iterator[str]:
    """Each entry of the list with its messages, in the list's order."""
    found = messages.collect()
    topic = ""
    for entry in messages.entries():
        if entry.topic != topic:
            topic = entry.topic
            yield from ("", f"## {topic}", "")
        yield from (f"### {entry.title}", "")
        own = [message for message in found if entry.covers(message)]
        for message in own:
            yield f"- {code(('… ' if message.text[:1].islower() else '') + message.text)}{_origin(message)}"
        places = ", ".join(dict.fromkeys(place for message in own for place in message.place.split(", ")))
        yield from ("", f"**Where:** {places}.", "", f"**Cause:** {entry.cause}", "", f"**Remedy:** {entry.remedy}", "")


def _origin(message: messages.Message) -> str:
    if message.code:
        return f" (exit code {exit_codes()[message.code][0]})"
    return "" if message.error in ("log", "error") else f" ({message.error})"


def exit_codes() -> dict[str, tuple[int, str]]:
    """The pilot's exit codes by the names of the constants, each with the comment behind it."""
    source = (messages.PACKAGE / "lifecycle" / "exit_codes.py").read_text()
    lines = re.findall(r"^(EX\w+) = (\d+)(?:  # (.*))?$", source, re.MULTILINE)
    return {name: (int(number), comment) for name, number, comment in lines}


def exit_code_table() -> Iterator[str]:
    codes = exit_codes()
    causes: dict[str, list[str]] = {}
    for message in messages.collect():
        if message.code:
            titles = [entry.title for entry in messages.entries() if entry.covers(message)]
            causes.setdefault(message.code, []).extend(titles)
    for_pilots = {name: value for name, value in codes.items() if name.startswith("EX_")}
    rows = [
        (
            number,
            meaning,
            ", ".join(
                f"[{title}](../howto/troubleshooting.md#{anchor(title)})"
                for title in dict.fromkeys(causes.get(name, ()))
            ),
        )
        for name, (number, meaning) in for_pilots.items()
    ]
    yield from table(("code", "meaning", "causes"), rows)
    yield from ("", "Codes that the pilot gives to tokens whose command did not fail by itself:", "")
    yield from table(("code", "meaning"), [value for name, value in codes.items() if name not in for_pilots])


def connection_fields() -> Iterator[str]:
    """The form of the connection type, as Airflow shows it."""
    (connection,) = get_provider_info()["connection-types"]
    behaviour = connection["ui-field-behaviour"]
    described = {
        "host": "The database server: an http or https URL. Without a scheme, https.",
        "port": "The server's port, if the URL has none.",
        "schema": "The name of the pool's database. Operators can name another one with `database`.",
        "login": "The user of the database.",
        "password": "The password. It never appears in a log, URL, XCom or rendered template.",
    }
    examples = {
        name: f" For example: `{value}`."
        for name, value in behaviour["placeholders"].items()
        if "//" in value or value.isdigit()
    }
    rows = [
        (behaviour["relabeling"].get(name, name.capitalize()), f"`{name}`", text + examples.get(name, ""))
        for name, text in described.items()
    ]
    yield from table(("field in the form", "name", "meaning"), rows)
    yield from ("", "In *Extra*, as JSON (the form has a field for each):", "")
    rows = [
        (field["label"], f"`{name}`", field["description"], _kinds(field["schema"]))
        for name, field in connection["conn-fields"].items()
    ]
    yield from table(("field in the form", "name", "meaning", "value"), rows)


def _kinds(schema: dict[str, Any]) -> str:
    kinds = [kind for kind in schema["type"] if kind != "null"]
    default = f", default {str(schema['default']).lower()}" if "default" in schema else ""
    return f"{' or '.join(kinds)}{default}"


def configuration() -> Iterator[str]:
    """The options of Airflow's configuration."""
    for section, content in get_provider_info()["config"].items():
        for name, option in content["options"].items():
            variable = f"AIRFLOW__{section.upper()}__{name.upper()}"
            rows = [(f"`[{section}] {name}`", f"`{variable}`", option["description"], f"`{option['example']}`")]
            yield from table(("option", "environment variable", "meaning", "example"), rows)


def cli() -> Iterator[str]:
    """The arguments of each command, from its parser."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        yield from (f"### airflow-picas {name}", "")
        arguments = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
        yield from table(("argument", "default", "meaning"), map(_argument, arguments))
        yield ""


def _argument(action: argparse.Action) -> tuple[str, str, str]:
    value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 and action.option_strings else ""
    name = ", ".join(f"`{option}{value}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
    plain = action.default in (None, False, argparse.SUPPRESS) or action.default == []
    meaning = (action.help or "") % {**vars(action), "prog": "airflow-picas"}
    return (
        name + (" (required)" if action.required and action.option_strings else ""),
        "" if plain else f"`{action.default}`",
        meaning,
    )


def public() -> dict[str, list[tuple[str, str]]]:
    """The modules and names of what DAG authors use, by page of the reference."""
    info = get_provider_info()

    def found(kind: str, pattern: str) -> list[tuple[str, str]]:
        modules = [name for entry in info[kind] for name in entry["python-modules"]]
        return [
            (module, name) for module in modules for name in vars(import_module(module)) if re.fullmatch(pattern, name)
        ]

    package = "airflow_provider_picas"
    asynchronous = [(f"{package}.hooks.picas_async", "PicasAsyncHook"), (f"{package}.hooks.slurm", "SlurmAsyncHook")]
    return {
        "operators": [
            *found("operators", r"Picas\w+Operator"),
            (f"{package}.operators.tokens.selecting", "SelectingOperator"),
        ],
        "sensors": found("sensors", r"Picas\w+Sensor"),
        "triggers": [*found("triggers", r"Picas\w+Trigger"), (f"{package}.triggers.events", "TokenEvent")],
        "hooks": [*found("hooks", r"(Picas|Slurm)Hook"), *asynchronous],
        "decorators": [(f"{package}.decorators.tokens", "picas_tokens_task")],
        "task-groups": [(f"{package}.task_groups", "picas_run")],
        "options": [
            (f"{package}.options", name)
            for name in ("Scaling", "PilotOptions", "PilotStage", "WaitPolicy", "PilotWatch")
        ],
        "assets": [(f"{package}.assets", name) for name in vars(assets) if re.fullmatch(r"[a-z]+_asset", name)],
    }


def described(page: str) -> Iterator[str]:
    """The classes and functions of a page: signature, docstring, and template fields."""
    for module, name in public()[page]:
        value = getattr(import_module(module), name)
        yield from (f"## {name}", "", "```{eval-rst}")
        if isinstance(value, type):
            yield f".. autoclass:: {module}.{name}"
            if page in ("hooks", "triggers") and not hasattr(value, "serialize"):
                yield "   :members:"
        elif function := getattr(value, "function", None):  # of a task group
            yield from (f".. py:function:: {module}.{name}{_signature(function)}", "")
            yield from (f"   {linked(line)}" for line in str(inspect.getdoc(function)).splitlines())
        else:
            yield f".. autofunction:: {module}.{name}"
        yield from ("```", "")
        if fields := [field for field in getattr(value, "template_fields", ()) if isinstance(field, str)]:
            yield from (f"Template fields: {', '.join(f'`{field}`' for field in fields)}.", "")


def linked(line: str) -> str:
    """A line of a docstring in which the paths of pages are links to them."""
    return re.sub(r"`{0,2}\bdocs/([a-z/-]+)\.md\b`{0,2}", r":doc:`/\1`", line)


def _signature(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function)).replace(" -> 'Any'", "").replace("'", "")


def design_documents() -> Iterator[str]:
    """The design documents that the provider writes into a pool, with the code of their views."""
    grid = read_profile("grid_lrt")
    documents = {**views.design_documents(), **views.design_documents(grid), stage_views.STAGES: stage_views.stages()}
    for name, document in documents.items():
        yield from (f"## {name}", "")
        for view, functions in document["views"].items():
            reduce = f", reduced by `{functions['reduce']}`" if "reduce" in functions else ""
            yield from (f"**{view}**{reduce}", "", "```javascript", functions["map"], "```", "")


def gauges() -> Iterator[str]:
    """The metrics, as ``metrics.py`` sends them."""
    source = (messages.PACKAGE / "metrics.py").read_text()
    meanings = {
        "picas.{name}.tokens.{state}": "tokens in this state, of all batches that this process waits for",
        "picas.{name}.finished_per_minute": "tokens that finished, per minute",
    }
    rows = [(f"`{name}`", "gauge", meanings[name]) for name in re.findall(r'Stats\.gauge\(f"([^"]+)"', source)]
    yield from table(("metric", "kind", "meaning"), rows)


def compatibility() -> Iterator[str]:
    """What ``make compat`` recorded."""
    if not COMPATIBILITY.exists():
        yield "Nothing is recorded yet: run `make compat`."
        return
    rows = [
        (row["airflow"], row["python"], *row["providers"].values(), row["passed"], row["skipped"], row["date"])
        for row in json.loads(COMPATIBILITY.read_text())
    ]
    head = ("Airflow", "Python", "common-compat", "http", "ssh", "tests passed", "skipped", "date")
    yield from table(head, rows)


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "troubleshooting": troubleshooting,
    "exit-codes": exit_code_table,
    "connection-fields": connection_fields,
    "configuration": configuration,
    "cli": cli,
    "design-documents": design_documents,
    "metrics": gauges,
    "compatibility": compatibility,
    **{page: partial(described, page) for page in public()},
}
