r"""Binary cross-entropy of probabilities and of logits, and the sigmoids they are made of.

Each element is a class of its own, true or not. With e = exp(-|x|), which cannot overflow, sigmoid(|x|) is 1 / (1 + e)
and sigmoid(-|x|) is e / (1 + e), and log(1 + exp(x)) is max(x, 0) + log1p(e): every digit of the small side is kept,
which 1 - sigmoid(x) and x - log(sigmoid(x)) lose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._element_arguments import Options, activation_input, element_plan, sigmoid_plan
from ._element_calls import activation, loss, loss_and_gradient
from ._options import OP_BINARY_LOGITS, OP_BINARY_PROBS, OP_LOG_SIGMOID, OP_SIGMOID
from ._threads import checked_count

Array = NDArray[Any]


def binary_cross_entropy(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the cross-entropy of probabilities of one class each and targets from 0 to 1, element by element.

    .. math:: \ell = -y \max(\log p, -100) - (1 - y) \max(\log(1 - p), -100)

    Parameters
    ----------
    probs : array_like
        Probabilities p from 0 to 1, of any shape; float16, bfloat16, float32, float64, or
        integers (as float64). NaN gives NaN.
    targets : array_like
        Their targets y: real numbers or booleans of the same shape, taken in the precision of `probs`.
    sample_weight : array_like, optional
        Multiplies the loss of an element, and enters the divisor of a mean; broadcasts to the shape of the losses. An
        element of weight 0 is not valid.
    mask : array_like of bool or int, optional
        Which elements are valid (true, not 0); broadcasts likewise. An element that is not valid adds exactly 0 to
        value, divisor and gradient, whatever it holds.
    lengths : array_like of int, optional
        The number of valid times of each sequence: the last of two or more axes is time, so this has the shape of the
        other axes.
    reduction : {"mean", "sum", "none", "sequence_mean", "batch_mean"}
        As for `cross_entropy`: "mean" divides by the sum of `sample_weight`, or the number of valid elements.
    normalizer : float, optional
        The divisor for "sum" and "mean" in place of their own.
    empty_value : float, default NaN
        The value where a divisor is 0 (the gradient is 0 there).
    out : numpy.ndarray, optional
        Where to write the losses for "none": of exactly their shape and dtype.
    num_threads : int, optional
        The largest number of threads to use; by default `get_num_threads()`. It does not change the result.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        The value. For "none" an array of the shape of `probs`: float32 for float16, bfloat16 and float32, float64 for
        float64 and integers.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not named above.
    ValueError
        If the shapes differ, a valid probability is outside [0, 1], an argument has a wrong shape or value, or `out` is
        read-only or shares memory.

    Examples
    --------
    >>> import fastxent
    >>> round(float(fastxent.binary_cross_entropy([0.5, 1.0], [1, 1])), 6)  # (log 2 + 0) / 2
    0.346574
    >>> float(fastxent.binary_cross_entropy([1.0], [0]))  # not infinite: logarithms stop at -100
    100.0

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equation 4.90.
    .. [2] ``torch.nn.BCELoss``: the limits of the logarithms and of the denominator.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_BINARY_PROBS, ("probs", "targets"), probs, targets, options, False)
    return loss(plan)


def binary_cross_entropy_and_grad(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
    upstream: ArrayLike | None = None,
    out_grad: Array | None = None,
) -> tuple[Any, Array]:
    r"""Compute `binary_cross_entropy` and its gradient by the probabilities.

    .. math:: \partial \ell / \partial p = (p - y) / \max(p \, (1 - p), 10^{-12})

    Parameters
    ----------
    probs, targets, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `binary_cross_entropy`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each element.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `probs` or `targets` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `binary_cross_entropy`.
    grad : numpy.ndarray
        The gradient of the returned value by `probs` times `upstream`, of the shape and dtype of `probs` (float64
        for integers), exactly 0 where an element is not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `binary_cross_entropy`. Nothing has been written then.

    Examples
    --------
    >>> import fastxent
    >>> loss, grad = fastxent.binary_cross_entropy_and_grad([0.5, 0.25], [1, 0], reduction="sum")
    >>> grad.round(6)
    array([-2.      ,  1.333333])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_BINARY_PROBS, ("probs", "targets"), probs, targets, options, True)
    return loss_and_gradient(plan)


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the cross-entropy of sigmoid(logits) and targets from 0 to 1, element by element.

    .. math:: \ell = w \, y \, \log(1 + e^{-x}) + (1 - y) \, \log(1 + e^x)

    Parameters
    ----------
    logits : array_like
        Logits x of any shape; float16, bfloat16, float32, float64, or
        integers (as float64). Of any size: nothing overflows,
        and losses near 0 keep their digits.
    targets : array_like
        Their targets y: real numbers or booleans of the same shape, taken in the precision of `logits`. A factor y or
        1 - y of exactly 0 makes its term exactly 0.
    pos_weight : array_like, optional
        Multiplies the part of a target that is 1: w above. Broadcasts to the shape of `logits`.
    sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `binary_cross_entropy`.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        The value. For "none" an array of the shape of `logits`: float32 for float16, bfloat16 and float32, float64 for
        float64 and integers.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not named above.
    ValueError
        If the shapes differ, an argument has a wrong shape or value, or `out` is read-only or shares memory.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.binary_cross_entropy_with_logits([0.0, 1e4, -1e4], [1, 1, 1], reduction="none").round(6)
    array([6.93147e-01, 0.00000e+00, 1.00000e+04])

    References
    ----------
    .. [1] Bishop (2006), see `binary_cross_entropy`, equations 4.90 and 4.91.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_BINARY_LOGITS, ("logits", "targets"), logits, targets, options, False, pos_weight=pos_weight)
    return loss(plan)


