"""A pilot of the PiCaS client, which runs a process for each token, as its examples do. Runs where the client is.

Standard input is JSON: the pool's ``url``, ``database``, ``user`` and ``password``, and the ``command``, a list.
"""

import json
import os
import sys

from picas.actors import RunActor  # type: ignore[import-not-found]
from picas.clients import CouchDB  # type: ignore[import-not-found]
from picas.executers import execute  # type: ignore[import-not-found]
from picas.modifiers import BasicTokenModifier  # type: ignore[import-not-found]

given = json.load(sys.stdin)


class Pilot(RunActor):  # type: ignore[misc]
    """Runs the command and closes the token."""

    def process_task(self, token):  # type: ignore[no-untyped-def]
        """One token. The command learns its id as from our pilots."""
        os.environ["PICAS_TOKEN_ID"] = token["_id"]
        _, code, _, _ = execute(given["command"])
        token["exit_code"] = code
        BasicTokenModifier().close(token)


client = CouchDB(url=given["url"], db=given["database"], username=given["user"], password=given["password"])
Pilot(client, view="todo", design_doc="Monitor").run()
