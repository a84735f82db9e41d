r"""Losses of differences that are squared near 0 and absolute far from it, so that outliers weigh less."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from ._element_arguments import Options, checked_beta, checked_delta, element_plan
from ._element_calls import loss, loss_and_gradient
from ._options import OP_HUBER, OP_SMOOTH_L1

Array = NDArray[Any]


def huber_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    delta: float = 1.0,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute Huber's loss of each element: squared for small differences, absolute for large ones.

    .. math::
        \ell = \tfrac{1}{2} d^2 \text{ if } |d| < \delta \text{ else } \delta \, (|d| - \delta / 2), \qquad d = x - y

    Parameters
    ----------
    input, target
        As for `mse_loss`.
    delta : float, default 1.0
        Where the two meet; greater than 0.
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
    >>> fastxent.huber_loss([0.5, 3.0], [0.0, 0.0], reduction="none")
    array([0.125, 2.5  ])

    References
    ----------
    .. [1] P. J. Huber, "Robust Estimation of a Location Parameter", Ann. Math. Statist. 35 (1964), 73-101.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_HUBER, ("input", "target"), input, target, options, False, parameter=checked_delta(delta))
    return loss(plan)


def huber_loss_and_grad(
    input: ArrayLike,
    target: ArrayLike,
    *,
    delta: float = 1.0,
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
    r"""Compute `huber_loss` and its gradient by the input.

    .. math:: \partial \ell / \partial x = \min(\max(d, -\delta), \delta)

    Parameters
    ----------
    input, target, delta, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `huber_loss`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each element.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `input` or `target` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `huber_loss`.
    grad : numpy.ndarray
        The gradient of the returned value by `input` times `upstream`, of the shape and dtype of `input` (float64
        for integers), exactly 0 where an element is not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `huber_loss`. Nothing has been written then.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.huber_loss_and_grad([0.5, 3.0], [0.0, 0.0], delta=2.0, reduction="sum")[1]
    array([0.5, 2. ])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_HUBER, ("input", "target"), input, target, options, True, parameter=checked_delta(delta))
    return loss_and_gradient(plan)


def smooth_l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    beta: float = 1.0,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the absolute difference of each element, made smooth at 0: `huber_loss` divided by its width.

    .. math:: \ell = d^2 / (2 \beta) \text{ if } |d| < \beta \text{ else } |d| - \beta / 2, \qquad d = x - y

    Parameters
    ----------
    input, target
        As for `mse_loss`.
    beta : float, default 1.0
        The width of the smooth part; 0 (then this is `l1_loss`) or more.
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
    >>> fastxent.smooth_l1_loss([0.5, 3.0], [0.0, 0.0], beta=2.0, reduction="none")
    array([0.0625, 2.    ])

    References
    ----------
    .. [1] R. Girshick, "Fast R-CNN", ICCV (2015), equation 3.
    """
    options = Options(sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads)
    plan = element_plan(OP_SMOOTH_L1, ("input", "target"), input, target, options, False, parameter=checked_beta(beta))
    return loss(plan)


def smooth_l1_loss_and_grad(
    input: ArrayLike,
    target: ArrayLike,
    *,
    beta: float = 1.0,
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
    r"""Compute `smooth_l1_loss` and its gradient by the input.

    .. math:: \partial \ell / \partial x = \min(\max(d / \beta, -1), 1)

    Parameters
    ----------
    input, target, beta, sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads
        As for `smooth_l1_loss`.
    upstream : float or array_like, optional
        Multiplies the gradient: a number; for "none" a number or one for each element.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `input` or `target` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `smooth_l1_loss`.
    grad : numpy.ndarray
        The gradient of the returned value by `input` times `upstream`, of the shape and dtype of `input` (float64
        for integers), exactly 0 where an element is not valid. `out_grad` if given.

    Raises
    ------
    TypeError, ValueError
        As for `smooth_l1_loss`. Nothing has been written then.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.smooth_l1_loss_and_grad([0.5, 3.0], [0.0, 0.0], beta=2.0, reduction="sum")[1]
    array([0.25, 1.  ])
    """
    options = Options(
        sample_weight, mask, lengths, reduction, normalizer, empty_value, out, num_threads, upstream, out_grad
    )
    plan = element_plan(OP_SMOOTH_L1, ("input", "target"), input, target, options, True, parameter=checked_beta(beta))
    return loss_and_gradient(plan)
