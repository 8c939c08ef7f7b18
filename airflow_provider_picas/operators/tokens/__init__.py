"""Operators on the tokens of a pool."""

from airflow_provider_picas.operators.tokens.push import PicasPushTokensOperator

__all__ = ["PicasPushTokensOperator"]