def binary_cross_entropy_with_logits_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
    upstream: ArrayLike | None = None,
    out_grad: Array | None = None,
) -> tuple[Any, Array]:
    r"""Compute `binary_cross_entropy_with_logits` and its gradient by the logits.

    .. math:: \partial \ell / \partial x = (1 - y) \, \sigma(x) - w \, y \, \sigma(-x)

    Parameters
    ----------
    logits, targets, pos_weight, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `binary_cross_entropy_with_logits`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each element.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `logits` or `targets` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `binary_cross_entropy_with_logits`.
    grad : numpy.ndarray
        The gradient of the returned value by `logits` times `upstream`, of the shape and dtype of `logits` (float64
        for integers), exactly 0 where an element is not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `binary_cross_entropy_with_logits`. Nothing has been written then.

    Examples
    --------
    >>> import fastxent
    >>> loss, grad = fastxent.binary_cross_entropy_with_logits_and_grad([[0.0, 0.0]], [[1, 0]], reduction="sum")
    >>> grad
    array([[-0.5,  0.5]])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_BINARY_LOGITS, ("logits", "targets"), logits, targets, options, True, pos_weight=pos_weight)
    return loss_and_gradient(plan)


def sigmoid(x: ArrayLike, *, out: Array | None = None, num_threads: int | None = None) -> Any:
    r"""Compute the logistic function of each element.

    .. math:: \sigma(x) = 1 / (1 + e^{-x}), \qquad \sigma'(x) = \sigma(x) \, \sigma(-x)

    Parameters
    ----------
    x : array_like
        Of any shape; float16, bfloat16, float32, float64, or integers (as float64). Small results keep their digits.
    out : numpy.ndarray, optional
        Where to write the result: of its shape and dtype, perhaps `x` itself.
    num_threads : int, optional
        The largest number of threads to use; by default `get_num_threads()`.

    Returns
    -------
    numpy.ndarray or scalar
        The shape of `x`; its dtype (float64 for integers), rounded once. `out` if given.

    Raises
    ------
    TypeError
        If `x` has another dtype.
    ValueError
        If `out` does not fit, is read-only or overlaps.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.sigmoid([0.0, -1e4, 1e4])
    array([0.5, 0. , 1. ])

    References
    ----------
    .. [1] Bishop (2006), see `binary_cross_entropy`, equation 4.59.
    """
    result = activation(sigmoid_plan(OP_SIGMOID, x, out, num_threads))
    return result if out is not None else result[()]


def log_sigmoid(x: ArrayLike, *, out: Array | None = None, num_threads: int | None = None) -> Any:
    r"""Compute the logarithm of the logistic function of each element.

    .. math:: \log \sigma(x) = -\log(1 + e^{-x}), \qquad (\log \sigma)'(x) = \sigma(-x)

    Parameters
    ----------
    x, out, num_threads
        As for `sigmoid`.

    Returns
    -------
    numpy.ndarray or scalar
        As from `sigmoid`.

    Raises
    ------
    TypeError, ValueError
        As for `sigmoid`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.log_sigmoid([-1e4, 1e4])
    array([-10000.,      0.])

    References
    ----------
    .. [1] Bishop (2006), see `sigmoid`.
    """
    result = activation(sigmoid_plan(OP_LOG_SIGMOID, x, out, num_threads))
    return result if out is not None else result[()]


def tanh(x: ArrayLike, *, out: Array | None = None, num_threads: int | None = None) -> Any:
    r"""Compute the hyperbolic tangent of each element: NumPy's, with the dtypes of `sigmoid`.

    .. math:: \tanh x = 2 \, \sigma(2 x) - 1, \qquad \tanh'(x) = 1 - \tanh^2 x

    Parameters
    ----------
    x, out
        As for `sigmoid`.
    num_threads : int, optional
        For the sake of uniformity: NumPy uses one.

    Returns
    -------
    numpy.ndarray or scalar
        As from `sigmoid`.

    Raises
    ------
    TypeError, ValueError
        As for `sigmoid`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.tanh([0, 1]).round(6)
    array([0.      , 0.761594])

    References
    ----------
    .. [1] M. Abramowitz, I. A. Stegun, "Handbook of Mathematical Functions", National Bureau of Standards (1964), 4.5.
    """
    x, stored = activation_input(x, out)
    if num_threads is not None:
        checked_count(num_threads)
    return np.tanh(x.astype(stored, copy=False), out=out)
