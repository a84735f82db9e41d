"""The bounds of docs/accuracy.md, on inputs made to break them, for every dtype, kernel family and instruction set.

bench/extremes.py has the inputs, the exact answers and the bounds, the same that `python -m bench.accuracy` prints.
Here every answer must keep its bound, the exact answers must be those of mpmath, and the forms that everybody writes
first must break the bounds on these inputs: a bound that they keep would prove nothing.
"""

import functools
import importlib.util
import math
import sys
from pathlib import Path

import cases
import numpy as np
import pytest

import fastxent

ROOT = Path(__file__).resolve().parents[1]


def load_bench():
    """The package bench/, without the root on sys.path: fastxent/ there would hide the installed package."""
    if "bench" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "bench", ROOT / "bench" / "__init__.py", submodule_search_locations=[str(ROOT / "bench")]
    )
    sys.modules["bench"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


load_bench()

from bench import extremes  # noqa: E402
from bench.extremes import DTYPES, FAMILIES, PRECISION, SUMMING, Exact, answers  # noqa: E402

on_every_engine = pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
for_every_float = pytest.mark.parametrize("dtype", DTYPES)
for_both_computed = pytest.mark.parametrize("dtype", ["float32", "float64"])


@functools.lru_cache(maxsize=2)
def expected(family, dtype):
    """The family's inputs with their exact answers."""
    if dtype == "float64" and np.finfo(np.longdouble).eps > 2.0**-60:
        pytest.skip("needs extended-precision: long double is double here")
    return [Exact(case) for case in FAMILIES[family](dtype)]


def worst(exact, quantity, got):
    """The largest share of the bound that an answer uses up, and a line about where."""
    _, share = exact.errors(quantity, got)
    where = np.unravel_index(int(np.argmax(share)), share.shape)
    value, right = (np.broadcast_to(np.asarray(a), share.shape)[where] for a in (got, exact.value[quantity]))
    place = tuple(int(i) for i in where)
    return float(share[where]), f"{exact.case.name}: {quantity}{place} = {float(value)!r}, exactly {float(right)!r}"


# --- the bounds are kept


@on_every_engine
@for_every_float
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds(family, dtype, engine):
    found = []
    with cases.running_on(*engine):
        for exact in expected(family, dtype):
            for layout in exact.case.layouts:
                for quantity, got in answers(exact.case, layout).items():
                    share, line = worst(exact, quantity, got)
                    found.append((share, f"{share:.2f} of the bound, class axis {layout}: {line}"))
    broken = sorted((item for item in found if not item[0] <= 1), reverse=True)
    assert not broken, "\n".join([f"{len(broken)} of {len(found)}", *(line for _, line in broken[:6])])


@on_every_engine
@for_every_float
def test_gradient_alone_keeps_its_bound(dtype, engine):
    """From saved statistics as well."""
    with cases.running_on(*engine):
        for exact in expected("margins", dtype):
            x, t = exact.case.logits, exact.case.targets
            _, saved = fastxent.cross_entropy(x, t, reduction="none", return_saved=True)
            for given in (None, saved):
                share, line = worst(
                    exact, "gradient", fastxent.cross_entropy_grad(x, t, reduction="none", saved=given)
                )
                assert share <= 1, line


@on_every_engine
@for_every_float
def test_large_offsets_change_no_bit(dtype, engine):
    """Logits + 1e8 (2^10 or 2^13 where 1e8 is too large): the differences are the same numbers."""
    high = {"bfloat16": 1024, "float16": 8192}.get(dtype, 10**8)
    random = cases.rng(31)
    with cases.running_on(*engine):
        for classes in (2, 7, 40, 300):
            low = (8 * np.rint(random.normal(0, 2, (50, classes)))).astype(cases.FLOATS[dtype])
            far = (low.astype(np.float64) + high).astype(low.dtype)
            assert np.array_equal(far.astype(np.float64) - high, low.astype(np.float64))
            t = random.integers(0, classes, 50)
            for axis in (-1, 0):
                near, moved = (np.ascontiguousarray(a if axis else a.T) for a in (low, far))
                ours, theirs = (fastxent.cross_entropy_and_grad(a, t, axis=axis) for a in (near, moved))
                assert ours[0] == theirs[0]
                assert ours[1].tobytes() == theirs[1].tobytes()
                assert fastxent.softmax(near, axis=axis).tobytes() == fastxent.softmax(moved, axis=axis).tobytes()


@on_every_engine
@for_every_float
def test_sum_and_mean_are_of_what_none_returns(dtype, engine):
    plain = []
    with cases.running_on(*engine):
        for exact in expected("many", dtype):
            x, t = exact.case.logits, exact.case.targets
            losses = fastxent.cross_entropy(x, t, reduction="none")
            total = math.fsum(losses.astype(np.float64))
            plain.append(abs(np.add.accumulate(losses)[-1] - total) / total)
            assert abs(fastxent.cross_entropy(x, t, reduction="sum") - total) <= SUMMING * total
            assert abs(fastxent.cross_entropy(x, t) - total / len(t)) <= SUMMING * total / len(t)
    assert max(plain) > SUMMING, "one running sum would do"


# --- the functions of src/kernels/math.inl, seen through public ones; docs/accuracy.md has these numbers


def vector_inputs(dtype, low, high, size=100000):
    """Half of them evenly spread, half of their logarithms."""
    random = cases.rng(32)
    even, logs = random.uniform(low, high, size), random.uniform(np.log(low), np.log(high), size)
    return np.concatenate([even, np.exp(logs)]).astype(dtype)


def check_vector(dtype, got, exact, allowed, at, relative=True):
    about = PRECISION[dtype]
    error = np.abs(got.astype(about.wide) - exact) / about.u
    error = error / np.abs(exact) if relative else error
    k = int(np.argmax(error - allowed))
    assert (error <= allowed).all(), f"{error[k]:.3f} u at {at[k]!r}, allowed {np.broadcast_to(allowed, at.shape)[k]}"


@on_every_engine
@for_both_computed
def test_exp(dtype, engine):
    """Of two classes far apart, the second's probability is exp(-d), from a difference that was exact."""
    about = PRECISION[dtype]
    d = vector_inputs(dtype, 18 if dtype == "float32" else 40, -np.log(about.tiny))
    x = np.stack([np.zeros_like(d), -d], axis=1)
    exact = np.exp(-d.astype(about.wide))
    fused = 0.12 if dtype == "float32" else 0.07  # what log2 e loses in being rounded
    slope = 0.5 if engine[1] in ("", "baseline") else fused
    with cases.running_on(*engine):
        check_vector(dtype, fastxent.softmax(x)[:, 1], exact, 1 + slope * d.astype(np.float64), d)
        check_vector(
            dtype, fastxent.softmax(np.ascontiguousarray(x.T), axis=0)[1], exact, 1 + slope * d.astype(np.float64), d
        )


@on_every_engine
@for_both_computed
def test_log1p(dtype, engine):
    """The loss of the leading class is log1p of the saved sum."""
    about = PRECISION[dtype]
    d = vector_inputs(dtype, 1e-3, 60)
    x = np.stack([np.zeros_like(d), -d, np.full_like(d, -1.5), -d], axis=1)
    with cases.running_on(*engine):
        for rows in (x[:, :2], x):
            loss, saved = fastxent.cross_entropy(rows, np.zeros(len(d), int), reduction="none", return_saved=True)
            s = saved[:, 1]
            check_vector(dtype, loss, np.log1p(s.astype(about.wide)), 0.75, s)


@on_every_engine
@for_both_computed
def test_log_of_class_counts(dtype, engine):
    about = PRECISION[dtype]
    counts = np.unique(np.r_[2:400, np.rint(10 ** np.linspace(2.6, 5, 30)).astype(int)])
    with cases.running_on(*engine):
        got = [
            fastxent.cross_entropy(np.full((1, c), about.large, dtype), np.array([0]), reduction="none")[0]
            for c in counts
        ]
    check_vector(dtype, np.array(got), np.log(counts.astype(about.wide)), 0.8, counts)


@on_every_engine
@for_both_computed
def test_tanh_and_its_slope(dtype, engine):
    """The maximum of one class under softcap=1 is its tanh; beside a removed class its gradient is the slope."""
    about = PRECISION[dtype]
    x = vector_inputs(dtype, 1e-8, 30)
    x = x * np.where(np.arange(len(x)) % 2, -1, 1).astype(dtype)
    pair, zeros = np.stack([x, np.full_like(x, -np.inf)], axis=1), np.zeros(len(x), int)
    wide = x.astype(about.wide)
    with cases.running_on(*engine):
        _, saved = fastxent.cross_entropy(x[:, None], zeros, softcap=1.0, reduction="none", return_saved=True)
        check_vector(dtype, saved[:, 0], np.tanh(wide), 2.25, x)
        slope = fastxent.cross_entropy_grad(pair, zeros + 1, softcap=1.0, reduction="none")[:, 0]
        check_vector(dtype, slope, 1 / np.cosh(wide) ** 2, 2.25, x, relative=False)


# --- the bounds and the exact answers mean something


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", ["margins", "equal", "mixed", "lanes", "removed", "offset", "scaled"])
def test_exact_answers_are_those_of_mpmath(family, dtype):
    mp = pytest.importorskip("mpmath").mp
    random = cases.rng(33)
    with mp.workdps(60):
        for exact in expected(family, dtype):
            case, n_classes = exact.case, exact.case.logits.shape[1]
            if n_classes > 100:
                continue
            i = int(random.integers(len(case.targets)))
            t = int(case.targets[i])
            top = mp.mpf(float(max(case.logits[i])))
            z = [mp.fsub(float(v), top, exact=True) * mp.mpf(case.scale) for v in case.logits[i]]
            log_sum = mp.log(mp.fsum(mp.exp(v) for v in z))
            p = [mp.exp(v - log_sum) for v in z]
            rest = mp.fsum(p[:t] + p[t + 1 :])
            true = {"loss": log_sum - z[t], "logsumexp": top + log_sum}
            true["gradient"] = [(-rest if c == t else p[c]) * mp.mpf(case.scale) for c in range(n_classes)]
            true |= {"softmax": p, "log_softmax": [v - log_sum for v in z]}
            for quantity, values in true.items():
                ours, bound = exact.value[quantity][i], exact.bound[quantity][i]
                for a, b, allowed in zip(*map(np.atleast_1d, (ours, values, bound)), strict=True):
                    if np.isfinite(a) or mp.isfinite(b):
                        high = float(a)
                        error = abs(mp.mpf(high) + mp.mpf(float(a - type(a)(high))) - b)
                        assert error <= mp.mpf(float(allowed)) / 50, (case.name, quantity, i)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
def test_equal_terms_of_class_probabilities_do_not_drift(engine, dtype):
    """Additions of the same number err the same way each time: a chain of them would be wrong by 30 u."""
    u = 2.0**-23 if dtype == "float32" else 2.0**-52
    with cases.running_on(*engine):
        for n in (100, 1000, 5000, 100_000):
            for value in (0.1, 0.3, 0.7):
                x, q = np.full((1, n), -value, dtype), np.full((1, n), 1.1 / n, dtype)
                exact = math.fsum((-x * q.astype(np.longdouble)).ravel())
                assert fastxent.nll_loss(x, q) == pytest.approx(exact, rel=3 * u, abs=0)
                exact = math.fsum((-np.log(-x.astype(np.longdouble)) * q).ravel())
                assert fastxent.cross_entropy_from_probs(-x, q) == pytest.approx(exact, rel=8 * u, abs=0)


def test_losses_far_below_the_rounding_of_one():
    assert min(exact.value["loss"].min() for exact in expected("margins", "float32")) < 1e-30
    for dtype, distance in (("float32", 69.5), ("float64", 690.5)):
        loss = fastxent.cross_entropy(np.array([[0, -distance]], dtype), np.array([0]))
        assert abs(loss - math.exp(-distance)) < 2e-5 * math.exp(-distance)


def first_forms(case):
    """Everybody's first form of each quantity, in the type that fastxent computes in."""
    real = np.float64 if case.dtype == "float64" else np.float32
    x = case.logits.astype(real) * real(case.scale)
    rows = np.arange(len(case.targets))
    with np.errstate(all="ignore"):
        m = x.max(axis=1, keepdims=True)
        e = np.exp(x - m)
        log_sum = m + np.log(e.sum(axis=1, keepdims=True))
        gradient = e / e.sum(axis=1, keepdims=True)
        gradient[rows, case.targets] -= 1
        found = {"loss": (log_sum - x[rows, case.targets][:, None])[:, 0], "gradient": gradient * real(case.scale)}
        found |= {"softmax": np.exp(x - log_sum), "log_softmax": x - log_sum}
        found["logsumexp"] = np.log(np.exp(x).sum(axis=1))
        found["mean"] = found["loss"].mean()
    return found


# Where each of them breaks its bound, whatever the dtype; and where the rounding to a half type would hide it.
BREAKS = {
    "loss": ["margins", "equal", "mixed", "lanes", "removed", "rising", "offset", "scaled", "crowds", "many"],
    "gradient": ["margins", "lanes", "crowds"],
    "softmax": ["equal"],
    "log_softmax": ["margins", "mixed", "lanes", "removed", "offset"],
    "logsumexp": ["equal", "mixed", "lanes", "rising", "offset", "crowds"],
    "mean": ["equal"],
}
HIDDEN = {"gradient": ["mixed", "removed", "offset", "scaled"], "softmax": ["lanes", "offset", "scaled"]}
BROKEN = [(q, f, d) for q, families in BREAKS.items() for f in families for d in DTYPES] + [
    (q, f, d) for q, families in HIDDEN.items() for f in families for d in ("float32", "float64")
]


@pytest.mark.parametrize(("quantity", "family", "dtype"), sorted(BROKEN, key=lambda item: item[1:]))
def test_first_forms_break_the_bounds(quantity, family, dtype):
    shares = [worst(exact, quantity, first_forms(exact.case)[quantity])[0] for exact in expected(family, dtype)]
    assert not max(shares) <= 1, max(shares)


@for_both_computed
@pytest.mark.parametrize("family", ["long", "crowds"])
def test_one_running_sum_breaks_the_bounds(family, dtype):
    """The right forms with a sum that is carried from class to class in the compute type."""
    shares = []
    for exact in expected(family, dtype):
        case = exact.case
        x = np.sort(case.logits, axis=1)[:, ::-1]
        e = np.exp((x[:, 1:] - x[:, :1]) * x.dtype.type(case.scale))
        s = np.add.accumulate(e, axis=1)[:, -1]
        below = (x[:, 0] - case.logits[np.arange(len(x)), case.targets]) * x.dtype.type(case.scale)
        shares.append(worst(exact, "loss", below + np.log1p(s))[0])
    assert max(shares) > 1, max(shares)


def test_inputs_are_the_same_every_time():
    for make in FAMILIES.values():
        for ours, again in zip(make("bfloat16"), make("bfloat16"), strict=True):
            assert ours.logits.tobytes() == again.logits.tobytes()
            assert np.isfinite(ours.logits.max(axis=1).astype(np.float64)).all(), ours.name
    assert tuple(BREAKS) == extremes.QUANTITIES
