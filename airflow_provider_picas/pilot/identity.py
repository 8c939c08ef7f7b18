"""The identity of this pilot."""

import os
import re
import socket
import uuid
from typing import NamedTuple, Optional, Tuple


class Identity(NamedTuple):
    """The identity of a pilot."""

    pilot: str
    hostname: str
    job: Optional[str]  # in the PiCaS client's form: ARRAYJOB_TASK in an array
    share: Tuple[int, int]  # its index in its job array, and the size of the array

    @classmethod
    def here(cls) -> "Identity":
        """The identity of a new pilot in this process. A requeued job is another pilot."""
        job = os.environ.get("SLURM_JOB_ID")
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        if array and task:
            job = f"{array}_{task}"
        hostname = socket.gethostname()
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{job or os.getpid()}-{hostname.split('.')[0]}")
        count = max(1, _whole(os.environ.get("SLURM_ARRAY_TASK_COUNT"), 1))
        share = (_whole(task, 0) - _whole(os.environ.get("SLURM_ARRAY_TASK_MIN"), 0)) % count, count
        return cls(f"{name[:80]}-{uuid.uuid4().hex[:8]}", hostname, job, share)


def _whole(text: Optional[str], default: int) -> int:
    return int(text) if text and re.match("[0-9]{1,18}\\Z", text) else default
