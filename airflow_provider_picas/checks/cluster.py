"""Checks the login to the cluster, Slurm's commands, and the room in the shared home."""

from __future__ import annotations

import base64
import posixpath
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from airflow_provider_picas.checks import node
from airflow_provider_picas.checks.finding import Finding, failed, ok, warned
from airflow_provider_picas.checks.node import Probe
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.slurm.pilot_job import python_lines
from airflow_provider_picas.slurm.remote import RemoteError, Send, quote, whole
from airflow_provider_picas.slurm.submission_folder import DEFAULT_FOLDER
from airflow_provider_picas.tokens.text import one_line

if TYPE_CHECKING:
    import paramiko

SLOW_LOGIN = 10.0  # seconds after which a login shell counts as slow
PATIENCE = 20  # seconds for each of Slurm's commands
WRITTEN = 1 << 20  # bytes written to the home as a test
LEAST_ROOM = 100 << 20  # bytes that should be free there

_WITHOUT = {
    "sbatch": "no pilot can be submitted",
    "squeue": "nobody knows which pilots are pending or running",
    "scontrol": "pilots do not know how much time is left, and recovering an interrupted submission takes longer",
    "sacct": "why a pilot ended is known only from squeue, for a few minutes (Slurm's MinJobAge), and the figures lack its usage",
}
_NEEDED = ("sbatch", "squeue")
_OTHER_FOLDER = (
    "Free space there (see the site's `quota`), or set `remote_folder` to another folder (here --remote-folder)."
)


class OneTry(SlurmHook):
    """The hook, but it tries to connect only once: a check should report at once."""

    def _connect(self) -> paramiko.SSHClient:
        return self.connect_once()


def check(slurm: SlurmHook, probe: Probe, remote_folder: str | None, *, submit: bool) -> Iterator[Finding]:
    """Check the cluster from a login node. ``submit``: a compute node will be checked, too."""
    try:
        slurm.get_conn()
    except RemoteError as error:
        yield failed("ssh", str(error))
        return
    yield ok("ssh", f"{slurm.place} accepts the login. {_files(slurm)}")
    if slurm.ssh.no_host_key_check or slurm.ssh.allow_host_key_change:
        yield warned(
            "ssh, host key",
            "It is not checked. Set the connection's extra 'host_key' to what `ssh-keyscan` prints.",
        )
    try:
        yield from _shell(slurm)
        yield from _commands(slurm)
        yield from _home(slurm, probe, remote_folder, submit=submit)
    except RemoteError as error:
        yield failed("cluster", str(error))


def _shell(slurm: SlurmHook) -> Iterator[Finding]:
    begin = time.monotonic()
    output = slurm.run("echo picas")
    seconds = time.monotonic() - begin
    if output.stdout.strip() != "picas":
        yield failed(
            "login shell", f"It changes the output of commands: `echo picas` printed {one_line(output.message)!r}."
        )
    elif seconds > SLOW_LOGIN:
        yield warned("login shell", f"A command takes {seconds:.0f} s: look for slow commands in the login profile.")
    else:
        yield ok("login shell", "It runs commands.")


def _files(slurm: SlurmHook) -> str:
    """The files that a login needs, on each machine."""
    ssh = slurm.ssh
    checked = not (ssh.no_host_key_check or ssh.allow_host_key_change)
    files = [str(ssh.key_file)] if ssh.key_file else []
    files += ["~/.ssh/known_hosts"] if checked and ssh.host_key is None else []
    if not files:
        return "Triggerers log in the same way."
    return f"Triggerers log in the same way, so they need {' and '.join(files)}, too."


def _commands(slurm: SlurmHook) -> Iterator[Finding]:
    """Run each of Slurm's commands with a query that has to succeed."""
    text = f"""
ask() {{
  command -v "$1" >/dev/null || {{ echo "$1 missing"; return; }}
  said=$(timeout {PATIENCE} "$@" 2>&1); echo "$1 $? $(printf %s "$said" | tail -c 500 | base64 -w0)"
}}
ask sbatch --version
ask squeue --noheader --user="$(id -un)"
ask scontrol ping
ask sacct --noheader --allocations --starttime=now-1hour"""
    output = slurm.run(text, timeout=4 * PATIENCE + 30)
    answers = {words[0]: words[1:] for line in output.stdout.splitlines() if (words := line.split())}
    for name, loss in _WITHOUT.items():
        code, *encoded = answers.get(name, ["missing"])
        message = one_line(base64.b64decode("".join(encoded)).decode("utf-8", "replace").strip())
        if code == "0" and (name != "scontrol" or "UP" in message):
            yield ok(name, message if name == "sbatch" else "It answers.")
            continue
        if code == "missing":
            why = "It is not on the login shell's PATH: add it in the login profile, or use a login node that has it"
        elif code == "124":
            why = f"It did not answer within {PATIENCE} s: try later, or ask the site"
        else:
            why = f"It fails with exit code {one_line(code)}: {message}"
        yield (failed if name in _NEEDED else warned)(name, f"{why}. Without it, {loss}.")


