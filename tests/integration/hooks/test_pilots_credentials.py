"""A password that changes on the server and in the connection while a wait and its pilots run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.couchdb.errors import UnauthorizedError
from airflow_provider_picas.hooks import picas_async
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.hooks.pilots import credential_files
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.sensors.actions import PilotActions
from airflow_provider_picas.slurm import credentials, submission_folder
from airflow_provider_picas.slurm.remote import Send
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.wait import Wait
from airflow_provider_picas.tokens import documents, waiting
from airflow_provider_picas.tokens.counts import Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Terms
from airflow_provider_picas.triggers import feed
from airflow_provider_picas.triggers.cluster import cluster_for
from stack import native, processes
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Proxy


def change_password(couchdb: CouchDBAdmin, pool: Pool) -> Pool:
    """Give the pool's user another password; the pool as it is reached then."""
    path = f"/_users/org.couchdb.user:{pool.user}"
    _, user = couchdb.request("GET", path)
    new = secrets.token_urlsafe(16)
    status, answer = couchdb.request("PUT", path, {**user, "password": new})
    assert status == 201, answer

    def known() -> bool:  # CouchDB remembers users for a moment
        return couchdb.request("GET", f"/{pool.database}", login=(pool.user, pool.password))[0] == 401

    processes.wait_for(known, what="The new password", seconds=30)
    return replace(pool, password=new)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The connections that asynchronous hooks have looked up."""
    made: list[str] = []
    real = picas_async.get_async_connection

    async def look_up(conn_id: str) -> Any:
        made.append(conn_id)
        return await real(conn_id)

    monkeypatch.setattr(picas_async, "get_async_connection", look_up)
    return made


def test_a_hook_takes_up_the_new_password(
    pool: Pool, picas_default: str, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picas_async, "FIRST_LOOK_UP", 0.0)
    PicasHook(picas_default).deploy_views()

    async def work() -> None:
        async with PicasAsyncHook(picas_default) as hook:
            assert await hook.count() == Counts()
            changed = change_password(couchdb, pool)
            with pytest.raises(UnauthorizedError):
                await hook.count()
            set_connection(monkeypatch, picas_default, native.picas_connection(changed))
            several = await asyncio.gather(*(hook.count() for _ in range(3)))
            assert several == [Counts()] * 3
            assert hook.settings.password == changed.password

    asyncio.run(work())


def test_refused_requests_do_not_look_it_up_each_time(
    pool: Pool, picas_default: str, couchdb: CouchDBAdmin, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picas_async, "FIRST_LOOK_UP", 0.001)
    PicasHook(picas_default).deploy_views()

    async def work() -> None:
        async with PicasAsyncHook(picas_default) as hook:
            change_password(couchdb, pool)
            requests = 0
            while requests < 100 or len(lookups) < 4:  # the fourth needs only time
                with pytest.raises(UnauthorizedError):
                    await hook.count()
                requests += 1

    asyncio.run(work())
    assert len(lookups) < 30  # each pause is twice the one before


def test_a_refused_login_is_tried_once_by_all(
    pool: Pool, picas_default: str, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CouchDB locks an account out after a few failed logins, and each wait has hooks of its own."""
    PicasHook(picas_default).deploy_views()

    async def work(proxy: Proxy) -> int:
        async with contextlib.AsyncExitStack() as stack:
            waits = [await stack.enter_async_context(PicasAsyncHook("proxied")) for _ in range(20)]
            change_password(couchdb, pool)
            for hook in waits:
                for _ in range(3):
                    with pytest.raises(UnauthorizedError):
                        await hook.count()
        return len(proxy.requests)

    with Proxy(pool.url) as proxy:
        set_connection(monkeypatch, "proxied", {**native.picas_connection(pool), "host": proxy.url, "port": None})
        assert asyncio.run(work(proxy)) == 1


