"""Losses that JAX can differentiate, in either mode and to any order.

The rule is a ``custom_jvp``: the derivative of a loss is the sum of gradient times tangent, and the handler makes value
and gradient in one pass. JAX transposes that to upstream * gradient. So a gradient, and no logits, lives from the
forward pass to the backward one, and where the upstream is the constant 1 of ``jax.grad`` there is nothing to do there.

Whatever else is differentiated (class probabilities, weights, the gradient itself) comes from `_closed_form.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from . import _closed_form, _handler
from ._handler import Arrays, Options


def computed(dtype: Any) -> Any:
    """The dtype of losses of logits of `dtype`."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _result(options: Options, x: Any) -> Any:
    positions = x.shape[: options.axis] + x.shape[options.axis + 1 :]
    return jax.ShapeDtypeStruct(positions if options.reduction == "none" else (), computed(x.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def loss(name: str, options: Options, x: Any, arrays: Arrays) -> Any:
    """The value of a loss."""
    return _handler.call(name, options, _result(options, x), x, arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def loss_and_grad(name: str, options: Options, x: Any, arrays: Arrays) -> tuple[Any, Any]:
    """The value and its gradient by the logits; for "none", of the sum of upstream * losses."""
    results = _result(options, x), jax.ShapeDtypeStruct(x.shape, x.dtype)
    value, grad = _handler.call(f"{name}_and_grad", options, results, x, arrays)
    return value, grad


@partial(loss.defjvp, symbolic_zeros=True)
def _loss_jvp(name: str, options: Options, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, arrays), (dx, darrays) = primals, tangents
    if isinstance(dx, SymbolicZero):
        value = loss(name, options, x, arrays)
        tangent = jnp.zeros_like(value)
    else:
        if x.dtype == jnp.float16:  # a gradient too small for it may still be scaled on the way back
            x, dx = x.astype(jnp.float32), dx.astype(jnp.float32)
        value, grad = loss_and_grad(name, options, x, arrays)
        products = grad.astype(value.dtype) * dx.astype(value.dtype)
        tangent = products.sum(options.axis if options.reduction == "none" else None)
    others, dothers = _perturbed(arrays, darrays)
    if others:
        rest = partial(_of_others, _closed_form.loss, name, options, x, arrays)
        tangent = tangent + jax.jvp(rest, (others,), (dothers,))[1]
    return value, tangent


@partial(loss_and_grad.defjvp, symbolic_zeros=True)
def _loss_and_grad_jvp(name: str, options: Options, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, arrays), (dx, darrays) = primals, tangents
    others, dothers = _perturbed(arrays, darrays)
    dx = jnp.zeros_like(x) if isinstance(dx, SymbolicZero) else dx

    def form(x: Any, others: Any) -> Any:
        return _of_others(_closed_form.loss_and_grad, name, options, x, arrays, others)

    return loss_and_grad(name, options, x, arrays), jax.jvp(form, (x, others), (dx, dothers))[1]


def _perturbed(arrays: Arrays, darrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the arrays that have a tangent, and the tangents."""
    tangents = {
        field: tangent
        for field, tangent in darrays._asdict().items()
        if tangent is not None and not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0
    }
    return {field: getattr(arrays, field) for field in tangents}, tangents


def _of_others(form: Any, name: str, options: Options, x: Any, arrays: Arrays, others: dict[str, Any]) -> Any:
    return form(name, options, x, arrays._replace(**others))


# --- activations: their derivatives need nothing that JAX has not


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_softmax(options: Options, x: Any) -> Any:
    """The logarithms of the probabilities."""
    if not x.size:
        return x
    return _handler.call("log_softmax", options, jax.ShapeDtypeStruct(x.shape, x.dtype), x, Arrays())


@log_softmax.defjvp
def _log_softmax_jvp(options: Options, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    y = log_softmax(options, x)
    wide = computed(x.dtype)
    tangent, probabilities = dx.astype(wide), jnp.exp(y.astype(wide))
    return y, (tangent - (probabilities * tangent).sum(options.axis, keepdims=True)).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def softmax(options: Options, x: Any) -> Any:
    """The probabilities."""
    if not x.size:
        return x
    return _handler.call("softmax", options, jax.ShapeDtypeStruct(x.shape, x.dtype), x, Arrays())


@softmax.defjvp
def _softmax_jvp(options: Options, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    y = softmax(options, x)
    wide = computed(x.dtype)
    tangent, p = dx.astype(wide), y.astype(wide)
    return y, (p * (tangent - (p * tangent).sum(options.axis, keepdims=True))).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def logsumexp(options: Options, x: Any) -> Any:
    """The logarithm of the sum of exponentials, without the class axis."""
    result = _result(options, x)
    if not x.size:
        return jnp.full(result.shape, -jnp.inf, result.dtype)
    return _handler.call("logsumexp", options, result, x, Arrays())


@logsumexp.defjvp
def _logsumexp_jvp(options: Options, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    y = logsumexp(options, x)
    p = softmax(options, x.astype(y.dtype))  # not exp(x - y): y has been rounded
    p = jnp.where(jnp.expand_dims(y == -jnp.inf, options.axis), 0, p)
    return y, (p * dx.astype(y.dtype)).sum(options.axis)


def _compiled(function: Any, *static: int) -> Any:
    """Compiled once for each shape, so that a call that is not traced costs one dispatch."""
    return jax.jit(function, static_argnums=static)


loss_of = _compiled(loss, 0, 1)
log_softmax_of, softmax_of, logsumexp_of = (_compiled(f, 0) for f in (log_softmax, softmax, logsumexp))
