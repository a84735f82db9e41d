r"""Squared and absolute differences, element by element, and the penalty on weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._coerce import finite_number
from ._element_arguments import Options, element_plan, square_plan
from ._element_calls import loss, loss_and_gradient
from ._options import OP_ABSOLUTE, OP_SQUARED

Array = NDArray[Any]


def mse_loss(
    input: ArrayLike,
    target: ArrayLike,
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
    r"""Compute the squared difference of each element, by default its mean.

    .. math:: \ell = (x - y)^2

    Parameters
    ----------
    input : array_like
        Predictions x of any shape; float16, bfloat16, float32, float64, or integers (as float64).
    target : array_like
        Their targets y: real numbers or booleans of the same shape, taken in the precision of `input`.
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
        The value. For "none" an array of the shape of `input`: float32 for float16, bfloat16 and float32, float64 for
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
    >>> float(fastxent.mse_loss([1.0, 2.0], [1.0, 5.0]))
    4.5

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), section 3.1.1.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_SQUARED, ("input", "target"), input, target, options, False)
    return loss(plan)


def mse_loss_and_grad(
    input: ArrayLike,
    target: ArrayLike,
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
    r"""Compute `mse_loss` and its gradient by the input.

    .. math:: \partial \ell / \partial x = 2 \, (x - y)

    Parameters
    ----------
    input, target, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `mse_loss`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each element.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `input` or `target` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `mse_loss`.
    grad : numpy.ndarray
        The gradient of the returned value by `input` times `upstream`, of the shape and dtype of `input` (float64
        for integers), exactly 0 where an element is not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `mse_loss`. Nothing has been written then.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.mse_loss_and_grad([1.0, 2.0], [1.0, 5.0])[1]
    array([ 0., -3.])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_SQUARED, ("input", "target"), input, target, options, True)
    return loss_and_gradient(plan)


def l1_loss(
    input: ArrayLike,
    target: ArrayLike,
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
    r"""Compute the absolute difference of each element, by default its mean.

    .. math:: \ell = |x - y|

    Parameters
    ----------
    input, target
        As for `mse_loss`.
    sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `mse_loss`.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        The value. For "none" an array of the shape of `input`: float32 for float16, bfloat16 and float32, float64 for
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
    >>> float(fastxent.l1_loss([1.0, 2.0], [1.0, 5.0]))
    1.5

    References
    ----------
    .. [1] P. J. Huber, "Robust Statistics", Wiley (1981), section 1.3.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_ABSOLUTE, ("input", "target"), input, target, options, False)
    return loss(plan)


def l1_loss_and_grad(
    input: ArrayLike,
    target: ArrayLike,
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
    r"""Compute `l1_loss` and its gradient by the input.

    .. math:: \partial \ell / \partial x = \mathrm{sign}(x - y), \qquad \mathrm{sign}(0) = 0

    Parameters
    ----------
    input, target, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `l1_loss`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each element.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `input` or `target` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `l1_loss`.
    grad : numpy.ndarray
        The gradient of the returned value by `input` times `upstream`, of the shape and dtype of `input` (float64
        for integers), exactly 0 where an element is not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `l1_loss`. Nothing has been written then.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.l1_loss_and_grad([1.0, 2.0], [1.0, 5.0])[1]
    array([ 0. , -0.5])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_ABSOLUTE, ("input", "target"), input, target, options, True)
    return loss_and_gradient(plan)


def l2_penalty(*arrays: ArrayLike, strength: float, num_threads: int | None = None) -> np.float64:
    r"""Compute the regularisation term of weights: their squares' sum, to be added to the loss of the data.

    .. math:: \ell = \lambda \sum_i x_i^2

    Parameters
    ----------
    *arrays : array_like
        The weights x, in any number of arrays of any shape; float16, bfloat16, float32, float64, or integers
        (as float64).
    strength : float
        The factor :math:`\lambda`. (Some texts halve it.)
    num_threads : int, optional
        The largest number of threads to use; by default `get_num_threads()`.

    Returns
    -------
    numpy.float64
        The term. 0 for no arrays.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If `strength` is not finite.

    Examples
    --------
    >>> import fastxent
    >>> float(fastxent.l2_penalty([1.0, 2.0], [[3.0]], strength=0.5))
    7.0

    References
    ----------
    .. [1] Bishop (2006), see `mse_loss`, equation 3.27.
    """
    factor = finite_number(strength, "strength")
    plans = [square_plan(OP_SQUARED, a, f"arrays[{i}]", factor, False, num_threads) for i, a in enumerate(arrays)]
    return np.float64(factor * sum(float(loss(plan)) for plan in plans))


def l2_penalty_and_grad(
    *arrays: ArrayLike, strength: float, num_threads: int | None = None
) -> tuple[np.float64, tuple[Array, ...]]:
    r"""Compute `l2_penalty` and its gradient by each array.

    .. math:: \partial \ell / \partial x_i = 2 \, \lambda \, x_i

    Parameters
    ----------
    *arrays, strength, num_threads
        As for `l2_penalty`.

    Returns
    -------
    loss : numpy.float64
        As from `l2_penalty`.
    grads : tuple of numpy.ndarray
        For each array the gradient, of its shape and dtype (float64 for integers).

    Raises
    ------
    TypeError, ValueError
        As for `l2_penalty`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.l2_penalty_and_grad([1.0, 2.0], strength=0.5)[1]
    (array([1., 2.]),)
    """
    factor = finite_number(strength, "strength")
    plans = [square_plan(OP_SQUARED, a, f"arrays[{i}]", factor, True, num_threads) for i, a in enumerate(arrays)]
    pairs = [loss_and_gradient(plan) for plan in plans]
    return np.float64(factor * sum(float(value) for value, _ in pairs)), tuple(grad for _, grad in pairs)
