"""Every loss, on every backend and instruction set, against the oracle (test_parity_activations.py has the rest).

The oracle's answers and what may separate an engine from them (bounds.py) are computed once a case; the engines are
then run over the cases. One test is one engine, one dtype and one family of cases; a failure names the case and the
factor by which its bound was missed.
"""

import functools

import cases
import numpy as np
import pytest
from bounds import Bounds, assert_within

import fastxent
from fastxent import reference

on_every_engine = pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
for_every_float = pytest.mark.parametrize("dtype", cases.FLOATS)

FUNCTIONS = {
    "logits": (fastxent.cross_entropy, fastxent.cross_entropy_and_grad),
    "log_probs": (fastxent.nll_loss, fastxent.nll_loss_and_grad),
    "probs": (fastxent.cross_entropy_from_probs, fastxent.cross_entropy_from_probs_and_grad),
}
RANDOM_CASES = 1200
LAYOUT_CASES = 5000


class Expected:
    """A case and the oracle's answers to it."""

    def __init__(self, case):
        self.case = case
        self.upstream = case.upstream()
        bounds = Bounds(case, self.upstream)
        self.loss, self.gradient = bounds.losses(), bounds.gradient()
        self.valid = bounds.run.terms.valid
        if case.kind == "logits":
            self.softmax, self.saved = bounds.softmax(), (bounds.run.saved(), bounds.saved_error)
        self.computed, self.stored = cases.computed_in(case.scores.dtype), bounds.stored


@functools.lru_cache(maxsize=2)
def expected(family, dtype, kind):
    return [Expected(case) for case in getattr(cases, family)(dtype, kind)]


@functools.lru_cache(maxsize=1)
def expected_at_random(first, last):
    return [Expected(cases.random_case(seed)) for seed in range(first, last)]


def check(item):
    """All functions that take this case's scores."""
    case = item.case
    arguments = {"axis": case.axis, **case.options}
    forward, both = FUNCTIONS[case.kind]
    untouched = case.scores.tobytes(), case.targets.tobytes()

    loss, gradient = both(case.scores, case.targets, upstream=item.upstream, **arguments)
    check_value(loss, item)
    check_gradient(gradient, item)
    assert gradient.strides == np.empty_like(case.scores, item.stored, "K").strides, case.name
    alone = forward(case.scores, case.targets, **arguments)
    check_value(alone, item)
    if case.kind == "logits":
        check_logits_only(item, arguments, loss, gradient)
    check_into_outputs(item, both, arguments, loss, gradient)
    assert untouched == (case.scores.tobytes(), case.targets.tobytes()), f"{case.name}: an input was changed"


def check_value(loss, item):
    if item.case.options["reduction"] == "none":
        assert np.asarray(loss).dtype == item.computed, item.case.name
    else:
        assert type(loss) is np.float64, item.case.name
    assert_within(loss, *item.loss, f"{item.case.name}: loss")


def check_gradient(gradient, item):
    assert gradient.dtype == item.stored, item.case.name
    assert_within(gradient, *item.gradient, f"{item.case.name}: gradient")


def check_logits_only(item, arguments, loss, gradient):
    """Softmax, saved statistics, and the gradient alone."""
    case = item.case
    also, p = fastxent.cross_entropy_and_softmax(case.scores, case.targets, **arguments)
    check_value(also, item)
    assert p.dtype == item.stored
    assert_within(p, *item.softmax, f"{case.name}: softmax")
    _, saved = fastxent.cross_entropy(case.scores, case.targets, return_saved=True, **arguments)
    assert saved.dtype == item.computed and saved.shape == (*case.positions, 2)
    where = item.valid & np.isfinite(item.saved[0]).all(axis=-1)
    assert_within(saved[where], item.saved[0][where], item.saved[1][where], f"{case.name}: saved")
    for given in (None, saved):
        again = fastxent.cross_entropy_grad(case.scores, case.targets, upstream=item.upstream, saved=given, **arguments)
        check_gradient(again, item)


