"""Pushing from a file, a function or another task's output, in pools of other kinds, and the progress that is logged."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator, push
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.push import OnExisting, PushReport, pushed_by
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, paths
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration import lives
from tests.integration.faults import Fault, Proxy
from tests.integration.tasks import context

Push = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _connection(picas_default: str) -> None:
    """All tests push to ``pool``."""


def run(task_id: str = "push", run_id: str = "run1", try_number: int = 1, **arguments: Any) -> dict[str, Any]:
    """Run the operator as one task instance, and return its output."""
    output: dict[str, Any] = PicasPushTokensOperator(task_id=task_id, **arguments).execute(
        context(task_id, run_id=run_id, try_number=try_number)
    )
    return output


def pushed(pool: Pool, field: str = "input") -> list[Any]:
    """A field of all tokens, in the order of their places."""
    return [token.get(field) for token in sorted(pool.tokens(), key=lambda token: int(token["ordinal"]))]


class BlockStore(AbstractFileSystem):  # type: ignore[misc]
    """Files that are read in blocks, as in S3 and most stores: fsspec's own, with no more than fsspec asks of a store."""

    cachable = False
    files: ClassVar[dict[str, bytes]] = {}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.files[PurePath(path).name]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AbstractBufferedFile:
        return BlockFile(self, path, mode, block_size=1_000)


class BlockFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of ``BlockStore``."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.files[PurePath(self.path).name][start:end]  # type: ignore[no-any-return]


