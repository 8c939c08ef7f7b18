"""Airflow provider for PiCaS token pools: fill a pool, run pilots on a Slurm cluster, wait, rerun, collect."""

__version__ = "0.2.0"
