#!/bin/bash
#
#SBATCH --job-name=word-count-pilot
#SBATCH --array=0-1
#SBATCH -t 00:30:00
#SBATCH --export=ALL,DESIGN_DOC=Monitor,VIEW=todo
#
# A pilot as the PiCaS examples have it: each job of the array takes tokens until none is left. It knows nothing of
# Airflow: it needs a picasconfig.py on PYTHONPATH, and the PiCaS client, installed once on the cluster:
#   python3 -m venv ~/picas-venv && ~/picas-venv/bin/pip install picas

source ~/picas-venv/bin/activate
echo "Pilot $SLURM_JOB_ID on $SLURMD_NODENAME"

exec python3 - <<'PYTHON'
import os

import picasconfig
from picas.actors import RunActor
from picas.clients import CouchDB
from picas.modifiers import BasicTokenModifier


class WordCountActor(RunActor):
    """Counts the lines and words of the file that a token names."""

    def __init__(self, db, modifier, **viewargs):
        super().__init__(db, **viewargs)
        self.modifier = modifier

    def process_task(self, token):
        with open(token["input"], "rb") as file:
            text = file.read()
        token["output"] = {"lines": text.count(b"\n"), "words": len(text.split())}
        token["exit_code"] = 0
        self.modifier.close(token)


client = CouchDB(
    url=picasconfig.PICAS_HOST_URL,
    db=picasconfig.PICAS_DATABASE,
    username=picasconfig.PICAS_USERNAME,
    password=picasconfig.PICAS_PASSWORD,
)
actor = WordCountActor(client, BasicTokenModifier(), view=os.environ["VIEW"], design_doc=os.environ["DESIGN_DOC"])
actor.run(max_token_time=600, max_total_time=1500, max_scrub=2)
print(f"This pilot counted {actor.tasks_processed} files")
PYTHON
