"""What the provider relies on in CouchDB's protocol. It holds for the embedded server and for Apache CouchDB 3.5 alike.

Set ``PICAS_TEST_COUCHDB_URL=http://admin:password@host:port`` to run these tests against a CouchDB of your own.
"""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import http.client
import itertools
import json
import os
import secrets
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stack import couchdb, processes
from stack.couchdb import NOBODY, CouchDB, CouchDBAdmin

LIMIT = 20  # seconds to wait for anything
REAL = os.environ.get("PICAS_TEST_COUCHDB_URL")

COUNTS = {
    "map": "function (doc) { if (doc.type === 'token') emit([doc.batch, doc.done > 0 ? 'done' : 'todo'], 1); }",
    "reduce": "_count",
}


@dataclasses.dataclass
class Pool:
    """A database with a member of its own; another user exists who is not a member."""

    server: CouchDBAdmin
    name: str
    member: tuple[str, str]
    outsider: tuple[str, str]

    def __call__(self, method: str, path: str = "", body: Any = None, login: tuple[str, str] | None = None) -> Any:
        """Ask as the member, or as ``login``."""
        return self.server.request(method, f"/{self.name}{path}", body, login=login or self.member)

    def admin(self, method: str, path: str = "", body: Any = None) -> Any:
        return self.server.request(method, f"/{self.name}{path}", body)

    def put(self, doc_id: str, **fields: Any) -> str:
        """Write a document; the new revision."""
        status, answer = self("PUT", "/" + urllib.parse.quote(doc_id, safe=""), fields)
        assert status == 201, answer
        return str(answer["rev"])

    def bulk(self, *docs: dict[str, Any]) -> list[dict[str, Any]]:
        status, rows = self("POST", "/_bulk_docs", {"docs": docs})
        assert status == 201, rows
        return list(rows)

    def design(self, **views: dict[str, str]) -> None:
        status, answer = self.admin("PUT", "/_design/test", {"views": views})
        assert status == 201, answer

    def view(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        status, answer = self("GET", f"/_design/test/_view/{name}?{query(**parameters)}")
        assert status == 200, answer
        return list(answer["rows"])

    def last_seq(self) -> str:
        return str(self("GET", "/_changes?since=now")[1]["last_seq"])


def query(**parameters: Any) -> str:
    """URL parameters, each value as JSON except for plain words."""
    words = {"since", "feed", "heartbeat", "timeout", "filter", "style", "startkey_docid", "endkey_docid", "view"}
    values = {name: value if name in words else json.dumps(value) for name, value in parameters.items()}
    return urllib.parse.urlencode(values)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CouchDBAdmin]:
    if REAL:
        yield CouchDBAdmin.from_url(REAL)
        return
    with CouchDB(tmp_path_factory.mktemp("couchdb")) as embedded:
        yield embedded


@pytest.fixture(scope="module")
def users(server: CouchDBAdmin) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    mark = secrets.token_hex(4)
    member, outsider = (f"member-{mark}", "secret:with:colons"), (f"outsider-{mark}", "other")
    for name, password in (member, outsider):
        server.create_user(name, password)
    yield member, outsider
    for name, _ in (member, outsider):
        server.delete_user(name)


@pytest.fixture
def pool(server: CouchDBAdmin, users: tuple[tuple[str, str], tuple[str, str]]) -> Iterator[Pool]:
    name = f"test-{secrets.token_hex(6)}"
    server.create_database(name, members=[users[0][0]])
    yield Pool(server, name, *users)
    server.delete_database(name)


class TestServer:
    def test_says_what_it_is(self, server: CouchDBAdmin) -> None:
        status, answer = server.request("GET", "/", login=NOBODY)
        assert (status, answer["couchdb"]) == (200, "Welcome")
        assert answer["version"].startswith("3.")
        assert server.request("GET", "/_up", login=NOBODY)[0] == 200

    @pytest.mark.parametrize("path", ["/", "/_all_dbs", "/nowhere", "/_session"])
    def test_every_answer_has_the_time(self, server: CouchDBAdmin, path: str) -> None:
        connection = connect(server)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        connection.close()
        when = email.utils.parsedate_to_datetime(response.headers["Date"])
        assert abs(when.timestamp() - time.time()) < 5

    def test_databases_are_for_admins_to_make(self, server: CouchDBAdmin, pool: Pool) -> None:
        assert server.request("PUT", f"/{pool.name}")[0] == 412
        assert server.request("PUT", "/Illegal")[1]["error"] == "illegal_database_name"
        assert server.request("PUT", "/other", login=pool.member)[0] == 401
        assert pool("DELETE")[0] == 401
        assert server.request("GET", "/_all_dbs", login=pool.member)[0] == 401
        assert pool.name in server.request("GET", "/_all_dbs")[1]
        assert server.request("GET", "/nowhere", login=pool.member) == (
            404,
            {"error": "not_found", "reason": "Database does not exist."},
        )

    def test_names_are_quoted(self, server: CouchDBAdmin) -> None:
        name = f"group/pool+{secrets.token_hex(4)}"
        path = "/" + urllib.parse.quote(name, safe="")
        server.create_database(name)
        try:
            assert server.request("GET", path)[1]["db_name"] == name
            doc = urllib.parse.quote("batch/é: x+y?", safe="")
            assert server.request("PUT", f"{path}/{doc}", {})[0] == 201
            assert server.request("GET", f"{path}/{doc}")[1]["_id"] == "batch/é: x+y?"
        finally:
            server.delete_database(name)


