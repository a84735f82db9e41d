"""How many threads a call may use, and why that many.

The number is found once, at the first call that needs it: not at import, so that a bad environment variable is the
error of a call and does not keep the package from being imported. ``count`` is read directly on the way of every call.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from ._coerce import whole_number

MAX_THREADS = 1024  # as many as the pool in parallel.c starts, its caller included
VARIABLES = ("FASTXENT_NUM_THREADS", "OMP_NUM_THREADS")

count = 0  # 0: not yet determined
reason = ""


def determine() -> int:
    """The default number of threads; also remembers it and the reason."""
    global count, reason
    number, why = _from_environment() or _from_machine()
    count, reason = number, why
    return number


def set_count(n: object) -> None:
    """Use `n` threads from now on."""
    global count, reason
    count, reason = checked_count(n, "n"), "set_num_threads"


def checked_count(n: object, name: str = "num_threads") -> int:
    """`n` as a number of threads. It is an upper limit, so one beyond what the pool can start is no error."""
    return min(whole_number(n, name, lowest=1), MAX_THREADS)


def _from_environment() -> tuple[int, str] | None:
    for variable in VARIABLES:
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        first = text.split(",")[0].strip()  # OMP_NUM_THREADS may hold one number per level of nesting
        if not (first.isascii() and first.isdigit() and int(first) >= 1):
            raise ValueError(
                f"the environment variable {variable} is {text!r}; expected a whole number of threads, 1 or more "
                "(or no such variable: then every processor that this process may use)"
            )
        return min(int(first), MAX_THREADS), f"the environment variable {variable}"
    return None


def _from_machine() -> tuple[int, str]:
    if hasattr(os, "sched_getaffinity"):
        processors, why = len(os.sched_getaffinity(0)), "the processors this process may run on"
    else:
        processors, why = os.cpu_count() or 1, "the processors of this machine"
    quota = cgroup_quota()
    if quota is not None and math.ceil(quota) < processors:
        processors, why = max(1, math.ceil(quota)), f"the CPU quota of this control group ({quota:g} processors)"
    return min(processors, MAX_THREADS), why


def cgroup_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The smallest CPU quota, in processors, of this process's control group and those above it (versions 1 and 2)."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            folders, read = [root / controllers, root / "cpu"], _quota_v1
        else:
            continue
        # In a container the path may be one of the host's that is not visible here: the group is then the mount itself.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for folder in folders:
            quotas += [read(folder.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
