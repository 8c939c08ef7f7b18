"""What Slurm's reasons for a waiting job mean, in a sentence. The words are those of squeue(1), "JOB REASON CODES"."""

from __future__ import annotations

_EXACT = {
    "Priority": "Other jobs have a higher priority and run first.",
    "Resources": "It is next, and waits until enough nodes, cores or memory are free.",
    "Dependency": "It waits for another job to end.",
    "BeginTime": "Its start time has not come yet.",
    "JobHeldUser": "Its owner has put it on hold: `scontrol release` lets it run.",
    "JobHeldAdmin": "An administrator of the cluster has put it on hold.",
    "JobArrayTaskLimit": "Its job array already runs as many tasks as the array's own limit allows.",
    "PartitionDown": "Its partition is down.",
    "PartitionInactive": "Its partition is inactive and starts no jobs.",
    "PartitionNodeLimit": "It asks for more nodes than its partition allows, or its partition is down.",
    "PartitionTimeLimit": "It asks for more time than its partition allows: it will never start. Ask for less.",
    "TimeLimit": "It asks for more time than allowed: it will never start. Ask for less.",
    "ReqNodeNotAvail": "Nodes that it needs are down, drained or reserved, often before maintenance.",
    "Reservation": "It waits for its reservation to begin.",
    "ReservationDeleted": "Its reservation was deleted.",
    "NodeDown": "A node that it needs is down.",
    "Licenses": "It waits for a licence.",
    "BadConstraints": "No node meets its constraints: it will never start.",
    "InvalidAccount": "Its account is not valid.",
    "InvalidQOS": "Its quality of service is not valid.",
    "SystemFailure": "Slurm, a node or the file system has failed.",
    "launch failed requeued held": "It could not be launched, and is held: ask the site.",
    "JobLaunchFailure": "It could not be launched.",
    "Cleaning": "It ran before, and is being cleaned up.",
    "Prolog": "Its node is being prepared.",
    "MaxMemPerLimit": "It asks for more memory than allowed: it will never start. Ask for less.",
}
_BEGINS = (
    ("ReqNodeNotAvail", "Nodes that it needs are down, drained or reserved, often before maintenance."),
    ("AssocGrp", "The account, or its group, has reached its limit ({name})."),
    ("AssocMax", "The account has reached its limit ({name})."),
    ("QOSGrp", "The quality of service has reached its limit ({name})."),
    ("QOSMax", "You have reached a limit of the quality of service ({name})."),
    ("QOSMin", "It asks for less than the quality of service requires ({name})."),
    ("QOS", "A rule of the quality of service holds it ({name})."),
    ("MaxJobs", "The account has reached its limit ({name})."),
    ("Nodes required for job are DOWN", "Nodes that it needs are down, drained or reserved."),
)


def meaning(reason: str) -> str:
    """What a reason means, in a sentence; the reason itself if it is not known."""
    word = reason.strip().strip("()")
    name = word.partition(",")[0]
    if name in _EXACT:
        return _EXACT[name]
    found = next((text for begin, text in _BEGINS if name.startswith(begin)), None)
    return found.format(name=name) if found else f"Slurm's reason: {word or 'none'}."
