"""Operators on the pilots of a Slurm cluster."""

from airflow_provider_picas.operators.pilots.cancel import PicasCancelPilotsOperator
from airflow_provider_picas.operators.pilots.resubmit import PicasResubmitPilotsOperator
from airflow_provider_picas.operators.pilots.submit import PicasSubmitPilotsOperator

__all__ = ["PicasCancelPilotsOperator", "PicasResubmitPilotsOperator", "PicasSubmitPilotsOperator"]
