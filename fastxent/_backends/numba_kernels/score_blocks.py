"""Statistics of positions in the sweeps of the loss: how likely the target is, its rank, the largest logit's class, the
entropy; partials of a range of classes; the k largest.

Which logit is larger is asked of the logits as they are given: logit_scale and softcap change no order, but their
rounding could. The entropy is log1p(rest) + sum of e*(max - z)/(1 + rest), every term at least 0: nothing cancels, also
where p -> 1. The k largest are kept where the results will be, as a heap whose root goes first (the smallest value, of
equal ones the largest class).
"""

from __future__ import annotations

import math

from ..._options import OP_PARTIALS, OP_TOP_K
from .lane_blocks import lines
from .lanes import lanes_end, lanes_start, lanes_sum_entropy
from .language import kernel
from .layout import (
    ARGMAX,
    BASE,
    BENT,
    BLOCKS,
    CLASS_STRIDE,
    CLASSES,
    CLOSED,
    COLUMNS,
    COUNT,
    DIRECT,
    DOT,
    DTYPE,
    FACTOR,
    FAMILY,
    FETCHED,
    FIRST,
    LOGIT_SCALE,
    LOSS,
    MAX,
    OPERATION,
    RANK,
    REST,
    ROWS,
    SOFTCAP,
    SPREAD,
    STATISTICS,
    STEP,
    SWAPPED,
    TARGET,
    TILE_CLASSES,
    TOP,
    TOP_K,
    TRANSFORM,
    VALID,
    VALUE,
    WIDTH,
    Z_SCALE,
    X,
)  # fmt: skip
from .mathematics import exp_number, log1p_number
from .memory import emit, fetch, get, get_integer, get_size, put, put_double, put_integer
from .positions import block_range, operand, place, put_block, read_positions, run_at
from .row_blocks import row_has_nan
from .rows import bend, row_find, row_max, row_sum, row_sum_entropy
from .runs import block_size, close
from .scores import count_at_least, count_larger, find_larger, finish_statistics, lanes_order

MINUS_INFINITY, INFINITY, NAN = -math.inf, math.inf, math.nan


@kernel("i")
def score_block(tag, c, s, x, c0, n):
    """The address of n logits from class c0 as given; a row shorter than a group is filled up with -inf."""
    size = get_size(tag)
    if c[DIRECT]:
        return x + c0 * size
    stride = operand(tag, c, X, CLASS_STRIDE)
    fetch(tag, s + FETCHED, x + c0 * stride, operand(tag, c, X, DTYPE), operand(tag, c, X, SWAPPED), stride, n)
    for i in range(n, 64):
        put(tag, s + FETCHED + i * size, MINUS_INFINITY)
    return s + FETCHED


@kernel("d")
def given_logit(tag, c, s, x, t):
    """One logit as given."""
    return get(tag, score_block(tag, c, s, x, t, 1))


@kernel("d")
def bent_logit(tag, c, f, s, v: float):
    """Z of one logit."""
    if not c[TRANSFORM]:
        return v
    put(tag, s + FETCHED, v)
    bend(tag, s + FETCHED, s + BENT, 1, f[LOGIT_SCALE], f[SOFTCAP])
    return get(tag, s + FETCHED)


