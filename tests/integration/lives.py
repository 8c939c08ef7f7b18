"""What pilots leave in tokens, written by the tests themselves."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_picas.couchdb.http import json_body
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.new_tokens import read_list
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Ended, Token, claim, conclude
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.states import State

NOW = 1_763_820_000

LIVES: dict[State, dict[str, Any]] = {
    State.TODO: {},
    State.LOCKED: {"lock": NOW, "hostname": "n1", "slurm_job_id": "12_3"},
    State.DONE: {"lock": NOW, "done": NOW + 60, "exit_code": 0, "hostname": "n1", "slurm_job_id": "12_3", "output": {"words": 7}},
    State.ERROR: {
        "lock": NOW, "done": NOW + 60, "exit_code": 3, "hostname": "n1", "slurm_job_id": "12_3",
        "error": [{"time": NOW + 60, "message": "exit code 3: no such file"}],
    },
}  # fmt: skip


def release_old(hook: PicasHook, batch: str | None, **keys: Any) -> PilotStatus:
    """Check the pilots until nobody has saved the old tokens for long enough."""
    limits: Any = {"max_scrubs": 3, "max_lock_age": 0.2, "observer": ObservedLeases(), **keys}
    status: PilotStatus = hook.do(check_pilots(hook.pool, batch, None, **limits))
    while status.holders.patience > 0:
        time.sleep(status.holders.patience + 0.05)
        later: PilotStatus = hook.do(check_pilots(hook.pool, batch, None, **limits))
        later.add_earlier(status)
        status = later
    return status


def fill(hook: PicasHook, states: Mapping[State, int], batch: str = "b", **fields: Any) -> list[str]:
    """Put tokens in these states into the pool, the provider's views with them; their ids, in the order of the states."""
    hook.deploy_views()
    lives = [state for state, number in states.items() for _ in range(number)]
    tokens = [
        {**new_token({"input": f"x{place}"}, batch=batch, push=batch, ordinal=place), **LIVES[state], **fields}
        for place, state in enumerate(lives)
    ]
    write(hook, tokens)
    return [token["_id"] for token in tokens]


def push(hook: PicasHook, batch: str, number: int, start: int = 0) -> None:
    """Push tokens that wait."""
    hook.push(new_token({"input": n}, batch=batch, push=batch, ordinal=n) for n in range(start, start + number))


def write(hook: PicasHook, tokens: Iterable[Mapping[str, Any]]) -> None:
    """Write tokens as they are; each must be taken."""
    rows = hook.do(hook.pool.write([json_body(token) for token in tokens]))
    assert [row for row in rows if row.error] == []


def finish_unmade(
    hook: PicasHook, token_id: str, lines: Iterable[Mapping[str, Any]], stages: Mapping[str, str], code: int = 0
) -> None:
    """What a pilot writes that runs a token, and dies before it makes the tokens that the command named in these lines."""
    token = hook.get(token_id)
    hook.do(hook.pool.put(ended_unmade(token, lines, stages, int(time.time()), code)))


def ended_unmade(
    token: dict[str, Any], lines: Iterable[Mapping[str, Any]], stages: Mapping[str, str], now: int, code: int = 0
) -> dict[str, Any]:
    """The token as such a pilot has left it."""
    claimed = claim(token, now, "dead", "node", None)
    made = read_list("\n".join(map(json.dumps, lines)).encode(), claimed, stages)
    return conclude(Token(claimed), Ended("exit", code, 0.1, made=made), Config("true", "s"), now).apply()


def change(hook: PicasHook, token_id: str, **fields: Any) -> dict[str, Any]:
    """Set any fields of a token, as somebody else might; the token as it is then."""
    hook.do(hook.pool.put({**hook.get(token_id), **fields}))
    return hook.get(token_id)


def attach(hook: PicasHook, token_id: str, **contents: bytes) -> None:
    """Attach files to a token, besides those that it has."""
    stubs = hook.get(token_id).get("_attachments", {})
    new = {
        name: {"content_type": "text/plain", "data": base64.b64encode(content).decode()}
        for name, content in contents.items()
    }
    change(hook, token_id, _attachments={**stubs, **new})


def attached(hook: PicasHook, token_id: str) -> dict[str, bytes]:
    """The attachments of a token with their content."""
    import io

    contents = {}
    token = hook.get(token_id)
    for name in token.get("_attachments", {}):
        file = io.BytesIO()
        hook.download(token, name, file)
        contents[name] = file.getvalue()
    return contents
