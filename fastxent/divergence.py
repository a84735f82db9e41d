r"""Losses of whole rows of classes beside cross-entropy: the divergence of two rows of logits, and focal loss."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from . import _backends, _calls, _element_calls
from ._arguments import Plan, loss_plan
from ._element_arguments import Options, element_plan, focal_arguments
from ._options import OP_DIVERGENCE, OP_LOSS, OP_LOSS_GRAD

Array = NDArray[Any]
_NAMES = ("logits", "target_logits")


def kl_div(
    logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the Kullback-Leibler divergence of softmax(target_logits) from softmax(logits).

    .. math::
        \ell = \sum_c p_c \, (\log p_c - \log q_c), \qquad
        q = \mathrm{softmax}(\mathrm{logits}), \quad p = \mathrm{softmax}(\mathrm{target\_logits})

    The prediction comes first, as in torch and optax. A class of p = 0 adds exactly 0. The sum is taken of
    :math:`p_c (\log p_c - \log q_c) - p_c + q_c`, which is never negative: divergences near 0 keep their digits.

    Parameters
    ----------
    logits : array_like
        One class axis; the other axes are positions, as for `cross_entropy`. float16, bfloat16, float32, float64, or
        integers (as float64).
    target_logits : array_like
        Real numbers of the same shape, taken in the precision of `logits`.
    axis : int, default -1
        The class axis.
    sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `cross_entropy`; "mean" divides by the sum of `sample_weight`, or the number of valid positions.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        The value. For "none" an array of the positions' shape: float32 for float16, bfloat16 and float32 logits,
        float64 for float64 and integers. NaN where a row holds NaN or +inf, or nothing but -inf.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not named above.
    ValueError
        If the shapes differ, an argument has a wrong shape or value, or `out` is read-only or shares memory.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> round(float(fastxent.kl_div(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]))), 6)
    0.130812
    >>> float(fastxent.kl_div([[1.0, 2.0]], [[7.0, 8.0]]))  # a constant added to a row changes nothing
    0.0

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On Information and Sufficiency", Ann. Math. Statist. 22 (1951), 79-86.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_DIVERGENCE, _NAMES, logits, target_logits, options, False, axis=axis)
    return _element_calls.loss(plan)


def kl_div_and_grad(
    logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    axis: int = -1,
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
    r"""Compute `kl_div` and its gradient by the logits.

    .. math:: \partial \ell / \partial \mathrm{logits}_c = q_c - p_c

    Parameters
    ----------
    logits, target_logits, axis, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `kl_div`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each position.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `logits` or `target_logits` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `kl_div`.
    grad : numpy.ndarray
        The gradient of the returned value times `upstream`, of the shape and dtype of the logits (float64 for
        integers), exactly 0 at positions that are not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `kl_div`. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> fastxent.kl_div_and_grad(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]))[1].round(6)
    array([[ 0.25, -0.25]])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_DIVERGENCE, _NAMES, logits, target_logits, options, True, axis=axis)
    return _element_calls.loss_and_gradient(plan)


def focal_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: ArrayLike | None = None,
    axis: int = -1,
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
    r"""Compute focal loss: cross-entropy that counts a position the less, the surer its target is.

    .. math:: \ell = -\alpha_t \, (1 - p_t)^\gamma \log p_t, \qquad p = \mathrm{softmax}(\mathrm{logits})

    For one class that is true or not, give logits of two classes, 0 and x.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    targets : array_like of int
        Class indices t, of the positions' shape.
    gamma : float, default 2.0
        The exponent, 0 (cross-entropy) or more.
    alpha : float or array_like, optional
        The weight of each class: of shape (C,), or one number for all. It leaves the divisor of a mean alone.
    axis, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, empty_value, out, num_threads
        As for `cross_entropy`; "mean" divides by the sum of `sample_weight`, or the number of valid positions.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        As from `cross_entropy`.

    Raises
    ------
    IndexError
        If the class index of a valid position is outside [0, C); the message has its position and value.
    TypeError, ValueError
        As for `cross_entropy`; TypeError for targets other than integers.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> round(float(fastxent.focal_loss(np.log([[0.5, 0.5]]), [0])), 6)  # log(2) / 4
    0.173287

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV (2017), equation 5.
    """
    plan, call = _focal(
        OP_LOSS, logits, targets, gamma, alpha, axis, sample_weight, mask, lengths, ignore_index, shift, reduction,
        normalizer, empty_value, out, num_threads,
    )
    return _calls.loss(plan, out is not None, call)


def focal_loss_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: ArrayLike | None = None,
    axis: int = -1,
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
    r"""Compute `focal_loss` and its gradient by the logits, reading them from memory once.

    .. math::
        \partial \ell / \partial \mathrm{logits}_c = \alpha_t \, (p_c - [c = t]) \, (1 - p_t)^\gamma
        \left(1 - \gamma \, \frac{p_t \log p_t}{1 - p_t}\right)

    Parameters
    ----------
    logits, targets, gamma, alpha, axis, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, \
    empty_value, out, num_threads
        As for `focal_loss`.
    upstream, out_grad
        As for `cross_entropy_and_grad`.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `focal_loss`.
    grad : numpy.ndarray
        The gradient of the returned value times `upstream`, as from `cross_entropy_and_grad`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `focal_loss`. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> loss, grad = fastxent.focal_loss_and_grad(np.log([[0.5, 0.5]]), [0])
    >>> grad.round(6)
    array([[-0.298287,  0.298287]])
    """
    plan, call = _focal(
        OP_LOSS_GRAD, logits, targets, gamma, alpha, axis, sample_weight, mask, lengths, ignore_index, shift, reduction,
        normalizer, empty_value, out, num_threads, upstream, out_grad,
    )
    return _calls.loss_and_gradient(plan, call)


def _focal(
    operation: int, logits: Any, targets: Any, gamma: Any, alpha: Any, axis: Any, sample_weight: Any, mask: Any,
    lengths: Any, ignore_index: Any, shift: Any, reduction: Any, normalizer: Any, empty_value: Any, out: Any,
    num_threads: Any, upstream: Any = None, out_grad: Any = None,
) -> tuple[Plan, Any]:
    """Cross-entropy's plan with the weights of the classes, and its call made focal."""
    plan = loss_plan(
        operation, logits, targets, axis, None, sample_weight, mask, lengths, ignore_index, shift, 0.0, 0.0, 1.0, None,
        reduction, normalizer, empty_value, num_threads, out, False, upstream, None, out_grad,
    )
    if plan.targets.dtype.kind not in "iu":
        raise TypeError(f"targets have dtype {plan.targets.dtype}; expected integers: focal loss is of class indices")
    gamma, weights = focal_arguments(gamma, alpha, plan.logits.shape[plan.axis])
    plan = plan._replace(class_weight=weights)
    call = _backends.open_call(plan)
    call.focus(gamma)
    return plan, call
