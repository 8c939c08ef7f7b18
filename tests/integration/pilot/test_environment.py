"""What reaches a command in its environment, and what does not."""

from __future__ import annotations

import json
import os
import sys

from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import PASSWORD, Pool, Submission


def test_input_reaches_the_command_as_data(pool: Pool, submission: Submission) -> None:
    nasty = "'quotes\" $(touch /nowhere/x) `id`\nnewline; é\\ \u2028"
    pool.push(
        [
            {"input": nasty, "LD_PRELOAD": "/nowhere/evil.so", "PATH": "/nowhere", "number": 1.5, "yes": True},
            {"input": {"nested": [1]}, "with\0": "x", "zero": "a\0b"},
            {"input": "x" * 1_000_000},
            {"input": "a\0b"},
        ]
    )
    show = (
        "import json, os; env = {k: v for k, v in os.environ.items() if k.startswith(('PICAS', 'LD_'))};"
        "json.dump(dict(env, size=len(json.load(open('token.json'))['input'])), open(os.environ['PICAS_OUTPUT_FILE'], 'w'))"
    )
    assert submission.run([sys.executable, "-c", show]) == 0, submission.log()
    docs = pool.docs()
    assert {state_of(doc) for doc in docs.values()} == {State.DONE}, docs
    first, second, third, fourth = (docs[f"b:000{place}"]["output"] for place in range(4))
    assert first["PICAS_INPUT"] == nasty
    assert first["PICAS_FIELD_PATH"] == "/nowhere"
    assert "LD_PRELOAD" not in first
    assert (first["PICAS_FIELD_NUMBER"], first["PICAS_FIELD_YES"]) == ("1.5", "true")
    assert json.loads(second["PICAS_INPUT"]) == {"nested": [1]}
    assert second["PICAS_OMITTED"] == "PICAS_FIELD_ZERO"
    assert "PICAS_INPUT" not in third
    assert third["PICAS_OMITTED"] == "PICAS_INPUT"
    assert third["size"] == 1_000_000
    assert "PICAS_INPUT" not in fourth, "no variable can hold a NUL: the token's file has it"
    assert (fourth["PICAS_OMITTED"], fourth["size"]) == ("PICAS_INPUT", 3)


def test_credentials_stay_with_the_pilot(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    folder = submission.folder / "credentials"
    env = {"PYTHONPATH": f"{folder}{os.pathsep}/kept", "PICAS_PASSWORD": PASSWORD}
    command = 'env; echo "path=$PYTHONPATH"; tr "\\0" " " < /proc/$PPID/cmdline; tr "\\0" "\\n" < /proc/$$/environ'
    assert submission.run(command, env=env, credentials="existing") == 0, submission.log()
    out = pool.attachment("b:0000", "attempt-1.out").decode()
    assert "path=/kept\n" in out
    assert PASSWORD not in out
    assert PASSWORD not in submission.log()
    assert str(folder) not in out
