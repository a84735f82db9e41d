"""What must hold whatever the numbers are: equalities between calls, on every backend and instruction set.

Most compare bits: a position's result depends on its own row, targets and options, never on the other positions, the
threads or where the result is written.
"""

import inspect
import itertools

import cases
import numpy as np
import pytest
from bounds import Bounds, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st

import fastxent
from fastxent import reference

ENGINES = cases.engines()
on_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(filter(None, e)))
every_float = pytest.mark.parametrize("dtype", cases.FLOATS)
same = np.testing.assert_array_equal

BOTH = {
    "logits": fastxent.cross_entropy_and_grad,
    "log_probs": fastxent.nll_loss_and_grad,
    "probs": fastxent.cross_entropy_from_probs_and_grad,
}
FORWARD = {
    "logits": fastxent.cross_entropy,
    "log_probs": fastxent.nll_loss,
    "probs": fastxent.cross_entropy_from_probs,
}
TWINS = [
    *(f.__name__ for f in (*BOTH.values(), *FORWARD.values())),
    "cross_entropy_grad",
    "cross_entropy_and_softmax",
    "softmax",
    "log_softmax",
    "logsumexp",
    "softmax_grad",
    "log_softmax_grad",
    "one_hot",
    "lengths_to_mask",
    "sequence_reduce",
]
NONE = {"reduction": "none"}


@pytest.mark.parametrize("name", TWINS)
def test_the_oracle_has_the_same_signature(name):
    def essence(module):
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        fixed = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        return fixed, {p.name: (p.kind, "nan" if p.default != p.default else p.default) for p in parameters}

    assert essence(fastxent) == essence(reference)


# --- gradient, loss, and the two together


@on_every_engine
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("seed", range(25))
def test_gradient_is_the_slope_of_the_value(seed, kind, engine):
    case = cases.random_case(1000 + seed, kind, "float64")
    case.scores = np.array(case.scores, case.scores.dtype.newbyteorder("="))
    if kind == "logits":
        case.scores /= max(1.0, np.abs(case.scores).max() / 30)
    upstream, arguments = case.upstream(), {"axis": case.axis, **case.options, "empty_value": 0.0}
    direction = cases.rng(80, seed).normal(size=case.scores.shape) * (case.scores if kind == "probs" else 1)

    def value(t):
        return float(np.sum(upstream * FORWARD[kind](case.scores + t * direction, case.targets, **arguments)))

    with cases.running_on(*engine):
        _, gradient = BOTH[kind](case.scores, case.targets, upstream=upstream, **arguments)
        h = 1e-3  # a five-point rule: errors of order h^4 and 1e-16 / h
        slope = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
        size = np.abs(gradient * direction).sum() + abs(value(0))
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-8, abs=1e-9 * size)


@on_every_engine
@every_float
def test_loss_alone_is_the_loss_of_the_joint_entries(dtype, engine):
    """One loss by four ways; and the gradient with and without saved statistics."""
    with cases.running_on(*engine):
        for case in itertools.chain(
            cases.class_count_cases(dtype), (cases.random_case(s, "logits", dtype) for s in range(100))
        ):
            arguments = {"axis": case.axis, **case.options}
            error = Bounds(case).losses()[1]
            alone = np.asarray(fastxent.cross_entropy(case.scores, case.targets, **arguments))
            for other in (fastxent.cross_entropy_and_grad(case.scores, case.targets, **arguments)[0],
                          fastxent.cross_entropy_and_softmax(case.scores, case.targets, **arguments)[0],
                          fastxent.cross_entropy(case.scores, case.targets, return_saved=True, **arguments)[0]):
                assert_within(other, alone.astype(float), 2 * error, case.name)


@on_every_engine
@every_float
def test_sum_is_of_exactly_what_none_returns(dtype, engine):
    random = cases.rng(81)
    logits, targets = cases.scores(random, (40, 25, 19), cases.FLOATS[dtype]), random.integers(0, 19, (40, 25))
    weight, lengths = random.uniform(size=(40, 25)), random.integers(0, 26, 40)
    options = {"sample_weight": weight, "lengths": lengths, "class_weight": random.uniform(0.5, 2, 19)}
    with cases.running_on(*engine):
        losses = fastxent.cross_entropy(logits, targets, **NONE, **options).astype(np.float64)
        total = fastxent.cross_entropy(logits, targets, reduction="sum", **options)
        assert total == pytest.approx(losses.sum(), rel=1e-14, abs=0)
        mean = fastxent.cross_entropy(logits, targets, **options)
        divisor = (weight * options["class_weight"][targets] * (np.arange(25) < lengths[:, None])).sum()
        assert mean == pytest.approx(losses.sum() / divisor, rel=1e-14, abs=0)
        assert fastxent.sequence_reduce(losses, reduction="batch_mean") == pytest.approx(
            losses.sum() / 40, rel=1e-14, abs=0
        )


