"""Blocks of rows of one or several arrays of logits, side by side: read and scored by several threads, given in order.

Each thread takes a block, reads a piece of it and scores that while it is still in the cache, on one thread of
fastxent's or a few: reading a cached file costs about as much time as scoring it, and both are shared out evenly this
way. Small pieces make reading cheap, a system's copy into the cache instead of into memory; large blocks what is done
once for each of them in Python. What describes the positions is read in order, under a lock, and so is any source that
knows no other way, a whole block at a time.
"""

from __future__ import annotations

import _thread
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

import fastxent

from ._faults import FileFault
from .formats import Array, Source

_LARGEST_ROW = 64 * 2**20
_MOST_ROWS = 2**17  # of a block: what is known of a position takes some 200 bytes meanwhile
_MOST_WORKERS = 8
_MOST_HELD = 256 * 10**6  # bytes of all blocks that are being scored
_PIECE = 2 * 10**6  # bytes for each thread that scores them

About = TypeVar("About")
Result = TypeVar("Result")


class Block(NamedTuple):
    """Rows `start` to `stop` of each array; `threads`: how many may score them.

    `pieces` reads them, in order: which rows of the block, and of each array (rows, classes). What it gave before is
    then lost.
    """

    start: int
    stop: int
    pieces: Iterator[tuple[slice, list[Array]]]
    threads: int


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


def scored(
    sources: Sequence[Source],
    block_bytes: int,
    describe: Callable[[int, int], About],
    score: Callable[[Block, About], Result],
) -> Generator[Result, None, None]:
    """What `score` makes of each block, in order, for arrays that `positions_of` has judged.

    `describe(start, stop)` is called for one block after the other; `score` by several threads at once, and what it
    returns must not hold the block. The first block that fails, in order, raises its error here.
    """
    step = _rows_at_a_time(sources, block_bytes)
    n_rows = sources[0].size // sources[0].shape[-1]
    n_blocks = -(-n_rows // step)
    threads = fastxent.get_num_threads()
    held = step * sum(source.shape[-1] * source.dtype.itemsize for source in sources)
    n_workers = max(1, min(threads, _MOST_WORKERS, n_blocks, _MOST_HELD // max(held, 1)))
    work = _Work(sources, range(0, n_rows, step), n_rows, max(1, threads // n_workers), describe, score)
    if n_workers == 1:
        yield from work.alone()
    else:
        yield from work.shared(n_workers)


def _rows_at_a_time(sources: Sequence[Source], block_bytes: int) -> int:
    row_bytes = sum(source.shape[-1] * source.dtype.itemsize for source in sources)
    step = max(1, min(block_bytes // row_bytes, _MOST_ROWS))
    wanted = max(source.row_step for source in sources)
    if step > wanted:
        return step - step % wanted
    return wanted if wanted * row_bytes <= 4 * block_bytes and wanted <= _MOST_ROWS else step


class _Failure(NamedTuple):
    """The error of a block."""

    error: BaseException


class _Work(Generic[About, Result]):
    """The blocks of one run, handed out one by one."""

    def __init__(
        self, sources: Sequence[Source], starts: range, n_rows: int, threads: int,
        describe: Callable[[int, int], About], score: Callable[[Block, About], Result],
    ) -> None:
        self.sources, self.starts, self.n_rows, self.threads = sources, starts, n_rows, threads
        self.describe, self.score = describe, score
        row_bytes = sum(source.shape[-1] * source.dtype.itemsize for source in sources if source.parallel)
        self.piece = max(1, min(starts.step, _PIECE * threads // row_bytes)) if row_bytes else starts.step
        self.lock = threading.Lock()
        self.next = 0
        self.stopped = False

    def alone(self) -> Iterator[Result]:
        """All blocks by the calling thread."""
        buffers = self._buffers()
        while (taken := self._take(buffers)) is not None:
            yield self._finish(*taken, buffers)

    def shared(self, n_workers: int) -> Iterator[Result]:
        """All blocks by workers; never many more done than asked for.

        Only queues lie between them and this thread: Ctrl-C can come inside a lock's or condition's own code, which
        leaves it held, and everybody waiting for it. It can also come when something was taken from a queue and is not
        yet known here, so the workers themselves say who has `ended`.
        """
        permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, Result | _Failure] | None] = queue.SimpleQueue()
        buffers = [self._buffers() for _ in range(n_workers)]  # here, where a MemoryError is the caller's
        running, ended = 0, list[None]()
        try:
            for _ in range(2 * n_workers):
                permits.put(None)
            for own in buffers:
                try:
                    _thread.start_new_thread(self._run, (permits, results, ended, own))
                except RuntimeError:  # the system has no thread left: those that run do the work
                    break
                running += 1
            if not running:
                yield from self.alone()
                return
            early: dict[int, Result | _Failure] = {}
            for index in range(len(self.starts)):
                while index not in early:
                    if (done := results.get()) is not None:  # None: a worker's end; the block is another's
                        early[done[0]] = done[1]
                found = early.pop(index)
                if isinstance(found, _Failure):
                    raise found.error
                yield found
                permits.put(None)
        finally:
            self.stopped = True
            for _ in buffers:
                permits.put(None)
            while len(ended) < running:
                results.get()

    def _run(
        self, permits: queue.SimpleQueue[None], results: queue.SimpleQueue[tuple[int, Result | _Failure] | None],
        ended: list[None], buffers: list[Array],
    ) -> None:
        taken = True
        try:
            while taken:
                permits.get()
                index = self.next
                try:
                    with self.lock:
                        index = self.next
                        block = None if self.stopped else self._take(buffers)
                    taken = block is not None
                    if block is not None:
                        results.put((index, self._finish(*block, buffers)))
                except BaseException as error:  # raised where the block's turn comes
                    self.stopped = True
                    results.put((index, _Failure(error)))
        finally:
            ended.append(None)
            results.put(None)

    def _take(self, buffers: list[Array]) -> tuple[int, int, About, list[Array | None]] | None:
        """The next block, with all of it that is read in order."""
        index = self.next
        if index == len(self.starts):
            return None
        self.next += 1
        start = self.starts[index]
        stop = min(start + self.starts.step, self.n_rows)
        about = self.describe(start, stop)
        rows = [
            None if source.parallel else self._read(source, start, stop, buffer)
            for source, buffer in zip(self.sources, buffers, strict=True)
        ]
        return start, stop, about, rows

    def _finish(self, start: int, stop: int, about: About, rows: list[Array | None], buffers: list[Array]) -> Result:
        """Read the rest of a block and score it."""
        with np.errstate(all="ignore"):  # infinities and NaN speak for themselves in the result
            return self.score(Block(start, stop, self._pieces(start, stop, rows, buffers), self.threads), about)

    def _pieces(
        self, start: int, stop: int, rows: list[Array | None], buffers: list[Array]
    ) -> Iterator[tuple[slice, list[Array]]]:
        for at in range(start, stop, self.piece):
            end = min(at + self.piece, stop)
            part = slice(at - start, end - start)
            yield part, [
                self._read(source, at, end, buffer) if whole is None else whole[part]
                for source, buffer, whole in zip(self.sources, buffers, rows, strict=True)
            ]

    def _read(self, source: Source, start: int, stop: int, buffer: Array) -> Array:
        classes = source.shape[-1]
        return source.read(start * classes, stop * classes, buffer).reshape(-1, classes)

    def _buffers(self) -> list[Array]:
        return [
            np.empty(min(self.piece if source.parallel else self.starts.step, self.n_rows) * source.shape[-1]
                     * source.dtype.itemsize, np.uint8)
            for source in self.sources
        ]
