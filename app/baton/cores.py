"""How many cores this process may use: what `auto` means for the number of processes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

# Version 2 has the quota and the period in one file, version 1 in two. A container sees its own group at the root.
_QUOTA: Final = "cpu.max"
_OLD_QUOTA: Final = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


def available(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores, at least 1: those that the scheduler allows, or a container's limit if it is lower.

    A limit of a part of a core counts as one: 1.5 cores are 2.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _limit(groups)
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def _limit(groups: Path) -> float | None:
    """Return the cores that the control group of this container may use; None if it has no limit."""
    try:
        words = (groups / _QUOTA).read_text().split()
    except OSError:
        words = []
    try:
        quota, period = words or [(groups / name).read_text().strip() for name in _OLD_QUOTA]
        return None if quota in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
