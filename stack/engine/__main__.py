"""Run a command with a Docker engine: ``python3 -m stack.engine COMMAND...``.

Where one answers already, the command gets that one, which downloads the images itself. Else this makes one for the
time of the command, from Debian's packages below ``.stack/engine``, with stand-ins for the images that ``docker/``
starts from (``docker/README.md``); that needs root. What it built stays there for the next time. Everything else is
removed: processes, mounts, network, rules of the firewall.

``python3 -m stack.engine --check`` only tells whether there is an engine or one can be made: exit code 0, or 3 with
the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from stack.commands import exit_code
from stack.demo import interrupt_once
from stack.docker import engine_answers
from stack.engine import daemon, images

IMPOSSIBLE = 3


def main(words: Sequence[str]) -> int:
    if not words:
        print(__doc__, file=sys.stderr)
        return 2
    answers = engine_answers()
    reason = None if answers else daemon.objection()
    if reason:
        print(f"No Docker engine answers, and {reason}.", flush=True)
        return IMPOSSIBLE
    if words[0] == "--check":
        return 0
    interrupt_once()
    return exit_code(lambda: run(words, {}) if answers else run_on_own_engine(words))


def run_on_own_engine(words: Sequence[str]) -> int:
    """Make an engine for the time of the command, and its images. Returns the command's exit code."""
    begin = time.monotonic()
    print("No Docker engine answers: making one, of Debian's packages in .stack/engine", flush=True)
    with daemon.engine():
        print(f"  it runs after {time.monotonic() - begin:.0f} s; its images:", flush=True)
        images.make()
        return run(words, daemon.environment())


def run(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run the command; returns its exit code. An interruption is passed on to it."""
    process = subprocess.Popen(words, env={**os.environ, **environment})
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
