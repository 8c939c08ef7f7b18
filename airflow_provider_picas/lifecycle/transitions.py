"""The transitions of a token, and the changes that a pilot writes into a claimed token, as data."""

import base64
import json
import re
import time
import uuid
from typing import Any, Dict, FrozenSet, Iterable, Mapping, NamedTuple, Optional, Sequence, Tuple

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.attempts import (
    MAX_ATTEMPTS,
    RELEASED,
    add_attempt,
    attempt_number,
    attempts_by_kind,
    log_number,
    reason_of,
)
from airflow_provider_picas.lifecycle.exit_codes import EXIT_BAD_OUTPUT, EXIT_TIME_LIMIT
from airflow_provider_picas.lifecycle.javascript import equals_zero
from airflow_provider_picas.lifecycle.json_values import Doc, list_or_empty, number
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.profile import FOREIGN_JOB_FIELDS, JOB_FIELD, PICAS, RESULT, Profile
from airflow_provider_picas.lifecycle.states import is_finished

# Fields that the PiCaS client writes when it locks a token and removes when it scrubs it (its jobid.py).
JOB_ID_FIELDS = (JOB_FIELD, *FOREIGN_JOB_FIELDS)
_OR_NONE = (dict, type(None))
_TODO: Doc = {"lock": 0, "done": 0, "hostname": "", "exit_code": ""}  # a token that is released or reset
_PILOT_FIELDS = ("pilot", "claim", "seconds")  # of this package's pilots, about one attempt
_ERROR_TEXT = 2000  # characters of an error that an attempt keeps


def held_by_pilot(doc: Doc) -> bool:
    """True if a pilot of this package holds a locked token: its claim contains the time of its lock.

    A token that was reset by hand and locked by a PiCaS client may still have the fields ``pilot`` and ``claim``.
    """
    pilot, claim = doc.get("pilot"), doc.get("claim")
    if not (pilot and isinstance(pilot, str) and isinstance(claim, str) and "lock" in doc):
        return False
    return claim.rpartition("-")[2] == str(doc["lock"])


class Transition(NamedTuple):
    """A transition from one state to another. An empty state means that the document does not exist."""

    name: str
    before: Tuple[str, ...]
    after: str
    when: str


# All of them: docs/explanation/lifecycle.md is drawn from this table, and a test runs the code for each entry.
TRANSITIONS = (
    Transition("push", ("",), "todo", "a push writes the token"),
    Transition("claim", ("todo",), "locked", "a pilot takes the token"),
    Transition("finish", ("locked",), "done", "the command ends with exit code 0"),
    Transition("fail", ("locked",), "error", "the command fails and may not run again"),
    Transition("retry", ("locked",), "todo", "the command fails and may run again"),
    Transition("release", ("locked",), "todo", "the pilot stops before the token is finished"),
    Transition("reap", ("locked",), "todo", "the pilot is dead"),
    Transition("give up", ("locked",), "error", "the pilot is dead, as others before it"),
    Transition("push again", ("error",), "todo", "a push finds the token in error"),
    Transition("reset", ("locked", "done", "error"), "todo", "a person or a task resets the token"),
    Transition("delete", ("todo", "locked", "done", "error"), "", "a person or a task deletes or archives the token"),
)


def lock_of_claim(doc: Mapping[str, Any]) -> Optional[int]:
    """When a pilot of this package made the token's claim; None if the token has no claim."""
    claim = re.match(r"[0-9a-f]{16}-([0-9]{1,15})\Z", str(doc.get("claim")))
    return int(claim.group(1)) if claim else None


def claim(doc: Doc, lock: int, pilot: str, hostname: str, job: Optional[str], profile: Profile = PICAS) -> Doc:
    """The token as claimed by a pilot. ``lock``: now, by the database's clock. The claim contains it: see
    ``held_by_pilot``."""
    mark = f"{uuid.uuid4().hex[:16]}-{lock}"
    claimed = dict(with_earlier_attempt(doc, profile), lock=lock, hostname=hostname, pilot=pilot, claim=mark)
    if job:
        claimed[profile.job_field] = job
    if not equals_zero(claimed.get("done")):
        claimed["done"] = 0  # a pool of another shape may not use it; a result is refused if the token has an end
    claimed.update(profile.written("claim"))
    return claimed


