"""Blocks of positions whose rows have lanes of their own: cross-entropy and the activations."""

from __future__ import annotations

import math

from ..._options import OP_GRAD, OP_LOG_SOFTMAX, OP_LOSS_SOFTMAX
from .ends import finish_run, finish_terms, wants_loss
from .language import kernel
from .layout import (
    ARGMAX,
    BASE,
    BENT,
    BLOCKS,
    CLASS_STRIDE,
    CLASSES,
    COUNT,
    DIRECT,
    DOT,
    DTYPE,
    FACTOR,
    FETCHED,
    FIRST,
    GAP,
    KIND,
    MADE,
    MASS,
    MAX,
    OPERATION,
    OUT,
    PROBS,
    REST,
    SAVED,
    SPREAD,
    STEP,
    TARGET,
    TOP,
    TRANSFORM,
    VALID,
    VALUE,
    Z_SCALE,
    X,
)  # fmt: skip
from .mathematics import exp_number
from .memory import emit, fetch, get, get_size, has_nan, put
from .positions import block_range, operand, place, put_block, read_positions, run_at
from .rows import (
    ARRAY,
    NONE,
    UNIFORM,
    multiply,
    row_find,
    row_max,
    row_sum,
    row_sum_array,
    row_sum_uniform,
    row_write,
    row_write_array,
    row_write_log,
    row_write_uniform,
)  # fmt: skip
from .runs import block_size, close, coefficients, fill_given, probabilities_of, put_losses, read_logit, row_block

INFINITY, NAN = math.inf, math.nan


@kernel("ddidd")
def row_forward(tag, c, f, s, x, q, kind):
    """(maximum, rest, its class or -1, dot, sum of the coefficients) of one row."""
    classes, scale = c[CLASSES], f[Z_SCALE]
    top, total, lost, argmax, dot, mass = -INFINITY, 0.0, 0.0, -1, 0.0, 0.0
    c0 = 0
    while c0 < classes:
        n = block_size(tag, classes - c0)
        p = row_block(tag, c, f, s, x, c0, n, 0)
        high, skip = float(row_max(tag, p, n)), -1
        if high > top:
            if top > -INFINITY:  # the former maximum joins the rest
                shrink = exp_number(tag, scale * (top - high))
                total = (total + 1.0) * shrink
                lost *= shrink
                dot += (high - top) * mass
            skip = row_find(tag, p, n, high)
            argmax, top = c0 + skip, high
        reference = top if top > -INFINITY else 0.0
        if kind == NONE:
            add = row_sum(tag, p, n, reference, scale, skip, 0)
        elif kind == UNIFORM:
            add, moment, _ = row_sum_uniform(tag, p, n, reference, scale, skip, 0)
            dot += moment
            mass += n
        else:
            w = coefficients(tag, c, f, s, q, c0, n)
            add, moment, weight = row_sum_array(tag, p, n, reference, scale, skip, w)
            dot += moment
            mass += weight
        together = total + add
        lost += (total - together) + add if total > add else (add - together) + total  # Neumaier
        total = together
        c0 += n
    if lost == lost:
        total += lost
    if top == INFINITY:
        total = NAN if row_has_nan(tag, c, s, x) else 0.0  # inf - inf was NaN as well
    return top, total, argmax, dot, mass


@kernel("i")
def row_has_nan(tag, c, s, x):
    """Whether one of the row's logits is NaN."""
    stride, c0 = operand(tag, c, X, CLASS_STRIDE), 0
    while c0 < c[CLASSES]:
        n = block_size(tag, c[CLASSES] - c0)
        fetch(tag, s + FETCHED, x + c0 * stride, operand(tag, c, X, DTYPE), operand(tag, c, X, 3), stride, n)
        if has_nan(tag, s + FETCHED, n):
            return True
        c0 += n
    return False


@kernel()
def rows_forward(tag, c, f, r, d, s, wants_output):
    """Maximum, rest and target's logit of the run's valid positions."""
    size, softmax = get_size(tag), c[OPERATION] >= OP_LOSS_SOFTMAX
    indexed = c[OPERATION] <= OP_LOSS_SOFTMAX and not c[PROBS]
    for k in range(r[VALID]):
        i = place(tag, r, k)
        x, q = r[BASE + X] + i * r[STEP + X], probabilities_of(tag, c, r, i)
        if c[SAVED]:
            at = c[SAVED] + 2 * size * (r[FIRST] + i)
            put(tag, s + MAX + k * size, get(tag, at))
            put(tag, s + REST + k * size, get(tag, at + size))
        else:
            top, rest, argmax, dot, mass = row_forward(tag, c, f, s, x, q, c[KIND])
            put(tag, s + MAX + k * size, top)
            put(tag, s + REST + k * size, rest)
            put(tag, s + DOT + k * size, dot)
            put(tag, s + MASS + k * size, mass)
            d[ARGMAX + k] = argmax
            if c[PROBS] and wants_output and not softmax:
                own = 0.0
                if argmax >= 0:
                    own = float(get(tag, coefficients(tag, c, f, s, q, argmax, 1)))
                put(tag, s + TOP + k * size, own)
        put(tag, s + GAP + k * size, read_logit(tag, c, f, s, x, r[TARGET + k]) if indexed else 0.0)


