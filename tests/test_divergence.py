"""kl_div and focal_loss: against the oracle and torch, near 0, by differences, at the ends of the numbers."""

import inspect

import cases
import element_cases
import mpmath
import numpy as np
import pytest
from bounds import assert_within

import fastxent
from fastxent import reference as oracle
from fastxent import reference_elementwise as reference

ENGINES = cases.engines()
on_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(filter(None, e)))
INF, NAN = np.inf, np.nan
same = np.testing.assert_array_equal
SHAPES = [((7,), 0), ((6, 5), -1), ((5, 6), 0), ((3, 4, 17), 2), ((3, 17, 4), 1), ((2, 3, 5, 64), -1), ((4, 129, 9), 1),
          ((70, 2), -1), ((37, 1), 1), ((2, 2, 1025), -1), ((1, 2049, 3), 1), ((0, 5), 1), ((3, 0, 5), 2)]


@pytest.mark.parametrize("name", ["kl_div", "kl_div_and_grad", "focal_loss", "focal_loss_and_grad"])
def test_the_oracle_has_the_same_signature(name):
    def essence(module):
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        return {p.name: (p.kind, "nan" if p.default != p.default else p.default) for p in parameters}

    assert essence(fastxent) == essence(reference)


# --- the divergence


def divergence_errors(x, y, axis):
    """What rounding may do to unweighted losses (positions) and slopes (classes last)."""
    u = element_cases.unit(x.dtype)
    with np.errstate(all="ignore"):
        of_q, of_p = (oracle._Softmax(np.moveaxis(oracle._wide(a), axis, -1)) for a in (x, y))
        a, b = np.abs(of_p.below_top), np.abs(of_q.below_top)
        p, q = of_p.p, of_q.p
        d = of_p.below_top - of_q.below_top - (of_p.log1p_s - of_q.log1p_s)[..., None]
        steps = 14 + 2 * (np.where(p > 0, a, 0) + np.where(q > 0, b, 0))
        near = np.abs(d) < 0.55
        loss = np.where(near, p * d * d * steps + np.abs(p - q) * steps, (p * (np.abs(d) + 1) + q) * steps)
        slope = np.where(near, p * (np.abs(d) + 1) * steps, (p + q) * steps)
        loss = np.where(p == 0, q * steps, loss)
        slope = np.where(p == 0, q * steps, slope)
        reach = np.where(np.isfinite(steps), steps, 0).max(axis=-1, initial=0)
        tiny = x.shape[axis] * element_cases.smallest(x.dtype) * 200
        return (loss.sum(axis=-1) * u + (reach * u) ** 2 + tiny).astype(float), (slope * u + tiny).astype(float)


def check_divergence(x, y, axis, keywords, seed=0, label=""):
    label = f"{label} {x.dtype} {x.shape} {axis} {y.dtype} {list(keywords)}"
    positions = tuple(np.delete(x.shape, axis).tolist())
    upstream = element_cases.upstream(seed, positions, keywords)
    value, gradient = reference.kl_div_and_grad(x, y, axis=axis, upstream=upstream, **keywords)
    of_loss, of_slope = divergence_errors(x, y, axis)
    error = element_cases.errors_of_value(of_loss, keywords) + 4 * element_cases.unit(x.dtype) * np.abs(value)
    _, scale = reference.mse_loss_and_grad(np.full(positions, 0.5), np.zeros(positions), upstream=upstream, **keywords)
    with np.errstate(invalid="ignore"):
        of_slope = np.where(scale[..., None] != 0, np.abs(scale)[..., None] * of_slope, 0)
    error_of_gradient = np.moveaxis(of_slope, -1, axis)
    got, got_gradient = fastxent.kl_div_and_grad(x, y, axis=axis, upstream=upstream, **keywords)
    assert_within(got, value, error, f"{label}: loss")
    error_of_gradient = error_of_gradient + 6 * element_cases.unit(x.dtype) * np.abs(gradient)
    assert_within(got_gradient, gradient, error_of_gradient, f"{label}: gradient")
    assert got_gradient.dtype == cases.stored_as(x.dtype), label
    assert_within(fastxent.kl_div(x, y, axis=axis, **keywords), value, error, f"{label}: loss alone")
    if keywords["reduction"] == "none":
        assert np.asarray(got).dtype == cases.computed_in(x.dtype), label
    if x.dtype == cases.stored_as(x.dtype) and x.flags.writeable:
        copy = x.copy()
        again = fastxent.kl_div_and_grad(copy, y, axis=axis, upstream=upstream, out_grad=copy, **keywords)
        np.testing.assert_allclose(again[0], got, rtol=1e-14, err_msg=label)
        same(copy.astype(float), got_gradient.astype(float), err_msg=label)


