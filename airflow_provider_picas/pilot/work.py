"""The state that the pilot's threads share."""

import collections
import sys
import threading
import time
from typing import Callable, Deque, Dict, List, Optional

from airflow_provider_picas.lifecycle.exit_codes import EX_OK
from airflow_provider_picas.lifecycle.json_values import Doc
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change, Token
from airflow_provider_picas.pilot.attempt import Run
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.reporter import Reporter

WORK_A_CLAIM = 8.0  # seconds of work that one claim aims at
LONG = 2.0  # seconds of a token; longer ones are not claimed before they can start
STALE = 20.0  # seconds, at most half a lease, after which a claimed token that has not been started is released
TAIL_BYTES = 2_048  # of a running command's output, in the lease while somebody watches
MOST_TAILS = 32  # running commands whose output is in the lease
GO, DRAIN, STOP = 0, 1, 2  # claim and run; finish what runs; kill what runs


class Work:
    """The tokens that the pilot holds, how long they take, and whether to continue. All threads use it, under its lock."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stale = min(STALE, config.lease / 2)  # idle pilots wait for such tokens for a lease
        self.changed = threading.Condition()
        self.ready: Deque[Token] = collections.deque()  # claimed, not started
        self.runs: Dict[str, Run] = {}  # by claim
        self.level = GO
        self.why = ""
        self.code = EX_OK
        self.stopping = threading.Event()  # set when running commands are to be killed
        self.counts: Dict[str, int] = collections.Counter()
        self._seconds: Deque[float] = collections.deque(maxlen=50)
        self._mean: Optional[float] = None  # seconds of a command
        self._low = 0  # waiting tokens at which more are claimed
        self._spent = 0.0  # seconds of a slot for a token: the command, its folder, and the wait for a core

    def stop(self, level: int, why: str, code: int = EX_OK) -> None:
        """Drain or stop. A stop overrides a drain; otherwise the first reason is kept."""
        with self.changed:
            if level <= self.level:
                return
            log(f"{'Stopping' if level == STOP else 'Draining'}: {why}.")
            self.level, self.why, self.code = level, why, self.code or code
            if level == STOP:
                self.stopping.set()
            self.changed.notify_all()

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
        """Wait for ``seconds``, or until something changes and ``until`` holds, or the pilot is to end."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while self.level == GO:
                left = deadline - time.monotonic()
                if left <= 0 or (self.changed.wait(left) and until()):
                    return

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds``, unless the pilot is to end."""
        self.wait(seconds, until=lambda: False)

    def wake(self) -> None:
        """Let those that wait check again whether the pilot is busy."""
        with self.changed:
            self.changed.notify_all()

    def add(self, tokens: List[Token]) -> None:
        """Add claimed tokens."""
        with self.changed:
            self.ready.extend(tokens)
            self.changed.notify_all()

    def next_run(self, make: Callable[[Token], Run]) -> Optional[Run]:
        """Wait for the next token and make a run of it; None if no more are to be started."""
        with self.changed:
            while not self.ready and self.level == GO:
                self.changed.wait()
            if self.level != GO:
                return None
            run = make(self.ready.popleft())
            self.runs[run.token.claim] = run
            return run

    def finish(self, run: Run, change: Optional[Change], reporter: Reporter) -> None:
        """Record the end of a run, and pass its token to the reporter."""
        with self.changed:
            self._spent = 0.9 * self._spent + 0.1 * (time.monotonic() - run.made)
            if change is not None:
                reporter.put(change, more=bool(self.ready))
            del self.runs[run.token.claim]
            if len(self.ready) <= self._low:  # else nobody has to do anything
                self.changed.notify_all()

    def learn(self, seconds: float) -> float:
        """Record how long a command took. Returns the moving mean."""
        with self.changed:
            self._seconds.append(seconds)
            self._mean = seconds if self._mean is None else 0.7 * self._mean + 0.3 * seconds
            return self._mean

    def expected(self) -> float:
        """Seconds in which nine of ten recent tokens finished; 0 if none has ended."""
        with self.changed:
            seen = sorted(self._seconds)
        return seen[int(0.9 * (len(seen) - 1))] if seen else 0.0

    def wanted(self) -> int:
        """The number of tokens to claim now. Short tokens are fetched ahead."""
        slots, now = self._config.slots, time.monotonic()
        with self.changed:
            ready, running = len(self.ready), [now - run.started for run in self.runs.values()]
            mean, spent = self._mean, self._spent
        free = max(0, slots - len(running) - ready)
        if mean is None or mean > LONG or (len(running) >= slots and min(running) > max(1.0, 2 * mean)):
            return free  # the next tokens may be as long: claim none before it can start
        target = min(self._config.max_claim, int(WORK_A_CLAIM / max(mean, spent, 0.001))) * slots
        self._low = target // 4
        return target - ready if ready <= self._low else free

    def deaths_allowed(self, pending: int) -> int:
        """How many pilots may have died with a token to be claimed now. ``pending`` results would be lost with this
        pilot.

        After one death, which the node may have caused, a token may run beside others; after more, only alone.
        """
        with self.changed:
            if self.ready or pending or len(self.runs) >= self._config.slots:
                return 0
            return 1 if self.runs else sys.maxsize

    def stale(self, all_of_them: bool) -> List[Token]:
        """Remove and return the tokens that wait behind longer work, or all that were not started."""
        now = time.monotonic()
        with self.changed:
            stale = [token for token in self.ready if all_of_them or now - token.taken > self._stale]
            for token in stale:
                self.ready.remove(token)
        return stale

    def held(self) -> List[Token]:
        """Tokens that are claimed and not yet passed to the reporter."""
        with self.changed:
            return [*self.ready, *(run.token for run in self.runs.values())]

    def lose(self, token: Token, how: str) -> None:
        """Stop work on a token that this pilot has lost: its result would be refused."""
        with self.changed:
            run = self.runs.get(token.claim)
            if token in self.ready:
                self.ready.remove(token)
            elif run is None:
                return
            else:
                run.stop("lost", 0)
            token.lost = True
            self.counts["lost"] += 1
        log(f"Token {token.id} {how}. Stopping it.")

    def settled(self, change: Change, decision: str) -> None:
        """Called by the reporter for each change that was written, or refused."""
        with self.changed:
            if decision == "landed":
                self.counts[change.kind] += 1
            elif change.kind != "released":
                self.counts["refused"] += 1
                log(f"The result of {change.token} is refused: the token was released, reset or deleted.")
            if not self.ready:
                self.changed.notify_all()

    def activity(self, watched: bool = False) -> Doc:
        """The pilot's current activity, for its lease. ``watched``: with the ends of the running commands' output."""
        with self.changed:
            runs = list(self.runs.values())
            state = ("working" if runs else "idle", "draining", "stopping")[self.level]
            counts = {name.replace(" ", "_"): count for name, count in self.counts.items() if count}
            waiting = len(self.ready)
        running: Dict[str, Doc] = {}
        for run in runs:
            running[run.token.id] = {"seconds": int(time.monotonic() - run.started)}
            progress = run.progress()
            if progress is not None:
                running[run.token.id]["progress"] = progress
            if watched and len(running) <= MOST_TAILS:
                running[run.token.id]["tail"] = run.tail(TAIL_BYTES)
        return {"state": state, "running": running, "waiting": waiting, "counts": counts}
