"""What needs both the pool and the cluster: submissions under watch, pilots that died, results that were not sent.

Operations only (see ``sansio``): nothing here does I/O.
"""
