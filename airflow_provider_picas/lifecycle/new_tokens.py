"""Tokens that make tokens: a command names new tokens, and the list becomes part of its own token, the parent.

The list is written together with the parent's result: an attempt whose result is refused, or that failed, has none. It
is carried out afterwards, by whoever is there: the pilot, another pilot, or a wait. All of them may do it at the same time,
or again: the first revision of a new token follows from its parent's claim and its id, so writing it twice changes nothing,
even if the token has been deleted since.
"""

import base64
import hashlib
import json
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from airflow_provider_picas.lifecycle.ids import is_stage, stage_batch, token_key
from airflow_provider_picas.lifecycle.json_values import Doc, number, parse_value
from airflow_provider_picas.lifecycle.profile import FOREIGN_JOB_FIELDS, JOB_FIELD, PICAS, Profile

FILE = "tokens.jsonl"  # the file that a command writes, and the attachment of the parent
FIELD = "new_tokens"  # of the parent
MOST_TOKENS = 10_000  # that one command may make
MOST_BYTES = 4_000_000  # of its file
LINE_BYTES = 1_000_000
GROUP_LENGTH = 200  # characters
MOST_REASONS = 20  # that the parent keeps of why tokens could not be made

NEW: Doc = {"lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": ""}
_OWNED = frozenset({
    "type", *NEW, JOB_FIELD, *FOREIGN_JOB_FIELDS, "batch", "push", "ordinal", "pilot", "claim", "seconds", "attempts", "error",
    "output", "stage", "parent", "parent_claim", "parent_batch", FIELD, "group_of", "group_name", "members_ended", "late_members",
})  # fmt: skip


class Made(NamedTuple):
    """The tokens that a command made, and why its file is invalid."""

    tokens: Sequence[Doc] = ()
    fault: Optional[str] = None


def read_list(data: bytes, parent: Doc, stages: Optional[Mapping[str, str]], profile: Profile = PICAS) -> Made:
    """Read the file of the command that ran ``parent``, a claimed token. ``stages``: the batch of each stage; None: any
    stage, with a batch that follows from the parent's."""
    tokens: List[Doc] = []
    lines: Dict[str, int] = {}  # by id
    for place, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            token = _new_token(line, parent, stages, profile)
            if token["_id"] in lines:
                raise ValueError(f"names the same token as line {lines[token['_id']]}")
        except ValueError as error:
            return Made((), f"line {place} of {FILE} {error}")
        lines[token["_id"]] = place
        tokens.append(token)
        if len(tokens) > MOST_TOKENS:
            return Made((), f"{FILE} names more than {MOST_TOKENS:,} tokens")
    return Made(tokens)


def _new_token(line: bytes, parent: Doc, stages: Optional[Mapping[str, str]], profile: Profile) -> Doc:
    """The token that a line names. Raises ValueError, to be read after the number of the line."""
    if len(line) > LINE_BYTES:
        raise ValueError(f"has more than {LINE_BYTES:,} bytes: store large inputs elsewhere")
    fields = parse_value(line)
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    stage, key = fields.pop("stage", None), fields.pop("key", None)
    if not is_stage(stage):
        raise ValueError(f"has the stage {stage!r:.80}: a name of letters, digits, '-' and '_' is needed, up to 30")
    if stages is not None and stage not in stages:
        raise ValueError(f"has the unknown stage {stage!r}: the stages are {', '.join(sorted(stages)) or 'none'}")
    batch = profile.batch_of(parent)
    if stages is None and batch is None:
        raise ValueError("cannot become a token: its parent is in no batch")
    try:
        key = token_key(key)
    except ValueError:
        raise ValueError(f"has the key {key!r:.80}: a non-empty string or a whole number is needed") from None
    reserved = next((name for name in fields if name.startswith("_") or name in _OWNED), None)
    if reserved is not None:
        raise ValueError(f"has the field {reserved!r:.80}, which CouchDB, PiCaS or this provider fills in")
    if isinstance(fields.get("priority", 0), bool) or not isinstance(fields.get("priority", 0), (int, float)):
        raise ValueError(f"has the priority {fields['priority']!r:.80}, which is not a number")
    if "group" in fields:
        fields["group"] = _group(fields["group"])
    batch = stages[stage] if stages is not None else stage_batch(str(batch), stage)
    own = dict({"batch": batch, "stage": stage}, **_origin(parent, profile))
    return dict(NEW, **{"_id": f"{batch}:{key}", **own, **fields, **profile.fields_of_new(batch)})


def _origin(parent: Doc, profile: Profile) -> Doc:
    """Where a new token comes from."""
    found = {"parent": parent["_id"], "parent_claim": parent["claim"]}
    batch = profile.batch_of(parent)
    if profile.batch_field is not None and batch is not None:
        found["parent_batch"] = batch  # the parent's id does not name it
    return found


