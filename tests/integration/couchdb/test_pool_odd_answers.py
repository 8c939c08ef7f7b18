"""Answers of another shape than CouchDB's, made by a proxy before the real server: operations of both hooks raise typed errors.

Each operation is run once to learn its requests; then again and again, with one part of one answer replaced each time.
"""

from __future__ import annotations

import asyncio
import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_picas.couchdb import (
    batch_pilots,
    changes,
    conflicts,
    edits,
    errors,
    indexes,
    overview,
    page,
    write_access,
)
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.tidy import local_documents
from airflow_provider_picas.submissions.watch import check_pilots, read_leases
from airflow_provider_picas.tokens import ids
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.selection import Selection, UnknownBatchError
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.faults import Proxy

ODD = [
    None, True, -1, 0.5, 1e400, 10**400, "", "\u00b2", "x" * 300, [], [None], [[]], {}, {"rows": None}, {"rows": [None]},
    {"rows": [{}]}, {"id": 1, "key": 2, "value": "x", "doc": []}, {"results": {}, "last_seq": []}, [{"id": 1}], [{"ok": []}],
]  # fmt: skip
WHOLE = [
    b"NaN",
    b"",
    b"[",
    b'{"rows":[{"value":NaN}]}',
    b"\xff",
    b"[" * 100_000,
    b'{"rows":[],"rows":{"a":1}}',
    b"-Infinity",
]
TRIES = 30
FIRST, SECOND, FAILED = (ids.token_id("b", ids.ordinal_key(place)) for place in (0, 1, 9))


