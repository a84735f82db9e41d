"""What describes positions: one record for each, made of targets, masks, lengths and weights, in the logits' chunks.

The arrays that a caller gives are small beside the logits (a number or two a position), so they are what moves: they
are read `shift` steps ahead across the borders of chunks, and rechunked to the logits' chunks. A record is all that
the ranges of classes need to know of a target. Class indices are judged here, with their place in the whole array.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from ._arrays import Array, Labels, Layout, as_dask, is_lazy, rechunked

# The target's class; the sample weight, 0 where the position is not valid; the class weight of the target.
RECORD = np.dtype([("index", np.int64), ("weight", np.float64), ("of_target", np.float64)])


class Positions:
    """The targets' side of a call.

    Its records are made where they are wanted, again and again, within the tasks that want them: that takes less than
    tasks of their own would, and than sending their 24 bytes a position.
    """

    def __init__(
        self, layout: Layout, targets: Any, class_weight: Any, sample_weight: Any, mask: Any, lengths: Any,
        ignore_index: int | None, shift: int,
    ) -> None:
        at, shape, chunks = layout.positions, layout.shape, layout.chunks
        soft = targets.dtype.kind not in "iu"
        ahead = min(int(shift), shape[-1])
        pairs: list[Any] = [None, None] if soft else [_in_chunks(targets, ahead, chunks), at]
        for array in mask, sample_weight:
            pairs += (None, None) if array is None else _broadcast(array, layout, ahead)
        pairs += (None, None) if lengths is None else (rechunked(lengths, chunks[:-1]), at[:-1])
        whole = None if class_weight is None or soft else rechunked(class_weight, ((layout.classes,),))
        self._pairs = [*pairs, whole, None, *layout.bounds(*at)]
        self._spec: dict[str, Any] = {
            "classes": layout.classes, "ignore_index": ignore_index, "shift": ahead,
            "times": shape[-1] if len(shape) > 1 else None,
        }
        self.layout = layout
        # Class probabilities in the logits' chunks, or None: the targets are class indices.
        self.probabilities = _probabilities(targets, layout, ahead, at[-1]) if soft else None
        if class_weight is not None:
            class_weight = rechunked(class_weight, (layout.logits.chunks[layout.axis],))
        self.class_weight = class_weight  # in the logits' chunks

    def mapped(self, function: Any, labels: Labels, *pairs: Any, dtype: Any, **keywords: Any) -> Any:
        """`Layout.mapped` of a function whose second argument, or first if there is no other, are the records."""
        return self.layout.mapped(
            function, labels, *self._pairs, *pairs, dtype=dtype,
            describe=(partial(_records, **self._spec), len(self._pairs) // 2), **keywords,
        )

    def coefficients(self) -> tuple[Any, ...]:
        """Class probabilities and class weights, and their labels."""
        q, weight, layout = self.probabilities, self.class_weight, self.layout
        return (q, None if q is None else layout.labels, weight, None if weight is None else (layout.axis,))


def _probabilities(targets: Any, layout: Layout, shift: int, time: int) -> Any:
    """Class probabilities in the logits' chunks. They are as large as the logits, so only a shift may move them."""
    if targets.chunks != layout.logits.chunks:
        raise ValueError(
            f"targets are class probabilities in other chunks than the logits: {targets.chunks} and "
            f"{layout.logits.chunks}; rechunk one of them"
        )
    return _in_chunks(targets, shift, layout.logits.chunks, time)


def _broadcast(array: Any, layout: Layout, shift: int) -> tuple[Any, Any]:
    """A mask or weights, which may lack axes or have 1 in their place; and their labels."""
    at = layout.positions[len(layout.positions) - array.ndim :]
    whole = layout.chunks[len(layout.positions) - array.ndim :]
    chunks = tuple((1,) if n == 1 else c for n, c in zip(array.shape, whole, strict=True))
    moved = shift if array.ndim and array.shape[-1] != 1 else 0
    return _in_chunks(array, moved, chunks), at


def _in_chunks(array: Any, shift: int, chunks: Any, time: int | None = None) -> Any:
    """`array` read `shift` steps ahead along time (the last axis, unless given), in these chunks."""
    if shift:
        axis = array.ndim - 1 if time is None else time
        steps = array.shape[axis]
        later = array[(slice(None),) * axis + (slice(shift, None),)]
        tail = tuple(min(shift, steps) if i == axis else n for i, n in enumerate(array.shape))
        array = da.concatenate([later, da.zeros(tail, dtype=array.dtype, chunks=-1)], axis=axis)
    return rechunked(array, chunks)


def _records(
    targets: Any, mask: Any, weight: Any, lengths: Any, class_weight: Any, place: tuple[slice, ...], *,
    classes: int, ignore_index: int | None, shift: int, times: int | None,
) -> NDArray[Any]:
    """The records of one block, which is at this place of the positions."""
    starts, shape = [int(s.start) for s in place], tuple(int(s.stop - s.start) for s in place)
    valid = np.ones(shape, bool)
    if mask is not None:
        valid &= np.asarray(mask) != 0
    result = np.zeros(shape, RECORD)
    result["weight"] = result["of_target"] = 1
    if weight is not None:
        result["weight"] = weight
        valid &= result["weight"] != 0
    if times is not None and (shift or lengths is not None):
        ahead = starts[-1] + shift + np.arange(shape[-1])
        valid &= ahead < times
        if lengths is not None:
            valid &= ahead < _checked_lengths(lengths, times)[..., None]
    if targets is not None:
        targets = np.asarray(targets)
        limits = np.iinfo(targets.dtype)
        if ignore_index is not None and limits.min <= ignore_index <= limits.max:
            valid &= targets != ignore_index
        outside = valid & ((targets < 0) | (targets > min(classes - 1, limits.max)))
        if outside.any():
            raise _index_error(np.argwhere(outside)[0], targets[outside][0], starts, classes, shift)
        result["index"] = np.where(valid, targets, 0).astype(np.int64)
        if class_weight is not None:
            result["of_target"] = np.where(valid, np.asarray(class_weight, np.float64)[result["index"]], 0)
    result["weight"] = np.where(valid, result["weight"], 0)
    return result


def _checked_lengths(lengths: Array, times: int) -> Array:
    """As the engine judges them; a block of an array that is made by tasks is known only now."""
    if lengths.size and (lengths.min() < 0 or lengths.max() > times):
        wrong = lengths[(lengths < 0) | (lengths > times)].flat[0]
        raise ValueError(f"lengths must be from 0 to {times}, got {wrong}")
    return lengths


def _index_error(where: Any, value: Any, starts: list[int], classes: int, shift: int) -> IndexError:
    position = tuple(int(i) + start for i, start in zip(where, starts, strict=True))
    read_at = f" (targets{[*position[:-1], position[-1] + shift]}, shift={shift})" if shift else ""
    return IndexError(f"the target at position {position}{read_at} is {value}, outside [0, {classes})")


def judged(value: Any, name: str, shape: tuple[int, ...], what: str, chunks: Any = -1, broadcast: bool = False) -> Any:
    """An argument as a Dask array of this shape, or one that broadcasts to it; `chunks` for what is no Dask array."""
    array = as_dask(value, name, -1)
    fits = array.shape == shape
    if broadcast:
        try:
            fits = np.broadcast_shapes(array.shape, shape) == shape
        except ValueError:
            fits = False
    if not fits:
        verb = "broadcast to" if broadcast else "have"
        raise ValueError(f"{name} must {verb} {what}, {shape}; got {array.dtype} of shape {array.shape}")
    return array if chunks == -1 or is_lazy(value) else as_dask(value, name, chunks)
