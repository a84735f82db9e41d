"""exp, log, log1p and tanh of vectors: the forms and polynomials of ``src/kernels/math.inl``.

exp(k*x) for x <= about 1/k: y = x*(k*log2 e), n = y rounded, f = y - n from a fused product where there is one, and
2^n*(1 + f*q(f)): the worst relative error of 1 + f*q(f) is 2e-9 (float32) and 3.4e-18 (float64). -inf gives exactly 0,
0 exactly 1, NaN stays. log1p(s) for s >= 0: u = 1 + s, log u + (s - (u - 1))/u.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .emission import emitted
from .vectors import Kit, Value


class Numbers(NamedTuple):
    """The constants of one compute type."""

    exp2: tuple[str, ...]  # of (2^f - 1)/f, the lowest power first
    log: tuple[str, ...]
    artanh: tuple[str, ...]
    magic: float  # adding it rounds to a whole number
    ln2: tuple[str, str]
    lowest: float  # of exp's arguments: there n is as small that 2^n is 0
    mantissa: int
    base: int  # bits of 0.75
    bias: int
    tiny: float  # the smallest normal number


SINGLE = Numbers(
    exp2=("0x1.62e430af23730p-1", "0x1.ebfbdc3c250d6p-3", "0x1.c6aee88ec9b69p-5", "0x1.3b2d4cef7c20bp-7",
          "0x1.5f3e5369c55f6p-10", "0x1.41fbc1ca0d261p-13"),
    log=("0x1.555554737fb2bp-1", "0x1.999b88b28b440p-2", "0x1.23f6542e4f080p-2", "0x1.ec5887c3512f4p-3"),
    artanh=("0x1.555556p-1", "0x1.9998d4p-2", "0x1.24c926p-2", "0x1.bc8cf8p-3", "0x1.dba26p-3"),
    magic=1.5 * 2.0**23, ln2=("0x1.62e4p-1", "0x1.7f7d1cp-20"), lowest=-88.0, mantissa=23, base=0x3F400000,
    bias=0x3F800000, tiny=2.0**-126,
)  # fmt: skip
DOUBLE = Numbers(
    exp2=("0x1.62e42fefa39efp-1", "0x1.ebfbdff82c5a4p-3", "0x1.c6b08d7049fe8p-5", "0x1.3b2ab6fba011ap-7",
          "0x1.5d87fe78cd711p-10", "0x1.4309130ed8c73p-13", "0x1.ffcbfba96f4f3p-17", "0x1.62bfc79d4fc9cp-20",
          "0x1.b5267d00ef850p-24", "0x1.e61b4fa510fe6p-28", "0x1.e79b8a6429c12p-32"),
    log=("0x1.5555555555618p-1", "0x1.9999999938519p-2", "0x1.249249896f43cp-2", "0x1.c71c173929bbcp-3",
         "0x1.7471e07d971a6p-3", "0x1.3887a4d8e16d8p-3", "0x1.3950e3ada2c48p-3"),
    artanh=("0x1.5555555555555p-1", "0x1.9999999999944p-2", "0x1.2492492499d46p-2", "0x1.c71c71bedea97p-3",
            "0x1.745d19937b1fcp-3", "0x1.3b13515f6f9efp-3", "0x1.111abdc8abe16p-3", "0x1.e0a2d581ab68fp-4",
            "0x1.bc37f0140c19ep-4", "0x1.32e0d25c9c761p-4", "0x1.401d3e65cdc48p-3"),
    magic=1.5 * 2.0**52, ln2=("0x1.62e42fee00000p-1", "0x1.a39ef35793c76p-33"), lowest=-709.0, mantissa=52,
    base=0x3FE8000000000000, bias=0x3FF0000000000000, tiny=2.0**-1022,
)  # fmt: skip
LOG2E, LOG2E_LOW = float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.777d0ffda0d24p-56")


def numbers(kit: Kit) -> Numbers:
    return SINGLE if kit.single else DOUBLE


def polynomial(kit: Kit, x: Value, coefficients: tuple[str, ...]) -> Value:
    """Horner's scheme."""
    terms = [kit.full(float.fromhex(c)) for c in coefficients]
    total = terms.pop()
    while terms:
        total = kit.fma(total, x, terms.pop())
    return total


class Exponential:
    """exp(scale*x): the constants of one scale, and then vectors."""

    def __init__(self, kit: Kit, scale: Value | None = None) -> None:
        self.kit = kit
        table = numbers(kit)
        if scale is None:
            self.high = kit.full(LOG2E)
            self.low = kit.full(LOG2E - _single(LOG2E) if kit.single else LOG2E_LOW)
            self.lowest = kit.full(table.lowest)
            return
        # A scale beyond this would make k infinite; differences times it are exp's 0 or 1 anyway.
        largest = Value(kit, scale.raw.type(1e37 if kit.single else 1e280))
        limited = Value(kit, kit.b.select((scale < largest).raw, scale.raw, largest.raw))
        k = limited * LOG2E
        self.high = kit.full(k)
        if kit.single:
            self.low = kit.full(k - kit.wide(kit.narrow(k)))
        else:
            self.low = kit.full(_product_error(limited, LOG2E, k) + limited * LOG2E_LOW)
        self.lowest = kit.full(Value(kit, scale.raw.type(table.lowest)) / limited)

    def __call__(self, x: Value) -> Value:
        kit, table = self.kit, numbers(self.kit)
        inside = kit.max(self.lowest, x)
        y = kit.fma(inside, self.high, kit.full(table.magic))
        n = y - table.magic
        f = kit.fma(inside, self.high, -n)
        if not kit.fused:
            f = f + inside * self.low
        q = polynomial(kit, f, table.exp2)
        power = kit.as_reals((kit.as_words(y) << table.mantissa) + table.bias)
        return kit.fma(f * q, power, power)  # at the lowest argument power is 0