# --- what is not valid


def masked_case(dtype):
    random = cases.rng(82)
    logits = cases.scores(random, (6, 9, 33), cases.FLOATS[dtype])
    targets, mask = random.integers(0, 33, (6, 9)), random.uniform(size=(6, 9)) < 0.5
    return logits, targets, mask


@on_every_engine
@every_float
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "label_smoothing": 0.1}, {"softcap": 4.0}], ids=str)
def test_masked_is_left_out(options, dtype, engine):
    logits, targets, mask = masked_case(dtype)
    with cases.running_on(*engine):
        loss, gradient = fastxent.cross_entropy_and_grad(logits, targets, mask=mask, **NONE, **options)
        kept_loss, kept_gradient = fastxent.cross_entropy_and_grad(logits[mask], targets[mask], **NONE, **options)
        same(loss[mask], kept_loss)
        same(gradient[mask], kept_gradient)
        assert not loss[~mask].any() and not gradient[~mask].astype(float).any()
        by_mask = fastxent.cross_entropy(logits, targets, mask=mask, **options)
        assert by_mask == pytest.approx(
            fastxent.cross_entropy(logits[mask], targets[mask], **options), rel=1e-14, abs=0
        )


@on_every_engine
@every_float
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("way", ["mask", "lengths", "ignore_index", "sample_weight"])
def test_what_is_not_valid_may_hold_anything(way, axis, dtype, engine):
    logits, targets, mask = masked_case(dtype)
    lengths = mask.sum(axis=1)
    valid = np.arange(9) < lengths[:, None] if way == "lengths" else mask
    options = {"mask": {"mask": mask}, "lengths": {"lengths": lengths}, "ignore_index": {"ignore_index": 10**6},
               "sample_weight": {"sample_weight": mask * 1.5}}[way]
    rubbish, wrong = logits.copy(), targets.copy()
    with np.errstate(over="ignore"):
        rubbish[~valid] = np.resize([np.nan, np.inf, -np.inf, 1e30], (~valid).sum() * 33).reshape(-1, 33)
    wrong[~valid] = 10**6 if way == "ignore_index" else np.resize([-1, 33, 2**62, -(2**62)], (~valid).sum())
    moved, moved_rubbish = np.moveaxis(logits, -1, axis), np.moveaxis(rubbish, -1, axis)
    clean = {"ignore_index": 40} if way == "ignore_index" else options
    clean_targets = np.where(valid, targets, 40) if way == "ignore_index" else targets
    with cases.running_on(*engine):
        for reduction in ("none", "sum", "mean", "sequence_mean", "batch_mean"):
            expected = fastxent.cross_entropy_and_grad(moved, clean_targets, axis=axis, reduction=reduction, **clean)
            got = fastxent.cross_entropy_and_grad(moved_rubbish, wrong, axis=axis, reduction=reduction, **options)
            same(got[0], expected[0])
            same(got[1], expected[1])
            same(fastxent.cross_entropy(moved_rubbish, wrong, axis=axis, reduction=reduction, **options), expected[0])


@on_every_engine
def test_lengths_are_a_mask(engine):
    logits, targets, _ = masked_case("float32")
    lengths = np.array([9, 0, 4, 1, 8, 3])
    with cases.running_on(*engine):
        for reduction in ("none", "sum", "mean", "sequence_mean", "batch_mean"):
            by_lengths = fastxent.cross_entropy_and_grad(logits, targets, lengths=lengths, reduction=reduction)
            mask = fastxent.lengths_to_mask(lengths, 9)
            by_mask = fastxent.cross_entropy_and_grad(logits, targets, mask=mask, reduction=reduction)
            same(by_lengths[0], by_mask[0])
            same(by_lengths[1], by_mask[1])


