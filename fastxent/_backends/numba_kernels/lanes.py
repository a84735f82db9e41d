"""Lanes: vector lanes along the positions, classes one after the other.

A panel is a set of lines, one a class, `distance` bytes apart, of `width` positions each (a multiple of the lanes): in
place, where the logits' positions are neighbours in memory, or a tile that has been packed. What is found of a position
stands in the arrays of finish.py. Every lane does the same in the same order whatever its neighbours hold: first the
maximum over all classes, then the sum of exp(x - max) over those below the maximum, and a count of those that equal it:
one of them is left out, exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from . import layout
from .emission import emitted
from .finish import array, load
from .mathematics import Exponential
from .rows import ARRAY, ENTROPY, NONE, UNIFORM
from .vectors import Kit, Value, added, with_lost

LINES = 32  # classes taken for one vector of positions before the next one's turn


def _chunks(kit: Kit, n: Value, width: Value, body: Callable[[Value, Value, Value], None]) -> None:
    """body(first class, class after the last, position) by blocks of LINES classes, all positions of each."""
    with kit.loop(0, n, LINES) as c, kit.loop(0, width, kit.lanes) as j:
        end = c + LINES
        body(c, Value(kit, kit.b.select((end < n).raw, end.raw, n.raw)), j)


@emitted("iiiii")
def lanes_max(kit: Kit, p: Value, distance: Value, n: Value, width: Value, a: Value) -> None:
    def body(c: Value, end: Value, j: Value) -> None:
        best = kit.variable(load(kit, a, layout.MAX, j))
        with kit.loop(c, end) as i:
            best.set(kit.max(kit.load(p + i * distance + j * kit.size), best.get()))
        kit.store(array(kit, a, layout.MAX, j), best.get())

    _chunks(kit, n, width, body)


@emitted("ii")
def lanes_start(kit: Kit, a: Value, width: Value) -> None:
    """Set what lanes_max and the sums add to."""
    with kit.loop(0, width, kit.lanes) as j:
        kit.store(array(kit, a, layout.MAX, j), kit.full(float("-inf")))
        kit.store(array(kit, a, layout.EQUAL, j), kit.full(-1.0))
        for which in (layout.TOTAL, layout.LOST, layout.DOT, layout.DOT_LOST, layout.MASS, layout.MASS_LOST):
            kit.store(array(kit, a, which, j), kit.full(0.0))


def _add(kit: Kit, a: Value, j: Value, total: int, lost: int, term: Value) -> None:
    pair = added(load(kit, a, total, j), load(kit, a, lost, j), term)
    for which, value in zip((total, lost), pair, strict=True):
        kit.store(array(kit, a, which, j), value)


def _sum_of(kind: int) -> Callable[..., None]:
    def body_of(
        kit: Kit, p: Value, distance: Value, n: Value, width: Value, a: Value, scale: Value, coefficients: Value,
        per_lane: Value,
    ) -> None:
        exponential = Exponential(kit, scale)

        def body(c: Value, end: Value, j: Value) -> None:
            top = load(kit, a, layout.MAX, j)
            sums = [kit.variable(kit.full(0.0)) for _ in range(4)]
            moment, mass = kit.variable(kit.full(0.0)), kit.variable(kit.full(0.0))
            equal = kit.variable(load(kit, a, layout.EQUAL, j))
            with kit.loop(c, end) as i:
                x = kit.load(p + i * distance + j * kit.size)
                y = x - top
                meets = x.equals(top)
                e = kit.drop(meets, exponential(y))
                # Four sums in turn: no chain of more than eight additions. Equal terms err the same way each time.
                turned = [*(one.get() for one in sums[1:]), sums[0].get() + e]
                for one, following in zip(sums, turned, strict=True):
                    one.set(following)
                equal.set(equal.get() + kit.keep(meets, 1.0))
                if kind == ARRAY:
                    w = kit.variable(kit.full(0.0))
                    with kit.when(kit.truth(per_lane)):
                        w.set(kit.load(coefficients + i * distance + j * kit.size))
                    with kit.when(per_lane.equals(0)):
                        w.set(kit.full(kit.load(coefficients + i * kit.size, kit.real)))
                    mass.set(mass.get() + w.get())
                    moment.set(moment.get() - w.get() * kit.drop(w.get().equals(0.0), y))
                elif kind == UNIFORM:
                    moment.set(moment.get() - y)
                elif kind == ENTROPY:  # -inf: e is 0, and so must be the product
                    moment.set(moment.get() - e * kit.max(exponential.lowest, y))
            four = [one.get() for one in sums]
            _add(kit, a, j, layout.TOTAL, layout.LOST, (four[0] + four[1]) + (four[2] + four[3]))
            kit.store(array(kit, a, layout.EQUAL, j), equal.get())
            if kind != NONE:
                _add(kit, a, j, layout.DOT, layout.DOT_LOST, moment.get())
            if kind == ARRAY:
                _add(kit, a, j, layout.MASS, layout.MASS_LOST, mass.get())

        _chunks(kit, n, width, body)

    return body_of


lanes_sum = emitted("iiiiidii", name="lanes_sum")(_sum_of(NONE))
lanes_sum_uniform = emitted("iiiiidii", name="lanes_sum_uniform")(_sum_of(UNIFORM))
lanes_sum_array = emitted("iiiiidii", name="lanes_sum_array")(_sum_of(ARRAY))
lanes_sum_entropy = emitted("iiiiidii", name="lanes_sum_entropy")(_sum_of(ENTROPY))


@emitted("ii")
def lanes_end(kit: Kit, a: Value, width: Value) -> None:
    """The sum over those below the maximum, and of those that equal it all but one."""
    with kit.loop(0, width, kit.lanes) as j:
        for which, lost in ((layout.DOT, layout.DOT_LOST), (layout.MASS, layout.MASS_LOST)):
            both = with_lost(kit, load(kit, a, which, j), load(kit, a, lost, j))
            kit.store(array(kit, a, which, j), both)
        rest = load(kit, a, layout.TOTAL, j) + load(kit, a, layout.LOST, j)
        kit.store(array(kit, a, layout.REST, j), load(kit, a, layout.EQUAL, j) + rest)


def _write_of(kind: int, logarithm: bool = False) -> Callable[..., None]:
    def body_of(
        kit: Kit, p: Value, distance: Value, to: Value, to_distance: Value, n: Value, width: Value, a: Value,
        scale: Value, coefficients: Value, per_lane: Value, slopes: Value,
    ) -> None:
        exponential, by = Exponential(kit, scale), kit.full(scale)

        def body(c: Value, end: Value, j: Value) -> None:
            top, factor = load(kit, a, layout.MAX, j), load(kit, a, layout.FACTOR, j)
            spread = load(kit, a, layout.SPREAD, j)
            with kit.loop(c, end) as i:
                d = kit.load(p + i * distance + j * kit.size) - top
                slot = to + i * to_distance + j * kit.size
                if logarithm:
                    kit.store(slot, kit.fma(d, by, 0.0 - factor))
                else:
                    # An invalid position (factor 0) is 0 whatever its logits hold; a valid one may be NaN.
                    y = kit.drop(factor.equals(0.0), factor * exponential(d))
                    if kind == UNIFORM:
                        y = y - spread
                    if kind == ARRAY:
                        w = kit.variable(kit.full(0.0))
                        with kit.when(kit.truth(per_lane)):
                            w.set(kit.load(coefficients + i * distance + j * kit.size))
                        with kit.when(per_lane.equals(0)):
                            w.set(kit.full(kit.load(coefficients + i * kit.size, kit.real)))
                        y = y - spread * w.get()
                    made = kit.variable(y)
                    with kit.when(kit.truth(slopes)):
                        made.set(y * kit.load(slopes + i * distance + j * kit.size))
                    kit.store(slot, made.get())

        _chunks(kit, n, width, body)

    return body_of


# Lines of results over `to`, perhaps the panel itself: as the row_write functions, of the positions' factor and spread;
# times dz/dx if `slopes` is not 0.
lanes_write = emitted("iiiiiiidiii", name="lanes_write")(_write_of(NONE))
lanes_write_uniform = emitted("iiiiiiidiii", name="lanes_write_uniform")(_write_of(UNIFORM))
lanes_write_array = emitted("iiiiiiidiii", name="lanes_write_array")(_write_of(ARRAY))
lanes_write_log = emitted("iiiiiiidiii", name="lanes_write_log")(_write_of(NONE, True))
