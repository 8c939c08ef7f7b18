"""The highest priorities of the waiting tokens, from the view ``todo``."""

import json
import math
import random
from typing import Any, List, NamedTuple, Optional, Set
from urllib.parse import quote

from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.log import LogOnce
from airflow_provider_picas.pilot.session import Session

GROUPS = 200  # classes and priorities in one response
NUMBERS = 2**31 - 1  # limit of the random numbers that the view assigns to tokens of a class and priority
NEIGHBOURS = 100  # tokens, at most, with the same number: those whose ids differ only in the last two digits
FEW = 300  # rows of the view that can be skipped cheaply
LOAD = 20.0  # idle pilots, and checks of the priorities, pause this many times as long as their last queries took


class Head(NamedTuple):
    """The waiting tokens of a class with its highest priority."""

    priority: Any  # negated; None if not finite
    name: str  # of the class
    tokens: Optional[int] = None  # how many; None if not known

    def key(self, batch: Optional[str]) -> List[Any]:
        """How the keys of its rows in the view begin. ``batch`` is None for all of the pool."""
        return [batch or "", self.name, self.priority]

    def rows(self, batch: Optional[str]) -> Doc:
        """The query for all its rows in the view."""
        key = self.key(batch)
        return {"startkey": key, "endkey": [*key, {}]}

    def random_places(self, batch: Optional[str]) -> List[Doc]:
        """Queries for its rows: from a random one on, then from another place, and last from the first one on."""
        rows = self.rows(batch)
        from_number = dict(rows, startkey=[*self.key(batch), random.randrange(NUMBERS)])
        if self.tokens is not None and self.tokens < FEW:
            return [dict(rows, skip=random.randrange(max(1, self.tokens))), from_number, rows]
        # Tokens with the same number are neighbours: pilots that begin at the first of them would meet.
        return [dict(query, skip=random.randrange(NEIGHBOURS)) for query in (from_number, rows)] + [rows]


def own_views(profile: Profile) -> str:
    """The path of the views of this package's design document."""
    return f"_design/{quote(profile.design)}/_view/"


class Heads:
    """The highest priority of each class of waiting tokens, and how many tokens wait."""

    MOST_CLASSES = (
        50  # classes whose highest priorities are compared; more are checked if none of these has a token to claim
    )
    LONGEST_CLASS = 2000  # bytes of a class in a URL

    def __init__(self, session: Session, log_once: LogOnce) -> None:
        self._database = session.database
        self._config = session.config
        self._view = own_views(session.config.pool_profile()) + "todo"
        self._log_once = log_once
        self._batch = self._config.batch or ""
        self.classes_after: Optional[List[Any]] = None  # where the classes begin that were not read
        self.only: Optional[Head] = None  # if all waiting tokens have one class and one priority
        self.todo: Optional[int] = None  # waiting tokens; None if not known

    def read(self, start: Optional[List[Any]] = None, update: bool = True) -> List[Head]:
        """The highest priority (negated) of each class, highest first; for ``MOST_CLASSES`` from ``start`` on.

        ``update``: bring the index up to date first, which costs the database more than the answer.
        """
        self.classes_after = self.only = self.todo = None
        if self._config.classes is None:
            heads = self._of_all_classes(start or [self._batch], update)
        else:
            heads = [head for name in self._config.classes for head in self._of_class(name)]
        random.shuffle(heads)
        for head in heads:
            if number(head.priority, math.inf) == math.inf:
                self._log_once(
                    f"A token of class {head.name!r:.100} has a priority that is not a finite number. It is claimed last."
                )
        return sorted(heads, key=lambda head: number(head.priority, math.inf))

    def _of_all_classes(self, start: List[Any], update: bool) -> List[Head]:
        heads: List[Head] = []
        seen: Set[str] = set()
        latest: Optional[str] = None  # the class of the row before
        first, todo = start, 0
        single = self._database.skips_any()
        limit = 1 if single else GROUPS
        while True:
            rows = self._rows(start, [self._batch, {}], limit, single, update)
            for row in rows:
                name = row["key"][1]
                todo += row.get("value") or 0
                if name == latest:
                    continue
                latest = name
                if name in seen:
                    raise Unreachable(f"{self._database.place} returned rows that are not in the order of a view", 200)
                seen.add(name)
                if self._is_too_long(name):
                    continue
                heads.append(_head(row))
                if len(heads) == self.MOST_CLASSES:
                    self.classes_after = [self._batch, name, {"\ufff0": None}]
                    return heads
            if len(rows) < limit:
                break
            last = rows[-1]["key"][1]
            after = [self._batch, last[: self.LONGEST_CLASS // 40] + "\ufff0"]
            start = after if self._is_too_long(last) else [self._batch, last, {"\ufff0": None}]
        if first == [self._batch] and start is first and limit > 1:  # these rows are all there are
            self.todo = todo
            self.only = heads[0] if len(rows) == len(heads) == len(seen) == 1 else None
        return heads

    def _is_too_long(self, name: str) -> bool:
        if len(quote(json.dumps(name))) <= self.LONGEST_CLASS:
            return False
        self._log_once(f"Tokens of class {name:.100}... are skipped: the class name is too long for a request.")
        return True

    def _rows(self, start: List[Any], end: List[Any], limit: int, single: bool, update: bool = True) -> List[Doc]:
        """Groups of a class and a priority each. ``single``: one row instead, since a group may hold only skipped tokens."""
        query: Doc = {"startkey": start, "endkey": end, **({} if update else {"update": False})}
        if single:
            rows = self._database.rows(self._view, 1, reduce=False, **query)
        else:
            rows = self._database.groups(self._view, group_level=3, limit=limit, **query)
        self._check(rows)
        return rows

    def _of_class(self, name: str) -> List[Head]:
        single = self._database.skips_any()
        return [_head(row) for row in self._rows([self._batch, name], [self._batch, name, {}], 1, single)]

    def _check(self, rows: List[Doc]) -> None:
        for row in rows:
            key = row.get("key")
            if not isinstance(key, list) or len(key) < 3 or not isinstance(key[1], str):
                raise Unreachable(f"{self._database.place} returned rows that are not those of {self._view}", 200)


def _head(row: Doc) -> Head:
    """The head that a row of the view is of, or a group of rows."""
    return Head(row["key"][2], row["key"][1], row.get("value"))