def with_earlier_attempt(doc: Doc, profile: Profile = PICAS) -> Doc:
    """A waiting token, with the fields of an earlier attempt by a pilot of this package moved to its attempts.

    PiCaS's own tools, and people who edit documents, reset a token and leave our fields in it.
    """
    lock = lock_of_claim(doc)
    if lock is None:
        return doc
    fields = (*_PILOT_FIELDS, *job_fields(profile))
    attempt = {name: doc[name] for name in fields if doc.get(name)}
    attempt.update(_last_error(doc))
    new = {name: value for name, value in doc.items() if name not in fields}
    if "error" in doc:
        new["error"] = []
    new["attempts"] = add_attempt(doc, dict(attempt, lock=lock, reason="reset: not by this package"))
    return new


class Token:
    """A token that this pilot has claimed. ``doc`` has the revision of the claim: the fence."""

    def __init__(self, doc: Doc, profile: Profile = PICAS) -> None:
        self.doc = doc
        self.profile = profile  # the shape of its pool
        self.id: str = doc["_id"]
        self.claim: str = doc["claim"]
        self.attempt = attempt_number(doc)
        self.taken = time.monotonic()
        self.lost = False

    def is_claimed_in(self, doc: Doc) -> bool:
        """True if a document has this claim and its lock. A PiCaS client that locks the token does not remove the claim."""
        return bool(doc.get("claim") == self.claim and doc.get("lock") == self.doc["lock"])


def _changed(doc: Mapping[str, Any], set: Doc, unset: Iterable[str], attempt: Optional[Doc] = None) -> Doc:
    """The token with fields set and removed. With the record of an ``attempt``, it is also counted, as PiCaS's scrub
    does."""
    new = {name: value for name, value in doc.items() if name not in unset}
    new.update(set)
    if attempt is not None:
        new["attempts"] = add_attempt(new, attempt)
        new["scrub_count"] = int(number(doc.get("scrub_count"))) + 1
        if "error" in new:
            new["error"] = []  # the last one is in the attempt; PiCaS would let the list grow forever
    return new


_CHANGE: Dict[str, Any] = {  # types of the parts of a change in a file
    "kind": str, "token": str, "claim": str, "set": dict, "unset": list, "error": _OR_NONE, "attempt": _OR_NONE, "number": int,
    "attachments": dict,
}  # fmt: skip


