"""One row by itself, for `fastxent.numba`: rows of at least a group of neighbouring classes of the compute type."""

from __future__ import annotations

import math

from .language import kernel
from .mathematics import exp_number, log1p_number
from .memory import get, get_size, has_nan
from .rows import row_find, row_max, row_sum, row_write, row_write_log
from .runs import block_size

MINUS_INFINITY, INFINITY, NAN = -math.inf, math.inf, math.nan


@kernel("dd")
def maximum_and_rest(tag, p, n):
    """The maximum m, and the sum of exp(x - m) without one maximum (NaN where a logit is)."""
    top, total, c0 = MINUS_INFINITY, 0.0, 0
    while c0 < n:
        m, skip = block_size(tag, n - c0), -1
        at = p + c0 * get_size(tag)
        high = row_max(tag, at, m)
        if high > top:
            if top > MINUS_INFINITY:
                total = (total + 1.0) * exp_number(tag, top - high)
            skip, top = row_find(tag, at, m, high), high
        total += row_sum(tag, at, m, top if top > MINUS_INFINITY else 0.0, 1.0, skip, 0)
        c0 += m
    if top == INFINITY:
        total = NAN if has_nan(tag, p, n) else 0.0
    return top, total


@kernel("d")
def logsumexp_of(tag, p, n):
    top, rest = maximum_and_rest(tag, p, n)
    return top + log1p_number(tag, rest)


@kernel("d")
def loss_of(tag, p, n, target):
    top, rest = maximum_and_rest(tag, p, n)
    if not MINUS_INFINITY < top < INFINITY:
        return NAN
    return top - get(tag, p + target * get_size(tag)) + log1p_number(tag, rest)


@kernel("d")
def loss_and_gradient_of(tag, p, n, target, to):
    """The loss; the gradient to n neighbours from `to`, perhaps the row itself."""
    top, rest = maximum_and_rest(tag, p, n)
    if not MINUS_INFINITY < top < INFINITY:
        rest = NAN
    gap, inverse = top - get(tag, p + target * get_size(tag)), 1.0 / (1.0 + rest)
    own = -rest * inverse if gap == 0 else exp_number(tag, -gap) * inverse - 1.0
    row_write(tag, p, to, n, top, inverse, 0.0, 1.0, target, own, 0)
    return gap + log1p_number(tag, rest)


@kernel()
def log_softmax_of(tag, p, n, to):
    top, rest = maximum_and_rest(tag, p, n)
    if not MINUS_INFINITY < top < INFINITY:
        rest = NAN
    row_write_log(tag, p, to, n, top, 1.0, log1p_number(tag, rest), 1.0, -1, 0.0, 0)
