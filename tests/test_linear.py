"""Losses of a linear layer against the oracle, which has all its logits, on every engine and in plain NumPy.

Hidden states and weights are small multiples of 1/8 unless a test says otherwise: then every logit is exact in float32
whatever order BLAS adds in, and errors are those of what comes after. u is one rounding of the compute type.
"""

import contextlib
import inspect
import types

import cases
import isolated
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastxent
from fastxent import _backends, _linear_chunks, _linear_run, _linear_tiles, _native, reference, reference_linear
from fastxent._linear_chunks import Sizes, forward_chunks, gradient_chunks

TWINS = ("linear_cross_entropy", "linear_cross_entropy_and_grad", "linear_token_statistics")
PLAIN = ("plain", "")
ENGINES = [*cases.engines(), PLAIN]
on_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(filter(None, e)))
for_every_float = pytest.mark.parametrize("dtype", cases.FLOATS)
MIB = 1 << 20
LIMITS = (1, 3000, 20_000, 256 * MIB)  # of the workspace: one row and one class, a few, everything


@contextlib.contextmanager
def running_on(backend, isa=""):
    """An engine, or ("plain", ""): the tiles in plain NumPy, as for an engine without any."""
    if (backend, isa) != PLAIN:
        with cases.running_on(backend, isa):
            yield
        return
    before = _backends.engine
    _backends.chosen()
    _backends.engine = types.SimpleNamespace(open=_native.Call)
    try:
        yield
    finally:
        _backends.engine = before


def u_of(dtype):
    return 2.0**-23 if cases.computed_in(dtype) == np.float32 else 2.0**-52


def exact(random, shape, dtype, spread=1.0):
    """Small multiples of 1/8: products and their sums have few digits, in every dtype."""
    values = np.rint(random.normal(scale=spread, size=shape) * 8) / 8
    return np.clip(values, -15, 15).astype(cases.DTYPES.get(dtype, dtype))


class Head:
    """One linear layer: hidden states, weight, bias, targets."""

    def __init__(self, seed, positions=(3, 5), features=6, classes=70, dtype="float32", bias=True, spread=1.0):
        random = cases.rng(500, seed, *positions, features, classes)
        self.random, self.positions, self.classes = random, positions, classes
        self.dtype = np.dtype(cases.DTYPES[dtype])
        self.hidden = exact(random, (*positions, features), dtype, spread)
        self.weight = exact(random, (classes, features), dtype)
        self.bias = exact(random, classes, dtype) if bias else None
        self.targets = random.integers(0, classes, positions)

    @property
    def operands(self):
        return self.hidden, self.weight, self.targets

    def check(self, options, upstream=None, label="", **more):
        """Loss and gradients within what roundings can do."""
        given = {"bias": self.bias, **options}
        expected, grads = reference_linear.linear_cross_entropy_and_grad(*self.operands, upstream=upstream, **given)
        magnitudes = self.magnitudes(given, upstream)
        found = fastxent.linear_cross_entropy(*self.operands, **given, **more)
        self.same_loss(found, expected, given, label)
        found, got = fastxent.linear_cross_entropy_and_grad(*self.operands, upstream=upstream, **given, **more)
        self.same_loss(found, expected, given, label)
        for name, mine, theirs, size, operand in zip(
            ("hidden", "weight", "bias"), got, grads, magnitudes, (self.hidden, self.weight, self.bias), strict=True
        ):
            if operand is None:
                assert mine is None
                continue
            assert mine.shape == operand.shape and mine.dtype == cases.stored_as(operand.dtype), f"{label}: {name}"
            # A product's sum of n terms is wrong by n u of their sizes at most; every logit's gradient by some dozen u.
            error = u_of(self.dtype) * (60 + self.classes / 4) * size + 1e-35
            error = error + rounding(mine.dtype) * np.abs(theirs) + (2.0**-25 if mine.dtype == np.float16 else 0)
            wide = mine.astype("f8")
            with np.errstate(invalid="ignore"):
                bad = ~((np.abs(wide - theirs) <= error) | (np.isnan(theirs) & np.isnan(wide)))
            assert not bad.any(), f"{label}: {name}: {mine[bad][:3]} for {theirs[bad][:3]}, +- {error[bad][:3]}"
        return found, got

    def magnitudes(self, options, upstream):
        """Sums of the sizes of what the gradients add up."""
        x = reference_linear._logits(self.hidden, self.weight, options.get("bias"))
        own = {name: value for name, value in options.items() if name != "bias"}
        _, g = reference.cross_entropy_and_grad(x, self.targets, upstream=upstream, **own)
        # W p - c may cancel: its size is that of its parts, W p + c.
        size = np.abs(g) + np.abs(g).max(axis=-1, keepdims=True) * 1e-3 + spread_of(options, g)
        rows, states = size.reshape(-1, self.classes), np.abs(self.hidden.astype("f8"))
        return size @ np.abs(self.weight.astype("f8")), rows.T @ states.reshape(len(rows), -1), rows.sum(axis=0)

    def same_loss(self, found, expected, options, label):
        u = u_of(self.dtype)
        logits = reference_linear._logits(self.hidden, self.weight, options.get("bias"))
        size = np.abs(np.where(np.isfinite(logits), logits, 0)).max(initial=0)
        expected = np.asarray(expected)
        assert np.shape(found) == expected.shape, label
        rtol = (30 + 2 * size) * u
        atol = 0.0
        if {"softcap", "z_loss", "label_smoothing"} & set(options):
            atol = 40 * u * (1 + size) ** 2 * (1 + np.abs(options.get("z_loss", 0)))
        np.testing.assert_allclose(np.asarray(found, "f8"), expected, rtol=rtol, atol=atol, err_msg=label)


