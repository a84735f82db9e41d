"""What a result was measured on: without it a figure means nothing."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .peer import Peer

WANTED = ("compiler", "instruction_set", "instruction_sets", "num_threads", "num_threads_reason")


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """Sizes of the caches of the first core, where Linux tells them."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _running_children() -> float:
    """Seconds that the children which have not ended worked, and theirs: the contestants of a linear layer are some."""
    try:
        import psutil
    except ImportError:
        return 0.0
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total


class Elsewhere:
    """The share of the machine's time that other processes took since the last question (Linux; else None).

    OpenMP waits by spinning: where another process wants a core, a call of 15 us takes as many milliseconds.
    """

    def __init__(self) -> None:
        self.last = self.now()

    @staticmethod
    def now() -> tuple[float, float, float] | None:
        """Seconds that all cores worked, that this process and its children did, and that passed."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
        own = os.times()
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy, sum(own[:4]) + _running_children(), own.elapsed

    def share(self) -> float | None:
        last, self.last = self.last, self.now()
        if last is None or self.last is None:
            return None
        busy, own, passed = (b - a for a, b in zip(last, self.last, strict=True))
        return max(0.0, (busy - own) / max(passed, 0.01) / (os.cpu_count() or 1))


def huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        return text[text.index("[") + 1 : text.index("]")]
    except (OSError, ValueError):
        return "unknown"


def describe(subject: Peer, peers: list[Peer], absent: dict[str, str], threads: int) -> dict[str, Any]:
    import fastxent

    config = jsonable(fastxent.show_config(mode="dict"))
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": cores(),
        "caches": caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": huge_pages(),
        "python": sys.version.split()[0],
        "versions": {"fastxent": subject.version, "numpy": np.__version__} | {p.name: p.version for p in peers},
        "absent": absent,
        "threads": threads,
        "backend": fastxent.get_backend(),
        "config": {key: value for key, value in config.items() if key in WANTED},
    }


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
