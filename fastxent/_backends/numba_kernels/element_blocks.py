"""Blocks of single elements: a run of up to MAX_WIDTH is fetched, computed, weighed and written.

All of a run is computed before any of it is written, so results may replace their inputs. Where memory holds just the
values that the kernels take, they are read in place.
"""

from __future__ import annotations

from ..._options import (
    OP_ABSOLUTE,
    OP_BINARY_LOGITS,
    OP_BINARY_PROBS,
    OP_HUBER,
    OP_SIGMOID,
    OP_SMOOTH_L1,
    OP_SQUARED,
)  # fmt: skip
from .elements import (
    absolute,
    binary_logits,
    binary_probs,
    find_outside,
    huber,
    log_sigmoid,
    sigmoid,
    smooth_l1,
    squared,
)  # fmt: skip
from .finish import sum_losses
from .language import kernel
from .layout import (
    BASE,
    BENT,
    BLOCKS,
    COEFFICIENTS,
    COUNT,
    DATA,
    DTYPE,
    FETCHED,
    FIRST,
    LENGTHS,
    LOSS,
    LOSSES,
    MADE,
    MASK,
    MAX_WIDTH,
    OPERATION,
    OUT,
    PARAMETER,
    POSITION_LOSS,
    POSITION_WEIGHT,
    POSITIVE,
    SAMPLE,
    SAMPLE_R,
    SCALE,
    SECOND,
    SLOPES,
    STEP,
    SWAPPED,
    TARGET,
    UNIFORM_UPSTREAM,
    UPSTREAM_R,
    VALID,
    WEIGHT,
    X,
    Y,
)  # fmt: skip
from .memory import convert, emit, fetch, fill, get_size, put
from .positions import block_range, operand, put_block, read_positions, run_at
from .rows import multiply


@kernel("i")
def values_of(tag, c, r, which, to):
    """The address of a run of an operand as the compute type: its own, or `to`."""
    size, dtype, step = get_size(tag), operand(tag, c, which, DTYPE), r[STEP + which]
    swapped = operand(tag, c, which, SWAPPED)
    if step == size and dtype == (0 if size == 4 else 1) and not swapped and r[COUNT] % 16 == 0:
        return r[BASE + which]
    fetch(tag, to, r[BASE + which], dtype, swapped, step, r[COUNT])
    return to


@kernel()
def compute(tag, operation, x, y, positive, loss, slope, n, parameter: float, scale: float):
    if operation == OP_BINARY_PROBS:
        binary_probs(tag, x, y, positive, loss, slope, n, parameter, scale)
    elif operation == OP_BINARY_LOGITS:
        binary_logits(tag, x, y, positive, loss, slope, n, parameter, scale)
    elif operation == OP_SQUARED:
        squared(tag, x, y, positive, loss, slope, n, parameter, scale)
    elif operation == OP_ABSOLUTE:
        absolute(tag, x, y, positive, loss, slope, n, parameter, scale)
    elif operation == OP_HUBER:
        huber(tag, x, y, positive, loss, slope, n, parameter, scale)
    elif operation == OP_SMOOTH_L1:
        smooth_l1(tag, x, y, positive, loss, slope, n, parameter, scale)
    elif operation == OP_SIGMOID:
        sigmoid(tag, x, y, positive, loss, slope, n, parameter, scale)
    else:
        log_sigmoid(tag, x, y, positive, loss, slope, n, parameter, scale)


@kernel("i")
def first_outside(tag, r, p):
    """The first valid position whose probability is outside [0, 1], or -1."""
    i, n = 0, r[COUNT]
    while i < n:
        i += find_outside(tag, p + i * get_size(tag), n - i)
        if i < n and r[TARGET + i] >= 0:
            return r[FIRST] + i
        i += 1
    return -1


