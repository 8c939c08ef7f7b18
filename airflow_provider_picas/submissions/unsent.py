"""Results that pilots could not send: they are in files of the submission's folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

from airflow_provider_picas.couchdb import conflicts, errors
from airflow_provider_picas.couchdb.http import json_body
from airflow_provider_picas.couchdb.pool import TOO_LARGE, Document, Pool
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.slurm.remote import Command, Output, ok, quote, whole
from airflow_provider_picas.submissions.submission import Operation
from airflow_provider_picas.tokens.text import one_line

UNSENT_FILES = 100  # results that one command reads
UNSENT_BYTES = 4_000_000  # of them, together, at most, and a part of one that is larger
MOST_LEFT = 2  # results that the database may answer with an error until the fault is taken to be its own


def send_unsent(pool: Pool, folder: str) -> Operation[tuple[int, dict[str, str]]]:
    """Send all the results that pilots of the submission could not send.

    How many were written; and of those that the database answered with an error, which may lie in them alone, the tokens, each
    with the reason. Raises RemoteError, or CouchDBError: the results that are left are still in the folder.
    """
    unsent = f"{folder}/unsent"
    text = f"""
cd -- {quote(unsent)} 2>/dev/null || exit 0
find . -ignore_readdir_race -maxdepth 1 -name '*.json' -printf '%s %f\\n'"""
    listed: Output = yield from ok(Command(text), "Unsent results cannot be read")
    sent, left = 0, dict[str, str]()
    for files in _portions(listed.stdout.splitlines()):
        contents = yield from _contents(unsent, files)
        settled: list[str] = []
        refused: list[str] = []
        for name, content in contents.items():
            try:
                change = Change.from_json(json.loads(content)["change"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # no result: it stays where a person can look at it
            try:
                verdict = yield from _send(pool, change)
            except errors.UnavailableError as error:
                if error.status is None or len(left) == MOST_LEFT:
                    raise  # it is not in the results
                left[change.token] = str(error)
                continue
            sent += verdict == "landed"
            # Giving back a token that was never started is no result: there is nothing to keep when it is refused.
            (refused if verdict == "refused" and change.kind != "released" else settled).append(name)
        away = [f"cd -- {quote(unsent)} || exit"]
        if settled:
            away.append(f"rm -f -- {quote(*settled)}")
        if refused:
            away.append(f"mkdir -p -m 700 ../refused && mv -f -- {quote(*refused)} ../refused/")
        if settled or refused:
            yield Command("\n".join(away))
    return sent, left


def _portions(listed: Sequence[str]) -> list[dict[str, int]]:
    """What is read with one command each: sizes in bytes by name. A file that is too large for one is alone."""
    portions: list[dict[str, int]] = []
    for line in listed:
        size, _, name = line.partition(" ")
        if whole(size, default=-1) < 0:
            continue  # the rest of a name of two lines, which is none of ours
        last = portions[-1] if portions else {}
        if not last or len(last) >= UNSENT_FILES or sum(last.values()) + int(size) > UNSENT_BYTES:
            portions.append({})
        portions[-1][name] = int(size)
    return portions


def _contents(folder: str, files: Mapping[str, int]) -> Operation[dict[str, bytes]]:
    """The contents of files; empty for those that are gone. Of a large file so much at once as a hook takes."""
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
    """Write one result against the revision that its pilot claimed: landed, or refused because the token moved on, or the
    database takes no part of it. Raises CouchDBError when that is not known."""
    failure: errors.CouchDBError = errors.ConflictError(f"Token {one_line(change.token)} changes all the time.")
    for _ in range(10):
        verdict = yield from _verdict(pool, change)
        if verdict != "apply":
            return verdict
        try:
            rows = yield from pool.write([json_body(change.apply())])
        except errors.UnavailableError as error:
            if error.status == 202:
                raise  # the next look might see what one node alone knows
            failure = error
            continue  # written or not: the next look tells
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


def _verdict(pool: Pool, change: Change) -> Operation[str]:
    """What the token says of a result now. Raises UnavailableError when it is in a revision that lost, and will be adopted."""
    found: Mapping[str, list[Document]] = yield from conflicts.branches(pool, [change.token])
    verdict: str = change.verdict_of(found.get(change.token, []))
    if verdict == "lost":
        raise errors.UnavailableError(
            f"{one_line(change.token)} has revisions in conflict, and another one shows than the one with this result.",
            status=409,
        )
    return verdict


def _blames_document(error: errors.CouchDBError | ValueError) -> bool:
    """Whether a document is refused for what it holds: it is no JSON, or too large, as a proxy may say by a page of its own."""
    if not isinstance(error, errors.CouchDBError):
        return True
    return error.status == 413 or (error.status == 400 and bool(error.error))
