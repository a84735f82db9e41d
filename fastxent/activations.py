"""Softmax, its logarithm and its normaliser, their gradients, and one-hot targets.

Each row is exp(x - m) / (1 + s) with m the row's largest value and s the sum of exp(x - m) over the *other* classes:
leaving the maximum out keeps the digits of what is small beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._arguments import activation_grad_plan, activation_plan, logsumexp_plan
from ._calls import activation
from ._options import OP_LOG_SOFTMAX, OP_LOG_SOFTMAX_GRAD, OP_SOFTMAX, OP_SOFTMAX_GRAD
from ._targets import one_hot_arguments

Array = NDArray[Any]


def softmax(x: ArrayLike, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None) -> Array:
    r"""Compute the softmax along an axis.

    .. math:: p_c = \exp(x_c) / \sum_k \exp(x_k)

    Parameters
    ----------
    x : array_like
        Any shape with at least one axis; float16, bfloat16, float32, float64, or integers (as float64). -inf gives
        exactly 0; a row of nothing but -inf, with a +inf or a NaN, is NaN.
    axis : int, default -1
        The class axis.
    out : numpy.ndarray, optional
        Where to write the result: of its shape and dtype, perhaps `x` itself.
    num_threads : int, optional
        The largest number of threads to use; by default `get_num_threads()`.

    Returns
    -------
    numpy.ndarray
        The shape of `x`; its dtype (float64 for integers), rounded once. `out` if given.

    Raises
    ------
    TypeError
        If the dtype of `x` is another one, or `x` cannot be read from here (a GPU tensor, ``requires_grad``).
    ValueError
        If `axis` is out of range (`numpy.exceptions.AxisError`) or `out` does not fit, is read-only or overlaps.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.softmax([1.0, 1.0, 1.0, 1.0])
    array([0.25, 0.25, 0.25, 0.25])

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA J. Numer. Anal. 41 (2021), 2311-2330.
    """
    return activation(activation_plan(OP_SOFTMAX, x, axis, out, num_threads))


def log_softmax(x: ArrayLike, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None) -> Array:
    r"""Compute the logarithm of the softmax along an axis.

    .. math:: y_c = x_c - \log \sum_k \exp(x_k)

    Parameters
    ----------
    x, axis, out, num_threads
        As for `softmax`. -inf stays -inf.

    Returns
    -------
    numpy.ndarray
        The shape of `x`; its dtype (float64 for integers), rounded once. `out` if given.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.log_softmax([[0.0, -float("inf")]])
    array([[  0., -inf]])

    References
    ----------
    .. [1] Blanchard, Higham, Higham (2021), see `softmax`.
    """
    return activation(activation_plan(OP_LOG_SOFTMAX, x, axis, out, num_threads))


def logsumexp(
    x: ArrayLike, *, axis: int = -1, keepdims: bool = False, out: Array | None = None, num_threads: int | None = None
) -> Array:
    r"""Compute the logarithm of the sum of exponentials along an axis.

    .. math:: \log \sum_c \exp(x_c)

    Parameters
    ----------
    x, axis, num_threads
        As for `softmax`.
    keepdims : bool, default False
        Whether the class axis stays, with length 1.
    out : numpy.ndarray, optional
        Where to write the result: of its shape and dtype.

    Returns
    -------
    numpy.ndarray
        float32 (float64 for float64 and integers), the shape of `x` without the class axis, or with 1 in its place.
        -inf where all classes are -inf or there are none, +inf where one is +inf. `out` if given.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.logsumexp([[1000.0], [-1000.0]])
    array([ 1000., -1000.])

    References
    ----------
    .. [1] Blanchard, Higham, Higham (2021), see `softmax`.
    """
    plan = logsumexp_plan(x, axis, keepdims, out, num_threads)
    result = activation(plan)
    if out is not None:
        return out
    return np.expand_dims(result, plan.axis) if keepdims else result


def softmax_grad(
    y: ArrayLike, upstream: ArrayLike, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None
) -> Array:
    r"""Compute the gradient of a softmax by its argument, from its result.

    .. math:: g_c = y_c \, (u_c - \sum_k u_k y_k)

    Parameters
    ----------
    y : array_like
        What `softmax` returned.
    upstream : array_like
        The gradient u by `y`: of its shape; any of the dtypes of `softmax`.
    axis, num_threads
        As for `softmax`.
    out : numpy.ndarray, optional
        Where to write the result: of the shape and dtype of `y`, perhaps `y` or `upstream` itself.

    Returns
    -------
    numpy.ndarray
        The shape and dtype of `y`. `out` if given.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`; ValueError if `upstream` has another shape.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.softmax_grad([0.5, 0.5], [1.0, 0.0])
    array([ 0.25, -0.25])

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equation 4.106.
    """
    return activation(activation_grad_plan(OP_SOFTMAX_GRAD, y, upstream, axis, out, num_threads))


def log_softmax_grad(
    y: ArrayLike, upstream: ArrayLike, *, axis: int = -1, out: Array | None = None, num_threads: int | None = None
) -> Array:
    r"""Compute the gradient of a log_softmax by its argument, from its result.

    .. math:: g_c = u_c - \exp(y_c) \sum_k u_k

    Parameters
    ----------
    y : array_like
        What `log_softmax` returned.
    upstream, axis, out, num_threads
        As for `softmax_grad`.

    Returns
    -------
    numpy.ndarray
        The shape and dtype of `y`. `out` if given.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_grad`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.log_softmax_grad([0.0], [3.0])
    array([0.])

    References
    ----------
    .. [1] Bishop (2006), see `softmax_grad`.
    """
    return activation(activation_grad_plan(OP_LOG_SOFTMAX_GRAD, y, upstream, axis, out, num_threads))


def one_hot(targets: ArrayLike, num_classes: int, *, dtype: DTypeLike = np.float32) -> Array:
    """Make class probabilities of class indices: 1 at the target's class, 0 at the others.

    .. math:: q_c = [c = t]

    Parameters
    ----------
    targets : array_like of int
        Class indices from 0 to `num_classes` - 1, of any shape.
    num_classes : int
        How many classes there are, 0 or more.
    dtype : data-type, default float32
        The dtype of the result: of numbers or booleans.

    Returns
    -------
    numpy.ndarray
        The shape of `targets` with the classes as a new last axis.

    Raises
    ------
    IndexError
        If a class index is out of range; the message has its position and value.
    TypeError
        If `targets` are not integers, or `dtype` is none of numbers.
    ValueError
        If `num_classes` is negative.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.one_hot([2, 0], 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    indices, number, kind = one_hot_arguments(targets, num_classes, dtype)
    result = np.zeros((indices.size, number), kind)
    result[np.arange(indices.size), indices.ravel()] = 1
    return result.reshape(*indices.shape, number)
