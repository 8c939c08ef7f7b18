"""The project's DAGs, as Airflow's DAG processor reads and serializes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stack import paths

DAGS = {
    "picas_after_batch",
    "picas_archive_batches",
    "picas_autopilot",
    "picas_checksum_report",
    "picas_mapped_runs",
    "picas_nightly_checksums",
    "picas_own_script",
    "picas_rerun_failed",
    "picas_stages",
    "picas_sunspots",
    "picas_sweep",
    "picas_word_count",
}


def test_the_projects_dags_load_and_serialize(tmp_path: Path) -> None:
    """Each file, with what Airflow keeps of it in its database: schedules, assets, watchers."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(paths.PROJECT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }

    def airflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(Path(sys.prefix) / "bin" / "airflow"), *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    airflow("db", "migrate")
    kept = airflow("dags", "reserialize")
    listed = airflow("dags", "list", "--output", "json").stdout
    rows = json.loads(listed[listed.index("[{") :])
    assert {row["dag_id"] for row in rows} == DAGS, kept.stdout + kept.stderr