@on_every_engine
@every_float
def test_shift_is_a_slice(dtype, engine):
    logits, targets, mask = masked_case(dtype)
    weight = cases.rng(83).uniform(size=(6, 9))
    with cases.running_on(*engine):
        for k in (1, 3, 8):
            loss, gradient = fastxent.cross_entropy_and_grad(
                logits, targets, shift=k, mask=mask, sample_weight=weight, **NONE
            )
            cut = fastxent.cross_entropy_and_grad(
                logits[:, :-k], targets[:, k:], mask=mask[:, k:], sample_weight=weight[:, k:], **NONE
            )
            same(loss[:, :-k], cut[0])
            same(gradient[:, :-k], cut[1])
            assert not loss[:, -k:].any() and not gradient[:, -k:].astype(float).any()
        for k in (9, 100):
            assert fastxent.cross_entropy(logits, targets, shift=k, empty_value=5.0) == 5.0


# --- the same row elsewhere


@on_every_engine
@every_float
@pytest.mark.parametrize("n_classes", [2, 5, 17, 33, 64, 100, 1000])
def test_a_positions_bits_are_its_own(n_classes, dtype, engine):
    """Whatever the others are, however many, whatever the number of threads."""
    random = cases.rng(84, n_classes)
    n = 3000 if n_classes < 100 else 300
    logits = cases.scores(random, (n, n_classes), cases.FLOATS[dtype])
    targets, upstream = random.integers(0, n_classes, n), random.normal(size=n)
    with cases.running_on(*engine):
        loss, gradient = fastxent.cross_entropy_and_grad(logits, targets, upstream=upstream, **NONE)
        p, value = fastxent.softmax(logits), fastxent.cross_entropy(logits, targets)
        for threads in (1, 2, 3, 7):
            again = fastxent.cross_entropy_and_grad(logits, targets, upstream=upstream, num_threads=threads, **NONE)
            same(again[0], loss)
            same(again[1], gradient)
            same(fastxent.softmax(logits, num_threads=threads), p)
            assert fastxent.cross_entropy(logits, targets, num_threads=threads) == value
        order = random.permutation(n)
        for pick in (order, order[:1], order[:7], order[:33], np.arange(5, n)):
            again = fastxent.cross_entropy_and_grad(logits[pick], targets[pick], upstream=upstream[pick], **NONE)
            same(again[0], loss[pick])
            same(again[1], gradient[pick])
            same(fastxent.softmax(logits[pick]), p[pick])


@on_every_engine
@every_float
@pytest.mark.parametrize("n_classes", [2, 9, 60, 257, 1100])
def test_a_position_alone_is_as_among_others(n_classes, dtype, engine):
    """The class axis first, at one distance: alone, every other, in the order of Fortran, with results elsewhere."""
    random = cases.rng(96, n_classes)
    n = 37
    x = cases.scores(random, (n_classes, n), cases.FLOATS[dtype], 5.0)
    targets, upstream = random.integers(0, n_classes, n), random.normal(size=n)
    sparse = np.zeros((n_classes, 2 * n), x.dtype)[:, ::2]

    def everything(pick, **out):
        part, arguments = x[:, pick], {"axis": 0, **NONE}
        options = {"label_smoothing": 0.1, "class_weight": np.arange(n_classes) + 1.0}
        of = targets[pick], {"upstream": upstream[pick]}
        found = [fastxent.softmax(part, axis=0, **out).copy(), fastxent.log_softmax(part, axis=0, **out).copy()]
        for chosen in ({}, options, {"label_smoothing": 0.1}):
            gradient = {"out_grad": out["out"]} if out else {}
            loss, grad = fastxent.cross_entropy_and_grad(part, of[0], **arguments, **of[1], **chosen, **gradient)
            found += [loss, grad.copy()]
        loss, saved = fastxent.cross_entropy(part, of[0], **arguments, return_saved=True)
        found += [loss, np.moveaxis(saved, -1, 0)]
        found += [fastxent.cross_entropy_grad(part, of[0], **arguments, **of[1], saved=saved)]
        return [*found, fastxent.logsumexp(part, axis=0), *fastxent.token_statistics(part, of[0], axis=0)]

    with cases.running_on(*engine):
        whole = everything(slice(None))
        for got, expected in zip(everything(slice(None), out=sparse), whole, strict=True):
            same(got, expected)
        for pick in (slice(0, 1), slice(5, 6), slice(36, 37), slice(0, n, 2), slice(1, 18, 3), slice(None, None, -1)):
            for got, expected in zip(everything(pick), whole, strict=True):
                same(got, expected[..., pick])
        for i in (0, 17):
            got = fastxent.cross_entropy_and_grad(x[:, i], targets[i], upstream=upstream[i], **NONE)
            same(got[0], whole[2][i])
            same(got[1], whole[3][:, i])


