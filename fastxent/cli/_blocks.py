"""Blocks of rows of one or several arrays of logits, side by side, read by a thread ahead of whoever scores them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ._faults import FileFault
from .formats import Array, Source

_BUFFERS = 3  # one is scored, one is read, one waits
_LARGEST_ROW = 64 * 2**20


class Block(NamedTuple):
    """Rows `start` to `stop` of each array, each (rows, classes)."""

    start: int
    stop: int
    rows: list[Array]


def positions_of(sources: Sequence[Source]) -> tuple[int, ...]:
    """The positions' shape that the arrays of logits have in common; FileFault if they cannot be scored."""
    first = sources[0]
    for source in sources:
        if not source.shape:
            raise FileFault(source.name, "is a single number; logits have a class axis")
        kind, size = source.dtype.kind, source.dtype.itemsize
        if source.stored == "bool" or not (kind in "iu" or (kind == "f" and size <= 8) or source.stored == "bfloat16"):
            raise FileFault(source.name, f"{source.describe()}: logits are floats or integers")
        if source.shape[-1] == 0:
            raise FileFault(source.name, f"{source.describe()}: logits without a class")
        if source.shape[-1] * size > _LARGEST_ROW:
            raise FileFault(source.name, f"{source.describe()}: one row of logits takes more than {_LARGEST_ROW} bytes")
        if source.shape != first.shape:
            raise FileFault(source.name, f"{source.describe()} does not fit {first.name}, {first.describe()}")
    return first.shape[:-1]


def blocks(sources: Sequence[Source], block_bytes: int) -> Iterator[Block]:
    """All rows of arrays that `positions_of` has judged, in their order; a block is valid until the next is asked for.

    About `block_bytes` are read at a time, over all arrays, and `_BUFFERS` times as much is held.
    """
    classes = sources[0].shape[-1]
    n_rows = sources[0].size // classes
    row_bytes = sum(classes * source.dtype.itemsize for source in sources)
    step = max(1, block_bytes // row_bytes)
    wanted = max(source.row_step for source in sources)
    if step > wanted:
        step -= step % wanted
    elif wanted * row_bytes <= 4 * block_bytes:
        step = wanted
    starts = range(0, n_rows, step)

    def buffers() -> list[Array]:
        return [np.empty(min(step, n_rows) * classes * source.dtype.itemsize, np.uint8) for source in sources]

    def read(start: int, into: list[Array]) -> Block:
        stop = min(start + step, n_rows)
        rows = [
            source.read(start * classes, stop * classes, buffer).reshape(-1, classes)
            for source, buffer in zip(sources, into, strict=True)
        ]
        return Block(start, stop, rows)

    if len(starts) < 2:
        for start in starts:
            yield read(start, buffers())
        return

    free: queue.SimpleQueue[list[Array] | None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[Block, list[Array]] | BaseException] = queue.SimpleQueue()
    for _ in range(min(_BUFFERS, len(starts))):
        free.put(buffers())

    def work() -> None:
        try:
            for start in starts:
                into = free.get()
                if into is None:
                    return
                ready.put((read(start, into), into))
        except BaseException as error:  # raised where the blocks are asked for
            ready.put(error)

    thread = threading.Thread(target=work, name="fastxent reader", daemon=True)
    thread.start()
    try:
        for _ in starts:
            found = ready.get()
            if isinstance(found, BaseException):
                raise found
            yield found[0]
            free.put(found[1])
    finally:
        while not free.empty():
            free.get()
        free.put(None)
        thread.join()
