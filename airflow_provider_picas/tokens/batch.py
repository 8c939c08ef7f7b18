"""A batch as tasks hand it on: a small mapping in XCom, never the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.tokens import ids


@dataclass(frozen=True)
class Batch:
    """The tokens pushed by one task instance. ``database`` None: the connection's; ``tokens`` None: the number is unknown."""

    id: str
    database: str | None = None
    tokens: int | None = None

    @classmethod
    def parse(cls, value: Any) -> Batch | None:
        """A batch from what an operator was given: the push operator's output, the batch's name, or None for the whole pool.

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