def spread_of(options, g):
    return np.abs(g).max() * options.get("label_smoothing", 0.0)


def rounding(dtype):
    return {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}.get(np.dtype(dtype).name, 0.0)


@pytest.mark.parametrize("name", TWINS)
def test_signatures_of_twins(name):
    mine, theirs = (inspect.signature(getattr(m, name)).parameters.values() for m in (fastxent, reference_linear))
    assert [(p.name, p.kind, repr(p.default)) for p in mine] == [(p.name, p.kind, repr(p.default)) for p in theirs]


def test_plan_fields():
    assert _linear_tiles.TilePlan._fields == _native.TILE_FIELDS


def test_the_engine_has_tiles():
    assert _backends.chosen().NAME != "native" or _backends.chosen().tile is _native.tile


# --- the option matrix

TARGET_OPTIONS = tuple(n for n in cases.OPTIONS)


@on_every_engine
@for_every_float
def test_every_option_with_every_reduction(engine, dtype):
    with running_on(*engine):
        for i, name in enumerate((None, *TARGET_OPTIONS)):
            for j, reduced in enumerate(cases.REDUCTIONS):
                limit = LIMITS[(i + j) % 4]
                classes = 5 if limit == 1 else (70, 5, 33)[(i + j) % 3]
                head = Head(100 * i + j, classes=classes, dtype=dtype, bias=(i + j) % 2)
                chosen = {} if name is None else cases.option(head.random, name, head.positions, head.classes)
                options = chosen | cases.reduction(reduced)
                head.check(options, label=f"{name} {reduced}", max_bytes=limit)


@on_every_engine
def test_every_two_options(engine):
    with running_on(*engine):
        for i, first in enumerate(TARGET_OPTIONS):
            for j, second in enumerate(TARGET_OPTIONS[i + 1 :]):
                if first.split()[0] == second.split()[0]:
                    continue
                limit = LIMITS[(i + j) % 4]
                head = Head(i * 40 + j, classes=5 if limit == 1 else 40, dtype="float64")
                options = {}
                for name in (first, second):
                    options |= cases.option(head.random, name, head.positions, head.classes)
                options |= cases.reduction(cases.REDUCTIONS[(i + j) % len(cases.REDUCTIONS)])
                head.check(options, label=f"{first}, {second}", max_bytes=limit)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    positions=st.sampled_from([(), (7,), (2, 9), (2, 3, 4), (1, 1), (0,), (2, 0)]),
    features=st.sampled_from([0, 1, 3, 17]),
    classes=st.sampled_from([1, 2, 17, 130, 1030]),
    dtype=st.sampled_from(["float32", "float64"]),
    limit=st.sampled_from([1, 500, 9000, 10**6]),
    smoothing=st.sampled_from([0.0, 0.125]),
    softcap=st.sampled_from([None, 4.0]),
    reduction=st.sampled_from(["none", "sum", "mean", "batch_mean", "sequence_mean"]),
)
def test_parity_with_cross_entropy(seed, positions, features, classes, dtype, limit, smoothing, softcap, reduction):
    head = Head(seed, positions, features, classes, dtype)
    options = {"label_smoothing": smoothing, "softcap": softcap, "reduction": reduction}
    logits = np.asarray(head.hidden @ head.weight.T + head.bias)
    loss, grad = fastxent.cross_entropy_and_grad(logits, head.targets, **options)
    found, grads = fastxent.linear_cross_entropy_and_grad(*head.operands, bias=head.bias, max_bytes=limit, **options)
    close = {"rtol": 4e5 * u_of(dtype), "atol": 4e4 * u_of(dtype)}  # equal up to BLAS's order of addition
    np.testing.assert_allclose(found, loss, **close)
    rows, states = grad.reshape(-1, classes), head.hidden.reshape(-1, features) if features else None
    np.testing.assert_allclose(grads.hidden, grad @ head.weight, **close)
    np.testing.assert_allclose(grads.bias, rows.sum(axis=0), **close)
    if features:
        np.testing.assert_allclose(grads.weight, rows.T @ states, **close)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sequence_mean"])
def test_gradients_are_the_slope_of_the_value(reduction, limit):
    random = cases.rng(510)
    arrays = [random.normal(size=shape) for shape in ((2, 4, 5), (30, 5), (30,))]
    targets = random.integers(0, 30, (2, 4))
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.02, "softcap": 3.0, "logit_scale": 1.25,
               "class_weight": random.uniform(0.5, 2, 30), "sample_weight": random.uniform(0.5, 2, (2, 4)),
               "lengths": [4, 2], "max_bytes": limit}
    upstream = random.normal(size=(2, 4)) if reduction == "none" else 1.75
    _, grads = fastxent.linear_cross_entropy_and_grad(
        arrays[0], arrays[1], targets, bias=arrays[2], upstream=upstream, **options
    )
    for k in range(3):
        direction = random.normal(size=arrays[k].shape)

        def value(t, k=k, direction=direction):
            moved = [a + t * direction if i == k else a for i, a in enumerate(arrays)]
            loss = fastxent.linear_cross_entropy(moved[0], moved[1], targets, bias=moved[2], **options)
            return float(np.sum(upstream * loss))

        step = 1e-3
        slope = (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * step)
        assert float((grads[k] * direction).sum()) == pytest.approx(slope, rel=1e-8, abs=1e-9)


