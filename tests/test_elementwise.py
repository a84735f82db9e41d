"""Losses and activations of single elements: against the oracle and torch, by differences, at the ends of numbers."""

import inspect

import cases
import element_cases
import numpy as np
import pytest
from bounds import assert_within

import fastxent
from fastxent import _element_arguments
from fastxent import reference_elementwise as reference

ENGINES = cases.engines()
on_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(filter(None, e)))
INF, NAN = np.inf, np.nan
same = np.testing.assert_array_equal

# name -> options of the loss's own
LOSSES = {
    "binary_cross_entropy": [{}],
    "binary_cross_entropy_with_logits": [{}, {"pos_weight": 2.5}, {"pos_weight": "of the last axis"}],
    "mse_loss": [{}],
    "l1_loss": [{}],
    "huber_loss": [{}, {"delta": 0.3}],
    "smooth_l1_loss": [{}, {"beta": 0.3}, {"beta": 0.0}],
}
NAMES = [*LOSSES, *(f"{name}_and_grad" for name in LOSSES), "l2_penalty", "l2_penalty_and_grad", "sigmoid",
         "log_sigmoid", "tanh"]
SHAPES = [(), (1,), (7,), (1500,), (3, 5), (33, 65), (4, 3, 37), (2, 1, 3, 130), (0,), (3, 0)]
TARGETS = ("bool", "uint8", "int64", "same")


def inputs(name, random, shape, dtype, target="same"):
    """Input and target of one shape, the target of a type that the input's computing type can hold."""
    x = cases.scores(random, shape, cases.DTYPES[dtype])
    if name == "binary_cross_entropy":
        x = np.asarray(reference.sigmoid(np.asarray(x).astype(float) * 2)).astype(cases.stored_as(x.dtype))
        if np.asarray(x).dtype.kind in "iu" or cases.DTYPES[dtype].kind in "iu":
            x = np.asarray(np.rint(x)).astype(cases.DTYPES[dtype])
    y = random.uniform(size=shape) if "binary" in name else random.normal(size=shape)
    y = (y > 0.5).astype(target) if target != "same" else np.asarray(y).astype(cases.stored_as(x.dtype))
    return np.asarray(x), np.asarray(y)


def own_options(name, random, shape):
    """What the loss has of its own; weights for the last axis where there is one."""
    for found in LOSSES[name]:
        if "pos_weight" in found and isinstance(found["pos_weight"], str):
            found = {"pos_weight": random.uniform(0.5, 3, shape[-1:]).astype("f4")}
        yield found


def magnitudes(name, x, y, own):
    """The sums of the sizes of what is added up for losses and slopes."""
    d = np.abs(x - y)
    with np.errstate(all="ignore"):
        if name == "binary_cross_entropy":
            logs = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
            return np.abs(y * logs[0]) + np.abs((1 - y) * logs[1]), d / np.maximum(x * (1 - x), 1e-12)
        if name == "binary_cross_entropy_with_logits":
            on, off = y * own.get("pos_weight", 1.0), 1 - y
            return (np.abs(on * np.logaddexp(0, -x)) + np.abs(off * np.logaddexp(0, x)),
                    np.abs(on * reference._sigmoid(-x)) + np.abs(off * reference._sigmoid(x)))
        if name == "mse_loss":
            return d * d, 2 * d
        if name == "l1_loss":
            return d, np.ones_like(d)
        if name == "huber_loss":
            delta = own.get("delta", 1.0)
            return np.where(d < delta, d * d, delta * (d + delta)), np.minimum(d, delta)
        beta = own.get("beta", 1.0)
        return d + beta, np.ones_like(d)