@kernel()
def weigh(tag, c, r, d, s):
    """What mask and weights leave of losses and slopes."""
    n, size = r[COUNT], get_size(tag)
    if operand(tag, c, WEIGHT, DATA):
        convert(tag, s + SAMPLE_R, d + 8 * SAMPLE, n)
        multiply(tag, s + LOSS, s + SAMPLE_R, n)
    if not c[UNIFORM_UPSTREAM]:
        convert(tag, s + UPSTREAM_R, d + 8 * SLOPES, n)
        multiply(tag, s + MADE, s + UPSTREAM_R, n)
    if r[VALID] < n:
        for i in range(n):
            if r[TARGET + i] < 0:
                put(tag, s + LOSS + i * size, 0.0)
                put(tag, s + MADE + i * size, 0.0)


@kernel("d")
def element_run(tag, c, f, r, d, s, zeros, ones):
    """Compute and write a run; returns the sum of its losses."""
    operation, n, size = c[OPERATION], r[COUNT], get_size(tag)
    if r[VALID]:
        x, y, positive = values_of(tag, c, r, X, s + FETCHED), zeros, ones
        if r[BASE + Y]:
            y = values_of(tag, c, r, Y, s + SECOND)
        if r[BASE + POSITIVE]:
            fetch(tag, s + COEFFICIENTS, r[BASE + POSITIVE], 1, 0, r[STEP + POSITIVE], n)
            positive = s + COEFFICIENTS
        scale = f[SCALE] if c[UNIFORM_UPSTREAM] else 1.0
        compute(tag, operation, x, y, positive, s + LOSS, s + MADE, n, f[PARAMETER], scale)
        weigh(tag, c, r, d, s)
    else:
        fill(tag, s + LOSS, n, 0.0)
        fill(tag, s + MADE, n, 0.0)
    if r[BASE + OUT]:
        emit(tag, r[BASE + OUT], operand(tag, c, OUT, DTYPE), r[STEP + OUT], s + MADE, n)
    if operation >= OP_SIGMOID:
        return 0.0
    if r[BASE + LOSSES]:
        emit(tag, r[BASE + LOSSES], operand(tag, c, LOSSES, DTYPE), r[STEP + LOSSES], s + LOSS, n)
    if c[POSITION_LOSS]:
        emit(tag, c[POSITION_LOSS] + r[FIRST] * size, 0 if size == 4 else 1, size, s + LOSS, n)
    return sum_losses(tag, s + LOSS, n)


@kernel()
def blocks_of(tag, c, f, r, d, s, start, stop, prepare):
    zeros, ones = s + BENT, s + BENT + 8 * MAX_WIDTH
    fill(tag, zeros, MAX_WIDTH, 0.0)
    fill(tag, ones, MAX_WIDTH, 1.0)
    masked = operand(tag, c, MASK, DATA) or c[LENGTHS] or c[POSITION_WEIGHT] or not c[UNIFORM_UPSTREAM]
    checked = c[OPERATION] == OP_BINARY_PROBS
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            total, divisor, bad = 0.0, 0.0, -1
            run_at(tag, c, r, at, min(end, at + MAX_WIDTH))
            if masked or checked:
                share, _bad = read_positions(tag, c, f, r, d, not prepare)
                divisor = share
            else:
                r[VALID] = r[COUNT]
                divisor = float(r[COUNT])
            if checked and r[VALID]:
                bad = first_outside(tag, r, values_of(tag, c, r, X, s + FETCHED))
            if not prepare:
                total = element_run(tag, c, f, r, d, s, zeros, ones)
            put_block(tag, c, block, total, divisor, bad)
            at += r[COUNT]


@kernel()
def element_blocks(tag, c, f, r, d, s, start, stop):
    """The operations of single elements."""
    blocks_of(tag, c, f, r, d, s, start, stop, 0)


@kernel()
def element_checks(tag, c, f, r, d, s, start, stop):
    """What these operations do beforehand: sum the divisor, check probabilities."""
    blocks_of(tag, c, f, r, d, s, start, stop, 1)
