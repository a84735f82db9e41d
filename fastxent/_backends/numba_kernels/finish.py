"""From what a pass over the classes found of positions to their losses and to the terms of the gradient.

The arithmetic of ``src/kernels/finish.inl`` and ``focal.inl``, a vector of positions at a time, the same for rows and
lanes. With L = log1p(rest), gap = scale*(max - x_t):
    class index:    w_t*(1-e)*(gap + L) + e/C*(dot + W*L), W the sum of the class weights
    probabilities:  dot + W*L, W the sum of the coefficients
and the gradient is A*p_c - coefficient_c with A = W + 2*z_loss*logsumexp, except where a coefficient meets the maximum:
there p = 1 - rest/(1 + rest), so that nothing cancels. A row without a finite maximum becomes NaN. A and what it is
added to are formed as parts of a unit, a power of two: 2*z_loss*logsumexp may be too large where the gradient is not.

`a` is the address of the first of the positions in the array at `layout.MAX`; the other arrays lie at fixed distances.
"""

from __future__ import annotations

from llvmlite import ir

from . import layout
from .emission import emitted
from .mathematics import Exponential, log1p
from .vectors import DOUBLE, Kit, Value


def array(kit: Kit, a: Value, which: int, j: Value) -> Value:
    """The address of the j-th position's entry in an array."""
    return a + (which - layout.MAX) + j * kit.size


def load(kit: Kit, a: Value, which: int, j: Value) -> Value:
    return kit.load(array(kit, a, which, j))


def _rest(kit: Kit, a: Value, j: Value) -> Value:
    finite = kit.abs(load(kit, a, layout.MAX, j)) < float("inf")
    return kit.select(finite, load(kit, a, layout.REST, j), float("nan"))


def _weight(kit: Kit, a: Value, j: Value, weighted: Value, keep: Value) -> Value:
    """w_t*(1 - smoothing)."""
    own = kit.full(keep)
    return kit.pick(weighted, own * load(kit, a, layout.TOP, j), own)


@emitted("iiiiiiddddd")
def finish_losses(
    kit: Kit, a: Value, n: Value, probs: Value, weighted: Value, sampled: Value, smoothed: Value, scale: Value,
    keep: Value, spread: Value, weights: Value, z_loss: Value,
) -> None:
    by = kit.full(scale)
    with kit.loop(0, n, kit.lanes) as j:
        top, dot = load(kit, a, layout.MAX, j), load(kit, a, layout.DOT, j)
        log_rest = log1p(kit, _rest(kit, a, j))
        weight = _weight(kit, a, j, weighted, keep)
        gap = kit.drop(weight.equals(0.0), (top - load(kit, a, layout.GAP, j)) * by)
        loss = weight * (gap + log_rest)
        every = kit.fma(kit.full(weights), log_rest, by * dot)
        loss = kit.pick(smoothed, kit.fma(kit.full(spread), every, loss), loss)
        loss = kit.pick(probs, kit.fma(load(kit, a, layout.MASS, j), log_rest, by * dot), loss)
        lse = kit.fma(top, by, log_rest)
        z = kit.full(z_loss)
        loss = kit.select(z > 0.0, kit.fma(z * lse, lse, loss), loss)
        loss = kit.pick(sampled, loss * load(kit, a, layout.SAMPLE_R, j), loss)
        kit.store(array(kit, a, layout.LOSS, j), loss + 0.0)  # never -0.0


@emitted("iid")
def finish_logsumexp(kit: Kit, a: Value, n: Value, scale: Value) -> None:
    with kit.loop(0, n, kit.lanes) as j:
        log_rest = log1p(kit, load(kit, a, layout.REST, j))
        kit.store(array(kit, a, layout.LOSS, j), kit.fma(load(kit, a, layout.MAX, j), kit.full(scale), log_rest))


@emitted("iii")
def finish_activation(kit: Kit, a: Value, n: Value, logarithm: Value) -> None:
    """The factor of a softmax, or what a log-softmax subtracts."""
    with kit.loop(0, n, kit.lanes) as j:
        rest = _rest(kit, a, j)
        log_rest, inverse = log1p(kit, rest), kit.full(1.0) / (rest + 1.0)
        kit.store(array(kit, a, layout.FACTOR, j), kit.pick(logarithm, log_rest, inverse))