@kernel("dddii")
def score_row(tag, c, f, s, x, target, value: float, heap, classes_of):
    """(max z, rest, moment, argmax, rank) of a row; with `heap`, its k largest instead of the last three."""
    classes, scale = c[CLASSES], f[Z_SCALE]
    top, given_top, total, lost, moment = MINUS_INFINITY, MINUS_INFINITY, 0.0, 0.0, 0.0
    argmax, rank, have, c0 = 0, 0, 0, 0
    while c0 < classes:
        n = block_size(tag, classes - c0)
        p = score_block(tag, c, s, x, c0, n)
        m = max(n, 64)
        high = row_max(tag, p, m)
        if heap:
            have = top_scan(tag, c, heap, classes_of, have, p, c0, n)
        else:
            # Equal logits of earlier classes come before the target.
            before = max(0, min(target - c0, n))
            rank += count_at_least(tag, p, before, value)
            rank += count_larger(tag, p + before * get_size(tag), n - before, value)
            if high > given_top:
                argmax, given_top = c0 + row_find(tag, p, m, high), high
        if c[TRANSFORM]:
            bend(tag, s + FETCHED, s + BENT, m, f[LOGIT_SCALE], f[SOFTCAP])
            high = row_max(tag, p, m)
        skip = -1
        if high > top:
            if top > MINUS_INFINITY:  # the former maximum joins the rest
                up = high - top
                shrink = exp_number(tag, -scale * up)
                moment = shrink * (moment + up * (total + lost + 1.0))
                total = (total + 1.0) * shrink
                lost *= shrink
            skip = row_find(tag, p, m, high)
            top = high
        reference = top if top > MINUS_INFINITY else 0.0
        if heap:
            add = row_sum(tag, p, m, reference, scale, skip, 0)
        else:
            add, more, _mass = row_sum_entropy(tag, p, m, reference, scale, skip, 0)
            moment += more
        together = total + add
        lost += (total - together) + add if total > add else (add - together) + total  # Neumaier
        total = together
        c0 += n
    if lost == lost:
        total += lost
    if top == INFINITY:
        total = NAN if row_has_nan(tag, c, s, x) else 0.0  # inf - inf was NaN as well
    return top, total, scale * moment, argmax, rank


@kernel()
def score_rows(tag, c, f, r, d, s):
    size = get_size(tag)
    for k in range(r[VALID]):
        x = r[BASE + X] + place(tag, r, k) * r[STEP + X]
        given = given_logit(tag, c, s, x, r[TARGET + k])
        top, rest, moment, argmax, rank = score_row(tag, c, f, s, x, r[TARGET + k], given, 0, 0)
        put(tag, s + MAX + k * size, top)
        put(tag, s + REST + k * size, rest)
        put(tag, s + DOT + k * size, moment)
        put(tag, s + TOP + k * size, bent_logit(tag, c, f, s, given))
        d[ARGMAX + k] = argmax
        d[RANK + k] = rank


# the k largest


@kernel("i")
def after(tag, a: float, i, b: float, j):
    """Whether (a, class i) comes after (b, class j)."""
    return a < b or (a == b and i > j)


@kernel()
def sift(tag, heap, classes_of, n, at, v: float, i):
    """Put (v, i) into the heap of n, from the free place `at` downwards."""
    size = get_size(tag)
    while 2 * at + 1 < n:
        child = 2 * at + 1
        value, number = get(tag, heap + child * size), get_integer(tag, classes_of + 8 * child)
        if child + 1 < n:
            other, its = get(tag, heap + (child + 1) * size), get_integer(tag, classes_of + 8 * (child + 1))
            if after(tag, other, its, value, number):
                child, value, number = child + 1, other, its
        if not after(tag, value, number, v, i):
            break
        put(tag, heap + at * size, value)
        put_integer(tag, classes_of + 8 * at, number)
        at = child
    put(tag, heap + at * size, v)
    put_integer(tag, classes_of + 8 * at, i)