def check(name, x, y, own, keywords, seed=0, label=""):
    """Loss and gradient, apart and together, into fresh arrays and given ones, beside the oracle's."""
    label = f"{name} {label} {x.dtype} {x.shape} {y.dtype} {list(own)} {list(keywords)}"
    loss, both = getattr(fastxent, name), getattr(fastxent, f"{name}_and_grad")
    computed, stored = cases.computed_in(x.dtype), cases.stored_as(x.dtype)
    upstream = element_cases.upstream(seed, x.shape, keywords)
    untouched = x.tobytes(), y.tobytes()
    value, gradient = getattr(reference, f"{name}_and_grad")(x, y, upstream=upstream, **own, **keywords)
    u, tiny = element_cases.unit(x.dtype), element_cases.smallest(x.dtype)
    of_loss, of_slope = magnitudes(name, np.asarray(x).astype(float), np.asarray(y).astype(float), own)
    steps = 12 + 2 * np.abs(np.asarray(x).astype(float)) * (name == "binary_cross_entropy_with_logits")
    error = element_cases.errors_of_value(steps * u * of_loss + 4 * tiny, keywords)
    error = error + element_cases.errors_of_sums(value, x.shape)
    _, scale = reference.mse_loss_and_grad(np.full(x.shape, 0.5), np.zeros(x.shape), upstream=upstream, **keywords)
    error_of_gradient = np.where(scale != 0, np.abs(scale) * ((2 + steps) * u * of_slope + 4 * tiny) + tiny, 0)

    got, got_gradient = both(x, y, upstream=upstream, **own, **keywords)
    assert_within(got, value, error, f"{label}: loss")
    assert_within(got_gradient, gradient, error_of_gradient, f"{label}: gradient")
    assert got_gradient.dtype == stored and got_gradient.strides == np.empty_like(x, stored, "K").strides, label
    alone = loss(x, y, **own, **keywords)
    assert_within(alone, value, error, f"{label}: loss alone")
    outputs = {"out_grad": np.full((*x.shape, 2), NAN).astype(stored)[..., 0]}
    if keywords["reduction"] == "none":
        assert np.asarray(got).dtype == computed, label
        outputs["out"] = np.full((*x.shape, 3), NAN, computed)[..., 1]
        assert not np.signbit(got[got == 0]).any(), f"{label}: -0.0"
    else:
        assert type(got) is type(alone) is np.float64, label
    again = both(x, y, upstream=upstream, **own, **keywords, **outputs)
    assert again[1] is outputs["out_grad"] and again[0] is outputs.get("out", again[0]), label
    np.testing.assert_allclose(again[0], got, rtol=1e-14, err_msg=label)  # its layout orders the sum
    same(again[1], got_gradient, err_msg=label)
    assert untouched == (x.tobytes(), y.tobytes()), f"{label}: an input was changed"


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_has_the_same_signature(name):
    def essence(module):
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        return {p.name: (p.kind, "nan" if p.default != p.default else p.default) for p in parameters}

    assert essence(fastxent) == essence(reference)


def test_plan_has_the_order_that_the_engine_reads():
    theirs = pytest.importorskip("fastxent._native").ELEMENT_FIELDS
    assert _element_arguments.ElementPlan._fields[: len(theirs)] == theirs


# --- parity


