"""Blocks of positions that share their vectors: few classes, or a class axis that is not the last.

Neighbouring positions of a matrix whose lines are classes are taken in place (COLUMNS), others through a tile that
holds up to TILE_CLASSES classes of some positions; where there are more classes the tile is packed again for each
pass.
"""

from __future__ import annotations

from ..._options import OP_GRAD, OP_LOG_SOFTMAX, OP_LOSS_SOFTMAX
from .emission import INLINE
from .ends import finish_run, finish_terms, wants_loss
from .lanes import (
    lanes_end,
    lanes_max,
    lanes_start,
    lanes_sum,
    lanes_sum_array,
    lanes_sum_uniform,
    lanes_write,
    lanes_write_array,
    lanes_write_log,
    lanes_write_uniform,
)  # fmt: skip
from .language import kernel
from .layout import (
    ARGMAX,
    BASE,
    BLOCKS,
    CLASS_STRIDE,
    CLASS_WEIGHT_R,
    CLASSES,
    CLOSED,
    COLUMNS,
    COUNT,
    DIRECT,
    DTYPE,
    FACTOR,
    FAMILY,
    FETCHED,
    FIRST,
    GAP,
    KIND,
    LOGIT_SCALE,
    MADE,
    MAX,
    OPERATION,
    OUT,
    PROBS,
    REST,
    SAVED,
    SHIFT,
    SLOPE_TILE,
    SMOOTHING,
    SOFTCAP,
    SPREAD,
    STEP,
    SWAPPED,
    TARGET,
    TARGET_TILE,
    TILE,
    TILE_CLASSES,
    TOP,
    TRANSFORM,
    VALID,
    VALUE,
    WIDTH,
    Z_SCALE,
    X,
    Y,
)  # fmt: skip
from .memory import emit, fetch, gather, get, get_size, put, scatter, times, transpose
from .positions import block_range, operand, place, put_block, read_positions, run_at
from .rows import NONE, UNIFORM, bend, mix
from .runs import (
    close,
    coefficients,
    fill_given,
    probabilities_of,
    put_losses,
    read_logit,
)  # fmt: skip


@kernel()
def pack(tag, c, r, s, which, tile, k, width, w, c0, n):
    """Classes c0 ... c0 + n of `width` positions from number k on into a tile of lines of w."""
    size = get_size(tag)
    base, step, stride = r[BASE + which], r[STEP + which], operand(tag, c, which, CLASS_STRIDE)
    dtype, swapped, line = operand(tag, c, which, DTYPE), operand(tag, c, which, SWAPPED), w * size
    ahead = c[SHIFT] if which == Y else 0
    if not r[CLOSED] and abs(step) < abs(stride):
        start = base + (k + ahead) * step + c0 * stride
        for i in range(n):
            fetch(tag, tile + i * line, start + i * stride, dtype, swapped, step, width)
        return
    plain = stride == size and dtype == (0 if size == 4 else 1) and not swapped
    if plain and not r[CLOSED]:
        transpose(tag, tile, line, base + (k + ahead) * step + c0 * stride, step, width, n)
        return
    for j in range(width):
        x = base + (place(tag, r, k + j) + ahead) * step + c0 * stride
        if not plain:
            fetch(tag, s + FETCHED, x, dtype, swapped, stride, n)
            x = s + FETCHED
        scatter(tag, tile + j * size, line, x, n)


@kernel()
def unpack(tag, c, r, s, k, width, w, c0, n):
    """A tile of results to the output."""
    size = get_size(tag)
    base, step, stride = r[BASE + OUT], r[STEP + OUT], operand(tag, c, OUT, CLASS_STRIDE)
    dtype, line = operand(tag, c, OUT, DTYPE), w * size
    if not r[CLOSED] and abs(step) < abs(stride):
        for i in range(n):
            emit(tag, base + k * step + (c0 + i) * stride, dtype, step, s + TILE + i * line, width)
        return
    plain = stride == size and dtype == (0 if size == 4 else 1)
    if plain and not r[CLOSED]:
        transpose(tag, base + k * step + c0 * stride, step, s + TILE, line, n, width)
        return
    for j in range(width):
        gather(tag, s + MADE, s + TILE + j * size, line, n)
        emit(tag, base + place(tag, r, k + j) * step + c0 * stride, dtype, stride, s + MADE, n)


@kernel("i")
def lines(tag, c, f, r, s, k, width, w, c0, n, columns):
    """The address of classes c0 ... c0 + n of a panel as lines of z, in place or packed."""
    if columns:
        return r[BASE + X] + k * get_size(tag) + c0 * operand(tag, c, X, CLASS_STRIDE)
    pack(tag, c, r, s, X, s + TILE, k, width, w, c0, n)
    if c[TRANSFORM]:
        bend(tag, s + TILE, s + SLOPE_TILE, n * w, f[LOGIT_SCALE], f[SOFTCAP])
    return s + TILE


