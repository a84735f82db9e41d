"""The one interface of all formats: an array whose elements are read by ranges, in C order, into a given buffer.

A `Source` knows its shape and dtype from the header, which has been judged before anything of the size that it claims
is made or read: its elements lie in the file, all of them. Nothing is mapped; a file that becomes shorter while it is
read is an error and no signal.
"""

from __future__ import annotations

import io
import math
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._faults import FileFault

Array = NDArray[Any]
Dtype = np.dtype[Any]

LARGEST_AXIS = 2**62
PIECE = 2**18  # bytes that stay in the cache between two passes
_SEEKING = threading.Lock()  # where a place cannot be read without going there
WHOLE_LIMIT = 64 * 2**20  # bytes: what may be read in one piece


class Source:
    """An array in a file. Subclasses read; here is what they have in common."""

    parallel = False  # whether several threads may read at once

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Dtype, stored: str | None = None) -> None:
        self.name, self.shape, self.stored = name, shape, stored or dtype.name
        self.dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype  # a byte of a file need not be 0 or 1
        self.size = math.prod(shape)

    @property
    def row_step(self) -> int:
        """So many rows of the last axis are best read together, or multiples of it."""
        return 1

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        """Elements `start` to `stop` in C order, of dtype `dtype`, one axis: in `buffer` (uint8) or elsewhere.

        Logits are read by whole rows. What the buffer held before is lost.
        """
        raise AssertionError(f"{type(self).__name__} does not read")

    def whole(self) -> Array:
        """The whole of an array that is small beside the logits, in its shape."""
        if self.size * self.dtype.itemsize > 4 * WHOLE_LIMIT:
            raise FileFault(self.name, f"{self.describe()} takes more than the {4 * WHOLE_LIMIT} bytes that are kept")
        buffer = np.empty(self.size * self.dtype.itemsize, np.uint8)
        return self.read(0, self.size, buffer).reshape(self.shape)

    def close(self) -> None:
        """Give the file back."""

    def describe(self) -> str:
        """Type and shape, for messages."""
        return f"{self.stored} of shape {self.shape}"


class FileSource(Source):
    """Elements one after the other in a file, from `offset` on."""

    parallel = True

    def __init__(
        self, name: str, file: io.FileIO, offset: int, shape: tuple[int, ...], dtype: Dtype, stored: str | None = None
    ) -> None:
        super().__init__(name, shape, dtype, stored)
        self.file, self.offset = file, offset

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        size = self.dtype.itemsize
        view = buffer[: (stop - start) * size]
        fill(self.name, self.file, self.offset + start * size, view)
        return view.view(self.dtype)

    def close(self) -> None:
        self.file.close()


class Widened(Source):
    """bfloat16 as float32, exactly: where ml_dtypes is not there, NumPy has no type for it."""

    def __init__(self, inner: Source) -> None:
        super().__init__(inner.name, inner.shape, np.dtype(np.float32), "bfloat16")
        self.inner, self.parallel = inner, inner.parallel

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        wide = buffer[: 4 * (stop - start)].view(np.uint32)
        piece = np.empty(PIECE, np.uint8)
        for at in range(start, stop, PIECE // 2):
            end = min(stop, at + PIECE // 2)
            np.left_shift(self.inner.read(at, end, piece), 16, out=wide[at - start : end - start], dtype=np.uint32)
        return wide.view(np.float32)

    def close(self) -> None:
        self.inner.close()


class InMemory(Source):
    """A small array that had to be read in one piece."""

    parallel = True

    def __init__(self, name: str, array: Array, stored: str) -> None:
        super().__init__(name, array.shape, array.dtype, stored)
        self.flat = array.reshape(-1).view(self.dtype)

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        return self.flat[start:stop]


def bfloat16() -> Dtype | None:
    """The dtype of ml_dtypes, where that is installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    dtype: Dtype = np.dtype(ml_dtypes.bfloat16)
    return dtype


def source_of_bfloat16(make: Callable[[Dtype, str], Source]) -> Source:
    """What `make(dtype, name)` makes, as bfloat16 or, without ml_dtypes, widened."""
    dtype = bfloat16()
    return Widened(make(np.dtype("<u2"), "bfloat16")) if dtype is None else make(dtype, "bfloat16")


def open_regular(name: str, path: str | os.PathLike[str]) -> tuple[io.FileIO, int]:
    """A file opened for reading, without a buffer, and its size. No pipe, device or folder."""
    try:
        found = Path(path).stat()  # before opening: opening a pipe would wait for its other end
        if not stat.S_ISREG(found.st_mode):
            raise FileFault(name, "is a folder" if stat.S_ISDIR(found.st_mode) else "is not a regular file")
        file = io.FileIO(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileFault(name, getattr(error, "strerror", None) or str(error)) from error
    size = os.fstat(file.fileno()).st_size
    if not size:
        file.close()
        raise FileFault(name, "is empty")
    return file, size


def fill(name: str, file: io.FileIO, offset: int, view: Array) -> None:
    """Fill `view` with the bytes of `file` from `offset` on; several threads may do so at once."""
    rest = view.data
    while len(rest):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [rest], offset)
        else:
            with _SEEKING:
                file.seek(offset)
                count = file.readinto(rest) or 0
        if not count:
            raise FileFault(name, f"ends {len(rest)} bytes early: it has become shorter while it was read")
        rest = rest[count:]
        offset += count


def checked_shape(name: str, shape: object) -> tuple[int, ...]:
    """`shape` as a header has it, if it can be one."""
    if not isinstance(shape, (list, tuple)) or len(shape) > 32:
        raise FileFault(name, f"its header has no shape of at most 32 axes but {shape!r}")
    for n in shape:
        if type(n) is not int or not 0 <= n <= LARGEST_AXIS:
            raise FileFault(name, f"its header has the shape {shape!r}")
    return tuple(shape)


def checked_size(name: str, shape: tuple[int, ...], itemsize: int, available: int) -> None:
    """Refuse a header whose elements take more or fewer bytes than there are: Python's integers do not wrap."""
    needed = math.prod(shape) * itemsize
    if needed > available:
        raise FileFault(
            name, f"is cut short or has a wrong header: shape {shape} takes {needed} bytes, {available} are there"
        )
    if needed < available:
        raise FileFault(name, f"has a wrong header or bytes to spare: shape {shape} takes {needed} of {available}")
