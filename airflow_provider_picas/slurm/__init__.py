"""Slurm as text: sbatch options to argv, remote commands, parsers. Pure functions; hooks do the I/O."""