class Change:
    """What to write into a claimed token, as data. It also applies to a later revision, and can be saved in a file."""

    def __init__(
        self,
        kind: str,  # done, failed (for good), retried, requeued, scrubbed (reaped), released (never started)
        token: str,
        claim: str,
        lock: Any,
        set: Doc,
        unset: Sequence[str] = (),
        error: Optional[Doc] = None,  # appended to the token's list
        attempt: Optional[Doc] = None,  # appended to the token's list: see ``_changed``
        number: int = 0,  # of the attempt: logs of attempts long before it are dropped
        attachments: Optional[Dict[str, Doc]] = None,
        failure: Optional[Doc] = None,  # fields to set if the result becomes a failure: those of the pool's profile
    ) -> None:
        self.kind, self.token, self.claim, self.lock = kind, token, claim, lock
        self.set, self.unset, self.error, self.attempt = set, list(unset), error, attempt
        self.number, self.attachments = number, attachments or {}
        self.failure = failure or {}
        self.doc: Optional[Doc] = None  # latest known revision of the token

    @classmethod
    def of(cls, kind: str, doc: Doc, **parts: Any) -> "Change":
        """A change of a token as this pilot, or a dead one, claimed it."""
        change = cls(kind, doc["_id"], doc["claim"], doc["lock"], **parts)
        change.doc = doc
        return change

    def apply(self) -> Doc:
        """The latest known revision with this change."""
        doc = self.doc or {}
        new = _changed(doc, self.set, self.unset, self.attempt)
        if self.error is not None and self.attempt is None:
            new["error"] = [*list_or_empty(doc.get("error"))[-19:], self.error]
        if "_attachments" in doc or self.attachments:
            oldest = self.number - MAX_ATTEMPTS
            kept = {name: stub for name, stub in (doc.get("_attachments") or {}).items() if self._keeps(name, oldest)}
            new["_attachments"] = dict(kept, **self.attachments)
        return new

    def _keeps(self, name: str, oldest: int) -> bool:
        if name == new_tokens.FILE and new_tokens.FIELD in self.unset:
            return False  # of an earlier attempt
        return not 0 < log_number(name) < oldest

    def decide(self, doc: Optional[Doc]) -> str:
        """The decision on this change by the current document: it "landed", may be applied ("apply"), or is "refused"."""
        if not doc:
            return "refused"
        if self.attempt is not None and self.attempt in list_or_empty(doc.get("attempts")):
            return "landed"
        if doc.get("claim") != self.claim:
            # Already released, by this change or by a reaper: both are fine.
            waits = equals_zero(doc.get("lock")) and equals_zero(doc.get("done"))
            released = waits and "claim" not in doc and self.set.get("lock") == 0
            return "landed" if released else "refused"
        final = dict({"lock": self.lock}, **self.set)
        # A PiCaS client that locked the token does not remove the claim, and may have ended in the same second.
        shown = [name for name in ("lock", "done", "exit_code", "seconds") if name in final]
        if final.get("done") and all(doc.get(name) == final[name] for name in shown):
            return "landed"
        return "apply" if doc.get("lock") == self.lock and equals_zero(doc.get("done")) else "refused"

    def decide_among(self, branches: Sequence[Doc]) -> str:
        """The decision by the revisions of a token in conflict, the winner first. "apply": ``doc`` is the one to write
        to.

        "lost": the result is in a revision that lost against one without a result, which has to adopt it.
        """
        decisions = [self.decide(doc) for doc in branches]
        if "landed" in decisions:
            if decisions[0] == "landed" or not self.set.get("done"):
                return "landed"
            return "refused" if is_finished(branches[0]) else "lost"
        if "apply" in decisions:
            self.doc = branches[decisions.index("apply")]
            return "apply"
        return "refused"

    def shrink(self) -> bool:
        """Drop a part of a change that the database refuses; False if there is nothing to drop."""
        logs = [name for name in self.attachments if name != new_tokens.FILE]
        if logs:
            self.attachments = {name: file for name, file in self.attachments.items() if name not in logs}
            return True
        if self.attachments:
            self.attachments = {}
            self._fail_without(new_tokens.FIELD, "list of new tokens")
            return True
        name = RESULT if RESULT in self.set and "output" in self.failure else "output"
        if name in self.set:
            self._fail_without(name, "output")
            return True
        return False

    def _fail_without(self, field: str, what: str) -> None:
        self.set.pop(field, None)
        self.unset.append(field)
        self.kind = "failed"
        self.set.update(self.failure, exit_code=EXIT_BAD_OUTPUT)
        self.error = {"time": self.set.get("done"), "message": f"The database refused the token with its {what}."}

    def to_json(self) -> Doc:
        """The change as JSON, for a file."""
        # Pilots of the version before do not know ``failure``.
        return {name: value for name, value in vars(self).items() if name != "doc" and (value or name != "failure")}

    @classmethod
    def from_json(cls, values: Doc) -> "Change":
        """Read the change in a file. Raises ValueError or TypeError if the file does not contain one."""
        if not isinstance(values, dict) or any(not isinstance(values.get(name), of) for name, of in _CHANGE.items()):
            raise ValueError("not a change of a token")
        if not isinstance(values.get("failure"), _OR_NONE):
            raise ValueError("not a change of a token")
        return cls(**values)


def reason_of_reaping(doc: Doc, claim: str) -> str:
    """Why the token was reaped from the pilot of this claim; empty if it was not."""
    attempts = [attempt for attempt in list_or_empty(doc.get("attempts")) if isinstance(attempt, dict)]
    reasons = [str(attempt.get("reason")) for attempt in attempts if attempt.get("claim") == claim]
    return next((reason for reason in reasons if reason.startswith("reaped:")), "")


