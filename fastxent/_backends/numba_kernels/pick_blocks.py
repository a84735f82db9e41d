"""Losses without a sum over exponentials, and the backward of the activations.

Of given log-probabilities (-x) or probabilities (-log x), at the target's class or weighted over the classes; the
plain masked sum of given losses (x itself); y*(g - sum g*y) of softmax and g - exp(y)*sum g of log-softmax, from the
output y. A coefficient of 0 skips its term, whatever it multiplies.
"""

from __future__ import annotations

from ..._options import (
    OP_LOG_SOFTMAX_GRAD,
    OP_NLL_GRAD,
    OP_PROBS_GRAD,
    OP_REDUCE,
    OP_SOFTMAX_GRAD,
)  # fmt: skip
from .emission import emitted
from .language import kernel
from .layout import (
    BASE,
    BLOCKS,
    CLASS_STRIDE,
    CLASS_WEIGHT,
    CLASSES,
    COUNT,
    DATA,
    DTYPE,
    FETCHED,
    LOSS,
    MADE,
    OPERATION,
    OUT,
    PROBS,
    SAMPLE,
    SCALE,
    SECOND,
    SLOPES,
    STEP,
    SWAPPED,
    TARGET,
    UNIFORM_UPSTREAM,
    VALID,
    WEIGHT,
    X,
    Y,
)  # fmt: skip
from .mathematics import Exponential, log, log_number
from .memory import emit, fetch, get, get_double, get_size, put
from .positions import block_range, operand, place, put_block, read_positions, run_at
from .runs import block_size, close, coefficients, probabilities_of, put_losses, zero_row
from .vectors import Kit, Total, Value

AS_GIVEN, NEGATIVE, NEGATIVE_LOG = range(3)


def _tail(kit: Kit, p: Value, n: Value, filling: float) -> None:
    """Fill up the last vector of n values with a number."""
    with kit.loop(n, (n + kit.lanes - 1) & -kit.lanes) as i:
        kit.store(p + i * kit.size, Value(kit, kit.real(filling)))


@emitted("iiii", "d")
def pick_dot(kit: Kit, x: Value, c: Value, n: Value, form: Value) -> Value:
    """Sum of coefficient*value over n classes; both arrays have room for a whole last vector, which is filled."""
    _tail(kit, x, n, 1.0)
    _tail(kit, c, n, 0.0)
    total = Total(kit)
    with kit.loop(0, n, kit.lanes) as i:
        w, v = kit.load(c + i * kit.size), kit.load(x + i * kit.size)
        value = kit.variable(0.0 - v)
        with kit.when(form.equals(NEGATIVE_LOG)):
            value.set(0.0 - log(kit, v))
        total.add(kit.drop(w.equals(0.0), w * value.get()))
    return total.number()


@emitted("iiiidi")
def pick_slope(kit: Kit, x: Value, c: Value, to: Value, n: Value, upstream: Value, form: Value) -> None:
    """upstream*coefficient*slope of n classes."""
    factor = kit.full(0.0 - kit.narrow(upstream))
    with kit.loop(0, n, kit.lanes) as i:
        w, v = kit.load(c + i * kit.size), kit.load(x + i * kit.size)
        g = factor * w
        # The quotient last: 1/p of a tiny p may overflow.
        g = Value(kit, kit.b.select(form.equals(NEGATIVE_LOG).raw, (g / v).raw, g.raw))
        kit.store(to + i * kit.size, kit.drop(w.equals(0.0), g))


@emitted("iiii", "d")
def backward_sum(kit: Kit, y: Value, g: Value, n: Value, logarithm: Value) -> Value:
    """Sum of g*y, or of g."""
    _tail(kit, y, n, 0.0)
    _tail(kit, g, n, 0.0)
    total = Total(kit)
    with kit.loop(0, n, kit.lanes) as i:
        v = kit.load(g + i * kit.size)
        total.add(kit.pick(logarithm, v, kit.load(y + i * kit.size) * v))
    return total.number()


@emitted("iiiidi")
def backward_write(kit: Kit, y: Value, g: Value, to: Value, n: Value, total: Value, logarithm: Value) -> None:
    exponential, every = Exponential(kit), kit.full(total)
    with kit.loop(0, n, kit.lanes) as i:
        a, b = kit.load(y + i * kit.size), kit.load(g + i * kit.size)
        kit.store(to + i * kit.size, kit.pick(logarithm, b - exponential(a) * every, a * (b - every)))


@kernel("i")
def fetched(tag, c, which, p, to, c0, n):
    """N classes from c0 of an operand's row at p, as neighbours at `to`."""
    stride = operand(tag, c, which, CLASS_STRIDE)
    dtype, swapped = operand(tag, c, which, DTYPE), operand(tag, c, which, SWAPPED)
    fetch(tag, to, p + c0 * stride, dtype, swapped, stride, n)
    return to


