"""``airflow-picas check``: check that a run would work with these connections."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from airflow_provider_picas.cli.common import CommandError, add_connection, use_hooks, with_options


def add(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "check",
        help="check that a run would work",
        description="Check the pool, the cluster and, with --submit, a compute node. Each line begins with ok, warn or FAIL."
        " The exit code is 0 if nothing failed. Run it where Airflow's tasks run: it reads the connections as they do.",
    )
    add_connection(parser)
    parser.add_argument("--ssh-conn-id", default="ssh_default", help="connection of type SSH (default: ssh_default)")
    parser.add_argument(
        "--remote-folder", metavar="FOLDER", help="the operator's `remote_folder` (default: picas-pilots in the home)"
    )
    parser.add_argument("--submit", action="store_true", help="submit a one-minute job that checks a compute node")
    parser.add_argument("--partition", help="partition for that job")
    parser.add_argument(
        "--sbatch",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an sbatch option for that job; can be repeated",
    )
    parser.add_argument("--setup", metavar="TEXT", help="the operator's `setup`, such as 'module load Python'")
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=300.0,
        help="how long to wait until that job has run (default: 300)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    use_hooks()
    from airflow_provider_picas import checks

    wanted = checks.Wanted(
        options.picas_conn_id,
        options.ssh_conn_id,
        database=options.database,
        remote_folder=options.remote_folder,
        submit=options.submit,
        sbatch=_sbatch(options.sbatch, options.partition),
        setup=options.setup,
        wait=options.wait,
    )
    levels = []
    for finding in checks.everything(wanted, note=lambda text: print(f"      {text}", file=sys.stderr, flush=True)):
        levels.append(finding.level)
        print(with_options(str(finding)), flush=True)
    failures = levels.count(checks.Level.FAIL)
    if failures:
        print(f"\n{failures} of {len(levels)} checks failed: a run would not work.")
    elif options.submit:
        print("\nA run would work.")
    else:
        print("\nNothing failed. To check a compute node, too, add --submit.")
    return 1 if failures else 0


def _sbatch(given: list[str], partition: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"partition": partition} if partition else {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise CommandError(f"--sbatch takes key=value, such as --sbatch account=project, not {text!r:.80}.")
        options[name] = value if equals else True
    return options