@pytest.fixture
def proxy(proxy: Proxy, no_pauses: None) -> Proxy:
    hook = PicasHook()
    lives.fill(hook, dict.fromkeys(State, 3))
    lives.attach(hook, FIRST, **{"a.txt": b"text"})
    hook.do(hook.pool.put({"_id": "_local/picas-pilot-p", "pilot": "p", "lease": 120, "renewed": lives.NOW}))
    hook.do(batch_pilots.note(hook.pool, "b", {"submission": "s.1"}))
    return proxy


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all parts of a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with one part of it replaced, or removed where ``new`` is Ellipsis."""
    if not path:
        return None if new is ... else new
    value = copy.deepcopy(value)
    part = value
    for key in path[:-1]:
        part = part[key]
    if new is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = new
    return value


class Mutation:
    """Replaces a part of one answer: that of the request with a number, counted from when it was made."""

    def __init__(self, dice: random.Random, place: int) -> None:
        self._dice = dice
        self._place = place
        self._seen = 0
        self.done = "nothing"

    def __call__(self, request: str, status: int, content: bytes) -> tuple[int, bytes]:
        self._seen += 1
        if self._seen != self._place + 1 or request.startswith("HEAD"):
            return status, content
        if self._dice.random() < 0.25:
            new = self._dice.choice(WHOLE)
        else:
            try:
                value = json.loads(content)
            except ValueError:
                return status, content
            # Each depth as often as the others: most parts are leaves.
            paths = list(places(value))
            depth = self._dice.choice(sorted({len(path) for path in paths}))
            path = self._dice.choice([path for path in paths if len(path) == depth])
            new = json.dumps(replaced(value, path, self._dice.choice([..., *ODD]))).encode()
        self.done = f"{request} answered {new[:300]!r} instead of {content[:300]!r}"
        return status, new


def some_update(hook: PicasHook) -> object:
    return hook.editor.update(Selection(batch="b", states=frozenset({State.TODO})), {"x": random.random()})


def some_restore(hook: PicasHook) -> object:
    kept = {name: value for name, value in hook.get(SECOND).items() if name != "_rev"}
    return hook.editor.restore([{**kept, "_id": f"b:r{random.random()}"}])


def some_delete(hook: PicasHook) -> object:
    token = new_token({"input": 1}, batch="d", push="d", ordinal=random.randrange(10**9))
    hook.push([token])
    return hook.editor.delete([(token["_id"], hook.get(token["_id"])["_rev"])])


def some_push(hook: PicasHook) -> object:
    return hook.push(new_token({"input": 2}, batch="b", push="again", ordinal=place) for place in range(12))


def some_reset(hook: PicasHook) -> object:
    hook.editor.update(Selection(ids=(FAILED,)), {"x": 1})
    return hook.editor.reset(Selection(batch="b", states=frozenset({State.ERROR})), keep_logs=True)


OPERATIONS: dict[str, Callable[[PicasHook], object]] = {
    "count": lambda hook: hook.count(),
    "count of a batch": lambda hook: hook.count("b"),
    "classes": lambda hook: hook.todo_by_class("b"),
    "get": lambda hook: hook.get(SECOND),
    "tokens": lambda hook: [list(hook.tokens(state)) for state in State],
    "ids": lambda hook: list(hook.token_ids(State.TODO, "b")),
    "documents": lambda hook: list(hook.batch_documents("b")),
    "stateless": lambda hook: hook.stateless_ids("b"),
    "missing": lambda hook: hook.missing("b", 20),
    "deploy": lambda hook: hook.deploy_views({"Extra": "doc.cores == 1"}),
    "push": some_push,
    "select": lambda hook: list(
        hook.editor.select(Selection(batch="b", states=frozenset({State.ERROR}), error_pattern="no"))
    ),
    "reset": some_reset,
    "update": some_update,
    "delete": some_delete,
    "restore": some_restore,
    "with attachments": lambda hook: list(hook.with_attachments([hook.get(FIRST)])),
    "download": lambda hook: hook.download(hook.get(FIRST), "a.txt", io.BytesIO()),
    "attachment in document": lambda hook: hook.do(edits.attachment_in_document(hook.pool, hook.get(FIRST), "a.txt")),
    "batches": lambda hook: hook.batches(),
    "unfinished": lambda hook: hook.unfinished("b", 10),
    "now": lambda hook: hook.now(),
    "test": lambda hook: hook.test_connection(),
    "changes": lambda hook: hook.do(changes.changes(hook.pool, "0")),
    "standing": lambda hook: hook.do(changes.feed_position(hook.pool)),
    "sequence": lambda hook: hook.do(hook.pool.sequence()),
    "counts of few": lambda hook: hook.do(changes.counts_of(hook.pool, ["b", "", "c"])),
    "counts of many": lambda hook: hook.do(changes.counts_of(hook.pool, list("bcdefgh"))),
    "idle": lambda hook: hook.do(changes.idle(hook.pool, "w", 3)),
    "index": lambda hook: hook.do(indexes.progress(hook.pool)),
    "indexes": lambda hook: hook.do(indexes.update(hook.pool)),
    "branches": lambda hook: hook.do(conflicts.branches(hook.pool, [FIRST, SECOND])),
    "leases": lambda hook: hook.do(read_leases(hook.pool, ["p"])),
    "pilots of a batch": lambda hook: hook.do(batch_pilots.find(hook.pool, "b")),
    "tidying": lambda hook: hook.do(local_documents(hook.pool, "s.1")),
    "overview": lambda hook: (hook.do(overview.changed_last(hook.pool)), hook.do(overview.pilots(hook.pool))),
    "page": lambda hook: (
        hook.do(page.behind(hook.pool, 0)),
        hook.do(page.latest(hook.pool, "b", 5)),
        hook.do(overview.local_documents_of(hook.pool, "b")),
        hook.do(write_access.refusal(hook.pool, "b")),
    ),
    "look after": lambda hook: hook.do(check_pilots(hook.pool, "b", None, max_scrubs=3, max_lock_age=1.0)),  # type: ignore[arg-type]
}


def outcome(run: Callable[[], object]) -> BaseException | None:
    try:
        run()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", OPERATIONS)
def test_answers_of_another_shape_are_typed_errors(proxy: Proxy, name: str) -> None:
    dice = random.Random(name)
    hook = PicasHook()
    OPERATIONS[name](hook)
    begin = len(proxy.requests)
    OPERATIONS[name](hook)
    requests = max(1, len(proxy.requests) - begin)
    for _ in range(TRIES):
        mutation = Mutation(dice, dice.randrange(requests))
        proxy.rewrite = mutation
        error = outcome(lambda: OPERATIONS[name](hook))
        proxy.rewrite = lambda request, status, content: (status, content)
        typed = isinstance(error, (errors.CouchDBError, UnknownBatchError))
        assert error is None or typed, f"{error!r} when {mutation.done}"
        assert error is None or len(str(error)) < 2_000, str(error)


def test_answers_of_another_shape_to_triggers(proxy: Proxy) -> None:
    """They drive the same operations; the requests are sent, and the answers read, by another client."""
    dice = random.Random(1)

    async def asked() -> list[tuple[str, Exception | None]]:
        found: list[tuple[str, Exception | None]] = []
        async with PicasAsyncHook() as hook:
            for _ in range(TRIES):
                mutation = proxy.rewrite = Mutation(dice, 0)
                try:
                    await hook.do(changes.counts_of(hook.pool, ["b"]))
                    found.append((mutation.done, None))
                except Exception as error:
                    found.append((mutation.done, error))
        return found

    for done, error in asyncio.run(asked()):
        assert error is None or isinstance(error, errors.CouchDBError), f"{error!r} when {done}"


@pytest.mark.parametrize(
    "date", ["+9999999999999999", "Sat, 28 Nov 2026 20:00:00 +9999999999999999", "", "x", "\u00b2", "0"]
)
def test_an_invalid_date_is_an_error(proxy: Proxy, date: str) -> None:
    proxy.date = date
    hook = PicasHook()
    assert hook.count("b").total == 12
    hook.now()  # by this machine's clock
    with pytest.raises(errors.UnavailableError, match="no Date header"):
        hook.do(read_leases(hook.pool, ["p"]))


def test_what_was_asked_stands_in_the_error(proxy: Proxy) -> None:
    proxy.rewrite = lambda request, status, content: (status, b"[]" if status == 200 else content)
    with pytest.raises(
        errors.UnexpectedResponseError,
        match=r"to GET /test_\w+/b%3A00000001 is not in CouchDB's format: a list was found instead of an object",
    ):
        PicasHook().get(SECOND)


def test_a_submission_that_is_none_names_the_argument() -> None:
    with pytest.raises(ValueError, match="`pilots` must be the output"):
        Submission.parse({"submission": 1})
