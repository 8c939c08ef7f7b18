"""Copies an earlier submission to submit the same pilots again: script, files, options and environment.

The copy is made on the cluster, from the folder of the earlier submission into that of the new one. Credentials are not
copied: they come from the connection, as always.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.pilot import archive
from airflow_provider_picas.slurm import pilot_job, sbatch_record
from airflow_provider_picas.slurm.remote import Command, Operation, RemoteError, quote

SCRIPT_FILE = "pilot.sh"
"""Name of the batch script in a submission's folder; further sbatch calls have ``pilot-<n>.sh``."""

_KEY = re.compile(r"picas-[A-Za-z0-9_-]+\.[0-9]{1,9}")


@dataclass(frozen=True)
class Origin:
    """An earlier submission, read from its folder. ``config``: of our own pilot; empty if a PiCaS script was submitted."""

    key: str
    folder: str
    commands: tuple[str, ...]  #: sbatch command lines, quoted for a shell
    config: Mapping[str, Any] = field(default_factory=dict)
    credentials: bool = False  #: True if credentials were sent with it


def read(key: str, folder: str, count: int, batch: str) -> Operation[Origin]:
    """The submission ``key`` with its first ``count`` sbatch calls. Raises RemoteError if it cannot be repeated for
    ``batch``.

    Key and folder come from the pool, where others may write: the submission must be the account's own, and for this
    batch.
    """
    if wrong_folder := _wrong_folder(key, folder):
        raise RemoteError(wrong_folder)
    text = f"""
cd -- {quote(folder)} 2>/dev/null && [ -e {sbatch_record.SUBMIT_SCRIPT} ] && [ -e command.0 ] || exit 4
for file in . {sbatch_record.SUBMIT_SCRIPT} command.* {SCRIPT_FILE}; do [ -O "$file" ] || exit 6; done
i=0
while [ $i -lt {count} ] && [ -e command.$i ]; do
  echo "command $(head -c 20000 command.$i | base64 -w0)"; i=$((i+1))
done
[ ! -e credentials.sent ] || echo credentials
[ ! -e {pilot_job.CONFIG_FILE} ] || echo "config $(head -c 1000000 {pilot_job.CONFIG_FILE} | base64 -w0)"
true"""
    output = yield Command(text)
    if output.code == 4:
        raise RemoteError(
            f"The folder {folder} of the earlier pilots is gone from the cluster (`keep_days`), so they cannot be submitted"
            " again. Clear the push task of the earlier run with its downstream, or set `command`."
        )
    if output.code == 6:
        raise RemoteError(f"{folder} on the cluster, or a file in it, belongs to another account. It is not run.")
    if output.code != 0:
        raise RemoteError(f"The earlier submission's folder {folder} cannot be read on the cluster: {output.message}.")
    return _parse(key, folder, output.stdout, batch)


def objection(key: str, folder: str, batch: str) -> Operation[str | None]:
    """Why a submission named in the pool is not this account's for the batch; None if it is.

    Others may write to the pool. A wait sends credentials to the folder, and may submit the script in it. Raises
    RemoteError if the cluster does not answer.
    """
    if wrong_folder := _wrong_folder(key, folder):
        return wrong_folder
    text = f"""
cd -- {quote(folder)} 2>/dev/null || exit 4
for file in . {sbatch_record.SUBMIT_SCRIPT}; do [ -O "$file" ] || exit 6; done
[ ! -e {pilot_job.CONFIG_FILE} ] || head -c 1000000 {pilot_job.CONFIG_FILE}"""
    output = yield Command(text)
    if output.code:
        return f"{folder} on the cluster is gone, or belongs to another account."
    try:
        return _for_another_batch(key, json.loads(output.stdout or "{}"), batch)
    except (ValueError, AttributeError):
        return f"{folder}/{pilot_job.CONFIG_FILE} on the cluster is not a pilot configuration."


def _wrong_folder(key: str, folder: str) -> str | None:
    """Why the folder cannot be that of the submission; None if it can."""
    if _KEY.fullmatch(key) and folder.rpartition("/")[2] == key:
        return None
    return f"{folder!r:.200} is not the folder of submission {key!r:.100}."


def _for_another_batch(key: str, config: Mapping[str, Any], batch: str) -> str | None:
    """Why the pilots of a submission are not for the batch; None if they are."""
    if config.get("batch") in (None, batch):
        return None
    return f"The pilots of {key} are for batch {config['batch']!r:.130}, not for {batch}."


def _parse(key: str, folder: str, stdout: str, batch: str) -> Origin:
    commands: list[str] = []
    config: Any = {}
    for line in stdout.splitlines():
        word, _, encoded = line.partition(" ")
        if word == "command":
            commands.append(base64.b64decode(encoded).decode("utf-8", "replace"))
        elif word == "config":
            config = json.loads(base64.b64decode(encoded))
    if config and (other := _for_another_batch(key, config, batch)):
        raise RemoteError(other)
    return Origin(key, folder, tuple(commands), config, "credentials" in stdout.splitlines())


def copy(origin: Origin, key: str, staging: str, limit: int | None) -> Command:
    """The command that copies the earlier submission into the folder ``staging``, which will become the folder of ``key``.

    In files that we wrote, it replaces the name of the earlier submission. ``limit``: limit on the pilots of each sbatch
    call.
    """
    numbers = range(len(origin.commands))
    ours = [sbatch_record.SUBMIT_SCRIPT, *(f"command.{number}" for number in numbers)]
    same = [SCRIPT_FILE]
    if origin.config:
        ours += [name for number in numbers for name in (script_name(number), config_name(number))]
        same = [archive.FILE, *map(str, origin.config.get("files", ()))]
    old = origin.key.replace(".", "[.]")
    renamed = f"s/{old}\\>/{key}/g"
    text = f"""
umask 077
cd -- {quote(origin.folder)} || exit 4
for file in {quote(*ours)}; do
  sed {quote(renamed)} "$file" >{quote(staging)}/"$file" && chmod --reference="$file" {quote(staging)}/"$file" || exit 5
done
cp -p -- {quote(*same)} {quote(staging)}/ || exit 5"""
    if limit is not None:
        text += f"""
cd -- {quote(staging)} || exit 4
for file in {quote(*(f"command.{number}" for number in numbers))}; do
  last=$(sed -n 's/.* --array=0-\\([0-9]*\\).*/\\1/p' "$file")
  [ -z "$last" ] || [ "$last" -lt {limit} ] || sed -i 's/\\(.* --array=0-\\)[0-9]*/\\1{limit - 1}/' "$file" || exit 5
done"""
    return Command(text)


def script_name(number: int) -> str:
    """Name of the batch script of the n-th sbatch call of our own pilots."""
    return SCRIPT_FILE if number == 0 else f"pilot-{number}.sh"


def config_name(number: int) -> str:
    """Name of the file with the options of our own pilots of the n-th sbatch call."""
    return pilot_job.CONFIG_FILE if number == 0 else f"pilot-{number}.json"
