"""The loss of a linear layer whose logits are never all in memory, by chunks of positions.

A chunk's logits are made by XLA, become their own gradient in the handler, and are multiplied on: three products a
chunk, in a ``lax.scan``, so that one chunk's logits live at a time. The loss and its gradients come from one pass, and
the derivative is the sum of gradients times tangents, as in `_losses.py`; a loss of every position has an upstream for
each, so its gradients wait for that, and make the logits again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from . import _closed_form, _handler, _losses
from ._handler import Arrays, Options

Operands = tuple[Any, Any, Any]  # hidden, weight, bias (or None)
Needed = tuple[bool, bool, bool]  # which of their gradients are wanted

_CONSTANT = (
    "linear_cross_entropy is differentiable by hidden, weight and bias; for the others, jax.lax.stop_gradient, or "
    "cross_entropy(hidden @ weight.T, ...)"
)
_ONCE = (
    "linear_cross_entropy has no second derivatives, which would need all logits; cross_entropy(hidden @ weight.T, "
    "...) has"
)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def reduced(options: Options, max_bytes: int, operands: Operands, arrays: Arrays) -> Any:
    """The value of a reduced loss."""
    return _value(options, max_bytes, (False, False, False), operands, arrays)[0]


@partial(reduced.defjvp, symbolic_zeros=True)
def _reduced_jvp(options: Options, max_bytes: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (operands, arrays), (dx, darrays) = primals, tangents
    if any(not isinstance(d, SymbolicZero) and d.dtype != jax.dtypes.float0 for d in darrays if d is not None):
        raise TypeError(_CONSTANT)
    needed = tuple(d is not None and not isinstance(d, SymbolicZero) for d in dx)
    value, grads = _value_once(options, max_bytes, needed, operands, arrays)
    tangent = jnp.zeros_like(value)
    for grad, d, need in zip(grads, dx, needed, strict=True):
        if need:
            tangent = tangent + (grad.astype(value.dtype) * d.astype(value.dtype)).sum()
    return value, tangent


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unreduced(options: Options, max_bytes: int, operands: Operands, arrays: Arrays) -> Any:
    """The loss of every position."""
    return _losses_and_grads(options, max_bytes, (False, False, False), operands, arrays, None)[0]


def _unreduced_forward(options: Options, max_bytes: int, operands: Any, arrays: Any) -> tuple[Any, Any]:
    if any(a.perturbed for a in arrays if a is not None):
        raise TypeError(_CONSTANT)
    needed = tuple(a is not None and a.perturbed for a in operands)
    operands = tuple(a if a is None else a.value for a in operands)
    arrays = Arrays(*(a if a is None else a.value for a in arrays))
    return unreduced(options, max_bytes, operands, arrays), (_Static(needed), operands, arrays)


def _unreduced_backward(options: Options, max_bytes: int, saved: Any, upstream: Any) -> tuple[Any, Any]:
    needed, operands, arrays = saved
    _, grads = _losses_and_grads_once(options, max_bytes, needed.value, operands, arrays, upstream)
    by = tuple(None if g is None else g.astype(a.dtype) for g, a in zip(grads, operands, strict=True))
    return by, Arrays(*(None if a is None else _no_tangent(a) for a in arrays))


unreduced.defvjp(_unreduced_forward, _unreduced_backward, symbolic_zeros=True)


@jax.tree_util.register_static
class _Static:
    """A value that is no array, on its way from the forward pass to the backward one."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def _no_tangent(a: Any) -> Any:
    """What a backward pass returns for an array that is held constant."""
    floating = jnp.issubdtype(a.dtype, jnp.floating)
    return jnp.zeros_like(a) if floating else np.zeros(a.shape, jax.dtypes.float0)


