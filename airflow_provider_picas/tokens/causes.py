"""Why tokens are in error: the text of a token's errors, and groups of tokens with the same cause."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.tokens.states import to_string
from airflow_provider_picas.tokens.text import one_line

TEXT_LENGTH = 20_000  # characters of a token's errors that are read: the last ones
CAUSE_LENGTH = 200  # characters of a cause
MESSAGE_LENGTH = 1_000  # characters of the message of a single token
MOST_GROUPS = 1_000  # separate causes; all later ones share one group, so that memory stays bounded
OTHER = "other causes"

_SAMPLE = 5


def error_text(token: Mapping[str, Any]) -> str:
    """The errors of a token as one string: ``exit code <n>``, then each error's message and exception, on one or more
    lines."""
    parts = [_exit_code(token)] if _exit_code(token) else []
    return "\n".join([*parts, *_errors(token)])[-TEXT_LENGTH:]


def cause_of(token: Mapping[str, Any]) -> str:
    """The cause of a token's failure on one line, without parts that differ between tokens: numbers, paths, ids."""
    return _with_exit_code(_normalised(_last_line(token), str(token.get("_id", "")))[:CAUSE_LENGTH], token)


def message_of(token: Mapping[str, Any]) -> str:
    """The cause of a token's failure on one line, as the token has it, but escaped. A long one is cut before its exit code."""
    line = _last_line(token)
    code = one_line(_with_exit_code(line, token)[len(line) :], 100)
    return one_line(line, MESSAGE_LENGTH - len(code)) + code


@dataclass
class Group:
    """Tokens that failed with the same cause: their number, and some of their ids."""

    cause: str
    tokens: int = 0
    ids: list[str] = field(default_factory=list)


class Groups:
    """Tokens in error by their cause."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    def add(self, token: Mapping[str, Any]) -> bool:
        """Add a token to its group. True if it is the first one."""
        cause = cause_of(token)
        if cause not in self._groups and len(self._groups) >= MOST_GROUPS:
            cause = OTHER
        group = self._groups.setdefault(cause, Group(cause))
        group.tokens += 1
        if len(group.ids) < _SAMPLE:
            group.ids.append(str(token["_id"]))
        return group.tokens == 1

    def largest(self, most: int) -> list[Group]:
        """The groups with the most tokens, the largest first."""
        return sorted(self._groups.values(), key=lambda group: (-group.tokens, group.cause))[:most]

    def __len__(self) -> int:
        return len(self._groups)


def _last_line(token: Mapping[str, Any]) -> str:
    """The last line of the last error, which in a traceback has the error; an empty string without errors."""
    errors = _errors(token)
    if not errors:
        return ""
    lines = [line.strip() for line in errors[-1][-TEXT_LENGTH:].splitlines() if line.strip()]
    return lines[-1] if lines else "an empty error"


def _with_exit_code(line: str, token: Mapping[str, Any]) -> str:
    code = _exit_code(token)
    if not line:
        return code or "no exit code and no error"
    return f"{line} ({code})" if code and not line.startswith("exit code") else line


def _exit_code(token: Mapping[str, Any]) -> str:
    code = token.get("exit_code")
    return "" if code is None or code == "" else f"exit code {to_string(code)[:40]}"


def _errors(token: Mapping[str, Any]) -> list[str]:
    errors = token.get("error")
    if not isinstance(errors, list):
        errors = [] if errors in (None, "") else [errors]
    return [text for error in errors if (text := _text(error))]


def _text(error: Any) -> str:
    """One entry of ``error``. PiCaS's has ``message`` and ``exception``, which holds a traceback, or ``NoneType: None``."""
    if isinstance(error, Mapping) and ("message" in error or "exception" in error):
        parts = [to_string(error[name]) for name in ("exception", "message") if error.get(name) not in (None, "")]
        return "\n".join(part for part in parts if part.strip() != "NoneType: None")
    return (
        to_string(error)
        if not isinstance(error, Mapping)
        else ", ".join(f"{k}: {to_string(v)}" for k, v in error.items())
    )


def _normalised(line: str, token_id: str) -> str:
    line = line[:2_000]
    if token_id:
        line = line.replace(token_id, "<token>")
    if line.startswith("exit code"):  # the pilot's "exit code 3: the last line of stderr"
        code, colon, rest = line.partition(":")
        return code + colon + _without_particulars(rest)
    return _without_particulars(line)


def _without_particulars(line: str) -> str:
    line = re.sub(r"(?:[A-Za-z][A-Za-z0-9+.-]{0,15}:/)?(?<![\w<])/[^\s'\",:;()]+", "<path>", line)
    line = re.sub(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-fA-F]{8}-[0-9a-fA-F-]{20,40}\b|\b[0-9a-f]{16,64}\b", "<id>", line)
    return re.sub(r"\d+(?:\.\d+)?", "<n>", line)