def job_fields(profile: Profile) -> Tuple[str, ...]:
    """The fields that name the job of a token's holder."""
    return JOB_ID_FIELDS if profile.job_field == JOB_FIELD else (profile.job_field, *JOB_ID_FIELDS)


def release(token: Token) -> Change:
    """Release a token that was never started: this does not count as an attempt."""
    back = dict({"lock": 0, "done": 0, "hostname": ""}, **token.profile.written("release"))
    return Change.of("released", token.doc, set=back, unset=("pilot", "claim", *job_fields(token.profile)))


def scrub(kind: str, doc: Doc, reason: str, now: int, known: Doc, profile: Profile = PICAS, **parts: Any) -> Change:
    """Release a token that was started. ``known`` are more fields of the attempt."""
    of_the_claim = ("pilot", "claim", *job_fields(profile))
    fields = ("lock", "hostname", *of_the_claim)
    attempt = {name: doc[name] for name in fields if doc.get(name)}
    attempt.update(known, done=now, reason=reason)
    back = dict(_TODO, **profile.written("release"))
    return Change.of(kind, doc, set=back, unset=of_the_claim, attempt=attempt, **parts)


def reap(doc: Doc, cause: str, max_scrubs: int, now: int, profile: Profile = PICAS) -> Change:
    """Release the token of a dead pilot, or put it in error if this has happened too often."""
    deaths = attempts_by_kind(doc)["reaped"]
    if deaths < max_scrubs:
        return scrub("scrubbed", doc, "reaped: " + cause, now, {"error": cause}, profile)
    message = f"Given up: {deaths + 1} pilots died or fell silent while they held it; the last time: {cause}."
    # As the PiCaS client's Task.error().
    final = dict({"lock": 99, "done": 99, "exit_code": ""}, **profile.written("failed"))
    return Change.of("failed", doc, set=final, unset=("pilot",), error={"time": now, "message": message})


class Ended(NamedTuple):
    """How a command ended. ``how``: "exit", "time limit", or why the pilot stopped it."""

    how: str
    code: int
    seconds: float
    out: bytes = b""
    err: bytes = b""
    output: Any = None
    has_output: bool = False
    fault: Optional[str] = None  # why the output file is invalid
    made: new_tokens.Made = new_tokens.Made()


def conclude(token: Token, ended: Ended, config: Config, now: int) -> Change:
    """What to write into a token whose command has ended."""
    doc, kinds, profile = token.doc, attempts_by_kind(token.doc), token.profile
    parts: Doc = {"number": token.attempt, "attachments": _logs(token.attempt, ended)}
    known: Doc = {"seconds": round(ended.seconds, 3)}
    if ended.how not in ("exit", "time limit"):
        return scrub("requeued", doc, f"{RELEASED}: {ended.how}", now, dict(known, error=ended.how), profile, **parts)
    code, message = _outcome(ended)
    failed = dict(known, exit_code=code, error=message)
    if code in config.stop_exit_codes and kinds["released"] < max(1, config.max_scrubs):
        return scrub("requeued", doc, f"{RELEASED}: exit code {code} stops the pilot", now, failed, profile, **parts)
    retries = min(number(doc.get("max_retries"), config.max_retries), MAX_ATTEMPTS - 1)
    if code != 0 and code not in config.no_retry_exit_codes and kinds["failed"] < retries:
        return scrub("retried", doc, f"failed: {message}", now, failed, profile, **parts)
    event = "failed" if code else "done"
    written, output_field = profile.written(event, code), profile.output_field
    final: Doc = dict(known, done=now, exit_code=code)
    if ended.has_output:
        final[output_field] = ended.output
    final.update(written)
    if message:
        parts["error"] = {"time": now, "message": message}
    # A reset leaves an earlier attempt's output in the token. It must not pass for the output of this one.
    unset = ["pilot"] if ended.has_output else ["pilot", output_field]
    if new_tokens.is_ours(doc.get(new_tokens.FIELD)):
        unset.append(new_tokens.FIELD)
    if code == 0 and ended.made.tokens:
        final[new_tokens.FIELD] = new_tokens.field(ended.made.tokens, token.claim, profile.batch_of(doc))
        parts["attachments"][new_tokens.FILE] = new_tokens.attachment(ended.made.tokens)
    failure = profile.written("failed", EXIT_BAD_OUTPUT)
    return Change.of(event, doc, set=final, unset=unset, failure=failure, **parts)


