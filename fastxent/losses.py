r"""Cross-entropy of logits: the value, its gradient, both, or the value with the softmax.

The loss of a position with target t is (m - z_t) + log1p(s), where m is the largest logit and s the sum of exp(z - m)
over the other classes. The usual m + log(1 + s) - z_t loses every digit of a loss near 0; this form keeps them.

Each function has its arguments checked and planned (`_arguments.py`), runs the plan (`_calls.py`) and returns. Of the
commonest call there is nothing to judge: the engine recognises it and does it without a plan (`_backends.plain`). The
parameters that all of them share are explained once, at `cross_entropy`.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from . import _backends, _threads
from ._arguments import loss_plan
from ._calls import gradient, loss, loss_and_gradient
from ._options import OP_GRAD, OP_LOSS, OP_LOSS_GRAD, OP_LOSS_SOFTMAX

Array = NDArray[Any]


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    return_saved: bool = False,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Compute the cross-entropy between softmax(logits) and targets, reduced over positions.

    .. math::
        \ell = -\sum_c w_c \, q_c \log p_c, \qquad
        p = \mathrm{softmax}(z), \qquad
        z = \mathrm{softcap} \, \tanh(\mathrm{logit\_scale} \, x / \mathrm{softcap})

    where w is `class_weight` (1 without). For a class index t, q is :math:`1 - \varepsilon` at t, and the loss is
    :math:`\ell = -(1 - \varepsilon) \, w_t \log p_t - (\varepsilon / C) \sum_c w_c \log p_c` with
    :math:`\varepsilon` = `label_smoothing`. For class probabilities q', q is
    :math:`(1 - \varepsilon) \, q' + \varepsilon / C`. A coefficient :math:`w_c q_c` of exactly 0 makes its term
    exactly 0, so a class of logit -inf may have target 0.

    Parameters
    ----------
    logits : array_like
        One class axis of C classes; the other axes are positions. With two or more position axes the last is time,
        and one index of the others is a sequence; a single position axis is the batch. float16, bfloat16 (of
        ml_dtypes), float32, float64, or integers (as float64); any strides and byte order. Anything that
        ``numpy.asarray`` or ``numpy.from_dlpack`` takes, in the memory of the CPU.
    targets : array_like
        Class indices: integers of the positions' shape. Or class probabilities, which need not sum to 1: floats of
        the logits' shape.
    axis : int, default -1
        The class axis.
    class_weight : array_like, optional
        Of shape (C,): w above.
    sample_weight : array_like, optional
        Multiplies the loss of a position, and enters the divisor of a mean; broadcasts to the positions' shape. A
        position of weight 0 is not valid.
    mask : array_like of bool or int, optional
        Which positions are valid (true, not 0); broadcasts to the positions' shape. A position that is not valid adds
        exactly 0 to value, divisor and gradient, whatever its logits and target hold, and costs next to no time.
    lengths : array_like of int, optional
        The number of valid times of each sequence, from 0 to the length of time: the positions' shape without time.
    ignore_index : int or None, default -100
        A position with this class index is not valid. Compared as a number: no unsigned target is ever -100.
    shift : int, default 0
        With k, what describes a target (targets, mask, lengths, sample_weight) is read at time t + k for the logits
        at time t: 1 is next-token prediction. The last k times are not valid.
    label_smoothing : float, default 0.0
        From 0 to 1: the part of the target that is spread over all classes alike.
    z_loss : float, default 0.0
        Adds `z_loss` * logsumexp(z)**2 to the loss of a position; 0 or more.
    logit_scale : float, default 1.0
        Multiplies the logits (the inverse of a temperature); greater than 0.
    softcap : float, optional
        Bounds the logits smoothly, as above; greater than 0. -inf stays -inf.
    reduction : {"mean", "sum", "none", "sequence_mean", "batch_mean"}
        Over valid positions. "none": the losses, 0 where not valid. "sum": their sum. "mean": the sum divided by the
        sum of sample_weight * w_t (class probabilities: of sample_weight). "sequence_mean": the mean of the means of
        the sequences that have a divisor other than 0. "batch_mean": the sum divided by the number of all sequences.
    normalizer : float, optional
        The divisor for "sum" and "mean" in place of their own, such as a token count over several batches.
    empty_value : float, default NaN
        The value where a divisor is 0 (the gradient is 0 there).
    return_saved : bool, default False
        Whether to return the statistics that spare `cross_entropy_grad` one pass over the logits.
    out : numpy.ndarray, optional
        Where to write the losses for "none": of exactly their shape and dtype.
    num_threads : int, optional
        The largest number of threads to use; by default `get_num_threads()`. It does not change the result.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        The value. For "none" an array of the positions' shape: float32 for float16, bfloat16 and float32 logits,
        float64 for float64 and integers.
    saved : numpy.ndarray
        With `return_saved` only: of the positions' shape + (2,) and the dtype of the losses for "none", the largest z
        of each position and the sum of exp(z - max) without one maximum.

    Raises
    ------
    IndexError
        If the class index of a valid position is outside [0, C); the message has its position and value.
    TypeError
        If an argument has a type or dtype that is not named above, or an array cannot be read from here (a GPU tensor,
        ``requires_grad``, a torch tensor of bfloat16).
    ValueError
        If an argument has a wrong shape or value (`numpy.exceptions.AxisError` for `axis`), or `out` is read-only or
        shares memory with an input.

    See Also
    --------
    cross_entropy_and_grad, cross_entropy_grad, cross_entropy_and_softmax

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    >>> round(float(fastxent.cross_entropy(logits, [0, 1])), 6)  # -(log 0.5 + log 0.8) / 2
    0.458145
    >>> fastxent.cross_entropy(logits, [0, -100], reduction="none").round(6)
    array([0.693147, 0.      ])

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equation 4.108.
    .. [2] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7: label
       smoothing.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways" (2022), section 5: z-loss.
    .. [4] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024), section 2: soft-capping.
    """
    given = (
        OP_LOSS, logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, empty_value, num_threads, out,
        return_saved,
    )
    value = _backends.plain(given, _threads.count)
    if value is not None:
        return value
    plan = loss_plan(*given)
    value = loss(plan, out is not None)
    return (value, plan.saved_out) if return_saved else value


