"""Kullback-Leibler divergence of two rows of logits: the form of ``src/kernels/divergence.inl``.

First both rows' maximum and sum, as in cross-entropy; then, with d = log p_c - log q_c, the sum of p*d - p + q: the
same total, since p and q sum to 1, but of terms that are not negative. Where |d| is small a term is p*(d - 1 +
exp(-d)) by its series, and the gradient q - p is p*(exp(-d) - 1): rows that nearly agree keep their digits.
"""

from __future__ import annotations

import math

from .emission import emitted
from .language import kernel
from .layout import (
    BASE,
    BLOCKS,
    CLASS_STRIDE,
    CLASSES,
    COUNT,
    DATA,
    DTYPE,
    FETCHED,
    LOSS,
    MADE,
    OUT,
    SAMPLE,
    SCALE,
    SECOND,
    SLOPES,
    STEP,
    UNIFORM_UPSTREAM,
    VALID,
    WEIGHT,
    X,
    Y,
)  # fmt: skip
from .mathematics import Exponential, exp_number, log1p_number, polynomial
from .memory import emit, get_size, put
from .pick_blocks import fetched
from .positions import block_range, operand, place, put_block, read_positions, run_at
from .rows import row_find, row_max, row_sum
from .runs import block_size, close, put_losses
from .vectors import Kit, Total, Value

MINUS_INFINITY, INFINITY, NAN = -math.inf, math.inf, math.nan


@emitted("iiiidddddd", "d")
def divergence_terms(
    kit: Kit, y: Value, x: Value, to: Value, n: Value, top_p: Value, top_q: Value, over_p: Value, over_q: Value,
    apart: Value, upstream: Value,
) -> Value:
    """The sum over n classes (filled up with -inf); upstream*(q - p) to `to`."""
    exponential = Exponential(kit)
    series, power = [], 0.5
    for term in range(8 if kit.single else 15):
        series.append(float(power).hex())
        power /= -(term + 3)
    highest_p, highest_q, by_p, by_q = (kit.full(v) for v in (top_p, top_q, over_p, over_q))
    between, factor = kit.full(apart), kit.full(upstream)
    total = Total(kit)
    with kit.loop(0, n, kit.lanes) as i:
        a = kit.load(y + i * kit.size) - highest_p
        b = kit.load(x + i * kit.size) - highest_q
        pc, qc = by_p * exponential(a), by_q * exponential(b)
        # Of two classes without weight p is 0.
        d = kit.select(a.equals(float("-inf")), float("-inf"), (a - b) - between)
        bent = (d * d) * polynomial(kit, d, tuple(series))
        far = qc + kit.drop(pc.equals(0.0), pc * (d - 1.0))
        near = kit.abs(d) < 0.5
        total.add(kit.select(near, pc * bent, kit.select(d.equals(float("inf")), float("inf"), far)))
        kit.store(to + i * kit.size, factor * kit.select(near, pc * (bent - d), qc - pc))
    return total.number()


@kernel("i")
def side(tag, c, which, p, to, c0, n):
    """N logits from class c0 of one side, filled up with -inf to whole groups."""
    at = fetched(tag, c, which, p, to, c0, n)
    for i in range(n, (n + 63) // 64 * 64):
        put(tag, at + i * get_size(tag), MINUS_INFINITY)
    return at


@kernel("dd")
def side_sum(tag, c, s, which, p, to):
    """(maximum, sum of exp(z - max) without one maximum; NaN if the maximum is not finite)."""
    top, total, c0 = MINUS_INFINITY, 0.0, 0
    while c0 < c[CLASSES]:
        n = block_size(tag, c[CLASSES] - c0)
        at, m, skip = side(tag, c, which, p, to, c0, n), max(n, 64), -1
        high = row_max(tag, at, m)
        if high > top:
            if top > MINUS_INFINITY:
                total = (total + 1.0) * exp_number(tag, top - high)
            skip, top = row_find(tag, at, m, high), high
        total += row_sum(tag, at, m, top if top > MINUS_INFINITY else 0.0, 1.0, skip, 0)
        c0 += n
    return top, total if MINUS_INFINITY < top < INFINITY else NAN


@kernel("d")
def divergence_row(tag, c, s, x, y, to, upstream: float):
    """The divergence of one position; upstream times its gradient to `to`, if that is not 0."""
    q_top, q_rest = side_sum(tag, c, s, X, x, s + FETCHED)
    p_top, p_rest = side_sum(tag, c, s, Y, y, s + SECOND)
    apart = log1p_number(tag, p_rest) - log1p_number(tag, q_rest)
    total, c0 = 0.0, 0
    while c0 < c[CLASSES]:
        n = block_size(tag, c[CLASSES] - c0)
        xp, yp = side(tag, c, X, x, s + FETCHED, c0, n), side(tag, c, Y, y, s + SECOND, c0, n)
        total += divergence_terms(
            tag, yp, xp, s + MADE, n, p_top, q_top, 1.0 / (1.0 + p_rest), 1.0 / (1.0 + q_rest), apart, upstream
        )
        if to:
            stride = operand(tag, c, OUT, CLASS_STRIDE)
            emit(tag, to + c0 * stride, operand(tag, c, OUT, DTYPE), stride, s + MADE, n)
        c0 += n
    return total if p_rest + q_rest == p_rest + q_rest else NAN


@kernel()
def divergence_blocks(tag, c, f, r, d, s, start, stop):
    """OP_DIVERGENCE."""
    weighted = operand(tag, c, WEIGHT, DATA)
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            run_at(tag, c, r, at, end)
            share, _bad = read_positions(tag, c, f, r, d, 1)
            close(tag, c, r, d)
            for k in range(r[VALID]):
                i = place(tag, r, k)
                to = r[BASE + OUT] + i * r[STEP + OUT] if r[BASE + OUT] else 0
                upstream = f[SCALE] if c[UNIFORM_UPSTREAM] else d[SLOPES + k]
                x, y = r[BASE + X] + i * r[STEP + X], r[BASE + Y] + i * r[STEP + Y]
                value = divergence_row(tag, c, s, x, y, to, upstream)
                put(tag, s + LOSS + k * get_size(tag), (d[SAMPLE + k] if weighted else 1.0) * value + 0.0)
            put_block(tag, c, block, put_losses(tag, c, r, s), share, -1)
            at += r[COUNT]