@on_every_engine
@pytest.mark.parametrize("dtype", [*cases.FLOATS, "int8", "uint64"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, dtype, engine):
    random = cases.rng(92)
    with cases.running_on(*engine):
        for i, shape in enumerate(SHAPES):
            for j, target in enumerate(TARGETS):
                x, y = inputs(name, random, shape, dtype, target)
                for own in own_options(name, random, shape):
                    reduced = cases.reduction(cases.REDUCTIONS[(i + j) % len(cases.REDUCTIONS)])
                    check(name, x, y, own, {"empty_value": 0.0} | reduced, i)


@on_every_engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_options(name, dtype, engine):
    with cases.running_on(*engine):
        for seed, shape in enumerate(((9,), (5, 67), (2, 3, 600))):
            x, y = inputs(name, cases.rng(93, seed), shape, dtype)
            own = list(own_options(name, cases.rng(94), shape))[-1]
            for keywords in element_cases.options(seed, shape):
                check(name, x, y, own, {"empty_value": 7.0} | keywords, seed)


@on_every_engine
@pytest.mark.parametrize("dtype", ["float16", "float32", "int16"])
def test_layouts(dtype, engine):
    """Input, target and results each in a layout of their own."""
    layouts = [n for n in cases.LAYOUTS if "repeated" not in n]
    with cases.running_on(*engine):
        for i, first in enumerate(cases.LAYOUTS):
            for j, shape in enumerate(((600,), (7, 40), (3, 4, 5), (1, 3, 1, 130))):
                name = list(LOSSES)[(i + j) % len(LOSSES)]
                x, y = inputs(name, cases.rng(95, i, j), shape, dtype)
                second = layouts[(i + 3 * j) % len(layouts)]
                keywords = cases.reduction(("none", "mean")[(i + j) % 2])
                if j == 2:
                    keywords |= {"mask": cases.rng(96, i).uniform(size=shape) < 0.7}
                if j == 1:
                    keywords |= {"lengths": cases.rng(96, i).integers(0, 41, 7)}
                check(name, cases.lay_out(first, x), cases.lay_out(second, y), LOSSES[name][0], keywords, i, first)


@on_every_engine
@pytest.mark.parametrize("name", LOSSES)
def test_in_place_and_in_any_order_of_memory(name, engine):
    with cases.running_on(*engine):
        for dtype in cases.FLOATS:
            x, y = inputs(name, cases.rng(97), (40, 51), dtype)
            losses, gradient = getattr(fastxent, f"{name}_and_grad")(x, y, reduction="none")
            for transposed in (False, True):
                for place in (0, 1):
                    arrays = [np.asfortranarray(a) if transposed else a.copy() for a in (x, y)]
                    got = getattr(fastxent, f"{name}_and_grad")(*arrays, reduction="none", out_grad=arrays[place])
                    same(got[0], losses)
                    same(arrays[place], gradient)
            if x.dtype == cases.computed_in(x.dtype):
                arrays = [x.copy(), y.copy()]
                getattr(fastxent, f"{name}_and_grad")(*arrays, reduction="none", out=arrays[1], out_grad=arrays[0])
                same(arrays, [gradient, losses])


@on_every_engine
def test_results_larger_than_the_caches(engine):
    """Written past the caches, from any address, by several threads: the bits of small calls."""
    random = cases.rng(98)
    with cases.running_on(*engine):
        for dtype in cases.FLOATS:
            n = (1 << 23) // cases.FLOATS[dtype].itemsize + 4321
            x, y = random.normal(size=n).astype(cases.FLOATS[dtype]), random.uniform(size=n).astype(cases.FLOATS[dtype])
            for shift in (0, 3):
                a, b = x[shift:], y[shift:]
                grad = np.empty(n, cases.FLOATS[dtype])[n - a.size :]
                losses, _ = fastxent.mse_loss_and_grad(a, b, reduction="none", out_grad=grad)
                total, _ = fastxent.mse_loss_and_grad(a, b, reduction="sum", num_threads=1)
                for start in range(0, a.size, 100_000):
                    part = slice(start, start + 100_000)
                    expected = fastxent.mse_loss_and_grad(a[part], b[part], reduction="none")
                    same(losses[part], expected[0])
                    same(grad[part], expected[1])
                assert total == pytest.approx(losses.sum(dtype=float), rel=1e-14)
                assert total == fastxent.mse_loss(a, b, reduction="sum", num_threads=2)


# --- truth


@pytest.mark.parametrize("name", LOSSES)
def test_against_torch(name):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    random = cases.rng(99)
    for dtype in ("float32", "float64"):
        for own in ({}, {"pos_weight": random.uniform(0.5, 2, 19).astype(dtype)} if "logits" in name else
                    {"delta": 0.4} if name == "huber_loss" else {"beta": 0.4} if "smooth" in name else {}):
            x, y = inputs(name, random, (23, 19), dtype)
            for reduction in ("mean", "sum", "none"):
                leaf = torch.tensor(x, requires_grad=True)
                theirs = {k: torch.tensor(v) if k == "pos_weight" else v for k, v in own.items()}
                expected = getattr(functional, name)(leaf, torch.tensor(y), reduction=reduction, **theirs)
                expected.sum().backward()
                loss, grad = getattr(fastxent, f"{name}_and_grad")(x, y, reduction=reduction, **own)
                tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
                np.testing.assert_allclose(loss, expected.detach().numpy(), **tolerance)
                np.testing.assert_allclose(grad, leaf.grad.numpy(), **tolerance)


def test_ends_of_probabilities_as_in_torch():
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "float64"):
        below = np.nextafter(np.ones((), dtype), np.zeros((), dtype))
        p = np.array([0, 1, 0, 1, 1e-45, 1e-30, below, 0.5, 0, 1], dtype)
        y = np.array([0, 1, 1, 0, 1, 1, 0, 0.5, 0.25, 0.25], dtype)
        leaf = torch.tensor(p, requires_grad=True)
        expected = torch.nn.functional.binary_cross_entropy(leaf, torch.tensor(y), reduction="none")
        expected.sum().backward()
        loss, grad = fastxent.binary_cross_entropy_and_grad(p, y, reduction="none")
        np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-6)
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-6)