def cross_entropy_and_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
    upstream: ArrayLike | None = None,
    out_grad: Array | None = None,
) -> tuple[Any, Array]:
    r"""Compute `cross_entropy` and its gradient by the logits together, reading them from memory once.

    .. math:: \partial \ell / \partial z = W p - c, \qquad c_c = w_c \, q_c, \qquad W = \sum_c c_c

    with the symbols of `cross_entropy`; for a class index without options that is p - 1 at the target and p elsewhere.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, \
    logit_scale, softcap, reduction, normalizer, empty_value, out, num_threads
        As for `cross_entropy`.
    upstream : float or array_like, optional
        Multiplies the gradient: what the result of this call counts in what is differentiated. A number; for "none"
        a number or one for each position, the gradient then being that of the sum of upstream * losses.
    out_grad : numpy.ndarray, optional
        Where to write the gradient: of exactly its shape and dtype, perhaps `logits` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `cross_entropy`.
    grad : numpy.ndarray
        The gradient of the returned value times `upstream`, of the shape and dtype of the logits (float64 for
        integers), exactly 0 at positions that are not valid. `out_grad` if given.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`. Nothing has been written then, into `out`, `out_grad` or the logits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> logits = np.log([[0.5, 0.25, 0.25]])
    >>> loss, grad = fastxent.cross_entropy_and_grad(logits, [0])
    >>> round(float(loss), 6), grad.round(6)
    (0.693147, array([[-0.5 ,  0.25,  0.25]]))

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equation 4.109.
    """
    given = (
        OP_LOSS_GRAD, logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, empty_value, num_threads, out, False,
        upstream, None, out_grad,
    )
    return _backends.plain(given, _threads.count) or loss_and_gradient(loss_plan(*given))


def cross_entropy_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    num_threads: int | None = None,
    upstream: ArrayLike | None = None,
    saved: ArrayLike | None = None,
    out_grad: Array | None = None,
) -> Array:
    """Compute the gradient of `cross_entropy` by the logits, perhaps from statistics saved in the forward pass.

    The equation is that of `cross_entropy_and_grad`.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, \
    logit_scale, softcap, reduction, normalizer, num_threads
        As for `cross_entropy`.
    upstream, out_grad
        As for `cross_entropy_and_grad`.
    saved : numpy.ndarray, optional
        What ``cross_entropy(..., return_saved=True)`` returned for the same logits and options: then the logits are
        read once, not twice. (With class probabilities, or a `logit_scale` without `softcap`, it is not looked at.)

    Returns
    -------
    numpy.ndarray
        The gradient, as from `cross_entropy_and_grad`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy_and_grad`; ValueError if `saved` has another shape or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> logits = np.log([[0.5, 0.25, 0.25]])
    >>> loss, saved = fastxent.cross_entropy(logits, [0], return_saved=True)
    >>> fastxent.cross_entropy_grad(logits, [0], saved=saved).round(6)
    array([[-0.5 ,  0.25,  0.25]])
    """
    return gradient(loss_plan(
        OP_GRAD, logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, 0.0, num_threads, None, False,
        upstream, saved, out_grad,
    ))


def cross_entropy_and_softmax(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    out: Array | None = None,
    num_threads: int | None = None,
    out_softmax: Array | None = None,
) -> tuple[Any, Array]:
    r"""Compute `cross_entropy` and the probabilities it is made of, reading the logits from memory once.

    .. math:: p_c = \exp(z_c) / \sum_k \exp(z_k)

    with z of `cross_entropy`, that is, after `logit_scale` and `softcap`.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, \
    logit_scale, softcap, reduction, normalizer, empty_value, out, num_threads
        As for `cross_entropy`.
    out_softmax : numpy.ndarray, optional
        Where to write the probabilities: of exactly their shape and dtype, perhaps `logits` itself.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `cross_entropy`.
    softmax : numpy.ndarray
        Of the shape and dtype of the logits (float64 for integers), 0 at positions that are not valid. `out_softmax`
        if given.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> loss, softmax = fastxent.cross_entropy_and_softmax(np.log([[1.0, 3.0]]), [1])
    >>> softmax.round(6)
    array([[0.25, 0.75]])
    """
    plan = loss_plan(
        OP_LOSS_SOFTMAX, logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, empty_value, num_threads, out, False,
        None, None, out_softmax,
    )
    value = loss(plan, out is not None or out_softmax is not None)
    return value, plan.output