def _home(slurm: SlurmHook, probe: Probe, remote_folder: str | None, *, submit: bool) -> Iterator[Finding]:
    """Write to the folder for submissions, and run the login node's checks from there."""
    if remote_folder is None:
        enter = f'cd -- "$HOME/{DEFAULT_FOLDER}" 2>/dev/null || cd -- "$HOME"'
    else:
        enter = f'cd -- "$HOME" && cd -- {quote(remote_folder)}'
    made = slurm.run(f'{enter} && mktemp -d -- "$PWD/.picas-check-XXXXXXXX"')
    folder = made.stdout.strip()
    if made.code != 0:
        yield failed("home", f"No folder can be created for submissions ({one_line(made.message)}). {_OTHER_FOLDER}")
        return
    try:
        if (yield from _room(slurm, folder, probe)):
            yield from _login_node(slurm, folder, probe, submit=submit)
    finally:
        slurm.run(f"rm -rf -- {quote(folder)}")


def _room(slurm: SlurmHook, folder: str, probe: Probe) -> Generator[Finding, None, bool]:
    """Write a file with a command, and send some. Returns True if this works."""
    place = posixpath.dirname(folder)
    text = f"""
dd if=/dev/urandom of={quote(f"{folder}/room")} bs=65536 count={WRITTEN // 65536} conv=fsync 2>&1 || exit
echo; df -Pk -- {quote(folder)} | tail -n 1"""
    written = slurm.run(text)
    if written.code != 0:
        of_dd = [line.rpartition(": ")[2] for line in written.stdout.splitlines() if line.startswith("dd:")]
        message = of_dd[0] if of_dd else written.message
        yield failed("home", f"{place} cannot be written ({one_line(message)}). {_OTHER_FOLDER}")
        return False
    try:
        sent = slurm.perform(Send(probe.files(folder)))
    except RemoteError as error:
        yield failed("files", f"{error} Submissions need this: ask the site, or use another login node.")
        return False
    if sent.code != 0:
        yield failed("files", f"Files cannot be sent to {place} ({one_line(sent.message)}). {_OTHER_FOLDER}")
        return False
    words = written.stdout.split()  # the last line is df's: device, size, used, free, share, mount
    blocks = whole(words[-3], default=-1) if len(words) > 3 else -1
    left = blocks * 1024 if blocks >= 0 else None
    room = f"{place} can be written" + (f", and df reports {left / 1e9:,.1f} GB free" if left is not None else "")
    yield (
        warned("home", f"{room}. {_OTHER_FOLDER}") if left is not None and left < LEAST_ROOM else ok("home", f"{room}.")
    )
    return True


def _login_node(slurm: SlurmHook, folder: str, probe: Probe, *, submit: bool) -> Iterator[Finding]:
    """Check Python, the clock, and the connection to the database on the login node."""
    output = slurm.run("\n".join(python_lines(f"{folder}/{node.PROGRAM}", f"{folder}/{node.CONFIG}")), timeout=60)
    report = node.read_report(output.stdout)
    compute = "Pilots run on compute nodes, which are checked" + (" below." if submit else " with --submit.")
    if report is None:
        yield warned("login node, Python", f"{one_line(output.message)} {compute}")
        return
    yield ok("login node, Python", one_line(str(report.get("python"))))
    if probe.url is None:
        return
    why = probe.reaches(report)
    if why is None:
        yield ok("login node, database", f"{probe.url} answers.")
    else:
        text = f"{probe.url} does not answer from there ({why}). {compute}"
        yield (warned if submit else failed)("login node, database", text)
    yield from node.clock("login node", report)
