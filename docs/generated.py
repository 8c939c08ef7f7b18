"""The parts of the reference that are made from the package: a line ``% generated: NAME`` of a page becomes Markdown.

So nothing is repeated by hand. Tests compare what cannot be generated.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import messages

from airflow_provider_picas.cli import parser
from airflow_provider_picas.provider_info import get_provider_info

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
            yield f"- {code(message.text)}{_origin(message)}"
        places = ", ".join(dict.fromkeys(message.place for message in own))
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
        titles = [entry.title for entry in messages.entries() if message.code and entry.covers(message)]
        causes.setdefault(message.code or "", []).extend(titles)
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
    rows = [
        (
            behaviour["relabeling"].get(name, name.capitalize()),
            f"`{name}`",
            text,
            f"`{behaviour['placeholders'][name]}`" if name in behaviour["placeholders"] else "",
        )
        for name, text in described.items()
    ]
    yield from table(("field in the form", "name", "meaning", "example"), rows)
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


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "troubleshooting": troubleshooting,
    "exit-codes": exit_code_table,
    "connection-fields": connection_fields,
    "configuration": configuration,
    "cli": cli,
}