# --- dtypes, layouts, targets


@on_every_engine
@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("bfloat16", "float16"), ("float32", "float64"),
                                    ("int16", "bfloat16"), ("uint8", "int64"), ("bfloat16", "bfloat16")], ids=str)
def test_mixed_types(engine, dtypes):
    with running_on(*engine):
        head = Head(520, dtype="float64")
        head.hidden = np.abs(np.rint(head.hidden)).astype(cases.DTYPES[dtypes[0]])
        head.weight = np.rint(head.weight).astype(cases.DTYPES[dtypes[1]])
        head.bias = None
        single = not {"float64", "int16", "uint8", "int64"} & set(dtypes)
        head.dtype = np.dtype("f4" if single else "f8")
        for limit in LIMITS:
            losses, _ = head.check({"reduction": "none"}, label=str(dtypes), max_bytes=limit)
            assert losses.dtype == head.dtype


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts(layout):
    head = Head(521)
    if layout == "repeated classes":
        return
    head.hidden, head.weight = cases.lay_out(layout, head.hidden), cases.lay_out(layout, head.weight)
    head.bias, head.targets = cases.lay_out(layout, head.bias), cases.lay_out(layout, head.targets)
    if layout == "repeated positions":
        head.bias = np.broadcast_to(head.bias[:1], head.bias.shape)
    before = [a.tobytes() for a in (*head.operands, head.bias)]
    for limit in LIMITS:
        head.check({"label_smoothing": 0.1}, label=layout, max_bytes=limit)
    assert before == [a.tobytes() for a in (*head.operands, head.bias)]


@pytest.mark.parametrize("name", cases.INTEGERS)
def test_types_of_targets(name):
    head = Head(522)
    head.targets = head.targets.astype(name)
    head.check({})


def test_lists():
    loss = fastxent.linear_cross_entropy([[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0], bias=[0.5, -0.5])
    assert loss == pytest.approx(np.log1p(np.exp(0.0)))


# --- special values


@on_every_engine
@for_every_float
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.125}, {"softcap": 4.0}, {"z_loss": 0.25}], ids=str)
def test_infinities_and_nan(engine, dtype, options):
    with running_on(*engine):
        for name, row in cases.special_rows(37, np.float64):
            for limit in (1, 900, 2**20):
                # one feature that is 0: the logits are the bias
                bias = row.astype(cases.DTYPES[dtype])
                hidden, weight = np.zeros((2, 1), bias.dtype), np.ones((37, 1), bias.dtype)
                given = options | {"reduction": "none", "max_bytes": limit}
                logits = np.broadcast_to(bias, (2, 37))
                expected, grad = reference.cross_entropy_and_grad(logits, [0, 18], reduction="none", **options)
                found, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, [0, 18], bias=bias, **given)
                np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5, err_msg=f"{name} {limit}")
                np.testing.assert_allclose(
                    grads.bias.astype("f8"), grad.sum(axis=0), rtol=2e-2, atol=1e-5, err_msg=f"{name} {limit}"
                )
                assert not np.signbit(found[found == 0]).any()


@on_every_engine
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_a_zero_coefficient_makes_its_term_zero(engine, smoothing):
    """A removed class of weight 0 costs nothing, as the target and among the others."""
    bias, class_weight = np.array([1.0, -np.inf, 2.0, 0.5], "f4"), np.array([1.0, 0.0, 2.0, 0.5])
    hidden, weight, targets = np.zeros((2, 1), "f4"), np.ones((4, 1), "f4"), [1, 2]
    options = {"class_weight": class_weight, "label_smoothing": smoothing, "reduction": "none"}
    expected, grad = reference.cross_entropy_and_grad(np.broadcast_to(bias, (2, 4)), targets, **options)
    assert np.isfinite(expected).all()
    with running_on(*engine):
        for limit in (1, 10**6):
            losses, grads = fastxent.linear_cross_entropy_and_grad(
                hidden, weight, targets, bias=bias, max_bytes=limit, **options)
            np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(grads.bias, grad.sum(axis=0), rtol=1e-5, atol=1e-7)


def test_what_is_not_valid_is_not_looked_at():
    head = Head(530, positions=(4, 6))
    mask = head.random.uniform(size=(4, 6)) < 0.5
    clean = fastxent.linear_cross_entropy_and_grad(*head.operands, mask=mask)
    head.hidden[~mask] = np.nan
    head.targets[~mask] = 10**6
    for limit in LIMITS:
        loss, grads = fastxent.linear_cross_entropy_and_grad(*head.operands, mask=mask, max_bytes=limit)
        assert loss == pytest.approx(clean[0], rel=1e-6)
        assert not grads.hidden[~mask].any() and not np.isnan(grads.weight).any()
        found = fastxent.linear_token_statistics(*head.operands, mask=mask, max_bytes=limit)
        assert (found.rank[~mask] == -1).all() and not found.log_prob[~mask].any()


