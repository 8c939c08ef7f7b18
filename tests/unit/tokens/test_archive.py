"""Lines of an archive, and invalid archives."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.tokens import archive
from airflow_provider_picas.tokens.archive import BadArchiveError

TOKEN = {
    "_id": "b:1", "_rev": "3-abc", "type": "token", "input": "é\ud800", "attempts": [{"reason": "reset"}],
    "_attachments": {"log": {"content_type": "text/plain", "revpos": 2, "digest": "md5-x", "data": "aGVsbG8="}},
}  # fmt: skip


def test_a_token_comes_back_as_it_was() -> None:
    token = archive.token_of(archive.line_of(TOKEN), 1, "x")
    assert token == TOKEN
    restored = archive.restored(token)
    assert restored.pop("_attachments") == {"log": {"content_type": "text/plain", "data": "aGVsbG8="}}
    assert restored == {name: value for name, value in TOKEN.items() if name not in ("_rev", "_attachments")}


def test_an_attachment_without_its_data_is_not_archived() -> None:
    with pytest.raises(ValueError, match="'log' of token 'b:1' has no data"):
        archive.line_of({**TOKEN, "_attachments": {"log": {"stub": True}}})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "b:1", "type": "token"}', "Line 7 of x is not JSON .it is truncated"),
        (b'{"_id": "b:1", "ty\n', "Line 7 of x is not JSON"),
        (b"\xff\xfe\n", "Line 7 of x is not JSON"),
        (b"[1]\n", "Line 7 of x is not a token"),
        (b'{"_id": 5, "type": "token"}\n', "Line 7 of x is not a token"),
        (b'{"_id": "b:1"}\n', "Line 7 of x is not a token"),
        (b'{"_id": "_design/x", "type": "token"}\n', "which CouchDB reserves"),
    ],
)
def test_invalid_archives_are_refused(line: Any, message: str) -> None:
    with pytest.raises(BadArchiveError, match=message):
        archive.token_of(line, 7, "x")
