"""How a response becomes a typed error, and which requests are repeated."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.couchdb.http import Request, Response
from airflow_provider_picas.couchdb.settings import Settings

POOL = Settings("https://couch.example.org:6984", "pool", "me", "s3cret")
GET = Request("GET", "/pool")


def answer(status: int, told: Any = None, *, body: bytes | None = None, **headers: str) -> Response:
    return Response(status, headers, json.dumps(told).encode() if body is None else body)


def check(told: Response, request: Request = GET) -> Response:
    return http.check(POOL, "my_pool", request, told)


@pytest.mark.parametrize(
    ("status", "error", "reason", "kind", "words"),
    [
        (401, "unauthorized", "Wrong password.", errors.UnauthorizedError, "login and password of connection 'my_pool'"),
        (403, "forbidden", "no", errors.ForbiddenError, "Login 'me' is not allowed to do this in pool on https://couch.example.org:6984"),
        (404, "not_found", "Database does not exist.", errors.NotFoundError, "Check the database of connection 'my_pool'"),
        (404, "not_found", "missing", errors.NotFoundError, "Not found in pool"),
        (409, "conflict", "Document update conflict.", errors.ConflictError, "has been changed in the meantime"),
        (429, "too_many_requests", "slow down", errors.UnavailableError, "Try again later"),
        (500, "internal_server_error", "boom", errors.UnavailableError, "Try again later"),
        (503, "service_unavailable", "x", errors.UnavailableError, "Try again later"),
        (400, "bad_request", "invalid UTF-8 JSON", errors.CouchDBError, "refused a request"),
        (413, "document_too_large", "b:5", errors.TooLargeError, "document_too_large: b:5"),
    ],
)  # fmt: skip
def test_responses_become_typed_errors(
    status: int, error: str, reason: str, kind: type[errors.CouchDBError], words: str
) -> None:
    with pytest.raises(errors.CouchDBError) as caught:
        check(answer(status, {"error": error, "reason": reason}))
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.error, caught.value.reason) == (status, error, reason)
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_view_that_is_missing_is_named() -> None:
    with pytest.raises(errors.NotFoundError, match="There is no view 'todo' in design document 'Monitor' of pool on"):
        check(
            answer(404, {"error": "not_found", "reason": "missing"}), Request("GET", "/pool/_design/Monitor/_view/todo")
        )


@pytest.mark.parametrize("status", [200, 201, 202, 304])
def test_what_is_not_an_error_is_passed_on(status: int) -> None:
    told = answer(status, {"ok": True})
    assert check(told) == told


HTML = b"\n  <!DOCTYPE html>\n<html><title>Sign in</title></html>"


@pytest.mark.parametrize(
    "told",
    [
        answer(200, body=HTML),
        answer(200, body=b"", **{"content-type": "text/html; charset=utf-8"}),
        answer(404, body=HTML),
        answer(401, body=b"Unauthorized"),
        answer(404, {"message": "no such route"}),
        answer(405, ["error"]),
    ],
)
def test_other_servers_are_not_taken_for_couchdb(told: Response) -> None:
    with pytest.raises(
        errors.NotCouchDBError, match=r"is not CouchDB: HTTP .*Check host and port of connection 'my_pool'"
    ):
        check(told)


@pytest.mark.parametrize("status", [301, 302, 307])
@pytest.mark.parametrize("raw", [False, True])
def test_a_redirect_is_reported_with_its_aim(status: int, raw: bool) -> None:
    with pytest.raises(
        errors.NotCouchDBError, match=r"'https://sso.example.org/' .*in the host of connection 'my_pool'"
    ):
        check(answer(status, body=b"", location="https://sso.example.org/"), Request("GET", "/pool/x", raw=raw))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_proxys_own_page_is_worth_another_try(status: int) -> None:
    with pytest.raises(errors.UnavailableError) as caught:
        check(answer(status, body=HTML))
    assert http.worth_repeating(GET, caught.value, 1)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            "forbidden",
            errors.ForbiddenError,
            r"Login 'me' is not allowed to write token 'b:1' to pool on .*forbidden: no.*Ask the database's administrator",
        ),
        ("unauthorized", errors.ForbiddenError, "administrator"),
        ("bad_request", errors.CouchDBError, r"CouchDB refused token 'b:1' in pool on .*bad_request: no"),
    ],
)
def test_a_refused_token_is_named(error: str, kind: type[errors.CouchDBError], words: str) -> None:
    told = http.refused(POOL, "b:1", error, "no")
    assert (type(told), told.error, told.reason) == (kind, error, "no")
    assert re.search(words, str(told))


def test_an_attachment_may_be_html() -> None:
    told = answer(200, body=HTML)
    assert check(told, Request("GET", "/pool/x/log.html", raw=True)) == told


def test_an_answer_to_head_has_no_body() -> None:
    with pytest.raises(errors.NotFoundError):
        check(answer(404, body=b""), Request("HEAD", "/pool"))


def test_an_answer_that_was_cut_off_is_worth_another_try() -> None:
    with pytest.raises(errors.UnavailableError, match="truncated") as caught:
        answer(200, body=b'{"rows":[{"id"').json()
    assert http.worth_repeating(GET, caught.value, 1)


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (4, True), (5, False)])
def test_a_server_that_does_not_answer_is_tried_five_times(attempt: int, again: bool) -> None:
    error = http.unreachable(POOL, "my_pool", "Connection refused")
    assert http.worth_repeating(GET, error, attempt) is again


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (4, True), (5, False)])
def test_a_server_that_is_busy_is_asked_five_times(attempt: int, again: bool) -> None:
    assert http.worth_repeating(GET, errors.UnavailableError("busy", status=503), attempt) is again


@pytest.mark.parametrize(
    "error",
    [
        errors.ConflictError("x", status=409),
        errors.UnauthorizedError("x", status=401),
        errors.NotCouchDBError("x"),
        http.tls_failed(POOL, "my_pool", "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    ],
)
def test_other_errors_are_not_repeated(error: errors.CouchDBError) -> None:
    assert not http.worth_repeating(GET, error, 1)


def test_what_is_not_safe_to_repeat_is_sent_once() -> None:
    request = Request("PUT", "/pool/x", body=b"{}", repeatable=False)
    assert not http.worth_repeating(request, errors.UnavailableError("busy", status=503), 1)


def test_pauses_grow_and_the_servers_wish_counts() -> None:
    assert all(0.25 <= http.wait_before(2) <= 0.75 for _ in range(50))
    assert all(2 <= http.wait_before(5) <= 6 for _ in range(50))
    assert all(7 <= http.wait_before(2, "7") <= 7.5 for _ in range(50))
    assert http.wait_before(2, "86400") <= 30.5
    assert http.wait_before(2, "Wed, 21 Oct 2026 07:28:00 GMT") <= 0.75


def test_the_date_header_is_the_servers_clock() -> None:
    assert answer(200, {}, date="Wed, 21 Oct 2026 07:28:00 GMT").time == 1_792_567_680
    assert answer(200, {}).time is None
    assert answer(200, {}, date="yesterday").time is None


def test_a_request_has_a_target_and_headers() -> None:
    request = Request("GET", "/a%2Fb", {"key": '"x y"', "limit": "1"})
    assert request.target == "/a%2Fb?key=%22x+y%22&limit=1"
    assert request.headers == {"Accept": "application/json"}
    assert Request("POST", "/x", body=b"{}").headers["Content-Type"] == "application/json"


def test_foreign_text_in_errors_is_escaped_and_cut() -> None:
    odd = "\x1b[31m::group::x\u202e" + "y" * 5000
    told = [
        http.refused(POOL, odd, "too_large", odd),
        http.refused(POOL, odd, "forbidden", odd),
        http.unreachable(POOL, "c", odd),
        http.tls_failed(POOL, "c", odd),
        http.tls_failed(POOL, "c", "CERTIFICATE_VERIFY_FAILED" + odd),
    ]
    for status in (200, 302, 401, 404, 500):
        error = {"error": odd, "reason": odd}
        for told_so in (
            Response(status, {"location": odd}, json.dumps(error).encode()),
            Response(status, {}, f"<{odd}".encode()),
        ):
            try:
                check(told_so)
            except errors.CouchDBError as raised:
                told.append(raised)
    assert len(told) > 12
    for error in told:
        assert str(error).isprintable()
        assert "::group::" not in str(error)
        assert len(str(error)) < 1200