def test_what_counts_nothing_adds_nothing():
    """A sequence whose weights cancel has no share in the value; NaN in it does not spread."""
    head = Head(531, positions=(2, 2), dtype="float64")
    head.hidden[1] = np.nan
    options = {"sample_weight": [[1.0, 1.0], [1.0, -1.0]], "reduction": "sequence_mean"}
    expected = fastxent.linear_cross_entropy_and_grad(head.hidden[:1], head.weight, head.targets[:1])
    loss, grads = fastxent.linear_cross_entropy_and_grad(*head.operands, **options)
    assert loss == pytest.approx(expected[0])
    assert not grads.hidden[1].any()
    np.testing.assert_allclose(grads.weight, expected[1].weight)


@pytest.mark.parametrize("positions", [(0,), (0, 4), (3, 0)])
def test_no_positions(positions):
    hidden, targets, weight = np.zeros((*positions, 4), "f4"), np.zeros(positions, int), np.ones((6, 4), "f4")
    assert np.isnan(fastxent.linear_cross_entropy(hidden, weight, targets))
    assert fastxent.linear_cross_entropy(hidden, weight, targets, reduction="sum") == 0
    assert fastxent.linear_cross_entropy(hidden, weight, targets, empty_value=3.0) == 3
    loss, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, targets, reduction="none")
    assert loss.shape == positions and grads.hidden.shape == hidden.shape and not grads.weight.any()
    assert fastxent.linear_token_statistics(hidden, weight, targets).rank.shape == positions


def test_a_single_position_without_axes():
    hidden, weight = np.array([1.0, 2.0]), np.eye(2)
    loss, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, 1, reduction="none")
    assert loss.shape == () and loss == pytest.approx(np.log1p(np.exp(-1.0)))
    np.testing.assert_allclose(grads.hidden, fastxent.cross_entropy_grad(hidden, 1))
    assert fastxent.linear_token_statistics(hidden, weight, 1).rank == 0


# --- accuracy


def confident(gaps):
    """Hidden states of one feature whose target's logit is above all others by about so much."""
    weight = np.linspace(-1.0, 0.0, 300, dtype="f4")[:, None]
    weight[137] = 1.0
    return np.asarray(gaps, "f4")[:, None], weight, np.full(len(gaps), 137)


@on_every_engine
@pytest.mark.parametrize("limit", [1, 4000, 256 * MIB])
def test_confident_rows_keep_their_digits(engine, limit):
    mp = pytest.importorskip("mpmath")
    gaps = [1.0, 3.0, 8.0, 14.0, 20.0, 25.0, 27.5, 30.0]
    hidden, weight, targets = confident(gaps)
    with running_on(*engine):
        losses, grads = fastxent.linear_cross_entropy_and_grad(
            hidden, weight, targets, reduction="none", max_bytes=limit
        )
    with mp.workdps(60):
        for i in range(len(gaps)):  # of one product each logit is the same in any BLAS
            logits = [mp.mpf(float(v)) for v in (hidden[i : i + 1] @ weight.T)[0]]
            total = mp.fsum(mp.exp(x - logits[137]) for j, x in enumerate(logits) if j != 137)
            slope = mp.fsum(mp.exp(x - logits[137]) * (mp.mpf(float(w)) - 1)
                            for x, w in zip(logits, weight[:, 0], strict=True)) / (1 + total)
            assert float(losses[i]) == pytest.approx(float(mp.log1p(total)), rel=1e-5)
            assert float(grads.hidden[i, 0]) == pytest.approx(float(slope), rel=1e-4)
    assert 0 < losses[-1] < 1e-11


@on_every_engine
@for_every_float
@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.75}, {"softcap": 4.0}, {"shift": 1},
                                     {"lengths": [5, 0, 2]}, {"mask": [True, True, False, True, True]}], ids=str)
def test_token_statistics(engine, dtype, options):
    with running_on(*engine):
        for seed, classes in enumerate((1, 5, 33, 70, 1500)):
            head = Head(540 + seed, classes=classes, dtype=dtype, features=3)  # many equal logits
            expected = reference_linear.linear_token_statistics(*head.operands, bias=head.bias, **options)
            logits = reference_linear._logits(head.hidden, head.weight, head.bias)
            size = 1 + np.abs(logits).max()
            for limit in LIMITS[classes > 100 :]:  # one class at a time: 70 of them say as much
                found = fastxent.linear_token_statistics(*head.operands, bias=head.bias, max_bytes=limit, **options)
                for name, mine, theirs in zip(found._fields, found, expected, strict=True):
                    if theirs.dtype == np.int64:
                        np.testing.assert_array_equal(mine, theirs, f"{name} {classes} {limit}")
                    else:
                        assert mine.dtype == cases.computed_in(head.dtype)
                        np.testing.assert_allclose(
                            mine, theirs, rtol=40 * size * u_of(dtype), atol=40 * size * u_of(dtype), err_msg=name
                        )