@kernel()
def write_kind(
    tag, p, to, n, top: float, factor: float, spread: float, scale: float, at, value: float, w, kind, logarithm
):
    if logarithm:
        row_write_log(tag, p, to, n, top, factor, spread, scale, at, value, w)
    elif kind == NONE:
        row_write(tag, p, to, n, top, factor, spread, scale, at, value, w)
    elif kind == UNIFORM:
        row_write_uniform(tag, p, to, n, top, factor, spread, scale, at, value, w)
    else:
        row_write_array(tag, p, to, n, top, factor, spread, scale, at, value, w)


@kernel()
def rows_write(tag, c, f, r, d, s):
    """The gradient, softmax or log-softmax of the run's valid positions."""
    size, classes, operation = get_size(tag), c[CLASSES], c[OPERATION]
    stride, dtype = operand(tag, c, OUT, CLASS_STRIDE), operand(tag, c, OUT, DTYPE)
    logarithm, softmax = operation == OP_LOG_SOFTMAX, operation >= OP_LOSS_SOFTMAX
    kind = NONE if softmax else c[KIND]
    chain = c[TRANSFORM] != 0 and operation <= OP_GRAD
    straight = stride == size and dtype == (0 if size == 4 else 1) and not chain
    for k in range(r[VALID]):
        i = place(tag, r, k)
        x, to = r[BASE + X] + i * r[STEP + X], r[BASE + OUT] + i * r[STEP + OUT]
        q = probabilities_of(tag, c, r, i)
        at = -1 if softmax else int(d[ARGMAX + k]) if q else r[TARGET + k]
        top, value = get(tag, s + MAX + k * size), get(tag, s + VALUE + k * size)
        factor, spread = float(get(tag, s + FACTOR + k * size)), float(get(tag, s + SPREAD + k * size))
        if logarithm:
            factor, spread = f[Z_SCALE], factor
        c0 = 0
        while c0 < classes:
            n = block_size(tag, classes - c0)
            if c[DIRECT] and straight and not (kind == ARRAY and q):
                n = classes
            w = coefficients(tag, c, f, s, q, c0, n) if kind == ARRAY else 0
            p = row_block(tag, c, f, s, x, c0, n, 0)
            made = to + c0 * size if straight else s + MADE
            write_kind(tag, p, made, n, top, factor, spread, f[Z_SCALE], at - c0, value, w, kind, logarithm)
            if chain:
                multiply(tag, made, s + BENT, n)
            if not straight:
                emit(tag, to + c0 * stride, dtype, stride, made, n)
            c0 += n


@kernel("di")
def row_run(tag, c, f, r, d, s, at, end, wants_output):
    """Read the run from position `at` on, and find what its rows hold; (its share of the divisor, a bad position)."""
    run_at(tag, c, r, at, end)
    share, bad = read_positions(tag, c, f, r, d, wants_output)
    close(tag, c, r, d)
    fill_given(tag, c, r, d, s, r[VALID])
    rows_forward(tag, c, f, r, d, s, wants_output)
    return share, bad


@kernel("d")
def row_losses(tag, c, f, r, s):
    """Write the run's losses, if it has some; returns their sum."""
    finish_run(tag, c, f, r, s, r[VALID])
    return put_losses(tag, c, r, s) if wants_loss(tag, c) else 0.0


@kernel()
def row_blocks(tag, c, f, r, d, s, start, stop):
    """Operations up to OP_LOGSUMEXP without an output of the logits' shape."""
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            share, wrong = row_run(tag, c, f, r, d, s, at, end, 0)
            put_block(tag, c, block, row_losses(tag, c, f, r, s), share, wrong)
            at += r[COUNT]


@kernel()
def row_output_blocks(tag, c, f, r, d, s, start, stop):
    """The same with such an output."""
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            share, wrong = row_run(tag, c, f, r, d, s, at, end, 1)
            finish_terms(tag, c, f, s + MAX, r[VALID])
            rows_write(tag, c, f, r, d, s)
            put_block(tag, c, block, row_losses(tag, c, f, r, s), share, wrong)
            at += r[COUNT]
