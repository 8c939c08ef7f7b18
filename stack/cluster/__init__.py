"""A real Slurm with accounting, two compute nodes and two login nodes, as one user's processes in one folder.

``install()`` unpacks Debian's packages, ``Cluster`` runs them. To play with one: ``python -m stack.cluster up FOLDER``.
"""

from stack.cluster.site import Cluster, install

__all__ = ["Cluster", "install"]
