from __future__ import annotations

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.refusals import Refusals
from airflow_provider_picas.couchdb.settings import Settings

OLD, NEW = (Settings("http://h", "d", "me", password) for password in ("old", "new"))
REFUSED = errors.UnauthorizedError("no", status=401, error="unauthorized", reason="Name or password is incorrect.")


def test_four_tries_in_five_minutes_at_most() -> None:
    refusals, tries = Refusals(), []
    for now in range(3_600):
        if refusals.known(OLD, now) is None:
            tries.append(now)
            refusals.note(OLD, REFUSED, now)
    assert tries[:4] == [0, 30, 90, 210]
    assert all(later - earlier >= 300 for earlier, later in zip(tries, tries[4:], strict=False))


def test_another_login_is_tried_at_once() -> None:
    refusals = Refusals()
    refusals.note(OLD, REFUSED, 0.0)
    known = refusals.known(OLD, 1.0)
    assert known is not None
    assert (type(known), str(known), known.status, known.reason) == (
        errors.UnauthorizedError, "no", 401, REFUSED.reason,
    )  # fmt: skip
    assert refusals.known(NEW, 1.0) is None
    refusals.forget(OLD)
    assert refusals.known(OLD, 1.0) is None


def test_a_right_that_a_login_lacks_is_not_a_refused_login() -> None:
    refusals = Refusals()
    refusals.note(OLD, errors.ForbiddenError("no", status=403, reason="You are not a db or server admin."), 0.0)
    assert refusals.known(OLD, 1.0) is None
    locked = "Account is temporarily locked due to multiple authentication failures"
    refusals.note(OLD, errors.ForbiddenError("no", status=403, reason=locked), 0.0)
    assert refusals.known(OLD, 1.0) is not None


def test_requests_under_way_together_count_once() -> None:
    refusals = Refusals()
    for _ in range(5):
        refusals.note(OLD, REFUSED, 0.0)
    assert refusals.known(OLD, 29.0) is not None
    assert refusals.known(OLD, 30.0) is None
