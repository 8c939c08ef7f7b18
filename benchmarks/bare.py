"""The bare loop, an upper bound for a push: it posts prepared bodies, and checks every row of the responses."""

from __future__ import annotations

import base64
import http.client
import json
import queue
import threading
import urllib.parse

from stack.pool import Pool

REQUEST_TOKENS = 1_000
CONNECTIONS = 4


def bodies(encoded: list[bytes], size: int = REQUEST_TOKENS) -> list[bytes]:
    """Documents as the bodies of bulk requests of ``size`` documents each."""
    return [b'{"docs":[' + b",".join(encoded[start : start + size]) + b"]}" for start in range(0, len(encoded), size)]


def post(pool: Pool, bodies: list[bytes], connections: int = CONNECTIONS) -> int:
    """Post all bodies over some connections. Returns the number of written documents. Raises RuntimeError if one was not."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for body in bodies:
        waiting.put(body)
    written: list[int] = []
    faults: list[object] = []

    def send() -> None:
        address = urllib.parse.urlsplit(pool.url)
        login = base64.b64encode(f"{pool.user}:{pool.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(str(address.hostname), address.port)
        while not waiting.empty():
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                break
            connection.request("POST", f"/{pool.database}/_bulk_docs", body, headers)
            rows = json.loads(connection.getresponse().read())
            faults.extend(row for row in rows if "error" in row)
            written.append(len(rows))
        connection.close()

    senders = [threading.Thread(target=send) for _ in range(connections)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    if faults:
        raise RuntimeError(f"{len(faults)} documents were not written, such as {faults[0]}")
    return sum(written)