@on_every_engine
@pytest.mark.parametrize("dtype", [*cases.FLOATS, "int8"])
def test_divergence(dtype, engine):
    with cases.running_on(*engine):
        for i, (shape, axis) in enumerate(SHAPES):
            for spread, apart in ((3.0, 3.0), (3.0, 0.01), (30.0, 30.0), (0.1, 0.1)):
                random = cases.rng(110, i)
                x = cases.scores(random, shape, cases.DTYPES[dtype], spread)
                y = cases.scores(random, shape, cases.DTYPES[dtype], apart)
                if apart == 0.01:
                    y = (x + y).astype(x.dtype)
                keywords = {"empty_value": 0.0} | cases.reduction(cases.REDUCTIONS[i % len(cases.REDUCTIONS)])
                check_divergence(x, y, axis % len(shape), keywords, i, f"spread {spread} apart {apart}")


@on_every_engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_divergence_options_and_layouts(dtype, engine):
    layouts = list(cases.LAYOUTS)
    with cases.running_on(*engine):
        for seed, (shape, axis) in enumerate((((5, 6, 21), 2), ((9, 100), 1), ((3, 33, 4), 1))):
            positions = shape[:axis] + shape[axis + 1:]
            for i, keywords in enumerate(element_cases.options(seed, positions)):
                random = cases.rng(111, seed, i)
                x, y = (cases.scores(random, shape, cases.FLOATS[dtype]) for _ in range(2))
                first, second = layouts[i % len(layouts)], layouts[-i % len(layouts)]
                x, y = cases.lay_out(first, x, axis), cases.lay_out(second, y, axis)
                check_divergence(x, y, axis, {"empty_value": 1.0} | keywords, i, first)


@on_every_engine
def test_divergences_near_0_keep_their_digits(engine):
    """In float32: half of the sum of p·d², where p·d alone would leave nothing but rounding."""
    random = cases.rng(112)
    x = random.normal(size=(5, 4000)) * 3
    x = x.astype("f4").astype(float)
    with cases.running_on(*engine):
        for size in (1e-2, 1e-3):
            y = (x + size * random.normal(size=x.shape)).astype("f4")
            expected = reference.kl_div(x, y, reduction="none")
            got = fastxent.kl_div(x.astype("f4"), y, reduction="none")
            np.testing.assert_allclose(got, expected, rtol=2e-6 / size)
        moved = fastxent.kl_div(x.astype("f4"), x.astype("f4") + np.float32(64), reduction="none")
        assert (moved >= 0).all() and (moved < 1e-10).all()
        same(fastxent.kl_div(x, x, reduction="none"), 0)


