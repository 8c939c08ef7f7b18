"""Our own pilots, submitted by command to a real Slurm: what they get, how many are submitted, and what remains of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.options import PilotOptions, PilotWatch, Scaling
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm.remote import quote
from airflow_provider_picas.submissions import report
from airflow_provider_picas.tokens.states import State, state_of
from stack import processes
from stack.pool import Pool
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


class Tasks:
    """The tasks of one run on a pool of its own."""

    def __init__(self, pool: Pool, remote: SlurmHook) -> None:
        self.pool, self.remote = pool, remote
        self.batch: Any = None
        self.pilots: Any = None

    def push(self, tokens: list[dict[str, Any]]) -> None:
        push = PicasPushTokensOperator(task_id="push", tokens=tokens)
        self.batch = push.execute(context(run_id=self.pool.database))

    def submit(self, command: Any, task_id: str = "pilots", **arguments: Any) -> Any:
        arguments.setdefault("batch", self.batch)
        operator = PicasSubmitPilotsOperator(task_id=task_id, command=command, ssh_conn_id="spider", **arguments)
        self.pilots = operator.execute(context(task_id, run_id=self.pool.database))
        return self.pilots

    def wait(self, **arguments: Any) -> dict[str, int]:
        sensor = PicasTokenStateSensor(
            task_id="wait",
            batch=self.batch,
            poke_interval=1,
            timeout=90,
            deferrable=False,
            **{"pilots": self.pilots, **arguments},
        )
        self.wait_context = context("wait", run_id=self.pool.database)
        result: dict[str, int] = sensor.execute(self.wait_context)
        return result

    def ended(self) -> None:
        """Wait until no pilot is left."""
        listed = f"squeue --noheader --jobs={','.join(self.pilots['job_ids'])}"
        processes.wait_for(lambda: not self.remote.run(listed).stdout, what="The pilots' end", seconds=60)

    def logs(self) -> str:
        return self.remote.run(f"cat {self.pilots['folder']}/pilot-*.log").stdout

    def states(self) -> Counter[State | None]:
        return Counter(state_of(token) for token in self.pool.tokens())


@pytest.fixture
def tasks(pool: Pool, remote: SlurmHook) -> Iterator[Tasks]:
    """A run; its jobs are gone at the end."""
    made = Tasks(pool, remote)
    yield made
    if made.pilots and made.pilots["job_ids"]:
        remote.run(f"scancel {' '.join(made.pilots['job_ids'])}")


def test_a_command_runs_and_its_output_is_stored(tasks: Tasks, tmp_path: Path) -> None:
    """Files go with the command, of which one is a template and one a program; the setup has run; credentials go at the end."""
    (tmp_path / "words.txt").write_bytes(b"alpha\nbeta\ngamma\n")
    (tmp_path / "count.sh").write_text('#!/bin/bash\ngrep -c "$1" words.txt run.txt | tr "\\n" " "\n')
    (tmp_path / "count.sh").chmod(0o755)
    (tmp_path / "run.txt.j2").write_text("beta of {{ ti.run_id }}\n")
    tasks.push([{"input": word, "colour": "blue"} for word in ("beta", "a")])
    write = 'echo "{\\"counts\\": \\"$(cat out)\\", \\"greeting\\": \\"$GREETING $OTHER\\"}" > output.json'
    tasks.submit(
        f'./count.sh "$PICAS_INPUT" > out; {write}',
        setup="export GREETING=hello",
        env={"OTHER": "w'or$ld"},
        files=[str(tmp_path / name) for name in ("words.txt", "count.sh", "run.txt.j2")],
        scaling=Scaling(pilots=2),
        pilot=PilotOptions(lease=10),
    )
    folder = tasks.pilots["folder"]
    modes = tasks.remote.run(f"cd {folder} && stat -c '%a %n' . credentials credentials/* pilot.json count.sh").stdout
    assert modes.split("\n")[:5] == [
        "700 .",
        "700 credentials",
        "600 credentials/picasconfig.py",
        "600 pilot.json",
        "700 count.sh",
    ]
    assert (
        tasks.pool.password not in tasks.remote.run(f"cat {folder}/pilot.json {folder}/*.sh {folder}/command.*").stdout
    )
    assert tasks.wait()["done"] == 2
    outputs = {token["input"]: token["output"] for token in tasks.pool.tokens()}
    assert outputs == {
        "beta": {"counts": "words.txt:1 run.txt:1 ", "greeting": "hello w'or$ld"},
        "a": {"counts": "words.txt:3 run.txt:1 ", "greeting": "hello w'or$ld"},
    }
    job = tasks.pilots["job_ids"][0]
    assert {token["slurm_job_id"] for token in tasks.pool.tokens()} <= {f"{job}_0", f"{job}_1"}
    assert tasks.remote.run(f"ls -A {folder}/credentials").stdout == ""
    figures = tasks.wait_context["ti"].xcoms["figures"]
    assert figures["tokens"] == 2
    assert sum(figures["jobs"].values()) == 2
    page = f"{tasks.pool.url}/_utils/#database/{tasks.pool.database}/_all_docs"
    assert tasks.wait_context["ti"].xcoms["picas_pool_url"] == page


def logged(tasks: Tasks, said: str) -> bool:
    """Whether a line of a pilot's log was told before its token was done."""
    told = said.find(f"pilot-{tasks.pilots['job_ids'][0]}_0.log: ")
    return -1 < told < said.find("1 of 1 done")