@on_every_engine
@every_float
def test_threads_change_no_bit_of_any_reduction(dtype, engine):
    random = cases.rng(85)
    for shape, axis in (((60, 50, 17), -1), ((60, 17, 50), 1), ((30, 20, 130), 2), ((4000, 5), 1)):
        case = cases.build(random, shape, axis, dtype, options=("mask", "class_weight", "sample_weight"))
        with cases.running_on(*engine):
            for reduction in ("sum", "mean", "sequence_mean", "batch_mean"):
                arguments = {"axis": axis} | case.options | {"reduction": reduction}
                expected = fastxent.cross_entropy_and_grad(case.scores, case.targets, num_threads=1, **arguments)
                for threads in (2, 5):
                    got = fastxent.cross_entropy_and_grad(case.scores, case.targets, num_threads=threads, **arguments)
                    assert got[0] == expected[0]
                    same(got[1], expected[1])


@on_every_engine
@every_float
def test_axis_is_moveaxis(dtype, engine):
    with cases.running_on(*engine):
        for i, shape in enumerate([(4, 3, 5), (2, 17, 6), (3, 4, 33), (7, 2, 129)]):
            for axis in range(3):
                case = cases.build(cases.rng(86, i, axis), shape, axis, dtype, reduced="none")
                loss, gradient = fastxent.cross_entropy_and_grad(case.scores, case.targets, axis=axis, **NONE)
                moved = np.moveaxis(case.scores, axis, -1)
                same_view = fastxent.cross_entropy_and_grad(moved, case.targets, **NONE)
                same(loss, same_view[0])  # the same memory by another name: the same bits
                same(np.moveaxis(gradient, axis, -1), same_view[1])
                bounds = Bounds(case)
                copied = fastxent.cross_entropy_and_grad(np.ascontiguousarray(moved), case.targets, **NONE)
                assert_within(copied[0], *bounds.losses(), case.name)
                assert_within(np.moveaxis(copied[1], -1, axis), *bounds.gradient(), case.name)
                same(fastxent.softmax(case.scores, axis=axis), fastxent.softmax(case.scores, axis=axis - 3))


@on_every_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 17, 64, 257])
def test_a_constant_added_to_a_row_changes_nothing(n_classes, dtype, engine):
    random = cases.rng(87, n_classes)
    logits = np.rint(random.normal(scale=20, size=(50, n_classes))).astype(dtype) * 8
    targets = random.integers(0, n_classes, 50)
    with cases.running_on(*engine):
        for options in ({}, {"label_smoothing": 0.1}, {"logit_scale": 0.7}):
            loss, gradient = fastxent.cross_entropy_and_grad(logits, targets, **NONE, **options)
            for constant in (1e8, -1e8, 4096.0):
                moved = fastxent.cross_entropy_and_grad(logits + np.array(constant, dtype), targets, **NONE, **options)
                same(moved[0], loss)
                same(moved[1], gradient)
            same(fastxent.softmax(logits + np.array(1e8, dtype)), fastxent.softmax(logits))


@on_every_engine
@every_float
def test_permuting_classes_permutes_the_gradient(dtype, engine):
    random = cases.rng(88)
    with cases.running_on(*engine):
        for n in (2, 5, 17, 40, 129):
            case = cases.build(random, (20, n), 1, dtype, reduced="none")
            order = random.permutation(n)
            bounds = Bounds(case)
            loss, gradient = fastxent.cross_entropy_and_grad(
                case.scores[:, order], np.argsort(order)[case.targets], **NONE
            )
            assert_within(loss, *bounds.losses(), case.name)
            back = np.empty_like(gradient)
            back[:, order] = gradient
            assert_within(back, *bounds.gradient(), case.name)


