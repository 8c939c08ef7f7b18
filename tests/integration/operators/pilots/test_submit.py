"""The submit operator on a real Slurm behind a real sshd."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_picas.hooks import slurm as slurm_hook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.slurm.remote import RemoteError, UnreachableError
from stack import native, processes
from stack.cluster import Cluster, install
from stack.pool import Pool
from tests.integration.faults import silent_host
from tests.integration.tasks import context

LIMIT = 60  # seconds to wait for anything
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
QUICK = "#!/bin/bash\n#SBATCH --time=5\n"

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Writes a script and returns its path."""

    def write(content: str | bytes = QUICK, name: str = "pilot.sh") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def ssh(monkeypatch: pytest.MonkeyPatch, cluster: Any) -> Callable[..., None]:
    """Changes fields and extras of the connection ``spider``."""

    def change(extra: dict[str, Any] | None = None, **fields: Any) -> None:
        connection = {**native.ssh_connection(cluster), **fields}
        connection["extra"] = {**connection["extra"], **(extra or {})}
        connection["extra"] = {name: value for name, value in connection["extra"].items() if value is not None}
        monkeypatch.setenv("AIRFLOW_CONN_SPIDER", json.dumps(connection))

    return change


def operator(script: str, task_id: str, **arguments: Any) -> PicasSubmitPilotsOperator:
    return PicasSubmitPilotsOperator(task_id=task_id, script=script, ssh_conn_id="spider", **arguments)