class TestFiles:
    @pytest.mark.parametrize("name", ["inputs.jsonl", "inputs.ndjson", "inputs.jsonl.gz"])
    @pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath, "file://{}".format])
    def test_a_file_of_json_lines_is_pushed(
        self, pool: Pool, tmp_path: Path, name: str, kind: Callable[[str], Any]
    ) -> None:
        content = b'{"a": 1}\n"x"\n\n3\n'
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert run(inputs=kind(str(tmp_path / name)))["tokens"] == 3
        assert pushed(pool) == [{"a": 1}, "x", 3]

    def test_a_csv_file_is_pushed(self, pool: Pool, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("sample,priority\ns1,5\ns2,\n")
        run(tokens=str(tmp_path / "t.csv"), key="sample", batch="b")
        run("push2", inputs=str(tmp_path / "t.csv"), key="sample", batch="c")
        hook = PicasHook()
        assert (hook.get("b:s1")["priority"], hook.get("b:s1")["sample"]) == (5, "s1")
        assert "priority" not in hook.get("b:s2")
        assert hook.get("c:s1")["input"] == {"sample": "s1", "priority": 5}

    def test_a_file_in_an_object_store_is_pushed(self, pool: Pool) -> None:
        attach("memory", fs=fsspec.filesystem("memory"))
        path = ObjectStoragePath("memory://bucket/inputs.csv")
        path.write_bytes(b"a\n1\n2\n")
        run(inputs="memory://bucket/inputs.csv")
        assert pushed(pool) == [{"a": "1"}, {"a": "2"}]

    @pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.jsonl.gz"])
    def test_a_file_of_a_store_that_reads_blocks(self, pool: Pool, name: str) -> None:
        numbers = range(2_500)
        content = "".join(f'"{n}"\n' for n in numbers) if "json" in name else "a\n" + "".join(f"{n}\n" for n in numbers)
        BlockStore.files[name] = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
        attach("memory", conn_id="blocks", fs=BlockStore())
        assert run(inputs=f"memory://blocks@bucket/{name}")["tokens"] == 2_500
        values = pushed(pool)
        assert [value if "json" in name else value["a"] for value in values] == [str(n) for n in numbers]

    @pytest.mark.parametrize(
        ("name", "good", "half", "rest", "line"),
        [
            ("t.jsonl", '{"input": 1}\n' * 1_500, '{"input": 2, "pri', 'ority": 3}\n', 1_501),
            ("t.csv", "input,priority\n" + "1,2\n" * 1_500, "1", "2,3\n", 1_502),
            ("t.csv", "input,priority\n" + "1,2\n" * 1_500, "12,3", "4\n", 1_502),
        ],
    )
    def test_a_half_written_file_is_pushed_up_to_there_and_later_from_there(
        self, pool: Pool, tmp_path: Path, name: str, good: str, half: str, rest: str, line: int
    ) -> None:
        path = tmp_path / name
        path.write_text(good + half)
        with pytest.raises(AirflowFailException) as caught:
            run(tokens=str(path))
        assert str(caught.value).startswith(f"{path}, line {line:,}: ")
        assert "truncated" in str(caught.value)
        assert "The tokens before it were pushed (1,500)" in str(caught.value)
        before = {token["_id"]: token["_rev"] for token in pool.tokens()}
        assert len(before) == 1_500
        path.write_text(good + half + rest)
        assert run(tokens=str(path))["tokens"] == 1_501
        after = {token["_id"]: token["_rev"] for token in pool.tokens()}
        assert len(after) == 1_501
        assert before.items() <= after.items()

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("t.jsonl", '"a"\n"é"\n'.encode("latin-1"), "t.jsonl, line 2: The line is not valid UTF-8"),
            ("t.csv", "a\nb\n".encode("utf-16"), "t.csv, line 1: The line is not valid UTF-8"),
            ("t.jsonl.gz", b'"a"\n', "t.jsonl.gz, line 1: The compressed file is damaged"),
            ("t.csv.j2", b"a\n", "t.csv.j2' is interpreted as the path of an input file, but does not end in"),
        ],
    )
    def test_a_file_of_another_kind_is_reported(self, tmp_path: Path, name: str, content: bytes, words: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AirflowFailException, match=re.escape(words)):
            run(inputs=str(tmp_path / name))

    def test_a_bad_token_is_reported_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        path.write_text('{"input": 1}\n\n{"_rev": "1-a"}\n')
        with pytest.raises(AirflowFailException, match=rf"{path}, line 3: Token 1 has the field '_rev'"):
            run(tokens=path)
        path.write_text('{"input": 1}\n{"input": NaN}\n')
        with pytest.raises(AirflowFailException, match=rf"{path}, line 2: Token 1 is not JSON: input is nan"):
            run(tokens=path)

    def test_rows_of_two_megabytes_are_pushed(self, pool: Pool, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("text\n" + f"{'x' * 2_000_000}\n" * 5)
        run(inputs=str(tmp_path / "t.csv"))
        assert [len(value["text"]) for value in pushed(pool)] == [2_000_000] * 5

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("nowhere.jsonl", r"File .*nowhere\.jsonl does not exist"),
            ("inputs.txt", r"does not end in \.jsonl, \.ndjson, \.csv"),
            ("['a', 'b']", r"inputs=task\.output"),
            ("nosuch://bucket/t.csv", "not the path of an input file: .*nosuch"),
            ({"a": 1}, "not from {'a': 1}"),
            (b"bytes", "not from b'bytes'"),
            (5, "not from 5"),
        ],
    )
    def test_an_invalid_source_is_refused(self, given: Any, words: str) -> None:
        with pytest.raises(AirflowFailException, match=words):
            run(inputs=given)


