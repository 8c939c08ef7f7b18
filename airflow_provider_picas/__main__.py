"""``python -m airflow_provider_picas``: the command line."""

from airflow_provider_picas.cli import main

raise SystemExit(main())
