"""From what a backend returns to the value of a reduction, and to the scale of its gradient. For every backend.

A backend sums the losses of the valid positions (`total`) and their weights (`divisor`), for the whole call and, for
"sequence_mean", for each sequence. Here these become the value; a divisor of 0 gives `empty_value`, whatever the total
is, and the gradient 0. One division of a float64 sum: that is all the rounding a reduction adds.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy import float64
from numpy.typing import NDArray

from ._arguments import Plan
from ._options import REDUCTION_NONE, REDUCTION_SEQUENCE_MEAN


class Call(Protocol):
    """What a backend makes of a plan."""

    sequence_sums: NDArray[np.float64]
    sequence_divisors: NDArray[np.float64]

    def prepare(self) -> tuple[float, int]:
        """The divisor, and the first valid position (flat) whose class index is out of range, or -1."""

    def run(
        self, scale: float = 1.0, sequence_scale: NDArray[np.float64] | None = None
    ) -> tuple[float, float, int]:
        """Do the work: the total, the divisor, and the first bad position or -1."""


def value(plan: Plan, call: Call, total: float, divisor: float) -> Any:
    """The value of the loss, a float64 scalar; for "none" the array of losses."""
    reduction = plan.reduction
    if reduction == REDUCTION_NONE:
        return plan.losses
    if reduction == REDUCTION_SEQUENCE_MEAN:
        return _sequence_mean(plan, call)
    by = plan.normalizer
    if by is None:
        by = divisor
    return float64(total / by if by else plan.empty_value)


def _sequence_mean(plan: Plan, call: Call) -> np.float64:
    counted = call.sequence_divisors != 0.0
    number = np.count_nonzero(counted)
    if not number:
        return np.float64(plan.empty_value)
    with np.errstate(all="ignore"):
        return np.float64((call.sequence_sums[counted] / call.sequence_divisors[counted]).sum() / number)


def gradient_scale(plan: Plan, call: Call, divisor: float) -> tuple[float, NDArray[np.float64] | None] | None:
    """What one unit of loss adds to the value, times a scalar upstream: for all positions, and for each sequence.

    None: nothing adds to the value, the gradient is 0.
    """
    reduction = plan.reduction
    if reduction == REDUCTION_NONE:
        return plan.scale, None
    if reduction == REDUCTION_SEQUENCE_MEAN:
        divisors = call.sequence_divisors
        counted = divisors != 0.0
        number = np.count_nonzero(counted)
        shares = np.zeros(divisors.shape)
        with np.errstate(all="ignore"):
            np.divide(1.0, divisors, out=shares, where=counted)
        return (plan.scale / number, shares) if number else None
    by = divisor if plan.normalizer is None else plan.normalizer
    return (plan.scale / by, None) if by else None
