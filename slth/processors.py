"""Count processors without importing torch."""

import functools
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # of this process, as containers see it


def processors() -> int:
    """Return the number of processors that this process may use: by its affinity, and by its container's quota."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(here, _quota(CGROUP)))


@functools.cache  # work on several cores asks for it each time
def _quota(cgroup: Path) -> int:
    """Return the processors that a CPU quota (cgroup v2, v1) allows, rounded up; without a quota a large number."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = map(int, " ".join((cgroup / file).read_text() for file in files).split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return math.ceil(quota / period)
    return 1 << 20