@emitted("iiiiiiddddddd")
def finish_gradient(
    kit: Kit, a: Value, n: Value, probs: Value, weighted: Value, sloped: Value, smoothed: Value,
    scale: Value, call_scale: Value, keep: Value, spread: Value, weights: Value, z_loss: Value,
    units: Value,
) -> None:
    """factor, spread, and the value at the target or (class probabilities) at the maximum."""
    one, zero, smooth, exponential = kit.full(1.0), kit.full(0.0), kit.full(spread), Exponential(kit)
    unit, twice = kit.full(units), z_loss * 2.0 / units
    part = one / unit
    with kit.loop(0, n, kit.lanes) as j:
        top, rest = load(kit, a, layout.MAX, j), _rest(kit, a, j)
        inverse = one / (rest + 1.0)
        upstream = kit.pick(sloped, kit.full(scale) * load(kit, a, layout.UPSTREAM_R, j), kit.full(scale * call_scale))
        z = kit.fma(top, kit.full(twice * scale), kit.full(twice) * log1p(kit, rest))
        z = kit.select(kit.full(twice) > 0.0, z, zero)
        # class index
        d = top - load(kit, a, layout.GAP, j)
        meets = d.equals(0.0)
        kept = _weight(kit, a, j, weighted, keep)
        full = kit.pick(weighted, load(kit, a, layout.TOP, j), one)
        mass = kept + kit.full(spread * weights)
        other = kit.pick(smoothed, smooth * (kit.full(weights) - full), zero)
        own = kit.pick(smoothed, kit.fma(smooth, full, kept), kept)
        # class probabilities
        given, at_top = load(kit, a, layout.MASS, j), load(kit, a, layout.TOP, j)
        mass = kit.pick(probs, given, mass)
        other = kit.pick(probs, given - at_top, other)
        total = kit.fma(mass, part, z)
        value = inverse * kit.fma(other - kit.pick(probs, at_top, own) * rest, part, z)
        p = inverse * exponential(zero - d * kit.full(scale))
        elsewhere = kit.fma(total, p, zero - own * part)
        value = kit.pick(probs, value, kit.select(meets, value, elsewhere))
        kit.store(array(kit, a, layout.FACTOR, j), unit * (upstream * (total * inverse)))
        kit.store(array(kit, a, layout.SPREAD, j), kit.pick(probs, upstream, upstream * smooth))
        kit.store(array(kit, a, layout.VALUE, j), unit * (upstream * value))


def _focus(kit: Kit, gamma: Value, gap: Value, rest: Value) -> tuple[Value, Value]:
    """The factors that make losses and slopes of cross-entropy those of focal loss.

    -log p is made (1 - p)^gamma as large, the gradient (1 - p)^gamma * (1 + gamma*p*(-log p)/(1 - p)). 1 - p is formed
    from the other classes where the target is the maximum, and p is at most 1/2 elsewhere: it keeps its digits.
    """
    one, exponent, exponential = kit.full(1.0), kit.full(gamma), Exponential(kit)
    first = gap.equals(0.0)
    top = one / (rest + 1.0)
    p = top * kit.select(first, one, exponential(0.0 - gap))
    other = kit.select(first, rest * top, one - p)
    odds = kit.select(first, one, p) / kit.select(first, rest, other)  # log(1 - p) = -log1p(p/(1 - p))
    power = exponential(0.0 - exponent * log1p(kit, odds))
    power = kit.select(exponent.equals(2.0), other * other, power)
    ratio = kit.drop(p.equals(0.0), p * (gap + log1p(kit, rest)) / other)
    sure = other.equals(0.0)
    return kit.drop(sure, power), kit.drop(sure, power * kit.fma(exponent, ratio, one))


@emitted("iidd")
def focal_losses(kit: Kit, a: Value, n: Value, gamma: Value, scale: Value) -> None:
    with kit.loop(0, n, kit.lanes) as j:
        gap = (load(kit, a, layout.MAX, j) - load(kit, a, layout.GAP, j)) * kit.full(scale)
        loss, _ = _focus(kit, gamma, gap, load(kit, a, layout.REST, j))
        kit.store(array(kit, a, layout.LOSS, j), load(kit, a, layout.LOSS, j) * loss)


@emitted("iidd")
def focal_slopes(kit: Kit, a: Value, n: Value, gamma: Value, scale: Value) -> None:
    with kit.loop(0, n, kit.lanes) as j:
        gap = (load(kit, a, layout.MAX, j) - load(kit, a, layout.GAP, j)) * kit.full(scale)
        _, slope = _focus(kit, gamma, gap, load(kit, a, layout.REST, j))
        at = array(kit, a, layout.UPSTREAM_R, j)
        kit.store(at, kit.load(at) * slope)


@emitted("ii", "d")
def sum_losses(kit: Kit, p: Value, n: Value) -> Value:
    """The sum of n values in float64, of 8 parts: the order is the same everywhere."""
    eight = ir.VectorType(DOUBLE, 8)
    part = kit.variable(Value(kit, ir.Constant(eight, [0.0] * 8)))
    whole = n & -8
    with kit.loop(0, whole, 8) as i:
        part.set(part.get() + kit.wide(kit.load(p + i * kit.size, ir.VectorType(kit.real, 8))))
    left = kit.variable(Value(kit, DOUBLE(0.0)))
    with kit.loop(whole, n) as i:
        left.set(left.get() + kit.wide(kit.load(p + i * kit.size, kit.real)))
    return kit.fold(part.get(), lambda x, y: x + y) + left.get()
