"""Common code of the commands."""

from __future__ import annotations

from airflow_provider_picas.cli.common import with_options
from airflow_provider_picas.hooks.connection import no_connection


def test_an_error_names_the_option_of_the_command() -> None:
    assert with_options(str(no_connection("nope"))).endswith("or set `--picas-conn-id` to another one.")
