"""The answers of the page's routes, and the bodies of its actions.

Times are seconds since 1970. Text from tokens, pilots and Slurm is foreign: it is bounded here and must be shown as
text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

StateName = Literal["todo", "locked", "done", "error", "stateless"]


class Model(BaseModel):
    """What all models share."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class Counts(Model):
    """Tokens by state. ``stateless`` are in none. ``named``: tokens in states with names of their own, by state and name."""

    todo: int = 0
    locked: int = 0
    done: int = 0
    error: int = 0
    stateless: int = 0
    named: dict[str, dict[str, int]] = {}


# -- which batches there are ------------------------------------------------------------------------------------------


class RunBatch(Model):
    """A batch that a task instance names; its fields are the scope of the other routes. ``batch`` None: the whole pool.
    ``role``: what the task does with it: push, pilots, wait, collect. ``max_errors`` and ``expected`` are a wait's."""

    conn_id: str
    database: str
    batch: str | None
    label: str
    role: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    max_errors: float | None = None
    expected: int | None = None


class RunAnswer(Model):
    """The batches of a DAG run, or of one task instance."""

    batches: list[RunBatch]


class PoolInfo(Model):
    """A connection's pool. ``error`` says why it has no counts."""

    conn_id: str
    database: str
    host: str
    counts: Counts | None = None
    error: str | None = None


class PoolsAnswer(Model):
    """The pools of all connections of type ``picas`` that the user may read."""

    pools: list[PoolInfo]
    partial: bool = False


class BatchInfo(Model):
    """A batch of a pool. ``changed``: True if it is among those that changed last."""

    batch: str
    label: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    counts: Counts
    changed: bool = False


class BatchesAnswer(Model):
    """A page of the batches, those that changed last first."""

    batches: list[BatchInfo]
    next: str | None = None
    partial: bool = False


# -- one batch --------------------------------------------------------------------------------------------------------


class Rate(Model):
    """Tokens a second, measured over this number of tokens."""

    per_second: float
    tokens: int


class TimeLeft(Model):
    """Seconds left, with their uncertainty."""

    low: float
    high: float


class History(Model):
    """How many tokens ended in each step: ``[begin of the step, done, error]``. Steps without any are omitted."""

    step: int
    points: list[tuple[int, int, int]]


class Reason(Model):
    """Why Slurm lets jobs wait: its word, and what that means."""

    reason: str
    text: str
    jobs: int


class PilotsSummary(Model):
    """Pilots by what they do. ``source``: "slurm" if a wait records Slurm's answer, else "leases", which know nothing
    of pilots that wait. ``at``: when this was seen."""

    running: int = 0
    waiting: int = 0
    silent: int = 0
    ended: int = 0
    reasons: list[Reason] = []
    source: Literal["slurm", "leases"] = "leases"
    at: float | None = None


class CoreHours(Model):
    """What the pilots of the batch have used so far, and that by finished token."""

    total: float
    per_token: float | None = None


class Budget(Model):
    """How many tokens may end in error, and how many have."""

    allowed: int
    failed: int


class Allowed(Model):
    """Whether the user may do something, and if not, why."""

    allowed: bool
    why_not: str | None = None


class Actions(Model):
    """What the user may do with the batch."""

    rerun: Allowed
    release: Allowed
    drain: Allowed
    cancel: Allowed
    priority: Allowed
    archive: Allowed


class Building(Model):
    """CouchDB builds the index of the page's views: what comes from them is missing until then. ``percent``: of the
    changes that the index lacked, if the server says so."""

    percent: int | None = None


class ChainPlace(Model):
    """The place of a batch in a chain of stages: the ``batch`` that the chain begins with, and the ``stage`` that this
    one is; None if the chain begins with it."""

    batch: str
    stage: str | None = None


class ChainNode(Model):
    """A batch of a chain. ``counts`` None: the user may not see it. ``pending``: lists of new tokens that are to be carried
    out. ``growing``: more tokens may appear. ``groups``: those that its tokens are made from, as far as members name them,
    ``made`` of which have a token; None if it has none. ``at_least``: the members of a group that must have finished."""

    batch: str
    stage: str | None = None
    counts: Counts | None = None
    pending: int = 0
    growing: bool = False
    groups: int | None = None
    made: int | None = None
    at_least: float | None = None


class ChainEdge(Model):
    """Tokens of one batch make those of another; both are numbers of nodes. ``tokens``: made so far. ``group``: one for
    each group of the first batch's tokens."""

    begin: int
    end: int
    tokens: int = 0
    group: bool = False


class ChainAnswer(Model):
    """A chain of stages, in order. ``partial``: True if there are more groups than were counted."""

    nodes: list[ChainNode]
    edges: list[ChainEdge]
    partial: bool = False


class Overview(Model):
    """A batch at a glance. ``at``: when the counts were read. ``building``: why there is no history yet. ``chain``: of
    which the batch is a part. ``trouble``: why the answer may be old."""

    at: float
    counts: Counts
    expected: int | None = None
    rate: Rate | None = None
    time_left: TimeLeft | None = None
    history: History | None = None
    pilots: PilotsSummary
    core_hours: CoreHours | None = None
    budget: Budget | None = None
    views: Literal["page", "partial"]
    building: Building | None = None
    chain: ChainPlace | None = None
    trouble: str | None = None
    actions: Actions