class TestFunctions:
    def test_a_function_is_called_when_the_task_runs(self, pool: Pool) -> None:
        def observations(ti: Any) -> Iterator[str]:
            yield from (f"{ti.run_id}-{number}" for number in range(3))

        run(inputs=observations)
        assert pushed(pool) == ["run1-0", "run1-1", "run1-2"]

    def test_functions_are_not_rendered(self, pool: Pool) -> None:
        operator = PicasPushTokensOperator(
            task_id="push",
            tokens=lambda ds: [{"input": ds}],
            key=lambda fields: fields["input"],
            attachments=lambda fields: {"a": b"x"},
            batch="b-{{ ds }}",
        )
        variables = {**context(), "ds": "2026-11-22"}
        operator.render_template_fields(variables)
        operator.execute(variables)
        (token,) = pool.tokens()
        assert (token["_id"], list(token["_attachments"])) == ("b-2026-11-22:2026-11-22", ["a"])

    def test_a_function_may_return_a_path(self, pool: Pool, tmp_path: Path) -> None:
        (tmp_path / "t.jsonl").write_text('{"input": 7}\n')
        run(tokens=lambda: tmp_path / "t.jsonl")
        assert pushed(pool) == [7]

    def test_it_is_read_as_it_is_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        most: list[int] = []

        def observations() -> Iterator[int]:
            for number in range(40_000):
                asked.append(number)
                yield number

        def log(progress: push.Progress, report: Any) -> None:
            most.append(len(asked) - report.tokens)

        monkeypatch.setattr(push.Progress, "log", log)
        run(inputs=observations)
        assert max(most) < 15_000

    def test_errors_of_a_function_propagate(self, pool: Pool) -> None:
        def observations() -> Iterator[int]:
            yield from range(2_500)
            raise ConnectionError("the source is away")

        with pytest.raises(ConnectionError, match="the source is away"):
            run(inputs=observations)
        assert run(inputs=range(2_500))["tokens"] == 2_500
        assert pushed(pool) == list(range(2_500))


def test_memory_does_not_grow_with_the_input(picas_default: str) -> None:
    def peak(number: int) -> float:
        program = [sys.executable, "-m", "benchmarks.memory", str(number)]
        environment = {**os.environ, "AIRFLOW_CONN_PICAS_BENCH": os.environ[f"AIRFLOW_CONN_{picas_default.upper()}"]}
        answer = subprocess.run(program, cwd=paths.PROJECT, env=environment, capture_output=True, text=True, check=True)
        return float(answer.stdout.split()[-1])

    assert peak(40_000) - peak(1_000) < 50  # five times what is under way at once


