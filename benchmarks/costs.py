"""The server's CPU for each kind of request that pilots and waits send: the input of ``benchmarks.simulation``.

Figures are milliseconds of CPU of CouchDB and its children, which a loaded machine changes little. Needs an Apache
CouchDB on this machine.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from airflow_provider_picas.couchdb.http import Request, json_body
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.ids import lease_id
from airflow_provider_picas.tokens import documents, views
from benchmarks.measure import Result
from benchmarks.server import CONN_ID, Server

TOKENS = 20_000
BATCH = "costs"
TIMES = 100  # requests in one measurement
PORTION = 200  # the most tokens of a claim


def run(server: Server, pairs: int) -> Iterator[Result]:
    """The cost of each kind of request, as the median of ``pairs`` measurements taken in turns."""
    if server.cpu() is None:
        raise RuntimeError("The costs need a CouchDB on this machine.")
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(pairs):
        with server.pool(views=True):  # a new one each time: the measurements change a part of its tokens
            costs = _Costs(server, PicasHook(CONN_ID))
            for kind, measure in KINDS.items():
                found[kind].append(measure(costs) * 1_000)
    for kind, values in found.items():
        yield Result(kind, {"means": MEANING[kind.split()[0]]}, round(median(values), 2), unit="ms CPU")


MEANING = {
    "lease": "a pilot renews its lease",
    "flag": "a pilot reads a flag that does not exist",
    "rows": "this number of waiting tokens is read from the view, which is up to date",
    "page": "this number of tokens is read in the order of their ids",
    "write": "this number of tokens is written",
    "count": "the tokens of a batch are counted, with a view that is up to date",
    "index": "the view is brought up to date after this number of changes",
    "locked": "this number of running tokens is read from the view",
    "leases": "this number of leases is read",
}


class _Costs:
    """Measures on one pool."""

    def __init__(self, server: Server, hook: PicasHook) -> None:
        self._server = server
        self._hook = hook
        tokens = (documents.new_token({"input": n}, batch=BATCH, push=BATCH, ordinal=n) for n in range(TOKENS))
        hook.push(tokens, numbered=True)
        hook.count(BATCH)
        self._tokens = hook.batch_documents(BATCH)

    def _cpu(self, do: Callable[[], object], times: int = TIMES) -> float:
        """Seconds of the server's CPU for one call."""
        before = self._server.cpu() or 0.0
        for _ in range(times):
            do()
        return ((self._server.cpu() or 0.0) - before) / times

    def _view(self, view: str, **query: Any) -> Any:
        return self._hook.send(self._hook.pool.view_request(view, views.PROVIDER, **query))

    def _change(self, number: int) -> None:
        """Write some tokens as claimed."""
        now = int(time.time())
        some = [next(self._tokens) for _ in range(number)]
        fields = {"lock": now, "hostname": "wn-001", "pilot": "4711_1-abcdef", "claim": f"0123456789abcdef-{now}"}
        self._hook.do(self._hook.pool.write([json_body({**token, **fields}) for token in some]))

    def lease(self) -> float:
        """Renew a lease."""
        name = secrets.token_hex(4)
        lease = {"pilot": name, "submission": "bench", "renewed": 1, "lease": 120, "running": {}, "counts": {"done": 9}}
        put = self._hook.pool.document_path(lease_id(name))
        return self._cpu(lambda: self._hook.send(Request("PUT", put, body=json_body(lease))))

    def flag(self) -> float:
        """Read leases of which there are none, as cheap as a read can be."""
        return self._cpu(lambda: self._hook.do(self._hook.pool.local_documents("_local/picas-none")))

    def rows(self, number: int) -> float:
        """Read waiting tokens."""
        key = {"startkey": [BATCH], "endkey": [BATCH, {}]}
        self._view("todo", reduce=False, limit=1, **key)
        return self._cpu(lambda: self._view("todo", reduce=False, include_docs=True, limit=number, **key))

    def page(self, number: int) -> float:
        """Read tokens by their ids."""
        limits = {"startkey": json.dumps(f"{BATCH}:"), "limit": str(number), "include_docs": "true"}
        read = Request("GET", self._hook.pool.path("_all_docs"), limits)
        return self._cpu(lambda: self._hook.send(read))

    def write(self, number: int) -> float:
        """Write tokens."""
        return self._cpu(lambda: self._change(number), TIMES if number == 1 else TIMES // 5)

    def count(self) -> float:
        """Count the batch."""
        self._hook.count(BATCH)
        return self._cpu(lambda: self._hook.count(BATCH))

    def index(self, number: int) -> float:
        """Bring the view up to date: what a count costs more after changes than without."""
        begin, times = self.count(), TIMES // 5
        spent = 0.0
        for _ in range(times):
            self._change(number)
            before = self._server.cpu() or 0.0
            self._hook.count(BATCH)
            spent += (self._server.cpu() or 0.0) - before
        return max(0.0, spent / times - begin)

    def locked(self, number: int) -> float:
        """Read running tokens, as a pilot that looks for dead ones."""
        self._change(number)
        self._hook.count(BATCH)
        key = [BATCH, "locked"]
        return self._cpu(
            lambda: self._view("counts", reduce=False, include_docs=True, limit=number, key=key), TIMES // 5
        )

    def leases(self, number: int) -> float:
        """Read leases."""
        for place in range(number):
            path = self._hook.pool.document_path(lease_id(f"many-{place:04d}"))
            self._hook.send(Request("PUT", path, body=json_body({"pilot": f"many-{place}", "renewed": 1})))
        return self._cpu(
            lambda: self._hook.do(self._hook.pool.local_documents(lease_id("many-"), limit=number)), TIMES // 5
        )


KINDS: dict[str, Callable[[_Costs], float]] = {
    "lease": _Costs.lease,
    "flag": _Costs.flag,
    "rows 1": lambda costs: costs.rows(1),
    f"rows {PORTION}": lambda costs: costs.rows(PORTION),
    "page 1": lambda costs: costs.page(1),
    f"page {PORTION}": lambda costs: costs.page(PORTION),
    "write 1": lambda costs: costs.write(1),
    f"write {PORTION}": lambda costs: costs.write(PORTION),
    "count": _Costs.count,
    "index 1": lambda costs: costs.index(1),
    f"index {PORTION}": lambda costs: costs.index(PORTION),
    "locked 500": lambda costs: costs.locked(500),
    "leases 500": lambda costs: costs.leases(500),
}
