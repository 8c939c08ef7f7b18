"""Operations that need both the pool and the cluster: submission submissions, dead pilots, unsent results.

Operations only (see ``sansio``): nothing here does I/O.
"""
