"""Each error that the package can raise, and each line of the pilot's log, is in the list of the page *Troubleshooting*."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import messages
from stack.paths import PROJECT

FOUND = messages.collect()
ENTRIES = messages.entries()


def test_each_message_has_exactly_one_entry() -> None:
    titles = {message: [entry.title for entry in ENTRIES if entry.covers(message)] for message in FOUND}
    wrong = {f"{message.file}: {message.text}": named for message, named in titles.items() if len(named) != 1}
    assert wrong == {}, "give each of these messages one entry in docs/troubleshooting.toml"


def test_each_pattern_is_that_of_a_message() -> None:
    unused = {entry.title: entry.unused(FOUND) for entry in ENTRIES if entry.unused(FOUND)}
    assert unused == {}, "no message of the package has these patterns of docs/troubleshooting.toml any more"


def test_an_entry_says_what_to_do_and_where_to_read_on() -> None:
    titles = [entry.title for entry in ENTRIES]
    assert len(set(titles)) == len(titles)  # they are the anchors
    for entry in ENTRIES:
        assert entry.cause.endswith("."), entry.title
        assert entry.remedy.endswith("."), entry.title
        for link in re.findall(r"\]\(([^)#]+)", entry.cause + entry.remedy):
            assert (PROJECT / "docs" / "howto" / link).exists(), entry.title


def test_the_collection_is_large_and_knows_the_kinds() -> None:
    assert len(FOUND) > 400
    errors = {message.error for message in FOUND}
    assert {
        "log",
        "AirflowFailException",
        "CouchDBError",
        "RemoteError",
        "BadTokenError",
        "Failed",
        "HTTPException",
    } <= errors
    codes = set(
        re.findall(r"^(EX_\w+) = ", (messages.PACKAGE / "lifecycle" / "exit_codes.py").read_text(), re.MULTILINE)
    )
    named = {message.code for message in FOUND if message.code}
    assert named <= codes
    # The others come without a message of their own: success, wrong usage, a bug, and results that are kept.
    assert codes - named == {"EX_OK", "EX_USAGE", "EX_SOFTWARE", "EX_TEMPFAIL"}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def f(name):\n    raise ValueError(f'There is no {name!r}.')", "There is no {name}."),
        ("def f(a):\n    raise ValueError('It is ' + ('red' if a else 'blue') + '.')", "It is red."),
        (
            "def f(a):\n    message = f'{len(a):,} tokens failed'\n    raise ValueError(message)",
            "{number} tokens failed",
        ),
        ("def error(a):\n    return f'Bad {a.b}.'\ndef f():\n    raise ValueError(error(1))", "Bad {b}."),
        ("class OddError(Exception):\n    def __init__(self, a):\n        super().__init__(f'Odd: {a}.')", "Odd: {a}."),
        ("class Stopped(ValueError): pass\ndef f():\n    return Stopped('It stopped.')", "It stopped."),
        ("def f(wrong):\n    raise wrong('its host is empty')", "its host is empty"),
        ("TEXT = 'Not seen.'\ndef f():\n    raise ValueError(TEXT)", "Not seen."),
    ],
)
def test_messages_are_found_however_they_are_made(source: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(source)
    assert text in [message.text for message in messages.collect(tmp_path)]


def test_what_only_developers_see_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "def f():\n    assert False\n    raise NotImplementedError('write this method')"
    )
    assert messages.collect(tmp_path) == []
