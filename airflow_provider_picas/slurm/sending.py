"""Sends files over the command channel: a shell on the login node reads them from its standard input and writes them.

SFTP would need a subsystem that not every sshd has, a second session beside a command's, and start-up files that print
nothing. It also reports only "Failure" when a disk is full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from airflow_provider_picas.slurm import remote
from airflow_provider_picas.slurm.remote import Output, RemoteFile

_CHUNK = 1 << 18

_PROGRAM = """
export LC_ALL=C; umask 077; trap '' XFSZ
staged=() paths=() modes=()
trap 'rm -f -- "${staged[@]}"' EXIT
fail() { echo "$path: ${1##*: }"; exit 1; }
field() { IFS= read -r -d '' "$1" || fail "$lost"; }
lost='it did not arrive as it was sent. A start-up file of the account, such as .bashrc, may read the standard input'
path='the first file'; field count
case $count in MARKER-*) count=${count#MARKER-};; *) fail "$lost";; esac
while [ ${#paths[@]} -lt "$count" ]; do
  for name in size mode digest path; do field $name; done
  file=${path%/*}/.${path##*/}.MARKER
  output=$( (set -o noclobber; : >"$file") 2>&1) || fail "$output"
  staged+=("$file") paths+=("$path") modes+=("$mode")
  output=$(head -c "$size" 2>&1 >>"$file") || fail "$output"
  [ "$(sha256sum <"$file")" = "$digest  -" ] || fail "$lost"
done
for number in "${!paths[@]}"; do
  path=${paths[number]}
  output=$(chmod "${modes[number]}" "${staged[number]}" 2>&1) || fail "$output"
  output=$(mv -fT -- "${staged[number]}" "$path" 2>&1) || fail "$output"
done
"""
"""Shell code that writes all files under temporary names first, and then renames them. It prints on stdout why it failed.

``head`` and bash's ``read`` consume no more bytes of a pipe than requested.
"""


def line(marker: str) -> str:
    """The command line. It reads no login profile, which could consume the content as its own input, and is not needed."""
    return remote.wrap(_PROGRAM.replace("MARKER", marker), marker, profile=False)


def stdin(files: Sequence[RemoteFile], marker: str) -> Iterator[bytes]:
    """The standard input of that command, in pieces."""
    yield f"{marker}-{len(files)}\0".encode()
    for file in files:
        digest = hashlib.sha256(file.content).hexdigest()
        for value in (str(len(file.content)), f"{file.mode:o}", digest, file.path):
            yield value.encode() + b"\0"
        for start in range(0, len(file.content), _CHUNK):
            yield file.content[start : start + _CHUNK]


def outcome(output: Output) -> Output:
    """The result of the command: stderr may also have output of a start-up file."""
    return Output(output.code, stderr=output.stdout or output.stderr) if output.code else Output(0)