@pytest.fixture
def submit(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Runs the operator as a task instance of this test's own."""

    def run(script: str, try_of: str = "", **arguments: Any) -> dict[str, Any]:
        task_id = re.sub(r"\W+", "_", request.node.name)[:60] + try_of
        output = operator(script, task_id, **arguments).execute(context(task_id))
        assert output is not None
        return output

    return run


def state(remote: SlurmHook, job: str) -> str:
    return remote.run(f"squeue --noheader --states=all --format=%T --jobs={job}").stdout.strip()


def ended(remote: SlurmHook, job: str) -> None:
    """Wait until all of a job has ended."""

    def all_ended() -> bool:
        states = set(state(remote, job).split())
        return bool(states) and states <= FINISHED

    processes.wait_for(all_ended, what=f"Job {job}", seconds=LIMIT)


def shown(remote: SlurmHook, job: str) -> dict[str, str]:
    """What ``scontrol show job`` says, by field."""
    text = remote.run(f"scontrol --oneliner show job {job}").stdout.splitlines()[0]
    return dict(re.findall(r"(\S+?)=(\S*)", text))


class TestScript:
    def test_the_script_runs_and_finds_the_credentials(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook, pool: Pool
    ) -> None:
        text = f"{QUICK}python3 -c 'import picasconfig as p; print(p.PICAS_DATABASE, p.PICAS_USERNAME, p.PICAS_HOST_URL)'\npwd\n"
        output = submit(script(text), pilots=2)
        assert set(output) == {"ssh_conn_id", "submission", "folder", "job_ids", "submitted"}
        assert (output["ssh_conn_id"], len(output["job_ids"])) == ("spider", 1)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", output["submitted"])
        assert output["folder"].endswith(f"/picas-pilots/{output['submission']}")
        (job,) = output["job_ids"]
        ended(remote, job)
        for task in (0, 1):
            said = remote.run(f"cat {output['folder']}/slurm-{job}_{task}.out").stdout
            assert said == f"{pool.database} {pool.user} {pool.url}\n{output['folder']}\n"
        assert shown(remote, job)["JobName"] == output["submission"]
        name, comment = (
            remote.run(f"squeue --noheader --states=all --jobs={job}_1 --format='%j|%k'").stdout.strip().split("|")
        )
        task = "test_the_script_runs_and_finds_the_credentials"
        assert re.fullmatch(r"picas-dag-\w+-run1-[0-9a-f]{10}\.1", name)
        assert comment == f"airflow-provider-picas dag=dag task={task} run=run1"

    @pytest.mark.parametrize(
        "rest",
        [
            b"# caf\xe9 \xff\xfe\n",
            b"# no line at the end",
            b"echo '{{ ds }} ${#a[@]} {% raw'\n",
            "# é \u2028\n".encode(),
            b"\t\x07\x1b[0m=1\n",
        ],
    )
    def test_the_script_is_sent_byte_for_byte(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook, rest: bytes
    ) -> None:
        content = QUICK.encode() + b"exit 0\n" + rest
        output = submit(script(content))
        sent = remote.run(f"base64 -w0 {output['folder']}/pilot.sh").stdout
        assert base64.b64decode(sent) == content

    def test_lines_of_another_system_are_refused_by_sbatch_itself(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str]
    ) -> None:
        with pytest.raises(AirflowFailException, match=r"sbatch refused the pilots: .*DOS line breaks"):
            submit(script("#!/bin/bash\r\necho hi\r\n"))

    def test_only_a_template_is_rendered(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        path = script(QUICK + "echo {{ ti.run_id }}\n", "pilot.sh.j2")
        output = submit(path)
        assert remote.run(f"tail -n 1 {output['folder']}/pilot.sh").stdout.strip() == "echo run1"

    def test_a_relative_path_is_looked_up_beside_the_dag_file(
        self, script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.sdk import DAG

        script()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        dag = DAG("dag", schedule=None)
        dag.fileloc = str(tmp_path / "dag.py")
        task = operator("pilot.sh", "beside", dag=dag)
        output = task.execute(context("beside"))
        assert output is not None
        assert output["job_ids"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [(None, r"The script '.*' cannot be read at .*No such file.*from the DAG file's folder"),
         ("echo hi\n", "does not begin with '#!'"), ("", "is empty"), (b"#!/bin/bash\n\0", "NUL byte")],
    )  # fmt: skip
    def test_a_script_that_cannot_be_sent_is_reported(
        self,
        submit: Callable[..., dict[str, Any]],
        script: Callable[..., str],
        tmp_path: Path,
        content: Any,
        words: str,
    ) -> None:
        path = str(tmp_path / "nowhere.sh") if content is None else script(content)
        with pytest.raises(AirflowFailException, match=words):
            submit(path)


class TestOptions:
    def test_options_of_the_dag_win_and_others_stay_the_scripts(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        text = "#!/bin/bash\n#SBATCH --time=7 --comment='from the script'\n#SBATCH --array=0-2\n#SBATCH -c 2\nexit\n"
        hold = {"hold": True}
        (job,) = submit(script(text), sbatch={**hold, "time": "00:11:00", "mem": "100M"})["job_ids"]
        fields = shown(remote, job)
        assert (fields["TimeLimit"], fields["Comment"], fields["CPUs/Task"]) == ("00:11:00", "from", "2")
        assert (fields["ArrayTaskId"], fields["Requeue"]) == ("0-2", "0")
        assert fields["MinMemoryNode"] == "100M"
        (job,) = submit(script(text), "again", sbatch={**hold, "cpus_per_task": 1, "requeue": True}, pilots=5)[
            "job_ids"
        ]
        fields = shown(remote, job)
        assert (fields["TimeLimit"], fields["CPUs/Task"], fields["ArrayTaskId"]) == ("00:07:00", "1", "0-4")
        assert fields["Requeue"] == "1"
        remote.run("scancel --user=$USER")

    def test_values_need_no_quoting(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        strange = 'it\'s; $(touch ~/broken) `touch ~/broken` "q" \\ * é'
        text = QUICK + 'printf "%s" "$STRANGE"\n'
        (job,) = (output := submit(script(text), sbatch={"comment": strange}, env={"STRANGE": strange}))["job_ids"]
        assert f"Comment={strange} " in remote.run(f"scontrol --oneliner show job {job}").stdout
        ended(remote, job)
        assert remote.run(f"cat {output['folder']}/slurm-{job}.out; ls ~/broken").stdout == strange

    def test_environment_and_workdir_reach_the_job(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        remote.run("mkdir -p 'my work'")
        text = QUICK + 'echo "$GREETING"; pwd\n'
        (job,) = submit(script(text), env={"GREETING": "hello\nworld"}, workdir="my work")["job_ids"]
        ended(remote, job)
        assert remote.run(f"cat 'my work/slurm-{job}.out'").stdout.split("\n")[:2] == ["hello", "world"]
        assert remote.run(f"tail -n 1 'my work/slurm-{job}.out'").stdout.strip().endswith("/my work")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"sbatch": {"partition": "nope"}}, "sbatch refused the pilots: invalid partition specified: nope"),
            ({"sbatch": {"time": "soon"}}, "sbatch refused the pilots: Invalid --time specification"),
            ({"sbatch": {"nodelist": "nowhere"}}, "sbatch refused the pilots: .*[Ii]nvalid node name"),
            ({"sbatch": {"colour": "red"}}, "sbatch refused the pilots: .*unrecognized option '--colour=red'"),
            ({"sbatch": {"array": "0-5"}}, "'array' cannot be set: set the number of pilots with `pilots`"),
            ({"sbatch": {"export": "NONE"}}, "'export' cannot be set"),
            ({"pilots": 0}, "pilots.* is 0; it takes a whole number from 1"),
            ({"pilots": "many"}, "pilots.* is 'many'; it takes a whole number from 1"),
            ({"dry_run": "tru"}, "`dry_run` is 'tru'; it takes true or false"),
            ({"env": {"a b": "c"}}, "'a b' in `env` is not a variable name"),
            ({"workdir": "no where"}, r"The folder 'no where' \(workdir\) cannot be entered on the cluster"),
            ({"remote_folder": "no where"}, "The remote folder 'no where' cannot be entered on the cluster .*Create it there"),
            ({"env": {"PATH": "/usr/bin:/bin"}}, "sbatch refused the pilots: .*failed to run command .sbatch.*No such file"),
            ({"batch": 5}, "A batch is the output of the push operator"),
            ({"database": "Upper"}, "not a valid CouchDB database name"),
        ],
    )  # fmt: skip
    def test_invalid_arguments_are_refused(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], arguments: dict[str, Any], words: str
    ) -> None:
        with pytest.raises((AirflowFailException, AirflowException), match=words):
            submit(script(), **arguments)

    def test_an_account_is_refused(
        self,
        submit: Callable[..., dict[str, Any]],
        script: Callable[..., str],
        tmp_path: Path,
        ssh: Callable[..., None],
    ) -> None:
        install()
        with Cluster(tmp_path / "site", nodes=1, settings={"AccountingStorageEnforce": "associations"}) as strict:
            ssh(**native.ssh_connection(strict))
            with pytest.raises(AirflowFailException, match=r"sbatch refused the pilots: .*Invalid account"):
                submit(script(), sbatch={"account": "nope"})

    def test_another_remote_folder_is_used(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        remote.run("mkdir -p 'my pilots'")
        output = submit(script(), remote_folder="my pilots")
        assert output["folder"].endswith(f"/my pilots/{output['submission']}")
        ended(remote, output["job_ids"][0])
        home = remote.run("pwd").stdout.strip()
        absolute = submit(script(), "absolute", remote_folder=f"{home}/my pilots")
        assert absolute["folder"].startswith(f"{home}/my pilots/")


class TestOnce:
    def test_a_retry_adopts_and_a_clear_after_the_end_submits_anew(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        first = submit(script(), sbatch={"hold": True})
        assert submit(script(), sbatch={"hold": True}) == first
        assert remote.run(f"bash {first['folder']}/submit.sh").code == 0  # whoever starts it, and however often
        jobs = remote.run(f"squeue --noheader --name={first['submission']} --format=%F").stdout.split()
        assert jobs == first["job_ids"]
        remote.run(f"scancel {first['job_ids'][0]}")
        ended(remote, first["job_ids"][0])
        second = submit(script(), sbatch={"hold": True})
        assert second["job_ids"] != first["job_ids"]
        assert second["submission"] == first["submission"].removesuffix(".1") + ".2"
        remote.run(f"scancel {second['job_ids'][0]}")

    def test_a_task_that_died_before_it_reported_adopts_even_ended_jobs(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        first = submit(script())
        ended(remote, first["job_ids"][0])
        remote.run(f"rm {first['folder']}/acknowledged")
        assert submit(script()) == first

    def test_a_connection_that_breaks_while_sbatch_runs_submits_once(
        self,
        submit: Callable[..., dict[str, Any]],
        script: Callable[..., str],
        remote: SlurmHook,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        broken: list[str] = []
        real = SlurmHook.perform

        def breaking(self: SlurmHook, step: Any) -> Any:
            output = real(self, step)
            if "setsid" in getattr(step, "text", "") and not broken:
                broken.append(output.stdout)
                raise UnreachableError("The connection broke.")
            return output

        monkeypatch.setattr(SlurmHook, "perform", breaking)
        with pytest.raises(AirflowException, match="The connection broke"):
            submit(script(), sbatch={"hold": True})
        output = submit(script(), sbatch={"hold": True})
        jobs = remote.run(f"squeue --noheader --name={output['submission']} --format=%F").stdout.split()
        assert jobs == output["job_ids"]
        remote.run(f"scancel {jobs[0]}")

    def test_a_refused_submission_can_be_corrected(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], remote: SlurmHook
    ) -> None:
        with pytest.raises(AirflowFailException, match="nope"):
            submit(script(), sbatch={"partition": "nope"})
        mended = submit(script())
        assert mended["submission"].endswith(".2")
        refused = f"{mended['folder'].removesuffix('.2')}.1"
        assert remote.run(f"cd {refused}/credentials && ls -A").stdout == "", "a refused submission has no use for them"

    def test_a_dry_run_shows_all_and_submits_nothing(
        self, script: Callable[..., str], remote: SlurmHook, capsys: pytest.CaptureFixture[str], pool: Pool
    ) -> None:
        task = operator(script(QUICK + "echo dry\n"), "dry", pilots=3, sbatch={"time": 9}, dry_run="on")
        assert task.execute(context("dry")) is None
        said = capsys.readouterr().out
        assert "echo dry" in said
        call = r"sbatch --parsable '?--job-name=picas-dag-dry-run1-\w+\.<n>'? --time=9 --no-requeue '--comment=[^']+' --array=0-2"
        assert re.search(call, said)
        assert pool.password not in said
        assert remote.run("ls -d picas-pilots/picas-dag-dry-*").code != 0


class TestLogin:
    def test_an_unknown_host_key_is_refused(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None]
    ) -> None:
        ssh(extra={"host_key": None})
        with pytest.raises(
            AirflowException, match=r"host key of .* is unknown .*Put it in the connection's extra 'host_key'"
        ):
            submit(script())

    def test_a_wrong_host_key_is_refused(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None]
    ) -> None:
        import paramiko

        other = paramiko.ECDSAKey.generate()
        wrong_kind = f"{other.get_name()} {other.get_base64()}"
        same_kind = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvJvqNIFdTdPbyv1pYVLGPJX1CzV3WUmwhG2mUwFBKn"
        for key in (wrong_kind, same_kind):
            ssh(extra={"host_key": key})
            with pytest.raises(AirflowException, match=r"host key of .* is not the expected one"):
                submit(script())

    @pytest.mark.parametrize("key", ["ssh-ed25519 nonsense!", "ssh-dss AAAA", "ssh-new AAAA"])
    def test_an_invalid_host_key_is_reported(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None], key: str
    ) -> None:
        ssh(extra={"host_key": key})
        with pytest.raises(AirflowException, match="Connection 'spider' cannot be used"):
            submit(script())

    def test_a_wrong_key_is_refused_at_once(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        import io

        import paramiko

        text = io.StringIO()
        paramiko.ECDSAKey.generate().write_private_key(text)
        ssh(extra={"private_key": text.getvalue(), "look_for_keys": "false"})
        pauses: list[float] = []
        monkeypatch.setattr("airflow_provider_picas.hooks.slurm.time.sleep", pauses.append)
        with pytest.raises(AirflowException, match=r"refused the login .*Check the user name and the key"):
            submit(script())
        assert pauses == []  # not tried again

    def test_a_wrong_user_is_refused(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None]
    ) -> None:
        ssh(login="nobody-here")
        with pytest.raises(AirflowException, match=r"nobody-here@.* refused the login"):
            submit(script())

    @pytest.mark.parametrize("accepts", [True, False])
    def test_a_host_that_does_not_answer_is_reported(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None], accepts: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(slurm_hook, "CONNECT_TRIES", 1)
        real = vars(SlurmHook)["ssh"].func

        def impatient(hook: SlurmHook) -> Any:
            ssh_hook = real(hook)
            ssh_hook.banner_timeout = 1.0  # no extra of the connection sets it
            return ssh_hook

        monkeypatch.setattr(SlurmHook, "ssh", property(impatient))
        with silent_host(accepts=accepts) as url:
            ssh(port=int(url.rpartition(":")[2]), extra={"conn_timeout": 1})
            with pytest.raises(AirflowException, match="cannot be reached"):
                submit(script())

    def test_a_closed_port_is_tried_again(
        self, submit: Callable[..., dict[str, Any]], script: Callable[..., str], ssh: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        pauses: list[float] = []
        monkeypatch.setattr("airflow_provider_picas.hooks.slurm.time.sleep", pauses.append)
        ssh(port=processes.free_port())
        with pytest.raises(AirflowException, match=r"cannot be reached .*Check host and port"):
            submit(script())
        assert len(pauses) == slurm_hook.CONNECT_TRIES - 1

    def test_a_banner_of_the_login_profile_is_left_out(self, remote: SlurmHook) -> None:
        remote.run("true")
        assert remote.run("echo hi").stdout == "hi\n"  # the cluster's profile prints one

    def test_a_missing_connection_is_named(self, script: Callable[..., str]) -> None:
        task = PicasSubmitPilotsOperator(task_id="t", script=script(), ssh_conn_id="no_such_cluster")
        with pytest.raises(
            AirflowException, match=r"Connection 'no_such_cluster' does not exist\. Create one of type SSH"
        ):
            task.execute(context("t"))


class TestSend:
    def test_files_have_their_mode_and_appear_whole(self, remote: SlurmHook) -> None:
        from airflow_provider_picas.slurm.remote import RemoteFile, Send

        remote.run("mkdir -p sent; umask 000")
        home = remote.run("pwd").stdout.strip()
        content = os.urandom(300_000)
        files = [RemoteFile(f"{home}/sent/a b'c", content, 0o600), RemoteFile(f"{home}/sent/x", b"", 0o700)]
        for _ in range(2):
            assert remote.perform(Send(files)).code == 0
        assert remote.run("cd sent && stat -c '%a %s' \"a b'c\" x && ls -A | wc -l").stdout == "600 300000\n700 0\n2\n"

    def test_what_the_server_says_of_a_file_is_reported(self, remote: SlurmHook) -> None:
        from airflow_provider_picas.slurm.remote import RemoteFile, Send

        output = remote.perform(Send([RemoteFile("/no/such/folder/file", b"x")]))
        assert (output.code, "/no/such/folder/file" in output.stderr, "No such file" in output.stderr) == (
            1,
            True,
            True,
        )

    def test_a_connection_that_was_lost_is_opened_anew(self, remote: SlurmHook) -> None:
        from airflow_provider_picas.slurm.remote import RemoteFile, Send

        home = remote.run("pwd").stdout.strip()
        send = Send([RemoteFile(f"{home}/again", b"x")])
        assert remote.perform(send).code == 0
        transport = remote.get_conn().get_transport()
        assert transport is not None
        transport.close()
        assert remote.perform(send).code == 0
        assert remote.run("cat again").stdout == "x"

    def test_a_command_that_hangs_is_given_up(self, remote: SlurmHook) -> None:
        with pytest.raises(UnreachableError, match=r"did not finish within 0\.5 s"):
            remote.run("sleep 100", timeout=0.5)
        with pytest.raises(RemoteError, match="broke before the command ended"):
            remote.run("kill -9 $$")
        assert remote.run("echo fine").stdout == "fine\n"
