"""Taking in what callers give: arrays of any library, numbers, whole numbers.

Nothing is copied that can be looked at in place, and nothing is converted silently: what cannot be taken raises an
error that names the argument, says what came and what was expected. No framework is imported here. Arrays of other
libraries come in by DLPack (their memory is shared) or by ``np.asarray``; bfloat16 is recognised by its dtype's name,
because NumPy has no such type of its own.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
INT64 = np.dtype(np.int64)

_ORDERS = "<>"
_SIZES = (1, 2, 4, 8)

# Of logits of each dtype: the dtype they are computed in, and that of a gradient or softmax. bfloat16 joins when seen.
LOGIT_DTYPES: dict[np.dtype[Any], tuple[np.dtype[Any], np.dtype[Any]]] = {
    **{np.dtype(f"{order}f2"): (FLOAT32, np.dtype(np.float16)) for order in _ORDERS},
    **{np.dtype(f"{order}f4"): (FLOAT32, FLOAT32) for order in _ORDERS},
    **{np.dtype(f"{order}f8"): (FLOAT64, FLOAT64) for order in _ORDERS},
    **{np.dtype(f"{order}{kind}{size}"): (FLOAT64, FLOAT64) for order in _ORDERS for kind in "iu" for size in _SIZES},
}

# The smallest and largest class index that each integer dtype of this machine's byte order can hold.
INDEX_LIMITS: dict[np.dtype[Any], tuple[int, int]] = {
    np.dtype(f"{kind}{size}"): (int(np.iinfo(f"{kind}{size}").min), int(np.iinfo(f"{kind}{size}").max))
    for kind in "iu"
    for size in _SIZES
}

# Kinds of devices, in DLPack's numbers, whose memory the processor reads like its own.
_HOST_DEVICES = (1, 3, 11, 13)  # CPU, pinned by CUDA, pinned by ROCm, managed by CUDA


def describe(array: NDArray[Any]) -> str:
    """What an array is, for error messages."""
    return f"{array.dtype.name} of shape {array.shape}"


def as_array(value: Any, name: str, empty: np.dtype[Any] | None = None) -> NDArray[Any]:
    """`value` as a plain ``numpy.ndarray``, without a copy where that is possible.

    `empty` is the dtype for an empty list, which says nothing of its own.
    """
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            if np.ma.is_masked(value):
                raise TypeError(f"{name} is a masked array with masked elements; give its data, and mask= apart")
            value = value.data
        return np.asarray(value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(value, name)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made an array: {error}") from error
    except Exception as error:
        raise TypeError(f"{name}: {_kind(value)} cannot be made an array: {error}") from error
    if empty is not None and array.size == 0 and isinstance(value, (list, tuple)):
        array = array.astype(empty)
    return array


def _from_dlpack(value: Any, name: str) -> NDArray[Any]:
    if getattr(value, "requires_grad", False) is True:
        raise TypeError(f"{name} requires a gradient; use fastxent.torch, which has autograd, or {name}.detach()")
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        raise TypeError(f"{name} is a bfloat16 tensor, which NumPy cannot read; use fastxent.torch, or {name}.float()")
    if getattr(value, "is_neg", bool)():  # a view that torch negates when it is read, and nobody else
        value = value.resolve_neg()
    try:
        device = int(value.__dlpack_device__()[0])
    except Exception as error:
        raise TypeError(f"{name}: {_kind(value)} cannot be read: {error}") from error
    if device not in _HOST_DEVICES:
        where = getattr(value, "device", f"a device of DLPack kind {device}")
        raise TypeError(f"{name} is {_kind(value)} on {where}; copy it to the CPU first (in torch: {name}.cpu())")
    try:
        return np.from_dlpack(value)
    except Exception:  # a dtype that DLPack or this NumPy does not know, or a read-only array before NumPy 2.1
        try:
            return np.asarray(value)
        except Exception as error:
            raise TypeError(f"{name}: {_kind(value)} cannot be made an array: {error}") from error


def _kind(value: object) -> str:
    return f"an object of type {type(value).__module__}.{type(value).__qualname__}"


def logit_dtypes(dtype: np.dtype[Any], name: str) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The entry of `LOGIT_DTYPES` for `dtype`, or the TypeError."""
    found = LOGIT_DTYPES.get(dtype)
    if found is None:
        if not is_bfloat16(dtype):
            raise TypeError(f"{name} has dtype {dtype}; expected float16, bfloat16, float32, float64 or integers")
        found = LOGIT_DTYPES[dtype] = (FLOAT32, dtype.newbyteorder("="))
    return found


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is the bfloat16 of ml_dtypes (JAX, TensorFlow, ONNX)."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def is_index(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is one of the eight integer dtypes, in any byte order."""
    return dtype.kind in "iu"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is one of the four floating-point dtypes, in any byte order."""
    return (dtype.kind == "f" and dtype.itemsize <= 8) or is_bfloat16(dtype)


def as_float64(value: Any, name: str) -> NDArray[np.float64]:
    """Real numbers as a float64 array in native byte order, aligned; the array itself where it is that already."""
    array = as_array(value, name, FLOAT64)
    if not (is_float(array.dtype) or is_index(array.dtype) or array.dtype.kind == "b"):
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers of at most 64 bits")
    return np.require(array, FLOAT64, "A")


def whole_number(value: Any, name: str, lowest: int | None = None) -> int:
    """`value` as an int; booleans and floats are refused."""
    if type(value) is int:
        number = value
    elif isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got the boolean {value}")
    else:
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from None
    if lowest is not None and number < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {number}")
    return number


def real_number(value: Any, name: str) -> float:
    """`value` as a float; booleans, strings and arrays with axes are refused."""
    if type(value) is float:
        return value
    if not isinstance(value, (bool, np.bool_, str, bytes)):
        array = as_array(value, name)
        if array.ndim == 0 and (is_float(array.dtype) or is_index(array.dtype)):
            return float(array)
        if array.ndim == 0 and isinstance(value, int):
            raise ValueError(f"{name} must be a number in the range of float64, got {value}")
    raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")


def finite_number(value: Any, name: str) -> float:
    """`value` as a float that is neither infinite nor NaN."""
    number = real_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number
