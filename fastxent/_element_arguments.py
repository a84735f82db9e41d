"""Arguments of the losses without classes, and of the divergence of two rows of logits, become an `ElementPlan`.

The sibling of `_arguments.py`, with the same rules. Here every element of the input is a position, and the last of two
or more axes is time; for the divergence the positions are the axes without the class axis, as in cross-entropy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._arguments import (
    _checked_axis,
    _checked_normalizer,
    _reduction_error,
    _sequences,
    _thread_count,
)
from ._coerce import (
    LOGIT_DTYPES,
    as_array,
    as_float64,
    describe,
    finite_number,
    is_float,
    is_index,
    logit_dtypes,
    real_number,
)
from ._options import OP_DIVERGENCE, REDUCTION_NONE, REDUCTION_SEQUENCE_MEAN, REDUCTION_SUM, REDUCTIONS
from ._outputs import check_outputs
from ._targets import checked_lengths, checked_mask, checked_upstream, checked_weight

Array = NDArray[Any]
MaybeArray = Any  # an array or None


class ElementPlan(NamedTuple):
    """One checked call. The compiled backend unpacks it by position; a test compares the order of the fields."""

    operation: int
    input: Array  # as given: any strides, byte order, alignment and dtype of LOGIT_DTYPES
    axis: int  # the class axis of input, target and output; -1: none
    target: MaybeArray  # of the input's shape, real; None: 0
    sample_weight: MaybeArray  # float64, a view of the positions' shape
    mask: MaybeArray  # bool, a view of the positions' shape
    lengths: MaybeArray  # int64 (sequences,), contiguous
    upstream: MaybeArray  # float64 of the positions' shape
    positive_weight: MaybeArray  # float64, a view of the positions' shape
    parameter: float  # delta or beta
    losses: MaybeArray  # written: per position
    output: MaybeArray  # written: the gradient, or an activation
    sequence_length: int
    per_sequence: bool
    num_threads: int
    # The backends do not look at what follows.
    reduction: int
    normalizer: float | None
    empty_value: float
    scale: float  # of the gradient: a scalar upstream
    n_sequences: int
    given: bool  # whether losses or output are the caller's arrays


class Options(NamedTuple):
    """What all these losses have in common, as the caller gave it."""

    sample_weight: Any
    mask: Any
    lengths: Any
    reduction: Any
    normalizer: Any
    empty_value: Any
    out: Any
    num_threads: Any
    upstream: Any = None
    out_grad: Any = None


def element_plan(
    operation: int,
    names: tuple[str, str],
    given: Any,
    target: Any,
    options: Options,
    with_grad: bool,
    *,
    parameter: float = 0.0,
    pos_weight: Any = None,
    axis: Any = None,
) -> ElementPlan:
    """The plan of a loss of `given` and `target`, which error messages call by `names`."""
    x = as_array(given, names[0])
    computed, stored = LOGIT_DTYPES.get(x.dtype) or logit_dtypes(x.dtype, names[0])
    y = _checked_target(target, names, x.shape)
    positions, class_axis = x.shape, -1
    if operation == OP_DIVERGENCE:
        class_axis, positions = _checked_axis(axis, x.shape)
        if not x.shape[class_axis] and 0 not in positions:
            raise ValueError(f"{names[0]} of shape {x.shape} have no classes (axis {class_axis})")
    weight, mask, lengths = options.sample_weight, options.mask, options.lengths
    if weight is not None:
        weight = checked_weight(weight, "sample_weight", positions)
    if mask is not None:
        mask = checked_mask(mask, positions)
    if lengths is not None:
        lengths = checked_lengths(lengths, positions)
    if pos_weight is not None:
        pos_weight = checked_weight(pos_weight, "pos_weight", positions)
    if not isinstance(options.reduction, str) or options.reduction not in REDUCTIONS:
        raise _reduction_error(options.reduction)
    code = REDUCTIONS[options.reduction]
    n_sequences, sequence_length = _sequences(positions)
    normalizer = _checked_normalizer(options.normalizer, code, n_sequences)
    upstream, scale = None, 1.0
    if options.upstream is not None:
        upstream, scale = checked_upstream(options.upstream, positions, code == REDUCTION_NONE)
    losses, output = options.out, options.out_grad
    if losses is not None or output is not None:
        if losses is not None and code != REDUCTION_NONE:
            raise ValueError('out is for reduction="none" only; any other reduction returns a number')
        read = ((names[0], x), (names[1], y), ("sample_weight", weight), ("mask", mask), ("lengths", lengths),
                ("upstream", upstream), ("pos_weight", pos_weight))
        check_outputs(
            (("out", losses, positions, computed), ("out_grad", output, x.shape, stored)), read, " ".join(names)
        )
    if losses is None and code == REDUCTION_NONE:
        losses = np.empty(positions, computed) if class_axis >= 0 else np.empty_like(x, computed, "K", False)
    if output is None and with_grad:
        output = np.empty_like(x, stored, "K", False)
    return ElementPlan(
        operation, x, class_axis, y, weight, mask, lengths, upstream, pos_weight, parameter, losses, output,
        sequence_length, code == REDUCTION_SEQUENCE_MEAN, _thread_count(options.num_threads),
        code, normalizer, real_number(options.empty_value, "empty_value"), scale, n_sequences,
        options.out is not None or options.out_grad is not None,
    )


def square_plan(operation: int, values: Any, name: str, strength: float, with_grad: bool, threads: Any) -> ElementPlan:
    """The plan of the sum of squares of one array, with the gradient of `strength` times that sum."""
    x = as_array(values, name)
    _, stored = LOGIT_DTYPES.get(x.dtype) or logit_dtypes(x.dtype, name)
    output = np.empty_like(x, stored, "K", False) if with_grad else None
    return _plain_plan(operation, x, None, output, threads, strength)


def sigmoid_plan(operation: int, x: Any, out: Any, threads: Any) -> ElementPlan:
    """The plan of an activation of single elements."""
    x, stored = activation_input(x, out)
    return _plain_plan(operation, x, None, np.empty_like(x, stored, "K", False) if out is None else out, threads)


def activation_input(x: Any, out: Any) -> tuple[Array, np.dtype[Any]]:
    """The array, and the dtype of a result of its shape; `out`, if given, is such an array."""
    x = as_array(x, "x")
    _, stored = LOGIT_DTYPES.get(x.dtype) or logit_dtypes(x.dtype, "x")
    if out is not None:
        check_outputs((("out", out, x.shape, stored),), (("x", x),), "x")
    return x, stored


def _plain_plan(
    operation: int, x: Array, target: MaybeArray, output: MaybeArray, threads: Any, scale: float = 1.0
) -> ElementPlan:
    return ElementPlan(
        operation, x, -1, target, None, None, None, None, None, 0.0, None, output, 1, False, _thread_count(threads),
        REDUCTION_SUM, 1.0, math.nan, scale, 0, False,
    )


def _checked_target(target: Any, names: tuple[str, str], shape: tuple[int, ...]) -> Array:
    """Real numbers of the input's shape; booleans as 0 and 1."""
    y = as_array(target, names[1])
    if y.dtype.kind == "b":
        y = y.view(np.uint8)
    if not (is_float(y.dtype) or is_index(y.dtype)):
        raise TypeError(f"{names[1]} has dtype {y.dtype}; expected float16, bfloat16, float32, float64, integers, bool")
    if y.shape != shape:
        raise ValueError(f"{names[1]} must have the shape of {names[0]}, {shape}; got {describe(y)}")
    return y