class TestLogin:
    def test_basic(self, server: CouchDBAdmin, pool: Pool) -> None:
        status, session = server.request("GET", "/_session", login=pool.member)
        assert (status, session["userCtx"]) == (200, {"name": pool.member[0], "roles": []})
        assert server.request("GET", "/_session", login=NOBODY)[1]["userCtx"]["name"] is None
        wrong = server.request("GET", "/_session", login=(pool.member[0], "wrong"))
        assert wrong == (401, {"error": "unauthorized", "reason": "Name or password is incorrect."})

    def test_cookie(self, server: CouchDBAdmin, pool: Pool) -> None:
        name, password = pool.member
        connection = connect(server)
        connection.request(
            "POST", "/_session", json.dumps({"name": name, "password": password}), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        assert json.loads(response.read())["name"] == name
        cookie = response.headers["Set-Cookie"].split(";")[0]
        for sent, expected in ((cookie, 200), (cookie[:-3] + "xyz", 401), ("AuthSession=", 401)):
            connection.request("GET", f"/{pool.name}", headers={"Cookie": sent})
            response = connection.getresponse()
            response.read()
            # A cookie that is not valid is no login, or an error: both are no way in.
            assert response.status == expected or (expected == 401 and response.status == 400)
        connection.close()

    def test_passwords_are_kept_as_hashes(self, server: CouchDBAdmin, pool: Pool) -> None:
        name, password = pool.member
        status, user = server.request("GET", f"/_users/org.couchdb.user:{name}")
        assert status == 200
        assert password not in json.dumps(user)
        assert "password" not in user
        assert server.request("GET", f"/_users/org.couchdb.user:{name}", login=pool.outsider)[0] in (401, 403, 404)


PATHS_TO_READ = [
    "", "/a", "/a/file", "/_all_docs", "/_changes", "/_local_docs", "/_local/a", "/_design/test", "/_security",
    "/_design/test/_view/counts", "/_index", "/_design_docs",
]  # fmt: skip
PATHS_TO_POST = [
    "", "/_bulk_docs", "/_bulk_get", "/_find", "/_index", "/_all_docs", "/_local_docs", "/_changes", "/_revs_diff",
    "/_compact", "/_design/test/_view/counts", "/_design/test/_view/counts/queries", "/_explain",
]  # fmt: skip


class TestSecurity:
    @pytest.mark.parametrize("path", PATHS_TO_READ)
    def test_only_members_read(self, pool: Pool, path: str) -> None:
        assert pool("GET", path, login=NOBODY)[0] == 401
        status, answer = pool("GET", path, login=pool.outsider)
        assert (status, answer["error"]) == (403, "forbidden")

    @pytest.mark.parametrize("path", PATHS_TO_POST)
    def test_only_members_post(self, pool: Pool, path: str) -> None:
        body = {"docs": [{"_id": "a"}], "selector": {"x": 1}, "index": {"fields": ["x"]}, "keys": ["a"], "queries": []}
        assert pool("POST", path, body, login=NOBODY)[0] == 401
        assert pool("POST", path, body, login=pool.outsider)[0] == 403
        assert pool.admin("GET")[1]["doc_count"] == 0

    @pytest.mark.parametrize("path", ["/a", "/_local/a", "/_design/a", "/a/file"])
    def test_only_members_put_and_delete(self, pool: Pool, path: str) -> None:
        for login, status in ((NOBODY, 401), (pool.outsider, 403)):
            assert pool("PUT", path, {}, login=login)[0] == status
            assert pool("DELETE", path + "?rev=1-967a00dff5e02add41819138abb3284d", login=login)[0] == status

    def test_design_documents_are_for_admins(self, pool: Pool) -> None:
        assert pool("PUT", "/_design/mine", {"views": {}})[0] == 403
        rows = pool.bulk({"_id": "_design/mine", "views": {}}, {"_id": "a"})
        assert (rows[0]["error"], rows[1]["ok"]) == ("forbidden", True)
        assert pool.admin("PUT", "/_design/mine", {"views": {}})[0] == 201

    def test_an_admin_of_the_database_writes_design_documents(self, server: CouchDBAdmin, pool: Pool) -> None:
        security = {"admins": {"names": [pool.outsider[0]]}, "members": {"names": [pool.member[0]]}}
        assert pool.admin("PUT", "/_security", security)[0] == 200
        assert pool("PUT", "/_design/mine", {"views": {}}, login=pool.outsider)[0] == 201
        assert pool("GET", "/_security")[1]["admins"]["names"] == [pool.outsider[0]]

    def test_members_do_not_change_security(self, pool: Pool) -> None:
        before = pool("GET", "/_security")[1]
        assert pool("PUT", "/_security", {})[0] >= 400
        assert pool("GET", "/_security")[1] == before

    def test_validation_functions_refuse(self, pool: Pool) -> None:
        function = "function (doc, old, user) { if (doc.bad) throw ({forbidden: 'not by ' + user.name}); }"
        assert pool.admin("PUT", "/_design/guard", {"validate_doc_update": function})[0] == 201
        assert pool("PUT", "/a", {"bad": 1}) == (403, {"error": "forbidden", "reason": f"not by {pool.member[0]}"})
        rows = pool.bulk({"_id": "a", "bad": 1}, {"_id": "b"})
        assert (rows[0]["error"], rows[1]["ok"]) == ("forbidden", True)

    def test_validation_functions_see_what_cannot_be_stored(self, pool: Pool) -> None:
        """An attachment that is announced, and missing in the request."""
        function = "function (doc, old, user) { if (doc.bad) throw ({forbidden: 'no'}); }"
        assert pool.admin("PUT", "/_design/guard", {"validate_doc_update": function})[0] == 201
        rev = pool.put("a", n=1)
        attachment = {"_attachments": {"x": {"follows": True, "length": 1, "content_type": "text/plain"}}}
        (row,) = pool.bulk({"_id": "a", "_rev": rev, "bad": 1, **attachment})
        assert row["error"] == "forbidden"
        assert pool("POST", "/_bulk_docs", {"docs": [{"_id": "a", "_rev": rev, **attachment}]})[0] == 500
        assert pool("GET", "/a") == (200, {"_id": "a", "_rev": rev, "n": 1})


class TestDocuments:
    def test_revisions_guard_writes(self, pool: Pool) -> None:
        conflict = (409, {"error": "conflict", "reason": "Document update conflict."})
        first = pool.put("a", n=1)
        assert pool("PUT", "/a", {"n": 2}) == conflict
        second = pool.put("a", n=2, _rev=first)
        assert (first[:2], second[:2]) == ("1-", "2-")
        assert pool("PUT", "/a", {"n": 3, "_rev": first}) == conflict
        assert pool("PUT", "/new", {"_rev": first}) == conflict
        assert pool("GET", "/a") == (200, {"_id": "a", "_rev": second, "n": 2})
        assert pool("DELETE", f"/a?rev={first}")[0] == 409
        assert pool("DELETE", f"/a?rev={second}")[0] == 200
        assert pool("GET", "/a") == (404, {"error": "not_found", "reason": "deleted"})
        assert pool("GET", "/never") == (404, {"error": "not_found", "reason": "missing"})
        assert pool("PUT", "/a", {"_rev": second})[0] == 409
        assert pool.put("a", n=4)[:2] == "4-"

    def test_one_of_many_writers_wins(self, pool: Pool) -> None:
        rev = pool.put("a", winner=None)
        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(lambda i: pool("PUT", "/a", {"_rev": rev, "winner": i})[0], range(8)))
        assert sorted(statuses) == [201] + [409] * 7
        assert pool("GET", "/a")[1]["winner"] == statuses.index(201)

    @pytest.mark.parametrize(
        ("method", "path", "body", "error"),
        [
            ("PUT", "/_mine", {}, "illegal_docid"),
            ("POST", "", {"_id": "_mine"}, "illegal_docid"),
            ("POST", "", {"_id": 3}, "illegal_docid"),
            ("POST", "", {"_id": ""}, "illegal_docid"),
            ("POST", "/_bulk_docs", {"docs": [{"_id": "good"}, {"_id": "_mine"}]}, "illegal_docid"),
            ("POST", "/_bulk_docs", {"docs": [{"_id": "good"}, {"_mine": 1}]}, "doc_validation"),
            ("POST", "/_bulk_docs", {"docs": [{"_id": "good"}, 3]}, "bad_request"),
            ("POST", "/_bulk_docs", {}, "bad_request"),
            ("PUT", "/a", [], "bad_request"),
            ("PUT", "/a", b"{not json", "bad_request"),
            ("PUT", "/a", {"_rev": "nonsense"}, "bad_request"),
            ("PUT", "/a", {"_mine": 1}, "doc_validation"),
        ],
    )
    def test_what_is_no_document(self, pool: Pool, method: str, path: str, body: Any, error: str) -> None:
        status, answer = pool(method, path, body)
        assert (status, answer["error"]) == (400, error)
        assert pool("GET", "/good")[0] == 404

    def test_a_post_must_say_that_it_is_json(self, pool: Pool) -> None:
        assert pool("POST", "/_bulk_docs", b'{"docs": []}')[0] == 415

    def test_a_document_of_more_than_8_mb(self, pool: Pool) -> None:
        large = "x" * 8_000_000
        assert pool("PUT", "/large", {"input": large})[0] == 413
        status, answer = pool("POST", "/_bulk_docs", {"docs": [{"_id": "small"}, {"_id": "large", "input": large}]})
        assert (status, answer) == (413, {"error": "document_too_large", "reason": "large"})
        assert pool("GET", "/small")[0] == 404
        assert pool("PUT", "/large", {"input": large[:-100]})[0] == 201


