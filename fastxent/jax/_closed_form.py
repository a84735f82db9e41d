"""Losses in JAX's own operations, for JAX to differentiate: by targets, by weights, and more than once.

Never on the way of a value or of a first gradient by the logits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ._handler import Arrays, Options


def loss(name: str, options: Options, x: Any, arrays: Arrays) -> Any:
    """The value of a loss: what the handler computes."""
    losses, divisors = _losses(name, options, x, arrays)
    reduction = options.reduction
    if reduction == "none":
        return losses
    times = (-1,) if losses.ndim > 1 else ()
    if reduction == "sequence_mean":
        by = divisors.sum(times)
        counted = by != 0
        means = jnp.where(counted, losses.sum(times) / jnp.where(counted, by, 1), 0)
        total, by = means.sum(), counted.sum()
    else:
        total = losses.sum()
        sequences = losses[..., 0].size if losses.ndim > 1 and losses.shape[-1] else losses.size
        by = {"mean": divisors.sum(), "sum": options.normalizer, "batch_mean": sequences}[reduction]
    by = jnp.asarray(by, losses.dtype)
    return jnp.where(by != 0, total / jnp.where(by != 0, by, 1), options.empty_value).astype(losses.dtype)


def loss_and_grad(name: str, options: Options, x: Any, arrays: Arrays) -> tuple[Any, Any]:
    """The value and its gradient by the logits; for "none", of the sum of upstream * losses."""

    def total(x: Any) -> Any:
        value = loss(name, options, x, arrays)
        return (value if arrays.upstream is None else value * arrays.upstream).sum(), value

    grad, value = jax.grad(total, has_aux=True)(x)
    return value, grad


def valid_positions(options: Options, shape: tuple[int, ...], arrays: Arrays) -> Any:
    """Which positions count, as booleans of their shape."""
    targets, _, sample_weight, mask, lengths, _ = arrays
    valid = jnp.ones(shape, bool)
    if jnp.issubdtype(targets.dtype, jnp.integer) and options.ignore_index is not None:
        valid &= targets != jnp.array(options.ignore_index, targets.dtype)
    if mask is not None:
        valid &= mask
    if sample_weight is not None:
        valid &= sample_weight != 0
    if options.shift or lengths is not None:
        times = jnp.arange(shape[-1])
        end = shape[-1] if lengths is None else lengths[..., None]
        valid &= (times >= options.shift) & (times < end)
    return ahead(valid, options.shift)


def divisors(options: Options, shape: tuple[int, ...], arrays: Arrays, dtype: Any) -> Any:
    """What each position adds to the divisor of a mean."""
    targets, class_weight, sample_weight, *_ = arrays
    valid = valid_positions(options, shape, arrays)
    shares = valid.astype(dtype)
    if sample_weight is not None:
        shares *= jnp.where(valid, ahead(jnp.broadcast_to(sample_weight, shape), options.shift), 0).astype(dtype)
    if class_weight is not None and jnp.issubdtype(targets.dtype, jnp.integer):
        at = jnp.where(valid, ahead(targets, options.shift), 0)
        shares *= class_weight.astype(dtype)[at]
    return shares


def ahead(a: Any, shift: int) -> Any:
    """`a` read `shift` steps later; what comes after the end does not matter."""
    return jnp.roll(a, -shift, -1) if shift else a


def _losses(name: str, options: Options, x: Any, arrays: Arrays) -> tuple[Any, Any]:
    """The loss of each position, 0 where it does not count, and what it adds to the divisor."""
    targets, class_weight, sample_weight, *_ = arrays
    dtype = x.dtype if x.dtype == jnp.float64 else jnp.float32
    x = jnp.moveaxis(x, options.axis, -1)
    shape, classes = x.shape[:-1], x.shape[-1]
    valid = valid_positions(options, shape, arrays)
    x = jnp.where(valid[..., None], x, 0).astype(dtype)  # what does not count is not looked at: 0 * NaN is NaN
    if jnp.issubdtype(targets.dtype, jnp.integer):
        at = jnp.where(valid, ahead(targets, options.shift), 0)
        target = jax.nn.one_hot(at, classes, dtype=dtype)
    else:
        target = jnp.moveaxis(targets, options.axis, -1).astype(dtype)
        if options.shift:
            target = jnp.roll(target, -options.shift, -2)
        target = jnp.where(valid[..., None], target, 0)
    smoothing = options.label_smoothing
    coefficients = (1 - smoothing) * target + smoothing / classes
    if class_weight is not None:
        coefficients = coefficients * class_weight.astype(dtype)
    z = _capped(options, x) if name == "cross_entropy" else x
    scores = jax.nn.log_softmax(z, -1) if name == "cross_entropy" else x
    # A coefficient of 0 makes its term 0.
    scores = jnp.where((coefficients == 0) & ~jnp.isfinite(scores), 0, scores)
    losses = -(coefficients * scores).sum(-1)
    if options.z_loss:
        losses = losses + options.z_loss * jax.nn.logsumexp(z, -1) ** 2
    if sample_weight is not None:
        losses = losses * ahead(jnp.broadcast_to(sample_weight, shape), options.shift).astype(dtype)
    losses = jnp.where(valid, losses, 0)
    return losses, divisors(options, shape, arrays, dtype)


def _capped(options: Options, x: Any) -> Any:
    """The logits that the loss is of; -inf stays -inf."""
    scaled = options.logit_scale * x
    if not options.softcap:
        return scaled
    infinite = jnp.isinf(scaled)
    return jnp.where(infinite, scaled, options.softcap * jnp.tanh(jnp.where(infinite, 0, scaled) / options.softcap))
