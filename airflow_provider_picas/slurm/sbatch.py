"""sbatch: options as data, turned into arguments in one place, and the ``#SBATCH`` lines of a script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

OWNED = {
    "job-name": "it identifies the submission, so that nothing is submitted twice",
    "array": "set the number of pilots with `pilots`",
    "parsable": "the operator sets it",
    "chdir": "set the folder with `workdir`",
    "export": "it would remove the script's own variables; set variables with `env`",
    "wrap": "use `script`",
    "wait": "the sensor waits for the pilots",
    "test-only": "use dry_run=True",
    "clusters": "only the login node's own cluster is queried for jobs. For another cluster, use an SSH connection to a login"
    " node of that cluster, or set SLURM_CLUSTERS in the account's login profile",
}
"""Options that an author may not set, and why. sbatch also takes their first letters (``--job-n``)."""

_NOT_IN_SCRIPTS = {
    "clusters": f"remove it: {OWNED['clusters']}",
    "test-only": "remove it: no job would be created. Use dry_run=True",
    "hetjob": "a heterogeneous job has no single id. Submit each part from a separate task",
    "packjob": "a heterogeneous job has no single id. Submit each part from a separate task",
}
"""Directives that a script may not have, and what to do. The command line overrides the others in ``OWNED``."""

_ENVIRONMENT = {f"SBATCH_{name}" for name in ("ARRAY_INX", "CLUSTERS", "EXPORT", "JOB_NAME", "TEST_ONLY", "WAIT")} | {
    "SLURM_CLUSTERS",
    "SLURM_CONF",
}
"""Variables that would set an option which an author may not set, or send our commands to another cluster."""

_FLAGS = "HhOQsvVW"  # sbatch's short options without a value, which may be combined with another one: -HM wice


class OptionError(ValueError):
    """An sbatch option that cannot be passed on; the message says which and what to do."""


def options_to_arguments(options: Mapping[str, Any]) -> list[str]:
    """``{"time": "00:30:00", "cpus-per-task": 1, "exclusive": True}`` as sbatch's arguments.

    Names may be written with ``_`` for ``-``. True gives the bare flag; None and False leave the option to the script.
    Raises OptionError for names and values that are none of sbatch's, or that the operator sets itself.
    """
    arguments = []
    for given, value in options.items():
        name = str(given).strip().lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise OptionError(f"{given!r:.80} is not an sbatch option; use the long name, such as 'cpus-per-task'.")
        if owned := _owned(name):
            raise OptionError(f"The sbatch option {owned!r} cannot be set: {OWNED[owned]}.")
        if value is None or value is False:
            continue
        if value is True:
            arguments.append(f"--{name}")
            continue
        if not isinstance(value, str | int | float):
            raise OptionError(f"The sbatch option {name!r} is {value!r:.80}; it takes a string, a number or true.")
        text = str(value)
        if not text or not text.isprintable():
            raise OptionError(
                f"The sbatch option {name!r} is {text!r:.80}: it must not be empty or contain non-printable characters."
            )
        arguments.append(f"--{name}={text}")
    return arguments


def _owned(name: str) -> str | None:
    """The option in ``OWNED`` that sbatch understands by a name: the full name, or its first letters."""
    return name if name in OWNED else next((owned for owned in OWNED if owned.startswith(name)), None)


def check_environment(names: Iterable[str]) -> None:
    """Raises OptionError for variables of sbatch that would set an option which an author may not set."""
    if refused := sorted(_ENVIRONMENT & set(names)):
        raise OptionError(
            f"{', '.join(refused)} in `env` would change where or how sbatch submits. Remove it: use `sbatch` for"
            " options, `pilots` for the number of pilots, and another SSH connection for another cluster."
        )


def array(pilots: int) -> str:
    """The argument for an array of ``pilots`` tasks. Raises OptionError below 1."""
    if isinstance(pilots, bool) or not isinstance(pilots, int) or pilots < 1:
        raise OptionError(f"`pilots` is {pilots!r:.80}; it takes a whole number from 1.")
    return f"--array=0-{pilots - 1}"


def directives(script: bytes) -> dict[str, str | None]:
    """The options on a script's ``#SBATCH`` lines by long name; None where one has no value.

    As sbatch does, lines count up to the first command. Short options are kept under their letter. A line ``hetjob``
    begins the next part of a heterogeneous job.
    """
    found: dict[str, str | None] = {}
    for line in script.decode("utf-8", "replace").split("\n"):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            break
        if not line.startswith("#SBATCH"):
            continue
        try:
            words = shlex.split(line[len("#SBATCH") :], comments=True)
        except ValueError:
            continue  # an open quote: sbatch will report it
        while words:
            word = words.pop(0)
            if word.startswith("--"):
                name, has_value, value = word[2:].partition("=")
                takes_next = not has_value and bool(words) and not words[0].startswith("-")
                found[name] = value if has_value else words.pop(0) if takes_next else None
            elif word.startswith("-") and len(word) > 1:
                letters = word[1:]
                while letters[0] in _FLAGS and letters[1:]:
                    found[letters[0]], letters = None, letters[1:]
                rest = letters[1:] or (words.pop(0) if words and not words[0].startswith("-") else None)
                found[letters[0]] = rest
            elif word in ("hetjob", "packjob"):
                found[word] = None
    return found


def comment(**parts: str) -> str:
    """The comment that `squeue --format=%k` shows for a job, such as ``dag=word_count task=pilots``."""
    shown = (f"{name}={re.sub(r'[^A-Za-z0-9_.:+@-]+', '_', value)[:80]}" for name, value in parts.items())
    return " ".join(["airflow-provider-picas", *shown])


def check_script(script: bytes, name: str) -> None:
    """Raises OptionError for a script that sbatch would refuse or misinterpret (no ``#!`` line, or empty), and for
    directives whose jobs could not be found again."""
    if not script.strip():
        raise OptionError(f"The script {name} is empty.")
    if not script.startswith(b"#!"):
        raise OptionError(
            f"The script {name} does not begin with '#!': sbatch requires a first line such as #!/bin/bash."
        )
    if b"\0" in script:
        raise OptionError(
            f"The script {name} contains a NUL byte: it is a binary, not a script. Call it from a script."
        )
    for option in directives(script):
        short = len(option) == 1  # a short option, such as -c or -t, and not the beginning of a name
        full = {"M": "clusters"}.get(option, option) if short else _owned(option) or option
        if full in _NOT_IN_SCRIPTS:
            given = option if option == full else f"{option} ({full})"
            raise OptionError(f"The script {name} has the #SBATCH option {given}: {_NOT_IN_SCRIPTS[full]}.")


def command_line(
    key: str,
    options: Mapping[str, Any],
    pilots: int | None,
    script_path: str,
    script: bytes,
    max_running: int | None = None,
    comment: str | None = None,
) -> list[str]:
    """The complete sbatch command. At most ``max_running`` of the pilots run at the same time. ``comment`` is used if
    the author has not set one.

    Pilots are not requeued unless the script or the DAG asks for it: a requeued copy may run beside the first one, if
    its node was wrongly considered dead.
    """
    arguments = options_to_arguments(options)
    given = {argument.partition("=")[0] for argument in arguments} | {f"--{name}" for name in directives(script)}
    if not given & {"--requeue", "--no-requeue"}:
        arguments.append("--no-requeue")
    if comment and not ("--comment" in given or "comment" in options):
        arguments.append(f"--comment={comment}")
    if pilots is not None:
        arguments.append(array(pilots) + (f"%{max_running}" if max_running else ""))
    return ["sbatch", "--parsable", f"--job-name={key}", *arguments, script_path]


_CLUSTER = re.compile(r"^\s*[1-9][0-9]*;(\S+)\s*$|Submitted batch job [1-9][0-9]* on cluster (\S+)", re.MULTILINE)
_JOB_ID = re.compile(r"(?:(?:sbatch: )?Submitted batch job )?([1-9][0-9]*)(?:;\S+| on cluster \S+)?")


def job_ids(output: str) -> list[str]:
    """The candidates for the job's id in the output of ``sbatch --parsable``: lines of ``<id>`` or ``<id>;<cluster>``.

    Some sites wrap sbatch in a script that prints more, or drops the option. A line with the cluster, or with "Submitted
    batch job", can only come from sbatch.
    """
    found = [match for line in output.splitlines() if (match := _JOB_ID.fullmatch(line.strip()))]
    sure = [match for match in found if match.group(0) != match.group(1)]
    return list(dict.fromkeys(match.group(1) for match in sure or found))


def cluster(output: str) -> str | None:
    """The cluster that sbatch prints beside the id, which it does only if one was requested."""
    return next((match[1] or match[2] for match in _CLUSTER.finditer(output)), None)


def job_id(output: str) -> str | None:
    """The job id in the output of ``sbatch --parsable``; None if there is none, or if several lines are candidates."""
    ids = job_ids(output)
    return ids[0] if len(ids) == 1 else None