class TestBulk:
    def test_each_row_tells_of_one_document(self, pool: Pool) -> None:
        rev = pool.put("there")
        rows = pool.bulk({"_id": "there"}, {"_id": "new"}, {"_id": "there", "_rev": rev}, {"n": 1})
        assert rows[0] == {"id": "there", "error": "conflict", "reason": "Document update conflict."}
        assert (rows[1]["ok"], rows[1]["id"], rows[1]["rev"][:2]) == (True, "new", "1-")
        assert rows[2]["rev"][:2] == "2-"
        assert len(rows[3]["id"]) == 32

    def test_the_same_id_twice(self, pool: Pool) -> None:
        rows = pool.bulk({"_id": "a", "n": 1}, {"_id": "b"}, {"_id": "a", "n": 2})
        assert [row.get("error") for row in rows] == [None, None, "conflict"]
        assert pool("GET", "/a")[1]["n"] == 1

    def test_deletes(self, pool: Pool) -> None:
        rev = pool.put("a")
        assert pool.bulk({"_id": "a", "_rev": rev, "_deleted": True})[0]["ok"]
        assert pool("GET")[1]["doc_count"] == 0

    def test_keys_of_all_docs(self, pool: Pool) -> None:
        revs = {row["id"]: row["rev"] for row in pool.bulk({"_id": "a", "n": 1}, {"_id": "b"}, {"_id": "gone"})}
        pool("DELETE", f"/gone?rev={revs['gone']}")
        status, answer = pool("POST", "/_all_docs?include_docs=true", {"keys": ["b", "never", "gone", "a"]})
        assert (status, len(answer["rows"])) == (200, 4)
        b, never, gone, a = answer["rows"]
        assert (b["id"], b["value"], b["doc"]["_id"]) == ("b", {"rev": revs["b"]}, "b")
        assert never == {"key": "never", "error": "not_found"}
        assert (gone["value"]["deleted"], gone["doc"]) == (True, None)
        assert a["doc"] == {"_id": "a", "_rev": revs["a"], "n": 1}

    def test_a_range_of_all_docs(self, pool: Pool) -> None:
        pool.bulk(*({"_id": name} for name in ("b:1", "b:10", "b:2", "B:1", "c")))
        parameters = query(startkey="b:", endkey="b:\ufff0", limit=2, include_docs=True, conflicts=True)
        rows = pool("GET", f"/_all_docs?{parameters}")[1]["rows"]
        assert [row["id"] for row in rows] == ["b:1", "b:10"]
        assert rows[0]["doc"]["_id"] == "b:1"
        descending = query(startkey="b:2", endkey="b:1", descending=True, inclusive_end=False)
        assert [row["id"] for row in pool("GET", f"/_all_docs?{descending}")[1]["rows"]] == ["b:2", "b:10"]
        # Ids are in the order of their bytes, which is not that of view keys.
        assert [row["id"] for row in pool("GET", "/_all_docs?limit=1")[1]["rows"]] == ["B:1"]

    def test_conflicts_are_told(self, pool: Pool) -> None:
        for rev in ("1-aaa", "1-bbb"):
            pool("POST", "/_bulk_docs", {"new_edits": False, "docs": [{"_id": "a", "_rev": rev}]})
        assert pool("GET", "/a?conflicts=true")[1] == {"_id": "a", "_rev": "1-bbb", "_conflicts": ["1-aaa"]}
        row = pool("GET", "/_all_docs?include_docs=true&conflicts=true")[1]["rows"][0]
        assert row["doc"]["_conflicts"] == ["1-aaa"]

    def test_bulk_get(self, pool: Pool) -> None:
        rev = pool.put("a", n=1)
        results = pool("POST", "/_bulk_get", {"docs": [{"id": "a"}, {"id": "never"}]})[1]["results"]
        assert results[0] == {"id": "a", "docs": [{"ok": {"_id": "a", "_rev": rev, "n": 1}}]}
        assert results[1]["docs"][0]["error"]["error"] == "not_found"

    def test_find(self, pool: Pool) -> None:
        pool.bulk({"_id": "a", "n": 1}, {"_id": "b", "n": 2})
        status, answer = pool("POST", "/_find", {"selector": {"n": {"$gt": 1}}, "fields": ["_id"]})
        assert (status, answer["docs"]) == (200, [{"_id": "b"}])
        assert pool("POST", "/_find", {})[0] == 400
        for selector in (5, None, []):
            status, answer = pool("POST", "/_find", {"selector": selector})
            assert (status, answer["error"]) == (400, "invalid_selector_json")


class TestLocalDocuments:
    def test_a_write_without_revision_overwrites(self, pool: Pool) -> None:
        before = pool("GET")[1]
        assert pool("PUT", "/_local/pilot", {"n": 1}) == (201, {"ok": True, "id": "_local/pilot", "rev": "0-1"})
        assert pool("PUT", "/_local/pilot", {"n": 2})[0] == 201
        assert pool("GET", "/_local/pilot") == (200, {"_id": "_local/pilot", "_rev": "0-1", "n": 2})
        assert pool("PUT", "/_local/pilot", {"n": 3, "_rev": "0-1"})[1]["rev"] == "0-2"
        after = pool("GET")[1]
        assert (after["doc_count"], after["update_seq"]) == (0, before["update_seq"])
        assert pool("GET", "/_local/none")[0] == 404

    def test_they_are_listed(self, pool: Pool) -> None:
        for name in ("pilot-2", "pilot-1", "submission-1"):
            assert pool("PUT", f"/_local/{name}", {"name": name})[0] == 201
        status, answer = pool("GET", "/_local_docs?include_docs=true")
        assert status == 200
        assert [row["id"] for row in answer["rows"]] == [
            f"_local/{name}" for name in ("pilot-1", "pilot-2", "submission-1")
        ]
        assert answer["rows"][0] == {
            "id": "_local/pilot-1",
            "key": "_local/pilot-1",
            "value": {"rev": "0-1"},
            "doc": {"_id": "_local/pilot-1", "_rev": "0-1", "name": "pilot-1"},
        }

    def test_a_range_of_them(self, pool: Pool) -> None:
        pool.bulk(
            {"_id": "pilot-0"}, *({"_id": f"_local/{name}"} for name in ("a", "pilot-1", "pilot-2", "pilot-3", "z"))
        )

        def ids(**parameters: Any) -> list[str]:
            rows = pool("GET", f"/_local_docs?{query(**parameters)}")[1]["rows"]
            return [row["id"].removeprefix("_local/") for row in rows]

        bounds = {"startkey": "_local/pilot-", "endkey": "_local/pilot-\ufff0"}
        assert ids(**bounds) == ["pilot-1", "pilot-2", "pilot-3"]
        assert ids(**bounds, limit=2) == ["pilot-1", "pilot-2"]
        assert ids(startkey="_local/pilot-2", endkey="_local/pilot-3", inclusive_end=False) == ["pilot-2"]
        rows = pool("POST", "/_local_docs", {"keys": ["_local/z", "_local/none"]})[1]["rows"]
        assert [row.get("id") for row in rows] == ["_local/z", None]

    def test_they_are_deleted(self, pool: Pool) -> None:
        pool("PUT", "/_local/pilot", {})
        assert pool("DELETE", "/_local/pilot?rev=0-1")[0] == 200
        assert pool("GET", "/_local/pilot")[0] == 404
        assert pool("GET", "/_local_docs")[1]["rows"] == []


