"""``python -m stack.cluster up FOLDER`` starts a cluster and prints how to use it; ``down FOLDER`` stops it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stack.cluster import Cluster, install
from stack.processes import StackError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stack.cluster", description="A real Slurm and sshd in one folder.")
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("folder", type=Path, help="new, empty, or an earlier cluster's, which is wiped by up")
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder)
    try:
        if arguments.what == "down":
            cluster.clean_up()
        else:
            install()
            cluster.start()
            for host, port in cluster.logins:
                print(f"ssh -p {port} -i '{cluster.private_key}' {cluster.user}@{host}")
    except StackError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
