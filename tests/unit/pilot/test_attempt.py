"""What is kept of a command's output."""

from __future__ import annotations

import pytest

from airflow_provider_picas.pilot.attempt import Tail


@pytest.mark.parametrize("most", [0, 1, 10, 1000])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_the_tail_of_a_stream_is_kept(most: int, chunk: int) -> None:
    data = bytes(range(256)) * 2
    tail = Tail(most)
    for start in range(0, len(data), chunk):
        tail.add(data[start : start + chunk])
    if most == 0:
        assert tail.value() == b""
    elif most >= len(data):
        assert tail.value() == data
    else:
        assert tail.value() == b"[%d bytes omitted]\n" % (512 - most) + data[-most:]