class TestAttachments:
    def test_one_at_a_time(self, pool: Pool) -> None:
        content = bytes(range(256))
        first = pool("PUT", "/a/logs%2Fout.bin", content)[1]["rev"]
        assert pool("GET", "/a/logs%2Fout.bin")[1] == content
        assert pool("GET", "/a/logs/out.bin")[1] == content
        assert pool("PUT", "/a/second", b"2")[0] == 409
        second = pool("PUT", f"/a/second?rev={first}", b"2")[1]["rev"]
        attachments = pool("GET", "/a")[1]["_attachments"]
        assert set(attachments) == {"logs/out.bin", "second"}
        assert attachments["second"].items() >= {
            "stub": True, "length": 1, "content_type": "application/octet-stream"
        }.items()  # fmt: skip
        assert pool("DELETE", f"/a/logs%2Fout.bin?rev={first}")[0] == 409
        assert pool("DELETE", f"/a/second?rev={second}")[0] == 200
        assert pool("GET", "/a/second")[0] == 404

    def test_in_a_document(self, pool: Pool) -> None:
        files = {
            name: {"content_type": "text/plain", "data": base64.b64encode(name.encode()).decode()}
            for name in ("x", "y")
        }
        (row,) = pool.bulk({"_id": "a", "_attachments": files})
        assert pool("GET", "/a/x")[1] == b"x"
        stubs = {"x": pool("GET", "/a")[1]["_attachments"]["x"], "z": files["y"]}
        (row,) = pool.bulk({"_id": "a", "_rev": row["rev"], "_attachments": stubs})
        assert (pool("GET", "/a/x")[1], pool("GET", "/a/y")[0], pool("GET", "/a/z")[1]) == (b"x", 404, b"y")
        pool.put("a", _rev=row["rev"])
        assert "_attachments" not in pool("GET", "/a")[1], "a write without _attachments removes them"

    def test_a_stub_of_nothing(self, pool: Pool) -> None:
        rev = pool("PUT", "/a/x", b"x")[1]["rev"]
        stub = {"_id": "a", "_rev": rev, "_attachments": {"other": {"stub": True}}}
        for method, path, body in (("PUT", "/a", stub), ("POST", "/_bulk_docs", {"docs": [stub]})):
            status, answer = pool(method, path, body)
            assert (status, answer["error"]) == (412, "missing_stub")
        assert pool("GET", "/a")[1]["_rev"] == rev