def _group(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not 0 < len(str(value)) <= GROUP_LENGTH:
        raise ValueError(f"has the group {value!r:.80}: a string of up to {GROUP_LENGTH} characters is needed")
    return str(value)


def attachment(tokens: Sequence[Doc]) -> Doc:
    """The list, to be attached to the parent."""
    lines = "".join(json.dumps(token, separators=(",", ":")) + "\n" for token in tokens)
    return {"content_type": "application/x-ndjson", "data": base64.b64encode(lines.encode("ascii")).decode("ascii")}


def field(tokens: Sequence[Doc], claim: str, batch: Optional[str]) -> Doc:
    """The field of the parent that says that the list is to be carried out. ``claim``: of the attempt that named them.
    ``batch``: of the parent."""
    return {"pending": True, "tokens": len(tokens), "claim": claim, "batch": batch}


def is_ours(value: Any) -> bool:
    """True if the field of a token was written by a pilot."""
    return isinstance(value, dict) and isinstance(value.get("pending"), bool) and "claim" in value


def is_pending(doc: Mapping[str, Any]) -> bool:
    """True if the list of a token is to be carried out: its accepted attempt has named tokens."""
    found: Any = doc.get(FIELD)
    if not is_ours(found) or found["pending"] is not True or not number(doc.get("done")) > 0:
        return False
    claim = doc.get("claim")  # a PiCaS client that ran the token after a reset leaves an earlier claim in it
    return found["claim"] == claim and str(claim).rpartition("-")[2] == str(doc.get("lock"))


def data_of(files: Mapping[str, Doc]) -> bytes:
    """The content of the list among the attachments of a parent. Raises ValueError."""
    if FILE not in files:
        raise ValueError(f"it has no attachment {FILE}")
    return base64.b64decode(files[FILE]["data"])


def read_attachment(data: bytes, parent: Doc) -> List[Doc]:
    """The tokens in the list of a parent. Raises ValueError if a pilot did not write it for the parent's result."""
    tokens = [parse_value(line) for line in data.split(b"\n") if line.strip()]
    for token in tokens:
        own = {"parent": parent["_id"], "parent_claim": parent["claim"], **NEW}
        if not isinstance(token, dict) or any(token.get(name) != value for name, value in own.items()):
            raise ValueError(f"{FILE} of {parent['_id']} is not the list of its result")
        if not isinstance(token.get("_id"), str) or PICAS.batch_of(token) is None or "_rev" in token:
            raise ValueError(f"{FILE} of {parent['_id']} holds something that is not a new token")
    return tokens


def first_revision(token: Doc) -> str:
    """The first revision of a new token: the same for everybody who carries out the list."""
    parts = (token["parent"], token["parent_claim"], token["_id"])
    return "1-" + hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()[:32]


class Plan:
    """What to write so that the tokens of a list exist, given what exists.

    A token of an earlier attempt of the same parent, which was reset, is replaced. One that another parent made stays.
    If two parents name the same token, the first one makes it.
    """

    def __init__(self, tokens: Sequence[Doc], present: Mapping[str, Optional[Doc]]) -> None:
        self.new: List[Doc] = []  #: to be written with ``new_edits`` false
        self.replaced: List[Doc] = []  #: to be written over the present revision
        self.not_made: List[Tuple[Doc, str]] = []  #: with the reason
        makers: Dict[str, Any] = {}
        for token in tokens:
            there = present.get(token["_id"])
            if there is None and makers.setdefault(token["_id"], token["parent"]) != token["parent"]:
                self.not_made.append((token, f"it exists already, from {makers[token['_id']]}"))
            elif there is None:
                self.new.append(dict(token, _rev=first_revision(token)))
            elif there.get("parent") != token["parent"]:
                self.not_made.append((token, f"it exists already, from {there.get('parent') or 'a push'!s:.200}"))
            elif _time_of(there.get("parent_claim")) < _time_of(token["parent_claim"]):
                self.replaced.append(dict(token, _rev=there["_rev"]))


def _time_of(claim: Any) -> int:
    digits = str(claim).rpartition("-")[2]
    return int(digits) if digits.isdigit() and len(digits) < 16 else 0


def carried_out(parent: Doc, not_made: Mapping[str, str]) -> Doc:
    """The parent, whose list has been carried out."""
    found = dict(parent[FIELD], pending=False)
    if not_made:
        found["not_made"] = len(not_made)
        found["reasons"] = dict(sorted(not_made.items())[:MOST_REASONS])
    return dict(parent, **{FIELD: found})
