"""Judging the arguments of the linear losses: `_arguments.py` for logits that are never formed.

What describes positions (targets, masks, lengths, weights, reductions) is judged by `loss_plan` itself, with a stand-in
for the logits: one zero, broadcast. What comes out is a `Linear`: the operands, and of each valid position its place,
class index and weight, so that nothing after this looks at an invalid one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._arguments import Plan, class_index_error, loss_plan
from ._coerce import (
    FLOAT32,
    FLOAT64,
    INT64,
    LOGIT_DTYPES,
    as_array,
    describe,
    finite_number,
    logit_dtypes,
    whole_number,
)
from ._options import OP_LOSS
from ._outputs import check_outputs

Array = NDArray[Any]
Progress = Callable[[int, int], object]

DEFAULT_BYTES = 256 << 20


class Linear(NamedTuple):
    """One checked call."""

    hidden: Array  # positions' shape + (D,), as given
    weight: Array  # (V, D), as given
    bias: Any  # (V,), as given, or None
    computed: np.dtype[Any]  # float32 or float64
    plan: Plan  # of the positions; its logits are a stand-in
    rows: NDArray[np.int64]  # the valid positions, counted in C order
    targets: NDArray[np.int64]  # their class indices
    sample: Any  # their sample weights, float64, or None
    max_bytes: int
    progress: Progress | None


class Outputs(NamedTuple):
    """Where gradients go: arrays of the caller's or new ones, and whether they are added to."""

    hidden: Array
    weight: Array
    bias: Any
    add: tuple[bool, bool, bool]


def linear_plan(
    hidden: Any, weight: Any, targets: Any, bias: Any, class_weight: Any, sample_weight: Any, mask: Any, lengths: Any,
    ignore_index: Any, shift: Any, label_smoothing: Any, z_loss: Any, logit_scale: Any, softcap: Any, reduction: Any,
    normalizer: Any, empty_value: Any, num_threads: Any, max_bytes: Any, progress: Any, out: Any = None,
    upstream: Any = None,
) -> Linear:
    """Judge everything but the arrays that gradients are written to."""
    hidden, weight = as_array(hidden, "hidden"), as_array(weight, "weight")
    computed = [(LOGIT_DTYPES.get(a.dtype) or logit_dtypes(a.dtype, n))[0] for a, n in _named(hidden, weight)]
    if hidden.ndim == 0:
        raise ValueError("hidden must have at least one axis, the features; got a single number")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (V, {hidden.shape[-1]}): classes by hidden's features; got {describe(weight)}"
        )
    classes, positions = weight.shape[0], hidden.shape[:-1]
    if bias is not None:
        bias = as_array(bias, "bias")
        computed.append((LOGIT_DTYPES.get(bias.dtype) or logit_dtypes(bias.dtype, "bias"))[0])
        if bias.shape != (classes,):
            raise ValueError(f"bias must have shape ({classes},), one for each class; got {describe(bias)}")
    kind = FLOAT64 if FLOAT64 in computed else FLOAT32
    targets = _class_indices(targets, positions)
    stand_in = np.broadcast_to(np.zeros((), kind), (*positions, classes))
    plan = loss_plan(
        OP_LOSS, stand_in, targets, -1, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, empty_value, num_threads, out, False,
        upstream,
    )
    max_bytes = whole_number(max_bytes, "max_bytes", lowest=1)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got {progress!r} of type {type(progress).__name__}")
    if out is not None:
        check_outputs((("out", out, positions, kind),), _inputs(hidden, weight, bias, plan), "")
    rows, found, sample = _valid_positions(plan)
    return Linear(hidden, weight, bias, kind, plan, rows, found, sample, max_bytes, progress)


def _named(hidden: Array, weight: Array) -> tuple[tuple[Array, str], ...]:
    return (hidden, "hidden"), (weight, "weight")