def _outcome(ended: Ended) -> Tuple[int, str]:
    """The token's exit code, and the error."""
    if ended.how == "time limit":
        return EXIT_TIME_LIMIT, f"stopped at its time limit after {ended.seconds:.1f} s"
    if ended.code == 0:
        fault = ended.fault or ended.made.fault
        return (EXIT_BAD_OUTPUT, fault) if fault else (0, "")
    last = ended.err.decode("utf-8", "replace").strip().rpartition("\n")[2][-300:]
    return ended.code, f"exit code {ended.code}" + (f": {last}" if last else "")


def _logs(attempt: int, ended: Ended) -> Dict[str, Doc]:
    return {
        f"attempt-{attempt}.{name}": {"content_type": "text/plain", "data": base64.b64encode(data).decode("ascii")}
        for name, data in (("out", ended.out), ("err", ended.err))
        if data
    }


def attempt(document: Mapping[str, Any], reason: str, profile: Profile = PICAS) -> Doc:
    """The record of an attempt that is kept when its token is released, with the ``reason`` of the release."""
    fields = ["lock", "done", "exit_code", "hostname", *job_fields(profile)]
    if str(document.get("claim")).rpartition("-")[2] == str(document.get("lock")):
        fields += _PILOT_FIELDS  # else they belong to an earlier attempt: PiCaS clients do not remove them
    kept = {field: document[field] for field in fields if document.get(field) not in (None, "")}
    return {**kept, **_last_error(document), "reason": reason}


def _last_error(document: Mapping[str, Any]) -> Doc:
    """The token's last error as a string, for an attempt."""
    errors = list_or_empty(document.get("error"))
    if not errors:
        return {}
    text = errors[-1] if isinstance(errors[-1], str) else json.dumps(errors[-1], ensure_ascii=False, default=str)
    return {"error": text[:_ERROR_TEXT]}


def for_display(document: Mapping[str, Any], profile: Profile = PICAS) -> Doc:
    """The token, for people: without fields that an earlier attempt by a pilot of this package has left in it, and with
    reasons in the words of this version.

    PiCaS's own tools reset tokens, and its pilots lock them, without changing the fields of this package.
    """
    left: FrozenSet[str] = frozenset()
    lock = lock_of_claim(document)
    if lock is not None:
        if profile.state_of(document) == "todo":
            left = frozenset([*job_fields(profile), *_PILOT_FIELDS, "error"])
        elif document.get("lock") != lock:
            left = frozenset(_PILOT_FIELDS)
    shown = {field: value for field, value in document.items() if field not in left}
    if isinstance(shown.get("attempts"), list):
        shown["attempts"] = [_attempt_for_display(attempt) for attempt in shown["attempts"]]
    return shown


def _attempt_for_display(attempt: Any) -> Any:
    return (
        dict(attempt, reason=reason_of(attempt))
        if isinstance(attempt, dict) and isinstance(attempt.get("reason"), str)
        else attempt
    )


def scrubbed(document: Mapping[str, Any], reason: str, profile: Profile = PICAS) -> Doc:
    """The token, todo again, with its attempt in ``attempts`` and its attachments (stubs)."""
    back = dict(_TODO, **profile.written("release"))
    gone = (*job_fields(profile), *_PILOT_FIELDS)
    return _changed(document, back, gone, attempt(document, reason, profile))


def errored(document: Mapping[str, Any], message: str, now: int, profile: Profile = PICAS) -> Doc:
    """The token in state error, as the PiCaS client writes one (``Task.error``), with a message of ours."""
    errors = document.get("error")
    token = {key: value for key, value in document.items() if key not in {"pilot", "claim"}}
    token.update(profile.written("failed"), lock=99, done=99)
    token["error"] = [*(errors if isinstance(errors, list) else []), {"time": now, "message": message}]
    if profile.state_of(token) != "error":
        token["exit_code"] = ""  # a remaining 0 would make it done
    return token