@kernel("i")
def top_scan(tag, c, heap, classes_of, have, p, c0, n):
    """Take what belongs to the largest from the n classes at p; returns how many there are."""
    size, k, i = get_size(tag), c[TOP_K], 0
    while have < k and i < n:
        put(tag, heap + have * size, get(tag, p + i * size))
        put_integer(tag, classes_of + 8 * have, c0 + i)
        have, i = have + 1, i + 1
        if have == k:
            for at in range(k // 2 - 1, -1, -1):
                sift(tag, heap, classes_of, k, at, get(tag, heap + at * size), get_integer(tag, classes_of + 8 * at))
    if have < k:
        return have
    while i < n:
        i += find_larger(tag, p + i * size, n - i, get(tag, heap))
        if i >= n:
            break
        sift(tag, heap, classes_of, k, 0, get(tag, p + i * size), c0 + i)
        i += 1
    return have


@kernel()
def score_tops(tag, c, f, r, s):
    size, k = get_size(tag), c[TOP_K]
    for i in range(r[COUNT]):
        at = (r[FIRST] + i) * k
        heap, classes_of = c[STATISTICS] + at * size, c[STATISTICS + 1] + at * 8
        top, rest, _moment, _argmax, _rank = score_row(
            tag, c, f, s, r[BASE + X] + i * r[STEP + X], 0, 0.0, heap, classes_of
        )
        for n in range(k - 1, 0, -1):
            v, number = get(tag, heap + n * size), get_integer(tag, classes_of + 8 * n)
            put(tag, heap + n * size, get(tag, heap))
            put_integer(tag, classes_of + 8 * n, get_integer(tag, classes_of))
            sift(tag, heap, classes_of, n, 0, v, number)
        log_rest, defined = log1p_number(tag, rest), top - top == 0 and rest == rest
        for j in range(k):
            below = f[Z_SCALE] * (top - bent_logit(tag, c, f, s, get(tag, heap + j * size))) + log_rest
            put(tag, heap + j * size, 0.0 - below if defined else NAN)
            if rest != rest:
                put_integer(tag, classes_of + 8 * j, -1)


# lanes


@kernel()
def score_panel(tag, c, f, r, d, s, k, width, w, columns):
    """`width` positions from number k on, w of them with the filling of the last vector."""
    size, classes = get_size(tag), c[CLASSES]
    distance = operand(tag, c, X, CLASS_STRIDE) if columns else w * size
    step, a, p = TILE_CLASSES, s + MAX + k * size, 0
    lanes_start(tag, a, w)
    for j in range(w):
        logit = 0.0
        if j < width:
            x = r[BASE + X] + place(tag, r, k + j) * r[STEP + X]
            if columns:
                logit = get(tag, x + max(r[TARGET + k + j], 0) * operand(tag, c, X, CLASS_STRIDE))
            else:
                logit = given_logit(tag, c, s, x, max(r[TARGET + k + j], 0))
            d[ARGMAX + k + j] = 0.0
            d[RANK + k + j] = 0.0
        put(tag, s + TOP + (k + j) * size, logit)
    for c0 in range(0, classes, step):
        n = min(step, classes - c0)
        p = lines(tag, c, f, r, s, k, width, w, c0, n, columns)
        for j in range(w):
            at = max(0, min(r[TARGET + k + j] - c0, n)) if j < width else 0
            put(tag, s + VALUE + (k + j) * size, float(at))
        lanes_order(tag, p, distance, n, w, a)
        for j in range(width):
            met = get(tag, s + FACTOR + (k + j) * size)
            if met >= 0:
                d[ARGMAX + k + j] = float(c0) + met
            d[RANK + k + j] += get(tag, s + SPREAD + (k + j) * size)
    for c0 in range(0, classes, step):
        n = min(step, classes - c0)
        if columns or step < classes:
            p = lines(tag, c, f, r, s, k, width, w, c0, n, columns)
        lanes_sum_entropy(tag, p, distance, n, w, a, f[Z_SCALE], 0, 0)
    lanes_end(tag, a, w)
    for j in range(width):
        put(tag, s + DOT + (k + j) * size, f[Z_SCALE] * get(tag, s + DOT + (k + j) * size))


@kernel()
def score_lanes(tag, c, f, r, d, s, count):
    vector, columns, k = 64 // get_size(tag), c[FAMILY] == COLUMNS, 0
    while k < count:
        left = count - k
        straight = columns and not r[CLOSED] and left >= vector
        width = left // vector * vector if straight else min(left, c[WIDTH])
        w = (width + vector - 1) // vector * vector
        score_panel(tag, c, f, r, d, s, k, width, w, straight)
        k += width


# results


@kernel()
def put_partials(tag, c, f, r, d, s, n):
    """(m, s, the target's logit, argmax, 1) of a position, in float64; (0, 0, 0, -1, 1) of an invalid one."""
    size, scale, to = get_size(tag), f[Z_SCALE], c[STATISTICS] + 40 * r[FIRST]
    for i in range(r[COUNT]):
        for j in range(5):
            put_double(tag, to + 40 * i + 8 * j, 0.0 if j < 3 else -1.0 if j == 3 else 1.0)
    for k in range(n):
        if r[TARGET + k] < 0:
            continue
        at = to + 40 * place(tag, r, k)
        top, rest = get(tag, s + MAX + k * size), get(tag, s + REST + k * size)
        put_double(tag, at, NAN if rest != rest else scale * top)
        put_double(tag, at + 8, rest if rest != rest or top - top == 0 else 0.0)
        put_double(tag, at + 16, scale * get(tag, s + TOP + k * size))
        put_double(tag, at + 24, -1.0 if rest != rest else d[ARGMAX + k])


@kernel()
def put_real(tag, c, r, which, p, n):
    """N positions' values at p to one of the results, 0 where a position is invalid."""
    size, to = get_size(tag), c[STATISTICS + which]
    if to == 0:
        return
    to += r[FIRST] * size
    if r[VALID] == r[COUNT]:
        emit(tag, to, 0 if size == 4 else 1, size, p, n)
        return
    for i in range(r[COUNT]):
        put(tag, to + i * size, 0.0)
    for k in range(n):
        if r[TARGET + k] >= 0:
            put(tag, to + place(tag, r, k) * size, get(tag, p + k * size))


@kernel()
def put_classes(tag, c, r, d, s, which, n):
    """The same for ARGMAX and RANK: int64, -1 where a position is invalid or NaN."""
    to, size = c[STATISTICS + which], get_size(tag)
    if to == 0:
        return
    to += 8 * r[FIRST]
    for i in range(r[COUNT]):
        put_integer(tag, to + 8 * i, -1)
    source = ARGMAX if which == 2 else RANK
    for k in range(n):
        rest = get(tag, s + REST + k * size)
        if r[TARGET + k] >= 0 and rest == rest:
            put_integer(tag, to + 8 * place(tag, r, k), int(d[source + k]))


@kernel()
def score_blocks(tag, c, f, r, d, s, start, stop):
    """OP_STATISTICS, OP_PARTIALS and OP_TOP_K."""
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            run_at(tag, c, r, at, end)
            share, wrong = read_positions(tag, c, f, r, d, 0)
            if c[OPERATION] == OP_TOP_K:
                score_tops(tag, c, f, r, s)
            else:
                if c[FAMILY] != COLUMNS or r[VALID] == 0:
                    close(tag, c, r, d)
                n = r[VALID] if r[CLOSED] else r[COUNT]
                if c[FAMILY] == ROWS:
                    score_rows(tag, c, f, r, d, s)
                else:
                    score_lanes(tag, c, f, r, d, s, n)
                if c[OPERATION] == OP_PARTIALS:
                    put_partials(tag, c, f, r, d, s, n)
                else:
                    finish_statistics(tag, s + MAX, n, f[Z_SCALE])
                    put_real(tag, c, r, 0, s + LOSS, n)
                    put_real(tag, c, r, 1, s + FACTOR, n)
                    put_classes(tag, c, r, d, s, 2, n)
                    put_classes(tag, c, r, d, s, 3, n)
                    put_real(tag, c, r, 4, s + SPREAD, n)
                    put_real(tag, c, r, 5, s + VALUE, n)
            put_block(tag, c, block, 0.0, share, wrong)
            at += r[COUNT]
