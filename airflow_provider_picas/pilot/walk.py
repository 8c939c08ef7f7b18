"""Candidates of a large batch by their ids."""

import math
import random
import re
import time
from typing import List, Optional

from airflow_provider_picas.lifecycle.classes import class_name
from airflow_provider_picas.lifecycle.exit_codes import Failed
from airflow_provider_picas.lifecycle.ids import batch_range
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.pilot.heads import FEW, LOAD, Head, Heads, own_views
from airflow_provider_picas.pilot.session import Session


class Walk:
    """Candidates of a large batch whose waiting tokens have one class and one priority, by their ids.

    A query of the view makes the database bring its index up to date, which costs more than the claim. A read of
    documents in the order of their ids does not. A pilot begins at its share of the batch, or at a random waiting token,
    and goes on from there until it meets tokens that others have claimed; then it begins at another one. The view as it
    was is enough to find one. From time to time the view itself is queried: it shows new priorities and classes, and
    each token has its turn.
    """

    LEAST = FEW  # waiting tokens; the last ones are claimed from the view, which shows where they are
    PAGES = 50  # claims, at most, between two queries of the view that bring it up to date
    UPDATE = 60.0  # seconds, at most, between them
    CHECK = 5.0  # seconds, at least, between two checks of class and priority in the view as it is

    def __init__(self, session: Session, heads: Heads) -> None:
        self._database = session.database
        self._profile = session.config.pool_profile()
        config = session.config
        self._batch = config.batch if self._profile.is_default and config.classes is None else None
        self._view = own_views(self._profile) + "todo"
        self._heads = heads
        self._head: Optional[Head] = None  # class and priority of all waiting tokens; None: do not walk
        self._pages = 0  # read since the view was brought up to date
        self._update_at = self._check_at = 0.0  # monotonic
        self._place: Optional[str] = None  # where the next page begins
        self._share = session.me.share
        self._has_begun = self._share[1] == 1  # at its share; the only pilot has no other's to avoid

    def begin(self) -> None:
        """Begin to walk if it is worth it, after the heads were read from the view."""
        now = time.monotonic()
        self._pages = 0
        self._update_at, self._check_at = now + self.UPDATE * random.uniform(0.5, 1), now + self.CHECK
        self._note_heads()

    def _note_heads(self) -> None:
        only = self._heads.only
        is_large = self._batch is not None and (self._heads.todo or 0) >= self.LEAST
        self._head = only if is_large and only and number(only.priority, math.inf) != math.inf else None

    def find(self, limit: int) -> List[Doc]:
        """Candidates; none if the view has to be queried. Raises Unreachable."""
        now = time.monotonic()
        if self._head is None or self._pages >= self.PAGES or now >= self._update_at:
            return []
        try:
            if now >= self._check_at:
                self._heads.read(update=False)
                self._check_at = now + max(self.CHECK, LOAD * (time.monotonic() - now))
                self._note_heads()
            for _ in range(2):
                place = self._place or self._first_place(self._random_place())
                found = self._page(place, limit) if place else []
                if found:
                    self._pages += 1
                    return found
        except Failed:
            self._head = None  # the view is gone
        self._pages = self.PAGES
        return []

    def leave(self) -> None:
        """Begin elsewhere: another pilot claims here."""
        self._place = None

    def _first_place(self, place: Optional[str]) -> Optional[str]:
        """Where this pilot begins: pilots of an array start at the same time, and would meet often at random places.

        ``place``: the id of a token. If it is a number, as in a push without keys, so are the others.
        """
        if self._has_begun or place is None:
            return place
        self._has_begun = True
        key = place[len(f"{self._batch}:") :]
        if not re.match(r"[0-9]+\Z", key):
            return place
        index, shares = self._share
        return f"{self._batch}:{(self._heads.todo or 0) * index // shares:0{len(key)}d}"

    def _random_place(self) -> Optional[str]:
        """The id of a token that is waiting, or was a moment ago."""
        if self._head is None:
            return None
        for limits in self._head.random_places(self._batch):
            rows = self._database.rows(self._view, 1, reduce=False, update=False, **limits)
            if rows:
                return str(rows[0]["id"])
        return None

    def _page(self, place: str, limit: int) -> List[Doc]:
        """The candidates among the next tokens."""
        limits = dict(batch_range(self._batch), startkey=place)
        docs, last = self._database.page("_all_docs", limit, **limits)
        waiting = [
            doc for doc in docs if self._profile.is_claimable(doc) and self._profile.batch_of(doc) == self._batch
        ]
        found = [doc for doc in waiting if self._is_at_head(doc)]
        if len(found) < len(waiting):
            self._head = self._place = None  # another class or priority has come: the view shows which is first
            return []
        # Goes on where others have not been: at most half of the tokens were taken, and not the last ones.
        free = last is not None and len(found) > len(docs) // 2 and found[-1] in docs[-3:]
        self._place = f"{last}\0" if free else None
        return found

    def _is_at_head(self, doc: Doc) -> bool:
        head = self._head
        return head is not None and class_name(doc) == head.name and number(doc.get("priority")) == -head.priority