def checked_delta(value: Any) -> float:
    """The width of huber_loss: greater than 0."""
    number = finite_number(value, "delta")
    if number <= 0.0:
        raise ValueError(f"delta must be greater than 0, got {number}")
    return number


def checked_beta(value: Any) -> float:
    """The width of smooth_l1_loss: at least 0."""
    return _at_least_0(value, "beta")


def _at_least_0(value: Any, name: str) -> float:
    number = finite_number(value, name)
    if number < 0.0:
        raise ValueError(f"{name} must be at least 0, got {number}")
    return number


def focal_arguments(gamma: Any, alpha: Any, classes: int) -> tuple[float, MaybeArray]:
    """The exponent, and a weight for each class."""
    number = _at_least_0(gamma, "gamma")
    if alpha is None:
        return number, None
    weights = as_float64(alpha, "alpha")
    if weights.shape not in ((), (classes,)):
        raise ValueError(f"alpha must be a number or have shape ({classes},), one a class; got {describe(weights)}")
    return number, np.ascontiguousarray(np.broadcast_to(weights, (classes,)))


def outside_error(plan: ElementPlan) -> ValueError:
    """The error for a probability outside [0, 1] at a valid position: looks for the first."""
    x = plan.input.astype(np.float64)
    outside = (x < 0) | (x > 1)
    if plan.mask is not None:
        outside &= plan.mask
    if plan.sample_weight is not None:
        outside &= plan.sample_weight != 0
    if plan.lengths is not None:
        outside &= np.arange(x.shape[-1]) < plan.lengths.reshape(*x.shape[:-1], 1)
    position = tuple(int(i) for i in np.argwhere(outside)[0])
    return ValueError(f"probs must be from 0 to 1; at position {position} there is {x[position]}")
