"""Judging what describes a target: class indices or probabilities, masks, lengths, weights.

The slower half of `_arguments.py`: it runs only for arrays that are given, and for targets that are not simply
integers of the positions' shape. Here "positions" is that shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._coerce import (
    INDEX_LIMITS,
    INT64,
    as_array,
    as_float64,
    describe,
    is_bfloat16,
    is_float,
    whole_number,
)

Array = NDArray[Any]
Shape = tuple[int, ...]


def checked_targets(targets: Array, shape: Shape, positions: Shape) -> tuple[Array, tuple[int, int] | None]:
    """The targets as a backend reads them, and the limits of their dtype (None: they are class probabilities)."""
    if targets.dtype.kind in "iu":
        if targets.shape != positions:
            if targets.shape == shape:
                raise ValueError(
                    f"targets are integers of the logits' shape {shape}; class indices have the shape without the "
                    f"class axis, {positions}, and class probabilities are floats (fastxent.one_hot makes them)"
                )
            raise ValueError(
                f"targets must have the logits' shape without the class axis, {positions}; got {describe(targets)}"
            )
        native = np.require(targets, targets.dtype.newbyteorder("="), "A")
        return native, INDEX_LIMITS[native.dtype]
    if not is_float(targets.dtype):
        raise TypeError(
            f"targets have dtype {targets.dtype}; expected integers (class indices) or float16, bfloat16, float32 or "
            "float64 (class probabilities)"
        )
    if targets.shape != shape:
        raise ValueError(
            f"targets of a floating-point dtype are class probabilities and must have the logits' shape {shape}; got "
            f"{describe(targets)} (class indices are integers of shape {positions})"
        )
    return targets, None


def checked_class_weight(class_weight: Any, classes: int) -> Array:
    """One float64 for each class."""
    weight = as_float64(class_weight, "class_weight")
    if weight.shape != (classes,):
        raise ValueError(f"class_weight must have shape ({classes},), a weight for each class; got {describe(weight)}")
    return np.ascontiguousarray(weight)


def checked_weight(value: Any, name: str, positions: Shape) -> Array:
    """One float64 for each position."""
    return _broadcast(as_float64(value, name), name, positions)


def checked_mask(mask: Any, positions: Shape) -> Array:
    """One bool for each position; integers count as true where they are not 0."""
    array = as_array(mask, "mask", empty=np.dtype(bool))
    if array.dtype.kind in "iu":
        array = np.asarray(array != 0)  # of an array without axes NumPy makes a scalar
    elif array.dtype.kind != "b":
        hint = "; weights of positions are sample_weight" if array.dtype.kind == "f" or is_bfloat16(array.dtype) else ""
        raise TypeError(f"mask has dtype {array.dtype}; expected booleans or integers{hint}")
    return _broadcast(array, "mask", positions)


def _broadcast(array: Array, name: str, positions: Shape) -> Array:
    if array.shape == positions:
        return array
    try:
        return np.broadcast_to(array, positions)
    except ValueError:
        raise ValueError(f"{name} must broadcast to the positions' shape {positions}, got {describe(array)}") from None


def checked_lengths(lengths: Any, positions: Shape) -> Array:
    """One int64 for each sequence, in a row."""
    if len(positions) < 2:
        raise ValueError(
            f"lengths needs a batch axis and a time axis, but the positions' shape is {positions}: add a batch axis"
        )
    array = whole_numbers(lengths, "lengths")
    if array.shape != positions[:-1]:
        raise ValueError(f"lengths must have shape {positions[:-1]}, one for each sequence; got {describe(array)}")
    return in_range(array, "lengths", positions[-1]).ravel()


def whole_numbers(value: Any, name: str) -> Array:
    """An array of integers."""
    array = as_array(value, name, empty=INT64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    return array


def in_range(array: Array, name: str, largest: int | None) -> Array:
    """A copy of an integer array as int64, all from 0 to `largest`: a copy, so that it stays as it was judged."""
    if array.size:
        low, high = int(array.min()), int(array.max())
        most = np.iinfo(INT64).max if largest is None else largest
        if low < 0 or high > most:
            limits = "at least 0" if largest is None and low < 0 else f"from 0 to {most}"
            raise ValueError(f"{name} must be {limits}, got {low if low < 0 else high}")
    return array.astype(INT64, order="C")


def checked_shift(shift: Any, positions: Shape) -> int:
    """How many steps ahead targets are read: at most the number of steps there are."""
    steps = whole_number(shift, "shift", lowest=0)
    if steps and len(positions) < 2:
        raise ValueError(
            f"shift needs a batch axis and a time axis, but the positions' shape is {positions}: add a batch axis"
        )
    return min(steps, positions[-1]) if steps else 0


def checked_upstream(upstream: Any, positions: Shape, per_position: bool) -> tuple[Array | None, float]:
    """The incoming gradient: an array of the positions' shape, or a single number."""
    array = as_float64(upstream, "upstream")
    if array.ndim == 0:
        return None, float(array)
    if not per_position:
        raise ValueError(f'upstream must be a single number unless reduction="none"; got {describe(array)}')
    if array.shape != positions:
        raise ValueError(f"upstream must be a number or have the positions' shape {positions}; got {describe(array)}")
    return array, 1.0


def checked_saved(saved: Any, positions: Shape, dtype: np.dtype[Any]) -> Array:
    """The statistics that `cross_entropy(..., return_saved=True)` returned."""
    array = as_array(saved, "saved")
    if array.shape != (*positions, 2) or array.dtype.newbyteorder("=") != dtype:
        raise ValueError(
            f"saved must be what cross_entropy(..., return_saved=True) returned for these logits, {dtype.name} of "
            f"shape {(*positions, 2)}; got {describe(array)}"
        )
    return np.require(array, dtype, ["C", "A"])


def lengths_arguments(lengths: Any, max_length: Any) -> tuple[Array, int]:
    """The lengths, and the number of times that a mask of them has."""
    counts = whole_numbers(lengths, "lengths")
    if max_length is None:
        counts = in_range(counts, "lengths", None)
        return counts, int(counts.max(initial=0))
    times = whole_number(max_length, "max_length", lowest=0)
    return in_range(counts, "lengths", times), times


def one_hot_arguments(targets: Any, num_classes: Any, dtype: Any) -> tuple[Array, int, np.dtype[Any]]:
    """The class indices, how many classes there are, and the dtype to write them in."""
    indices = whole_numbers(targets, "targets")
    number = whole_number(num_classes, "num_classes", lowest=0)
    kind = np.dtype(dtype)
    if kind.kind not in "biufc" and not is_bfloat16(kind):
        raise TypeError(f"dtype must be one of numbers or booleans, got {kind}")
    outside = (indices < 0) | (indices >= number)
    if outside.any():
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        raise IndexError(f"the target at position {position} is {indices[position]}, outside [0, {number})")
    return indices.astype(np.intp), number, kind
