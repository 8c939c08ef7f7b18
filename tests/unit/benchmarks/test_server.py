"""The process of the measured server is found by its port."""

from __future__ import annotations

import os
import socket

import pytest

from benchmarks.server import listening_process


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_process_that_listens_is_found(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError as error:
            pytest.skip(f"{address}: {error}")
        server.listen()
        port = server.getsockname()[1]
        assert listening_process(port) == os.getpid()
    assert listening_process(port) is None