@on_every_engine
def test_token_statistics_of_special_rows(engine):
    with running_on(*engine):
        for name, row in cases.special_rows(37):
            hidden, weight = np.zeros((3, 1), "f4"), np.ones((37, 1), "f4")
            expected = fastxent.token_statistics(np.broadcast_to(row, (3, 37)), [0, 18, 36])
            for limit in (1, 900, 2**20):
                found = fastxent.linear_token_statistics(hidden, weight, [0, 18, 36], bias=row, max_bytes=limit)
                for field, mine, theirs in zip(found._fields, found, expected, strict=True):
                    np.testing.assert_allclose(mine, theirs, rtol=2e-6, err_msg=f"{name}: {field}")


@on_every_engine
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1e-40, -3e38, 2.0**-126, -np.inf, 65536.0])
def test_ranks_among_equals(engine, value):
    """Every class has the same logit: the rank is the class index, wherever tiles begin."""
    with running_on(*engine):
        for classes in (5, 64, 70, 1100):
            targets = np.array([0, classes // 2, classes - 1])
            hidden, weight = np.zeros((3, 1), "f4"), np.ones((classes, 1), "f4")
            for limit in (1, 900, 2**22)[classes > 100 :]:
                bias = np.full(classes, value, "f4")
                found = fastxent.linear_token_statistics(hidden, weight, targets, bias=bias, max_bytes=limit)
                np.testing.assert_array_equal(found.rank, targets)
                assert (found.argmax == 0).all()


# --- gradients into given arrays


@on_every_engine
@for_every_float
@pytest.mark.parametrize("limit", LIMITS)
def test_accumulation(engine, dtype, limit):
    with running_on(*engine):
        head = Head(550, positions=(23,), dtype=dtype)
        options = {"bias": head.bias, "reduction": "sum", "normalizer": 23.0, "max_bytes": limit}
        _, whole = fastxent.linear_cross_entropy_and_grad(*head.operands, **options)
        start = [exact(head.random, a.shape, dtype) for a in whole]
        into = [a.copy() for a in start]
        names = ("out_hidden_grad", "out_weight_grad", "out_bias_grad")
        _, got = fastxent.linear_cross_entropy_and_grad(
            *head.operands, **options, **dict(zip(names, into, strict=True)), accumulate=True)
        for before, added, after, returned in zip(start, whole, into, got, strict=True):
            assert returned is after
            u = max(u_of(head.dtype), 2 * rounding(head.dtype))
            wide = before.astype("f8") + added.astype("f8")
            np.testing.assert_allclose(after.astype("f8"), wide, rtol=8 * u, atol=8 * u)
        # without accumulate what was there is gone
        _, again = fastxent.linear_cross_entropy_and_grad(
            *head.operands, **options, **dict(zip(names, into, strict=True)))
        for first, second in zip(whole, again, strict=True):
            np.testing.assert_array_equal(first, second)


def test_halves_over_chunks_are_rounded_once():
    head = Head(551, positions=(400,), classes=9, features=4, dtype="bfloat16", bias=False)
    one = fastxent.linear_cross_entropy_and_grad(*head.operands)[1].weight.astype("f8")
    many = fastxent.linear_cross_entropy_and_grad(*head.operands, max_bytes=600)[1].weight.astype("f8")
    np.testing.assert_allclose(many, one, rtol=2.0**-8)
    expected = reference_linear.linear_cross_entropy_and_grad(*head.operands)[1][1]
    np.testing.assert_allclose(many, expected, rtol=2.0**-8, atol=1e-6)


def test_outputs_of_any_layout():
    head = Head(552)
    _, expected = fastxent.linear_cross_entropy_and_grad(*head.operands, bias=head.bias)
    for layout in ("F", "every other", "reversed", "unaligned"):
        for limit in LIMITS:
            outs = [cases.lay_out(layout, np.zeros(a.shape, "f4")) for a in expected]
            losses = cases.lay_out(layout, np.zeros(head.positions, "f4"))
            fastxent.linear_cross_entropy_and_grad(
                *head.operands, bias=head.bias, out_hidden_grad=outs[0], out_weight_grad=outs[1],
                out_bias_grad=outs[2], max_bytes=limit)
            for mine, theirs in zip(outs, expected, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
            fastxent.linear_cross_entropy(*head.operands, reduction="none", out=losses)
            np.testing.assert_array_equal(losses, fastxent.linear_cross_entropy(*head.operands, reduction="none"))


def test_nothing_valid_leaves_sums_alone():
    head = Head(553)
    into = [np.ones_like(a) for a in (head.hidden, head.weight)]
    for add in (True, False):
        loss, _ = fastxent.linear_cross_entropy_and_grad(
            *head.operands, mask=np.zeros(5, bool), out_hidden_grad=into[0], out_weight_grad=into[1], accumulate=add)
        assert np.isnan(loss)
        assert all((a == (1 if add else 0)).all() for a in into)


# --- the filter


@on_every_engine
@pytest.mark.parametrize("limit", [30_000, 256 * MIB])
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.02}, {"logit_scale": 1.5}, {"label_smoothing": 0.1}], ids=str)
def test_gradient_filter_keeps_its_bound(engine, options, limit, monkeypatch):
    monkeypatch.setattr(_linear_chunks, "FILTER_CLASSES", 64)
    random = cases.rng(560)
    classes, features, n = 600, 8, 90
    weight = random.normal(size=(classes, features)).astype("f4") * np.linspace(0.1, 3, classes, dtype="f4")[:, None]
    hidden, targets = random.normal(size=(n, features)).astype("f4"), random.integers(0, classes, n)
    upstream = random.uniform(0.5, 2, n)
    left_out = 0
    given = {"reduction": "none", "upstream": upstream, "max_bytes": limit, **options}
    with running_on(*engine):
        plain_loss, plain = fastxent.linear_cross_entropy_and_grad(hidden, weight, targets, **given)
        for eps in (1e-7, 1e-4, 1e-2):
            loss, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, targets, gradient_filter=eps, **given)
            np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
            log_sum = fastxent.logsumexp(hidden @ weight.T * options.get("logit_scale", 1.0))
            total = upstream * options.get("logit_scale", 1.0) * (1 + 2 * options.get("z_loss", 0) * np.abs(log_sum))
            wrong = np.linalg.norm(grads.hidden - plain.hidden, axis=1)
            assert (wrong <= total * min(1, classes * eps) * np.linalg.norm(weight, axis=1).max() + 2e-5).all()
            wrong = np.linalg.norm(grads.weight - plain.weight, axis=1)
            assert (wrong <= eps * (total * np.linalg.norm(hidden, axis=1)).sum() + 2e-5 * n).all()
            left_out += not np.array_equal(grads.weight, plain.weight)
            # the target's class is never left out
            assert (np.abs(grads.hidden).sum(axis=1) > 0).all()
    assert left_out >= (0 if "label_smoothing" in options else 1)


