"""Judging the arrays that a caller gives for results: exact shape and dtype, writable, and no memory shared.

An output may be exactly an input that is read and written element by element (the logits and their gradient). Any
other overlap would make the result depend on the order of the work, so it is refused. Most arrays are cleared by
comparing the bounds of their memory; only interleaved views need the exact, slower answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy import may_share_memory, ndarray
from numpy.typing import NDArray

from ._coerce import describe

# How many candidate solutions NumPy may try before two arrays count as overlapping; about a millisecond.
_MAX_WORK: Any = 100_000

Input = tuple[str, NDArray[Any] | None]
Output = tuple[str, Any, tuple[int, ...], np.dtype[Any]]  # name, the caller's array, and what it must be


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Input], in_place: str) -> None:
    """Refuse outputs that do not fit, overlap each other, or overlap an input other than exactly in place.

    `in_place` names the inputs that may also be an output, exactly.
    """
    seen: list[Input] = []
    for name, output, shape, dtype in outputs:
        if output is None:
            continue
        _check_output(output, name, shape, dtype)
        for other_name, other in (*inputs, *seen):
            if other is None or (output is not other and not may_share_memory(output, other)):
                continue
            may_be_same = other_name in in_place.split()
            if may_be_same and _same_elements(output, other):
                continue
            if _share_memory(output, other):
                exactly = "; it may only be exactly that array" if may_be_same else ""
                raise ValueError(f"{name} overlaps {other_name} in memory{exactly}")
        seen.append((name, output))


def _check_output(value: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Whether results of `shape` and `dtype` can be written into `value`."""
    if type(value) is not ndarray and (not isinstance(value, ndarray) or isinstance(value, np.ma.MaskedArray)):
        raise TypeError(f"{name} must be a numpy.ndarray, got an object of type {type(value).__name__}")
    if value.shape != shape or value.dtype != dtype:
        order = "" if value.dtype.isnative else "byte-swapped "
        raise ValueError(f"{name} must be {dtype.name} of shape {shape}, got {order}{describe(value)}")
    flags = value.flags
    if not flags.writeable:
        raise ValueError(f"{name} is read-only")
    if not flags.forc and _overlaps_itself(value):
        raise ValueError(f"{name} overlaps itself: several of its elements share memory (strides {value.strides})")


def _same_elements(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether element i of one is element i of the other."""
    if a is b:
        return True
    if a.__array_interface__["data"][0] != b.__array_interface__["data"][0] or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))


def _share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: NDArray[Any]) -> bool:
    if array.size < 2:
        return False
    axes = sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1)
    reach = array.itemsize  # bytes from the first to past the last element along the axes seen so far
    for stride, n in axes:
        if stride < reach:
            break
        reach += stride * (n - 1)
    else:
        return False
    # The axes interleave, which as_strided can do without an overlap: look at every element's place.
    places = np.zeros(1, np.int64)
    for stride, n in axes:
        places = (places[:, None] + stride * np.arange(n)).ravel()
    places.sort()
    return bool((np.diff(places) < array.itemsize).any())