def test_the_pilots_logs_are_shown_as_they_run(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "LOGS_INTERVAL", 1.0)
    tasks.push([{"input": 1}])
    tasks.submit("sleep 10", pilot={"lease": 6})
    tasks.wait()
    assert logged(tasks, capsys.readouterr().out)


def test_the_trigger_shows_the_pilots_logs_as_they_run(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report, "LOGS_INTERVAL", 1.0)
    tasks.push([{"input": 1}])
    tasks.submit("sleep 10", pilot={"lease": 6})
    wait = PicasTokenStateSensor(
        task_id="wait", batch=tasks.batch, pilots=tasks.pilots, pilots_interval=1, timeout=90, deferrable=True
    )
    with pytest.raises(TaskDeferred) as deferred:
        wait.execute(context("wait", run_id=tasks.pool.database))

    async def run() -> list[Any]:
        return [event.payload["outcome"] async for event in deferred.value.trigger.run()]

    with caplog.at_level("INFO"):
        assert asyncio.run(run()) == ["complete"]
    said = capsys.readouterr().out + caplog.text
    assert logged(tasks, said)
    assert re.search(r"0 of 1 done, 1 (running|to do); 1 pilot (running|pending)", said), said


def test_a_wait_that_remembers_no_earlier_check_measures_since_the_pilots_started(
    tasks: Tasks, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks.push([{"input": number} for number in range(3)])
    tasks.submit("sleep 1", pilot={"lease": 6})
    tasks.ended()
    wait = PicasTokenStateSensor(task_id="wait", batch=tasks.batch, pilots=tasks.pilots, mode="reschedule", timeout=90)
    assert wait.poke(context("wait", run_id=tasks.pool.database))
    said = capsys.readouterr().out
    assert re.search(r" 3 of 3 done; [0-9.]+/(s|min); (1 pilot completing|the pilot has ended)", said), said


def test_a_list_of_arguments_is_not_shell_text(tasks: Tasks) -> None:
    tasks.push([{"input": "$(id)"}])
    program = "import os,sys,json; json.dump([os.environ['PICAS_INPUT'], *sys.argv[1:]], open('output.json', 'w'))"
    tasks.submit(["python3", "-c", program, "$HOME", "a b", "{{ x }}"], pilot={"lease": 10})
    assert tasks.wait()["done"] == 1
    assert tasks.pool.tokens()[0]["output"][:3] == ["$(id)", "$HOME", "a b"]


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (
            "module load NoSuchThing",
            "The setup failed with code 127, so this pilot claims no tokens: module load NoSuchThing",
        ),
        ("PATH=/nowhere", "Python 3.6 or newer was not found on"),
    ],
)
def test_a_node_that_is_not_ready_is_reported_once_and_takes_no_token(tasks: Tasks, setup: str, words: str) -> None:
    tasks.push([{"input": n} for n in range(5)])
    tasks.submit("true", setup=setup, pilots=1)
    with pytest.raises(AirflowFailException, match="5 tokens are waiting and no pilots remain to run them"):
        tasks.wait()
    assert tasks.logs().count(words) == 1
    assert tasks.states() == {State.TODO: 5}
    assert not any(token.get("attempts") for token in tasks.pool.tokens())


