"""The Numba engine: kernels that are compiled on the user's machine, at the first call that needs them.

It needs no compiler and no wheel of this package, only Numba. ``numba_kernels/`` has the arithmetic, the same forms as
the compiled engine's; here a plan becomes the record that they read. What has been compiled is kept on disk, beside
these files or in the user's cache (Numba's ``NUMBA_CACHE_DIR`` names another place).
"""

from __future__ import annotations

import math
import os
from array import array
from typing import Any

import numpy as np

try:
    import numba
except ImportError as error:
    raise ImportError(f"Numba cannot be imported ({error}); `pip install 'fastxent[numba]'` installs it") from error

from .numba_kernels import entries, layout, team
from .numba_kernels.recall import record_of
from .numba_kernels.records import address

NAME = "numba"
PARALLEL_ELEMENTS = 1 << 19  # smaller calls stay on the calling thread: to wake another costs more
# Sums that blocks add to: losses, divisor, first bad position + 1, and what the two additions lost.
NOTHING = (0.0,) * 5
CHUNK_ELEMENTS = 1 << 23  # larger pieces of work would keep Ctrl-C waiting

# The names that FASTXENT_ISA may have: of kernels of the compiled module. Numba compiles for its processor.
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "neon")

_workspaces: list[tuple[int, int, int, Any]] = []  # of threads that do not run now: kept between calls


def describe() -> dict[str, Any]:
    """What this engine compiles with and for."""
    from llvmlite import binding

    version = ".".join(map(str, binding.llvm_version_info))
    settings: Any = numba.config
    target = settings.CPU_NAME or binding.get_host_cpu_name()
    return {
        "compiler": f"numba {numba.__version__}, llvm {version}",
        "instruction_set": target,
        "instruction_sets": [target],
    }


def _take() -> tuple[int, int, int, Any]:
    """The addresses of a worker's integers, float64 and other memory, and the array that holds them all."""
    try:
        return _workspaces.pop()
    except IndexError:
        memory = np.zeros(layout.SCRATCH + 8 * (layout.INTEGERS + layout.DOUBLES) + 64, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % 64
        integers = start + layout.SCRATCH
        return integers, integers + 8 * layout.INTEGERS, start, memory


class Call:
    """One plan, ready to run: see `fastxent._reductions.Call`."""

    __slots__ = ("plan", "record", "sequence_divisors", "sequence_sums")

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.record = record_of(plan)

    def focus(self, gamma: float) -> None:
        """Make cross-entropy focal loss: weighted by (1 - p)**gamma, and class weights leave the divisor alone."""
        self.record.focus(gamma)

    def prepare(self) -> tuple[float, int]:
        """Read only what describes targets: (divisor, flat position of the first bad class index or -1)."""
        _, divisor, bad = self._go(True)
        return divisor, bad

    def run(self, scale: float = 1.0, sequence_scale: Any = None) -> tuple[float, float, int]:
        """Do the work: (sum of the losses, divisor, bad position or -1)."""
        self.record.set_scale(scale, sequence_scale)
        return self._go(False)

    def _go(self, prepare: bool) -> tuple[float, float, int]:
        record, plan = self.record, self.plan
        if not plan.per_sequence:
            return self._run(prepare)
        positions, sequences = record.positions, record.sequences
        weights = np.zeros(positions)
        losses = None if prepare else np.zeros(positions, record.real)
        record.keep(weights, losses)
        result = self._run(prepare)
        record.keep(None, None)
        with np.errstate(all="ignore"):
            self.sequence_divisors = weights.reshape(sequences, -1).sum(axis=1) if positions else np.zeros(sequences)
            if losses is not None:
                wide = losses.astype(np.float64).reshape(sequences, -1) if positions else np.zeros((sequences, 0))
                self.sequence_sums = wide.sum(axis=1)
        return result

    def _run(self, prepare: bool) -> tuple[float, float, int]:
        """Run all blocks; (total, divisor, bad position)."""
        record = self.record
        blocks, per = record.blocks, record.blocks_of_a_sum
        if not blocks:
            return 0.0, 0.0, -1
        sums = -(-blocks // per)
        kernel, tag = entries.chosen(record, prepare)
        integers, numbers = record.integers.buffer_info()[0], record.numbers.buffer_info()[0]
        if sums == 1:
            one = array("d", NOTHING)
            record.place_partial(one.buffer_info()[0])
            workspace = _take()
            kernel(tag, integers, numbers, *workspace[:3], 0, blocks)
            _workspaces.append(workspace)
            total, divisor, bad, total_lost, divisor_lost = one
            return _with(total, total_lost), _with(divisor, divisor_lost), int(bad) - 1
        partial = np.zeros((sums, len(NOTHING)))
        record.place_partial(address(partial))
        elements = record.positions * (1 if prepare else record.classes)
        threads = record.threads if elements >= PARALLEL_ELEMENTS else 1
        chunks = min(sums, max(threads * 8 if threads > 1 else 1, elements // CHUNK_ELEMENTS))
        if chunks == 1:
            workspace = _take()
            kernel(tag, integers, numbers, *workspace[:3], 0, blocks)
            _workspaces.append(workspace)
        else:
            size = -(-sums // chunks) * per

            def work(i: int, workspace: Any, _alive: Any = (self, partial)) -> None:
                # To a kernel arrays are addresses: what has them must live as long as a helper may be at work.
                kernel(tag, integers, numbers, *workspace[:3], i * size, min(blocks, (i + 1) * size))

            team.team.run(work, -(-blocks // size), threads, _take, _workspaces.append)
        columns = partial.T.tolist()
        wrong = [bad for bad in columns[2] if bad]
        return _sum(columns[0], columns[3]), _sum(columns[1], columns[4]), int(min(wrong)) - 1 if wrong else -1


def _with(total: float, lost: float) -> float:
    """A sum and what it lost; of infinities that is NaN, and the plain sum right."""
    both = total + lost
    return both if both == both else total


def _sum(terms: list[float], lost: list[float]) -> float:
    total = sum(terms)
    if not math.isfinite(total):  # what was lost is NaN beside an infinity
        return total
    try:
        return math.fsum(terms + lost)
    except (OverflowError, ValueError):  # beyond the largest number
        return total


if os.environ.get("FASTXENT_ISA", "").strip() not in ("", *_INSTRUCTION_SETS):
    raise ValueError(
        f"the environment variable FASTXENT_ISA is {os.environ['FASTXENT_ISA']!r}; expected one of "
        f"{', '.join(_INSTRUCTION_SETS)}"
    )

open = Call  # the name that every engine has
