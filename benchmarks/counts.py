"""Counts of a batch: one request, whose duration depends neither on the size of the batch nor on that of its pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from benchmarks.measure import Goal, Result, clock, in_pairs, medians, ratio
from benchmarks.server import CONN_ID, Server

SMALL, LARGE = 1_000, 100_000
TIMES = 50  # counts in one measurement


def run(server: Server, pairs: int) -> Iterator[Result]:
    """A large and a small batch in one pool, and the small one in a separate pool. The index is built before."""
    with server.pool(views=True):
        hook = _filled(SMALL, LARGE)
        requests: list[str] = []
        hook.get_conn().hooks["response"].append(lambda response, **_: requests.append(response.url))
        for size in (SMALL, LARGE):
            requests.clear()
            counted = hook.count(_batch(size))
            if counted.todo != size or len(requests) != 1:
                raise RuntimeError(f"{counted} of {size:,} tokens were counted, with {len(requests)} requests.")
        with server.pool(views=True):
            alone = _filled(SMALL)
            yield _compare(
                f"counting a batch of {LARGE:,} against one of {SMALL:,}, by time",
                {f"{LARGE:,}": lambda: _count(hook, LARGE), f"{SMALL:,}": lambda: _count(hook, SMALL)},
                pairs,
                {"requests": "1"},
            )
            yield _compare(
                f"counting a batch of {SMALL:,} beside {LARGE:,} others against none, by time",
                {f"beside {LARGE:,}": lambda: _count(hook, SMALL), "beside none": lambda: _count(alone, SMALL)},
                pairs,
            )


def _compare(
    name: str, sides: dict[str, Callable[[], float]], pairs: int, figures: dict[str, str] | None = None
) -> Result:
    one, other = sides.values()
    found = in_pairs(one, other, pairs)
    shown = {side: f"{seconds * 1000:.1f} ms" for side, seconds in zip(sides, medians(found), strict=True)}
    return Result(name, {**shown, **(figures or {})}, ratio(found), Goal(1.5), pairs=found)


def _batch(size: int) -> str:
    return f"of-{size}"


def _filled(*sizes: int) -> PicasHook:
    """A hook of the newest pool, with batches in it."""
    hook = PicasHook(CONN_ID)
    for size in sizes:
        tokens = (
            documents.new_token({"input": n}, batch=_batch(size), push=_batch(size), ordinal=n) for n in range(size)
        )
        hook.push(tokens, numbered=True)
        hook.count(_batch(size))
    return hook


def _count(hook: PicasHook, size: int) -> float:
    """Seconds of one count."""
    with clock() as taken:
        for _ in range(TIMES):
            hook.count(_batch(size))
    return taken.seconds / TIMES
