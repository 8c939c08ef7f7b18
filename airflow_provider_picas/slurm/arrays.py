"""The numbers of pilots of each kind: job arrays for the resource classes of the waiting tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.slurm.sbatch import OptionError

ANY = "//"
"""The resource class of tokens without requests."""


@dataclass(frozen=True)
class Array:
    """One sbatch call. ``pilots`` None: the script sets the number. ``classes`` None: the pilots claim tokens of any
    class."""

    pilots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def class_options(resource_class: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The sbatch options of pilots for a class ``"<cores>/<gpu>/<time>"``, added to those in the DAG.

    Cores become ``cpus-per-task``, gpu ``gres`` (``1`` or ``a100:1``), and ``time`` (minutes that one token needs) the
    minimum wall-clock limit. Raises OptionError for anything else: classes come from tokens, so they are foreign.
    """
    match = re.fullmatch(r"([0-9]{0,5})/((?:[A-Za-z0-9_]{1,40}(?::[0-9]{1,3})?)?)/([0-9]{0,6})(?:\.0)?", resource_class)
    if not match:
        raise OptionError(f"Tokens request cores/gpu/time {resource_class!r:.100}, which sbatch does not understand.")
    cores, gpu, minutes = match.groups()
    result = {str(name).replace("_", "-"): value for name, value in options.items()}
    if cores and int(cores):
        result["cpus-per-task"] = int(cores)
    if gpu and gpu != "0":
        result["gres"] = f"gpu:{gpu}"
    if minutes and int(minutes):
        given = minutes_of(str(result["time"])) if result.get("time") else 0.0
        result["time"] = result["time"] if given >= int(minutes) + _START else int(minutes) + _START
    return result


_START = 5  # minutes in addition to those of a token: setup, the first claim, the margin at the end


def minutes_of(text: str) -> float:
    """Slurm's times as minutes: ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``,
    ``days-hours[:minutes[:seconds]]``.

    Infinity for ``UNLIMITED``. Raises OptionError for anything else.
    """
    if text.strip().upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", text.strip())
    if not match:
        raise OptionError(f"The sbatch option 'time' is {text!r:.80}, which is not a Slurm time such as 01:30:00.")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:
        return days * 1440 + first * 60 + second + third / 60
    if match[4] is not None:
        return first * 60 + second + third / 60
    return first + second / 60


def running_limits(arrays: Sequence[Array], limit: int | None) -> list[int | None]:
    """How many pilots of each array may run at the same time: ``limit`` in total, but at least one of each. None: no limit."""
    shares = share({str(place): array.pilots or 0 for place, array in enumerate(arrays)}, limit)
    return [None if limit is None else max(1, shares.get(str(place), 0)) for place in range(len(arrays))]


def pilots_for(tokens: int, tokens_per_pilot: float, limit: int | None) -> int:
    """The number of pilots for a number of waiting tokens, at most ``limit``."""
    wanted = math.ceil(tokens / tokens_per_pilot)
    return wanted if limit is None else min(wanted, limit)


def share(wanted: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """Reduce numbers of pilots to ``limit`` in total: in proportion, with at least one for each class if possible."""
    wanted = {name: number for name, number in wanted.items() if number}
    if limit is None or sum(wanted.values()) <= limit:
        return wanted
    largest = sorted(wanted, key=lambda name: -wanted[name])
    result = dict.fromkeys(largest[: max(0, limit)], 1)
    remaining = max(0, limit) - len(result)
    more = sum(wanted[name] - 1 for name in result)
    exact = {name: remaining * (wanted[name] - 1) / more if more else 0.0 for name in result}
    for name in result:
        result[name] += int(exact[name])
    for name in sorted(result, key=lambda name: int(exact[name]) - exact[name])[: limit - sum(result.values())]:
        result[name] += 1
    return result
