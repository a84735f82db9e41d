"""Operands for matrix products: NumPy's BLAS takes them as they are where it can, converted piece by piece otherwise.

NumPy multiplies by BLAS if both arrays are of one native type and aligned, with one unit stride; anything else falls
into a plain loop, a hundred times slower. So what does not fit, halves above all, is copied: a chunk of rows or a tile
of classes at a time, into a buffer that is used again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def blas_reads(a: Array, dtype: np.dtype[Any]) -> bool:
    """Whether a matrix of two axes goes into a product of `dtype` without a copy."""
    if a.dtype != dtype or not a.flags.aligned:
        return False
    item, (rows, columns), (down, across) = a.itemsize, a.shape, a.strides
    if a.size == 0:
        return True
    by_rows = across == item and down >= columns * item and down % item == 0
    by_columns = down == item and across >= rows * item and across % item == 0
    return by_rows or by_columns


class Rows:
    """The hidden states of some positions, chunk by chunk."""

    def __init__(self, hidden: Array, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        features, self.positions = hidden.shape[-1], hidden.shape[:-1]
        self.hidden, self.rows, self.dtype = hidden, rows, dtype
        self.matrix: Any = hidden if hidden.ndim == 2 else None
        if hidden.ndim != 2 and hidden.flags.c_contiguous:
            self.matrix = hidden.reshape(int(np.prod(self.positions)), features)
        all_in_order = len(rows) == 0 or len(rows) == rows[-1] - rows[0] + 1
        self.copies = self.matrix is None or not all_in_order or not blas_reads(self.matrix, dtype)
        self._kept: tuple[int, int] | None = None
        self._chunk: Any = None

    def chunk(self, begin: int, end: int) -> Array:
        """Rows `begin` to `end` of those chosen; valid until another chunk is asked for."""
        if self._kept != (begin, end):
            self._chunk = None  # its memory goes before the next one comes
            self._chunk, self._kept = self._take(begin, end), (begin, end)
        chunk: Array = self._chunk
        return chunk

    def _take(self, begin: int, end: int) -> Array:
        chosen = self.rows[begin:end]
        if not self.copies:
            view: Array = self.matrix[chosen[0] : chosen[-1] + 1]
            return view
        return np.ascontiguousarray(self.hidden[self.index(begin, end)], self.dtype)

    def index(self, begin: int, end: int) -> Any:
        """What takes these rows out of an array of the positions' shape."""
        chosen = self.rows[begin:end]
        if not self.positions:
            return np.newaxis  # the only position, as if there were an axis
        if len(self.positions) == 1:
            whole = len(chosen) and len(chosen) == chosen[-1] - chosen[0] + 1
            return slice(chosen[0], chosen[-1] + 1) if whole else chosen
        return np.unravel_index(chosen, self.positions)


class Classes:
    """The weights of all classes, tile by tile."""

    def __init__(self, weight: Array, dtype: np.dtype[Any]) -> None:
        self.weight, self.dtype = weight, dtype
        self.copies = not blas_reads(weight, dtype)
        self._buffer: Any = None
        self._kept: tuple[int, int] | None = None

    def tile(self, begin: int, end: int) -> Array:
        """The weights of classes `begin` to `end`; valid until another tile is asked for."""
        if not self.copies:
            return self.weight[begin:end]
        if self._buffer is None or len(self._buffer) < end - begin:
            self._buffer = np.empty((end - begin, self.weight.shape[1]), self.dtype)
            self._kept = None
        buffer: Array = self._buffer[: end - begin]
        if self._kept != (begin, end):
            np.copyto(buffer, self.weight[begin:end], casting="unsafe")
            self._kept = (begin, end)
        return buffer


def dots(a: Array, b: Array, index: NDArray[np.int64], step: int = 256) -> NDArray[np.float64]:
    """The inner product of row i of `a` and row index[i] of `b`, in float64."""
    found = np.empty(len(a))
    for begin in range(0, len(a), step):
        some = slice(begin, begin + step)
        left, right = a[some].astype(np.float64), b[index[some]].astype(np.float64)
        found[some] = np.einsum("nd,nd->n", left, right)
    return found