@kernel("i")
def panel_coefficients(tag, c, f, r, s, k, width, w, c0, n):
    """The address of the coefficients of n classes from c0: one a class, or lines of one a position."""
    size = get_size(tag)
    weights = c[CLASS_WEIGHT_R]
    if not c[PROBS]:
        return weights + c0 * size
    tile = s + TARGET_TILE
    pack(tag, c, r, s, Y, tile, k, width, w, c0, n)
    if f[SMOOTHING] != 0:
        mix(tag, tile, 0, n * w, 1.0 - f[SMOOTHING], f[SMOOTHING] / c[CLASSES])
    if weights:
        for i in range(n):
            times(tag, tile + i * w * size, w, get(tag, weights + (c0 + i) * size))
    return tile


@kernel("i")
def panel_forward(tag, c, f, r, s, k, width, w, columns, kind):
    """The passes over a panel; returns the address of its lines, which are all there if the classes are few."""
    size, classes = get_size(tag), c[CLASSES]
    distance = operand(tag, c, X, CLASS_STRIDE) if columns else w * size
    step = classes if columns else min(classes, TILE_CLASSES)
    a, p = s + MAX + k * size, 0
    lanes_start(tag, a, w)
    for c0 in range(0, classes, step):
        n = min(step, classes - c0)
        p = lines(tag, c, f, r, s, k, width, w, c0, n, columns)
        lanes_max(tag, p, distance, n, w, a)
    for c0 in range(0, classes, step):
        n = min(step, classes - c0)
        if step < classes:
            p = lines(tag, c, f, r, s, k, width, w, c0, n, columns)
        if kind == NONE:
            lanes_sum(tag, p, distance, n, w, a, f[Z_SCALE], 0, 0)
        elif kind == UNIFORM:
            lanes_sum_uniform(tag, p, distance, n, w, a, f[Z_SCALE], 0, 0)
        else:
            q = panel_coefficients(tag, c, f, r, s, k, width, w, c0, n)
            lanes_sum_array(tag, p, distance, n, w, a, f[Z_SCALE], q, c[PROBS])
    lanes_end(tag, a, w)
    return p


@kernel()
def panel_tops(tag, c, f, r, d, s, k, width, w, whole):
    """The class of each position's maximum, and its coefficient: the term that must not cancel."""
    size = get_size(tag)
    for j in range(width):
        top, found, own = get(tag, s + MAX + (k + j) * size), -1, 0.0
        i = place(tag, r, k + j)
        x = r[BASE + X] + i * r[STEP + X]
        for t in range(c[CLASSES]):
            z = get(tag, s + TILE + (t * w + j) * size) if whole else read_logit(tag, c, f, s, x, t)
            if z == top:
                found = t
                break
        if found >= 0:
            own = float(get(tag, coefficients(tag, c, f, s, probabilities_of(tag, c, r, i), found, 1)))
        d[ARGMAX + k + j] = found
        put(tag, s + TOP + (k + j) * size, own)


@kernel()
def panel_write(tag, c, f, r, d, s, k, width, w, columns, whole):
    """The gradient, softmax or log-softmax of a panel. `whole`: the tile still holds all its logits."""
    size, classes, operation = get_size(tag), c[CLASSES], c[OPERATION]
    a, scale, softmax = s + MAX + k * size, f[Z_SCALE], operation >= OP_LOSS_SOFTMAX
    distance = operand(tag, c, X, CLASS_STRIDE) if columns else w * size
    out_distance = operand(tag, c, OUT, CLASS_STRIDE) if columns else distance
    step = classes if columns else min(classes, TILE_CLASSES)
    kind = NONE if softmax else c[KIND]
    slopes = s + SLOPE_TILE if c[TRANSFORM] and operation <= OP_GRAD else 0
    for c0 in range(0, classes, step):
        n, p, q = min(step, classes - c0), s + TILE, 0
        if not whole or columns:
            p = lines(tag, c, f, r, s, k, width, w, c0, n, columns)
        to = r[BASE + OUT] + k * size + c0 * out_distance if columns else s + TILE
        if operation == OP_LOG_SOFTMAX:
            lanes_write_log(tag, p, distance, to, out_distance, n, w, a, scale, 0, 0, 0)
        elif kind == NONE:
            lanes_write(tag, p, distance, to, out_distance, n, w, a, scale, 0, 0, slopes)
        elif kind == UNIFORM:
            lanes_write_uniform(tag, p, distance, to, out_distance, n, w, a, scale, 0, 0, slopes)
        else:
            q = panel_coefficients(tag, c, f, r, s, k, width, w, c0, n)
            lanes_write_array(tag, p, distance, to, out_distance, n, w, a, scale, q, c[PROBS], slopes)
        if not softmax:
            for j in range(width):
                at = (int(d[ARGMAX + k + j]) if c[PROBS] else r[TARGET + k + j]) - c0
                if 0 <= at < n:
                    value = float(get(tag, s + VALUE + (k + j) * size))
                    if slopes:
                        value *= float(get(tag, slopes + (at * w + j) * size))
                    put(tag, to + at * out_distance + j * size, value)
        if not columns:
            unpack(tag, c, r, s, k, width, w, c0, n)