@on_every_engine
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope_of_the_value(name, engine):
    random = cases.rng(100)
    x, y = inputs(name, random, (6, 11), "float64")
    weight, step = random.uniform(0.5, 2, (6, 11)), 1e-3
    direction = random.normal(size=x.shape) * (x * (1 - x) if name == "binary_cross_entropy" else 1)
    if name in ("l1_loss", "smooth_l1_loss", "huber_loss"):  # no kink within the steps
        direction *= (np.abs(np.abs(x - y) - 1) > 0.1) & (np.abs(x - y) > 0.1)
    with cases.running_on(*engine):
        def value(t):
            return getattr(fastxent, name)(x + t * direction, y, sample_weight=weight, mask=weight > 0.7)

        _, grad = getattr(fastxent, f"{name}_and_grad")(x, y, sample_weight=weight, mask=weight > 0.7)
        slope = (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * step)
    assert (grad * direction).sum() == pytest.approx(slope, rel=1e-8, abs=1e-10)


@on_every_engine
def test_what_is_masked_may_hold_anything(engine):
    junk = np.array([NAN, INF, -INF, -3.0, 9.0] * 300)
    mask = np.zeros(junk.size, bool)
    mask[7::5] = True
    with cases.running_on(*engine):
        for name in LOSSES:
            x, y = junk.copy(), junk[::-1].copy()
            x[mask], y[mask] = 0.25, 0.5
            for options in ({"mask": mask}, {"sample_weight": mask.astype(float)}):
                loss, grad = getattr(fastxent, f"{name}_and_grad")(x, y, **options)
                expected = getattr(fastxent, f"{name}_and_grad")(x[mask], y[mask])
                assert loss == pytest.approx(expected[0], rel=1e-15)
                same(grad[mask], expected[1])
                same(grad[~mask], 0)


