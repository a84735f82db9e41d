"""What describes positions: one record for each, made of targets, masks, lengths and weights, in the logits' chunks.

These arrays are small beside the logits (a number or two a position), so they are what moves: they are read `shift`
steps ahead across the borders of chunks, and rechunked to the logits' chunks. A record is all that the ranges of
classes need to know of a target. Class indices are judged here, once, with their place in the whole array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from ._arrays import ALL_CLASSES, Array, Layout, as_dask, is_lazy, rechunked

# The target's class; the sample weight, 0 where the position is not valid; the class weight of the target.
RECORD = np.dtype([("index", np.int64), ("weight", np.float64), ("of_target", np.float64)])


class Described(NamedTuple):
    """The targets' side of a call."""

    records: Any  # Dask array of RECORD, of the positions' shape and chunks
    probabilities: Any  # Dask array in the logits' chunks, or None: the targets are class indices
    class_weight: Any  # Dask array in the logits' chunks along the class axis, or None


def described(
    layout: Layout, targets: Any, class_weight: Any, sample_weight: Any, mask: Any, lengths: Any,
    ignore_index: int | None, shift: int,
) -> Described:
    """Records of the positions; shapes and dtypes have been judged."""
    at, shape, chunks = layout.positions, layout.shape, layout.chunks
    soft = targets.dtype.kind not in "iu"
    indices = (None, None) if soft else (_in_chunks(targets, shift, chunks), at)
    pairs = [*indices]
    for array in mask, sample_weight:
        pairs += (None, None) if array is None else _broadcast(array, layout, shift)
    pairs += (None, None) if lengths is None else (rechunked(lengths, chunks[:-1]), at[:-1])
    if class_weight is None or soft:
        pairs += None, None
    else:
        pairs += rechunked(class_weight, ((layout.classes,),)), (ALL_CLASSES,)
    for axis in at:
        pairs += layout.bounds(axis)
    records = layout.mapped(
        _records, at, *pairs, dtype=RECORD, classes=layout.classes, ignore_index=ignore_index, shift=shift,
        times=shape[-1] if len(shape) > 1 else None,
    )
    if class_weight is not None:
        class_weight = rechunked(class_weight, (layout.logits.chunks[layout.axis],))
    if not soft:
        return Described(records, None, class_weight)
    time = at[-1] if at else None
    return Described(records, _probabilities(targets, layout, shift, time), class_weight)


def _probabilities(targets: Any, layout: Layout, shift: int, time: int | None) -> Any:
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
    targets: Any, mask: Any, weight: Any, lengths: Any, class_weight: Any, *bounds: Array, classes: int,
    ignore_index: int | None, shift: int, times: int | None,
) -> NDArray[Any]:
    """The records of one block, which is at `bounds` of the positions."""
    starts, shape = [int(b["start"][0]) for b in bounds], tuple(int(b["end"][0] - b["start"][0]) for b in bounds)
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