def check_into_outputs(item, both, arguments, loss, gradient):
    """The same bits in arrays of the caller, of another layout, and in place."""
    case = item.case
    out_grad = np.full((*case.scores.shape[:-1], 2 * case.scores.shape[-1]), np.nan).astype(item.stored)[..., ::2]
    outputs = {"out_grad": out_grad}
    if case.options["reduction"] == "none":
        outputs["out"] = np.full(case.positions, np.nan, item.computed)
    loss, gradient = both(case.scores, case.targets, upstream=item.upstream, **arguments, **outputs)
    assert gradient is out_grad and loss is outputs.get("out", loss)
    check_value(loss, item)
    check_gradient(gradient, item)
    if case.scores.dtype == item.stored and case.scores.flags.writeable:
        copy = cases.lay_out(case.layout, case.scores, case.axis)
        in_place = both(copy, case.targets, upstream=item.upstream, out_grad=copy, **arguments)
        assert in_place[1] is copy
        check_gradient(copy, item)


@on_every_engine
@for_every_float
@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize(
    "family", ["layout_cases", "class_count_cases", "target_cases", "single_option_cases", "option_pair_cases"]
)
def test_losses(family, kind, dtype, engine):
    with cases.running_on(*engine):
        for item in expected(family, dtype, kind):
            check(item)


@on_every_engine
@pytest.mark.parametrize("dtype", cases.INTEGERS)
def test_losses_of_integers(dtype, engine):
    with cases.running_on(*engine):
        for item in expected("class_count_cases", dtype, "logits"):
            check(item)


@on_every_engine
@pytest.mark.parametrize("block", range(4))
def test_losses_of_random_products(block, engine):
    size = RANDOM_CASES // 4
    with cases.running_on(*engine):
        for item in expected_at_random(block * size, (block + 1) * size):
            check(item)


# --- infinities, NaN, ties


