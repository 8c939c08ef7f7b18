"""Starts the parts of a pilot, watches them, and shuts them down."""

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from typing import Any, List, Optional, Sequence, Set, Tuple

from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.exit_codes import (
    EX_CONFIG,
    EX_IOERR,
    EX_NOPERM,
    EX_OK,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EX_USAGE,
    Failed,
)
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.pilot_config import Config, parse_config
from airflow_provider_picas.lifecycle.transitions import release
from airflow_provider_picas.pilot import guard
from airflow_provider_picas.pilot.access import Login, read_access
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.environment import encoded, job_environment
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.lease import Lease
from airflow_provider_picas.pilot.log import flush, log
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.processes import Processes
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.pilot.scratch import lock_scratch, remove_stale_scratch, remove_tree
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.pilot.threads import Claimer, Slot, Workplace
from airflow_provider_picas.pilot.wall_clock import WallClock
from airflow_provider_picas.pilot.work import GO, STOP, Work

STOP_WITHIN = 9.0  # seconds from a signal to the end
TERM_GRACE = 3.0  # seconds of these for commands between SIGTERM and SIGKILL
CONFIRM = 3.0  # seconds, at most, for a pilot that was frozen past its lease to secure its tokens
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)  # each stops the pilot


class Pilot:
    """Starts the parts, watches them, and shuts them down."""

    def __init__(self, folder: str, config: Config) -> None:
        """``folder`` is the submission's. Raises Failed."""
        self.config = config
        self.clock = Clock(longest_gap=config.lease / 2)
        self.work = Work(config)
        self.processes = Processes()
        self.wall_clock = WallClock(self.clock, self.processes)
        self._folder = folder
        self._me = Identity.here()
        self._access = read_access(folder, config)
        login = Login(self._access, lambda: read_access(folder, config, again=True))
        self._database = Database(login, config, self.clock)  # used by this thread, then by the claimer
        self._outbox = Outbox(folder, self._access.database)
        quick = Database(login, config, self.clock, timeout=max(1.0, min(30.0, config.lease / 4)), slowest=2)
        self.lease = Lease(quick, config, self._me, self.clock, self.work)
        database = Database(login, config, self.clock)
        conflicts = Conflicts(self._session(database))
        self.reporter = Reporter(database, self._outbox, self.work.settled, conflicts, self.work.wake)
        self.environment = job_environment(dict(os.environ), self._access.folder)
        self.scratch = self.files = ""
        self._guard: "Optional[subprocess.Popen[bytes]]" = None
        self._signal: Optional[int] = None
        self._watched = time.monotonic()  # time of the last ``_watch``
        self._cluster = False  # the database is one
        self._thawed = float("-inf")  # when it continued after it was frozen (monotonic)

    def run(self) -> int:
        """Work until no tokens remain. Returns the exit code. Raises Failed before any token is claimed."""
        for name in SIGNALS:
            signal.signal(name, self._on_signal)
        self.processes.become_subreaper()
        self.wall_clock.start()
        info = self._open_pool()
        if info is None:
            return EX_OK
        try:
            self._make_scratch()
            self._start_guard()
            self._check_command()
            what = f"batch {self.config.batch}" if self.config.batch else "all batches"
            log(f"Pilot {self._me.pilot} of submission {self.config.submission} on {self._database.place}, {what}.")
            session = self._session(self._database)
            copies = info["cluster"].get("n") if isinstance(info.get("cluster"), dict) else 1
            self._cluster = number(copies, 1) > 1
            conflicts = Conflicts(session)
            claimer = self._claimer(
                Claims(session, self._cluster, conflicts, self.reporter), Reaper(session, conflicts)
            )
            for thread in (self.lease, self.reporter, claimer, *self._slots()):
                thread.start()
            while self.work.level == GO or self.work.runs:
                time.sleep(0.1)
                self._watch()
            return self._finish(claimer)
        finally:
            self.processes.end_all()
            remove_tree(self.scratch)
            self._end_guard()

    def held_claims(self) -> Set[str]:
        """The claims of tokens that wait or run in this pilot, or whose results are not known to be written."""
        return {token.claim for token in self.work.held()} | self.reporter.claims()

    def _session(self, database: Database) -> Session:
        of_this_pilot = (self.lease.contact, self.held_claims, self._stored)
        return Session(database, self.config, self._me, self.clock, *of_this_pilot)

    def _stored(self) -> Optional[Tuple[int, float]]:
        return self.lease.stored() if self._cluster else None

    def _claimer(self, claims: Claims, reaper: Reaper) -> Claimer:
        threads, clocks = (self._outbox, self.reporter, self._database, self.lease), (self.clock, self.wall_clock)
        return Claimer(self.work, claims, reaper, *threads, *clocks, self.config)

    def _slots(self) -> List[Slot]:
        place = Workplace(self.scratch, self.files, encoded(self.environment))
        parts = (self.work, self.reporter, self.lease, self.clock, self.processes, self.config, place)
        return [Slot(number, *parts) for number in range(self.config.slots)]

    def _on_signal(self, signum: int, _frame: Any) -> None:
        self._signal = self._signal or signum

    def _open_pool(self) -> Optional[Doc]:
        """Wait for the database and register. Returns its information, or None if stopped meanwhile. Raises Failed."""
        backoff, started = Backoff(), time.monotonic()
        while not self._signal:
            try:
                info = self._database.info()
                self.lease.renew()
                with suppress(Unreachable):  # the claimer tries again before it reaps
                    self._outbox.send(self._database)
                self.reporter.carry_out(self._outbox.take_parents())
                return info
            except Unreachable as error:
                if error.status in (401, 403):
                    raise Failed(f"{error}. Check the login in {self._access.folder}.", EX_NOPERM) from None
                if error.status == 404:
                    raise Failed(f"{error} Check the name in {self._access.folder}.", EX_CONFIG) from None
                waited = time.monotonic() - started  # not the silence: reads may work while writes do not
                if waited > self.config.outage:
                    raise Failed(f"{error}, for {waited:.0f} s.", EX_UNAVAILABLE) from None
                if backoff.tries == 0:
                    log(f"{error}; waiting.")
            until = time.monotonic() + backoff.pause()
            while not self._signal and time.monotonic() < until:
                time.sleep(0.1)
        return None

    def _make_scratch(self) -> None:
        """Create a folder on the node with the submission's files: they are copied once per node, not once per token."""
        base = os.environ.get("TMPDIR") or "/tmp"
        try:
            self.scratch = tempfile.mkdtemp(prefix="picas-", dir=base)
            lock_scratch(self.scratch)
            self.files = os.path.join(self.scratch, "files")
            os.mkdir(self.files)
            for name in self.config.files:
                shutil.copy(os.path.join(self._folder, name), self.files)
        except (OSError, shutil.Error) as error:
            raise Failed(f"A scratch folder below {base} cannot be created: {error}.", EX_IOERR) from None
        threading.Thread(target=remove_stale_scratch, args=(base,), name="scratch", daemon=True).start()

    def _start_guard(self) -> None:
        """Start the guard, which ends the commands if this process is killed. Best effort."""
        try:
            script = os.path.join(self.scratch, "guard.py")
            with open(script, "w") as file:
                file.write(inspect.getsource(guard))
            # Slurm may signal all processes of a job: the guard inherits the block of these signals, and survives.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [*SIGNALS, signal.SIGUSR2])
            try:
                self._guard = self.processes.start(
                    [sys.executable, "-I", "-S", script, self.scratch], env=self.environment, cwd="/", start_new_session=True,
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        except (OSError, TypeError) as error:
            log(f"The guard cannot be started ({error}). If this pilot is killed, its commands may continue to run.")

    def _end_guard(self) -> None:
        if self._guard is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._guard.communicate(b"the pilot has ended", timeout=2)

    def _check_command(self) -> None:
        """Report once, not for each token, that the command cannot be run. Raises Failed with the shell's exit code."""
        command = self.config.command
        # If the command does not begin with a plain word, leave the check to the shell.
        first = re.match(r"\s*([A-Za-z0-9._/+-]+)(\s|$)", command) if isinstance(command, str) else None
        word = command[0] if isinstance(command, list) else first.group(1) if first else ":"
        path = os.path.join(self.files, word)
        if "/" not in word:
            shell = self.processes.start(
                ["/bin/sh", "-c", 'command -v "$1"', "sh", word], cwd=self.files, env=self.environment
            )
            self.processes.ended(shell)
            if shell.returncode:
                raise Failed(f"Command {word} not found: load its module in the setup, or give its path.", 127)
        elif not os.path.exists(path):
            raise Failed(f"The command {word} does not exist: list it in files, or give its full path.", 127)
        elif not os.access(path, os.X_OK) or os.path.isdir(path):
            raise Failed(f"The command {word} is not executable: run chmod +x on it.", 126)

    def _watch(self) -> None:
        """Stop commands and release tokens as needed. Called ten times a second."""
        work, config, now = self.work, self.config, time.monotonic()
        if now - self._watched > config.lease / 3:
            self._thawed = now  # the process, or the machine, was frozen
            self.wall_clock.query_again()
        self._watched = now
        fresh = now - self._thawed < min(CONFIRM, config.lease / 4)
        remaining, silence = self.wall_clock.remaining(), min(self.clock.silence(), now - self._thawed)
        if self._signal:
            work.stop(STOP, f"received {signal.Signals(self._signal).name}")
        elif remaining is not None and remaining < STOP_WITHIN and not fresh:
            work.stop(STOP, "the job is about to reach its wall-clock limit")
        elif silence > max(config.outage, config.lease):
            work.stop(STOP, f"the database has not answered for {silence:.0f} s", EX_UNAVAILABLE)
        valid = self.lease.valid()
        for token in work.stale(all_of_them=work.level != GO or not valid):
            self.reporter.put(release(token))
        with work.changed:
            runs = list(work.runs.values())
        for run in runs:
            if work.level == STOP:
                run.stop(work.why, TERM_GRACE)
            elif not valid and not fresh:
                if not run.stopped:
                    log(f"The lease of {config.lease:g} s has expired. Stopping {run.token.id}.")
                run.stop("the pilot lost its lease", 0)

    def _finish(self, claimer: Claimer) -> int:
        """Send the remaining results, or keep them in files. Returns the exit code."""
        work, started = self.work, time.monotonic()
        claimer.join(2)
        claimer.release_in_flight()  # the claimer may hang in a request, or have failed
        for token in work.stale(all_of_them=True):
            self.reporter.put(release(token))
        self.reporter.gather = 0.0
        while self.reporter.pending() and time.monotonic() < self._deadline(started):
            time.sleep(0.02)
        unsent = self.reporter.close()
        for change in unsent:
            try:
                self._outbox.keep(change)
            except Exception as error:  # of any kind: the other results must not be lost with it
                log(f"The result of {change.token} is lost: it could be neither sent nor kept in a file: {error}.")
        self._outbox.flush(1.0)
        self.lease.end(clean=not unsent)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(work.counts.items()) if count)
        log(f"Ended: {work.why}. Tokens: {counts or 'none'}. Claims lost to other pilots: {claimer.conflicts}.")
        if unsent:
            results = sum(change.kind != "released" for change in unsent)
            also = f" and {len(unsent) - results} releases" if len(unsent) > results else ""
            log(f"{results} results{also} could not be sent; they are in {self._folder}/unsent.")
            return EX_TEMPFAIL
        return work.code

    def _deadline(self, started: float) -> float:
        """The monotonic time until which results may be sent. A signal may arrive in the meantime."""
        if self._signal or self.work.level == STOP:
            # Commands used TERM_GRACE of the time to end.
            return started + STOP_WITHIN - TERM_GRACE - 2.0
        remaining = self.wall_clock.remaining()
        return min(
            started + self.config.outage, float("inf") if remaining is None else time.monotonic() + remaining - 3
        )


def main(arguments: Sequence[str]) -> int:
    """Run a pilot with the configuration in the named file."""
    if len(arguments) != 1:
        log("Usage: picas_pilot.pyz pilot.json")
        return EX_USAGE
    path = os.path.abspath(arguments[0])
    try:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise Failed(f"{path} cannot be read: {error}.", EX_CONFIG) from None
        return Pilot(os.path.dirname(path), parse_config(text)).run()
    except Failed as error:
        log(f"The pilot cannot run. {error}")
        return error.code
    except Exception:
        log("The pilot failed:", traceback.format_exc())
        return EX_SOFTWARE


def start() -> None:
    """Run the pilot that the command line names, and end the process."""
    exit_code = main(sys.argv[1:])
    flush(1.0)
    os._exit(exit_code)  # threads may hang in a request, or in the log: do not wait for them