# --- value and gradients; these know no second derivatives


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _value_once(options: Options, max_bytes: int, needed: Needed, operands: Operands, arrays: Arrays) -> Any:
    return _value(options, max_bytes, needed, operands, arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _losses_and_grads_once(
    options: Options, max_bytes: int, needed: Needed, operands: Operands, arrays: Arrays, upstream: Any
) -> Any:
    return _losses_and_grads(options, max_bytes, needed, operands, arrays, upstream)


@_value_once.defjvp
def _refuse_value(*_: Any) -> Any:
    raise TypeError(_ONCE)


@_losses_and_grads_once.defjvp
def _refuse_losses(*_: Any) -> Any:
    raise TypeError(_ONCE)


def _value(options: Options, max_bytes: int, needed: Needed, operands: Operands, arrays: Arrays) -> Any:
    """The value of a reduced loss, and its gradients."""
    hidden, weight, _ = operands
    wide = _computed(operands)
    positions = hidden.shape[:-1]
    if 0 in positions:
        some = options.reduction == "sum" or (options.reduction == "batch_mean" and positions[0] and len(positions) > 1)
        return jnp.asarray(0 if some else options.empty_value, wide), _no_grads(needed, operands)
    divisors = _divisors(options, positions, weight.shape[0], arrays, wide)
    sequences = divisors.reshape(-1, positions[-1]) if len(positions) > 1 else divisors.reshape(-1, 1)
    by: Any
    if options.reduction == "sequence_mean":
        by = sequences.sum(1, keepdims=True)
        by = jnp.broadcast_to(by * (by != 0).sum(), sequences.shape).reshape(positions)
    elif options.reduction == "batch_mean":
        by = len(sequences)
    else:
        by = divisors.sum() if options.reduction == "mean" else options.normalizer
    by = jnp.broadcast_to(jnp.asarray(by, wide), positions)
    counted = by != 0
    shares = jnp.where(counted, 1 / jnp.where(counted, by, 1), 0)
    unweighted = options._replace(reduction="none")
    losses, grads = _losses_and_grads(unweighted, max_bytes, needed, operands, arrays, shares, counted)
    total = jnp.where(counted, losses * shares, 0).sum()
    return jnp.where(counted.any(), total, options.empty_value), grads


def _no_grads(needed: Needed, operands: Operands) -> Any:
    """The gradients where there is no position."""
    wide = _computed(operands)
    return tuple(jnp.zeros(a.shape, _kept(a, wide)) if n else None for n, a in zip(needed, operands, strict=True))


def _divisors(options: Options, positions: tuple[int, ...], classes: int, arrays: Arrays, wide: Any) -> Any:
    """What each position adds to the divisor; and class indices are checked, all of them, before the first chunk.

    The negative log-likelihood of probabilities that are all exp(-1) is just that.
    """
    ones = jnp.full((*(1 for _ in positions), classes), -1, wide)
    alone = options._replace(
        axis=len(positions), reduction="none", label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=0.0
    )
    return _handler.call("nll_loss", alone, jax.ShapeDtypeStruct(positions, wide), ones, arrays)


def _losses_and_grads(
    options: Options, max_bytes: int, needed: Needed, operands: Operands, arrays: Arrays, upstream: Any,
    counted: Any = None,
) -> Any:
    """The losses of all positions, and the gradients of the sum of upstream * losses that are needed (or None)."""
    hidden, weight, bias = operands
    wide = _computed(operands)
    positions, classes = hidden.shape[:-1], weight.shape[0]
    if 0 in positions:
        return jnp.zeros(positions, wide), _no_grads(needed, operands)
    if counted is None:
        _divisors(options, positions, classes, arrays, wide)
    valid = _closed_form.valid_positions(options, positions, arrays)
    valid = valid if counted is None else valid & counted
    count = valid.size
    rows, chunks = _rows(count, classes * wide.itemsize, max_bytes)

    def spread(a: Any) -> Any:
        """An array of the positions, by chunks; the last is filled up with positions that do not count."""
        flat = jnp.broadcast_to(a, positions + a.shape[len(positions) :]).reshape(count, *a.shape[len(positions) :])
        padded = jnp.pad(flat, [(0, rows * chunks - count)] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(chunks, rows, *flat.shape[1:])

    ahead = partial(_closed_form.ahead, shift=options.shift)
    sample = arrays.sample_weight
    sample = None if sample is None else spread(ahead(jnp.broadcast_to(sample, positions)))
    hidden = jnp.where(valid[..., None], hidden, 0)  # what does not count is not looked at: 0 * NaN is NaN
    by_position = (spread(hidden), spread(ahead(arrays.targets)), sample, spread(valid),
                   None if upstream is None else spread(upstream.astype(wide)))
    alone = options._replace(axis=1, reduction="none", ignore_index=None, shift=0, inplace=True)
    wide_weight, wide_bias = weight.astype(wide), None if bias is None else bias.astype(wide)

    def chunk(totals: Any, given: Any) -> Any:
        h, targets, sample, valid, up = given
        h = h.astype(wide)
        logits = h @ wide_weight.T
        if wide_bias is not None:
            logits = logits + wide_bias
        of_chunk = Arrays(targets, arrays.class_weight, sample, valid, None, up if any(needed) else None)
        losses = jax.ShapeDtypeStruct((rows,), wide)
        if not any(needed):
            return totals, (_handler.call("cross_entropy", alone, losses, logits, of_chunk), None)
        results = losses, jax.ShapeDtypeStruct(logits.shape, wide)
        losses, grad = _handler.call("cross_entropy_and_grad", alone, results, logits, of_chunk)
        by_weight, by_bias = totals
        by_hidden = (grad @ wide_weight).astype(_kept(hidden, wide)) if needed[0] else None
        by_weight = by_weight + grad.T @ h if needed[1] else None
        by_bias = by_bias + grad.sum(0) if needed[2] else None
        return (by_weight, by_bias), (losses, by_hidden)

    zeros = (
        jnp.zeros(weight.shape, wide) if needed[1] else None,
        jnp.zeros((classes,), wide) if needed[2] else None,
    )
    (by_weight, by_bias), (losses, by_hidden) = lax.scan(chunk, zeros, by_position)
    losses = losses.reshape(-1)[:count].reshape(positions)
    return losses, (
        None if by_hidden is None else by_hidden.reshape(rows * chunks, -1)[:count].reshape(hidden.shape),
        None if by_weight is None else by_weight.astype(_kept(weight, wide)),
        None if by_bias is None else by_bias.astype(_kept(bias, wide)),
    )


def _computed(operands: Operands) -> Any:
    return _losses.computed(jnp.result_type(*(a for a in operands if a is not None)))


def _kept(operand: Any, wide: Any) -> Any:
    """The dtype of a gradient until it is scaled: in float16 a small one would be lost before."""
    return wide if operand.dtype == jnp.float16 else operand.dtype


def _rows(count: int, row_bytes: int, max_bytes: int) -> tuple[int, int]:
    """How many positions a chunk has, and how many chunks there are."""
    chunks = max(1, -(-count // max(1, max_bytes // max(1, row_bytes))))
    return -(-count // chunks), chunks


reduced_of, unreduced_of = (jax.jit(f, static_argnums=(0, 1)) for f in (reduced, unreduced))