@kernel("d")
def pick_row(tag, c, f, s, x, q, to, form, upstream: float):
    """The loss of one row of class probabilities; its gradient to `to`, if that is not 0."""
    total, lost, c0 = 0.0, 0.0, 0
    while c0 < c[CLASSES]:
        n = block_size(tag, c[CLASSES] - c0)
        p, w = fetched(tag, c, X, x, s + FETCHED, c0, n), coefficients(tag, c, f, s, q, c0, n)
        add = pick_dot(tag, p, w, n, form)
        together = total + add
        own = together - total
        lost += (total - (together - own)) + (add - own)
        total = together
        if to:
            stride = operand(tag, c, OUT, CLASS_STRIDE)
            pick_slope(tag, p, w, s + MADE, n, upstream, form)
            emit(tag, to + c0 * stride, operand(tag, c, OUT, DTYPE), stride, s + MADE, n)
        c0 += n
    return total + lost if lost == lost else total


@kernel("i")
def has_gradient(tag, c):
    return c[OPERATION] == OP_NLL_GRAD or c[OPERATION] == OP_PROBS_GRAD


@kernel()
def pick_run(tag, c, f, r, d, s):
    """OP_NLL, OP_PROBS, their gradients, and OP_REDUCE, of the run's valid positions."""
    operation, size = c[OPERATION], get_size(tag)
    gradient = has_gradient(tag, c)
    form = AS_GIVEN if operation == OP_REDUCE else NEGATIVE if operation <= OP_NLL_GRAD else NEGATIVE_LOG
    stride, weighted = operand(tag, c, OUT, CLASS_STRIDE), operand(tag, c, WEIGHT, DATA)
    x_stride, dtype, swapped = operand(tag, c, X, CLASS_STRIDE), operand(tag, c, X, DTYPE), operand(tag, c, X, SWAPPED)
    for k in range(r[VALID]):
        i = place(tag, r, k)
        x, to = r[BASE + X] + i * r[STEP + X], 0
        if gradient:
            to = r[BASE + OUT] + i * r[STEP + OUT]
        upstream = f[SCALE] if c[UNIFORM_UPSTREAM] else d[SLOPES + k]
        weight = d[SAMPLE + k] if weighted else 1.0
        at = s + LOSS + k * size
        if c[PROBS]:
            q = probabilities_of(tag, c, r, i)
            put(tag, at, weight * pick_row(tag, c, f, s, x, q, to, form, upstream) + 0.0)
            continue
        t = r[TARGET + k]
        coefficient = get_double(tag, c[CLASS_WEIGHT] + 8 * t) if c[CLASS_WEIGHT] else 1.0
        fetch(tag, s + FETCHED, x + t * x_stride, dtype, swapped, x_stride, 1)
        v = get(tag, s + FETCHED)
        value = v if form == AS_GIVEN else -v if form == NEGATIVE else -log_number(tag, v)
        put(tag, at, weight * coefficient * value + 0.0 if coefficient != 0 else 0.0)
        if gradient:
            slope = -1.0 if form == NEGATIVE else -1.0 / v
            put(tag, s + MADE, upstream * coefficient * slope if coefficient != 0 else 0.0)
            zero_row(tag, c, to)
            emit(tag, to + t * stride, operand(tag, c, OUT, DTYPE), stride, s + MADE, 1)


@kernel()
def backward_run(tag, c, r, s):
    """OP_SOFTMAX_GRAD and OP_LOG_SOFTMAX_GRAD."""
    logarithm = c[OPERATION] == OP_LOG_SOFTMAX_GRAD
    stride, dtype = operand(tag, c, OUT, CLASS_STRIDE), operand(tag, c, OUT, DTYPE)
    for i in range(r[COUNT]):
        x, u = r[BASE + X] + i * r[STEP + X], r[BASE + Y] + i * r[STEP + Y]
        to, total = r[BASE + OUT] + i * r[STEP + OUT], 0.0
        for write in range(2):
            c0 = 0
            while c0 < c[CLASSES]:
                n = block_size(tag, c[CLASSES] - c0)
                y, g = fetched(tag, c, X, x, s + FETCHED, c0, n), fetched(tag, c, Y, u, s + SECOND, c0, n)
                if write:
                    backward_write(tag, y, g, s + MADE, n, total, logarithm)
                    emit(tag, to + c0 * stride, dtype, stride, s + MADE, n)
                else:
                    total += backward_sum(tag, y, g, n, logarithm)
                c0 += n


@kernel()
def pick_blocks(tag, c, f, r, d, s, start, stop):
    """Operations from OP_NLL to OP_LOG_SOFTMAX_GRAD."""
    gradient = has_gradient(tag, c)
    for block in range(start, min(stop, c[BLOCKS])):
        at, end = block_range(tag, c, block)
        while at < end:
            run_at(tag, c, r, at, end)
            share, wrong = read_positions(tag, c, f, r, d, gradient)
            total = 0.0
            if c[OPERATION] >= OP_SOFTMAX_GRAD:
                backward_run(tag, c, r, s)
            else:
                close(tag, c, r, d)
                pick_run(tag, c, f, r, d, s)
                total = put_losses(tag, c, r, s)
            put_block(tag, c, block, total, share, wrong)
            at += r[COUNT]