@on_every_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [60, 1000, 50257])
def test_rows_of_equal_terms_do_not_drift(n, dtype, engine):
    """One logit raised by g: exactly log((n - 1 + e^g)/n) - g/n. Equal terms, plainly added, round one way."""
    u = element_cases.unit(cases.FLOATS[dtype])
    with cases.running_on(*engine), mpmath.workdps(40):
        for g in np.linspace(0.001, 3, 25).astype(dtype):
            x = np.zeros((1, n), dtype)
            x[0, n // 2] = g
            exact = mpmath.log1p(mpmath.expm1(mpmath.mpf(float(g))) / n) - mpmath.mpf(float(g)) / n
            got = fastxent.kl_div(x, np.zeros_like(x), reduction="none")[0]
            assert abs(got - float(exact)) <= (60 + 12 / float(g)) * u * exact


@on_every_engine
@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_a_divergence_has_the_same_bits_in_any_layout_and_with_the_gradient(dtype, engine):
    random = cases.rng(118)
    with cases.running_on(*engine):
        for n in (5, 100, 1000, 3000):
            x, y = (cases.scores(random, (3, n), cases.FLOATS[dtype]) for _ in range(2))
            plain = fastxent.kl_div(x, y, reduction="none")
            strided = [np.repeat(a, 2, axis=1)[:, ::2] for a in (x, y)]
            same(fastxent.kl_div(*strided, reduction="none"), plain)
            same(fastxent.kl_div_and_grad(x, y, reduction="none")[0], plain)


def test_divergence_against_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    random = cases.rng(113)
    x, y = random.normal(size=(11, 23)), random.normal(size=(11, 23))
    leaf = torch.tensor(x, requires_grad=True)
    logs = functional.log_softmax(leaf, 1), functional.log_softmax(torch.tensor(y), 1)
    expected = functional.kl_div(*logs, reduction="batchmean", log_target=True)
    expected.backward()
    loss, grad = fastxent.kl_div_and_grad(x, y)
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=1e-15)


@on_every_engine
def test_divergence_at_the_ends(engine):
    rows = [
        ([0, -INF], [0, 0], INF, [0.5, -0.5]),  # no weight where some is wanted
        ([0, 0], [0, -INF], np.log(2), [-0.5, 0.5]),  # none wanted: adds 0
        ([0, -INF], [3, -INF], 0, [0, 0]),
        ([-INF, -INF], [0, 0], NAN, None),
        ([0, 0], [-INF, -INF], NAN, None),
        ([0, INF], [0, 0], NAN, None),
        ([0, 0], [NAN, 0], NAN, None),
        ([1e4, 0], [0, 1e4], 1e4, [1, -1]),
        ([1e4, 0], [1e4, 0], 0, [0, 0]),
    ]
    with cases.running_on(*engine):
        for dtype in ("float32", "float64"):
            for n in (2, 40, 1100):
                pad = np.full((len(rows), n - 2), -INF)
                x = np.c_[np.array([r[0] for r in rows], float), pad].astype(dtype)
                y = np.c_[np.array([r[1] for r in rows], float), pad].astype(dtype)
                loss, grad = fastxent.kl_div_and_grad(x, y, reduction="none")
                np.testing.assert_allclose(loss, np.array([r[2] for r in rows], dtype), rtol=1e-6)
                for found, row in zip(grad, rows, strict=True):
                    if row[3] is None:
                        assert np.isnan(found).all()
                    else:
                        np.testing.assert_allclose(found[:2], row[3], atol=1e-7)
                        same(found[2:], 0)


def test_wrong_arguments_of_the_divergence():
    x = np.zeros((3, 4))
    for error, message, y, keywords in (
        (ValueError, "target_logits must have the shape of logits", np.zeros(4), {}),
        (ValueError, "axis 5 is out of bounds", x, {"axis": 5}),
        (ValueError, "sample_weight must broadcast", x, {"sample_weight": np.ones(4)}),
        (ValueError, "lengths needs a batch axis", x, {"lengths": [1, 2, 3]}),
        (TypeError, "target_logits has dtype", x.astype(complex), {}),
    ):
        with pytest.raises(error, match=message):
            fastxent.kl_div(x, y, **keywords)
    with pytest.raises(ValueError, match="have no classes"):
        fastxent.kl_div(np.zeros((3, 0)), np.zeros((3, 0)))
    with pytest.raises(ValueError, match="overlaps"):
        fastxent.kl_div_and_grad(x, np.zeros((3, 4)), out_grad=x[::-1])


