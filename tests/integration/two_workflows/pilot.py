"""``pilot.py WORKFLOW``: runs the workflow's tokens; one of ``ddcal`` that ends well makes one of ``imaging``."""

import os
import subprocess
import sys

import push_tokens
from connect import connect
from picas.actors import RunActor
from picas.iterators import TaskViewIterator


class Actor(RunActor):
    def __init__(self, db, workflow):
        super().__init__(db, view="todo", design_doc=workflow)
        self.iterator = TaskViewIterator(db, "todo", design_doc=workflow)
        self.client = db

    def process_task(self, token):
        workflow = token["workflow"]
        ended = subprocess.run([f"./master_{workflow}.sh", token["MSDATA"]], capture_output=True, check=False)
        token["output"] = f"{os.getcwd()}/outdir"
        token["exit_code"] = ended.returncode
        token.done()
        self.client.save(token)
        token.put_attachment(f"logs_{token['_id']}.out", ended.stdout)
        token.put_attachment(f"logs_{token['_id']}.err", ended.stderr)
        if ended.returncode == 0 and workflow == "ddcal":
            push_tokens.push(self.client, "imaging", [token["MSDATA"]], SOLS=f"{token['output']}/merged.h5")


if __name__ == "__main__":
    Actor(connect(), sys.argv[1]).run()
