"""Why a pilot counts as dead, in words. They are stored in the attempts of its tokens.

A pilot that still runs reads them there: if Slurm has given up its job, all tokens that it claims would be reaped.
"""

from typing import Any

_ENDED, _REQUEUED = " has ended: ", " was requeued"


def holder(pilot: str, job: Any, hostname: Any) -> str:
    """The pilot that holds a token, by its lease. Text from a lease must be escaped."""
    return f"pilot {pilot} (job {job} on {hostname})"


def no_lease(pilot: str) -> str:
    """The lease of a pilot is missing."""
    return f"pilot {pilot} has no lease"


def ended(holder: str) -> str:
    """The lease shows that the pilot has ended."""
    return f"{holder} has ended"


def silent(holder: str, seconds: float) -> str:
    """The pilot has not renewed its lease in time."""
    return f"{holder} did not renew its lease for {seconds:.0f} s"


def job_ended(holder: str, cause: str) -> str:
    """Slurm reported the end of the pilot's job."""
    return f"{holder}{_ENDED}{cause}"


def requeued(holder: str) -> str:
    """Slurm has started the pilot's job again."""
    return f"{holder}{_REQUEUED}"


def is_from_slurm(reason: str) -> bool:
    """True if a token was reaped because Slurm reported the pilot's job as ended or requeued."""
    return _ENDED in reason or reason.endswith(_REQUEUED)