def test_the_feed_goes_on_with_the_new_password(
    pool: Pool, picas_default: str, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told of an outage when the connection is changed in time."""
    monkeypatch.setattr(picas_async, "FIRST_LOOK_UP", 0.0)
    monkeypatch.setattr(waiting, "REFUSED_SECONDS", 0.0)
    hook = PicasHook(picas_default)
    hook.deploy_views()

    def push(hook: PicasHook, ordinal: int) -> None:
        hook.push([documents.new_token({"input": 0}, batch="a", push="a", ordinal=ordinal)])

    async def work() -> None:
        async with feed.feed_for(picas_default).subscribe("a") as news, asyncio.timeout(60):
            assert (await anext(news)).counts == Counts()
            changed = change_password(couchdb, pool)
            set_connection(monkeypatch, picas_default, native.picas_connection(changed))
            notices: list[str] = []
            for ordinal in range(3):
                await asyncio.to_thread(push, PicasHook(picas_default), ordinal)
                counts = None
                while counts != Counts(todo=ordinal + 1):
                    item = await anext(news)
                    counts, notices = item.counts or counts, [*notices, *item.notices]
            assert notices == []

    asyncio.run(work())


# -- the pilots' files -------------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(remote: SlurmHook, picas_default: str) -> Iterator[Submission]:
    """The folder of a submission that came with credentials of ``picas_default``."""
    home = remote.run("cd && pwd -P").stdout.strip()
    watched = Submission(f"picas-test-{secrets.token_hex(4)}.1", f"{home}/renewed-{secrets.token_hex(4)}", 0, "spider")
    assert remote.run(f"mkdir -p -m 700 {watched.folder}/{submission_folder.CREDENTIALS}").code == 0
    files = credential_files(watched.folder, PicasHook(picas_default).settings)
    assert remote.perform(Send(files)).code == 0
    assert remote.run(f"printf picas_default > {watched.folder}/{submission_folder.SENT}").code == 0
    yield watched
    remote.run(f"rm -rf {watched.folder}")


def renew(watched: Submission, how: str, conn_id: str = "picas_default", **options: Any) -> None:
    """Renew the pilots' credentials, as a task or a trigger does."""
    hook = PicasHook(conn_id, **options)
    if how == "task":
        wait = Wait(Terms(None, None, ErrorBudget(0)), logging.getLogger(__name__))
        actions = PilotActions(watched, hook, wait, logging.getLogger(__name__))
        with actions._connect() as hooks:
            actions._renew_credentials(hooks)
        assert not wait.watched(watched.key).credentials.differ(hook.settings)
        return

    async def work() -> None:
        files = credential_files(watched.folder, hook.settings)
        async with cluster_for("spider").use() as slurm:
            await slurm.do(submission_folder.renew_credentials(watched.folder, files, conn_id))

    asyncio.run(work())


def listing(remote: SlurmHook, watched: Submission) -> list[str]:
    return remote.run(f"cd {watched.folder}/credentials && stat -c '%a %n %i' $(ls -A)").stdout.splitlines()


def password(remote: SlurmHook, watched: Submission) -> str:
    return remote.run(f'grep PASSWORD {watched.folder}/credentials/{credentials.FILE} | cut -d"\'" -f2').stdout.strip()


@pytest.mark.parametrize("how", ["task", "trigger"])
def test_the_pilots_file_is_replaced_whole(
    submitted: Submission, remote: SlurmHook, pool: Pool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(remote, submitted)
    renew(submitted, how)  # nothing has changed
    assert listing(remote, submitted) == before
    changed = replace(pool, password=f"{secrets.token_urlsafe(8)}é%")
    set_connection(monkeypatch, "picas_default", native.picas_connection(changed))
    renew(submitted, how)
    after = listing(remote, submitted)
    assert [line.rpartition(" ")[0] for line in after] == ["600 picasconfig.py"]
    assert after != before  # another file, which was renamed
    text = remote.run(f"cat {submitted.folder}/credentials/{credentials.FILE}").stdout.encode()
    assert text == credential_files("", PicasHook("picas_default").settings)[0].content
    assert pool.password.encode() not in text


@pytest.mark.parametrize("how", ["task", "trigger"])
def test_credentials_of_others_are_left_alone(
    submitted: Submission, remote: SlurmHook, pool: Pool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = native.picas_connection(replace(pool, password="another"))
    set_connection(monkeypatch, "picas_other", changed)
    renew(submitted, how, "picas_other")  # another connection than that of the submission
    set_connection(monkeypatch, "picas_default", changed)
    renew(submitted, how, database="elsewhere")
    assert password(remote, submitted) == pool.password
    remote.run(f"rm {submitted.folder}/credentials/*")
    renew(submitted, how)  # gone, since the pilots have ended
    assert listing(remote, submitted) == []


def test_credentials_of_an_earlier_version_are_replaced(
    submitted: Submission, remote: SlurmHook, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say from which connection its credentials came."""
    remote.run(f": > {submitted.folder}/{submission_folder.SENT}")
    set_connection(monkeypatch, "picas_default", native.picas_connection(replace(pool, password="another")))
    renew(submitted, "trigger")
    assert password(remote, submitted) == "another"