def _class_indices(targets: Any, positions: tuple[int, ...]) -> Array:
    targets = as_array(targets, "targets", empty=INT64)
    if targets.dtype.kind not in "iu":
        hint = ""
        if targets.dtype.kind in "fV":
            hint = "; class probabilities are as large as the logits: for them use cross_entropy(hidden @ weight.T, …)"
        raise TypeError(f"targets have dtype {targets.dtype}; expected integers (class indices){hint}")
    if targets.shape != positions:
        raise ValueError(
            f"targets must have hidden's shape without its last axis, {positions}; got {describe(targets)}"
        )
    found: Array = targets
    return found


def checked_filter(value: Any) -> float:
    """gradient_filter: a probability."""
    number = finite_number(value, "gradient_filter")
    if not 0.0 <= number < 1.0:
        raise ValueError(f"gradient_filter must be from 0 to below 1, got {number}")
    return number


def gradient_outputs(linear: Linear, hidden: Any, weight: Any, bias: Any, accumulate: Any) -> Outputs:
    """Judge the caller's arrays for gradients; new arrays for those not given."""
    if accumulate is not True and accumulate is not False:
        raise TypeError(f"accumulate must be True or False, got {accumulate!r}")
    if accumulate and hidden is None and weight is None and bias is None:
        raise ValueError(
            "accumulate=True adds to out_hidden_grad, out_weight_grad and out_bias_grad, and none of them is given"
        )
    if bias is not None and linear.bias is None:
        raise ValueError("out_bias_grad is given, but no bias")
    operands = (linear.hidden, linear.weight, linear.bias)
    given = (hidden, weight, bias)
    names = ("out_hidden_grad", "out_weight_grad", "out_bias_grad")
    outputs = [("out", linear.plan.losses, linear.plan.targets.shape, linear.computed)]
    results: list[Any] = []
    for name, array, operand in zip(names, given, operands, strict=True):
        if operand is None:
            results.append(None)
            continue
        stored = LOGIT_DTYPES[operand.dtype][1]
        if array is not None:
            outputs.append((name, array, operand.shape, stored))
        results.append(np.empty_like(operand, stored, "K", False) if array is None else array)
    check_outputs(outputs, _inputs(*operands, linear.plan), "")
    add = (accumulate and hidden is not None, accumulate and weight is not None, accumulate and bias is not None)
    return Outputs(results[0], results[1], results[2], add)


def _inputs(hidden: Array, weight: Array, bias: Any, plan: Plan) -> tuple[tuple[str, Any], ...]:
    return (
        ("hidden", hidden), ("weight", weight), ("bias", bias), ("targets", plan.targets), ("mask", plan.mask),
        ("class_weight", plan.class_weight), ("sample_weight", plan.sample_weight), ("upstream", plan.upstream),
    )


def _valid_positions(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64], Any]:
    """The valid positions, their class indices and sample weights; IndexError for an index outside the classes."""
    targets, shift, classes = plan.targets, plan.shift, plan.logits.shape[-1]
    positions = targets.shape
    valid = np.ones(positions, bool) if plan.mask is None else plan.mask.copy()
    if plan.lengths is not None:
        valid &= np.arange(positions[-1]) < plan.lengths.reshape(positions[:-1])[..., None]
    if plan.sample_weight is not None:
        valid &= plan.sample_weight != 0
    if plan.ignore_index is not None:
        valid &= targets != plan.ignore_index
    if shift:
        valid[..., :shift] = False
    described = np.flatnonzero(valid)
    indices = targets.reshape(-1)[described]
    rows = described - shift
    outside = (indices < 0) | (indices >= classes)
    if outside.any():
        raise class_index_error(plan, int(rows[outside.argmax()]))
    sample = plan.sample_weight
    if sample is not None:
        sample = np.ascontiguousarray(np.broadcast_to(sample, positions)).reshape(-1)[described]
    return rows, indices.astype(INT64), sample
