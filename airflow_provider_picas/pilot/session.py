"""What a thread needs to work on the pool."""

from typing import Callable, NamedTuple, Optional, Set, Tuple

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.identity import Identity


class Session(NamedTuple):
    """One thread's connection to the pool, and what it has to know about its pilot."""

    database: Database
    config: Config
    me: Identity
    clock: Clock
    contact: Callable[[], float]  # seconds for which this pilot has done what it expects of others
    held: Callable[[], Set[str]] = set  # this pilot's claims that have not ended
    stored: Callable[[], Optional[Tuple[int, float]]] = lambda: None  # ``Lease.stored`` if the database is a cluster