class TestViews:
    def fill(self, pool: Pool, count: int = 20) -> None:
        pool.design(
            counts=COUNTS,
            plain={"map": "function (doc) { emit(doc.batch, doc.n); }"},
            total={"map": "function (doc) { emit(doc.batch, doc.n); }", "reduce": "_sum"},
            stats={"map": "function (doc) { emit(doc.batch, doc.n); }", "reduce": "_stats"},
            custom={
                "map": "function (doc) { emit(doc.batch, doc.n); }",
                "reduce": "function (keys, values, rereduce) { return sum(values); }",
            },
        )
        docs = ({"_id": f"t{n:04}", "type": "token", "batch": "ab"[n % 2], "done": n % 4, "n": n} for n in range(count))
        pool.bulk(*docs)

    def test_counts(self, pool: Pool) -> None:
        self.fill(pool)
        groups = {tuple(row["key"]): row["value"] for row in pool.view("counts", group=True)}
        assert groups == {("a", "done"): 5, ("a", "todo"): 5, ("b", "done"): 10}
        assert pool.view("counts", group_level=1) == [{"key": ["a"], "value": 10}, {"key": ["b"], "value": 10}]
        assert pool.view("counts") == [{"key": None, "value": 20}]
        bounds = {"startkey": ["a"], "endkey": ["a", {}]}
        assert pool.view("counts", group=True, **bounds) == [
            {"key": ["a", "done"], "value": 5},
            {"key": ["a", "todo"], "value": 5},
        ]
        keys = [["b", "done"], ["c", "done"], ["a", "todo"]]
        assert [row["value"] for row in pool.view("counts", group=True, keys=keys)] == [10, 5]
        path = "/_design/test/_view/counts"
        assert [row["value"] for row in pool("POST", f"{path}?group=true", {"keys": keys})[1]["rows"]] == [10, 5]
        assert pool("GET", f"{path}?{query(keys=keys)}")[0] == 400

    def test_several_queries_at_once(self, pool: Pool) -> None:
        self.fill(pool)
        queries = [{"group": True, "startkey": [batch], "endkey": [batch, {}]} for batch in ("a", "none", "b")]
        status, answer = pool("POST", "/_design/test/_view/counts/queries", {"queries": queries})
        assert status == 200
        assert [sum(row["value"] for row in result["rows"]) for result in answer["results"]] == [10, 0, 10]

    def test_an_index_is_built_while_nobody_waits_for_it(self, pool: Pool) -> None:
        """With ``update=lazy``; the index says how far behind it is."""
        lazy = {"views": {"counts": COUNTS}, "autoupdate": False}
        assert pool.admin("PUT", "/_design/lazy", lazy)[0] == 201
        pool.bulk(*({"type": "token", "batch": "a", "done": 0} for _ in range(50)))

        def behind() -> int:
            pending = pool("GET", "/_design/lazy/_info")[1]["view_index"]["updates_pending"]
            assert set(pending) >= {"minimum", "preferred", "total"}
            return int(pending["minimum"])

        assert behind() >= 50
        assert pool("GET", "/_design/lazy/_view/counts?update=lazy")[1]["rows"] == []
        processes.wait_for(lambda: behind() == 0, what="The index", seconds=60)
        assert pool("GET", "/_design/lazy/_view/counts?update=false")[1]["rows"] == [{"key": None, "value": 50}]

    def test_counts_follow_writes(self, pool: Pool) -> None:
        self.fill(pool, count=1500)  # enough for the rows of a view to lie in several nodes of its tree
        assert pool.view("counts") == [{"key": None, "value": 1500}]
        assert [pool.view(name, group=True)[0]["value"] for name in ("total", "custom")] == [561_750] * 2
        for n in (0, 4, 1496):
            doc = pool("GET", f"/t{n:04}")[1]
            pool.put(doc["_id"], **{key: value for key, value in doc.items() if key != "_id"} | {"done": 1})
        assert pool.view("counts") == [{"key": None, "value": 1500}]
        doc = pool("GET", "/t0008")[1]
        pool("DELETE", f"/t0008?rev={doc['_rev']}")
        assert pool.view("counts") == [{"key": None, "value": 1499}]
        groups = {tuple(row["key"]): row["value"] for row in pool.view("counts", group=True)}
        assert groups == {("a", "done"): 378, ("a", "todo"): 371, ("b", "done"): 750}
        assert [pool.view(name, group=True)[0]["value"] for name in ("total", "custom")] == [561_742] * 2

    def test_reduces(self, pool: Pool) -> None:
        self.fill(pool)
        for name in ("total", "custom"):
            assert pool.view(name, group=True) == [{"key": "a", "value": 90}, {"key": "b", "value": 100}]
        assert pool.view("stats", key="a")[0]["value"] == {"sum": 90, "count": 10, "min": 0, "max": 18, "sumsqr": 1140}
        assert pool.view("total", key="none", group=True) == []

    def test_rows(self, pool: Pool) -> None:
        self.fill(pool)

        def ids(**parameters: Any) -> list[str]:
            return [row["id"] for row in pool.view("counts", reduce=False, **parameters)]

        assert ids(limit=2) == ["t0002", "t0006"]
        assert ids(limit=2, skip=1) == ["t0006", "t0010"]
        assert ids(key=["a", "todo"], limit=1, descending=True) == ["t0016"]
        assert ids(startkey=["a", "todo"], endkey=["b", "done"], inclusive_end=False)[-1] == "t0016"
        assert ids(startkey=["a", "todo"], startkey_docid="t0005", limit=1) == ["t0008"]
        assert ids(startkey=["b", {}], endkey=["b"], descending=True, limit=1) == ["t0019"]
        (row,) = pool.view("plain", key="b", limit=1, include_docs=True)
        assert (row["value"], row["doc"]["n"]) == (1, 1)
        status, answer = pool("GET", "/_design/test/_view/plain?limit=0")
        assert (status, answer) == (200, {"total_rows": 20, "offset": 0, "rows": []})

    def test_update_false_does_not_look_at_new_writes(self, pool: Pool) -> None:
        self.fill(pool)
        pool.view("counts")
        pool.put("late", type="token", batch="z", n=20)
        if not REAL:  # which may index new writes by itself
            assert pool.view("counts", group_level=1, update=False)[-1]["key"] == ["b"]
        assert pool.view("counts", group_level=1)[-1]["key"] == ["z"]

    def test_the_order_of_keys(self, pool: Pool) -> None:
        keys: list[Any] = [None, False, True, -1, 0, 1.5, 10, "", "a", "A", "aa", "b", "B", "ba", [], [None], ["a"], ["a", 1],
                ["b"], [[]], {}, {"a": 1}, {"a": 2}, {"b": 1}]  # fmt: skip
        pool.design(keys={"map": "function (doc) { emit(doc.key, null); }"})
        pool.bulk(*({"_id": str(i), "key": key} for i, key in reversed(list(enumerate(keys)))))
        assert [row["key"] for row in pool.view("keys")] == keys

    def test_several_rows_a_document(self, pool: Pool) -> None:
        pool.design(many={"map": "function (doc) { for (var i = 0; i < 3; i++) emit('k', i); emit('other', 0); }"})
        rev = pool.put("a")
        assert [row["value"] for row in pool.view("many", key="k")] == [0, 1, 2]
        pool("DELETE", f"/a?rev={rev}")
        assert pool.view("many") == []

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("counts?group=maybe", "query_parse_error"),
            ("counts?limit=-1", "query_parse_error"),
            ("counts?startkey=word", "bad_request"),
            ("plain?group=true", "query_parse_error"),
            ("counts?include_docs=true", "query_parse_error"),
            ("plain?startkey=2&endkey=1", "query_parse_error"),
        ],
    )
    def test_wrong_queries(self, pool: Pool, path: str, error: str) -> None:
        self.fill(pool)
        status, answer = pool("GET", f"/_design/test/_view/{path}")
        assert (status, answer["error"]) == (400, error)

    def test_what_is_missing(self, pool: Pool) -> None:
        assert pool("GET", "/_design/test/_view/counts") == (404, {"error": "not_found", "reason": "missing"})
        self.fill(pool)
        missing = (404, {"error": "not_found", "reason": "missing_named_view"})
        assert pool("GET", "/_design/test/_view/none") == missing

    @pytest.mark.parametrize("function", ["function (doc) { emit( }", "undefinedName"])
    def test_a_broken_map_function_is_refused(self, pool: Pool, function: str) -> None:
        status, answer = pool.admin("PUT", "/_design/broken", {"views": {"x": {"map": function}}})
        assert (status, answer["error"]) == (400, "compilation_error")

    def test_a_map_function_that_throws_leaves_the_document_out(self, pool: Pool) -> None:
        pool.design(names={"map": "function (doc) { emit(doc.person.name, null); }"})
        pool.bulk({"_id": "a"}, {"_id": "b", "person": {"name": "B"}})
        assert [row["id"] for row in pool.view("names")] == ["b"]

    def test_a_changed_design_document(self, pool: Pool) -> None:
        self.fill(pool)
        assert len(pool.view("plain")) == 20
        doc = pool.admin("GET", "/_design/test")[1]
        doc["views"]["plain"]["map"] = "function (doc) { if (doc.n < 5) emit(doc.batch, doc.n); }"
        assert pool.admin("PUT", "/_design/test", doc)[0] == 201
        assert len(pool.view("plain")) == 5


