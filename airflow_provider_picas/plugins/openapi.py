"""Write the description of the page's routes, from which the page's client is generated:
``python -m airflow_provider_picas.plugins.openapi``."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_provider_picas.plugins.app import WWW, create_app

FILE = WWW / "openapi.json"


def description() -> str:
    """The description as JSON, the same for each version of Airflow."""
    described = create_app().openapi()
    described["info"]["version"] = "1"
    for path in described["paths"].values():
        for operation in path.values():
            operation.pop("security", None)  # Airflow's, and different in each of its versions
    described.get("components", {}).pop("securitySchemes", None)
    return json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(file: Path = FILE) -> None:
    """Write the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(description())


if __name__ == "__main__":
    main()
