r"""The activations of fastxent.jax, along any axis. Arrays may be traced."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from . import _arguments, _losses
from ._handler import Options

Array = Any  # jax.Array: what comes out of a traced call may be a tracer


def log_softmax(x: Any, axis: int = -1, *, num_threads: int | None = None) -> Array:
    r"""Compute the logarithms of softmax(x) along an axis.

    .. math:: y_c = x_c - \log \sum_k \exp(x_k)

    Parameters
    ----------
    x : array_like
        As the logits of `cross_entropy`.
    axis : int, default -1
        The class axis.
    num_threads : int, optional
        As for `cross_entropy`.

    Returns
    -------
    jax.Array
        Of the shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        If `x` has another dtype, or `axis` is out of bounds.

    Notes
    -----
    Differentiable in either mode and to any order.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastxent.jax import log_softmax
    >>> jnp.exp(log_softmax(jnp.array([0.0, jnp.log(3.0)]))).round(4).tolist()
    [0.25, 0.75]
    """
    return _activation(_losses.log_softmax_of, x, axis, num_threads)


def softmax(x: Any, axis: int = -1, *, num_threads: int | None = None) -> Array:
    r"""Compute softmax(x) along an axis.

    .. math:: y_c = \exp(x_c) / \sum_k \exp(x_k)

    Parameters
    ----------
    x, axis, num_threads
        As for `log_softmax`.

    Returns
    -------
    jax.Array
        Of the shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `log_softmax`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastxent.jax import softmax
    >>> softmax(jnp.array([0.0, jnp.log(3.0)])).round(4).tolist()
    [0.25, 0.75]
    """
    return _activation(_losses.softmax_of, x, axis, num_threads)


def logsumexp(x: Any, axis: int = -1, *, keepdims: bool = False, num_threads: int | None = None) -> Array:
    r"""Compute the logarithm of the sum of exponentials along an axis.

    .. math:: y = \log \sum_k \exp(x_k)

    Parameters
    ----------
    x, axis, num_threads
        As for `log_softmax`.
    keepdims : bool, default False
        Whether the result keeps the axis, with length 1.

    Returns
    -------
    jax.Array
        float32, or float64 for float64.

    Raises
    ------
    TypeError, ValueError
        As for `log_softmax`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastxent.jax import logsumexp
    >>> round(float(logsumexp(jnp.log(jnp.array([1.0, 2.0, 3.0])))), 4)
    1.7918
    """
    result = _activation(_losses.logsumexp_of, x, axis, num_threads)
    return jnp.expand_dims(result, axis) if keepdims else result


def _activation(function: Any, x: Any, axis: Any, num_threads: Any) -> Array:
    x = _arguments.scores(x, "x")
    axis = _arguments.class_axis(axis, x.ndim, "x")
    result: Array = function(Options(axis, num_threads=_arguments.threads(num_threads)), x)
    return result