# --- focal loss


def focal_error(x, axis, gamma, targets):
    """A relative error for losses and slopes: that of exponentials of the row's differences, gamma times and more."""
    wide = np.moveaxis(np.asarray(x).astype(float), axis, -1)
    with np.errstate(all="ignore"):
        top = wide.max(axis=-1, initial=-INF)
        low = np.where(np.isfinite(wide), wide, INF).min(axis=-1, initial=INF)
        reach = np.where(np.isfinite(top - low), top - low, 0)
    return (12 + 2 * reach) * (2 + gamma) * element_cases.unit(np.asarray(x).dtype)


def check_focal(x, targets, axis, own, keywords, seed=0, label=""):
    label = f"{label} {x.dtype} {x.shape} {axis} {own} {list(keywords)}"
    positions = tuple(np.delete(x.shape, axis).tolist())
    upstream = element_cases.upstream(seed, positions, keywords)
    arguments = {"axis": axis, **own, **keywords}
    value, gradient = reference.focal_loss_and_grad(x, targets, upstream=upstream, **arguments)
    losses = reference.focal_loss(x, targets, **(arguments | {"reduction": "none", "normalizer": None}))
    steps = focal_error(x, axis, own.get("gamma", 2.0), targets)
    tiny = 4 * element_cases.smallest(x.dtype)
    _, share = reference.mse_loss_and_grad(np.full(positions, 0.5), np.zeros(positions),
                                           **{k: v for k, v in keywords.items() if k not in ("shift", "ignore_index")})
    share = np.ones(positions) if keywords["reduction"] == "none" else np.abs(share).max(initial=0)
    error = steps * np.abs(losses) * share + tiny
    error = error if keywords["reduction"] == "none" else error.sum() + 1e-15 * np.abs(value)
    got, got_gradient = fastxent.focal_loss_and_grad(x, targets, upstream=upstream, **arguments)
    assert_within(got, value, error, f"{label}: loss")
    wide = np.moveaxis(np.abs(gradient), axis, -1) * steps[..., None] + tiny
    assert_within(got_gradient, gradient, np.moveaxis(wide, -1, axis), f"{label}: gradient")
    assert got_gradient.dtype == cases.stored_as(x.dtype)
    assert_within(fastxent.focal_loss(x, targets, **arguments), value, error, f"{label}: loss alone")


@on_every_engine
@pytest.mark.parametrize("dtype", [*cases.FLOATS, "int8"])
def test_focal_loss(dtype, engine):
    with cases.running_on(*engine):
        for i, (shape, axis) in enumerate(SHAPES):
            axis %= len(shape)
            for j, gamma in enumerate((2.0, 0.0, 0.5, 1.0, 5.0)):
                random = cases.rng(114, i, j)
                x = cases.scores(random, shape, cases.DTYPES[dtype], (3.0, 20.0)[j % 2])
                positions = shape[:axis] + shape[axis + 1:]
                targets = cases.class_indices(random, positions, shape[axis])
                own = {"gamma": gamma}
                if j % 2:
                    own["alpha"] = random.uniform(0.25, 2, shape[axis]) if i % 2 else 0.25
                keywords = cases.reduction(("none", "sum")[(i + j) % 2])
                check_focal(x, targets, axis, own, keywords, i)