def _single(value: float) -> float:
    return float(np.float32(value))


def _product_error(a: Value, b: float, product: Value) -> Value:
    """a*b - product, exactly (Dekker)."""
    p, q = a * 134217729.0, b * 134217729.0
    high, b_high = p - (p - a), q - (q - b)
    low, b_low = a - high, b - b_high
    return ((high * b_high - product) + high * b_low + low * b_high) + low * b_low


def split(kit: Kit, x: Value) -> tuple[Value, Value]:
    """Mantissa (0.75 ... 1.5) and exponent of positive normal numbers."""
    table = numbers(kit)
    bits = kit.as_words(x) - table.base
    exponent = kit.b.sitofp(kit.b.ashr(bits.raw, _words(kit, table.mantissa)), kit.vector)
    return kit.as_reals((bits & ((1 << table.mantissa) - 1)) + table.base), Value(kit, exponent)


def _words(kit: Kit, value: int) -> Any:
    return kit.words([kit.word(value)] * kit.lanes)


def log_sum(kit: Kit, m: Value, e: Value, rounding: Value) -> Value:
    """log(2^e*m) + rounding, for m in [0.75, 1.5]. Small parts first: the order keeps the last digit."""
    table = numbers(kit)
    high, low = (kit.full(float.fromhex(c)) for c in table.ln2)
    f = m - 1.0
    w = f / (f + 2.0)
    z = w * w
    half = (f * f) * 0.5
    r = polynomial(kit, z, table.log)
    small = kit.fma(w, kit.fma(r, z, half), kit.fma(e, low, rounding))
    return kit.fma(e, high, f + (small - half))


def log1p(kit: Kit, s: Value) -> Value:
    """log(1 + s) for s >= 0; of inf it is inf."""
    u = s + 1.0
    m, e = split(kit, u)
    return kit.select(u < float("inf"), log_sum(kit, m, e, (s - (u - 1.0)) / u), u)


def log(kit: Kit, x: Value) -> Value:
    """Of 0 it is -inf, of inf inf, of negative numbers and NaN NaN."""
    low = x < numbers(kit).tiny
    m, e = split(kit, kit.select(low, x * 2.0**60, x))
    y = log_sum(kit, m, e - kit.keep(low, 60.0), kit.full(0.0))
    y = kit.select(x.equals(0.0), float("-inf"), kit.select(x.equals(float("inf")), float("inf"), y))
    return kit.select(x < 0.0, float("nan"), kit.select(x.equals(x), y, float("nan")))


def tanh(kit: Kit, u: Value) -> tuple[Value, Value]:
    """Tanh u and 1 - tanh(u)^2, each to a few ULP everywhere: t = exp(-2|u|) - 1 loses nothing for small u."""
    table, e_to = numbers(kit), Exponential(kit)
    a = kit.abs(u) * -2.0
    x = kit.max(e_to.lowest, a)
    y = kit.fma(x, e_to.high, kit.full(table.magic))
    n = y - table.magic
    f = kit.fma(x, e_to.low, kit.fma(x, e_to.high, -n))
    q = polynomial(kit, f, table.exp2)
    power = kit.as_reals((kit.as_words(y) << table.mantissa) + table.bias)
    t = kit.fma(power, f * q, power - 1.0)
    e = kit.select(a < -1.0, e_to(a), t + 1.0)
    below = t + 2.0
    y = t / below
    return kit.select(u < 0.0, y, -y), (e * 4.0) / (below * below)


@emitted("d", "d")
def exp_number(kit: Kit, x: Value) -> Value:
    """Exp of a float64, x <= 0 or NaN."""
    double = Kit(kit.b, False)
    return _first(double, Exponential(double)(double.full(x)))


@emitted("d", "d")
def log1p_number(kit: Kit, s: Value) -> Value:
    """log(1 + s) of a float64, s >= 0 or NaN."""
    double = Kit(kit.b, False)
    return _first(double, log1p(double, double.full(s)))


def _first(kit: Kit, vector: Value) -> Value:
    return Value(kit, kit.b.extract_element(vector.raw, ir.Constant(ir.IntType(32), 0)))


@emitted("d", "d")
def log_number(kit: Kit, x: Value) -> Value:
    """Log of a float64."""
    double = Kit(kit.b, False)
    return _first(double, log(double, double.full(x)))
