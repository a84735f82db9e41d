"""Running a plan: open it in the backend, check class indices where something is written for good, wrap the result.

Class indices are checked before a run that computes a gradient (which needs the divisor beforehand anyway) or writes
into a caller's array. Elsewhere the run itself reports a bad one, and its fresh results are dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _backends
from ._arguments import Plan, class_index_error
from ._reductions import Call, gradient_scale, value

Array = NDArray[Any]


def loss(plan: Plan, check_first: bool, call: Any = None) -> Any:
    """The value of a loss. `check_first`: the plan writes into an array of the caller's. `call`: the plan opened."""
    if call is None:
        call = _backends.open_call(plan)
    if check_first:
        _, bad = call.prepare()
        if bad >= 0:
            raise class_index_error(plan, bad)
    total, divisor, bad = call.run()
    if bad >= 0:
        raise class_index_error(plan, bad)
    return value(plan, call, total, divisor)


def loss_and_gradient(plan: Plan, call: Any = None) -> tuple[Any, Array]:
    """The value of a loss and its gradient. `call`: the plan opened."""
    if call is None:
        call = _backends.open_call(plan)
    total, divisor = _run_with_gradient(plan, call)
    return value(plan, call, total, divisor), plan.output


def gradient(plan: Plan) -> Array:
    """The gradient of a loss alone."""
    _run_with_gradient(plan, _backends.open_call(plan))
    output: Array = plan.output
    return output


def _run_with_gradient(plan: Plan, call: Call) -> tuple[float, float]:
    divisor, bad = call.prepare()
    if bad >= 0:
        raise class_index_error(plan, bad)
    scales = gradient_scale(plan, call, divisor)
    if scales is None:  # nothing counts: the value is `empty_value`, and even a NaN logit adds nothing to it
        plan.output.fill(0)
        return 0.0, divisor
    scale, shares = scales
    total, divisor, bad = call.run(scale, shares)
    if bad >= 0:
        raise class_index_error(plan, bad)
    if shares is not None:
        _clear_uncounted(plan, shares)
    return total, divisor


def _clear_uncounted(plan: Plan, shares: Array) -> None:
    """Zeros for sequences without a share in the value: a backend multiplies by the share, and 0 times NaN is NaN."""
    uncounted = shares == 0.0
    if uncounted.any():
        by_position = np.moveaxis(np.asarray(plan.output), plan.axis, -1)
        by_position[uncounted.reshape(by_position.shape[:-2] or by_position.shape[:-1])] = 0


def activation(plan: Plan) -> Array:
    """The result of an activation or of its gradient."""
    result: Array = plan.losses if plan.output is None else plan.output
    if plan.logits.size:
        _backends.open_call(plan).run()
    elif plan.output is None:
        result.fill(-np.inf)  # the logarithm of a sum over no classes
    return result
