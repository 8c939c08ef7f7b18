#!/bin/bash
#SBATCH --output=imaging_%j.out
source .venv/bin/activate
mkdir imaging_$SLURM_JOB_ID && cp *.py *.sh imaging_$SLURM_JOB_ID && cd imaging_$SLURM_JOB_ID || exit 1
python pilot.py imaging
