"""Splits items into portions of a size that CouchDB and proxies accept."""

from typing import Callable, Iterable, Iterator, List, Optional, TypeVar

Item = TypeVar("Item")


def portions(
    items: Iterable[Item], size: Callable[[Item], int], most_bytes: int, most: Optional[int] = None
) -> Iterator[List[Item]]:
    """Items in portions of at most ``most_bytes`` by ``size``, or of one item, and of at most ``most`` items."""
    some: List[Item] = []
    total = 0
    for item in items:
        more = size(item)
        if some and (len(some) == most or total + more > most_bytes):
            yield some
            some, total = [], 0
        some.append(item)
        total += more
    if some:
        yield some
