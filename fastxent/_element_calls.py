"""Running an `ElementPlan`: the sibling of `_calls.py`.

What may fail in a run is a probability outside [0, 1]. It is looked for beforehand where the caller's arrays are
written; elsewhere the run itself reports it, and its fresh results are dropped. The divisor is known without a look at
anything if nothing is masked or weighted: then a gradient takes one pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _backends
from ._element_arguments import ElementPlan, outside_error
from ._options import OP_BINARY_PROBS
from ._reductions import gradient_scale, value

Array = NDArray[Any]


def loss(plan: ElementPlan) -> Any:
    """The value of a loss."""
    call = _backends.open_call(plan)
    if plan.given and plan.operation == OP_BINARY_PROBS:
        _prepare(plan, call)
    return _value(plan, call, *_run(plan, call))


def loss_and_gradient(plan: ElementPlan) -> tuple[Any, Array]:
    """The value of a loss and its gradient."""
    call = _backends.open_call(plan)
    plain = plan.mask is None and plan.sample_weight is None and plan.lengths is None and not plan.per_sequence
    if plain and not (plan.given and plan.operation == OP_BINARY_PROBS):
        divisor = float(plan.input.size if plan.axis < 0 else plan.input.size // (plan.input.shape[plan.axis] or 1))
    else:
        divisor = _prepare(plan, call)
    alike: Any = plan  # of the same fields as a Plan where reductions look
    scales = gradient_scale(alike, call, divisor)
    if scales is None:
        plan.output.fill(0)
        return _value(plan, call, 0.0, divisor), plan.output
    scale, shares = scales
    total, divisor = _run(plan, call, scale, shares)
    if shares is not None and not shares.all():
        # A sequence without a share in the value: a backend multiplies by the share, and 0 times NaN is NaN.
        output = plan.output if plan.axis < 0 else np.moveaxis(np.asarray(plan.output), plan.axis, 0)[0]
        uncounted = (shares == 0.0).reshape(output.shape[:-1] if output.ndim > 1 else output.shape)
        (plan.output if plan.axis < 0 else np.moveaxis(np.asarray(plan.output), plan.axis, -1))[uncounted] = 0
    return _value(plan, call, total, divisor), plan.output


def activation(plan: ElementPlan) -> Any:
    """The result of an activation."""
    _run(plan, _backends.open_call(plan))
    return plan.output


def _value(plan: Any, call: Any, total: float, divisor: float) -> Any:
    return value(plan, call, total, divisor)


def _prepare(plan: ElementPlan, call: Any) -> float:
    divisor: float
    divisor, bad = call.prepare()
    if bad >= 0:
        raise outside_error(plan)
    return divisor


def _run(plan: ElementPlan, call: Any, *scales: Any) -> tuple[float, float]:
    total: float
    divisor: float
    total, divisor, bad = call.run(*scales)
    if bad >= 0:
        raise outside_error(plan)
    return total, divisor
