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
from jax import lax
from jax.custom_derivatives import SymbolicZero

from . import _closed_form, _handler, _losses
from ._handler import Arrays, Options

Operands = tuple[Any, Any, Any]  # hidden, weight, bias (or None)

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
    return _value(options, max_bytes, operands, arrays, (False, False, False))[0]


@partial(reduced.defjvp, symbolic_zeros=True)
def _reduced_jvp(options: Options, max_bytes: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (operands, arrays), (dx, darrays) = primals, tangents
    _refuse_others(arrays, darrays)
    needed = tuple(d is not None and not isinstance(d, SymbolicZero) for d in dx)
    value, grads = _value_once(options, max_bytes, needed, operands, arrays)
    parts = [(g.astype(value.dtype) * d.astype(value.dtype)).sum() for g, d in zip(grads, _kept(dx, needed), strict=True)]
    return value, sum(parts, jnp.zeros_like(value))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unreduced(options: Options, max_bytes: int, operands: Operands, arrays: Arrays) -> Any:
    """The loss of every position."""
    return _losses_and_grads(options, max_bytes, operands, arrays, None, (False, False, False))[0]


def _unreduced_forward(options: Options, max_bytes: int, operands: Any, arrays: Any) -> tuple[Any, Any]:
    leaves = jax.tree.leaves(arrays, is_leaf=lambda a: hasattr(a, "perturbed"))
    if any(a.perturbed for a in leaves):
        raise TypeError(_CONSTANT)
    needed = tuple(a is not None and a.perturbed for a in operands)
    operands = tuple(a if a is None else a.value for a in operands)
    arrays = jax.tree.map(lambda a: a.value, arrays, is_leaf=lambda a: hasattr(a, "perturbed"))
    return unreduced(options, max_bytes, operands, arrays), (needed, operands, arrays)


def _unreduced_backward(options: Options, max_bytes: int, saved: Any, upstream: Any) -> tuple[Any, Any]:
    needed, operands, arrays = saved
    if isinstance(upstream, SymbolicZero):
        upstream = jnp.zeros(upstream.shape, upstream.dtype)
    _, grads = _grads_once(options, max_bytes, needed, operands, arrays, upstream)
    found = iter(grads)
    by = tuple(next(found) if need else _zero(a) for a, need in zip(operands, needed, strict=True))
    return by, jax.tree.map(_zero, arrays)
