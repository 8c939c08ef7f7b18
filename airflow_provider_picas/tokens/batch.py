"""A batch as tasks pass it on: a small mapping in XCom, never the tokens."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.tokens import ids
from airflow_provider_picas.tokens.text import one_line, sample


@dataclass(frozen=True)
class Batch:
    """The tokens pushed by one task instance. ``database`` None: the connection's; ``tokens`` None: the number is unknown."""

    id: str
    database: str | None = None
    tokens: int | None = None

    @classmethod
    def parse(cls, value: Any) -> Batch | None:
        """A batch from an operator's argument: the push operator's output, the batch's name, or None for the whole pool.

        Raises ValueError for anything else.
        """
        if value is None or value == "":
            return None
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(ids.batch_id(value))
        if isinstance(value, Mapping) and isinstance(value.get("batch"), str):
            tokens, database = value.get("tokens"), value.get("database")
            if (tokens is None or isinstance(tokens, int)) and (database is None or isinstance(database, str)):
                return cls(ids.batch_id(value["batch"]), database, tokens)
        raise ValueError(
            f"A batch is the output of the push operator, such as batch=push.output, or a batch's name, not {value!r:.200}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The batch for XCom."""
        return {"database": self.database, "batch": self.id, "tokens": self.tokens}


def label(name: Any, given: Any) -> str:
    """A short name for people: the name of the batch or of the file, or the first inputs. It has at most 60 characters,
    and is not a Python literal, which a DAG with ``render_template_as_native_obj`` would convert to another type.
    """
    if isinstance(name, str) and name:
        text = name
    elif isinstance(given, str):
        text = given.rstrip("/").rpartition("/")[2]
    elif isinstance(given, list | tuple):
        values = (value.get("input", value) if isinstance(value, Mapping) else value for value in given[:3])
        text = sample([one_line(str(value), 20) for value in values], total=len(given))
    else:
        text = ""
    text = one_line(text, 50) or "tokens"
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return f"tokens {text}"
