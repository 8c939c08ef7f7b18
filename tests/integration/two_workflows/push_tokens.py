"""``push_tokens.py WORKFLOW FILE``: a token for each line."""

import datetime
import sys

from connect import connect
from picas.documents import Task


def push(db, workflow, observations, **fields):
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H:%M:%S.%f")
    names = [f"token_{workflow}_{place}_{now}" for place, _ in enumerate(observations, db.doc_count())]
    new = {"type": "token", "workflow": workflow, "hostname": "", "exit_code": "", "output": "", **fields}
    db.save_documents(
        [Task({"_id": name, "MSDATA": line, **new}) for name, line in zip(names, observations, strict=True)]
    )


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        push(connect(), sys.argv[1], file.read().splitlines())
