"""The limit: what a plain read and a streaming copy of memory larger than the cache reach, with the same threads.

Both run inside the races whose share of the limit is wanted, between the calls measured: bandwidth on a virtual
machine changes from minute to minute, and only what was measured together can be compared. Without a C compiler there
is no limit to compare with: shares are then left out of the report.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("bandwidth.c")
ALIGNMENT = 64


class Bandwidth:
    """`read` and `copy` are calls for a race; `nbytes` is what each moves (for the copy: read plus written)."""

    def __init__(self, nbytes: int, threads: int) -> None:
        self.library = build()
        self.threads = threads
        self.source, self.target = aligned(nbytes), aligned(nbytes // 2)
        self.nbytes = {"read": self.source.nbytes, "copy": 2 * self.target.nbytes}

    def calls(self, threads: int | None = None) -> dict[str, Callable[[], object]]:
        count = ctypes.c_int(threads or self.threads)
        source, target = ctypes.c_void_p(self.source.ctypes.data), ctypes.c_void_p(self.target.ctypes.data)
        read, copy = self.library.bench_read, self.library.bench_copy
        size = {kind: ctypes.c_size_t(n) for kind, n in (("read", self.source.nbytes), ("copy", self.target.nbytes))}
        return {
            "read": lambda: read(source, size["read"], count),
            "copy": lambda: copy(source, target, size["copy"], count),
        }


def aligned(nbytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Touched memory at a cache line's start, from NumPy: on huge pages where NumPy's arrays are."""
    whole = np.ones(nbytes + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + nbytes]


def build() -> ctypes.CDLL:
    """Compile bandwidth.c for this processor. Raises RuntimeError where that cannot be done."""
    words = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    compiler = next((path for path in map(shutil.which, (words[0], "cc", "gcc", "clang")) if path), None)
    if compiler is None:
        raise RuntimeError("no C compiler found to measure the memory's bandwidth with")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bandwidth.so"
        flags = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread"]
        for native in (["-march=native"], []):  # not every compiler knows -march=native
            done = subprocess.run(
                [compiler, *flags, *native, "-o", str(library), str(SOURCE)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return ctypes.CDLL(str(library))
    raise RuntimeError(f"{compiler} could not build {SOURCE.name}: {done.stderr.strip()[-500:]}")


def open_bandwidth(nbytes: int, threads: int) -> Bandwidth | None:
    try:
        return Bandwidth(nbytes, threads)
    except (RuntimeError, OSError):
        return None
