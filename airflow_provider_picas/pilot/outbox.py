"""Results that could not be sent, in files of the submission's folder."""

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from typing import Iterator, List, Optional, Tuple
from urllib.parse import quote

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.log import Background, LogOnce, log


def _names(folder: str, pattern: str) -> List[str]:
    """The names in a folder that match a pattern, sorted; none if the folder cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if re.match(pattern, name, re.DOTALL))
    except OSError:
        return []


def earlier_submissions(folder: str) -> List[str]:
    """The folders of earlier submissions of the same task: they are beside this one, with another number at the end."""
    base, name = os.path.split(folder)
    key = re.match(r"(.+\.)[0-9]+\Z", name)
    names = _names(base, re.escape(key.group(1)) + r"[0-9]+\Z") if key else []
    return [os.path.join(base, other) for other in names if other != name]


class Outbox:
    """Files in the submission's folder: ``unsent/`` for another pilot or the wait to send, ``refused/`` as a record."""

    def __init__(self, folder: str, database: str) -> None:
        self._folder = folder
        self._database = database
        self._earlier = earlier_submissions(folder)
        self._log_once = LogOnce()  # for messages about remaining files
        self._files = Background("outbox", self._write_and_remove)
        self._parents: List[str] = []  # tokens whose results were sent and make new tokens
        self.remaining: List[str] = []  # tokens whose results exist but could not be sent the last time

    def keep(self, change: Change, kind: str = "unsent") -> None:
        """Write a change to a separate file. Raises OSError."""
        path = self._path(change, kind)
        folder = os.path.dirname(path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with open(descriptor, "w") as file:
                json.dump({"format": 1, "database": self._database, "change": change.to_json()}, file)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, path)
        except Exception:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _path(self, change: Change, kind: str) -> str:
        name = re.sub(r"^\.", "%2E", quote(change.token, safe=""))  # not hidden
        if len(name) > 150:
            name = name[:100] + hashlib.sha256(change.token.encode("utf-8")).hexdigest()
        return os.path.join(self._folder, kind, f"{name}-{quote(change.claim, safe='')}.json")

    def secure(self, change: Change) -> None:
        """Queue a change to be kept while this pilot tries to send it: the pilot may be killed before it can. Never
        blocks or fails.
        """
        self._files.add((change, "unsent"))

    def forget(self, change: Change) -> None:
        """Queue the removal of a file that ``secure`` wrote. Never blocks or fails."""
        self._files.add((change, ""))

    def record(self, change: Change) -> None:
        """Queue a refused change to be kept. Never blocks or fails."""
        if change.kind != "released":  # a token that was never started has no result
            self._files.add((change, "refused"))

    def flush(self, seconds: float) -> None:
        """Wait until the queued changes are kept or removed, at most ``seconds``."""
        if not self._files.flush(seconds):
            log(f"Results cannot be kept in {self._folder}: writing to it takes too long.")

    def _write_and_remove(self, queued: List[Tuple[Change, str]], _dropped: int) -> None:
        for change, kind in queued:
            try:
                if kind:
                    self.keep(change, kind)
                else:
                    with suppress(FileNotFoundError):  # another pilot or the wait has sent it
                        os.unlink(self._path(change, "unsent"))
            except Exception as error:  # of any kind: the other changes must not be lost with it
                what = "kept in" if kind else "removed from"
                log(f"The result of {change.token} cannot be {what} {self._folder}/{kind or 'unsent'}: {error}.")

    def send(self, database: Database) -> int:
        """Send unsent results of earlier pilots. Returns the number of tokens that now have them. Raises Unreachable."""
        sent, self.remaining = 0, []
        for path in self._unsent():
            change = self._read(path)
            if change is None:
                continue
            if not database.quorum.holds():  # the data may come from a single node
                self.remaining.append(change.token)
                continue
            try:
                decision = self._send_one(database, change)
            except Unreachable as error:
                if not error.status:
                    raise
                self.remaining.append(change.token)  # the others may succeed
                self._log_once(f"{path} will be sent later: {error}.")
                continue
            what = "release" if change.kind == "released" else "result"
            done = "written" if decision == "landed" else decision
            log(f"Sending the {what} of {change.token}, which an earlier pilot could not send: {done}.")
            with suppress(OSError):
                if decision == "refused" and change.kind != "released":
                    self.keep(change, "refused")
                os.unlink(path)
            sent += decision == "landed"
            if decision == "landed" and new_tokens.FILE in change.attachments:
                self._parents.append(change.token)
        return sent

    def take_parents(self) -> List[str]:
        """Tokens whose results were sent since the last call, and whose new tokens are to be made."""
        parents, self._parents = self._parents, []
        return parents

    def _unsent(self) -> Iterator[str]:
        for folder in [self._folder, *self._earlier]:
            unsent = os.path.join(folder, "unsent")
            yield from (
                os.path.join(unsent, name) for name in _names(unsent, r".*\.json\Z")
            )  # temporary files do not have this suffix

    def _read(self, path: str) -> Optional[Change]:
        """The change in a file; None if the file is gone or is not a result for this database."""
        try:
            with open(path) as file:
                content = json.load(file)
            change = Change.from_json(content["change"])
            return change if content["database"] == self._database else None
        except FileNotFoundError:
            return None  # another pilot sent it
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._log_once(f"{path} does not contain a result: {error}.")
            return None

    @staticmethod
    def _send_one(database: Database, change: Change) -> str:
        for _ in range(10):
            branches = database.branches([change.token])[change.token]
            decision = change.decide_among(branches)
            if decision == "lost":
                raise Unreachable("its token has conflicting revisions, and another one is current", 409)
            if decision != "apply":
                return decision
            _, rows = database.bulk([change.apply()])
            row = rows.get(change.token, {})
            if row.get("accepted"):
                raise Unreachable(f"{database.place} answers 202: too few of its nodes stored it", 202)
            if row.get("rev"):
                return "landed"
            if not rows and not change.shrink():
                break
        return "refused"