class TestExisting:
    def test_what_an_earlier_run_has_done_is_named_and_not_counted_as_this_ones(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(inputs=["a", "b", "c"], key="input", batch="b")["done_before"] == 0
        lives.change(PicasHook(), "b:a", **lives.LIVES[State.DONE])
        lives.change(PicasHook(), "b:b", **lives.LIVES[State.ERROR])
        again = run(inputs=["a", "b", "c", "d"], key="input", batch="b")
        assert (again["tokens"], again["done_before"]) == (4, 0)  # its own
        lives.change(PicasHook(), "b:b", **lives.LIVES[State.ERROR])
        capsys.readouterr()
        next_run = run(inputs=["a", "b", "c"], key="input", batch="b", run_id="run2")
        assert (next_run["tokens"], next_run["done_before"], next_run["done_before_ids"]) == (3, 1, ["b:a"])
        said = capsys.readouterr().out
        assert "1 tokens were already done: an earlier run pushed them" in said
        assert "b:a" in said
        pushes = [pushed_by(PicasHook().get(token_id)) for token_id in ("b:a", "b:b", "b:c")]
        assert pushes[0] == pushes[2] != pushes[1]  # it runs again for the later run

    def test_a_failed_token_runs_again_with_its_new_input(self, capsys: pytest.CaptureFixture[str]) -> None:
        hook = PicasHook()
        run(tokens=[{"name": "a", "input": 1}, {"name": "b", "input": 1}], key="name", batch="b")
        lives.change(hook, "b:a", **lives.LIVES[State.ERROR])
        lives.attach(hook, "b:a", **{"logs.err": b"boom"})
        run(tokens=[{"name": "a", "input": 2}, {"name": "b", "input": 2}], key="name", batch="b", try_number=2)
        token = hook.get("b:a")
        assert (token["input"], token["attempts"][0]["exit_code"], hook.count("b")) == (2, 3, Counts(todo=2))
        assert lives.attached(hook, "b:a") == {"logs.err": b"boom"}
        assert hook.get("b:b")["input"] == 1
        assert "1 tokens were not changed although their input differs: b:b" in capsys.readouterr().out

    @pytest.mark.parametrize("on_existing", ["keep", "reset", "replace", "fail"])
    def test_inputs_in_another_order_are_not_duplicates(self, pool: Pool, on_existing: str) -> None:
        inputs = [f"x{number}" for number in range(2_500)]
        first = run(inputs=inputs, key="input")
        more = ["new", *reversed(inputs)]
        second = run(inputs=more, key="input", on_existing=on_existing)
        assert second == {**first, "tokens": 2_501, "label": "new, x2499, x2498 and 2,498 more"}
        assert sorted(token["input"] for token in pool.tokens()) == sorted(more)

    def test_a_duplicate_is_found_also_in_the_tokens_of_an_earlier_run(self) -> None:
        inputs = [f"x{number}" for number in range(1_500)]
        run(inputs=inputs, key="input", batch="b")
        with pytest.raises(AirflowFailException, match="Inputs 3 and 1,500 "):
            run(inputs=[*inputs, "x3"], key="input", batch="b", run_id="run2")

    def test_replacing_writes_new_inputs_unless_a_pilot_has_the_token(self) -> None:
        hook = PicasHook()
        run(inputs=[1, 1, 1, 1], batch="b")
        lives.change(hook, "b:00000001", **lives.LIVES[State.LOCKED])
        lives.change(hook, "b:00000002", **lives.LIVES[State.DONE])
        run(inputs=[2, 2, 2, 1], batch="b", on_existing="replace")
        assert [hook.get(f"b:{place:08d}")["input"] for place in range(4)] == [2, 1, 2, 1]
        assert hook.count("b") == Counts(todo=3, locked=1)
        assert hook.get("b:00000003")["_rev"].startswith("1-")


class TestAttachments:
    def test_files_are_attached(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_bytes(b"a = 1")
        files = {"config.toml": str(tmp_path / "config.toml"), "raw": b"\0\1"}
        run(tokens=[{"input": 1, "files": files}, {"input": 2}], attachments="files", batch="b")
        hook = PicasHook()
        assert lives.attached(hook, "b:00000000") == {"config.toml": b"a = 1", "raw": b"\0\1"}
        assert "files" not in hook.get("b:00000000")
        assert "_attachments" not in hook.get("b:00000001")

    def test_a_file_that_has_changed_is_attached_anew(self) -> None:
        hook = PicasHook()
        for content in (b"old", b"new", b"new"):
            files = {"raw": content, "same": b"x"}
            run(tokens=[{"input": 1, "files": files}], attachments="files", batch="b", on_existing="replace")
            assert lives.attached(hook, "b:00000000") == files
        assert hook.get("b:00000000")["_rev"].startswith("2-")

    def test_attachments_of_couchdbs_own_kind_are_refused(self) -> None:
        attached = {"x": {"content_type": "text/plain", "data": "?"}}
        with pytest.raises(AirflowFailException, match=r"Token 0 has the field .*_attachments.*`attachments`"):
            run(tokens=[{"input": 1, "_attachments": attached, "files": {"y": b""}}], attachments="files", batch="b")

    def test_a_function_names_the_attachments(self, tmp_path: Path) -> None:
        (tmp_path / "7.txt").write_bytes(b"seven")
        run(inputs=[7], attachments=lambda fields: {"in.txt": tmp_path / f"{fields['input']}.txt"}, batch="b")
        assert lives.attached(PicasHook(), "b:00000000") == {"in.txt": b"seven"}

    def test_a_file_that_is_written_again_for_each_token(self, tmp_path: Path) -> None:
        def tokens() -> Iterator[dict[str, Any]]:
            for content in ("one", "two", "six"):
                (tmp_path / "in.txt").write_text(content)
                yield {"input": content, "files": {"in": tmp_path / "in.txt"}}

        run(tokens=tokens, attachments="files", batch="b")
        hook = PicasHook()
        found = {token["input"]: lives.attached(hook, token["_id"])["in"] for token in hook.tokens("todo", "b")}
        assert found == {"one": b"one", "two": b"two", "six": b"six"}

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"a": "/nowhere/a"}, "Token 0: There is no file /nowhere/a to attach"),
            ({"a": "/"}, "Token 0: The attachment / is a folder"),
            ({"_a": b""}, "Token 0: An attachment cannot be named '_a'"),
            ({"a": 5}, "Token 0: 5 is not a path"),
            ({"a": ["x"]}, r"Token 0: \['x'\] is not a path"),
            (["a"], "Token 0: attachments must be a mapping"),
            ({"a": b"x" * 7_000_000}, r"Token 0 has 9,\d+,\d+ bytes"),
        ],
    )
    def test_an_invalid_attachment_is_refused(self, files: Any, words: str) -> None:
        with pytest.raises(AirflowFailException, match=words):
            run(tokens=[{"files": files}], attachments="files")