class TestChanges:
    def poll(self, pool: Pool, **parameters: Any) -> Future[Any]:
        """A long poll that runs beside the test."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(pool("GET", f"/_changes?{query(feed='longpoll', **parameters)}"))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def test_normal(self, pool: Pool) -> None:
        pool.bulk({"_id": "a"}, {"_id": "b"})
        since = pool.last_seq()
        rev = pool.put("c", n=1)
        second = pool.put("c", n=2, _rev=rev)
        status, answer = pool("GET", f"/_changes?{query(since=since, include_docs=True)}")
        (row,) = answer["results"]
        assert (status, row["id"], row["changes"], row["doc"]["n"]) == (200, "c", [{"rev": second}], 2)
        assert pool("GET", f"/_changes?{query(since=answer['last_seq'])}")[1]["results"] == []
        assert {row["id"] for row in pool("GET", "/_changes")[1]["results"]} == {"a", "b", "c"}
        pool("DELETE", f"/c?rev={second}")
        assert pool("GET", f"/_changes?{query(since=since)}")[1]["results"][0]["deleted"] is True

    def test_pages(self, pool: Pool) -> None:
        pool.bulk(*({"_id": str(n)} for n in range(10)))
        seen: list[str] = []
        since = "0"
        for _ in range(4):
            answer = pool("GET", f"/_changes?{query(since=since, limit=3)}")[1]
            seen += [row["id"] for row in answer["results"]]
            since = answer["last_seq"]
        assert sorted(seen) == [str(n) for n in range(10)]
        assert answer["pending"] == 0

    @pytest.mark.parametrize("since", ["nonsense", "5"])
    def test_since_is_opaque(self, pool: Pool, since: str) -> None:
        assert pool("GET", f"/_changes?since={since}")[0] == 400

    @pytest.mark.parametrize("start", ["now", "last_seq"])
    def test_a_write_wakes_a_long_poll(self, pool: Pool, start: str) -> None:
        pool.put("before")
        since = pool.last_seq() if start == "last_seq" else "now"
        connection, response = stream(pool, feed="longpoll", since=since, heartbeat="200")
        begin = list(itertools.takewhile(bytes.strip, response))  # until the first heartbeat: so it waits
        pool("PUT", "/_local/quiet", {})  # wakes nobody
        pool.put("after")
        answer = json.loads(b"".join([*begin, *itertools.islice(response, 100)]))  # heartbeats for 20 s at most
        connection.close()
        assert (response.status, [row["id"] for row in answer["results"]]) == (200, ["after"])
        assert pool("GET", f"/_changes?{query(since=answer['last_seq'])}")[1]["results"] == []

    def test_no_write_is_missed_between_polls(self, pool: Pool) -> None:
        written = [f"d{n:03}" for n in range(60)]

        def write() -> None:
            for name in written:
                pool.put(name)

        since, seen = pool.last_seq(), set[str]()
        writer = threading.Thread(target=write)
        writer.start()
        deadline = time.monotonic() + 5 * LIMIT
        while len(seen) < len(written) and time.monotonic() < deadline:
            answer = pool("GET", f"/_changes?{query(feed='longpoll', since=since, timeout='2000')}")[1]
            seen |= {row["id"] for row in answer["results"]}
            since = answer["last_seq"]
        writer.join()
        assert seen == set(written)

    def test_a_long_poll_ends_in_time(self, pool: Pool) -> None:
        since, began = pool.last_seq(), time.monotonic()
        status, answer = pool("GET", f"/_changes?{query(feed='longpoll', since=since, timeout='700')}")
        assert (status, answer["results"]) == (200, [])
        assert 0.6 < time.monotonic() - began < LIMIT

    def test_a_long_poll_with_rows_answers_at_once(self, pool: Pool) -> None:
        pool.put("a")
        assert len(pool("GET", "/_changes?feed=longpoll&since=0&heartbeat=10000")[1]["results"]) == 1

    def test_heartbeats(self, pool: Pool) -> None:
        connection, response = stream(pool, feed="continuous", since="now", heartbeat="200")
        assert [response.readline() for _ in range(2)] == [b"\n", b"\n"]
        connection.close()

    def test_continuous(self, pool: Pool) -> None:
        pool.put("a")
        connection, response = stream(pool, feed="continuous", since="0", heartbeat="30000")
        rows = (json.loads(line) for line in response if line.strip())
        assert next(rows)["id"] == "a"
        pool.put("b")
        assert next(rows)["id"] == "b"
        connection.close()
        connection, response = stream(pool, feed="continuous", since="0", timeout="1000")
        *known, end = (json.loads(line) for line in response if line.strip())
        assert {row["id"] for row in known} == {"a", "b"}
        assert "last_seq" in end
        connection.close()

    def test_filters(self, pool: Pool) -> None:
        pool.bulk({"_id": "a", "n": 1}, {"_id": "b", "n": 2})
        function = "function (doc, req) { return String(doc.n) === req.query.n; }"
        assert pool.admin("PUT", "/_design/test", {"filters": {"by_n": function}, "views": {}})[0] == 201

        def ids(answer: tuple[int, Any]) -> set[str]:
            assert answer[0] == 200, answer
            return {row["id"] for row in answer[1]["results"]}

        assert ids(pool("GET", "/_changes?filter=test/by_n&n=2")) == {"b"}
        assert ids(pool("GET", "/_changes?filter=_design")) == {"_design/test"}
        assert ids(pool("POST", "/_changes?filter=_doc_ids", {"doc_ids": ["a", "none"]})) == {"a"}
        assert ids(pool("POST", "/_changes?filter=_selector", {"selector": {"n": {"$gt": 1}}})) == {"b"}
        assert pool("GET", "/_changes?filter=test/none")[0] == 404

    def test_a_filtered_long_poll_sleeps_through_other_writes(self, pool: Pool) -> None:
        pool.design()
        assert pool.admin("PUT", "/_design/f", {"filters": {"x": "function (doc) { return doc.x; }"}})[0] == 201
        future = self.poll(pool, since=pool.last_seq(), heartbeat="10000", filter="f/x")
        time.sleep(0.3)
        pool.put("other")
        time.sleep(0.3)
        assert not future.done()
        pool.put("mine", x=True)
        assert [row["id"] for row in future.result(timeout=LIMIT)[1]["results"]] == ["mine"]

    def test_a_rebuilt_database_replays(self, pool: Pool) -> None:
        pool.bulk(*({"_id": str(n)} for n in range(5)))
        since = pool.last_seq()
        pool.server.delete_database(pool.name)
        pool.server.create_database(pool.name, members=[pool.member[0]])
        pool.put("a")
        status, answer = pool("GET", f"/_changes?{query(since=since)}")
        assert (status, [row["id"] for row in answer["results"]]) == (200, ["a"])


def connect(server: CouchDBAdmin) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(server.url)
    assert parts.hostname is not None
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=LIMIT)


def stream(pool: Pool, **parameters: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A _changes feed as the member, to be read line by line."""
    connection = connect(pool.server)
    login = base64.b64encode(":".join(pool.member).encode()).decode()
    path = f"/{pool.name}/_changes?{query(**parameters)}"
    connection.request("GET", path, headers={"Authorization": f"Basic {login}"})
    return connection, connection.getresponse()


