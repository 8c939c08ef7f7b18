"""Resource classes of tokens."""

from typing import Any

from airflow_provider_picas.lifecycle.json_values import Doc


def class_name(doc: Doc) -> str:
    """The resource class, as in the view ``todo``; for pools without that view."""

    def part(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).replace("/", "")

    return "/".join(part(doc.get(field)) for field in ("cores", "gpu", "time"))
