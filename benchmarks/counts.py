"""Counting a batch: one request, whose time does not grow with the batch."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from benchmarks.measure import Goal, Result, clock, in_pairs, medians, ratio
from benchmarks.server import CONN_ID, Server

SMALL, LARGE = 1_000, 100_000
TIMES = 50  # counts in one measurement


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Both batches are in one pool, and its index is built before."""
    with server.pool(views=True):
        hook = PicasHook(CONN_ID)
        for size in (SMALL, LARGE):
            batch = f"of-{size}"
            hook.push(
                (documents.new_token({"input": n}, batch=batch, push=batch, ordinal=n) for n in range(size)),
                numbered=True,
            )
        requests: list[str] = []
        hook.get_conn().hooks["response"].append(lambda response, **_: requests.append(response.url))
        for size in (SMALL, LARGE):
            requests.clear()
            counted = hook.count(f"of-{size}")
            if counted.todo != size or len(requests) != 1:
                raise RuntimeError(f"{counted} of {size:,} tokens were counted, with {len(requests)} requests.")

        def count(size: int) -> float:
            with clock() as taken:
                for _ in range(TIMES):
                    hook.count(f"of-{size}")
            return taken.seconds / TIMES

        found = in_pairs(lambda: count(LARGE), lambda: count(SMALL), pairs)
        large, small = medians(found)
        yield Result(
            f"counting a batch of {LARGE:,} against one of {SMALL:,}, by time",
            {f"{SMALL:,}": f"{small * 1000:.1f} ms", f"{LARGE:,}": f"{large * 1000:.1f} ms", "requests": "1"},
            ratio(found),
            Goal(1.5),
            pairs=found,
        )
