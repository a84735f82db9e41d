"""Inputs on which losses lose their digits, the exact answers, and what docs/accuracy.md allows around them.

The exact answers are computed in a wider type (float64 for what fastxent computes in float32, extended precision for
float64) in forms that do not cancel; tests/test_accuracy.py compares them with mpmath. Everything random is seeded.

The bounds, with u = 2^-23 (float64: 2^-52), z the logits times their scale, C classes:
    loss           (4 + gap) u |loss| + C 2^-126     gap: between the two largest z
    gradient       (8 + 2 range) u |gradient|        range: max z - min z, -inf left out; where larger than 1e-30
    softmax        the same
    log_softmax    as the loss of each class
    logsumexp      u |result| + (4 + gap) u log1p(s): it may cancel to 0, so a part of its bound is absolute
    mean           the mean of the losses' bounds, and 2^-46 of it for the sum in float64
For float64 2^-1022 and 1e-300 stand for 2^-126 and 1e-30. What is stored as float16 or bfloat16 is rounded once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cases import dtype_of

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64", "bfloat16", "float16")
QUANTITIES = ("loss", "gradient", "softmax", "log_softmax", "logsumexp", "mean")
SUMMING = 2.0**-46  # a block adds up to 64 losses plainly in float64, in 8 chains; blocks are compensated


@dataclass(frozen=True)
class Precision:
    """What a type of logits means for the results."""

    u: float  # of the type computed in
    stored: float  # u of the type of gradient and softmax
    least: float  # the smallest positive number of that type
    wide: Any
    tiny: float  # below it a gradient may lose digits
    smallest: float  # a class may add this to a loss
    large: float  # a logit whose square root of two is near the end of the range
    scales: tuple[float, ...]  # logit scales whose product with log2 e is rounded the most, up and down


SINGLE: dict[str, Any] = {"u": 2.0**-23, "wide": np.float64, "tiny": 1e-30, "smallest": 2.0**-126} | {
    "scales": (0.17342328901975942, 90.61269001456807)
}
PRECISION = {
    "float32": Precision(stored=2.0**-23, least=2.0**-149, large=1e36, **SINGLE),
    "bfloat16": Precision(stored=2.0**-7, least=2.0**-133, large=1e36, **SINGLE),
    "float16": Precision(stored=2.0**-10, least=2.0**-24, large=3e4, **SINGLE),
    "float64": Precision(
        2.0**-52, 2.0**-52, 2.0**-1074, np.longdouble, 1e-300, 2.0**-1022, 1e300, (0.709064071738816, 5.60547528906808)
    ),
}


@dataclass(frozen=True, eq=False)
class Extreme:
    """Logits (positions, classes) and targets (positions). `last`, `first`: where the class axis is put."""

    name: str
    dtype: str
    logits: Array
    targets: Array
    scale: float = 1.0
    quantities: tuple[str, ...] = QUANTITIES
    layouts: tuple[str, ...] = ("last", "first")


class Exact:
    """The answers to an input and their bounds, by quantity."""

    def __init__(self, case: Extreme) -> None:
        about = PRECISION[case.dtype]
        u, rows = about.u, np.arange(len(case.targets))
        x = case.logits.astype(np.float64).astype(about.wide)
        top = x.argmax(axis=1)
        m = x[rows, top]
        z = (x - m[:, None]) * about.wide(case.scale)
        e = np.exp(z)
        e[rows, top] = 0
        s = e.sum(axis=1)
        log_rest = np.log1p(s)
        p = e / (1 + s)[:, None]
        p[rows, top] = 1 / (1 + s)
        below = -z[rows, case.targets]
        gradient = p.copy()
        gradient[rows, case.targets] = np.where(below == 0, -s / (1 + s), p[rows, case.targets] - 1)
        others = z.copy()
        others[rows, top] = -np.inf
        second = others.max(axis=1, initial=-np.inf)
        gap = np.where(np.isfinite(second), -second, 0)
        span = np.where(np.isfinite(z), -z, 0).max(axis=1)
        floor = z.shape[1] * about.smallest

        self.case, self.about, self.rest = case, about, s
        self.value: dict[str, Array] = {"loss": below + log_rest, "gradient": gradient * about.wide(case.scale)}
        self.value |= {"softmax": p, "log_softmax": z - log_rest[:, None], "logsumexp": m + log_rest}
        self.bound: dict[str, Array] = {"loss": (4 + gap) * u * self.value["loss"] + floor}
        for name in ("gradient", "softmax"):
            size = np.abs(self.value[name])
            error = ((8 + 2 * span) * u)[:, None] * size
            self.bound[name] = np.where(size > about.tiny, error, 2 * about.tiny * max(1.0, case.scale))
        self.bound["log_softmax"] = ((4 + gap) * u)[:, None] * np.abs(self.value["log_softmax"]) + floor
        self.bound["logsumexp"] = u * np.abs(self.value["logsumexp"]) + (4 + gap) * u * log_rest + floor
        self.value["mean"] = self.value["loss"].mean()
        self.bound["mean"] = self.bound["loss"].mean() + SUMMING * self.value["mean"]

    def stored(self, quantity: str) -> tuple[float, float]:
        """Relative spacing of the type the quantity is returned in, and its smallest number."""
        if quantity in ("gradient", "softmax", "log_softmax"):
            return self.about.stored, self.about.least
        return self.about.u, self.about.smallest * self.about.u

    def errors(self, quantity: str, got: Array) -> tuple[Array, Array]:
        """Of each element: the error in units in the last place, and as a share of the bound (at most 1 is right)."""
        exact = self.value[quantity]
        with np.errstate(all="ignore"):
            got = np.asarray(got).astype(np.float64).astype(self.about.wide)
            error = np.where(got == exact, 0, np.abs(got - exact))
            u, least = self.stored(quantity)
            size = np.where(np.isfinite(exact), np.abs(exact), 0)
            bound = self.bound[quantity]
            beyond = error
            if u > self.about.u:  # exactly one rounding to the storage type
                _, exponent = np.frexp(np.asarray(np.maximum(size, np.abs(got)), np.float64))
                beyond = np.maximum(error - np.maximum(np.ldexp(u / 4 * (2 - 2.0**-20), exponent), least / 2), 0)
            share = np.where(error == 0, 0, beyond / np.where(np.isfinite(exact), bound, 0))
            counted = size > (self.about.tiny if quantity in ("gradient", "softmax") else self.about.smallest / u)
            ulp = np.where(counted, error / np.maximum(u * size, least), 0)
        return np.where(np.isnan(ulp), np.inf, ulp), np.where(np.isnan(share), np.inf, share)


# --- the inputs


def _case(name: str, dtype: str, logits: Any, targets: Any, **options: Any) -> Extreme:
    return Extreme(name, dtype, np.asarray(logits).astype(dtype_of(dtype)), np.asarray(targets, np.int64), **options)


def margins(dtype: str) -> Iterator[Extreme]:
    """One class leads by 0 to 80, so that its loss goes down to 1e-35; targets are that class, the second, another."""
    random = np.random.default_rng(1)
    for classes in (2, 3, 5, 8, 33, 100, 1000):
        lead = np.repeat(np.arange(81.0), 3)
        x = -lead[:, None] - random.exponential(6.0, (len(lead), classes))
        places = np.argsort(random.random(x.shape), axis=1)[:, :2]
        np.put_along_axis(x, places, np.stack([0 * lead, -lead], 1), axis=1)
        targets = np.tile([0, 1, 0], 81)
        targets = np.where(np.arange(len(lead)) % 3 == 2, 0, places[np.arange(len(lead)), targets])
        yield _case(f"margins 0…80 of {classes} classes", dtype, x + 3, targets)


def equal(dtype: str) -> Iterator[Extreme]:
    """Every logit the same, however large: log C."""
    large = PRECISION[dtype].large
    for classes in (1, 2, 3, 7, 47, 79, 80, 1000, 1025, 100000):
        values = np.array([0.0, 1.0, -7.5, large, -large])
        x = np.repeat(values[:, None], classes, axis=1)
        yield _case(f"{classes} equal logits up to {large:.0e}", dtype, x, np.arange(5) % classes)


def mixed(dtype: str) -> Iterator[Extreme]:
    """Rows whose logits are of every magnitude from 1e-6 to 1e4."""
    random = np.random.default_rng(2)
    for classes in (4, 60, 700):
        x = random.choice([-1, 1], (64, classes)) * 10.0 ** random.uniform(-6, 4, (64, classes))
        yield _case(f"magnitudes 1e-6…1e4 in a row of {classes}", dtype, x, random.integers(0, classes, 64))


def lanes(dtype: str) -> Iterator[Extreme]:
    """Neighbouring positions of very different spread, in the lanes of one vector."""
    random = np.random.default_rng(3)
    for classes in (2, 7, 40, 300):
        spread = 10.0 ** random.uniform(-5, 2, (96, 1))
        x = spread * random.standard_normal((96, classes)) + random.choice([0, 5000], (96, 1))
        yield _case(f"spreads 1e-5…100 side by side, {classes} classes", dtype, x, random.integers(0, classes, 96))


def removed(dtype: str) -> Iterator[Extreme]:
    """The first 1024 logits, a whole block of a row, are -inf; and rows with but one class left."""
    random = np.random.default_rng(4)
    for classes in (1025, 1100, 3000):
        x = random.normal(0, 4, (4, classes))
        x[:, :1024] = -np.inf
        x[1, -1] = 40
        x[3, :-1] = -np.inf
        yield _case(f"1024 of {classes} logits -inf, then others", dtype, x, [classes - 1] * 4)
    x = random.normal(0, 4, (32, 9))
    x[:, ::2] = -np.inf
    x[5, :-2] = -np.inf
    yield _case("every other logit -inf, 9 classes", dtype, x, [7] * 32)


def rising(dtype: str) -> Iterator[Extreme]:
    """Rows that rise from end to end: the running maximum changes in every block."""
    for classes, layouts in ((1000000, ("last",)), (20000, ("last", "first"))):
        x = np.linspace(0, 1, classes) * np.array([[80.0], [2000.0]])
        options: dict[str, Any] = {"quantities": ("loss", "gradient", "logsumexp", "mean"), "layouts": layouts}
        yield _case(f"{classes} logits rising to 80 and 2000", dtype, x, [classes - 1] * 2, **options)


def long(dtype: str) -> Iterator[Extreme]:
    """A million random classes."""
    random = np.random.default_rng(5)
    for classes in (50257, 1000000):
        x = random.standard_normal((2, classes), np.float32) * np.array([[1.0], [4.0]])
        targets = x.argmax(axis=1) * [1, 0]
        yield _case(f"{classes} normal logits", dtype, x, targets, quantities=("loss", "gradient", "logsumexp", "mean"))


def offset(dtype: str) -> Iterator[Extreme]:
    """Logits around 1e8 (as large as leaves them distinct): only their differences may matter."""
    random = np.random.default_rng(6)
    high, step = {"bfloat16": (1024, 8), "float16": (8192, 8)}.get(dtype, (1e8, 8))
    for classes in (5, 64, 500):
        x = high + step * np.rint(random.normal(0, 2, (48, classes)))
        yield _case(f"logits around {high:.0e}, {classes} classes", dtype, x, random.integers(0, classes, 48))


def scaled(dtype: str) -> Iterator[Extreme]:
    """logit_scale from 0.1 to 100, on logits far from 0."""
    random = np.random.default_rng(7)
    for scale in (0.1, *PRECISION[dtype].scales, 14.3, 100.0):
        for classes in (6, 90, 1300):
            x = 10 / scale * random.choice([-1, 0, 20], (32, 1)) + random.normal(0, 4 / scale, (32, classes))
            name = f"logit_scale {scale:.4g}, {classes} classes"
            targets = np.where(np.arange(32) % 2, x.argmax(axis=1), 0)
            yield _case(name, dtype, x, targets, scale=scale, quantities=("loss", "gradient", "softmax", "mean"))


# (classes, gap, distance) before scaling: found by search, for one type and kernel or another.
_CROWDS = [
    *[(33, 0.65044536, 7.35627255), (33, 1.28734122, 7.12181481), (33, 0.25467138, 0.97239879)],
    (33, 7.36951, 40.086472),
    *[(47, 1.06319696, 9.53488897), (47, 0.59116771, 11.81863764), (47, 0.59115538, 12.07628342)],
    *[(300, 0.57933131, 13.77345277), (300, 0.57913915, 13.77387665), (300, 0.09096251, 0.13281031)],
    *[(1026, 0, 12.5), (1026, 0, 14.41090845), (1026, 0, 10.11746626), (1026, 9, 9), (1026, 1.05006486, 15.02053567)],
    *[(10000, 0, 12.5), (10000, 0, 11.74704345), (10000, 0, 15.56318147), (10000, 0, 84.1158614)],
    *[(10000, 0, 84.48876883), (10000, 0.1935986, 2.72954881), (10000, 3.59378629, 20.3969839)],
    (10000, 0, 20.575982577),
]


def crowds(dtype: str) -> Iterator[Extreme]:
    """A leader, a second, and a crowd of equals: their roundings all go one way, in the exponential and in the sum."""
    about = PRECISION[dtype]
    for scale in (1.0, *about.scales):
        for classes in (5, 33, 47, 48, 79, 80, 300, 1026, 10000):
            random, rows = np.random.default_rng((8, classes)), []
            far = random.uniform(max(np.log(classes) - 3, 0.2), np.log(classes) + 6, 24) / scale
            near = np.where(np.arange(24) % 3 == 0, 0, random.uniform(0, 1, 24) * np.minimum(far, 3 / scale))
            near[-4:] = far[-4:]
            found = [(gap, distance) for n, gap, distance in _CROWDS if n == classes]
            for gap, distance in [*zip(near, far, strict=True), *found]:
                row = np.full(classes, -distance)
                row[:2] = distance * about.u * random.choice([0, 0.1, 0.24, 0.4]), -gap
                rows.append(np.roll(row, random.integers(classes)))
            x = np.array(rows)
            yield _case(f"{classes - 2} equal logits behind two, logit_scale {scale:.4g}", dtype, x, x.argmax(axis=1),
                        scale=scale, quantities=("loss", "gradient", "logsumexp", "mean")[: 2 if scale != 1 else 4])


def many(dtype: str) -> Iterator[Extreme]:
    """Many positions: what their mean loses."""
    random = np.random.default_rng(9)
    x = random.normal(0, 1, (200000, 5)) * 10.0 ** random.uniform(-2, 1.5, (200000, 1))
    quantities = ("loss", "mean")
    yield _case("200000 positions of 5 classes", dtype, x, random.integers(0, 5, 200000), quantities=quantities)
    x = np.tile([[0.3, 0.0, -1.7]], (100003, 1))
    yield _case("100003 positions alike", dtype, x, np.zeros(100003), quantities=quantities)


FAMILIES: dict[str, Callable[[str], Iterator[Extreme]]] = {
    f.__name__: f for f in (margins, equal, mixed, lanes, removed, rising, long, offset, scaled, crowds, many)
}


# --- what fastxent makes of them


def laid_out(case: Extreme, layout: str) -> tuple[Array, int]:
    """The logits with their class axis last or first, and that axis."""
    return (case.logits, -1) if layout == "last" else (np.ascontiguousarray(case.logits.T), 0)


def answers(case: Extreme, layout: str) -> dict[str, Array]:
    """Fastxent's answers, by quantity, brought back to (positions, classes)."""
    import fastxent

    x, axis = laid_out(case, layout)
    options: dict[str, Any] = {"axis": axis, "logit_scale": case.scale}
    loss, gradient = fastxent.cross_entropy_and_grad(x, case.targets, reduction="none", **options)
    found: dict[str, Any] = {"loss": loss, "gradient": gradient}
    found["mean"] = np.asarray(fastxent.cross_entropy(x, case.targets, **options))
    for name in {"softmax", "log_softmax", "logsumexp"} & set(case.quantities):
        if case.scale == 1:
            found[name] = getattr(fastxent, name)(x, axis=axis)
        else:
            _, found[name] = fastxent.cross_entropy_and_softmax(x, case.targets, **options)
    return {
        name: found[name].T if axis == 0 and np.ndim(found[name]) == 2 else found[name] for name in case.quantities
    }
