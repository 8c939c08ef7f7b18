"""What each route answers, read from a pool."""

from airflow_provider_picas.plugins.answers import causes, nodes, pilots, pools, tokens, why

__all__ = ["causes", "nodes", "pilots", "pools", "tokens", "why"]
