"""Merges the revisions of tokens in conflict."""

from typing import Optional, Sequence, Set

from airflow_provider_picas.lifecycle.conflicts import merge
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.transitions import held_by_pilot
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.observer import Observer
from airflow_provider_picas.pilot.session import Session


class Conflicts:
    """Merges conflicting revisions of tokens, which result when nodes of a cluster did not see each other.

    Used by one thread.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._database = session.database
        self._observer = Observer(session)

    def settle(self, branches: Sequence[Doc]) -> Optional[Doc]:
        """Merge the revisions of a token. Returns the token; None: not yet possible. Raises Unreachable."""
        if len(branches) == 1:
            return branches[0]
        plan = merge(branches, self._may_run)
        if plan is None:
            return None
        winner = branches[0]
        if plan.new is not None:
            source = self._database.with_attachments(plan.source) if plan.source else {}
            new = plan.document(source.get("_attachments") or {})
            if plan.source:
                log(
                    f"{winner['_id']}: the result of claim {new.get('claim')} lost against another revision and is adopted."
                )
            row = self._database.bulk([new])[1].get(winner["_id"], {})
            if not row.get("rev") or row.get("accepted"):
                return None
            winner = dict(new, _rev=row["rev"])
        for doc in plan.losers:
            self._database.delete(doc)
        return winner

    def without(self, ids: Sequence[str]) -> Set[str]:
        """The tokens without conflicting revisions. The revisions of the others are merged if possible."""
        alone = set()
        for name, branches in self._database.branches(ids).items():
            if len(branches) == 1:
                alone.add(name)
            elif branches:
                self.settle(branches)  # the caller sees the result the next time
        return alone

    def _may_run(self, doc: Doc) -> bool:
        """True if a pilot may be running the token under this revision."""
        if not held_by_pilot(doc):
            return False
        pilot = doc["pilot"]
        if pilot == self._session.me.pilot:
            return doc["claim"] in self._session.held()
        return self._observer.check({pilot: number(doc.get("lock"))})[pilot].death is None
