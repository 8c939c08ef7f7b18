"""What each route answers, read from a pool."""

from airflow_provider_picas.plugins.answers import causes, chain, nodes, pilots, pools, tokens, why

__all__ = ["causes", "chain", "nodes", "pilots", "pools", "tokens", "why"]