def test_pilots_that_finish_nothing_are_not_submitted_for_ever(
    tasks: Tasks, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks.push([{"input": n} for n in range(5)])
    tasks.submit("true", setup="false", pilots=2)
    with pytest.raises(AirflowFailException, match="no pilots remain"):
        tasks.wait(resubmit=10)
    assert "have not finished any token" in capsys.readouterr().out
    jobs = tasks.remote.run(f"ls {tasks.pilots['folder']} | grep -c '^command'").stdout.strip()
    assert jobs == "2", "once more, and then no more"


def test_more_pilots_are_submitted_while_they_finish_tokens(tasks: Tasks) -> None:
    """Each pilot stops after one token, given back once by the next one's look."""
    tasks.push([{"input": n} for n in range(3)])
    count = f"{tasks.remote.run('pwd').stdout.strip()}/count-{tasks.pool.database}"
    command = f"echo x >> {count}; test $(($(wc -l < {count}) % 2)) = 1 || exit 9"
    rendered = {"lease": "6", "stop_exit_codes": "[9]", "max_claim": "1"}  # as templates are
    tasks.submit(command, pilots=1, pilot=rendered)
    assert tasks.wait(watch=PilotWatch(resubmit=5))["done"] == 3
    jobs = tasks.remote.run(f"squeue --noheader --states=all --format=%F --name=$(cd {tasks.pilots['folder']}; "
                            f"cat command.* | grep -o 'job-name=[^ ]*' | cut -d= -f2 | paste -sd,)").stdout.split()  # fmt: skip
    assert len(set(jobs)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"script": "x.sh"}, "Give either `command`"),
        ({"pilot": {"leese": 5}}, "unknown key: 'leese'"),
        ({"pilot": {"slots": 0}}, "'slots' must be a whole number"),
        ({"pilot": {"submission": "mine"}}, "cannot set `submission`"),
        ({"pilot": {"lease": object()}}, "not JSON-serializable"),
        ({"files": ["/nowhere.dat"]}, "The file '/nowhere.dat' cannot be read"),
        ({"credentials": "sometimes"}, "it takes 'send', 'client' or 'existing'"),
        ({"pilots": 0}, "`pilots` is 0; it takes a whole number from 1"),
        ({"pilots": "auto", "tokens_per_pilot": 0}, "`tokens_per_pilot` is 0"),
        ({"env": {"A B": "x"}}, "is not a variable name"),
    ],
)
def test_invalid_arguments_are_refused(tasks: Tasks, arguments: dict[str, Any], words: str) -> None:
    tasks.push([{"input": 1}])
    with pytest.raises(AirflowFailException, match=words):
        tasks.submit("true", **arguments)


def test_files_may_not_take_the_submissions_own_names(tasks: Tasks, tmp_path: Path) -> None:
    (tmp_path / "pilot.json").write_text("{}")
    with pytest.raises(AirflowFailException, match=r"`files` contains pilot\.json"):
        tasks.submit("true", files=[str(tmp_path / "pilot.json")])


def array_of(tasks: Tasks, job: str) -> dict[str, str]:
    text = tasks.remote.run(f"scontrol --oneliner show job {job}").stdout.splitlines()[0]
    return dict(re.findall(r"(\S+?)=(\S*)", text))


HELD = {"hold": True}


def test_the_pilots_take_the_classes_that_the_dag_names(tasks: Tasks) -> None:
    tasks.push([{"input": 1}])
    tasks.submit("true", pilot={"classes": ["2//"]}, sbatch=HELD)
    assert json.loads(tasks.remote.run(f"cat {tasks.pilots['folder']}/pilot.json").stdout)["classes"] == ["2//"]


def test_pilots_are_computed_from_the_waiting_tokens(tasks: Tasks) -> None:
    tasks.push([{"input": n} for n in range(25)])
    tasks.submit("true", pilots="auto", tokens_per_pilot=10, sbatch=HELD)
    assert array_of(tasks, tasks.pilots["job_ids"][0])["ArrayTaskId"] == "0-2"


