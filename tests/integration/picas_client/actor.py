"""A pilot as the PiCaS examples have it: the input of a token is the exit code of its work, or a text that is no number."""

import sys

import picasconfig
from picas.actors import RunActor
from picas.clients import CouchDB
from picas.modifiers import BasicTokenModifier


class ExampleActor(RunActor):
    def __init__(self, db, modifier, **viewargs):
        super().__init__(db, **viewargs)
        self.modifier = modifier

    def process_task(self, token):
        token["exit_code"] = int(token["input"])
        token["output"] = f"was {token['input']}"
        self.modifier.close(token)
        token.put_attachment(f"logs_{token['_id']}.out", b"a line of a log\n")


client = CouchDB(
    url=picasconfig.PICAS_HOST_URL,
    db=picasconfig.PICAS_DATABASE,
    username=picasconfig.PICAS_USERNAME,
    password=picasconfig.PICAS_PASSWORD,
)
actor = ExampleActor(client, BasicTokenModifier(), view="todo", design_doc="Monitor")
actor.run(max_tasks=int(sys.argv[1]) if len(sys.argv) > 1 else None)
