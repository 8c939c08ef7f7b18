"""Operations that need both the pool and the cluster: submissions that are watched, dead pilots, unsent results.

Operations only (see ``sansio``): nothing here does I/O.
"""
