"""The archive that is sent runs on every Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from airflow_provider_picas.tokens.states import State
from tests.integration.pilots import COUNT, Pool, Submission

NEWEST_FIRST = [f"python3.{minor}" for minor in range(20, 5, -1)]


def interpreters() -> list[tuple[tuple[int, int], str]]:
    """Python 3.6 and newer on the PATH and, if there is one, in pyenv's folder: version and program, oldest first."""
    programs = [found for name in NEWEST_FIRST if (found := shutil.which(name))]
    root = os.environ.get("PYENV_ROOT")
    programs += [str(path) for path in Path(root).glob("versions/3.*/bin/python3")] if root else []
    found = {}
    for program in programs:
        answer = subprocess.run(
            [program, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
        )
        if answer.returncode == 0:
            major, minor = map(int, answer.stdout.split())
            if (major, minor) >= (3, 6):
                found[major, minor] = program
    return sorted(found.items())


def test_the_oldest_and_the_newest_python_run_the_pilot(pool: Pool, submission: Submission) -> None:
    found = interpreters()
    chosen = [found[0], found[-1]]
    for version, program in chosen:
        print(f"the pilot runs on Python {version[0]}.{version[1]}: {program}")
    for batch in "bc":
        pool.push([{"input": place} for place in range(20)], batch)
    command = COUNT + '; echo out; echo "$PICAS_INPUT" > output.json; sleep 0.1; test $((PICAS_INPUT % 10)) != 3'
    pilots = [
        submission.start(command, python=program, batch=batch, slots=2, max_retries=1)
        for batch, (_, program) in zip("bc", chosen, strict=True)
    ]
    assert [process.wait(60) for process in pilots] == [0, 0], submission.log(0) + submission.log(1)
    assert pool.states() == {State.DONE: 36, State.ERROR: 4}
    assert all("Tokens: 18 done, 2 failed" in submission.log(place) for place in (0, 1))
