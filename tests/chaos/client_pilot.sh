#!/bin/bash
#SBATCH --time=00:20:00
# A pilot of the unmodified PiCaS client, which runs a process for each token: the one that $RUNS counts.
source ~/picas-venv/bin/activate
exec python3 - <<'PYTHON'
import os

import picasconfig
from picas.actors import RunActor
from picas.clients import CouchDB
from picas.executers import execute
from picas.modifiers import BasicTokenModifier


class Counter(RunActor):
    def __init__(self, db, modifier):
        super().__init__(db, view="todo", design_doc="Monitor")
        self.modifier = modifier

    def process_task(self, token):
        command = f"echo client {token['_id']} >> {os.environ['RUNS']}"
        process, returncode, out, err = execute(["/bin/sh", "-c", command])
        token["exit_code"] = returncode
        self.modifier.close(token)


client = CouchDB(
    url=picasconfig.PICAS_HOST_URL,
    db=picasconfig.PICAS_DATABASE,
    username=picasconfig.PICAS_USERNAME,
    password=picasconfig.PICAS_PASSWORD,
)
Counter(client, BasicTokenModifier()).run()
PYTHON
