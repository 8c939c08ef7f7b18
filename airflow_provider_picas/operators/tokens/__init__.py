"""Operators on the tokens of a pool."""

from airflow_provider_picas.operators.tokens.collect import PicasCollectTokensOperator
from airflow_provider_picas.operators.tokens.delete import PicasDeleteTokensOperator, PicasRestoreTokensOperator
from airflow_provider_picas.operators.tokens.push import PicasPushTokensOperator
from airflow_provider_picas.operators.tokens.reset import PicasResetTokensOperator
from airflow_provider_picas.operators.tokens.update import PicasUpdateTokensOperator

__all__ = [
    "PicasCollectTokensOperator",
    "PicasDeleteTokensOperator",
    "PicasPushTokensOperator",
    "PicasResetTokensOperator",
    "PicasRestoreTokensOperator",
    "PicasUpdateTokensOperator",
]
