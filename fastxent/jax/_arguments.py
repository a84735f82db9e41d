"""Arguments are judged here, when a call is traced: shapes, dtypes and options. Values are for the handler to judge."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

import fastxent

from ._handler import REDUCTIONS, Arrays, Options

FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def scores(value: Any, name: str) -> Any:
    """Logits or the like as an array of a floating-point dtype."""
    x = jnp.asarray(value)
    if x.dtype.kind in "iu":
        return x.astype(jnp.result_type(float))
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}; expected float16, bfloat16, float32, float64 or integers")
    return x


def class_axis(axis: Any, ndim: int, name: str) -> int:
    """The class axis, counted from the first."""
    number = whole(axis, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis {number} is out of bounds for {name} of {ndim} dimensions")
    return number % ndim


def options(
    targets: Any,
    axis: int,
    positions: tuple[int, ...],
    *,
    ignore_index: Any,
    shift: Any,
    reduction: Any,
    normalizer: Any,
    empty_value: Any,
    num_threads: Any,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    logit_scale: Any = 1.0,
    softcap: Any = None,
    inplace: bool = False,
) -> Options:
    """The options of a loss."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
    if normalizer is not None and reduction not in ("sum", "mean"):
        raise ValueError('normalizer is for reduction="sum" or "mean" only')
    smoothing = number(label_smoothing, "label_smoothing")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {smoothing}")
    if not 0 <= (z := number(z_loss, "z_loss")) < math.inf:
        raise ValueError(f"z_loss must be finite and at least 0, got {z}")
    scale, cap = number(logit_scale, "logit_scale"), 0.0 if softcap is None else number(softcap, "softcap")
    for name, value in ("logit_scale", scale), ("softcap", 1.0 if softcap is None else cap):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and greater than 0, got {value}")
    steps = whole(shift, "shift")
    if steps < 0:
        raise ValueError(f"shift must be at least 0, got {steps}")
    if steps and len(positions) < 2:
        raise ValueError(f"shift needs a batch axis and a time axis, but the positions' shape is {positions}")
    if ignore_index is not None:
        ignore_index = whole(ignore_index, "ignore_index")
        limits = jnp.iinfo(targets.dtype) if targets.dtype.kind in "iu" else None
        if limits is None or not limits.min <= ignore_index <= limits.max:
            ignore_index = None
    divisor = 1.0
    if normalizer is not None:
        reduction = "sum"
        if not isinstance(normalizer, jax.Array):
            divisor = number(normalizer, "normalizer")
    return Options(
        axis, reduction, ignore_index, min(steps, positions[-1]) if steps else 0, smoothing, z, scale, cap, divisor,
        _nan_of_one_kind(number(empty_value, "empty_value")), threads(num_threads), bool(inplace),
    )


def arrays(x: Any, axis: int, targets: Any, class_weight: Any, sample_weight: Any, mask: Any, lengths: Any) -> Arrays:
    """The arrays that describe a target, with all axes of the positions."""
    positions = x.shape[:axis] + x.shape[axis + 1 :]
    targets = jnp.asarray(targets)
    if targets.dtype.kind in "iu":
        if targets.shape != positions:
            hint = "; class probabilities are floats (jax.nn.one_hot makes them)" if targets.shape == x.shape else ""
            raise ValueError(
                f"targets must have the logits' shape without the class axis, {positions}; got {_describe(targets)}"
                + hint
            )
    elif targets.dtype not in FLOATS:
        raise TypeError(f"targets have dtype {targets.dtype}; expected integers or floating-point probabilities")
    elif targets.shape != x.shape:
        raise ValueError(
            "targets of a floating-point dtype are class probabilities and must have the logits' shape "
            f"{x.shape}; got {_describe(targets)} (class indices are integers of shape {positions})"
        )
    if not x.shape[axis] and 0 not in positions:
        raise ValueError(f"logits of shape {x.shape} have no classes (axis {axis})")
    if class_weight is not None:
        class_weight = scores(class_weight, "class_weight")
        if class_weight.shape != (x.shape[axis],):
            raise ValueError(f"class_weight must have shape ({x.shape[axis]},); got {_describe(class_weight)}")
    if sample_weight is not None:
        sample_weight = _of_positions(scores(sample_weight, "sample_weight"), "sample_weight", positions)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype.kind not in "biu":
            raise TypeError(
                f"mask has dtype {mask.dtype}; expected booleans or integers; weights of positions are sample_weight"
            )
        mask = _of_positions(mask != 0, "mask", positions)
    if lengths is not None:
        lengths = jnp.asarray(lengths)
        if len(positions) < 2:
            raise ValueError(
                f"lengths needs a batch axis and a time axis, but the positions' shape is {positions}: add a batch axis"
            )
        if lengths.dtype.kind not in "iu":
            raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers")
        if lengths.shape != positions[:-1]:
            raise ValueError(f"lengths must have shape {positions[:-1]}; got {_describe(lengths)}")
    return Arrays(targets, class_weight, sample_weight, mask, lengths)


def operands(hidden: Any, weight: Any, bias: Any, targets: Any) -> tuple[tuple[Any, Any, Any], Any]:
    """Hidden states, weight and bias of a linear layer, and the class indices."""
    hidden, weight = scores(hidden, "hidden"), scores(weight, "weight")
    if hidden.ndim == 0:
        raise ValueError("hidden must have at least one axis, the features; got a single number")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (V, {hidden.shape[-1]}): classes by hidden's features; got {_describe(weight)}"
        )
    if bias is not None:
        bias = scores(bias, "bias")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape {weight.shape[:1]}; got {_describe(bias)}")
    targets = jnp.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(
            f"targets have dtype {targets.dtype}; expected integers: class probabilities are as large as the logits, "
            "for them use cross_entropy(hidden @ weight.T, ...)"
        )
    return (hidden, weight, bias), targets


def number(value: Any, name: str) -> float:
    """A number that is known when the call is traced."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got a bool")
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be a Python number, known when the function is traced, got a traced array")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def whole(value: Any, name: str) -> int:
    """A whole number that is known when the call is traced."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be a Python integer, known when the function is traced, got a traced array")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def threads(num_threads: Any) -> int:
    """The largest number of threads of a call."""
    if num_threads is None:
        return fastxent.get_num_threads()
    count = whole(num_threads, "num_threads")
    if count < 1:
        raise ValueError(f"num_threads must be at least 1, got {count}")
    return min(count, 1024)


def _of_positions(array: Any, name: str, positions: tuple[int, ...]) -> Any:
    """The array with an axis for each of the positions', of their length or of length 1."""
    shape = (1,) * (len(positions) - array.ndim) + array.shape
    if len(shape) != len(positions) or any(a not in (1, n) for a, n in zip(shape, positions, strict=True)):
        raise ValueError(f"{name} must broadcast to the positions' shape {positions}, got {_describe(array)}")
    return array.reshape(shape)


def _nan_of_one_kind(value: float) -> float:
    """NaN as one object, equal to itself in the key of a compiled function."""
    return math.nan if math.isnan(value) else value


def _describe(array: Any) -> str:
    return f"{array.dtype.name} of shape {array.shape}"
