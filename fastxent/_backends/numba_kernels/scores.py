"""Counting and comparing for `score_blocks.py`: in rows, and lanes along the positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import layout
from .emission import emitted
from .finish import array, load
from .mathematics import log1p
from .vectors import INT64, Kit, Value


def _count_of(how: str) -> Callable[..., Value]:
    def body_of(kit: Kit, p: Value, n: Value, value: Value) -> Value:
        wanted, whole = kit.full(value), n & -kit.lanes
        number = kit.variable(kit.number(0))
        with kit.loop(0, whole, kit.lanes) as i:
            bits = kit.as_bits(kit.load(p + i * kit.size).compare(how, wanted))
            number.set(number.get() + Value(kit, kit.b.ctpop(bits.raw)))
        with kit.loop(whole, n) as i:
            hit = kit.load(p + i * kit.size, kit.real).compare(how, value)
            number.set(number.get() + Value(kit, kit.b.zext(hit.raw, INT64)))
        return number.get()

    return body_of


# How many of n neighbours are larger than a value, or at least as large.
count_larger = emitted("iir", "i", "count_larger")(_count_of(">"))
count_at_least = emitted("iir", "i", "count_at_least")(_count_of(">="))


@emitted("iir", "i")
def find_larger(kit: Kit, p: Value, n: Value, value: Value) -> Value:
    """The first of n neighbours that is larger than a value, or n."""
    wanted, whole = kit.full(value), n & -kit.lanes
    with kit.loop(0, whole, kit.lanes) as i:
        bits = kit.as_bits(kit.load(p + i * kit.size) > wanted)
        with kit.when(kit.truth(bits), likely=False):
            kit.give(i + kit.first_bit(bits))
    with kit.loop(whole, n) as i, kit.when(kit.load(p + i * kit.size, kit.real) > value):
        kit.give(i)
    return n


@emitted("iiiii")
def lanes_order(kit: Kit, p: Value, distance: Value, n: Value, width: Value, a: Value) -> None:
    """Of each position: the maximum so far (MAX), where these n classes raised it (FACTOR; -1: nowhere), and how many
    of them come before the target (SPREAD), whose logit is TOP and whose place VALUE: larger ones, and equal ones
    before.
    """
    with kit.loop(0, width, kit.lanes) as j:
        target, at = load(kit, a, layout.TOP, j), load(kit, a, layout.VALUE, j)
        best = kit.variable(load(kit, a, layout.MAX, j))
        met, count = kit.variable(kit.full(-1.0)), kit.variable(kit.full(0.0))
        with kit.loop(0, n) as i:
            x, number = kit.load(p + i * distance + j * kit.size), kit.full(i)
            higher = x > best.get()
            met.set(kit.select(higher, number, met.get()))
            best.set(kit.select(higher, x, best.get()))
            ahead = (x > target) | (x.equals(target) & (number < at))
            count.set(count.get() + kit.keep(ahead, 1.0))
        for which, variable in ((layout.MAX, best), (layout.FACTOR, met), (layout.SPREAD, count)):
            kit.store(array(kit, a, which, j), variable.get())


@emitted("iid")
def finish_statistics(kit: Kit, a: Value, n: Value, scale: Value) -> None:
    """From max, rest, the target's z (TOP) and the moment (DOT): log-probability, logsumexp, entropy and largest
    probability, in LOSS, FACTOR, SPREAD and VALUE.
    """
    by = kit.full(scale)
    with kit.loop(0, n, kit.lanes) as j:
        top, rest = load(kit, a, layout.MAX, j), load(kit, a, layout.REST, j)
        finite = kit.abs(top) < float("inf")
        known = kit.select(finite, rest, float("nan"))
        log_rest, inverse = log1p(kit, known), kit.full(1.0) / (known + 1.0)
        results: dict[int, Any] = {
            layout.FACTOR: kit.fma(top, by, log1p(kit, rest)),
            layout.LOSS: 0.0 - ((top - load(kit, a, layout.TOP, j)) * by + log_rest),
            layout.SPREAD: kit.fma(load(kit, a, layout.DOT, j), inverse, log_rest),
            layout.VALUE: inverse,
        }
        for which, value in results.items():
            kit.store(array(kit, a, which, j), value)
