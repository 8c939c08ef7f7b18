"""sbatch options, ``#SBATCH`` lines and job ids."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.slurm import sbatch
from airflow_provider_picas.slurm.sbatch import OptionError


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, []),
        ({"time": "00:30:00"}, ["--time=00:30:00"]),
        ({"cpus-per-task": 1, "mem": "4G"}, ["--cpus-per-task=1", "--mem=4G"]),
        ({"cpus_per_task": 1}, ["--cpus-per-task=1"]),
        ({"--time": 5}, ["--time=5"]),
        ({"exclusive": True, "requeue": False, "account": None}, ["--exclusive"]),
        ({"comment": 'it\'s; $(rm -rf ~) `x` "y"'}, ['--comment=it\'s; $(rm -rf ~) `x` "y"']),
        ({"comment": "été"}, ["--comment=été"]),
        ({"nice": -5, "begin": 0, "xx": 1.5}, ["--nice=-5", "--begin=0", "--xx=1.5"]),
    ],
)
def test_options_become_arguments(options: dict[str, Any], arguments: list[str]) -> None:
    assert sbatch.options_to_arguments(options) == arguments


@pytest.mark.parametrize("name", sorted(sbatch.OWNED))
def test_owned_options_say_what_to_use_instead(name: str) -> None:
    for spelling in (name, name.replace("-", "_"), f"--{name}"):
        with pytest.raises(OptionError, match=f"'{name}' cannot be set: .+"):
            sbatch.options_to_arguments({spelling: "x"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"Time": 5}, "'Time' is not an sbatch option"),
        ({"t": 5}, "'t' is not an sbatch option; use the long name"),
        ({"-M": "wice"}, "'-M' is not an sbatch option"),
        ({"time; rm": 5}, "not an sbatch option"),
        ({"": 5}, "not an sbatch option"),
        ({5: 5}, "not an sbatch option"),
        ({"time": ["5"]}, "takes a string, a number or true"),
        ({"time": {}}, "takes a string, a number or true"),
        ({"time": ""}, "empty"),
        ({"comment": "a\nb"}, "non-printable"),
        ({"comment": "a\0b"}, "non-printable"),
    ],
)
def test_invalid_options_are_named(options: dict[Any, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        sbatch.options_to_arguments(options)


@pytest.mark.parametrize(("pilots", "argument"), [(1, "--array=0-0"), (4, "--array=0-3"), (10_000, "--array=0-9999")])
def test_an_array_becomes_an_argument(pilots: int, argument: str) -> None:
    assert sbatch.array(pilots) == argument


@pytest.mark.parametrize("pilots", [0, -1, True, "4", 1.5, None])
def test_what_is_not_a_number_of_pilots_is_refused(pilots: Any) -> None:
    with pytest.raises(OptionError, match="whole number from 1"):
        sbatch.array(pilots)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("#SBATCH --time=5", {"time": "5"}),
        ("#SBATCH --time 5", {"time": "5"}),
        ("#SBATCH -t 00:30:00", {"t": "00:30:00"}),
        ("#SBATCH -t5 -N1 --exclusive", {"t": "5", "N": "1", "exclusive": None}),
        ("#SBATCH --requeue", {"requeue": None}),
        ("#SBATCH --array=0-5%2 # six", {"array": "0-5%2"}),
        ("#SBATCH --comment='a b' --mem=1G", {"comment": "a b", "mem": "1G"}),
        ("#SBATCH --export=ALL,DESIGN_DOC=Monitor,VIEW=todo", {"export": "ALL,DESIGN_DOC=Monitor,VIEW=todo"}),
        ("#SBATCH --time=5\n#\n\n# text\n#SBATCH --mem=1", {"time": "5", "mem": "1"}),
        ("#SBATCH --time=5\nset -e\n#SBATCH --mem=1", {"time": "5"}),
        ("##SBATCH --time=5\n # SBATCH --mem=1\n #SBATCH --mem=1", {}),
        ("#SBATCH --comment='open\n#SBATCH --mem=1", {"mem": "1"}),
        ("#SBATCH --time=5\r\n#SBATCH --mem=1\r", {"time": "5", "mem": "1"}),
        ("# form\x0cfeed and \x85 next line \u2028\n#SBATCH --mem=1", {"mem": "1"}),
        ("#SBATCH", {}),
        ("#SBATCH -HM wice -Qt5", {"H": None, "M": "wice", "Q": None, "t": "5"}),
        ("#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n2", {"n": "2", "hetjob": None}),
        ("", {}),
    ],
)
def test_directives_of_a_script_are_parsed(lines: str, found: dict[str, str | None]) -> None:
    assert sbatch.directives(f"#!/bin/bash\n{lines}\n".encode()) == found


def test_directives_of_a_script_that_is_not_utf_8() -> None:
    assert sbatch.directives(b"#!/bin/bash\n# \xff\xfe\n#SBATCH --mem=1\n") == {"mem": "1"}


@pytest.mark.parametrize(
    ("script", "words"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"echo hi\n", "does not begin with '#!'"), (b"\x7fELF\0", "'#!'"),
     (b"#!/bin/bash\necho \0\n", "NUL byte"), (b"\xef\xbb\xbf#!/bin/bash\n", "does not begin with '#!'")],
)  # fmt: skip
def test_what_sbatch_would_refuse_is_refused_before(script: bytes, words: str) -> None:
    with pytest.raises(OptionError, match=f"The script my.sh .*{words}"):
        sbatch.check_script(script, "my.sh")


def test_a_script_may_hold_any_other_bytes() -> None:
    sbatch.check_script(b"#!/bin/bash\n# \xff\xfe caf\xe9\n", "my.sh")


@pytest.mark.parametrize(
    ("options", "pilots", "script", "arguments"),
    [
        ({"time": 5}, 4, "", ["--time=5", "--no-requeue", "--array=0-3"]),
        ({}, None, "#SBATCH --requeue", []),
        ({}, None, "#SBATCH --no-requeue", []),
        ({"requeue": True}, 1, "", ["--requeue", "--array=0-0"]),
        ({}, None, "#SBATCH --array=0-5\n#SBATCH -t 5", ["--no-requeue"]),
    ],
)
def test_the_command_line_has_all_options(
    options: dict[str, Any], pilots: int | None, script: str, arguments: list[str]
) -> None:
    content = f"#!/bin/bash\n{script}\n".encode()
    line = sbatch.command_line("key.1", options, pilots, "/home/me/pilot.sh", content)
    assert line == ["sbatch", "--parsable", "--job-name=key.1", *arguments, "/home/me/pilot.sh"]


@pytest.mark.parametrize(
    ("output", "job"),
    [
        ("123\n", "123"),
        ("123;cluster\n", "123"),
        ("Welcome\nlua: your job has 2 cores\n456\n", "456"),
        ("456\nbye\n", "456"),
        ("", None),
        ("Submitted batch job 123\n", "123"),
        ("sbatch: Submitted batch job 12 on cluster wice\n7\n", "12"),
        ("12;wice\n", "12"),
        ("Submitted batch job 123 (test)\n", None),
        ("123 456\n", None),
        ("456\n12\n", None),
        ("12\n456;cluster\n7\n", "456"),
        ("456\n456\n", "456"),
        ("0\n456\n0123\n", "456"),
    ],
)
def test_the_job_id_is_parsed(output: str, job: str | None) -> None:
    assert sbatch.job_id(output) == job


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("123\n", None),
        ("a;b\n123;wice\n", "wice"),
        ("sbatch: Submitted batch job 12 on cluster wice\n", "wice"),
        ("Submitted batch job 12\n", None),
    ],
)
def test_the_cluster_is_parsed_from_the_output(output: str, name: str | None) -> None:
    assert sbatch.cluster(output) == name


@pytest.mark.parametrize(
    "directive",
    [
        "--clusters=wice",
        "--clusters wice",
        "-M wice",
        "-Mwice",
        "-HM wice",
        "--cluster=wice",
        "hetjob",
        "packjob",
        "--test-only",
    ],
)
def test_directives_whose_jobs_could_not_be_found_are_refused(directive: str) -> None:
    script = f"#!/bin/bash\n#SBATCH --time=5\n#SBATCH {directive}\ntrue\n"
    with pytest.raises(
        OptionError, match=r"The script my\.sh has the #SBATCH option .+: (remove it|a heterogeneous job)"
    ):
        sbatch.check_script(script.encode(), "my.sh")


@pytest.mark.parametrize(
    "directive",
    ["--cluster-constraint=a", "--mem=1", "--wait-all-nodes=1", "--job-name=x", "-m block", "-t 5", "-c 4", "-ht 5"],
)
def test_other_directives_are_left_to_sbatch(directive: str) -> None:
    sbatch.check_script(f"#!/bin/bash\n#SBATCH {directive}\n".encode(), "my.sh")


@pytest.mark.parametrize("name", ["cluster", "arr", "job-n", "job_nam", "pars", "exp"])
def test_owned_options_are_refused_by_their_first_letters_too(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be set"):
        sbatch.options_to_arguments({name: "x"})


@pytest.mark.parametrize(
    "name", ["SBATCH_CLUSTERS", "SLURM_CLUSTERS", "SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SLURM_CONF"]
)
def test_variables_that_would_set_an_owned_option_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} in `env` would change"):
        sbatch.check_environment(["HOME", name])
    sbatch.check_environment(["SBATCH_ACCOUNT", "HOME"])


def test_a_comment_says_what_a_job_is_unless_the_author_does() -> None:
    text = sbatch.comment(dag="d|ag 'x'\n", task="t" * 200, run="manual__2026-11-28T20:28:00+00:00")
    assert text == f"airflow-provider-picas dag=d_ag_x_ task={'t' * 80} run=manual__2026-11-28T20:28:00+00:00"
    script = b"#!/bin/bash\n#SBATCH --comment=mine\n"
    assert f"--comment={text}" in sbatch.command_line("k", {}, 1, "p", b"#!/bin/bash\n", comment=text)
    for options, content in (({"comment": "mine"}, b""), ({"comment": False}, b""), ({}, script)):
        assert f"--comment={text}" not in sbatch.command_line("k", options, 1, "p", content, comment=text)
