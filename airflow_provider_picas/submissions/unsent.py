"""Sends results that pilots could not send, from files in the submission's folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

from airflow_provider_picas.couchdb import conflicts, errors
from airflow_provider_picas.couchdb.http import json_body
from airflow_provider_picas.couchdb.pool import TOO_LARGE, Document, Pool
from airflow_provider_picas.lifecycle.portions import portions
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.slurm.remote import Command, Output, ok, quote, whole
from airflow_provider_picas.submissions.submission import Operation
from airflow_provider_picas.tokens.text import one_line

UNSENT_FILES = 100  # results read by one command
UNSENT_BYTES = 4_000_000  # limit for these together, and for one part of a larger result
MOST_FAILED = 2  # with errors for more results than this, the fault is assumed to be the database's


def send_unsent(pool: Pool, folder: str) -> Operation[tuple[int, dict[str, str]]]:
    """Send all the results that pilots of the submission could not send.

    Returns the number of results written, and by token the reasons of those that the database answered with an error,
    which may be caused by the result itself. Raises RemoteError, or CouchDBError: the remaining results are still in
    the folder.
    """
    unsent = f"{folder}/unsent"
    text = f"""
cd -- {quote(unsent)} 2>/dev/null || exit 0
find . -ignore_readdir_race -maxdepth 1 -name '*.json' -printf '%s %f\\n'"""
    listed: Output = yield from ok(Command(text), "Unsent results cannot be read")
    sent, failed = 0, dict[str, str]()
    for files in _portions(listed.stdout.splitlines()):
        contents = yield from _contents(unsent, files)
        settled: list[str] = []
        refused: list[str] = []
        for name, content in contents.items():
            try:
                change = Change.from_json(json.loads(content)["change"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # not a result: leave it in place for a person to inspect
            try:
                decision = yield from _send(pool, change)
            except errors.UnavailableError as error:
                if error.status is None or len(failed) == MOST_FAILED:
                    raise  # the results are not the cause
                failed[change.token] = str(error)
                continue
            sent += decision == "landed"
            # The release of a token that was never started is not a result: if it is refused, there is nothing to keep.
            (refused if decision == "refused" and change.kind != "released" else settled).append(name)
        commands = [f"cd -- {quote(unsent)} || exit"]
        if settled:
            commands.append(f"rm -f -- {quote(*settled)}")
        if refused:
            commands.append(f"mkdir -p -m 700 ../refused && mv -f -- {quote(*refused)} ../refused/")
        if settled or refused:
            yield Command("\n".join(commands))
    return sent, failed


def _portions(listed: Sequence[str]) -> list[dict[str, int]]:
    """The files to read with one command each: sizes in bytes by name. A file that is too large for one command is alone."""
    parts = (line.partition(" ") for line in listed)
    # Other lines are the rest of a name with a newline, which is not one of ours.
    files = ((name, int(size)) for size, _, name in parts if whole(size, default=-1) >= 0)
    return [dict(some) for some in portions(files, lambda file: file[1], UNSENT_BYTES, UNSENT_FILES)]


def _contents(folder: str, files: Mapping[str, int]) -> Operation[dict[str, bytes]]:
    """The contents of files; empty if a file is gone. A large file is read in parts that fit a hook's limit."""
    contents = dict.fromkeys(files, b"")
    for begin in range(0, max(1, sum(files.values())), UNSENT_BYTES):
        text = f"""
cd -- {quote(folder)} || exit 0
for file in {quote(*files)}; do
  echo "$file $(tail -c +{begin + 1} -- "$file" 2>/dev/null | head -c {UNSENT_BYTES} | base64 -w0)"
done"""
        output: Output = yield from ok(Command(text), "Unsent results cannot be read")
        for line in output.stdout.splitlines():
            name, _, encoded = line.rpartition(" ")
            contents[name] += base64.b64decode(encoded)
    return contents


def _send(pool: Pool, change: Change) -> Operation[str]:
    """Write one result against the revision that its pilot claimed. The outcome: landed, or refused because the token
    has changed or the database accepts no part of the result. Raises CouchDBError if the outcome is unknown."""
    failure: errors.CouchDBError = errors.ConflictError(f"Token {one_line(change.token)} keeps changing.")
    for _ in range(10):
        decision = yield from _decision(pool, change)
        if decision != "apply":
            return decision
        try:
            rows = yield from pool.write([json_body(change.apply())])
        except errors.UnavailableError as error:
            if error.status == 202:
                raise  # the next query might see what only one node knows
            failure = error
            continue  # written or not: the next query shows
        except (errors.CouchDBError, ValueError) as error:
            if not _blames_document(error):
                raise
            if not change.shrink():
                return "refused"
            continue
        if rows[0].error is None:
            return "landed"
        if rows[0].error in ("forbidden", "unauthorized") or (rows[0].error == TOO_LARGE and not change.shrink()):
            return "refused"
    raise failure


def _decision(pool: Pool, change: Change) -> Operation[str]:
    """The decision on a result now. Raises UnavailableError if the result is in a lost revision, which will be adopted."""
    found: Mapping[str, list[Document]] = yield from conflicts.branches(pool, [change.token])
    decision: str = change.decide_among(found.get(change.token, []))
    if decision == "lost":
        raise errors.UnavailableError(
            f"{one_line(change.token)} has conflicting revisions, and the winning one does not have this result.",
            status=409,
        )
    return decision


def _blames_document(error: errors.CouchDBError | ValueError) -> bool:
    """True if a document is refused for its content: invalid JSON, or too large, as a proxy may report in its own way."""
    if not isinstance(error, errors.CouchDBError):
        return True
    return error.status == 413 or (error.status == 400 and bool(error.error))
