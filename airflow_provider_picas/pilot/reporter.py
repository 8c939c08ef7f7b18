"""Writes results."""

import collections
import threading
import time
import traceback
from typing import Callable, Deque, Dict, Iterable, List, Optional, Set, Tuple

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.json_values import Doc
from airflow_provider_picas.lifecycle.portions import portions as split
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.new_tokens import NewTokens
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.portions import BULK_BYTES, size_of

GATHER = 3.0  # seconds to gather results of short tokens into one request, while more are to come
MOST = 200  # results in one request
SHORT = 1.0  # seconds below which a token is short


class Reporter(threading.Thread):
    """Writes changes into tokens, several in one request when they come fast. Never drops one."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        settled: Callable[[Change, str], None],
        conflicts: Conflicts,
        made: Callable[[], None] = lambda: None,
    ) -> None:
        """``settled`` is called for each change that was written or refused, ``made`` when new tokens were made."""
        super().__init__(name="reporter", daemon=True)
        self._database = database
        self._conflicts = conflicts
        self._outbox = outbox
        self._settled = settled
        self._made = made
        self._changed = threading.Condition()
        self._queue: Deque[Change] = collections.deque()
        self._sending: Dict[str, Change] = {}  # by claim
        self._along: Dict[str, Change] = {}  # by claim: part of a request of the claimer
        self._unsafe: Dict[
            str, Change
        ] = {}  # by claim: stored on too few copies, to be read again when writes are safe
        self._secured: Set[str] = set()  # claims whose changes are in files, too
        self._new_tokens = NewTokens(database, conflicts)
        self._closed = False
        self._more = False
        self._oldest = 0.0  # monotonic: since when a change has been in the queue
        self.gather = 0.0  # seconds

    def put(self, change: Change, more: bool = False) -> None:
        """Queue a change: write it as soon as possible, or gather it with others if ``more`` are to come."""
        with self._changed:
            if not self._queue:
                self._oldest = time.monotonic()
            self._queue.append(change)
            self._more = more
            if not more or len(self._queue) == 1:  # else it is gathered
                self._changed.notify_all()

    def carry_out(self, parents: Iterable[str]) -> None:
        """Have the new tokens made that are listed in these tokens."""
        with self._changed:
            for parent in parents:
                self._new_tokens.add(parent)
            self._changed.notify_all()

    def pending(self) -> int:
        """The number of changes that are not known to be written, and of tokens whose new tokens are not made."""
        with self._changed:
            return len(self._unwritten()) + len(self._new_tokens)

    def claims(self) -> Set[str]:
        """The claims whose changes are not known to be written."""
        with self._changed:
            return {change.claim for change in self._unwritten()}

    def close(self) -> List[Change]:
        """Stop. Returns the changes that are not known to be written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._unwritten()

    def _unwritten(self) -> List[Change]:
        return [*self._unsafe.values(), *self._sending.values(), *self._along.values(), *self._queue]

    def take_along(self, but: Set[str]) -> List[Change]:
        """Take queued results, to be written in the claimer's next request, which saves a request. ``but``: ids of the
        tokens that it claims. Call ``note_along`` with the response.
        """
        with self._changed:
            if not self._more or self._closed:
                return []  # the reporter is about to send them
            chosen = [change for change in self._queue if change.doc is not None and change.token not in but]
            chosen = self._one_of_each_token(chosen)
            chosen = next(split(chosen, _size_of, BULK_BYTES // 4, MOST), [])
            self._along = {change.claim: change for change in chosen}
            self._queue = collections.deque(change for change in self._queue if change.claim not in self._along)
            return chosen

    def note_along(self, rows: Dict[str, Doc]) -> None:
        """Take the rows of the response to the claimer's request; none if there was no usable one."""
        changes = list(self._along.values())
        for change in changes:
            self._note_row(change, rows.get(change.token, {}))
        with self._changed:
            again = [change for change in changes if self._along.pop(change.claim, None)]
            self._queue.extendleft(reversed(again))
            if again:
                self._more = False  # send them now
                self._changed.notify_all()

    def run(self) -> None:
        """Write until closed."""
        while not self._closed:
            with self._changed:
                self._changed.wait_for(self._has_work, self._pause())
                self._wait_for_more()
                if self._unsafe and self._database.quorum.holds():
                    self._sending.update(self._unsafe)
                    self._unsafe.clear()
            self._send()
            if not self._closed and self._new_tokens.carry_out():
                self._made()

    def _wait_for_more(self) -> None:
        """Wait until no more are to come, or the oldest change has waited for ``gather`` seconds."""
        while self._queue and self._more and not self._closed:
            left = self._oldest + self.gather - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _has_work(self) -> bool:
        return bool(self._queue) or self._closed or self._new_tokens.pause() == 0

    def _pause(self) -> Optional[float]:
        """Seconds until there is something to do, without a new change; None if there is nothing."""
        pause = self._new_tokens.pause()
        return min(1.0, 1.0 if pause is None else pause) if self._unsafe or pause is not None else None

    def _fill(self) -> None:
        size = 0
        with self._changed:
            while self._queue and len(self._sending) < MOST and size < BULK_BYTES and not self._closed:
                change = self._queue.popleft()
                size += _size_of(change)
                self._sending[change.claim] = change

    def _send(self) -> None:
        """Send until all are written. After a failure, send one at a time: one change may be the cause and must not
        block the others."""
        backoff, alone, fault = Backoff(longest=5.0), False, ""
        self._fill()
        while self._sending and not self._closed:
            before = len(self._sending)
            changes = list(self._sending.values())[: 1 if alone else None]
            try:
                alone = self._send_once(changes, alone)
            except Unreachable as error:
                if backoff.tries == 0:
                    log(f"{error}; {len(self._sending)} results are waiting.")
                else:
                    self._secure()  # this takes longer: a pilot that is killed meanwhile must not lose results
                alone = self._put_behind(changes) if error.status else alone
            except Exception:  # a bug in this program must not lose results: keep them, and try again
                if traceback.format_exc() != fault:
                    fault = traceback.format_exc()
                    log("The reporter failed:", fault)
                alone = self._put_behind(changes)
            if len(self._sending) < before:
                backoff = Backoff(longest=5.0)
            elif not self._closed:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, backoff.pause())
            if self._sending:
                self._fill()  # else gather first, so that several results share one request

    def _secure(self) -> None:
        """Have the results that cannot be sent now written to files."""
        with self._changed:
            for change in [*self._sending.values(), *self._queue]:
                if change.claim not in self._secured and change.kind != "released":
                    self._secured.add(change.claim)
                    self._outbox.secure(change)

    def _put_behind(self, changes: List[Change]) -> bool:
        with self._changed:
            for change in changes:
                if self._sending.pop(change.claim, None):
                    self._sending[change.claim] = change
        return True

    def _send_once(self, changes: List[Change], alone: bool) -> bool:
        """Try to write these changes. True: continue one by one."""
        for change, decision in self._read_again([change for change in changes if change.doc is None]):
            self._settle(change, decision)
        changes = self._one_of_each_token(change for change in changes if change.claim in self._sending)
        if not changes:
            return alone
        status, rows = self._database.bulk([change.apply() for change in changes])
        if not rows and alone:
            log(f"The database refuses the result of {changes[0].token} ({status}).")
            if not changes[0].shrink():
                self._settle(changes[0], "refused")
        for change in changes:
            self._note_row(change, rows.get(change.token, {}))
        return alone or not rows

    @staticmethod
    def _one_of_each_token(changes: Iterable[Change]) -> List[Change]:
        """The first change of each token. A response has rows by token, so a second one needs a request of its own.

        This pilot may have claimed a token again that was reaped while its result was waiting.
        """
        first: Dict[str, Change] = {}
        for change in changes:
            first.setdefault(change.token, change)
        return list(first.values())

    def _note_row(self, change: Change, row: Doc) -> None:
        if row.get("accepted"):
            self._put_off(change)
        elif row.get("rev"):
            self._settle(change, "landed")
        elif row.get("error") == "forbidden":
            log(f"The database forbids the result of {change.token}: {row.get('reason')}.")
            self._settle(change, "refused")
        else:
            change.doc = None  # a conflict, or it may have been written: read again

    def _read_again(self, changes: List[Change]) -> List[Tuple[Change, str]]:
        """Read the tokens again. Returns changes that already landed, or whose tokens belong to others now, with the
        decision."""
        found = self._database.branches([change.token for change in changes])
        settled = []
        for change in changes:
            branches = found.get(change.token, [])
            decision = change.decide_among(branches)
            if len(branches) > 1 and decision != "apply" and self._database.quorum.holds():
                doc = self._conflicts.settle(branches)
                decision = change.decide_among([doc]) if doc else decision
            if decision == "lost" or (decision == "landed" and not self._database.quorum.holds()):
                self._put_off(change)
            elif decision != "apply":
                settled.append((change, decision))
        return settled

    def _put_off(self, change: Change) -> None:
        """Check the token again when writes reach most of its copies. Until then nothing more is written to it."""
        change.doc = None
        with self._changed:
            if self._sending.pop(change.claim, None) or self._along.pop(change.claim, None):
                self._unsafe[change.claim] = change
                if len(self._unsafe) == 1:
                    log(
                        f"The result of {change.token} was stored by too few of the database's nodes. It will be checked again."
                    )

    def _settle(self, change: Change, decision: str) -> None:
        if decision == "refused":
            self._outbox.record(change)
        with self._changed:
            self._sending.pop(change.claim, None)
            self._along.pop(change.claim, None)
            if change.claim in self._secured:
                self._secured.discard(change.claim)
                self._outbox.forget(change)
            if decision == "landed" and new_tokens.FILE in change.attachments:
                self._new_tokens.add(change.token, change.attachments[new_tokens.FILE])
        self._settled(change, decision)


def _size_of(change: Change) -> int:
    """Bytes of a change in a request, approximately."""
    data = sum(len(attachment["data"]) for attachment in change.attachments.values())
    return data + size_of(change.doc or {}) + size_of(change.set)
