"""The real parts that demo and tests run on: CouchDB, Slurm with sshd, Airflow. Not part of the provider package.

Everything is installed and written below ``.stack/`` in the project's folder. The top level of these modules imports
only the standard library, since they also run before anything is installed.
"""