@on_every_engine
def test_types_of_targets_change_no_bit(engine):
    random = cases.rng(89)
    logits, targets = random.normal(scale=4, size=(5, 6, 21)), random.integers(0, 21, (5, 6))
    with cases.running_on(*engine):
        loss, gradient = fastxent.cross_entropy_and_grad(logits, targets, **NONE)
        for name in cases.INTEGERS:
            for layout in ("C", "F", "every other", "byte-swapped", "unaligned"):
                got = fastxent.cross_entropy_and_grad(logits, cases.lay_out(layout, targets.astype(name)), **NONE)
                same(got[0], loss)
                same(got[1], gradient)


@on_every_engine
@every_float
def test_one_hot_and_smoothing_are_class_probabilities(dtype, engine):
    random = cases.rng(90)
    with cases.running_on(*engine):
        for n in (2, 5, 17, 64, 129):
            case = cases.build(random, (20, n), 1, dtype, reduced="none")
            one_hot = fastxent.one_hot(case.targets, n, dtype=np.float64)
            for smoothing in (0.0, 0.25):
                case.options["label_smoothing"] = smoothing
                bounds = Bounds(case)
                probabilities = (1 - smoothing) * one_hot + smoothing / n
                loss, gradient = fastxent.cross_entropy_and_grad(case.scores, probabilities, **NONE)
                assert_within(loss, *bounds.losses(), case.name)
                assert_within(gradient, *bounds.gradient(), case.name)


@on_every_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_upstream_is_linear(dtype, engine):
    with cases.running_on(*engine):
        for seed in range(40):
            case = cases.random_case(2000 + seed, dtype=dtype)
            both, arguments = BOTH[case.kind], {"axis": case.axis, **case.options}
            loss, gradient = both(case.scores, case.targets, **arguments)
            for factor in (1.0, -1.0, 4.0, 0.125):  # powers of two are exact
                again, scaled = both(case.scores, case.targets, upstream=factor, **arguments)
                same(again, loss)
                same(scaled, factor * gradient)
            assert not both(case.scores, case.targets, upstream=0.0, **arguments)[1].any()
            if case.options["reduction"] == "none":
                scaled = both(case.scores, case.targets, upstream=np.full(case.positions, -2.0), **arguments)[1]
                same(scaled, -2.0 * gradient)


# --- products of options


@st.composite
def products(draw):
    """A case of drawn parts: hypothesis shrinks a failure to the parts that matter."""
    kind = draw(st.sampled_from(sorted(BOTH)))
    positions = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    n_classes = draw(st.sampled_from([1, 2, 3, 5, 16, 17, 31, 33, 64, 65, 129]))
    axis = draw(st.integers(0, len(positions)))
    shape = (*positions[:axis], n_classes, *positions[axis:])
    names = cases.option_names(kind, positions)
    if not positions:
        names = [n for n in names if "axis" not in n]
    options = draw(st.lists(st.sampled_from(names), max_size=8, unique=True))
    dtype = draw(st.sampled_from(sorted(cases.DTYPES)))
    target = draw(st.sampled_from(["int8", "uint8", "int64", "uint64", "float16", "bfloat16", "float32", "float64"]))
    layout, target_layout = (draw(st.sampled_from(sorted(cases.LAYOUTS))) for _ in range(2))
    if n_classes > 127 and target == "int8":
        target = "int16"
    if cases.DTYPES[target].kind in "iu" and target_layout.startswith("repeated"):
        target_layout = "C"
    return cases.build(
        cases.rng(93, draw(st.integers(0, 99))),
        shape,
        axis,
        dtype,
        kind,
        target,
        layout,
        target_layout,
        options,
        draw(st.sampled_from(cases.REDUCTIONS)),
        draw(st.sampled_from([0.01, 3.0, 30.0])),
    )


@on_every_engine
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(case=products())
def test_any_product_of_options(engine, case):
    upstream = case.upstream()
    bounds = Bounds(case, upstream)
    with cases.running_on(*engine):
        loss, gradient = BOTH[case.kind](case.scores, case.targets, axis=case.axis, upstream=upstream, **case.options)
        assert_within(loss, *bounds.losses(), case.name)
        assert_within(gradient, *bounds.gradient(), case.name)
        alone = FORWARD[case.kind](case.scores, case.targets, axis=case.axis, **case.options)
        assert_within(alone, *bounds.losses(), case.name)
