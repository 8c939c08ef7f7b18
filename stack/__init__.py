"""The real parts that demo and tests run on: CouchDB, Slurm with sshd, Airflow. Not part of the provider package.

Everything that is installed or written goes below ``.stack/`` in the project's folder. Only the standard library is
imported at the top of these modules, since they also run before anything is installed.
"""