def test_limits_bound_the_number_of_pilots(tasks: Tasks) -> None:
    """They count what waits and runs already, of this package and user."""
    tasks.push([{"input": n} for n in range(100)])
    waiting, running = tasks.remote.count_pilots()
    first = tasks.submit(
        "true", "first", pilots="auto", tokens_per_pilot=1, max_pilots=waiting + running + 4, max_running=2, sbatch=HELD
    )
    try:
        assert array_of(tasks, first["job_ids"][0])["ArrayTaskId"] == "0-3%2"
        assert tasks.remote.count_pilots() == (waiting + 4, running)
        second = tasks.submit("true", "second", pilots=9, max_queued=waiting + 6, sbatch=HELD)
        assert array_of(tasks, second["job_ids"][0])["ArrayTaskId"] == "0-1"
        tasks.remote.run(f"scancel {second['job_ids'][0]}")
        full = tasks.submit("true", "third", pilots=9, max_pilots=waiting + running + 4)
        assert full["submission"] is None
        assert full["job_ids"] == []
        again = tasks.submit("true", "first", pilots="auto", tokens_per_pilot=1, max_pilots=waiting + running + 4)
        assert again == first, "a retry finds its own pilots, for which there was room"
    finally:
        tasks.remote.run(f"scancel {first['job_ids'][0]}")


def test_a_cap_on_running_pilots_holds_for_all_arrays_together(tasks: Tasks) -> None:
    tasks.push([{"input": n, "cores": n % 2 + 1} for n in range(10)])
    tasks.submit("true", resource_classes=True, pilots=5, max_running=4, sbatch=HELD)
    assert [array_of(tasks, job)["ArrayTaskId"] for job in tasks.pilots["job_ids"]] == ["0-4%2", "0-4%2"]


def test_tokens_that_no_pilot_can_be_asked_for_fail_the_task(tasks: Tasks) -> None:
    tasks.push([{"input": 1, "gpu": "$(id)"}])
    with pytest.raises(AirflowFailException, match="No waiting token requests resources that sbatch accepts"):
        tasks.submit("true", resource_classes=True, pilots=1)