class TestProgress:
    def test_the_log_shows_how_far_it_is_and_how_fast_it_was(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(push, "PROGRESS_SECONDS", 0.0)
        run(inputs=range(3_000))
        said = capsys.readouterr().out
        assert said.count("So far ") == 3
        assert "3,000 written, in " in said
        assert "tokens/s)" in said

    def test_progress_is_logged_every_ten_seconds(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        now = 0
        monkeypatch.setattr(push, "time", SimpleNamespace(monotonic=lambda: now))
        progress = push.Progress(logging.getLogger("push"))
        with caplog.at_level(logging.INFO, "push"):
            for now in range(45):
                progress.log(PushReport(written=now))
        assert [record.message for record in caplog.records] == [
            f"So far {number} written, in {number}.0 s (1 tokens/s)." for number in (10, 20, 30, 40)
        ]

    def test_a_short_push_logs_no_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        run(inputs=range(3_000))
        assert "So far" not in capsys.readouterr().out


class TestShapes:
    def test_a_design_document_for_each_kind_of_token(self, pool: Pool) -> None:
        run(
            tokens=[{"cores": cores, "input": n} for n, cores in enumerate([1, 1, 4, 1])],
            batch="b",
            design_documents={"SingleCore": "doc.cores == 1", "MultiCore": "doc.cores == 4"},
        )
        single, multi = PicasHook(design_document="SingleCore"), PicasHook(design_document="MultiCore")
        assert (single.count("b"), multi.count("b")) == (Counts(todo=3), Counts(todo=1))
        assert (single.count(), multi.count(), PicasHook().count("b")) == (
            Counts(todo=3),
            Counts(todo=1),
            Counts(todo=4),
        )
        assert list(multi.token_ids("todo")) == ["b:00000002"]
        assert len(pool.get("_design/SingleCore/_view/overview_total?group=true")["rows"]) == 1

    def test_a_pool_with_monitor_only_is_pushed_to(self, pool: Pool, couchdb: CouchDBAdmin) -> None:
        run(inputs=range(1_500), batch="b")
        run("other", inputs=range(7), batch="ba")
        design = f"/{pool.database}/_design/airflow-picas-1"
        rev = couchdb.request("GET", design)[1]["_rev"]
        assert couchdb.request("DELETE", f"{design}?rev={rev}")[0] == 200
        hook = PicasHook()
        lives.change(hook, "b:00000000", **lives.LIVES[State.ERROR])
        assert hook.count("b") == Counts(todo=1_499, error=1)
        run(inputs=range(1_500), batch="b", deploy_views=False)
        assert hook.count("b") == Counts(todo=1_500)

    def test_a_login_that_may_only_read_is_refused(self, pool: Pool, couchdb: CouchDBAdmin) -> None:
        run(inputs=range(3), batch="b")
        forbid = "function (doc, old, user) { if (user.roles.indexOf('_admin') < 0) throw({forbidden: 'read only'}); }"
        design = {"_id": "_design/readonly", "validate_doc_update": forbid}
        assert couchdb.request("PUT", f"/{pool.database}/_design/readonly", design)[0] == 201
        security = {"admins": {"names": [], "roles": ["_admin"]}, "members": {"names": [pool.user], "roles": []}}
        assert couchdb.request("PUT", f"/{pool.database}/_security", security)[0] == 200
        hook = PicasHook()
        assert (hook.count("b"), hook.count()) == (Counts(todo=3), Counts(todo=3))
        with pytest.raises(
            errors.ForbiddenError, match=rf"Login '{pool.user}' is not allowed to write token .*read only.*Ask the"
        ):
            run("push2", inputs=range(5))


class Weak(Proxy):
    """A proxy that hurts some of the bulk writes, which are counted from 1."""

    def __init__(self, url: str, fault: Fault | int, writes: set[int]) -> None:
        super().__init__(url)
        self._fault, self._writes, self._seen = fault, writes, 0

    def fault_of(self, request: str) -> Fault | int | None:
        self._seen += "_bulk_docs" in request
        return self._fault if "_bulk_docs" in request and self._seen in self._writes else super().fault_of(request)


class TestFaults:
    @pytest.mark.parametrize("fault", [429, 500, 503, Fault.DROP, Fault.LOSE, Fault.CUT])
    @pytest.mark.parametrize("writes", [{1, 2}, {2}, {2, 4, 5}])
    @pytest.mark.parametrize("on_existing", ["reset", "replace"])
    def test_tokens_that_are_run_again_are_written_once_too(
        self, pool: Pool, monkeypatch: pytest.MonkeyPatch, fault: Fault | int, writes: set[int], on_existing: str
    ) -> None:
        hook = PicasHook()
        inputs = [f"x{number}" for number in range(30)]
        run(inputs=inputs, key="input", batch="b")
        lives.write(hook, [{**token, **lives.LIVES[State.ERROR]} for token in hook.batch_documents("b")])
        monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)
        with Weak(pool.url, fault, writes) as proxy:
            proxy.hurt(fault, on="_all_docs")
            fields = {**native.picas_connection(pool), "host": proxy.url}
            monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(fields))
            output = run(inputs=[*inputs, "new"], key="input", batch="b", on_existing=on_existing)
        assert output["tokens"] == 31
        assert hook.count("b") == Counts(todo=31)
        again = 1 if on_existing == "reset" else 0
        assert [token["scrub_count"] for token in pool.tokens() if token["input"] != "new"] == [again] * 30

    @pytest.mark.parametrize(
        ("on_existing", "before"),
        [
            *((how, None) for how in OnExisting),
            ("reset", State.ERROR),
            ("replace", State.ERROR),
            ("replace", State.DONE),
        ],
    )
    def test_what_was_written_is_left_to_pilots_when_the_answer_is_lost(
        self,
        pool: Pool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        on_existing: str,
        before: State | None,
    ) -> None:
        """The answer comes so late that pilots have finished one token, failed at another and hold the third."""
        hook = PicasHook()
        ids = [f"b:{place:08d}" for place in range(3)]
        if before:
            run(inputs=[0, 1, 2], batch="b")
            lives.write(hook, [{**token, **lives.LIVES[before]} for token in hook.batch_documents("b")])

        def pilots() -> None:
            for token_id, state in zip(ids, (State.DONE, State.ERROR, State.LOCKED), strict=True):
                assert state_of(hook.get(token_id)) is State.TODO
                lives.change(hook, token_id, **lives.LIVES[state])

        monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)
        with Weak(pool.url, Fault.LOSE, {2 if before else 1}) as proxy:
            proxy.meanwhile = pilots
            fields = {**native.picas_connection(pool), "host": proxy.url}
            monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(fields))
            output = run(inputs=[0, 1, 2], batch="b", on_existing=on_existing)
        assert output["tokens"] == 3
        assert hook.count("b") == Counts(done=1, error=1, locked=1)
        said = "written" if before is None else {"reset": "reset", "replace": "replaced"}[on_existing]
        assert f": 3 {said}, in" in capsys.readouterr().out

    def test_a_pool_that_is_deleted_meanwhile_is_named(self, pool: Pool, couchdb: CouchDBAdmin) -> None:
        def observations() -> Iterator[int]:
            yield from range(2_000)
            couchdb.delete_database(pool.database)
            yield from range(20_000)

        try:
            with pytest.raises(errors.NotFoundError, match=f"There is no database {pool.database}"):
                run(inputs=observations)
        finally:
            couchdb.request("PUT", "/" + urllib.parse.quote(pool.database))
