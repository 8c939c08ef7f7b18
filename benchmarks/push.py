"""A push, compared with a bare loop that posts the same bytes, and with the PiCaS client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from airflow_provider_picas.operators.instance import push_id
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.tokens import documents
from benchmarks import bare
from benchmarks.measure import Goal, Result, clock, in_pairs, medians, ratio
from benchmarks.server import CONN_ID, Server, context
from stack import paths

TOKENS = 50_000
PICAS_TOKENS = 10_000
SIZES = (250, 500, 1_000, 2_000, 4_000)
CONNECTIONS = (1, 2, 4, 8)


def inputs(number: int) -> Iterator[str]:
    """Typical inputs."""
    return (f"/project/data/observation_{place:07d}.h5" for place in range(number))


def encoded(number: int) -> list[bytes]:
    """The operator's documents for the inputs."""
    push = push_id(context())
    execution = f"{push}#{0:08x}"
    return [
        documents.encode(documents.new_token({"input": value}, batch=push, push=execution, ordinal=place))
        for place, value in enumerate(inputs(number))
    ]


def run(server: Server, pairs: int) -> Iterator[Result]:
    """The operator against the bare loop and against the PiCaS client."""
    bodies = bare.bodies(encoded(TOKENS))
    found = in_pairs(lambda: _bare(server, bodies), lambda: _operator(server, TOKENS), pairs)
    loop, ours = (TOKENS / seconds for seconds in medians(found))
    yield Result(
        "push against the bare loop, by rate",
        {"push": f"{ours:,.0f} tokens/s", f"{bare.CONNECTIONS} x {bare.REQUEST_TOKENS:,}": f"{loop:,.0f} tokens/s"},
        ratio(found),
        Goal(0.9, at_least=True),
        pairs=found,
    )
    if (paths.PICAS_VENV / "bin" / "python").exists():
        found = in_pairs(lambda: _picas(server), lambda: _operator(server, PICAS_TOKENS), pairs)
        client, ours = (PICAS_TOKENS / seconds for seconds in medians(found))
        yield Result(
            "push against picas' save_documents, by rate",
            {"push": f"{ours:,.0f} tokens/s", "picas": f"{client:,.0f} tokens/s"},
            ratio(found),
            pairs=found,
        )


def sizes(server: Server, pairs: int) -> Iterator[Result]:
    """The bare loop with several sizes of requests and numbers of connections, in turns. The best one is the reference."""
    number = TOKENS // 2
    bodies = {size: bare.bodies(encoded(number), size) for size in SIZES}
    taken: dict[tuple[int, int], list[float]] = {}
    for _ in range(pairs):
        for size in SIZES:
            for connections in CONNECTIONS:
                seconds = _bare(server, bodies[size], connections)
                taken.setdefault((size, connections), []).append(seconds)
    rates = {key: number / median(seconds) for key, seconds in taken.items()}
    for size in SIZES:
        yield Result(
            f"bare loop, {size:,} tokens a request",
            {f"{connections} connections": f"{rates[size, connections]:,.0f}/s" for connections in CONNECTIONS},
            max(rates[size, connections] for connections in CONNECTIONS),
            unit="tokens/s",
        )


def _operator(server: Server, number: int) -> float:
    with server.pool(), clock() as taken:
        push = PicasPushTokensOperator(
            task_id="push", inputs=lambda: inputs(number), picas_conn_id=CONN_ID, deploy_views=False
        )
        pushed = push.execute(context())["tokens"]
    if pushed != number:
        raise RuntimeError(f"{pushed} of {number} tokens were pushed.")
    return taken.seconds


def _bare(server: Server, bodies: list[bytes], connections: int = bare.CONNECTIONS) -> float:
    with server.pool() as pool, clock() as taken:
        bare.post(pool, bodies, connections)
    return taken.seconds


def _picas(server: Server) -> float:
    """The seconds that ``save_documents`` takes in the client's own environment."""
    with server.pool() as pool:
        program = [str(paths.PICAS_VENV / "bin" / "python"), str(Path(__file__).with_name("picas_client.py"))]
        access = {"url": pool.url, "database": pool.database, "user": pool.user, "password": pool.password}
        answer = subprocess.run(
            program,
            input=json.dumps({**access, "inputs": list(inputs(PICAS_TOKENS))}),
            capture_output=True,
            text=True,
        )
    if answer.returncode:
        raise RuntimeError(f"The PiCaS client failed: {answer.stderr.strip()[-1_000:]}")
    return float(answer.stdout)
