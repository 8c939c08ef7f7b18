"""Scripts that save their token while they work on it, a revision for each line of a log."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.slurm.credentials import picasconfig
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.watch import check_pilots
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.counts import Counts
from stack import install, paths
from stack.pool import Pool

AGE = 4.0  # seconds: the wait's max_lock_age
SCRIPT = f"""
import time
import picasconfig as c
from picas.clients import CouchDB
from picas.documents import Task
db = CouchDB(url=c.PICAS_HOST_URL, db=c.PICAS_DATABASE, username=c.PICAS_USERNAME, password=c.PICAS_PASSWORD)
task = Task(db.get_single_from_view("todo", window_size=1).value)
db.save(task.lock())
begin, saves = time.monotonic(), 0
while saves < 1000 + {2 * AGE} / 0.3 or time.monotonic() < begin + {2 * AGE}:
    task["log"] = f"line {{saves}}"
    db.save(task)
    saves += 1
    time.sleep(0.3 if saves > 1000 else 0)  # then nobody has saved it in the meantime of most checks
    if saves % 250 == 0:
        task.put_attachment(f"part-{{saves}}.txt", b"so far")
task["exit_code"] = 0
task.output = {{"lines": saves}}
db.save(task.done())
print(saves)
"""


def test_a_token_of_the_client_that_is_saved_all_the_time_is_not_released(
    pool: Pool, picas_default: str, tmp_path: Path
) -> None:
    """It is locked for twice as long as the wait allows, but somebody saves it, and its result stands."""
    install.install(["picas"])
    hook = PicasHook()
    hook.deploy_views()
    hook.push([documents.new_token({"input": 1}, batch="b", push="p", ordinal=0)])
    (tmp_path / "picasconfig.py").write_bytes(picasconfig(pool.url, pool.database, pool.user, pool.password))
    (tmp_path / "script.py").write_text(SCRIPT)
    ended: list[subprocess.CompletedProcess[str]] = []

    def script() -> None:
        argv = [str(paths.PICAS_VENV / "bin" / "python"), "script.py"]
        ended.append(subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False))

    thread = threading.Thread(target=script)
    thread.start()
    observer, checks = ObservedLeases(), 0
    while thread.is_alive():
        status = hook.do(check_pilots(hook.pool, "b", None, max_scrubs=3, max_lock_age=AGE, observer=observer))  # type: ignore[arg-type]
        assert not status.reaped, f"after {checks} checks"
        checks += 1
        thread.join(0.2)
    assert ended[0].returncode == 0, ended[0].stderr
    token = hook.get("b:00000000")
    assert token["output"] == {"lines": int(ended[0].stdout)}
    assert token["output"]["lines"] >= 1_000
    assert len(token["_attachments"]) >= 4
    assert hook.count("b") == Counts(done=1)