def test_gradient_filter_multiplies_less(monkeypatch):
    monkeypatch.setattr(_linear_chunks, "FILTER_CLASSES", 64)
    head = Head(561, positions=(64,), classes=3000, features=4, spread=6.0)
    seen = products(monkeypatch)
    fastxent.linear_cross_entropy_and_grad(*head.operands)
    whole = sum(seen)
    seen.clear()
    fastxent.linear_cross_entropy_and_grad(*head.operands, gradient_filter=1e-4)
    assert sum(seen) < 0.9 * whole


# --- how much is done, and in how much memory


def products(monkeypatch):
    """What each matrix product costs, in multiplications, as they are made."""
    seen = []
    true = np.matmul

    def counting(a, b, **keywords):
        seen.append(int(np.prod(a.shape)) * (b.shape[1] if b.ndim > 1 else 1))
        return true(a, b, **keywords)

    monkeypatch.setattr(_linear_run.np, "matmul", counting)
    return seen


@pytest.mark.parametrize("limit", [20_000, 256 * MIB])
@pytest.mark.parametrize("name", ["mask", "lengths", "ignore_index", "sample_weight", "shift"])
def test_only_valid_positions_are_multiplied(name, limit, monkeypatch):
    head = Head(570, positions=(4, 10), classes=200)
    valid = head.random.uniform(size=(4, 10)) < 0.3
    options = {"mask": {"mask": valid}, "sample_weight": {"sample_weight": valid * 2.0}, "shift": {"shift": 7},
               "lengths": {"lengths": [3, 0, 10, 1]}, "ignore_index": {"ignore_index": -1}}[name]
    if name == "ignore_index":
        head.targets[~valid] = -1
    if name == "lengths":
        valid = fastxent.lengths_to_mask([3, 0, 10, 1], 10)
    if name == "shift":
        valid = np.broadcast_to(np.arange(10) < 3, (4, 10))
    seen = products(monkeypatch)
    fastxent.linear_cross_entropy(*head.operands, max_bytes=limit, **options)
    assert sum(seen) == valid.sum() * 200 * 6
    seen.clear()
    fastxent.linear_cross_entropy_and_grad(*head.operands, max_bytes=limit, **options)
    assert sum(seen) == 3 * valid.sum() * 200 * 6


def test_half_weights_are_widened_once_in_a_loss(monkeypatch):
    head = Head(571, positions=(300,), classes=1500, dtype="bfloat16", bias=False)
    copied = []
    true = np.copyto
    monkeypatch.setattr(_linear_run.np, "copyto", lambda to, a, **more: (copied.append(len(a)), true(to, a, **more)))
    fastxent.linear_cross_entropy(*head.operands, max_bytes=40_000)
    assert sum(copied) == 1500 and len(copied) > 1


GRID = [Sizes(n, d, v, item, copies, wide)
        for n in (0, 1, 7, 300, 2048, 100_000) for d in (1, 64, 768, 4096) for v in (1, 17, 8192, 50257, 256_000)
        for item in (4, 8) for copies in (False, True) for wide in (False, True)]


def used(sizes, chunks, gradient, filtered=False):
    """Bytes of a workspace, by what `_linear_run` allocates."""
    rows, classes = chunks
    total = rows * sizes.features * 2 * sizes.copies_hidden + classes * sizes.features * sizes.copies_weight
    if not gradient:
        return sizes.itemsize * (total + rows * classes)
    total += rows * sizes.classes + 2 * rows * sizes.features + classes * sizes.features
    if filtered:
        total += rows * (classes + 2 * sizes.features)
    return sizes.itemsize * total


