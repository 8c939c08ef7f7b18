"""Pushes tokens with the PiCaS client, as its ``create_tokens.py`` does, and prints the seconds. Runs where the client is.

Standard input is JSON: the pool's ``url``, ``database``, ``user`` and ``password``, and the ``inputs``.
"""

import json
import sys
import time

from picas.clients import CouchDB  # type: ignore[import-not-found]
from picas.documents import Task  # type: ignore[import-not-found]

given = json.load(sys.stdin)
client = CouchDB(url=given["url"], db=given["database"], username=given["user"], password=given["password"])
tokens = [
    Task(
        {
            "_id": f"token_{place}",
            "type": "token",
            "lock": 0,
            "done": 0,
            "hostname": "",
            "scrub_count": 0,
            "input": value,
            "exit_code": "",
        }
    )
    for place, value in enumerate(given["inputs"])
]
client.db.info()  # the connection and the login are not measured
started = time.perf_counter()
saved = client.save_documents(tokens)
seconds = time.perf_counter() - started
assert all(saved), "tokens were not saved"
print(seconds)
