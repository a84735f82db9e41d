r"""Cross-entropy of single rows, for use inside other people's ``@numba.njit`` functions and ``prange`` loops.

The arithmetic is that of the package's Numba engine: vectors, a polynomial exp, and forms that keep their digits where
the probability of the target is close to 1. The functions may be called from Python too, but there
`fastxent.cross_entropy` and its kin do a whole batch at once. Needs Numba (``pip install 'fastxent[numba]'``).

A row is an array of one axis, float32 or float64, with any stride, and is not changed. Results have its dtype. A row of
64 classes or more that are neighbours in memory is read where it is; another is copied first.

Examples
--------
>>> import numba
>>> import numpy as np
>>> from fastxent.numba import cross_entropy_row
>>> @numba.njit
... def mean_loss(logits, targets):
...     total = 0.0
...     for i in range(len(targets)):
...         total += cross_entropy_row(logits[i], targets[i])
...     return total / len(targets)
>>> round(mean_loss(np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), np.array([0, 2])), 6)
0.753109
"""

from __future__ import annotations

from typing import Any

try:
    from numba import njit
    from numba.extending import overload
except ImportError as error:
    raise ImportError(
        f"fastxent.numba needs Numba ({error}): pip install 'fastxent[numba]'", name=error.name
    ) from error

import numpy as np

from ._backends.numba_kernels import single_rows

__all__ = ["cross_entropy_row", "cross_entropy_row_and_grad", "log_softmax_row", "logsumexp_row"]

GROUP = 64  # the fewest classes that the kernels take
_logsumexp = single_rows.logsumexp_of.intrinsic
_loss = single_rows.loss_of.intrinsic
_loss_and_gradient = single_rows.loss_and_gradient_of.intrinsic
_log_softmax = single_rows.log_softmax_of.intrinsic


@njit
def _in_place(row: Any) -> Any:
    return row.size >= GROUP and row.strides[0] == row.itemsize


def _alike(a: Any, b: Any) -> bool:
    """Whether two arrays have the same dtype: known when Numba compiles."""
    return bool(a.dtype == b.dtype)


@overload(_alike)
def _alike_in_numba(a, b):
    return (lambda a, b: True) if a.dtype == b.dtype else (lambda a, b: False)


@njit
def _copy(row: Any) -> Any:
    """The row as neighbours, filled up with -inf."""
    copy = np.full(max(row.size, GROUP), -np.inf, row.dtype)
    copy[: row.size] = row
    return copy


# The arrays are parameters of what follows so that the caller keeps them alive: to Numba an address is a number.


@njit
def _logsumexp_in(row: Any, n: int) -> Any:
    return row.dtype.type(_logsumexp(row.dtype.type(0), row.ctypes.data, n))


@njit
def _loss_in(row: Any, n: int, target: int) -> Any:
    return row.dtype.type(_loss(row.dtype.type(0), row.ctypes.data, n, target))


@njit
def _gradient_in(row: Any, n: int, target: int, grad: Any) -> Any:
    return row.dtype.type(_loss_and_gradient(row.dtype.type(0), row.ctypes.data, n, target, grad.ctypes.data))


@njit
def _log_softmax_in(row: Any, n: int, out: Any) -> None:
    _log_softmax(row.dtype.type(0), row.ctypes.data, n, out.ctypes.data)


@njit
def logsumexp_row(row: Any) -> Any:
    r"""Logarithm of the sum of exponentials of a row.

    .. math:: \operatorname{lse}(x) = \log \sum_c \exp x_c

    Parameters
    ----------
    row : array of float32 or float64, shape (C,)
        Any numbers; infinities and NaN as in `fastxent.logsumexp`. No class at all gives -inf.

    Returns
    -------
    float32 or float64
        The logarithm, of the row's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.numba import logsumexp_row
    >>> round(float(logsumexp_row(np.zeros(8))), 6)
    2.079442
    """
    if _in_place(row):
        return _logsumexp_in(row, row.size)
    copy = _copy(row)
    return _logsumexp_in(copy, copy.size)


@njit
def log_softmax_row(row: Any, out: Any = None) -> Any:
    r"""Logarithms of the probabilities of a row.

    .. math:: y_c = x_c - \operatorname{lse}(x)

    Parameters
    ----------
    row : array of float32 or float64, shape (C,)
        The logits.
    out : array of floats, shape (C,), optional
        Where to write; may be the row itself. Without it a new array of the row's dtype.

    Returns
    -------
    array, shape (C,)
        `out`, or the new array.

    Raises
    ------
    ValueError
        If `out` has another number of classes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.numba import log_softmax_row
    >>> log_softmax_row(np.zeros(2)).round(4)
    array([-0.6931, -0.6931])
    """
    result = np.empty(row.size, row.dtype) if out is None else out
    if result.size != row.size:
        raise ValueError("out must have as many classes as the row")
    if _alike(row, result) and _in_place(row) and _in_place(result):
        _log_softmax_in(row, row.size, result)
    else:
        copy = _copy(row)
        _log_softmax_in(copy, copy.size, copy)
        result[:] = copy[: row.size]
    return result


@njit
def cross_entropy_row(row: Any, target: int) -> Any:
    r"""Cross-entropy of one row of logits with a class index.

    .. math:: \ell = \operatorname{lse}(x) - x_t = (m - x_t) + \log(1 + s)

    Parameters
    ----------
    row : array of float32 or float64, shape (C,)
        The logits.
    target : int
        The class, 0 to C - 1.

    Returns
    -------
    float32 or float64
        The loss, of the row's dtype; NaN where `fastxent.cross_entropy` gives NaN.

    Raises
    ------
    IndexError
        If there is no such class. (Numba does not promise to carry exceptions out of a ``prange`` loop.)

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.numba import cross_entropy_row
    >>> round(float(cross_entropy_row(np.array([2.0, 0.0, 1.0]), 0)), 6)
    0.407606
    """
    if target < 0 or target >= row.size:
        raise IndexError("the target is not one of the row's classes")
    if _in_place(row):
        return _loss_in(row, row.size, target)
    copy = _copy(row)
    return _loss_in(copy, copy.size, target)


@njit
def cross_entropy_row_and_grad(row: Any, target: int, grad: Any) -> Any:
    r"""Cross-entropy of one row of logits with a class index, and its gradient by the logits.

    .. math:: \partial \ell / \partial x_c = \operatorname{softmax}(x)_c - [c = t]

    Parameters
    ----------
    row : array of float32 or float64, shape (C,)
        The logits.
    target : int
        The class, 0 to C - 1.
    grad : array of floats, shape (C,)
        Where the gradient is written; may be the row itself.

    Returns
    -------
    float32 or float64
        The loss, of the row's dtype.

    Raises
    ------
    IndexError
        If there is no such class. Nothing has been written then.
    ValueError
        If `grad` has another number of classes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.numba import cross_entropy_row_and_grad
    >>> row = np.zeros(4)
    >>> round(float(cross_entropy_row_and_grad(row, 1, row)), 6), row
    (1.386294, array([ 0.25, -0.75,  0.25,  0.25]))
    """
    if target < 0 or target >= row.size:
        raise IndexError("the target is not one of the row's classes")
    if grad.size != row.size:
        raise ValueError("grad must have as many classes as the row")
    if _alike(row, grad) and _in_place(row) and _in_place(grad):
        return _gradient_in(row, row.size, target, grad)
    copy = _copy(row)
    loss = _gradient_in(copy, copy.size, target, copy)
    grad[:] = copy[: row.size]
    return loss
