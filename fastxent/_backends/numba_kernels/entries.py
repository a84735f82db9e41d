"""The compiled functions that the engine calls, one for each sort of operation: lazily, and kept on disk.

Numba looks at the file of a function alone to see whether a cached result is stale. All files here go into each
function, so each entry carries a fingerprint of them all, as a variable of its closure: that is part of the key.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit

from ..._options import OP_DIVERGENCE, OP_LOGSUMEXP, OP_STATISTICS
from .float_state import give_state, take_state
from .layout import FAMILY, OUT, ROWS

BLOCKS: Any = None  # see entry
TAKE: Any = None
GIVE: Any = None
TAGS = {4: np.float32(0), 8: np.float64(0)}


@cache
def fingerprint() -> int:
    """Of the sources of this folder, and of the codes."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in [*sorted(folder.glob("*.py")), folder.parents[1] / "_options.py"]:
        digest.update(path.read_bytes())
    return int(digest.hexdigest()[:15], 16)


def entry(kernel: Any) -> Any:
    """The function that Python calls, around a kernel that runs a range of blocks."""
    stamp = fingerprint()

    def run(tag: Any, c: int, f: int, r: int, d: int, s: int, start: int, stop: int) -> int:
        state = TAKE(tag)
        BLOCKS(tag, c, f, r, d, s, start, stop)
        GIVE(tag, state)
        return stamp

    # BLOCKS and the others are global variables of this function alone. They may not be of the closure: Numba would put
    # them into the key of the cache, and an intrinsic has another name in each process.
    name = f"run_{kernel.function.__name__}"
    names = {"BLOCKS": kernel, "TAKE": take_state, "GIVE": give_state}
    values = {known: found.intrinsic for known, found in names.items()}
    own = FunctionType(run.__code__, values | {"__name__": __name__}, name, None, run.__closure__)
    own.__qualname__ = name
    return njit(nogil=True, cache=True)(own)


@cache
def entry_of(name: str) -> Any:
    """The entry to the blocks of this name; the files of others need not even be read."""
    if name == "prepare":
        from .positions import prepare_all as blocks
    elif name == "rows":
        from .row_blocks import row_blocks as blocks
    elif name == "rows with output":
        from .row_blocks import row_output_blocks as blocks
    elif name == "lanes":
        from .lane_blocks import lane_blocks as blocks
    elif name == "lanes with output":
        from .lane_blocks import lane_output_blocks as blocks
    elif name == "picks":
        from .pick_blocks import pick_blocks as blocks
    elif name == "scores":
        from .score_blocks import score_blocks as blocks
    elif name == "divergence":
        from .divergence_blocks import divergence_blocks as blocks
    elif name == "elements":
        from .element_blocks import element_blocks as blocks
    else:
        from .element_blocks import element_checks as blocks
    return entry(blocks)


def chosen(record: Any, prepare: bool) -> tuple[Any, Any]:
    """The entry for a record, and the number that stands for its compute type."""
    operation, tag = record.operation, TAGS[record.real.itemsize]
    if operation > OP_DIVERGENCE:
        return entry_of("element checks" if prepare else "elements"), tag
    if prepare:
        return entry_of("prepare"), TAGS[8]
    if operation == OP_DIVERGENCE:
        return entry_of("divergence"), tag
    if operation >= OP_STATISTICS:
        return entry_of("scores"), tag
    if operation > OP_LOGSUMEXP:
        return entry_of("picks"), tag
    name = "rows" if record.integers[FAMILY] == ROWS else "lanes"
    return entry_of(name if record.operands[OUT] is None else name + " with output"), tag