@on_every_engine
def test_special_values(engine):
    with cases.running_on(*engine):
        for dtype in ("float32", "float64"):
            x = np.array([1e4, -1e4, 1e4, -1e4, INF, -INF, INF, NAN, 0, 80, -80], dtype)
            y = np.array([1, 1, 0, 0, 1, 0, 0, 1, NAN, 0, 1], dtype)
            loss, grad = fastxent.binary_cross_entropy_with_logits_and_grad(x, y, reduction="none")
            same(loss, np.array([0, 1e4, 1e4, 0, 0, 0, INF, NAN, NAN, 80, 80], dtype))
            same(grad[:7], [0, -1, 1, 0, 0, 0, 1])
            assert np.isnan(grad[7:9]).all()
            small = fastxent.binary_cross_entropy_with_logits(np.array([-60.0], dtype), [0], reduction="sum")
            assert small == pytest.approx(np.exp(-60.0), rel=1e-6)
            same(fastxent.sigmoid(np.array([-INF, INF, NAN, -1e4, 1e4], dtype)), np.array([0, 1, NAN, 0, 1], dtype))
            same(fastxent.log_sigmoid(np.array([-INF, INF, NAN, -1e4, 1e4], dtype)),
                 np.array([-INF, 0, NAN, -1e4, 0], dtype))
            same(fastxent.binary_cross_entropy(np.array([0, 1, NAN], dtype), [1, 0, 1], reduction="none"),
                 np.array([100, 100, NAN], dtype))
            d = np.array([INF, -INF, NAN, 0], dtype)
            for name in ("l1_loss", "huber_loss", "smooth_l1_loss"):
                loss, grad = getattr(fastxent, f"{name}_and_grad")(d, np.zeros(4, dtype), reduction="none")
                same(loss, np.array([INF, INF, NAN, 0], dtype))
                same(grad, np.array([1, -1, NAN, 0], dtype))


@on_every_engine
@pytest.mark.parametrize("given", [False, True])
def test_probabilities_outside(given, engine):
    with cases.running_on(*engine):
        for bad in (1.0000002, -1e-30, INF, -INF):
            for place in (0, 700, 2999):
                p, y = np.full((2, 1500), 0.5, "f4"), np.ones((2, 1500))
                p.ravel()[place] = bad
                where = tuple(map(int, np.unravel_index(place, p.shape)))
                outputs = {"out_grad": np.full_like(p, 5)} if given else {}
                with pytest.raises(ValueError, match="probs must be from 0 to 1") as caught:
                    fastxent.binary_cross_entropy_and_grad(p, y, **outputs)
                assert str(where) in str(caught.value)
                assert not given or (outputs["out_grad"] == 5).all()
                with pytest.raises(ValueError, match="probs must be from 0 to 1"):
                    fastxent.binary_cross_entropy(p, y)
                lengths = [0 if where[0] == i else 1500 for i in range(2)]
                assert fastxent.binary_cross_entropy(p, y, lengths=lengths) == pytest.approx(np.log(2))


# --- activations and the penalty


@on_every_engine
@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid", "tanh"])
def test_activations(name, engine):
    with cases.running_on(*engine):
        for i, dtype in enumerate(cases.DTYPES):
            for layout in cases.LAYOUTS:
                x = cases.lay_out(layout, cases.scores(cases.rng(101, i), (9, 70), cases.DTYPES[dtype], 30.0))
                expected = getattr(reference, name)(x)
                got = getattr(fastxent, name)(x)
                stored, u = cases.stored_as(x.dtype), element_cases.unit(dtype)
                # The exponential's error grows with its argument where products cannot be fused.
                error = (8 + 2 * np.abs(x.astype(float))) * u * np.abs(expected) + 2 * element_cases.smallest(dtype)
                if name == "tanh" and dtype in ("float16", "bfloat16"):
                    error = 2.0 ** (-10 if dtype == "float16" else -7) * np.abs(expected)
                assert got.dtype == stored
                assert_within(got, expected, error, f"{name} {dtype} {layout}")
                out = np.empty((9, 140), stored)[:, ::2]
                assert getattr(fastxent, name)(x, out=out) is out
                same(out, got)
    assert isinstance(getattr(fastxent, name)(0.5), np.float64)
    assert getattr(fastxent, name)(np.zeros((0, 3), "f4")).shape == (0, 3)
    x = np.linspace(-3, 3, 1000, dtype="f4")
    expected = getattr(fastxent, name)(x)
    same(getattr(fastxent, name)(x, out=x), expected)
    with pytest.raises(TypeError, match="x has dtype"):
        getattr(fastxent, name)([1j])
    with pytest.raises(ValueError, match="out must be"):
        getattr(fastxent, name)(x, out=np.empty(3, "f4"))
    with pytest.raises(ValueError, match="num_threads"):
        getattr(fastxent, name)(x, num_threads=0)


