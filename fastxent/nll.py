r"""Losses of what is normalised already: log-probabilities (`nll_loss`) and probabilities.

Nothing is summed over the classes here, so only the classes with a target weight other than 0 are read.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from ._arguments import loss_plan
from ._calls import loss, loss_and_gradient
from ._options import OP_NLL, OP_NLL_GRAD, OP_PROBS, OP_PROBS_GRAD

Array = NDArray[Any]

_PLAIN = (0.0, 0.0, 1.0, None)  # no label smoothing, z-loss, scale or soft cap


def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the negative log-likelihood of targets under given log-probabilities.

    .. math:: \ell = -\sum_c w_c \, q_c \, x_c

    where x are the log-probabilities and w is `class_weight` (1 without); for a class index t,
    :math:`\ell = -w_t x_t`. A coefficient of exactly 0 makes its term exactly 0.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities, shaped and stored like the logits of `cross_entropy`. They are taken as they are: nothing
        is normalised.
    targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, \
    empty_value, out, num_threads
        As for `cross_entropy`.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        As from `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import fastxent
    >>> float(fastxent.nll_loss([[-1.0, -0.5], [-2.0, -0.25]], [0, 1]))
    0.625

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equation 4.108.
    """
    plan = loss_plan(
        OP_NLL, log_probs, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        *_PLAIN, reduction, normalizer, empty_value, num_threads, out,
    )
    return loss(plan, out is not None)


def nll_loss_and_grad(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
    upstream: ArrayLike | None = None,
    out_grad: Array | None = None,
) -> tuple[Any, Array]:
    r"""Compute `nll_loss` and its gradient by the log-probabilities.

    .. math:: \partial \ell / \partial x_c = -w_c \, q_c

    Parameters
    ----------
    log_probs, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, \
    empty_value, out, num_threads
        As for `nll_loss`.
    upstream, out_grad
        As for `cross_entropy_and_grad`.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `nll_loss`.
    grad : numpy.ndarray
        Of the shape and dtype of the log-probabilities (float64 for integers). `out_grad` if given.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy_and_grad`.

    Examples
    --------
    >>> import fastxent
    >>> loss, grad = fastxent.nll_loss_and_grad([[-1.0, -0.5], [-2.0, -0.25]], [0, 1])
    >>> grad + 0.0
    array([[-0.5,  0. ],
           [ 0. , -0.5]])
    """
    return loss_and_gradient(loss_plan(
        OP_NLL_GRAD, log_probs, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        *_PLAIN, reduction, normalizer, empty_value, num_threads, out, False, upstream, None, out_grad,
    ))


def cross_entropy_from_probs(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the cross-entropy of targets under given probabilities.

    .. math:: \ell = -\sum_c w_c \, q_c \log p_c

    where w is `class_weight` (1 without); for a class index t, :math:`\ell = -w_t \log p_t`. Where logits are at hand,
    `cross_entropy` is more accurate: a probability near 1 has lost what its loss is made of.

    Parameters
    ----------
    probs : array_like
        Probabilities, shaped and stored like the logits of `cross_entropy`. They are taken as they are: nothing is
        normalised or clipped, and a target of probability 0 has the loss +inf.
    targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, \
    empty_value, out, num_threads
        As for `cross_entropy`.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        As from `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import fastxent
    >>> round(float(fastxent.cross_entropy_from_probs([[0.5, 0.5], [0.25, 0.75]], [0, 0])), 6)
    1.039721

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equation 4.108.
    """
    plan = loss_plan(
        OP_PROBS, probs, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        *_PLAIN, reduction, normalizer, empty_value, num_threads, out,
    )
    return loss(plan, out is not None)


def cross_entropy_from_probs_and_grad(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
    upstream: ArrayLike | None = None,
    out_grad: Array | None = None,
) -> tuple[Any, Array]:
    r"""Compute `cross_entropy_from_probs` and its gradient by the probabilities.

    .. math:: \partial \ell / \partial p_c = -w_c \, q_c / p_c

    Parameters
    ----------
    probs, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, \
    empty_value, out, num_threads
        As for `cross_entropy_from_probs`.
    upstream, out_grad
        As for `cross_entropy_and_grad`.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `cross_entropy_from_probs`.
    grad : numpy.ndarray
        Of the shape and dtype of the probabilities (float64 for integers). `out_grad` if given.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy_and_grad`.

    Examples
    --------
    >>> import fastxent
    >>> loss, grad = fastxent.cross_entropy_from_probs_and_grad([[0.5, 0.5]], [0])
    >>> grad + 0.0
    array([[-2.,  0.]])
    """
    return loss_and_gradient(loss_plan(
        OP_PROBS_GRAD, probs, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        *_PLAIN, reduction, normalizer, empty_value, num_threads, out, False, upstream, None, out_grad,
    ))
