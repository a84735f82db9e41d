"""Judging the arguments of scoring: `_arguments.py` for statistics, the k largest, partials and the `Evaluator`.

The plans are those of a loss of class indices, with other arrays to write. What describes positions (masks, lengths,
shift) is judged by `loss_plan` itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arguments import Plan, _checked_axis, _positive, _scores_plan, checked_softcap, loss_plan
from ._coerce import INT64, LOGIT_DTYPES, as_array, describe, logit_dtypes, whole_number
from ._options import OP_LOSS, OP_PARTIALS, OP_STATISTICS, OP_TOP_K
from ._targets import in_range, whole_numbers

Array = NDArray[Any]
PARTIALS = 5  # numbers of a position
_MOST_CLASSES = 2**53
_STATISTICS = Plan._fields.index("statistics")


def statistics_plan(
    logits: Any, targets: Any, axis: Any, mask: Any, lengths: Any, ignore_index: Any, shift: Any, logit_scale: Any,
    softcap: Any, num_threads: Any, with_top: bool = False,
) -> Plan:
    """The plan of `token_statistics`; `with_top`: of the largest probability too."""
    plan = _index_plan(logits, targets, axis, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads)
    computed, _ = LOGIT_DTYPES[plan.logits.dtype]
    empty, positions = np.empty, plan.targets.shape
    results = (empty(positions, computed), empty(positions, computed), empty(positions, INT64), empty(positions, INT64),
               empty(positions, computed), empty(positions, computed) if with_top else None)
    # plan._replace(operation=OP_STATISTICS, statistics=results), without six microseconds of Python.
    return Plan._make((OP_STATISTICS, *plan[1:_STATISTICS], results, *plan[_STATISTICS + 1 :]))


def partials_plan(
    logits: Any, targets: Any, class_offset: Any, axis: Any, mask: Any, lengths: Any, ignore_index: Any, shift: Any,
    logit_scale: Any, softcap: Any, num_threads: Any,
) -> tuple[Plan, Array, int]:
    """The plan of `partials`, its targets counted from the range's first class; where they are in it; that class.

    Elsewhere the plan's target is the range's first class; at an ignored position it is -1, the plan's ignore_index.
    """
    offset = whole_number(class_offset, "class_offset", lowest=0)
    plan = _index_plan(logits, targets, axis, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads)
    if offset > _MOST_CLASSES:
        raise ValueError(f"class_offset must be at most 2**53, so that float64 holds every class; got {offset}")
    given = plan.targets
    here = (given >= offset) & (given < offset + plan.logits.shape[plan.axis])
    local = np.where(here, given.astype(INT64) - offset, 0)
    if plan.ignore_index is not None:
        local[given == plan.ignore_index] = -1
    results = (np.empty((*given.shape, PARTIALS)),)
    return plan._replace(operation=OP_PARTIALS, targets=local, ignore_index=-1, statistics=results), here, offset


def top_k_plan(logits: Any, k: Any, axis: Any, logit_scale: Any, softcap: Any, num_threads: Any) -> Plan:
    """The plan of `top_k_log_probs`; its results have the k classes last."""
    logits = as_array(logits, "logits")
    computed, _ = LOGIT_DTYPES.get(logits.dtype) or logit_dtypes(logits.dtype, "logits")
    axis, positions = _checked_axis(axis, logits.shape)
    number = whole_number(k, "k", lowest=1)
    if number > logits.shape[axis]:
        raise ValueError(f"k must be at most the number of classes, {logits.shape[axis]}; got {number}")
    results = (np.empty((*positions, number), computed), np.empty((*positions, number), INT64))
    plan = _scores_plan(OP_TOP_K, logits, axis, None, None, None, num_threads)
    scale = _positive(logit_scale, "logit_scale")
    softcap = 0.0 if softcap is None else checked_softcap(softcap, scale, computed)
    return plan._replace(logit_scale=scale, softcap=softcap, statistics=results)


def _index_plan(
    logits: Any, targets: Any, axis: Any, mask: Any, lengths: Any, ignore_index: Any, shift: Any, logit_scale: Any,
    softcap: Any, num_threads: Any,
) -> Plan:
    targets = as_array(targets, "targets", empty=INT64)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets have dtype {targets.dtype}; expected integers (class indices)")
    return loss_plan(
        OP_LOSS, logits, targets, axis, None, None, mask, lengths, ignore_index, shift, 0.0, 0.0, logit_scale, softcap,
        "sum", None, 0.0, num_threads,
    )


def partials_argument(value: Any, name: str) -> Array:
    """What `partials` returned, or a merge of it."""
    array = as_array(value, name)
    if array.dtype.newbyteorder("=") != np.float64:
        raise TypeError(f"{name} has dtype {array.dtype}; expected float64, as partials returns it")
    if array.shape[-1:] != (PARTIALS,):
        raise ValueError(f"{name} must have the shape that partials returns, (..., {PARTIALS}); got {describe(array)}")
    return array


def partials_pair(a: Any, b: Any) -> tuple[Array, Array]:
    """Partials of the same positions."""
    a, b = partials_argument(a, "a"), partials_argument(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must be partials of the same positions, not of shapes {a.shape} and {b.shape}")
    return a, b


def missing_target_error(position: tuple[int, ...]) -> IndexError:
    """The error for a position whose target no range of classes held."""
    return IndexError(f"the target at position {position} is in none of the class ranges that were merged")


def evaluator_options(
    top_k: Any, token_bytes: Any, calibration_bins: Any, axis: Any, others: tuple[Any, ...]
) -> tuple[tuple[int, ...], Any, int]:
    """The options of an `Evaluator` that no other function has; the others are judged as `token_statistics` would."""
    whole_number(axis, "axis")
    statistics_plan(np.zeros((1, 1, 1)), np.zeros((1, 1), INT64), -1, None, None, *others)
    try:
        numbers = tuple(top_k)
    except TypeError:
        raise TypeError(f"top_k must be a sequence of integers, got {top_k!r}") from None
    numbers = tuple(sorted({whole_number(k, "top_k", lowest=1) for k in numbers}))
    if token_bytes is not None:
        token_bytes = whole_numbers(token_bytes, "token_bytes")
        if token_bytes.ndim != 1:
            raise ValueError(f"token_bytes must have one axis, the classes; got {describe(token_bytes)}")
        token_bytes = in_range(token_bytes, "token_bytes", None)
    return numbers, token_bytes, whole_number(calibration_bins, "calibration_bins", lowest=1)


def bytes_of_targets(token_bytes: Array, targets: Array, valid: Array, classes: int) -> Array:
    """How many bytes the target stands for, at each valid position."""
    if token_bytes.shape != (classes,):
        raise ValueError(f"token_bytes has {token_bytes.size} entries, but the logits have {classes} classes")
    found: Array = token_bytes[targets[valid].astype(np.intp)]
    return found


def same_setting(name: str, mine: Any, other: Any) -> None:
    """Refuse to add up what was counted in different ways."""
    if mine != other:
        raise ValueError(f"the evaluators differ in {name}: {mine!r} and {other!r}")


def state_argument(state: Any, version: int) -> dict[str, Any]:
    """What `Evaluator.state_dict` returned, perhaps by way of JSON."""
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dict, as state_dict returns it; got {type(state).__name__}")
    if state.get("version") != version:
        raise ValueError(f"state has version {state.get('version')!r}; expected {version}")
    for name in ("settings", "totals"):
        if not isinstance(state.get(name), dict):
            raise ValueError(f"state is not what state_dict returned: it has no {name}")
    return state