@kernel()
def panel_find(tag, c, f, r, s, k, width, w, columns):
    """`width` positions from number k on, w of them with the filling of the last vector."""
    size, classes = get_size(tag), c[CLASSES]
    whole = not columns and classes <= TILE_CLASSES
    p = 0
    if c[SAVED]:
        for j in range(width):
            at = c[SAVED] + 2 * size * (r[FIRST] + place(tag, r, k + j))
            put(tag, s + MAX + (k + j) * size, get(tag, at))
            put(tag, s + REST + (k + j) * size, get(tag, at + size))
        whole = False
    else:
        p = panel_forward(tag, c, f, r, s, k, width, w, columns, c[KIND])
    if c[OPERATION] <= OP_LOSS_SOFTMAX and not c[PROBS]:
        own, stride = c[DIRECT] or (columns and not c[TRANSFORM]), operand(tag, c, X, CLASS_STRIDE)
        for j in range(width):
            t = max(r[TARGET + k + j], 0)
            if whole:
                z = float(get(tag, p + (t * w + j) * size))
            else:
                x = r[BASE + X] + place(tag, r, k + j) * r[STEP + X]
                z = get(tag, x + t * stride) if own else read_logit(tag, c, f, s, x, t)
            put(tag, s + GAP + (k + j) * size, z)


@kernel()
def panel_output(tag, c, f, r, d, s, k, width, w, columns):
    """The results of the same positions over the classes."""
    size, softmax = get_size(tag), c[OPERATION] >= OP_LOSS_SOFTMAX
    whole = not columns and c[CLASSES] <= TILE_CLASSES and not c[SAVED]
    if c[PROBS] and not softmax:
        panel_tops(tag, c, f, r, d, s, k, width, w, whole)
    finish_terms(tag, c, f, s + MAX + k * size, width)
    if r[VALID] < r[COUNT] and not r[CLOSED]:
        for j in range(width):
            if r[TARGET + k + j] < 0:
                put(tag, s + FACTOR + (k + j) * size, 0.0)
                put(tag, s + SPREAD + (k + j) * size, 0.0)
    panel_write(tag, c, f, r, d, s, k, width, w, columns, whole)


@kernel("dii")
def lane_run(tag, c, f, r, d, s, at, end, wants_output):
    """Read the run from position `at` on; (its share of the divisor, a bad position, how many positions to take)."""
    run_at(tag, c, r, at, end)
    share, bad = read_positions(tag, c, f, r, d, wants_output)
    if c[FAMILY] != COLUMNS or r[VALID] == 0:
        close(tag, c, r, d)
    count = r[VALID] if r[CLOSED] else r[COUNT]
    fill_given(tag, c, r, d, s, count)
    return share, bad, count


@kernel("ii")
def panel_at(tag, c, r, k, count):
    """How many positions the panel from number k on has, and whether it is in place."""
    vector, left = 64 // get_size(tag), count - k
    straight = c[FAMILY] == COLUMNS and not r[CLOSED] and left >= vector
    return left // vector * vector if straight else min(left, c[WIDTH]), straight


@kernel("i", INLINE)
def rounded(tag, width):
    """So many positions with the filling of the last vector."""
    vector = 64 // get_size(tag)
    return (width + vector - 1) // vector * vector


@kernel("d")
def lane_losses(tag, c, f, r, s, count):
    """Write the run's losses, if it has some; returns their sum."""
    finish_run(tag, c, f, r, s, count)
    return put_losses(tag, c, r, s) if wants_loss(tag, c) else 0.0


@kernel()
def lane_blocks(tag, c, f, r, d, s, start, stop):
    """Operations up to OP_LOGSUMEXP without an output of the logits' shape."""
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            share, wrong, count = lane_run(tag, c, f, r, d, s, at, end, 0)
            k = 0
            while k < count:
                width, straight = panel_at(tag, c, r, k, count)
                panel_find(tag, c, f, r, s, k, width, rounded(tag, width), straight)
                k += width
            put_block(tag, c, block, lane_losses(tag, c, f, r, s, count), share, wrong)
            at += r[COUNT]


@kernel()
def lane_output_blocks(tag, c, f, r, d, s, start, stop):
    """The same with such an output."""
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            share, wrong, count = lane_run(tag, c, f, r, d, s, at, end, 1)
            k = 0
            while k < count:
                width, straight = panel_at(tag, c, r, k, count)
                panel_find(tag, c, f, r, s, k, width, rounded(tag, width), straight)
                panel_output(tag, c, f, r, d, s, k, width, rounded(tag, width), straight)
                k += width
            put_block(tag, c, block, lane_losses(tag, c, f, r, s, count), share, wrong)
            at += r[COUNT]
