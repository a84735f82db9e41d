"""Losses and activations of single elements, as functions over vectors: the forms of
``src/kernels/elementwise.inl``.
"""

from __future__ import annotations

from collections.abc import Callable

from ..._options import (
    OP_ABSOLUTE,
    OP_BINARY_LOGITS,
    OP_BINARY_PROBS,
    OP_HUBER,
    OP_LOG_SIGMOID,
    OP_SIGMOID,
    OP_SMOOTH_L1,
    OP_SQUARED,
)  # fmt: skip
from .emission import emitted
from .mathematics import Exponential, log_sum, numbers, polynomial, split
from .vectors import Kit, Value


def log1p_of_ratio(kit: Kit, w: Value) -> Value:
    """log(1 + e) for 0 <= e <= 1, from w = e/(2 + e): 2*artanh w, to 1e-9 or 3e-18."""
    z = w * w
    return kit.fma(w * z, polynomial(kit, z, numbers(kit).artanh), w + w)


def logistic(kit: Kit, x: Value) -> tuple[Value, Value, Value, Value]:
    """sigmoid(x) and sigmoid(-x), log(1 + exp x) and log(1 + exp -x), each to its last digits."""
    e = Exponential(kit)(0.0 - kit.abs(x))
    a = e + 1.0
    b = a + 1.0
    over = kit.full(1.0) / (a * b)
    high = over * b
    low = e * high
    tail = log1p_of_ratio(kit, e * (a * over))
    negative = x < 0.0
    on, off = kit.select(negative, low, high), kit.select(negative, high, low)
    return on, off, kit.select(negative, 0.0, x) + tail, kit.select(negative, 0.0 - x, 0.0) + tail


def log_from_100(kit: Kit, u: Value, rounding: Value) -> Value:
    """log(u) + rounding for 0 <= u <= 1, at least -100; NaN stays."""
    low = u < numbers(kit).tiny
    m, e = split(kit, kit.select(low, u * 2.0**60, u))
    y = log_sum(kit, m, e - kit.keep(low, 60.0), rounding)
    return kit.select(u > 0.0, kit.max(kit.full(-100.0), y), u + -100.0)


def binary_loss(kit: Kit, p: Value, y: Value) -> Value:
    """Cross-entropy of a probability."""
    zero, one = kit.full(0.0), kit.full(1.0)
    other = one - p
    lost = (one - other) - p  # what the rounding of 1 - p took
    share = lost / kit.select(other > 0.0, other, one)
    return 0.0 - kit.fma(y, log_from_100(kit, p, zero), (one - y) * log_from_100(kit, other, share))


def share_of(kit: Kit, share: Value, value: Value) -> Value:
    """share*value, but 0 for a share of 0 whatever the value is."""
    return kit.drop(share.equals(0.0), share * value)


def at_element(kit: Kit, operation: int, x: Value, y: Value, positive: Value, parameter: Value) -> tuple[Value, Value]:
    """Loss and slope. Every sum is of terms that are not negative, so nothing cancels."""
    zero, half, one = kit.full(0.0), kit.full(0.5), kit.full(1.0)
    d = x - y
    size, off = kit.abs(d), one - y
    sign = kit.select(d > 0.0, one, kit.select(d < 0.0, -1.0, d + 0.0))  # 0 and NaN stay
    near = size < parameter
    if operation == OP_BINARY_PROBS:
        return binary_loss(kit, x, y), d / kit.max(kit.full(1e-12), (one - x) * x)
    if operation == OP_BINARY_LOGITS:
        sigmoid_on, sigmoid_off, softplus_on, softplus_off = logistic(kit, x)
        on = positive * y
        total = share_of(kit, on, softplus_off) + share_of(kit, off, softplus_on)
        return kit.select(x.equals(x), total, x), kit.fma(off, sigmoid_on, 0.0 - on * sigmoid_off)
    if operation == OP_SQUARED:
        return d * d, d + d
    if operation == OP_ABSOLUTE:
        return size, sign
    if operation == OP_HUBER:
        beyond = parameter * (size - half * parameter)
        return kit.select(near, half * (d * d), beyond), kit.select(near, d, parameter * sign)
    if operation == OP_SMOOTH_L1:
        part = d / parameter
        return kit.select(near, half * (d * part), size - half * parameter), kit.select(near, part, sign)
    e = Exponential(kit)(0.0 - kit.abs(x))
    if operation == OP_SIGMOID:
        high = one / (e + 1.0)
        return zero, kit.select(x < 0.0, e * high, high)
    tail = log1p_of_ratio(kit, e / (e + 2.0))
    return zero, kit.select(x < 0.0, x, 0.0) - tail


def _loop_of(operation: int) -> Callable[..., None]:
    def body_of(
        kit: Kit, x: Value, y: Value, positive: Value, loss: Value, slope: Value, n: Value, parameter: Value,
        scale: Value,
    ) -> None:
        bound, by = kit.full(parameter), kit.full(scale)
        with kit.loop(0, n, kit.lanes) as i:
            at = i * kit.size
            weight = kit.load(positive + at) if operation == OP_BINARY_LOGITS else kit.full(0.0)
            value, change = at_element(kit, operation, kit.load(x + at), kit.load(y + at), weight, bound)
            if operation < OP_SIGMOID:
                kit.store(loss + at, value + 0.0)  # never -0.0
                change = change * by
            kit.store(slope + at, change)

    return body_of


# Of n elements, filled up to whole vectors: losses, and scale times the slopes (of the last two the results).
binary_probs = emitted("iiiiiidd", name="binary_probs")(_loop_of(OP_BINARY_PROBS))
binary_logits = emitted("iiiiiidd", name="binary_logits")(_loop_of(OP_BINARY_LOGITS))
squared = emitted("iiiiiidd", name="squared")(_loop_of(OP_SQUARED))
absolute = emitted("iiiiiidd", name="absolute")(_loop_of(OP_ABSOLUTE))
huber = emitted("iiiiiidd", name="huber")(_loop_of(OP_HUBER))
smooth_l1 = emitted("iiiiiidd", name="smooth_l1")(_loop_of(OP_SMOOTH_L1))
sigmoid = emitted("iiiiiidd", name="sigmoid")(_loop_of(OP_SIGMOID))
log_sigmoid = emitted("iiiiiidd", name="log_sigmoid")(_loop_of(OP_LOG_SIGMOID))


@emitted("ii", "i")
def find_outside(kit: Kit, p: Value, n: Value) -> Value:
    """The first of n neighbours that is below 0 or above 1, or n. NaN is neither."""
    whole = n & -kit.lanes
    with kit.loop(0, whole, kit.lanes) as i:
        v = kit.load(p + i * kit.size)
        bits = kit.as_bits((v < 0.0) | (v > 1.0))
        with kit.when(kit.truth(bits), likely=False):
            kit.give(i + kit.first_bit(bits))
    with kit.loop(whole, n) as i:
        v = kit.load(p + i * kit.size, kit.real)
        with kit.when((v < 0.0) | (v > 1.0)):
            kit.give(i)
    return n