class NodeTokens(Model):
    """How many tokens there are of a node."""

    node: str
    tokens: int


class Cause(Model):
    """Tokens in error with the same cause. ``id`` selects them in a filter or an action."""

    id: str
    cause: str
    tokens: int
    first: float | None = None
    last: float | None = None
    nodes: list[NodeTokens]
    sample: list[str]


class CausesAnswer(Model):
    """The causes, the most frequent first. ``read`` tokens in error were read; ``partial`` if there are more."""

    causes: list[Cause]
    read: int
    partial: bool


class TokenRow(Model):
    """A token in the table. ``name``: the name that the pool itself gives to its state."""

    id: str
    key: str
    state: StateName
    name: str | None = None
    node: str | None = None
    pilot: str | None = None
    job: str | None = None
    attempts: int = 0
    exit_code: str | None = None
    seconds: float | None = None
    started: float | None = None
    ended: float | None = None
    cause: str | None = None
    cause_id: str | None = None
    priority: float | None = None


class TokensAnswer(Model):
    """A page of tokens. ``partial``: the search ended before it had read all tokens that may match; ``next`` continues
    it. ``building``: why there are none in the order of their ends yet."""

    tokens: list[TokenRow]
    next: str | None = None
    partial: bool = False
    building: Building | None = None


class Attempt(Model):
    """One run of a token. The last one may still be going on."""

    number: int
    node: str | None = None
    pilot: str | None = None
    job: str | None = None
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    exit_code: str | None = None
    reason: str | None = None
    error: str | None = None
    logs: list[str] = []


class AttachmentInfo(Model):
    """An attachment. ``show``: how a browser may show it."""

    name: str
    bytes: int
    type: str
    show: Literal["text", "picture", "download"]


class Text(Model):
    """A value as text: JSON unless it was text. ``bytes``: its whole size, of which ``text`` may be the first part."""

    text: str
    bytes: int
    cut: bool


class TokenAnswer(Model):
    """Everything of a token. ``name``: the name that the pool itself gives to its state. ``fields``: those that are not
    shown elsewhere, one by one."""

    id: str
    key: str
    rev: str
    state: StateName
    name: str | None = None
    priority: float | None = None
    scrubs: int = 0
    cause: str | None = None
    input: Text | None = None
    output: Text | None = None
    error: Text | None = None
    fields: dict[str, Text]
    attempts: list[Attempt]
    earlier: int = Field(0, description="Attempts that the token does not keep any more.")
    attachments: list[AttachmentInfo]


class Now(Model):
    """A token that a pilot runs now. ``tail``: the last lines of its output."""

    token: str
    since: float | None = None
    progress: Any = None
    tail: str | None = None


class Pilot(Model):
    """A pilot by its lease, or, for pilots without one, by the tokens it holds. ``heard``: its last sign of life."""

    pilot: str
    submission: str | None = None
    job: str | None = None
    node: str | None = None
    state: Literal["idle", "working", "draining", "stopping", "silent", "ended", "unknown"]
    started: float | None = None
    heard: float | None = None
    ended: float | None = None
    done: int = 0
    failed: int = 0
    now: list[Now]


class Bar(Model):
    """One run of a token on the timeline. ``end`` is null while it runs."""

    pilot: str
    token: str
    start: float
    end: float | None = None
    state: Literal["done", "error", "locked"]


class PilotsAnswer(Model):
    """Pilots and bars of a timeline, bounded. ``at``: the database's time. ``building``: why there are no bars of finished
    runs yet."""

    at: float
    pilots: list[Pilot]
    bars: list[Bar]
    partial: bool = False
    building: Building | None = None


class Node(Model):
    """How many tokens of the batch ended on a node."""

    node: str
    done: int
    error: int


class NodesAnswer(Model):
    """Nodes, those with the most errors first. ``building``: why there are none yet."""

    nodes: list[Node]
    partial: bool = False
    building: Building | None = None


class WhyAnswer(Model):
    """Why a token, or with none the batch, does not run."""

    sentences: list[str]


# -- actions ----------------------------------------------------------------------------------------------------------

ActionName = Literal["rerun", "release", "drain", "cancel", "priority", "archive"]


class ActionBody(Model):
    """Which tokens: ``ids``, those in error with the ``cause`` of this id, or ``all``. Pilots: ``pilot`` names one whose
    tokens are released. ``priority``: the new one."""

    ids: list[Annotated[str, StringConstraints(max_length=1_000)]] | None = Field(None, max_length=10_000)
    cause: str | None = Field(None, max_length=200)
    all: bool = False
    pilot: str | None = Field(None, max_length=200)
    submission: str | None = Field(None, max_length=300)
    priority: float | None = None


class Plan(Model):
    """What an action would do. ``tasks``: the task instances that would be cleared."""

    title: str
    lines: list[str]
    tokens: int = 0
    tasks: list[str] = []
    possible: bool = True


class Link(Model):
    """A link to a page of Airflow, relative to its base path."""

    label: str
    href: str


class Done(Model):
    """What an action did."""

    text: str
    tokens: int = 0
    links: list[Link] = []