def test_classes_beyond_the_limits_are_named(tasks: Tasks, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.push([{"input": n, "cores": n} for n in (1, 1, 2)])
    waiting, running = tasks.remote.count_pilots()
    tasks.submit(
        "true", resource_classes=True, pilots="auto", tokens_per_pilot=1, max_pilots=waiting + running + 1, sbatch=HELD
    )
    assert len(tasks.pilots["job_ids"]) == 1
    assert "No pilots are submitted for tokens that request cores/gpu/time 2//" in capsys.readouterr().out


def test_figures_leave_out_what_had_finished_before(tasks: Tasks) -> None:
    tasks.push([{"input": n} for n in range(3)])
    hook, now = PicasHook(), int(time.time())
    hook.do(hook.pool.put({**tasks.pool.tokens()[0], "lock": now, "done": now, "exit_code": 0}))
    tasks.submit("true", pilot={"lease": 6})
    assert tasks.wait()["done"] == 3
    assert tasks.wait_context["ti"].xcoms["figures"]["tokens"] == 2


def test_nothing_waits_and_nothing_is_submitted(tasks: Tasks) -> None:
    tasks.push([{"input": 1}])
    output = tasks.submit("true", pilots="auto", batch="nobody")
    assert output == {"ssh_conn_id": "spider", "submission": None, "folder": None, "job_ids": [], "submitted": None}


def test_each_resource_class_gets_its_array(tasks: Tasks) -> None:
    """An array for each class, which takes tokens of that class alone; what sbatch does not know gets none, and is said."""
    tasks.push(
        [{"input": 0}, {"input": 1, "cores": 2}, {"input": 2, "cores": 2, "time": 30}, {"input": 3, "gpu": "$(id)"}]
    )
    tasks.submit(
        'echo "[\\"$SLURM_CPUS_PER_TASK\\", \\"$SLURM_ARRAY_JOB_ID\\"]" > output.json', pilots=1, pilot={"lease": 6},
        resource_classes={"2//": {"comment": "two"}},
    )  # fmt: skip
    assert len(tasks.pilots["job_ids"]) == 3
    found = {array_of(tasks, job)["TimeLimit"] for job in tasks.pilots["job_ids"]}
    assert "00:35:00" in found
    tasks.ended()
    tokens = {token["input"]: token for token in tasks.pool.tokens()}
    assert [state_of(tokens[n]) for n in range(4)] == [State.DONE, State.DONE, State.DONE, State.TODO]
    assert [tokens[n]["output"][0] for n in range(3)] == ["", "2", "2"]
    assert len({tokens[n]["output"][1] for n in range(3)}) == 3


def test_a_submission_that_is_refused_in_part_leaves_no_pilots(tasks: Tasks) -> None:
    """Mended and cleared, the task makes all of them anew: the first ones would run beside them, watched by nobody."""
    tasks.push([{"input": n, "cores": n} for n in (1, 2)])
    with pytest.raises(AirflowFailException, match=r"nope.* had been accepted and was cancelled") as refused:
        tasks.submit(
            "sleep 60", pilots=1, resource_classes={"1//": {"hold": True}, "2//": {"partition": "nope"}}
        )  # fmt: skip
    accepted = re.search(r"Job ([0-9]+) had been accepted", str(refused.value))
    assert accepted is not None
    assert tasks.remote.run(f"squeue --noheader --jobs={accepted[1]}").stdout == ""
    tasks.submit("true", pilots=1, resource_classes=True, sbatch=HELD)
    assert len(tasks.pilots["job_ids"]) == 2
    refused_folder = re.sub("[0-9]+$", "1", tasks.pilots["folder"])
    assert tasks.remote.run(f"cd {refused_folder}/credentials && ls -A").stdout == ""


def test_existing_credentials_are_used(tasks: Tasks) -> None:
    """Found by PYTHONPATH, which the setup sets; none is sent."""
    own = tasks.remote.run("mkdir -p -m 700 own && cd own && pwd").stdout.strip()
    config = {
        "HOST_URL": tasks.pool.url,
        "DATABASE": tasks.pool.database,
        "USERNAME": tasks.pool.user,
        "PASSWORD": tasks.pool.password,
    }
    text = "".join(f"PICAS_{name} = {value!r}\n" for name, value in config.items())
    path = Path(own) / "picasconfig.py"
    path.touch(mode=0o600)
    path.write_text(text)
    tasks.push([{"input": 1}])
    tasks.submit("true", credentials="existing", setup=f"export PYTHONPATH={own}", pilot={"lease": 6})
    assert tasks.wait()["done"] == 1
    assert tasks.remote.run(f"ls -A {tasks.pilots['folder']}/credentials").stdout == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "one's own stay"
    assert path.read_text() == text


def test_a_dry_run_shows_the_pilots_script(tasks: Tasks, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.push([{"input": 1}])
    assert tasks.submit("true", setup="module load X", pilots=3, dry_run=True) is None
    said = capsys.readouterr().out
    assert "module load X" in said
    assert re.search(
        r"sbatch --parsable '?--job-name=picas-dag-pilots-\w+-\w+\.<n>'? .*--signal=B:TERM@20 .*--array=0-2", said
    )
    assert tasks.pool.password not in said
    assert tasks.states() == {State.TODO: 1}


def test_the_logs_end_is_reported_when_no_pilot_is_left(tasks: Tasks, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.push([{"input": 1}])
    tasks.submit("true", setup="echo this is why >&2; exit 3")
    with pytest.raises(AirflowFailException, match="no pilots remain"):
        tasks.wait()
    assert "this is why" in capsys.readouterr().out
    [(cause, number)] = tasks.wait_context["ti"].xcoms["figures"]["jobs"].items()
    assert number == 1
    assert cause in ("FAILED", "FAILED, exit code 3"), "squeue does not show exit codes, and slurmdbd learns them later"


def test_credentials_of_the_picas_client_are_used(tasks: Tasks) -> None:
    """``conf.yml`` and its key as the client's own program writes them; its newest ``picasconfig.py`` is code that reads them."""
    pool, kept = tasks.pool, "~/.config/picas"
    init = ["picas-venv/bin/picas-cli", "init", "--host-url", pool.url, "--database", pool.database]
    init += ["--username", pool.user, "--password", pool.password]
    made = tasks.remote.run(f"mkdir -p ~/.config own; {quote(*init)}; rm -f own/picasconfig.py; cat {kept}/conf.yml")
    assert "encrypted_password:" in made.stdout, made.stderr
    assert pool.password not in made.stdout
    try:
        for text in (
            "",
            "from picas.picas_config import PicasConfig\nfrom picas.crypto import decrypt_password\n"
            "config = PicasConfig(load=True)\nPICAS_HOST_URL = config.config['host_url']\n"
            "PICAS_DATABASE = config.config['database']\nPICAS_USERNAME = config.config['username']\n"
            "PICAS_PASSWORD = decrypt_password(config.config['encrypted_password']).decode()\n",
        ):
            setup = 'export PYTHONPATH="$HOME/own"'
            tasks.remote.run(f"[ -z {quote(text)} ] || printf %s {quote(text)} >own/picasconfig.py")
            push = PicasPushTokensOperator(task_id="push", tokens=[{"input": text}], batch=f"b{len(text)}")
            tasks.batch = push.execute(context(run_id=pool.database))
            tasks.submit("true", f"pilots{len(text)}", credentials="existing", setup=setup, pilot={"lease": 6})
            assert tasks.wait()["done"] == 1
            tasks.ended()
            assert pool.password not in tasks.logs()
        assert tasks.states() == {State.DONE: 2}
    finally:
        tasks.remote.run(f"rm -rf {kept} own/picasconfig.py")


def test_a_wait_knows_the_pilots_of_its_batch(tasks: Tasks, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has told it: the credentials go all the same, and a later run on a batch of the same name has its own."""
    for _ in range(2):
        tasks.push([{"input": 5}])
        tasks.submit("true", pilots=1)
        assert tasks.wait(pilots=None)["done"] == 1
        assert (
            f"Watching the pilots of batch {tasks.batch['batch']}: submission {tasks.pilots['submission']}"
            in capsys.readouterr().out
        )
        assert tasks.remote.run(f"ls -A {tasks.pilots['folder']}/credentials").stdout == ""
        assert "figures" in tasks.wait_context["ti"].xcoms
        tasks.ended()


def test_a_wait_notices_that_the_pilots_of_its_batch_are_gone(tasks: Tasks) -> None:
    tasks.push([{"input": 5}])
    tasks.submit("true", setup="false", pilots=1)
    with pytest.raises(AirflowFailException, match="1 tokens are waiting and no pilots remain to run them"):
        tasks.wait(pilots=None)


def test_a_wait_that_is_for_no_pilots_or_cannot_know_which(tasks: Tasks, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.push([{"input": 5}])
    tasks.submit("true", pilots=1)
    key = "picas-other-0123456789.1"
    folder = str(Path(tasks.pilots["folder"]).with_name(key))
    assert tasks.remote.run(f"cp -a {tasks.pilots['folder']} {folder}").code == 0
    other = {**tasks.pilots, "submission": key, "folder": folder}
    hook = PicasHook()
    hook.do(batch_pilots.note(hook.pool, tasks.batch["batch"], other))
    tasks.ended()
    assert tasks.wait(pilots=None)["done"] == 1
    assert "2 tasks have submitted pilots for batch" in capsys.readouterr().out
    assert tasks.wait(pilots=False)["done"] == 1
    assert tasks.remote.run(f"ls -A {tasks.pilots['folder']}/credentials").stdout == "picasconfig.py\n"


def test_pilots_that_somebody_else_names_are_not_watched(tasks: Tasks, capsys: pytest.CaptureFixture[str]) -> None:
    """The wait would send the password to their folder, and submit what is in it."""
    tasks.push([{"input": 5}])
    tasks.submit("true", pilots=1)
    tasks.ended()
    hook, own = PicasHook(), Path(tasks.pilots["folder"])
    names = {what: f"picas-{what}-0123456789.1" for what in ("other", "gone", "theirs")}
    folders = {what: own.with_name(name) for what, name in names.items()}
    tasks.remote.run(f"cp -a {own} {folders['other']}; cp -a {own} {folders['theirs']}")
    config = json.loads((own / "pilot.json").read_text())
    (folders["other"] / "pilot.json").write_text(json.dumps({**config, "batch": "other"}))
    objections = [f"'{own}' is not the folder", "are for batch 'other'", f"{folders['gone']} on the cluster is gone"]
    forged = [{"folder": str(own), "submission": "picas-forged-0123456789.1"}]
    forged += [{"folder": str(folders[what]), "submission": names[what]} for what in ("other", "gone")]
    if os.geteuid() == 0:  # only then can a folder belong to somebody else
        tasks.remote.run(f"chown -R nobody {folders['theirs']}")
        forged.append({"folder": str(folders["theirs"]), "submission": names["theirs"]})
        objections.append(f"{folders['theirs']} on the cluster is gone, or belongs to another account")
    for pilots in forged:
        hook.do(batch_pilots.note(hook.pool, tasks.batch["batch"], {**tasks.pilots, **pilots}))
    assert tasks.wait(pilots=None)["done"] == 1
    said = capsys.readouterr().out
    assert f"Watching the pilots of batch {tasks.batch['batch']}: submission {tasks.pilots['submission']}" in said
    assert [words for words in objections if words not in said] == []
