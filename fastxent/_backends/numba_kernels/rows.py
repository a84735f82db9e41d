"""Rows: lanes along the classes. Each function takes n >= a group (4 vectors) of neighbouring classes of the compute
type.

What is left of a row after its whole groups is taken by a group that ends with the row: for a maximum it does no harm
to see a class twice, in sums the lanes that were there already are dropped, and a result written twice is the same
twice (the last group is computed before the first is written, since results may replace the logits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .emission import emitted
from .mathematics import Exponential, tanh
from .vectors import INT64, Kit, Total, Value, Variable

NONE, UNIFORM, ARRAY, ENTROPY = range(4)  # how the coefficients of the classes are given; ENTROPY: the exponentials


def groups(kit: Kit, n: Value, body: Callable[[Value, Value], None]) -> None:
    """body(i, first) for the groups of n classes from class i on; classes before `first` have been seen."""
    with kit.loop(0, n, kit.group) as first:
        last = n - kit.group
        body(Value(kit, kit.b.select((first < last).raw, first.raw, last.raw)), first)


def load_group(kit: Kit, p: Value, i: Value) -> list[Value]:
    return [kit.load(p + (i + u * kit.lanes) * kit.size) for u in range(4)]


def drop_seen(kit: Kit, i: Value, first: Value, vectors: list[Variable]) -> None:
    """Put 0 into the lanes of a group from class i on that lie before class `first`: there are some in a last one."""
    with kit.when(i < first, likely=False):
        for u, variable in enumerate(vectors):
            before = kit.iota() < kit.full(first - i - u * kit.lanes)
            variable.set(kit.drop(before, variable.get()))


@emitted("ii", "r")
def row_max(kit: Kit, p: Value, n: Value) -> Value:
    """The largest; NaN is passed over: the sum will show it."""
    best = [kit.variable(kit.full(float("-inf"))) for _ in range(4)]

    def body(i: Value, first: Value) -> None:
        for variable, v in zip(best, load_group(kit, p, i), strict=True):
            variable.set(kit.max(v, variable.get()))

    groups(kit, n, body)
    a, b, c, d = (v.get() for v in best)
    best_of_all = kit.max(kit.max(a, b), kit.max(c, d))
    return kit.fold(best_of_all, lambda x, y: Value(kit, kit.b.select((x > y).raw, x.raw, y.raw)))


@emitted("iir", "i")
def row_find(kit: Kit, p: Value, n: Value, value: Value) -> Value:
    """The first class that has this value, or -1."""
    wanted = kit.full(value)

    def body(i: Value, first: Value) -> None:
        masks = [v.equals(wanted) for v in load_group(kit, p, i)]
        with kit.when(kit.any((masks[0] | masks[1]) | (masks[2] | masks[3])), likely=False):
            bits = kit.as_bits(masks[0])
            for u in range(1, 4):
                bits = bits | (kit.as_bits(masks[u]) << u * kit.lanes)
            kit.give(i + kit.first_bit(bits))

    groups(kit, n, body)
    return kit.number(-1)


def _sum_of(kind: int) -> Callable[..., Any]:
    def body_of(
        kit: Kit, p: Value, n: Value, reference: Value, scale: Value, skip: Value, coefficients: Value
    ) -> Any:
        exponential, r = Exponential(kit, scale), kit.full(reference)
        total, moment, mass = Total(kit), Total(kit), Total(kit)

        def body(i: Value, first: Value) -> None:
            below = [kit.variable(v - r) for v in load_group(kit, p, i)]
            e = [kit.variable(exponential(v.get())) for v in below]
            drop_seen(kit, i, first, e)
            place = skip - i
            inside = Value(kit, kit.b.icmp_unsigned("<", place.raw, kit.number(kit.group).raw))
            with kit.when(inside, likely=False):
                for u in range(4):
                    e[u].set(kit.drop(kit.iota().equals(kit.full(place - u * kit.lanes)), e[u].get()))
            t = [v.get() for v in e]
            total.add((t[0] + t[1]) + (t[2] + t[3]))
            if kind == NONE:
                return
            if kind == ENTROPY:  # -inf: e is 0, and so must be the product
                products = [a * kit.max(exponential.lowest, b.get()) for a, b in zip(t, below, strict=True)]
            elif kind == UNIFORM:
                drop_seen(kit, i, first, below)
                products = [b.get() for b in below]
            else:
                c = [kit.variable(v) for v in load_group(kit, coefficients, i)]
                drop_seen(kit, i, first, c)
                w = [v.get() for v in c]
                mass.add((w[0] + w[1]) + (w[2] + w[3]))
                products = [kit.drop(a.equals(0.0), a * b.get()) for a, b in zip(w, below, strict=True)]
            moment.add((products[0] + products[1]) + (products[2] + products[3]))

        groups(kit, n, body)
        if kind == NONE:
            return total.number()
        return total.number(), -moment.number(), mass.number()

    return body_of


# Sums over classes: of exp(scale*(x - reference)) but for the class `skip`; then, with coefficients, of coefficient *
# (reference - x), and of the coefficients.
row_sum = emitted("iirdii", "d", "row_sum")(_sum_of(NONE))
row_sum_uniform = emitted("iirdii", "ddd", "row_sum_uniform")(_sum_of(UNIFORM))
row_sum_array = emitted("iirdii", "ddd", "row_sum_array")(_sum_of(ARRAY))
row_sum_entropy = emitted("iirdii", "ddd", "row_sum_entropy")(_sum_of(ENTROPY))


def _write_of(kind: int, logarithm: bool = False) -> Callable[..., None]:
    def body_of(
        kit: Kit, p: Value, to: Value, n: Value, top: Value, factor: Value, spread: Value, scale: Value, at: Value,
        value: Value, coefficients: Value,
    ) -> None:
        exponential = Exponential(kit, scale)
        highest, by, less, own = (kit.full(v) for v in (top, factor, spread, value))
        # The last group from a copy: where it overlaps the one before it, results may stand already.
        copy = kit.room(kit.group)
        for u, x in enumerate(load_group(kit, p, n - kit.group)):
            kit.store(copy + u * kit.lanes * kit.size, x)

        def body(i: Value, first: Value) -> None:
            source = Value(kit, kit.b.select((i < first).raw, (copy - i * kit.size).raw, p.raw))
            made = []
            for u, x in enumerate(load_group(kit, source, i)):
                y = kit.fma(x - highest, by, -less) if logarithm else by * exponential(x - highest)
                if kind == UNIFORM:
                    y = y - less
                if kind == ARRAY:
                    y = y - less * kit.load(coefficients + (i + u * kit.lanes) * kit.size)
                made.append(kit.variable(y))
            if not logarithm:
                place = at - i
                inside = Value(kit, kit.b.icmp_unsigned("<", place.raw, kit.number(kit.group).raw))
                with kit.when(inside, likely=False):
                    for u, variable in enumerate(made):
                        hit = kit.iota().equals(kit.full(place - u * kit.lanes))
                        variable.set(kit.select(hit, own, variable.get()))
            for u, variable in enumerate(made):
                kit.store(to + (i + u * kit.lanes) * kit.size, variable.get())

        groups(kit, n, body)

    return body_of


# What is written over the classes: factor*exp(scale*(x - top)) - spread*coefficient, but `value` at the class `at` (the
# target, or the maximum), whose accurate form is another; or (x - top)*factor - spread.
row_write = emitted("iiirrrdiri", name="row_write")(_write_of(NONE))
row_write_uniform = emitted("iiirrrdiri", name="row_write_uniform")(_write_of(UNIFORM))
row_write_array = emitted("iiirrrdiri", name="row_write_array")(_write_of(ARRAY))
row_write_log = emitted("iiirrrdiri", name="row_write_log")(_write_of(NONE, True))


@emitted("iiidd")
def bend(kit: Kit, z: Value, slope: Value, n: Value, scale: Value, softcap: Value) -> None:
    """Turn logits into z in place, and give dz/dx; a last vector is done in full.

    z = softcap*tanh(scale*x/softcap), or scale*x without softcap. An infinite logit stays infinite (a removed class
    stays removed), with the slope of the middle.
    """
    by = kit.full(scale)
    with kit.when(softcap <= 0.0):
        with kit.loop(0, n, kit.lanes) as i:
            x = kit.load(z + i * kit.size)
            finite = kit.abs(x) < float("inf")
            kit.store(z + i * kit.size, kit.select(finite, x * by, x))
            kit.store(slope + i * kit.size, by)
        kit.b.ret_void()
    ratio = scale / softcap
    limit = Value(kit, ratio.raw.type(1e37))
    ratio = kit.full(Value(kit, kit.b.select((ratio < limit).raw, ratio.raw, limit.raw)))
    cap = kit.full(softcap)
    with kit.loop(0, n, kit.lanes) as i:
        x = kit.load(z + i * kit.size)
        finite = kit.abs(x) < float("inf")
        t, bent = tanh(kit, x * ratio)
        kit.store(z + i * kit.size, kit.select(finite, cap * t, x))
        kit.store(slope + i * kit.size, kit.select(finite, by * bent, by))


@emitted("iii")
def multiply(kit: Kit, y: Value, by: Value, n: Value) -> None:
    """Y *= by, of n neighbours; a last vector in full."""
    with kit.loop(0, n, kit.lanes) as i:
        kit.store(y + i * kit.size, kit.load(y + i * kit.size) * kit.load(by + i * kit.size))


@emitted("iiidd")
def mix(kit: Kit, q: Value, weights: Value, n: Value, keep: Value, spread: Value) -> None:
    """Coefficients of n classes from their probabilities q, in place: w*(keep*q + spread); `weights` 0: w = 1."""
    smooth = Value(kit, kit.b.zext((keep < 1.0).raw, INT64))
    with kit.loop(0, n, kit.lanes) as i:
        a = kit.load(q + i * kit.size)
        kit.store(q + i * kit.size, kit.pick(smooth, kit.fma(kit.full(keep), a, kit.full(spread)), a))
    with kit.when(kit.truth(weights)):
        whole = n & -kit.lanes
        with kit.loop(0, whole, kit.lanes) as i:
            kit.store(q + i * kit.size, kit.load(q + i * kit.size) * kit.load(weights + i * kit.size))
        with kit.loop(whole, n) as i:
            at, weight = q + i * kit.size, kit.load(weights + i * kit.size, kit.real)
            kit.store(at, kit.load(at, kit.real) * weight)