@on_every_engine
def test_focal_options(engine):
    with cases.running_on(*engine):
        for i, (shape, axis) in enumerate((((5, 6, 21), 2), ((6, 33, 7), 1), ((4, 5, 120), 2), ((4, 300, 3), 2))):
            positions = shape[:axis] + shape[axis + 1:]
            for j, keywords in enumerate(element_cases.options(i, positions)):
                random = cases.rng(115, i, j)
                x = cases.scores(random, shape, np.dtype("f4"))
                targets = cases.class_indices(random, positions, shape[axis])
                alpha = random.uniform(0.25, 2, shape[axis])
                options = {"alpha": alpha, "axis": axis, **keywords}
                loss, grad = fastxent.focal_loss_and_grad(x, targets, **options)
                expected = reference.focal_loss_and_grad(x, targets, **options)
                np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-30)
                np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=1e-30)
            extra = {"shift": 1, "ignore_index": 2, "alpha": 0.5, "axis": axis}
            for reduced in cases.REDUCTIONS:
                keywords = extra | cases.reduction(reduced)
                expected = reference.focal_loss_and_grad(x, targets, **keywords)
                loss, grad = fastxent.focal_loss_and_grad(x, targets, **keywords)
                np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
                np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=1e-30)


@on_every_engine
def test_focal_loss_without_focus_is_cross_entropy(engine):
    random = cases.rng(116)
    with cases.running_on(*engine):
        for shape, axis in SHAPES[:8]:
            x = cases.scores(random, shape, np.dtype("f4"))
            targets = cases.class_indices(random, np.delete(shape, axis), shape[axis])
            focal = fastxent.focal_loss_and_grad(x, targets, gamma=0, axis=axis)
            plain = fastxent.cross_entropy_and_grad(x, targets, axis=axis)
            np.testing.assert_allclose(focal[0], plain[0], rtol=1e-7)
            np.testing.assert_allclose(focal[1], plain[1], rtol=1e-6, atol=1e-12)


@on_every_engine
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_gradients_are_slopes(gamma, engine):
    random = cases.rng(117)
    x, y, direction = (random.normal(size=(6, 9)) * 2 for _ in range(3))
    targets, step = random.integers(0, 9, 6), 1e-3
    with cases.running_on(*engine):
        for value, grad in (
            (lambda t: fastxent.focal_loss(x + t * direction, targets, gamma=gamma),
             fastxent.focal_loss_and_grad(x, targets, gamma=gamma)[1]),
            (lambda t: fastxent.kl_div(x + t * direction, y), fastxent.kl_div_and_grad(x, y)[1]),
        ):
            slope = (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * step)
            assert (grad * direction).sum() == pytest.approx(slope, rel=1e-8, abs=1e-11)


@on_every_engine
def test_focal_loss_at_the_ends(engine):
    with cases.running_on(*engine):
        for n in (2, 60, 200):
            for transposed in (False, True):
                x = np.full((6, n), -INF)
                x[:, :2] = [[0, -1e4], [0, -60], [0, 60], [0, -INF], [-INF, 0], [0, NAN]]
                x = np.asfortranarray(x) if transposed else x
                loss, grad = fastxent.focal_loss_and_grad(x, np.zeros(6, int), reduction="none")
                np.testing.assert_allclose(loss[:5], [0, np.exp(-180.0), 60, 0, INF], rtol=1e-14)
                assert np.isnan(loss[5]) and np.isnan(grad[5]).all()
                np.testing.assert_allclose(grad[:5, 0], [0, -3 * np.exp(-180.0), -1, 0, -1], rtol=1e-13)
                np.testing.assert_allclose(grad[:5, 1], [0, 3 * np.exp(-180.0), 1, 0, 1], rtol=1e-13)


def test_wrong_arguments_of_focal_loss():
    x, targets = np.zeros((3, 4)), [0, 1, 2]
    for error, message, keywords in (
        (ValueError, "gamma must be at least 0", {"gamma": -1.0}),
        (ValueError, "gamma must be finite", {"gamma": INF}),
        (ValueError, "alpha must be a number or have shape", {"alpha": [1.0, 2.0]}),
        (TypeError, "expected integers", {"_": np.zeros((3, 4))}),
        (IndexError, "outside", {"_": [0, 1, 4]}),
    ):
        given = keywords.pop("_", targets)
        for function in (fastxent.focal_loss, fastxent.focal_loss_and_grad):
            with pytest.raises(error, match=message):
                function(x, given, **keywords)
