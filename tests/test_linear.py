"""Losses of a linear layer against the oracle, which has all its logits (`linear_cases`)."""

import inspect

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import LIMITS, MIB, TWINS, Head, for_every_float, on_every_engine, running_on, u_of

import fastxent
from fastxent import _backends, _linear_tiles, _native, reference, reference_linear


@pytest.mark.parametrize("name", TWINS)
def test_signatures_of_twins(name):
    mine, theirs = (inspect.signature(getattr(m, name)).parameters.values() for m in (fastxent, reference_linear))
    assert [(p.name, p.kind, repr(p.default)) for p in mine] == [(p.name, p.kind, repr(p.default)) for p in theirs]


def test_plan_fields():
    assert _linear_tiles.TilePlan._fields == _native.TILE_FIELDS


def test_the_engine_has_tiles():
    assert _backends.chosen().NAME != "native" or _backends.chosen().tile is _native.tile


# --- the option matrix

@on_every_engine
@for_every_float
def test_every_option_with_every_reduction(engine, dtype):
    with running_on(*engine):
        for i, name in enumerate((None, *cases.OPTIONS)):
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
        for i, first in enumerate(cases.OPTIONS):
            for j, second in enumerate(cases.OPTIONS[i + 1 :]):
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