class TestNumbers:
    """CouchDB keeps integers exactly, and refuses what no double can hold. ``10**308`` and a bit is the limit."""

    def test_integers_are_kept_exactly(self, pool: Pool) -> None:
        odd = {
            "_id": "a",
            "small": 2**53 + 1,
            "big": [{"in": -(10**300) - 7}],
            "text": "\\u0000integer:5 12345678901234567890",
        }
        pool.bulk(odd)
        assert pool("PUT", "/_local/a", {"n": 2**64})[0] == 201
        for found in (
            pool("GET", "/a")[1],
            pool("GET", "/_all_docs?include_docs=true")[1]["rows"][0]["doc"],
            pool("GET", "/_changes?include_docs=true")[1]["results"][0]["doc"],
            pool("POST", "/_bulk_get", {"docs": [{"id": "a"}]})[1]["results"][0]["docs"][0]["ok"],
            pool("POST", "/_find", {"selector": {"_id": "a"}})[1]["docs"][0],
        ):
            assert {name: value for name, value in found.items() if name != "_rev"} == odd
        assert pool("GET", "/_local/a")[1]["n"] == 2**64

    def test_functions_of_design_documents_see_doubles(self, pool: Pool) -> None:
        pool.bulk({"_id": "a", "n": 2**53 + 1})
        pool.design(n={"map": "function (doc) { emit(typeof doc.n, doc.n); }"})
        assert pool.view("n") == [{"id": "a", "key": "number", "value": 2**53}]

    @pytest.mark.parametrize("text", ["1" + "0" * 309, "-1" + "0" * 309, "1" * 4301], ids=["309", "-309", "4301"])
    def test_an_integer_beyond_a_double_is_an_error_of_the_whole_request(self, pool: Pool, text: str) -> None:
        for method, path, body in (
            ("PUT", "/a", f'{{"n": {text}}}'),
            ("PUT", "/_local/a", f'{{"n": {text}}}'),
            ("PUT", "/b", f'{{"deep": [{{"n": [{text}]}}]}}'),
        ):
            status, answer = pool(method, path, body.encode())
            assert (status, answer["error"], answer["reason"]) == (500, "unknown_error", "badarith")
        assert bulk_text(pool, f'{{"docs": [{{"_id": "good"}}, {{"_id": "c", "n": {text}}}]}}')[0] == 500
        assert pool("GET", "/_all_docs")[1]["rows"] == []
        assert pool("PUT", "/d", f'{{"n": {int(1.7e308)}}}'.encode())[0] == 201

    @pytest.mark.parametrize("text", ["1e309", "-9e999", "1" * 310 + ".5", "1e1000000000000"])
    def test_a_number_beyond_a_double_with_a_fraction_or_an_exponent_is_no_json(self, pool: Pool, text: str) -> None:
        assert pool("PUT", "/a", f'{{"n": {text}}}'.encode()) == (
            400,
            {"error": "bad_request", "reason": "invalid UTF-8 JSON"},
        )


def bulk_text(pool: Pool, text: str) -> tuple[int, Any]:
    """``_bulk_docs`` with a body that is sent as it is."""
    connection, login = connect(pool.server), base64.b64encode(":".join(pool.member).encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    connection.request("POST", f"/{pool.name}/_bulk_docs", text, headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


class TestOddRequests:
    IDS: ClassVar = sorted(
        [
            " ",
            "-",
            ".",
            "..",
            "1",
            "10",
            "B",
            "_",
            "a",
            "a b",
            "a\nb",
            "a/b",
            "aa",
            "b",
            "~",
            "\u00e9",
            "\u4e2d",
            "\uffff",
            "\U0001f600",
        ],
        key=str.encode,
    )

    @pytest.fixture(autouse=True)
    def documents(self, pool: Pool) -> None:
        pool.bulk(*({"_id": name, "n": number} for number, name in enumerate(self.IDS) if name != "_"))

    def listed(self, pool: Pool, **parameters: Any) -> list[str]:
        status, answer = pool("GET", f"/_all_docs?{query(**parameters)}")
        assert status == 200, answer
        return [row["id"] for row in answer["rows"]]

    def test_ids_of_any_characters_are_listed_by_their_bytes(self, pool: Pool) -> None:
        everything = [name for name in self.IDS if name != "_"]
        assert self.listed(pool) == everything
        assert self.listed(pool, descending=True) == everything[::-1]
        assert self.listed(pool, startkey="b") == everything[everything.index("b") :]
        for name in everything:
            assert self.listed(pool, key=name) == [name]
            assert pool("GET", "/" + urllib.parse.quote(name, safe=""))[1]["_id"] == name

    @pytest.mark.parametrize("key", [1, 1.5, None, True, {"a": 1}, [], ""], ids=repr)
    def test_what_is_not_an_id_sorts_before_all_ids(self, pool: Pool, key: Any) -> None:
        everything = [name for name in self.IDS if name != "_"]
        assert self.listed(pool, startkey=key) == everything
        assert self.listed(pool, endkey=key) == []
        assert self.listed(pool, key=key) == []
        assert self.listed(pool, descending=True, endkey=key) == everything[::-1]
        rows = pool("POST", "/_all_docs", {"keys": ["a", key, "a"]})[1]["rows"]
        assert [row.get("id") for row in rows] == ["a", None, "a"]
        if key != []:  # which Erlang takes for an empty text
            assert rows[1] == {"key": key, "error": "not_found"}

    @pytest.mark.parametrize("parameters", [{"reduce": True}, {"group": True}], ids=repr)
    def test_documents_are_not_reduced(self, pool: Pool, parameters: dict[str, Any]) -> None:
        assert pool("GET", f"/_all_docs?{query(**parameters)}")[1]["error"] == "query_parse_error"

    @pytest.mark.parametrize("path", ["/_bulk_docs", "/_all_docs", "/_find", "/_bulk_get", "/_revs_diff"])
    def test_a_request_without_a_body_is_no_json(self, pool: Pool, path: str) -> None:
        connection, login = connect(pool.server), base64.b64encode(":".join(pool.member).encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        connection.request("POST", f"/{pool.name}{path}", "", headers)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["reason"]) == (400, "invalid UTF-8 JSON")
        connection.close()

    def test_pages_of_a_search(self, pool: Pool) -> None:
        pool.bulk(*({"_id": f"page-{number:02d}", "page": number} for number in range(30)))
        asked: dict[str, Any] = {"selector": {"page": {"$gte": 0}}, "fields": ["page"]}
        first = pool("POST", "/_find", asked)[1]
        assert first["docs"] == [{"page": number} for number in range(25)]
        bookmark, pages = None, []
        while True:
            answer = pool("POST", "/_find", {**asked, "limit": 7, **({"bookmark": bookmark} if bookmark else {})})[1]
            if not answer["docs"]:
                break
            pages.append([doc["page"] for doc in answer["docs"]])
            bookmark = answer["bookmark"]
            if len(pages) == 1:  # a page goes on after the last document of the one before, whatever comes before that
                found = pool("GET", "/page-02")[1]
                pool("DELETE", f"/page-02?rev={found['_rev']}")
        assert pages == [[*range(7)], [*range(7, 14)], [*range(14, 21)], [*range(21, 28)], [28, 29]]
        assert pool("POST", "/_find", {**asked, "skip": 28})[1]["docs"] == [{"page": 29}]

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            ({"bookmark": "rubbish"}, "invalid_bookmark"),
            ({"limit": -1}, "invalid_non_neg_integer"),
            ({"skip": "3"}, "invalid_non_neg_integer"),
            ({"selector": {"n": {"$odd": 1}}}, "invalid_operator"),
            ({"sort": ["n"]}, "no_usable_index"),
        ],
        ids=repr,
    )
    def test_a_search_that_is_wrong(self, pool: Pool, wrong: dict[str, Any], error: str) -> None:
        status, answer = pool("POST", "/_find", {"selector": {"n": {"$gte": 0}}, **wrong})
        assert (status, answer["error"]) == (400, error)

    def test_distinct_keys_are_counted(self, pool: Pool) -> None:
        pool.bulk(*({"_id": f"distinct-{number}", "m": number} for number in range(1_500)))
        key = "[doc.m % 5, doc.m % 3]"
        pool.design(n={"map": f"function (doc) {{ if ('m' in doc) emit({key}); }}", "reduce": "_approx_count_distinct"})
        assert pool.view("n") == [{"key": None, "value": 15}]
        assert pool.view("n", group_level=1) == [{"key": [number], "value": 3} for number in range(5)]
        assert pool.view("n", startkey=[3]) == [{"key": None, "value": 6}]


