#!/bin/bash
#SBATCH --output=ddcal_%j.out
source .venv/bin/activate
mkdir ddcal_$SLURM_JOB_ID && cp *.py *.sh ddcal_$SLURM_JOB_ID && cd ddcal_$SLURM_JOB_ID || exit 1
python pilot.py ddcal
