"""The stack that the other tests run on, where it has rules of its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from stack import couchdb, paths


def test_a_server_that_starts_sees_whole_files_while_it_is_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test session installs it, and others may be starting theirs."""
    target = tmp_path / "couchdb"
    target.mkdir()
    (target / "installed").write_text(hashlib.sha256((couchdb.SOURCE / "package-lock.json").read_bytes()).hexdigest())
    monkeypatch.setattr(paths, "NODE_MODULES", target)
    server = couchdb.install()
    server.write_text("an earlier version")
    os.link(server, tmp_path / "opened")
    couchdb.install()
    assert server.read_bytes() == (couchdb.SOURCE / "server.js").read_bytes()
    assert (tmp_path / "opened").read_text() == "an earlier version", "it was written over"
    written = server.stat().st_ctime_ns
    couchdb.install()
    assert server.stat().st_ctime_ns == written