class TestRanges:
    DATA = bytes(range(100))

    def ask(self, pool: Pool, path: str, byte_range: str | None = None) -> tuple[int, bytes, str | None, str | None]:
        connection, login = connect(pool.server), base64.b64encode(":".join(pool.member).encode()).decode()
        headers = {"Authorization": f"Basic {login}", **({"Range": byte_range} if byte_range else {})}
        connection.request("GET", f"/{pool.name}{path}", headers=headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body, response.getheader("Content-Range"), response.getheader("Accept-Ranges")

    def attach(self, pool: Pool, content_type: str) -> None:
        data = base64.b64encode(self.DATA).decode()
        pool.bulk({"_id": "a", "_attachments": {"f": {"content_type": content_type, "data": data}}})

    def test_a_part_of_an_attachment(self, pool: Pool) -> None:
        self.attach(pool, "application/octet-stream")
        assert self.ask(pool, "/a/f") == (200, self.DATA, None, "bytes")
        assert self.ask(pool, "/a/f", "bytes=0-9") == (206, self.DATA[:10], "bytes 0-9/100", "bytes")
        assert self.ask(pool, "/a/f", "bytes=90-") == (206, self.DATA[90:], "bytes 90-99/100", "bytes")
        assert self.ask(pool, "/a/f", "bytes=95-200") == (206, self.DATA[95:], "bytes 95-99/100", "bytes")
        assert self.ask(pool, "/a/f", "bytes=-5") == (206, self.DATA[-5:], "bytes 95-99/100", "bytes")
        # CouchDB 3.5 leaves out the first byte:
        assert self.ask(pool, "/a/f", "bytes=-100") == (206, self.DATA[1:], "bytes 1-99/100", "bytes")
        assert self.ask(pool, "/a/f", "lines=0-9")[:2] == (200, self.DATA)
        for outside in ("bytes=100-", "bytes=200-300", "bytes=5-2"):
            assert self.ask(pool, "/a/f", outside)[0] == 416

    @pytest.mark.parametrize("content_type", ["text/plain", "application/json"])
    def test_what_it_compresses_comes_as_a_whole(self, pool: Pool, content_type: str) -> None:
        self.attach(pool, content_type)
        assert self.ask(pool, "/a/f", "bytes=0-9") == (200, self.DATA, None, "none")
        assert self.ask(pool, "/a/f", "bytes=100-")[0] == 416


class TestProcess:
    """The embedded server as a process. A CouchDB of your own is left alone by these."""

    def test_acknowledged_writes_survive_a_kill(self, tmp_path: Path) -> None:
        with CouchDB(tmp_path) as server:
            server.create_database("pool")
            acknowledged: dict[str, str] = {}
            pilots: list[str] = []

            def write(worker: int) -> None:
                for n in itertools.count():
                    try:
                        docs = [{"_id": f"{worker}:{n}:{i}"} for i in range(10)]
                        rows = server.request("POST", "/pool/_bulk_docs", {"docs": docs})[1]
                        assert server.request("PUT", f"/pool/_local/{worker}-{n}", {})[0] == 201
                    except (OSError, http.client.HTTPException):
                        return
                    acknowledged.update((row["id"], row["rev"]) for row in rows)
                    pilots.append(f"_local/{worker}-{n}")

            writers = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(1.5)
            processes.wait_for(lambda: len(acknowledged) > 100, what="Writing", seconds=60)
            url = server.url
            server.kill()
            for writer in writers:
                writer.join()
            server.start()
            assert server.url == url
            rows = server.request("GET", "/pool/_all_docs")[1]["rows"]
            found = {row["id"]: row["value"]["rev"] for row in rows}
            assert {doc_id: found.get(doc_id) for doc_id in acknowledged} == acknowledged
            locals_found = {row["id"] for row in server.request("GET", "/pool/_local_docs")[1]["rows"]}
            assert set(pilots) <= locals_found

    def test_it_stops_and_starts_again(self, tmp_path: Path) -> None:
        server = CouchDB(tmp_path)
        server.start()
        process = server.process
        assert process is not None
        server.create_database("pool")
        server.create_user("anna", "secret")
        server.stop()
        assert process.returncode == 0, "SIGTERM ends it in good order"
        assert processes.marked(tmp_path) == []
        with CouchDB(tmp_path) as again:  # another object on the same folder: same password, another port
            assert again.password == server.password
            assert again.request("GET", "/pool")[0] == 200
            assert again.request("GET", "/_session", login=("anna", "secret"))[0] == 200

    def test_a_waiting_feed_does_not_delay_the_stop(self, tmp_path: Path) -> None:
        with CouchDB(tmp_path) as server:
            connection = connect(server)
            login = base64.b64encode(f"{server.admin}:{server.password}".encode()).decode()
            path = "/_users/_changes?feed=continuous&heartbeat=10000"
            connection.request("GET", path, headers={"Authorization": f"Basic {login}"})
            connection.getresponse()
            process = server.process
            assert process is not None
            server.stop()
            assert process.returncode == 0, "it ends before it would be killed"
            connection.close()

    def test_the_password_is_in_one_private_file_only(self, tmp_path: Path) -> None:
        with CouchDB(tmp_path, admin="root", password="very secret") as server:
            assert server.process is not None
            for part in ("cmdline", "environ"):
                assert b"very secret" not in Path(f"/proc/{server.process.pid}/{part}").read_bytes()
            assert stat.S_IMODE(server.config.stat().st_mode) == 0o600
            assert server.request("GET", "/_all_dbs")[0] == 200
            assert server.request("GET", "/_all_dbs", login=("root", "wrong"))[0] == 401

    def test_it_tells_why_it_does_not_start(self, tmp_path: Path) -> None:
        with CouchDB(tmp_path / "one") as first, pytest.raises(processes.StackError, match="EADDRINUSE"):
            CouchDB(tmp_path / "two", port=first.port).start()

    def test_installing_again_does_nothing(self) -> None:
        program = couchdb.install()
        stamp = program.parent / "installed"
        before = stamp.stat().st_mtime_ns
        assert couchdb.install() == program
        assert stamp.stat().st_mtime_ns == before
