"""Arguments are judged here, once, and become a `Plan`: what a backend needs, and nothing it has to doubt.

This is on the way of every call, and a call of five numbers must not wait for it. So an option is compared with its
default first, nothing is looked up twice, and what is rare (a list, a byte-swapped array, a mask) happens in functions
of its own. Arrays are not converted or copied, except the small ones that describe targets, where a backend could not
read them as they are.

What is slower or shared stands apart: `_coerce.py` takes arrays and numbers in, `_targets.py` judges what describes a
target, `_outputs.py` what is written to. Here `loss_plan` serves all losses of a target, `activation_plan`,
`logsumexp_plan` and `activation_grad_plan` the activations, `reduce_plan` the reduction of given losses.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from . import _threads
from ._coerce import (
    FLOAT32,
    FLOAT64,
    INDEX_LIMITS,
    INT64,
    LOGIT_DTYPES,
    as_array,
    describe,
    finite_number,
    is_float,
    logit_dtypes,
    real_number,
    whole_number,
)
from ._options import (
    OP_GRAD,
    OP_LOGSUMEXP,
    OP_LOSS,
    OP_LOSS_SOFTMAX,
    OP_NLL,
    OP_NLL_GRAD,
    OP_PROBS,
    OP_PROBS_GRAD,
    OP_REDUCE,
    REDUCTION_MEAN,
    REDUCTION_NONE,
    REDUCTION_SEQUENCE_MEAN,
    REDUCTION_SUM,
    REDUCTIONS,
)
from ._outputs import check_outputs
from ._targets import (
    checked_class_weight,
    checked_lengths,
    checked_mask,
    checked_saved,
    checked_shift,
    checked_targets,
    checked_upstream,
    checked_weight,
)

Array = NDArray[Any]
MaybeArray = Any  # an array or None: which of them, the operation and the options say
Shape = tuple[int, ...]


class Plan(NamedTuple):
    """One checked call. The compiled backend unpacks it by position; a test compares the order of the fields."""

    operation: int
    logits: Array  # as given: any strides, byte order, alignment and dtype of LOGIT_DTYPES
    axis: int  # 0 ... ndim - 1
    targets: MaybeArray  # class indices in native byte order, or an array of the logits' shape
    class_weight: MaybeArray  # float64 (C,), contiguous
    sample_weight: MaybeArray  # float64, a view of the positions' shape
    mask: MaybeArray  # bool, a view of the positions' shape
    lengths: MaybeArray  # int64 (sequences,), contiguous
    ignore_index: int | None  # None also where the targets' dtype cannot hold it
    shift: int
    label_smoothing: float
    z_loss: float
    logit_scale: float
    softcap: float  # 0: none
    upstream: MaybeArray  # float64 of the positions' shape
    saved: MaybeArray  # the statistics to use
    losses: MaybeArray  # written: per position
    saved_out: MaybeArray  # written: the statistics
    output: MaybeArray  # written: gradient or probabilities
    sequence_length: int
    per_sequence: bool  # whether sums and divisors are wanted for each sequence
    num_threads: int
    statistics: tuple[MaybeArray, ...] | None  # written: what scoring wants of each position
    # The backends do not look at what follows.
    reduction: int
    normalizer: float | None  # what the sum is divided by; None: the sum of the weights
    empty_value: float
    scale: float  # of the gradient: a scalar upstream
    n_sequences: int


# Straight to tuple: Plan(...) would take its arguments through a function written in Python, for 0.2 microseconds.
_new_tuple = tuple.__new__

_NAMES = {OP_NLL: "log_probs", OP_NLL_GRAD: "log_probs", OP_PROBS: "probs", OP_PROBS_GRAD: "probs"}
# Compared by identity: CPython has one object of each small integer, and any other takes the long way.
_LAST, _NO_SHIFT = -1, 0
_WITHOUT_OUTPUT = frozenset((OP_LOSS, OP_NLL, OP_PROBS))


def loss_plan(
    operation: int,
    logits: Any,
    targets: Any,
    axis: Any,
    class_weight: Any,
    sample_weight: Any,
    mask: Any,
    lengths: Any,
    ignore_index: Any,
    shift: Any,
    label_smoothing: Any,
    z_loss: Any,
    logit_scale: Any,
    softcap: Any,
    reduction: Any,
    normalizer: Any,
    empty_value: Any,
    num_threads: Any,
    out: Any = None,
    return_saved: bool = False,
    upstream: Any = None,
    saved: Any = None,
    output: Any = None,
) -> Plan:
    """The plan of a loss of `logits` (or log-probabilities, or probabilities) and `targets`.

    `output` is the caller's array for what has the logits' shape: the gradient or the softmax.
    """
    if type(logits) is not ndarray:
        logits = as_array(logits, _NAMES.get(operation, "logits"))
    computed, stored = LOGIT_DTYPES.get(logits.dtype) or logit_dtypes(logits.dtype, _NAMES.get(operation, "logits"))
    shape = logits.shape
    if axis is _LAST and shape:
        axis = len(shape) - 1
        positions = shape[:-1]
    else:
        axis, positions = _checked_axis(axis, shape)
    if not shape[axis] and 0 not in positions:
        raise ValueError(f"{_NAMES.get(operation, 'logits')} of shape {shape} have no classes (axis {axis})")

    if type(targets) is not ndarray:
        targets = as_array(targets, "targets", empty=INT64)
    limits = INDEX_LIMITS.get(targets.dtype)
    if limits is None or targets.shape != positions:
        targets, limits = checked_targets(targets, shape, positions)
    if ignore_index is not None:
        if type(ignore_index) is not int:
            ignore_index = whole_number(ignore_index, "ignore_index")
        if limits is None or not limits[0] <= ignore_index <= limits[1]:
            ignore_index = None

    if class_weight is not None:
        class_weight = checked_class_weight(class_weight, shape[axis])
    if sample_weight is not None:
        sample_weight = checked_weight(sample_weight, "sample_weight", positions)
    if mask is not None:
        mask = checked_mask(mask, positions)
    if lengths is not None:
        lengths = checked_lengths(lengths, positions)
    if shift is not _NO_SHIFT:
        shift = checked_shift(shift, positions)
    if type(label_smoothing) is not float or label_smoothing:
        label_smoothing = _checked_smoothing(label_smoothing)
    if type(z_loss) is not float or z_loss:
        z_loss = _checked_z_loss(z_loss)
    if type(logit_scale) is not float or logit_scale != 1.0:
        logit_scale = _positive(logit_scale, "logit_scale")
    softcap = 0.0 if softcap is None else checked_softcap(softcap, logit_scale, computed)

    try:
        code = REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise _reduction_error(reduction) from None
    if len(positions) < 2:
        n_sequences, sequence_length = positions[0] if positions else 1, 1
    else:
        n_sequences, sequence_length = _sequences(positions)
    if normalizer is not None or code != REDUCTION_MEAN:
        normalizer = _checked_normalizer(normalizer, code, n_sequences)
    if type(empty_value) is not float:
        empty_value = real_number(empty_value, "empty_value")
    scale = 1.0
    if upstream is not None:
        upstream, scale = checked_upstream(upstream, positions, code == REDUCTION_NONE)
    if saved is not None:
        saved = checked_saved(saved, positions, computed)
    if out is not None or output is not None:
        if out is not None and code != REDUCTION_NONE:
            raise ValueError('out is for reduction="none" only; any other reduction returns a number')
        scores = _NAMES.get(operation, "logits")
        read = ((scores, logits), ("targets", targets), ("class_weight", class_weight), ("mask", mask),
                ("sample_weight", sample_weight), ("lengths", lengths), ("upstream", upstream), ("saved", saved))
        output_name = "out_softmax" if operation == OP_LOSS_SOFTMAX else "out_grad"
        check_outputs((("out", out, positions, computed), (output_name, output, shape, stored)), read, scores)

    if out is None and code == REDUCTION_NONE and operation != OP_GRAD:
        out = np.empty(positions, computed)
    if output is None and operation not in _WITHOUT_OUTPUT:
        output = np.empty_like(logits, stored, "K", False)
    return _new_tuple(Plan, (
        operation, logits, axis, targets, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, upstream, saved,
        out, np.empty((*positions, 2), computed) if return_saved else None, output,
        sequence_length, code == REDUCTION_SEQUENCE_MEAN,
        (_threads.count or _threads.determine()) if num_threads is None else _threads.checked_count(num_threads),
        None, code, normalizer, empty_value, scale, n_sequences,
    ))


def reduce_plan(
    losses: Any, mask: Any, lengths: Any, weight: Any, reduction: Any, normalizer: Any, empty_value: Any
) -> Plan:
    """The plan of the reduction of losses that are there already: to a backend, logits of one class."""
    losses = as_array(losses, "losses")
    computed, _ = logit_dtypes(losses.dtype, "losses")
    positions = losses.shape
    if mask is not None:
        mask = checked_mask(mask, positions)
    if lengths is not None:
        lengths = checked_lengths(lengths, positions)
    if weight is not None:
        weight = checked_weight(weight, "weight", positions)
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise _reduction_error(reduction)
    code = REDUCTIONS[reduction]
    n_sequences, sequence_length = _sequences(positions)
    normalizer = _checked_normalizer(normalizer, code, n_sequences)
    return _new_tuple(Plan, (
        OP_REDUCE, losses[..., np.newaxis], losses.ndim, None, None, weight, mask, lengths, None, 0,
        0.0, 0.0, 1.0, 0.0, None, None,
        np.empty(positions, computed) if code == REDUCTION_NONE else None, None, None,
        sequence_length, code == REDUCTION_SEQUENCE_MEAN, _threads.count or _threads.determine(),
        None, code, normalizer, real_number(empty_value, "empty_value"), 1.0, n_sequences,
    ))


def activation_plan(operation: int, x: Any, axis: Any, out: Any, num_threads: Any) -> Plan:
    """The plan of softmax or log_softmax."""
    x, axis, _, _, stored = _checked_scores(x, "x", axis)
    if out is not None:
        check_outputs((("out", out, x.shape, stored),), (("x", x),), "x")
    else:
        out = np.empty_like(x, stored, "K", False)
    return _scores_plan(operation, x, axis, None, None, out, num_threads)


def logsumexp_plan(x: Any, axis: Any, keepdims: Any, out: Any, num_threads: Any) -> Plan:
    """The plan of logsumexp; its losses are the result without the class axis."""
    x, axis, positions, computed, _ = _checked_scores(x, "x", axis)
    if out is None:
        losses = np.empty(positions, computed)
    else:
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :]) if keepdims else positions
        check_outputs((("out", out, shape, computed),), (("x", x),), "")
        losses = np.squeeze(np.asarray(out), axis) if keepdims else out
    return _scores_plan(OP_LOGSUMEXP, x, axis, None, losses, None, num_threads)


def activation_grad_plan(operation: int, y: Any, upstream: Any, axis: Any, out: Any, num_threads: Any) -> Plan:
    """The plan of the gradient of softmax or log_softmax, from its result."""
    y, axis, _, _, stored = _checked_scores(y, "y", axis)
    upstream = as_array(upstream, "upstream")
    if upstream.dtype.kind in "iu":
        upstream = upstream.astype(FLOAT64)
    elif not is_float(upstream.dtype):
        raise TypeError(f"upstream has dtype {upstream.dtype}; expected float16, bfloat16, float32, float64, integers")
    if upstream.shape != y.shape:
        raise ValueError(f"upstream must have the shape of y, {y.shape}; got {describe(upstream)}")
    if out is not None:
        check_outputs((("out", out, y.shape, stored),), (("y", y), ("upstream", upstream)), "y upstream")
    else:
        out = np.empty_like(y, stored, "K", False)
    return _scores_plan(operation, y, axis, upstream, None, out, num_threads)


def class_index_error(plan: Plan, flat: int) -> IndexError:
    """The error for a class index outside the classes, at a position counted in C order."""
    targets, axis, shift = plan.targets, plan.axis, plan.shift
    shape = plan.logits.shape
    position = place = tuple(int(i) for i in np.unravel_index(flat, shape[:axis] + shape[axis + 1 :]))
    read_at = ""
    if shift:
        place = (*position[:-1], position[-1] + shift)
        read_at = f" (targets{list(place)}, shift={shift})"
    return IndexError(f"the target at position {position}{read_at} is {targets[place]}, outside [0, {shape[axis]})")


def _scores_plan(
    operation: int, scores: Array, axis: int, given: MaybeArray, losses: MaybeArray, output: MaybeArray, threads: Any
) -> Plan:
    return _new_tuple(Plan, (
        operation, scores, axis, given, None, None, None, None, None, 0, 0.0, 0.0, 1.0, 0.0, None, None,
        losses, None, output, 1, False, _thread_count(threads), None, REDUCTION_NONE, None, math.nan, 1.0, 0,
    ))


def _checked_scores(x: Any, name: str, axis: Any) -> tuple[Array, int, Shape, np.dtype[Any], np.dtype[Any]]:
    """The array, its class axis, the positions' shape, and the dtypes of computing and of results of its shape."""
    if type(x) is not ndarray:
        x = as_array(x, name)
    computed, stored = LOGIT_DTYPES.get(x.dtype) or logit_dtypes(x.dtype, name)
    axis, positions = _checked_axis(axis, x.shape)
    return x, axis, positions, computed, stored


