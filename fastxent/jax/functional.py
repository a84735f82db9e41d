r"""The losses of fastxent.jax: judge the arguments, and call what JAX can transform.

Arrays may be traced; options are Python values, fixed when a function is traced. The formulas, and what counts, are
those of `fastxent`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from . import _arguments, _linear, _losses
from ._handler import Options

Array = Any  # jax.Array: what comes out of a traced call may be a tracer


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    lengths: Any = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: Any = None,
    empty_value: float = math.nan,
    num_threads: int | None = None,
    inplace_backward: bool = False,
) -> Array:
    r"""Compute the cross-entropy between softmax(logits) and targets, reduced over positions.

    .. math::
        \ell = -\sum_c w_c \, q_c \log p_c, \qquad
        p = \mathrm{softmax}(z), \qquad
        z = \mathrm{softcap} \, \tanh(\mathrm{logit\_scale} \, x / \mathrm{softcap})

    the loss of `fastxent.cross_entropy`, whose documentation defines the symbols and every option. The gradient by the
    logits comes from the same pass over them: p - 1 at the target and p elsewhere, for a class index without options.

    Parameters
    ----------
    logits : array_like
        One class axis of C classes; the other axes are positions, of which the last is time if there are two or more.
        float16, bfloat16, float32, float64 (with ``jax_enable_x64``), or integers (as JAX's default float).
    targets : array_like
        Class indices: integers of the positions' shape. Or class probabilities: floats of the logits' shape.
    axis : int, default -1
        The class axis.
    class_weight : array_like, optional
        Of shape (C,): w above.
    sample_weight, mask, lengths : array_like, optional
        Weights of positions; which of them count (bool or int); how many times of each sequence do. The first two
        broadcast to the positions' shape, `lengths` has it without time.
    ignore_index : int or None, default -100
        A position with this class index does not count.
    shift : int, default 0
        With k, targets, mask, lengths and weights are read at time t + k for the logits at time t.
    label_smoothing, z_loss, logit_scale, softcap : float
        As in `fastxent.cross_entropy`.
    reduction : {"mean", "sum", "none", "sequence_mean", "batch_mean"}
        Over the positions that count: not over axes that `jax.vmap` adds.
    normalizer : float or array_like without axes, optional
        The divisor for "sum" and "mean" in place of their own; it may be traced.
    empty_value : float, default NaN
        The value where a divisor is 0 (the gradient is 0 there).
    num_threads : int, optional
        The largest number of threads to use; by default what `fastxent.get_num_threads` says when this is traced.
    inplace_backward : bool, default False
        Let XLA put the gradient where the logits are. That saves an array of their size where nothing else needs them
        (an inner result, a donated argument); where something does, XLA copies them first.

    Returns
    -------
    jax.Array
        Without axes; for "none" of the positions' shape, 0 where a position does not count. float32, or float64 for
        float64 logits.

    Raises
    ------
    TypeError, ValueError
        If an argument has a dtype, shape or value that is not named above: when the call is traced.
    jax.errors.JaxRuntimeError
        If the class index of a position that counts is outside [0, C), or a length is out of range: when the compiled
        call runs. The message has position and value. Where JAX runs asynchronously, it is raised when the result is
        waited for.

    Notes
    -----
    Differentiable in either mode and to any order, by logits, class probabilities and weights. The first gradient by
    the logits is the engine's; the others are JAX's, of the formula. A gradient for ``reduction="none"`` takes one more
    pass, to multiply it by what comes in.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastxent.jax import cross_entropy
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> loss, grad = jax.jit(jax.value_and_grad(cross_entropy))(logits, jnp.array([0]))
    >>> round(float(loss), 4), grad.round(4).tolist()
    (0.6931, [[-0.5, 0.25, 0.25]])

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer (2006), equations 4.108 and 4.109.
    """
    return _loss(
        "cross_entropy", "logits", logits, targets, axis, class_weight, sample_weight, mask, lengths, normalizer,
        ignore_index=ignore_index, shift=shift, label_smoothing=label_smoothing, z_loss=z_loss,
        logit_scale=logit_scale, softcap=softcap, reduction=reduction, empty_value=empty_value,
        num_threads=num_threads, inplace=inplace_backward,
    )


def nll_loss(
    log_probs: Any,
    targets: Any,
    *,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    lengths: Any = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    reduction: str = "mean",
    normalizer: Any = None,
    empty_value: float = math.nan,
    num_threads: int | None = None,
    inplace_backward: bool = False,
) -> Array:
    r"""Compute the negative log-likelihood of log-probabilities, reduced over positions.

    .. math:: \ell = -w_t \, x_t, \qquad \ell = -\sum_c w_c \, q_c \, x_c

    for a class index t and for class probabilities q: `fastxent.nll_loss`.

    Parameters
    ----------
    log_probs : array_like
        As the logits of `cross_entropy`.
    targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, reduction, normalizer, \
    empty_value, num_threads, inplace_backward
        As for `cross_entropy`.

    Returns
    -------
    jax.Array
        As from `cross_entropy`.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As for `cross_entropy`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastxent.jax import nll_loss
    >>> round(float(nll_loss(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.array([1]))), 4)
    1.3863
    """
    return _loss(
        "nll_loss", "log_probs", log_probs, targets, axis, class_weight, sample_weight, mask, lengths, normalizer,
        ignore_index=ignore_index, shift=shift, reduction=reduction, empty_value=empty_value, num_threads=num_threads,
        inplace=inplace_backward,
    )


def linear_cross_entropy(
    hidden: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    lengths: Any = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: Any = None,
    empty_value: float = math.nan,
    num_threads: int | None = None,
    max_bytes: int = 256 << 20,
) -> Array:
    r"""Compute the cross-entropy of a linear layer, of which at most `max_bytes` of logits exist at a time.

    .. math:: x = \mathrm{hidden} \, \mathrm{weight}^T + \mathrm{bias}

    are the logits of `cross_entropy`. They are made in chunks of positions and become their own gradient in place;
    loss and gradients of a reduced loss come from one pass.

    Parameters
    ----------
    hidden : array_like
        The positions' shape + (D,).
    weight : array_like
        Of shape (V, D): a row for each class.
    targets : array_like
        Class indices: integers of the positions' shape.
    bias : array_like, optional
        Of shape (V,).
    class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, logit_scale, softcap, \
    reduction, normalizer, empty_value, num_threads
        As for `cross_entropy`.
    max_bytes : int, default 256 MiB
        The most memory for logits; at least those of one position are made. Under `jax.vmap` each call has as much.

    Returns
    -------
    jax.Array
        As from `cross_entropy`, computed in float32 unless an operand is float64.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As for `cross_entropy`. TypeError also for class probabilities, for a derivative by a weight of positions or
        classes, and for a second derivative.

    Notes
    -----
    Differentiable once by hidden, weight and bias; in reverse mode, and if reduced in forward mode. With
    ``reduction="none"`` the logits are made again on the way back.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from fastxent.jax import linear_cross_entropy
    >>> hidden, weight = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 2.0]])
    >>> jax.grad(linear_cross_entropy)(hidden, weight, jnp.array([0])).tolist()
    [[0.0, 0.5]]

    References
    ----------
    .. [1] P. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training" (2024), section 3.2.
    """
    operands, at = _arguments.operands(hidden, weight, bias, targets)
    hidden, weight, _ = operands
    positions = hidden.shape[:-1]
    stand_in = jax.ShapeDtypeStruct((*positions, weight.shape[0]), hidden.dtype)
    axis = len(positions)
    arrays = _arguments.arrays(stand_in, axis, at, class_weight, sample_weight, mask, lengths)
    options = _arguments.options(
        arrays.targets, axis, positions, ignore_index=ignore_index, shift=shift, label_smoothing=label_smoothing,
        z_loss=z_loss, logit_scale=logit_scale, softcap=softcap, reduction=reduction, normalizer=normalizer,
        empty_value=empty_value, num_threads=num_threads,
    )
    function = _linear.unreduced_of if options.reduction == "none" else _linear.reduced_of
    most = _arguments.whole(max_bytes, "max_bytes")
    if most < 1:
        raise ValueError(f"max_bytes must be at least 1, got {most}")
    return _divided(function(options, most, operands, arrays), normalizer, options)


def _loss(
    name: str, what: str, x: Any, targets: Any, axis: Any, class_weight: Any, sample_weight: Any, mask: Any,
    lengths: Any, normalizer: Any, **given: Any,
) -> Array:
    x = _arguments.scores(x, what)
    axis = _arguments.class_axis(axis, x.ndim, what)
    arrays = _arguments.arrays(x, axis, targets, class_weight, sample_weight, mask, lengths)
    positions = x.shape[:axis] + x.shape[axis + 1 :]
    options = _arguments.options(arrays.targets, axis, positions, normalizer=normalizer, **given)
    return _divided(_losses.loss_of(name, options, x, arrays), normalizer, options)


def _divided(value: Array, normalizer: Any, options: Options) -> Array:
    """The value, over a normalizer that the engine does not know: one in an array."""
    if not isinstance(normalizer, jax.Array):
        return value
    by = _arguments.scores(normalizer, "normalizer").astype(value.dtype)
    if by.ndim:
        raise ValueError(f"normalizer must be a single number, got an array of shape {by.shape}")
    return jnp.where(by != 0, value / jnp.where(by != 0, by, 1), options.empty_value)
