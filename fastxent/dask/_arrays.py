"""Dask arrays of logits and what is mapped over them: labels for axes, chunks that are never changed, trees of merges.

Everything here is `dask.array.blockwise` with ``align_arrays=False``: blocks meet by their number along an axis, and an
array whose blocks would not fit has been rechunked before, visibly, or refused. Chunks and dtypes are always stated, so
nothing is computed while a graph is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.layers import ArraySliceDep
from numpy.typing import NDArray

Array = NDArray[Any]
Chunks = tuple[tuple[int, ...], ...]
Labels = tuple[Any, ...]

# Labels of axes that logits lack; all labels have an order.
STATE = 1000  # the numbers of a range of classes, last
TERMS = 1001  # what a position adds to a sum and to its divisor, last


class Layout(NamedTuple):
    """Logits and how they are divided; an axis is known by its number among the logits' axes."""

    logits: Any
    axis: int
    computed: np.dtype[Any]  # of losses
    stored: np.dtype[Any]  # of gradients and softmax

    @property
    def labels(self) -> Labels:
        """Of the logits' axes."""
        return tuple(range(self.logits.ndim))

    @property
    def positions(self) -> Labels:
        """Of the axes of positions, time last if there are several."""
        return tuple(i for i in self.labels if i != self.axis)

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.logits.shape[self.axis])

    @property
    def whole(self) -> bool:
        """Whether each block has all classes."""
        return bool(self.logits.numblocks[self.axis] == 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the positions."""
        return tuple(self.logits.shape[i] for i in self.positions)

    @property
    def chunks(self) -> Chunks:
        """Of the positions."""
        return tuple(self.logits.chunks[i] for i in self.positions)

    def mapped(self, function: Callable[..., Any], labels: Labels, *pairs: Any, dtype: Any, **keywords: Any) -> Any:
        """`function` over blocks: `pairs` are arrays and their labels, or others and None; `labels` the result's.

        In the result the class axis has a block of one element for each range of classes, unless it has the dtype and
        the meaning of logits: ``spread=True``. An axis `STATE` or `TERMS` has as many numbers as ``numbers`` says.
        ``describe=(function, n)``: the first n blocks are what the records are made of, which then are the second
        argument.
        """
        spread, numbers = keywords.pop("spread", False), keywords.pop("numbers", None)
        sizes: dict[Any, Any] = {i: self.logits.chunks[i] for i in labels if i in self.labels}
        if self.axis in sizes and not spread:
            sizes[self.axis] = (1,) * self.logits.numblocks[self.axis]
        return mapped(function, labels, sizes, *pairs, dtype=dtype, numbers=numbers, **keywords)

    def without_classes(self, array: Any) -> Any:
        """Of an array that has a single class left: without it.

        Dask does not join a step that reads logits with the step that made them, if it lacks one of their axes. So such
        a step keeps the class axis, and this one takes it away.
        """
        return self.mapped(np.squeeze, self.positions, array, self.labels, dtype=array.dtype, axis=self.axis)

    def bounds(self, *axes: int) -> tuple[Any, Labels]:
        """The place of each block along these axes, as an argument of `mapped`: a tuple of slices."""
        return ArraySliceDep(tuple(self.logits.chunks[axis] for axis in axes)), axes


def mapped(
    function: Callable[..., Any], labels: Labels, sizes: Mapping[Any, Any], *pairs: Any, dtype: Any,
    numbers: int | None = None, describe: tuple[Any, int] = (None, 0), **keywords: Any,
) -> Any:
    """`dask.array.blockwise` of blocks that fit, with the chunks and the dtype of the result."""
    known = set(chain.from_iterable(at or () for at in pairs[1::2]))
    return da.blockwise(
        partial(_on_blocks, function, *describe), labels, *pairs, dtype=dtype,
        meta=np.empty((0,) * len(labels), dtype), align_arrays=False,
        adjust_chunks={i: c for i, c in sizes.items() if i in known},
        new_axes={labels[-1]: numbers} if numbers else {}, token=function.__name__.strip("_"), **keywords,
    )


def _on_blocks(function: Callable[..., Any], describe: Any, count: int, *blocks: Any, **keywords: Any) -> Any:
    """Axes that the result lacks come as lists of blocks: here always of one, which is not to be copied."""
    given = [_only(block) for block in blocks]
    if describe is not None:
        records = describe(*given[:count])
        given = [*given[count : count + 1], records, *given[count + 1 :]]
    return function(*given, **keywords)


def _only(block: Any) -> Any:
    while isinstance(block, list):
        (block,) = block
    return block


def part_of(pair: Any, number: int, labels: Labels, layout: Layout, dtype: Any) -> Any:
    """One member of blocks that are tuples; `pair`: the array of them and its labels."""
    blocks, at = pair
    return da.blockwise(
        _member, labels, blocks, at, number=number, dtype=dtype, meta=np.empty((0,) * len(labels), dtype),
        align_arrays=False, adjust_chunks={i: layout.logits.chunks[i] for i in labels},
    )


def _member(block: Any, number: int) -> Any:
    return _only(block)[number]


def tree(ranges: Any, axis: int, fold: Callable[[Array, Array], Array], split_every: Any) -> Any:
    """Merge along the class axis, `split_every` blocks at a time; the result lacks that axis."""
    meta = np.empty((0,) * (ranges.ndim - 1), ranges.dtype)
    return da.reduction(
        ranges, chunk=_same, combine=partial(_folded, fold, True), aggregate=partial(_folded, fold, False), axis=axis,
        dtype=ranges.dtype, split_every=split_every, concatenate=True, meta=meta,
    )


def _same(block: Array, axis: Any, keepdims: bool) -> Array:
    return block


def _folded(fold: Callable[[Array, Array], Array], keep: bool, block: Array, axis: Any, keepdims: bool) -> Array:
    (axis,) = axis
    parts = np.moveaxis(block, axis, 0)
    result: Array = parts[0]
    for part in parts[1:]:
        result = fold(result, part)
    return np.expand_dims(result, axis) if keep else result


def is_lazy(value: Any) -> bool:
    """Whether this is a Dask array, or an array of another library around one (xarray's)."""
    if isinstance(value, (da.Array, np.ndarray)):
        return isinstance(value, da.Array)
    return isinstance(getattr(value, "data", None), da.Array)


def as_dask(value: Any, name: str, chunks: Any = "auto") -> Any:
    """A Dask array of known chunks; what is none becomes one of the given chunks."""
    if not is_lazy(value):
        return da.from_array(np.asarray(value), chunks=chunks)
    array = value if isinstance(value, da.Array) else value.data
    if any(np.isnan(size) for size in array.shape):
        raise ValueError(f"{name} has chunks of unknown size; call its compute_chunk_sizes() first")
    return array


def rechunked(value: Any, chunks: Chunks) -> Any:
    """The array in other chunks; itself where it has them."""
    return value if value.chunks == chunks else value.rechunk(chunks)