def _checked_axis(axis: Any, shape: Shape) -> tuple[int, Shape]:
    """The class axis counted from the first, and the shape without it."""
    number = whole_number(axis, "axis")
    if not -len(shape) <= number < len(shape):
        raise np.exceptions.AxisError(number, len(shape), "axis")
    number %= len(shape)
    return number, shape[:number] + shape[number + 1 :]


def _sequences(positions: Shape) -> tuple[int, int]:
    """How many sequences there are, and how long they are: a single axis of positions is the batch."""
    if len(positions) > 1:
        return math.prod(positions[:-1]), positions[-1]
    return (positions[0] if positions else 1), 1


def _thread_count(num_threads: Any) -> int:
    if num_threads is None:
        return _threads.count or _threads.determine()
    return _threads.checked_count(num_threads)


def _checked_smoothing(value: Any) -> float:
    number = real_number(value, "label_smoothing")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {number}")
    return number


def _checked_z_loss(value: Any) -> float:
    number = finite_number(value, "z_loss")
    if number < 0.0:
        raise ValueError(f"z_loss must be at least 0, got {number}")
    return number


def _positive(value: Any, name: str) -> float:
    number = finite_number(value, name)
    if number <= 0.0:
        raise ValueError(f"{name} must be greater than 0, got {number}")
    return number


def checked_softcap(value: Any, logit_scale: float, computed: np.dtype[Any]) -> float:
    """The cap; 0 (none) where it, or the share of it that a logit is, would be beyond the normal numbers.

    Then z is logit_scale * x to the last digit, for every x below 1e34 (float64: 1e304).
    """
    cap = _positive(value, "softcap")
    least, end = (2.0**-126, 2.0**128) if computed == FLOAT32 else (2.0**-1022, math.inf)
    return 0.0 if cap >= end or logit_scale / cap < least else cap


def _reduction_error(reduction: Any) -> ValueError:
    return ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")


def _checked_normalizer(normalizer: Any, code: int, n_sequences: int) -> float | None:
    if normalizer is None:
        return None if code == REDUCTION_MEAN else 1.0 if code == REDUCTION_SUM else float(n_sequences)
    if code != REDUCTION_SUM and code != REDUCTION_MEAN:
        raise ValueError('normalizer is for reduction="sum" or "mean" only')
    return finite_number(normalizer, "normalizer")