@on_every_engine
def test_l2_penalty(engine):
    with cases.running_on(*engine):
        for i, dtype in enumerate(cases.DTYPES):
            arrays = [cases.lay_out(layout, cases.scores(cases.rng(102, i, j), (5, 31), cases.DTYPES[dtype]))
                      for j, layout in enumerate(cases.LAYOUTS)]
            value, grads = fastxent.l2_penalty_and_grad(*arrays, strength=0.25)
            expected, expected_grads = reference.l2_penalty_and_grad(*arrays, strength=0.25)
            assert type(value) is np.float64 and value == pytest.approx(expected, rel=2 * element_cases.unit(dtype))
            assert fastxent.l2_penalty(*arrays, strength=0.25) == value
            for a, grad, exact in zip(arrays, grads, expected_grads, strict=True):
                assert grad.dtype == cases.stored_as(a.dtype)
                assert_within(grad, exact, 2 * element_cases.unit(dtype) * np.abs(exact), f"l2_penalty {dtype}")
    assert fastxent.l2_penalty(strength=1.0) == 0 and fastxent.l2_penalty_and_grad(strength=1.0)[1] == ()
    with pytest.raises(ValueError, match="strength must be finite"):
        fastxent.l2_penalty([1.0], strength=INF)
    with pytest.raises(TypeError, match=r"arrays\[1\] has dtype"):
        fastxent.l2_penalty([1.0], ["a"], strength=1)


# --- arguments


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_arguments(name):
    loss, both = getattr(fastxent, name), getattr(fastxent, f"{name}_and_grad")
    x = np.full((3, 4), 0.5)
    wrong = [
        (ValueError, "must have the shape of", {"_": np.zeros(4)}),
        (TypeError, "has dtype", {"_": np.zeros((3, 4), complex)}),
        (ValueError, "sample_weight must broadcast", {"sample_weight": np.ones(3)}),
        (TypeError, "mask has dtype", {"mask": np.ones((3, 4))}),
        (ValueError, "lengths must have shape", {"lengths": [1, 2]}),
        (ValueError, "reduction must be one of", {"reduction": "average"}),
        (ValueError, "normalizer is for", {"reduction": "none", "normalizer": 2.0}),
        (TypeError, "empty_value must be", {"empty_value": "x"}),
        (ValueError, "out is for", {"out": np.zeros((3, 4))}),
        (ValueError, "out must be", {"out": np.zeros(3), "reduction": "none"}),
        (ValueError, "num_threads must be", {"num_threads": 0}),
    ]
    for error, message, keywords in wrong:
        with pytest.raises(error, match=message):
            loss(x, keywords.pop("_", x), **keywords)
    with pytest.raises(TypeError, match="has dtype"):
        loss(np.full((3, 4), "a"), x)
    with pytest.raises(ValueError, match="upstream must be a single number"):
        both(x, x, upstream=np.ones((3, 4)))
    with pytest.raises(ValueError, match="overlaps"):
        both(x, np.zeros((3, 4)), out_grad=x[::-1])
    with pytest.raises(ValueError, match="overlaps out"):
        shared = np.zeros((3, 4))
        both(x, x, reduction="none", out=shared, out_grad=shared)


def test_wrong_widths():
    for name, width, low in (("huber_loss", "delta", 0.0), ("smooth_l1_loss", "beta", -0.5)):
        for value in (low, INF, NAN):
            with pytest.raises(ValueError, match=f"{width} must be"):
                getattr(fastxent, name)([1.0], [2.0], **{width: value})
    with pytest.raises(ValueError, match="pos_weight must broadcast"):
        fastxent.binary_cross_entropy_with_logits([[1.0, 2.0]], [[0, 1]], pos_weight=[1.0, 2.0, 3.0])
