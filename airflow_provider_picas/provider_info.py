"""The provider's metadata for Airflow: the entry point ``apache_airflow_provider``."""

from __future__ import annotations

from typing import Any

from airflow_provider_picas import __version__

#: The project's address. pyproject.toml has it, too: [project.urls], and the links of the page on PyPI.
HOME = "https://github.com/sara-nl/airflow-provider-picas"

UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {"host": "Host (URL)", "schema": "Database", "login": "Login", "password": "Password"},
    "placeholders": {"host": "https://picas.surfsara.nl", "port": "6984", "schema": "the pool's database"},
}

CONN_FIELDS: dict[str, dict[str, Any]] = {
    "verify": {
        "label": "Verify TLS certificate",
        "description": "Disable only for a test server: the password would be sent to any server that answers.",
        "schema": {"type": ["boolean", "null"], "default": True},
    },
    "ca_file": {
        "label": "CA file",
        "description": "File with the certificates of your own authority, on the machines that run tasks and triggers.",
        "schema": {"type": ["string", "null"]},
    },
    "design_document": {
        "label": "Design document",
        "description": "With the views todo, locked, done and error. Monitor unless your pool has several token types.",
        "schema": {"type": ["string", "null"]},
    },
    "profile": {
        "label": "Profile",
        "description": "Shape of the pool: picas_cortex, grid_lrt, or a profile as JSON. Empty for PiCaS's own.",
        "schema": {"type": ["string", "null"]},
    },
    "connect_timeout": {
        "label": "Connect time-out (s)",
        "description": "Default 10 seconds.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "web_ui": {
        "label": "Web page of the pool",
        "description": "Where tasks link to. Default: Fauxton, CouchDB's own page, on the same server.",
        "schema": {"type": ["string", "null"], "format": "url"},
    },
    "monitoring_url": {
        "label": "Monitoring page",
        "description": "Where tasks link to, such as a dashboard of the cluster.",
        "schema": {"type": ["string", "null"], "format": "url"},
    },
    "read_timeout": {
        "label": "Read time-out (s)",
        "description": "Default 60 seconds. A large pool's first index takes longer to build.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
}


CONFIG: dict[str, Any] = {
    "picas": {
        "description": "Options of airflow-provider-picas.",
        "options": {
            "deployment": {
                "description": (
                    "Name of this Airflow, part of the ids of batches: deployments that share a pool need"
                    " different names. Default: the host and path of [api] base_url; if that has no host, or"
                    " localhost, a name that is generated once and stored in the Variable picas_deployment."
                ),
                "type": "string",
                "version_added": "0.2.0",
                "example": "production",
                "default": None,
            },
        },
    }
}


SLURM = "Slurm"
#: Pages below docs/.
PICAS_GUIDES = ("start/index.md", "howto/index.md", "howto/pools.md")
SLURM_GUIDES = ("reference/pilot.md",)


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, in the form of Airflow's ``provider_info.schema.json``."""
    name = "PiCaS"

    def modules(*paths: str, integration: str = name) -> dict[str, Any]:
        return {
            "integration-name": integration,
            "python-modules": [f"airflow_provider_picas.{path}" for path in paths],
        }

    def files(*paths: str, kind: str = "blob") -> list[str]:
        return [f"{HOME}/{kind}/v{__version__}/docs/{path}" for path in paths]

    return {
        "package-name": "airflow-provider-picas",
        "name": name,
        "description": "Fill PiCaS token pools, run pilots on a Slurm cluster, wait for the tokens, rerun and collect.",
        "integrations": [
            {
                "integration-name": name,
                "external-doc-url": "https://doc.spider.surfsara.nl/en/latest/Pages/pilot_jobs.html",
                "how-to-guide": files(*PICAS_GUIDES),
                "logo": files("images/logo.svg", kind="raw")[0],
                "tags": ["service"],
            },
            {
                "integration-name": SLURM,
                "external-doc-url": "https://slurm.schedmd.com/documentation.html",
                "how-to-guide": files(*SLURM_GUIDES),
                "tags": ["software"],
            },
        ],
        "hooks": [modules("hooks.picas"), modules("hooks.slurm", integration=SLURM)],
        "operators": [modules("operators.tokens", "operators.rerun"), modules("operators.pilots", integration=SLURM)],
        "sensors": [modules("sensors.tokens")],
        "triggers": [modules("triggers.tokens", "triggers.events")],
        "asset-uris": [
            {
                "schemes": ["picas"],
                "handler": "airflow_provider_picas.assets.normalize_uri",
                "factory": "airflow_provider_picas.assets.pool_asset",
                "to_openlineage_converter": "airflow_provider_picas.assets.to_openlineage",
            }
        ],
        "extra-links": [
            "airflow_provider_picas.links.PicasPoolLink",
            "airflow_provider_picas.links.PicasMonitoringLink",
            "airflow_provider_picas.links.PicasRerunLink",
        ],
        "task-decorators": [
            {"name": "picas_tokens", "class-name": "airflow_provider_picas.decorators.tokens.picas_tokens_task"}
        ],
        "connection-types": [
            {
                "connection-type": "picas",
                "hook-name": name,
                "hook-class-name": "airflow_provider_picas.hooks.picas.PicasHook",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "config": CONFIG,
    }
