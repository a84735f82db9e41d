"""What the kernels of every operation share: a run's parameters, its blocks of a row, and its results."""

from __future__ import annotations

import math

from .emission import INLINE
from .finish import sum_losses
from .language import kernel
from .layout import (
    BASE,
    BENT,
    BLOCK,
    CLASS_STRIDE,
    CLASS_WEIGHT,
    CLASS_WEIGHT_R,
    CLASSES,
    CLOSED,
    COEFFICIENTS,
    COUNT,
    DATA,
    DIRECT,
    DTYPE,
    FETCHED,
    FIRST,
    INDEX,
    LOGIT_SCALE,
    LOSS,
    LOSSES,
    MAX,
    OUT,
    POSITION_LOSS,
    PROBS,
    REST,
    SAMPLE,
    SAMPLE_R,
    SAVED_OUT,
    SHIFT,
    SLOPES,
    SMOOTHING,
    SOFTCAP,
    STEP,
    SWAPPED,
    TARGET,
    TOP,
    TRANSFORM,
    UNIFORM_UPSTREAM,
    UPSTREAM_R,
    VALID,
    WEIGHT,
    X,
    Y,
)  # fmt: skip
from .memory import convert, emit, fetch, get, get_double, get_size, put, zero_bytes
from .positions import close_up, operand, place
from .rows import bend, mix

MINUS_INFINITY = -math.inf
GROUP = 64  # the most classes of a group of vectors


@kernel("i", INLINE)
def block_size(tag, left):
    """How many of the classes that are left to take at once: no last block is smaller than a group."""
    return left if left <= BLOCK + GROUP else BLOCK


@kernel("i")
def row_block(tag, c, f, s, x, c0, n, minus_infinity):
    """The address of n classes from c0 of the row at x, as z in the compute type; dz/dx then stands at BENT."""
    if c[DIRECT]:
        return x + c0 * get_size(tag)
    stride = operand(tag, c, X, CLASS_STRIDE)
    fetch(tag, s + FETCHED, x + c0 * stride, operand(tag, c, X, DTYPE), operand(tag, c, X, SWAPPED), stride, n)
    if c[TRANSFORM]:
        bend(tag, s + FETCHED, s + BENT, n, f[LOGIT_SCALE], f[SOFTCAP])
    for i in range(n, minus_infinity):  # a row shorter than a group is filled up
        put(tag, s + FETCHED + i * get_size(tag), MINUS_INFINITY)
    return s + FETCHED


@kernel("i")
def coefficients(tag, c, f, s, q, c0, n):
    """The address of the coefficients of n classes from c0: class weights, or w*((1-e)*q + e/C)."""
    weights = c[CLASS_WEIGHT_R]
    if weights:
        weights += c0 * get_size(tag)
    if not q:
        return weights
    stride = operand(tag, c, Y, CLASS_STRIDE)
    fetch(tag, s + COEFFICIENTS, q + c0 * stride, operand(tag, c, Y, DTYPE), operand(tag, c, Y, SWAPPED), stride, n)
    mix(tag, s + COEFFICIENTS, weights, n, 1.0 - f[SMOOTHING], f[SMOOTHING] / c[CLASSES])
    return s + COEFFICIENTS


@kernel("d")
def read_logit(tag, c, f, s, x, t):
    """Z of one class of the row at x. Overwrites FETCHED."""
    if c[DIRECT]:
        return float(get(tag, x + t * get_size(tag)))
    return float(get(tag, row_block(tag, c, f, s, x, t, 1, 1)))


@kernel()
def zero_row(tag, c, to):
    """Zeros over the classes of one position of the output."""
    stride, size = operand(tag, c, OUT, CLASS_STRIDE), 2
    if operand(tag, c, OUT, DTYPE) < 2:
        size = 4 + 4 * operand(tag, c, OUT, DTYPE)
    if stride == size:
        zero_bytes(tag, to, size * c[CLASSES])
        return
    for i in range(c[CLASSES]):
        zero_bytes(tag, to + i * stride, size)


@kernel()
def zero_invalid(tag, c, r):
    """Zeros in the output's rows of invalid positions."""
    if r[BASE + OUT] and r[VALID] < r[COUNT]:
        for i in range(r[COUNT]):
            if r[TARGET + i] < 0:
                zero_row(tag, c, r[BASE + OUT] + i * r[STEP + OUT])


@kernel()
def close(tag, c, r, d):
    """Take the valid positions alone."""
    if r[VALID] < r[COUNT]:
        zero_invalid(tag, c, r)
        close_up(tag, c, r, d)


@kernel()
def fill_given(tag, c, r, d, s, n):
    """What finish.py wants of each of n positions, in the compute type."""
    size = get_size(tag)
    if c[CLASS_WEIGHT] and not c[PROBS]:
        for i in range(n):
            t = r[TARGET + i]
            put(tag, s + TOP + i * size, get_double(tag, c[CLASS_WEIGHT] + 8 * t) if t >= 0 else 1.0)
    if operand(tag, c, WEIGHT, DATA):
        convert(tag, s + SAMPLE_R, d + 8 * SAMPLE, n)
    if not c[UNIFORM_UPSTREAM]:
        convert(tag, s + UPSTREAM_R, d + 8 * SLOPES, n)


@kernel("i", INLINE)
def probabilities_of(tag, c, r, i):
    """The address of the class probabilities of the run's position i, 0 if targets are indices."""
    return r[BASE + Y] + (i + c[SHIFT]) * r[STEP + Y] if c[PROBS] else 0


@kernel()
def open_up(tag, r, p):
    """From the valid positions' values at p to all positions', 0 elsewhere."""
    size, i = get_size(tag), r[COUNT] - 1
    for k in range(r[VALID] - 1, -1, -1):
        at, v = r[INDEX + k], get(tag, p + k * size)
        while i > at:
            put(tag, p + i * size, 0.0)
            i -= 1
        put(tag, p + i * size, v)
        i -= 1
    while i >= 0:
        put(tag, p + i * size, 0.0)
        i -= 1


@kernel("d")
def put_losses(tag, c, r, s):
    """Write a run's losses where they are wanted; returns their sum."""
    p, n, size = s + LOSS, r[COUNT], get_size(tag)
    if r[CLOSED]:
        open_up(tag, r, p)
    elif r[VALID] < n:
        for i in range(n):
            if r[TARGET + i] < 0:
                put(tag, p + i * size, 0.0)
    if r[BASE + LOSSES]:
        emit(tag, r[BASE + LOSSES], operand(tag, c, LOSSES, DTYPE), r[STEP + LOSSES], p, n)
    if c[POSITION_LOSS]:
        emit(tag, c[POSITION_LOSS] + r[FIRST] * size, 0 if size == 4 else 1, size, p, n)
    return sum_losses(tag, p, n)


@kernel()
def save(tag, c, f, r, s, n):
    """The maximum and the rest of each position, 0 where it is invalid."""
    size = get_size(tag)
    to = c[SAVED_OUT] + 2 * size * r[FIRST]
    if r[VALID] < r[COUNT]:
        zero_bytes(tag, to, 2 * size * r[COUNT])
    for k in range(n):
        if r[TARGET + k] < 0:
            continue
        at, top = to + 2 * size * place(tag, r, k), float(get(tag, s + MAX + k * size))
        put(tag, at, top if c[TRANSFORM] else f[LOGIT_SCALE] * top)
        put(tag, at + size, get(tag, s + REST + k * size))