@pytest.mark.parametrize("limit", [1, 10_000, MIB, 64 * MIB, 256 * MIB, 4096 * MIB])
def test_the_rule_of_chunks(limit):
    for sizes in GRID:
        forward = forward_chunks(sizes, limit)
        assert 1 <= forward.rows <= max(1, sizes.rows) and 1 <= forward.classes <= sizes.classes
        assert used(sizes, forward, False) <= max(min(limit, 64 * MIB), used(sizes, (1, 1), False)) or forward == (1, 1)
        for filtered in (False, True):
            both = gradient_chunks(sizes, limit, filtered)
            assert 1 <= both.rows <= max(1, sizes.rows) and 1 <= both.classes <= sizes.classes
            assert used(sizes, both, True, filtered) <= limit or both.rows == 1, (sizes, both)


def test_the_rule_of_chunks_at_a_language_model():
    sizes = Sizes(2048, 768, 50257, 4, False, False)
    assert forward_chunks(sizes, 256 * MIB) == (2048, 3872)
    assert gradient_chunks(sizes, 256 * MIB, False) == (1024, 3872)
    assert gradient_chunks(sizes, 1024 * MIB, False).rows == 1024  # sqrt(2 n d) = 1773: two equal chunks
    assert gradient_chunks(sizes._replace(rows=100_000), 1 << 40, False).rows >= 2 * 768


def test_parts_are_even():
    for total in (1, 5, 100, 4097):
        for most in (1, 3, 16, 50, 5000):
            for multiple in (1, 16):
                size = _linear_chunks.even(total, most, multiple)
                assert 1 <= size <= max(most, 1) or size == total
                parts = _linear_chunks.spans(total, size)
                assert parts[0][0] == 0 and parts[-1][1] == total


def test_progress():
    head = Head(580, positions=(40,), classes=300)
    for call in (fastxent.linear_cross_entropy, fastxent.linear_cross_entropy_and_grad,
                 fastxent.linear_token_statistics):
        seen = []
        call(*head.operands, max_bytes=9000, progress=lambda done, total, seen=seen: seen.append((done, total)))
        total = seen[0][1]
        assert total > 3 and seen == [(k + 1, total) for k in range(total)]
    with pytest.raises(KeyError):
        fastxent.linear_cross_entropy(*head.operands, progress=lambda done, total: {}["stop"])