@functools.lru_cache(maxsize=1)
def special(dtype):
    """Every special row between ordinary rows, for many numbers of classes, with every target and option."""
    items = []
    for n in (1, 2, 5, 16, 17, 33, 64, 129, 1025):
        random = cases.rng(20, n)
        rows = [row for _, row in cases.special_rows(n)]
        values = cases.scores(random, (2 * len(rows), n), "f8")
        values[::2] = rows
        with np.errstate(over="ignore"):
            values = values.astype(cases.FLOATS[dtype])
        of_class = np.arange(n) % 2.0 if n > 1 else np.zeros(1)
        options = [
            {},
            {"class_weight": of_class},
            {"label_smoothing": 0.25},
            {"z_loss": 0.5},
            {"softcap": 4.0},
            {"logit_scale": 0.5},
        ]
        targets = [np.zeros(len(values), int), np.full(len(values), n - 1), np.full(len(values), n // 2),
                   random.integers(0, n, len(values)), cases.class_probabilities(random, values.shape)]
        for i, option in enumerate(options):
            for j, target in enumerate(targets):
                axis = -1 if (i + j) % 2 else 0
                logits = values if axis else (values.T if j % 3 else np.ascontiguousarray(values.T))
                label = f"special rows {dtype} {n} axis {axis} {option} target {j}"
                if target.ndim == 2 and not axis:
                    target = target.T
                items.append(
                    Expected(cases.Case("logits", logits, target, axis % 2, {"reduction": "none"} | option, label))
                )
    return items


@on_every_engine
@for_every_float
def test_losses_of_special_rows(dtype, engine):
    with cases.running_on(*engine):
        for item in special(dtype):
            check(item)


@functools.lru_cache(maxsize=1)
def courses(dtype):
    """Rows whose maximum comes late, early or again and again, as far apart as exponentials reach, side by side."""
    items = []
    for n in (100, 300, 1000):
        random, step = cases.rng(21, n), np.arange(n) * (160 / n)
        rows = [step, -step, 30 * (step // 20), step - 4000]
        # Behind a chunk without a maximum, whose exponential relative to none would be 2^128, 2^1024, or more.
        rows += [np.where(step < 80, -np.inf, at - step) for at in (-9, -630, -1000)]
        rows += [np.where(step < 150, row, -np.inf) for row in rows] + [np.roll(row, n // 3) for row in rows]
        rows += [np.where(np.arange(n) == n - 2, np.nan, step)]
        values = cases.scores(random, (9 * len(rows), n), "f8", 0.5)
        values[::9] = rows
        values[4::9] += rows
        logits = np.ascontiguousarray(values.T.astype(cases.FLOATS[dtype]))
        mask = random.uniform(size=len(values)) < 0.9
        for j, option in enumerate([{}, {"label_smoothing": 0.25}, {"logit_scale": 0.5}, {"mask": mask},
                                    {"class_weight": np.arange(n) % 3.0, "label_smoothing": 0.1}]):  # fmt: skip
            target = random.integers(0, n, len(values)) if j % 2 else np.argmax(np.nan_to_num(logits), axis=0)
            label = f"courses {dtype} {n} {list(option)}"
            items.append(Expected(cases.Case("logits", logits, target, 0, {"reduction": "none"} | option, label)))
    return items


@on_every_engine
@for_every_float
def test_losses_of_any_course(dtype, engine):
    with cases.running_on(*engine):
        for item in courses(dtype):
            check(item)


@on_every_engine
@for_every_float
def test_from_probabilities_at_their_ends(dtype, engine):
    values = np.array([[0.0, 1.0, 0.5, 1e-7, 6e-5, np.nan, np.inf], [1.0, 0.0, 0.25, 1.0, 0.0, 1.0, 2.0]]).astype(
        cases.FLOATS[dtype]
    )
    with cases.running_on(*engine):
        for kind in ("probs", "log_probs"):
            for scores, axis in ((values, 0), (values.T, 1), (np.ascontiguousarray(values.T), 1)):
                for targets in (
                    np.zeros(7, int),
                    np.ones(7, np.uint8),
                    np.full(scores.shape, 0.5),
                    np.zeros(scores.shape),
                ):
                    check(Expected(cases.Case(kind, scores, targets, axis, {"reduction": "none"}, f"{kind} {dtype}")))


# --- the contract's own figures, in the strict form


@on_every_engine
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 5, 17, 64, 100, 1000, 50257])
def test_promised_digits(n_classes, dtype, engine):
    """Loss to (4 + gap) u, gradient to (8 + 2 range) u, relative, over gaps from 0 to 80, target at the top and not."""
    random = cases.rng(60, n_classes)
    gaps = np.r_[0, np.geomspace(1e-6, 80, 15 if n_classes < 5000 else 5)]
    rows = np.minimum(random.normal(scale=2.0, size=(len(gaps), n_classes)), 6.0)
    top = random.integers(0, n_classes, len(gaps))
    rows[np.arange(len(gaps)), top] = -np.inf
    rows[np.arange(len(gaps)), top] = rows.max(axis=1) + gaps
    u = 2.0**-23 if dtype == "float32" else 2.0**-52
    logits = rows.astype(dtype)
    wide = logits.astype(np.float64)
    second = np.partition(wide, -2, axis=1)[:, -2]
    gap, reach = wide.max(axis=1) - second, wide.max(axis=1) - wide.min(axis=1)
    with cases.running_on(*engine):
        for targets in (top, (top + 1) % n_classes):
            for x, axis in ((logits, 1), (np.ascontiguousarray(logits.T), 0)):
                answer = reference.cross_entropy_and_grad(x, targets, axis=axis, reduction="none")
                loss, gradient = fastxent.cross_entropy_and_grad(x, targets, axis=axis, reduction="none")
                smallest = n_classes * (2.0**-126 if dtype == "float32" else 2.0**-1022)
                assert_within(loss, answer[0], (4 + gap) * u * answer[0] + smallest, "loss")
                expanded = np.expand_dims(reach, axis)
                tiny = np.where(np.abs(answer[1]) > 1e-30, 0, 1e-30)
                assert_within(gradient, answer[1], (8 + 2 * expanded) * u * np.abs(answer[1]) + tiny, "gradient")
                p = fastxent.softmax(x, axis=axis)
                expected_p = reference.softmax(x, axis=axis)
                assert_within(p, expected_p, (8 + 2 * expanded) * u * expected_p + 1e-30, "softmax")


@on_every_engine
@for_every_float
def test_long_sums_keep_their_digits(dtype, engine):
    """50257 terms: of exponentials, of coefficients, of both times distances; rows, columns and neither."""
    with cases.running_on(*engine):
        for item in long_sums(dtype):
            check(item)


@functools.lru_cache(maxsize=1)
def long_sums(dtype):
    items, n = [], 50257
    random = cases.rng(65)
    for spread, layouts in ((0.0, ("C", "classes first", "every other")), (1.0, ("C", "classes first"))):
        values = cases.scores(random, (2, n), cases.FLOATS[dtype], spread)
        index = random.integers(0, n, 2)
        for layout in layouts:
            logits = cases.lay_out(layout, values)
            for targets, options in (
                (index, {}),
                (index, {"label_smoothing": 1.0, "z_loss": 0.25}),
                (index, {"label_smoothing": 0.5, "class_weight": np.full(n, 0.7)}),
                (np.full((2, n), 0.1, "f4"), {}),
                (cases.class_probabilities(random, (2, n)), {"class_weight": np.full(n, 0.7)}),
            ):
                label = f"{dtype} {layout} spread {spread} {targets.ndim} {list(options)}"
                case = cases.Case("logits", logits, targets, 1, {"reduction": "none"} | options, label)
                items.append(Expected(case))
    return items


# --- layouts against a contiguous copy


def layout_case(seed):
    """A small case without options: arrays in any layout of the logits, targets and gradient."""
    random = cases.rng(70, seed)
    n_classes = int(random.choice([1, 2, 3, 5, 16, 17, 31, 33, 50, 64, 65, 100, 129, 257]))
    ndim = int(random.integers(1, 5))
    shape = [int(n) for n in random.integers(1, 5 if ndim > 2 else 20, ndim)]
    axis = int(random.integers(ndim))
    shape[axis] = n_classes
    dtype = str(random.choice([*cases.FLOATS, *cases.FLOATS, *cases.INTEGERS]))
    target = str(
        random.choice(["int64", "uint8", "int16", "float32", "float16"] if n_classes < 256 else ["int32", "float64"])
    )
    layouts = [str(random.choice(list(cases.LAYOUTS))) for _ in range(3)]
    case = cases.build(random, tuple(shape), axis, dtype, "logits", target, layouts[0], layouts[1], reduced="none")
    return case, layouts[2]


@on_every_engine
@pytest.mark.parametrize("block", range(5))
def test_any_layout_is_its_contiguous_copy(block, engine):
    """The error of either is in its bound, so two layouts differ by two bounds; within a family of kernels, by none."""
    size = LAYOUT_CASES // 5
    with cases.running_on(*engine):
        for seed in range(block * size, (block + 1) * size):
            case, out_layout = layout_case(seed)
            label = f"seed {seed}: {case.name}, gradient {out_layout}"
            copy, targets = np.array(case.scores, order="C"), np.array(case.targets, order="C")
            stored = cases.stored_as(case.scores.dtype)
            blank = np.zeros(case.scores.shape, stored)
            out_grad = cases.lay_out(out_layout, blank, case.axis)
            usable = out_grad.flags.writeable and 0 not in out_grad.strides and out_grad.dtype == stored
            given = {"out_grad": out_grad} if usable and out_grad.dtype.isnative else {}
            loss, gradient = fastxent.cross_entropy_and_grad(
                case.scores, case.targets, axis=case.axis, reduction="none", **given
            )
            plain, plain_gradient = fastxent.cross_entropy_and_grad(copy, targets, axis=case.axis, reduction="none")
            if same_family(case.scores, copy, case.axis):
                np.testing.assert_array_equal(loss, plain, err_msg=label)
                np.testing.assert_array_equal(gradient, plain_gradient, err_msg=label)
            else:
                bounds = Bounds(case)
                assert_within(loss, plain, 2 * bounds.losses()[1], label)
                assert_within(
                    gradient, plain_gradient, 2 * bounds.gradient()[1] + rounding(plain_gradient, stored), label
                )


def same_family(a, b, axis):
    """Whether the class axis is next to itself in memory in both."""
    return all(array.strides[axis] == array.itemsize or array.shape[axis] == 1 for array in (a, b))


def rounding(values, dtype):
    """One unit in the last place of stored values: two roundings of neighbours."""
    values = np.abs(np.asarray(values).astype(np.float64))
    digits = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype.name]
    return values * digits + (2.0**-24 if dtype.name == "float16" else 0)
