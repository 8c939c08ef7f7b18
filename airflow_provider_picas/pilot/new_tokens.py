"""Carries out the lists of tokens that commands made: see ``lifecycle/new_tokens``."""

import threading
import time
import traceback
from contextlib import suppress
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple
from urllib.parse import quote

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.exit_codes import Failed
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.portions import portions
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.portions import BULK_BYTES, size_of

PARENTS = 50  # whose lists are carried out together


def pending_lists(database: Database, batch: Optional[str], profile: Profile) -> List[str]:
    """Some parents, in a batch or the whole pool, whose lists are to be carried out. Raises Unreachable."""
    view = f"_design/{quote(profile.stages_design)}/_view/lists"
    keys = {"key": ["pending", batch]} if batch is not None else {"startkey": ["pending"], "endkey": ["pending", {}]}
    with suppress(Failed):  # no such view
        return [row["id"] for row in database.rows(view, PARENTS, reduce=False, **keys)]
    return []


class NewTokens:
    """The parents whose lists this pilot is to carry out. One thread does it; any may add parents."""

    def __init__(self, database: Database, conflicts: Conflicts) -> None:
        self._database = database
        self._conflicts = conflicts
        self._lock = threading.Lock()
        self._due: Dict[str, Optional[Doc]] = {}  # by parent: its list as an attachment, if this pilot has it
        self._backoff = Backoff(0.5, 5.0)
        self._next_try = 0.0  # monotonic

    def add(self, parent: str, file: Optional[Doc] = None) -> None:
        """Have the list of a parent carried out. ``file``: the list as an attachment; None: it is read from the parent."""
        with self._lock:
            if file is not None or parent not in self._due:
                self._due[parent] = file

    def __len__(self) -> int:
        with self._lock:
            return len(self._due)

    def pause(self) -> Optional[float]:
        """Seconds until ``carry_out`` has something to do; None if nothing is due."""
        return max(0.0, self._next_try - time.monotonic()) if len(self) else None

    def carry_out(self) -> bool:
        """Carry out the lists of some parents, if any are due. Those that cannot be carried out now are tried again.

        True if some were carried out.
        """
        with self._lock:
            due = dict(list(self._due.items())[:PARENTS])
        if not due or time.monotonic() < self._next_try:
            return False
        try:
            left = self._try(due)
        except Unreachable as error:
            left = set(due)
            if self._backoff.tries == 0:
                log(f"{error}; new tokens of {len(due)} tokens are waiting.")
        except Exception:  # a bug in this program must not stop the reporter: others may carry out the lists
            left = set(due)
            if self._backoff.tries == 0:
                log("New tokens could not be made:", traceback.format_exc())
        with self._lock:
            for parent in due:
                file = self._due.pop(parent)
                if parent in left:
                    self._due[parent] = file  # behind the others
        if left:
            self._next_try = time.monotonic() + self._backoff.pause()
        else:
            self._backoff.reset()
            self._next_try = 0.0
        return len(left) < len(due)

    def _try(self, due: Mapping[str, Optional[Doc]]) -> Set[str]:
        """The parents whose lists could not be carried out yet. Raises Unreachable."""
        if not self._database.quorum.holds():
            return set(due)
        left = set()
        parents: Dict[str, Doc] = {}
        for name, branches in self._database.branches(list(due)).items():
            if len(branches) > 1:
                self._conflicts.settle(branches)  # the list of the one that stays is carried out the next time
                left.add(name)
            elif branches and new_tokens.is_pending(branches[0]):
                parents[name] = branches[0]
        for some in portions(list(parents.values()), self._size, BULK_BYTES):
            left.update(self._carry_out({parent["_id"]: parent for parent in some}, due))
        return left

    @staticmethod
    def _size(parent: Doc) -> int:
        stub = (parent.get("_attachments") or {}).get(new_tokens.FILE) or {}
        return size_of(parent) + int(number(stub.get("length")))

    def _carry_out(self, parents: Mapping[str, Doc], due: Mapping[str, Optional[Doc]]) -> Set[str]:
        """Carry out lists that fit into memory together. Returns the parents that are left. Raises Unreachable."""
        lists: Dict[str, List[Doc]] = {}
        not_made: Dict[str, Dict[str, str]] = {}
        for name, parent in parents.items():
            lists[name], fault = self._list_of(parent, due[name])
            not_made[name] = {name: fault} if fault else {}
        failed = self._make([token for made in lists.values() for token in made])
        if failed is None:
            return set(parents)
        for token, why in failed:
            name = token["parent"]
            if len(not_made[name]) < 3:
                log(f"{token['_id']}, which {name} names, cannot be made: {why}.")
            not_made[name][token["_id"]] = why
        finished = [new_tokens.carried_out(parent, not_made[name]) for name, parent in parents.items()]
        rows = self._database.bulk(finished)[1] if finished else {}
        return {name for name in parents if not self._is_settled(name, rows.get(name, {}))}

    @staticmethod
    def _is_settled(parent: str, row: Mapping[str, object]) -> bool:
        if row.get("error") in ("forbidden", "unauthorized"):
            log(f"The database forbids to record that the new tokens of {parent} exist: {row.get('reason')}.")
            return True
        return NewTokens._is_written(row)

    @staticmethod
    def _is_written(row: Mapping[str, object]) -> bool:
        return bool(row.get("rev")) and not row.get("accepted")

    def _list_of(self, parent: Doc, file: Optional[Doc]) -> Tuple[List[Doc], str]:
        """The list of a parent, and why it cannot be read. Raises Unreachable."""
        name = new_tokens.FILE
        try:
            files = {name: file} if file else self._database.with_attachments(parent).get("_attachments") or {}
            return new_tokens.read_attachment(new_tokens.data_of(files), parent), ""
        except ValueError as error:
            return self._list_of(parent, None) if file else ([], str(error))  # the file may be of an earlier attempt

    def _make(self, tokens: Sequence[Doc]) -> Optional[List[Tuple[Doc, str]]]:
        """Make those of these tokens that do not exist. Returns those that cannot be made, and why; None: try again.

        Raises Unreachable.
        """
        not_made: List[Tuple[Doc, str]] = []
        for some in portions(tokens, size_of, BULK_BYTES):
            plan = new_tokens.Plan(some, self._database.read([token["_id"] for token in some]))
            not_made += plan.not_made
            if plan.new:
                refused = self._database.put_first_revisions(plan.new)
                if refused is None:
                    return None
                not_made += [(token, refused[token["_id"]]) for token in plan.new if token["_id"] in refused]
            if plan.replaced:
                rows = self._database.bulk(plan.replaced)[1]
                if not all(self._is_written(rows.get(token["_id"], {})) for token in plan.replaced):
                    return None  # somebody else changed it: read it again
        return not_made