MEMORY = """
    from pathlib import Path
    limit, what, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]

    def status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    random = np.random.default_rng(0)
    def head(n, d, v):
        hidden, weight = random.normal(size=(n, d)).astype(kind), random.normal(size=(v, d)).astype(kind)
        return hidden, weight, random.integers(0, v, n)

    call = getattr(fastxent, what)
    call(*head(64, 16, 100))
    arrays = head(800, 32, 40000)  # logits of 128 or 256 MB
    outs = {}
    if "grad" in what:
        outs = {"out_hidden_grad": np.ones_like(arrays[0]), "out_weight_grad": np.ones_like(arrays[1])}
    np.matmul(arrays[0][:512], arrays[1][:512].T)  # BLAS's own buffers
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call(*arrays, max_bytes=limit, **outs)
    print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("what", TWINS)
@pytest.mark.parametrize("megabytes", [8, 100])
def test_the_workspace_is_honoured(what, megabytes, kind):
    if not isolated.sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    extra = int(isolated.run(MEMORY, megabytes * MIB, what, kind))
    limit = megabytes * MIB if "grad" in what else min(megabytes, 64) * MIB
    assert extra <= limit + 3 * MIB, f"{extra / MIB:.1f} MiB"  # positions' arrays, and an allocator's rounding


def test_neither_positions_nor_classes():
    arrays = np.ones((0, 4)), np.ones((0, 4)), np.zeros(0, int)
    assert np.isnan(fastxent.linear_cross_entropy(*arrays))
    assert fastxent.linear_cross_entropy(*arrays, reduction="sum") == 0
    assert np.isnan(fastxent.linear_cross_entropy_and_grad(*arrays)[0])
    assert fastxent.linear_token_statistics(*arrays).rank.shape == (0,)


# --- errors


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"hidden": 1.0}, ValueError, "hidden must have at least one axis"),
        ({"hidden": np.ones((3, 5), complex)}, TypeError, "hidden has dtype complex128"),
        ({"hidden": np.ones((3, 4))}, ValueError, r"weight must have shape \(V, 4\).* got float64 of shape \(9, 5\)"),
        ({"weight": np.ones(5)}, ValueError, "weight must have shape"),
        ({"weight": np.ones((9, 5), object)}, TypeError, "weight has dtype object"),
        ({"weight": np.ones((0, 5))}, ValueError, "no classes"),
        ({"bias": np.ones(8)}, ValueError, r"bias must have shape \(9,\)"),
        ({"bias": ["a"] * 9}, TypeError, "bias has dtype"),
        ({"targets": np.ones((3, 9))}, TypeError, "class probabilities"),
        ({"targets": np.ones(3, bool)}, TypeError, "expected integers"),
        ({"targets": [1, 2]}, ValueError, r"hidden's shape without its last axis, \(3,\)"),
        ({"targets": [1, 9, 2]}, IndexError, r"position \(1,\) is 9, outside \[0, 9\)"),
        ({"targets": [1, -1, 2]}, IndexError, "is -1"),
        ({"lengths": [1, 2, 3]}, ValueError, "add a batch axis"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be an integer"),
        ({"gradient_filter": -0.1}, ValueError, "gradient_filter must be from 0"),
        ({"gradient_filter": 1.0}, ValueError, "gradient_filter must be from 0"),
        ({"gradient_filter": "no"}, TypeError, "gradient_filter"),
        ({"progress": 3}, TypeError, "progress must be callable"),
        ({"reduction": "median"}, ValueError, "reduction must be one of"),
        ({"class_weight": np.ones(8)}, ValueError, "class_weight must have shape"),
        ({"out": np.ones(3)}, ValueError, 'out is for reduction="none"'),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", TWINS[:2])
def test_bad_arguments(name, change, error, match):
    operands = {"hidden": np.ones((3, 5)), "weight": np.ones((9, 5)), "targets": [0, 1, 2]} | change
    with pytest.raises(error, match=match):
        getattr(fastxent, name)(**operands)


def test_bad_outputs():
    hidden, weight, targets = np.ones((3, 5), "f4"), np.ones((9, 5), "f4"), [0, 1, 2]
    both = fastxent.linear_cross_entropy_and_grad
    for options, match in (
        ({"out_hidden_grad": np.ones((3, 5))}, "out_hidden_grad must be float32"),
        ({"out_weight_grad": np.ones((5, 9), "f4")}, "out_weight_grad must be float32 of shape"),
        ({"out_bias_grad": np.ones(9, "f4")}, "out_bias_grad is given, but no bias"),
        ({"out_hidden_grad": hidden}, "out_hidden_grad overlaps hidden"),
        ({"out_weight_grad": weight}, "out_weight_grad overlaps weight"),
        ({"out_weight_grad": np.broadcast_to(np.ones(5, "f4"), (9, 5))}, "read-only"),
        ({"accumulate": True}, "none of them is given"),
        ({"out": hidden[:, 0], "reduction": "none"}, "out overlaps hidden"),
        ({"upstream": np.ones(3)}, "upstream must be a single number"),
    ):
        with pytest.raises(ValueError, match=match):
            both(hidden, weight, targets, **options)
    with pytest.raises(TypeError, match="accumulate must be True or False"):
        both(hidden, weight, targets, accumulate=1, out_hidden_grad=np.ones_like(hidden))
    with pytest.raises(ValueError, match="out_weight_grad overlaps out_hidden_grad"):
        square = np.ones((9, 5), "f4")
        both(np.ones((9, 5), "f4"), weight, np.zeros(9, int), out_hidden_grad=square, out_weight_grad=square)


def test_a_bad_index_is_found_before_anything_is_written():
    hidden, weight = np.ones((3, 5), "f4"), np.ones((9, 5), "f4")
    outs = {"out_hidden_grad": np.full((3, 5), 7, "f4"), "out_weight_grad": np.full((9, 5), 7, "f4"),
            "out": np.full(3, 7, "f4"), "reduction": "none"}
    with pytest.raises(IndexError):
        fastxent.linear_cross_entropy_and_grad(hidden, weight, [0, 1, 9], **outs)
    assert all((outs[name] == 7).all() for name in outs if name.startswith("out"))


def test_threads_change_nothing():
    """The kernels' part: BLAS has its own threads, and they are the same here."""
    head = Head(590, positions=(300,), classes=700)
    runs = [fastxent.linear_cross_entropy_and_grad(*head.operands, bias=head.bias, num_threads=n) for n in (1, 2, 5)]
    for loss, grads in runs[1:]:
        assert loss == runs[0][0]
        for mine, first in zip(grads, runs[0][1], strict=True):
            np.testing.assert_array_equal(mine, first)


@on_every_engine
def test_z_loss_of_the_largest_logits(engine):
    """2 z_loss logsumexp, or its square, may be beyond float64 where the gradient of hidden and the loss are not."""
    weight, targets, largest = np.ones((3, 1)), np.arange(1000) % 3, np.finfo(float).max
    with running_on(*engine), np.errstate(all="ignore"):
        hidden = np.full((1000, 1), largest)
        _, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, targets, z_loss=1.0)
        np.testing.assert_allclose(grads.hidden, 2 / 1000 * largest, rtol=1e-14)  # that of weight is too large
        hidden = np.full((1000, 1), 2.0**522)
        loss = fastxent.linear_cross_entropy(hidden, weight, targets, z_loss=2.0**-40)
        np.testing.assert_allclose(loss, 2.0**1004, rtol=1e-13)


def test_an_engine_gets_an_aligned_bias(monkeypatch):
    """As C wants it, and the sanitizers see to; what is aligned already is not copied."""
    if not hasattr(_backends.chosen(), "tile"):
        pytest.skip("an engine without tiles")
    seen, tile = [], _backends.engine.tile
    monkeypatch.setattr(_backends.engine, "tile", lambda plan: (seen.append(plan.bias), tile(plan)))
    head = Head(7)
    odd = np.zeros(head.bias.nbytes + 1, np.uint8)[1:].view(head.bias.dtype)
    odd[:] = head.bias
    assert not odd.flags.aligned
    losses = [fastxent.linear_cross_entropy(*head.operands, bias=bias) for bias in (odd, head.bias)]
    assert losses[0] == losses[1]
    assert all(bias.flags.aligned for bias in seen)
    assert np.shares_memory(seen[-1], head.bias)
