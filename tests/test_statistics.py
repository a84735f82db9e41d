"""Scoring in one pass: every statistic on every engine against the oracle, and the algebra of partials.

Bounds follow tests/bounds.py: u is one rounding of the compute type; a difference from the largest logit is scaled and
exponentiated, which moves it by (4 + difference) u, relatively.
"""

import functools
import inspect
import itertools

import cases
import numpy as np
import pytest
from bounds import SCALE, TANH, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st

import fastxent
from fastxent import reference, reference_scoring

on_every_engine = pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
for_every_float = pytest.mark.parametrize("dtype", cases.FLOATS)

TARGET_OPTIONS = ("axis", "mask", "lengths", "ignore_index", "shift", "logit_scale", "softcap")
TWINS = ("token_statistics", "top_k_log_probs", "partials", "merge_partials", "finish_partials")
NAMES = fastxent.statistics.TokenStatistics._fields


@pytest.mark.parametrize("name", TWINS)
def test_signatures_of_twins(name):
    public, twin = getattr(fastxent, name), getattr(reference_scoring, name)
    mine, theirs = inspect.signature(public).parameters.values(), inspect.signature(twin).parameters.values()
    assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in theirs]


# --- what may separate an engine from the oracle


class Errors:
    """How far log_prob, logsumexp and entropy may be from the oracle's; rows with the classes last."""

    def __init__(self, logits, axis=-1, logit_scale=1.0, softcap=None):
        single = cases.computed_in(logits.dtype) == np.float32
        self.u = 2.0**-23 if single else 2.0**-52
        self.tiny = logits.shape[axis] * (2.0**-126 if single else 2.0**-1022)
        with np.errstate(all="ignore"):
            row = reference._Softmax(np.moveaxis(reference._wide(logits), axis, -1), logit_scale, softcap)
            below = np.where(np.isfinite(row.below_top), -row.below_top, 0)
            gap = np.where(row.at_top | ~np.isfinite(row.below_top), np.inf, below).min(axis=-1, initial=np.inf)
            self.gap = np.where(np.isfinite(gap), gap, 0)
            self.top = np.where(np.isfinite(row.top), np.abs(row.top), 0)
            self.moved = 2 * TANH * self.u * (self.top + below.max(axis=-1, initial=0)) if softcap else 0.0
            self.log1p_s, self.s = np.where(row.defined, row.log1p_s, 0), np.where(row.defined, row.s, 0)
            p = np.where(row.at_top | ~row.defined[..., None], 0, row.p)
            steps = (12 + self.gap)[..., None] + below
            self.of_entropy = self.u * ((4 + self.gap) * self.log1p_s + (p * below * steps).sum(axis=-1))
            # An exponential near the smallest number may be 0; its term is that times the difference.
            self.of_entropy += self.moved * (p * (1 + below)).sum(axis=-1) + self.tiny * (1 + below.max(-1, initial=0))

    def of(self, name, value):
        value = np.where(np.isfinite(value), np.abs(value), 0)
        if name == "log_prob":
            return (4 + self.gap + SCALE) * self.u * value + self.moved + self.tiny
        if name == "logsumexp":
            return 2 * self.u * self.top + (4 + self.gap) * self.u * self.log1p_s + self.moved + self.tiny
        return self.of_entropy


def check_statistics(logits, targets, options, label=""):
    got = fastxent.token_statistics(logits, targets, **options)
    expected = reference_scoring.token_statistics(logits, targets, **options)
    errors = Errors(logits, **{k: v for k, v in options.items() if k in ("axis", "logit_scale", "softcap")})
    for name, mine, theirs in zip(NAMES, got, expected, strict=True):
        assert mine.shape == theirs.shape, f"{label}: {name}"
        if theirs.dtype == np.int64:
            assert mine.dtype == np.int64
            np.testing.assert_array_equal(mine, theirs, f"{label}: {name}")
        else:
            assert mine.dtype == cases.computed_in(logits.dtype), f"{label}: {name}"
            assert_within(mine, theirs, np.broadcast_to(errors.of(name, theirs), theirs.shape), f"{label}: {name}")
            assert not (np.signbit(mine) & (mine == 0)).any(), f"{label}: {name} is -0"


def check_case(case):
    options = {"axis": case.axis} | {k: v for k, v in case.options.items() if k in TARGET_OPTIONS}
    before = case.scores.tobytes(), case.targets.tobytes()
    check_statistics(case.scores, case.targets, options, case.name)
    assert before == (case.scores.tobytes(), case.targets.tobytes())


def of_indices(found):
    return [case for case in found if case.targets.dtype.kind in "iu"]


@on_every_engine
@for_every_float
def test_layouts(engine, dtype):
    with cases.running_on(*engine):
        for case in cases.layout_cases(dtype):
            check_case(case)


@on_every_engine
@for_every_float
def test_class_counts(engine, dtype):
    with cases.running_on(*engine):
        for case in of_indices(cases.class_count_cases(dtype)):
            check_case(case)


@on_every_engine
@for_every_float
def test_options(engine, dtype):
    with cases.running_on(*engine):
        for case in of_indices(cases.single_option_cases(dtype)):
            check_case(case)


@on_every_engine
def test_targets(engine):
    with cases.running_on(*engine):
        for case in of_indices(cases.target_cases("float32")):
            check_case(case)


@on_every_engine
@pytest.mark.parametrize("seeds", [range(first, first + 75) for first in range(0, 300, 75)], ids=str)
def test_at_random(engine, seeds):
    with cases.running_on(*engine):
        for seed in seeds:
            case = cases.random_case(seed, "logits")
            if case.targets.dtype.kind in "iu":
                check_case(case)


# --- ties, tails, special values

ROW_LENGTHS = (1, 2, 5, 17, 33, 64, 127, 130, 700, 1023, 1024, 1090, 2100)


@on_every_engine
@for_every_float
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_the_largest_is_found_at_every_class(engine, dtype, softcap):
    with cases.running_on(*engine):
        for n_classes in (65, 300, 1100):
            logits = cases.rng(3, n_classes).integers(-40, 0, (n_classes, n_classes)).astype(np.float32) / 8
            np.fill_diagonal(logits, 1)
            logits, targets = logits.astype(cases.DTYPES[dtype]), np.zeros(n_classes, int)
            found = fastxent.token_statistics(logits, targets, softcap=softcap)
            np.testing.assert_array_equal(found.argmax, np.arange(n_classes))


@on_every_engine
@for_every_float
@pytest.mark.parametrize("axis", [0, -1])
def test_ranks_of_ties(engine, dtype, axis):
    """Few values, so that every target has equals before and behind it, in its own group of vectors too."""
    random = cases.rng(91)
    with cases.running_on(*engine):
        for n in ROW_LENGTHS:
            rows = random.integers(-2, 3, (23, n)).astype(cases.DTYPES[dtype])
            rows[5] = 1
            rows[6] = np.arange(n)
            rows[7] = -np.arange(n)
            rows[8] = np.where(random.uniform(size=n) < 0.5, -np.inf, 0)
            targets = random.integers(0, n, 23)
            targets[:3] = 0
            targets[3:6] = n - 1
            logits = np.ascontiguousarray(rows.T) if axis == 0 else rows
            check_statistics(logits, targets, {"axis": axis}, f"{n} classes")


@on_every_engine
@for_every_float
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_special_rows(engine, dtype, axis, softcap):
    with cases.running_on(*engine):
        for n in (1, 3, 17, 100, 1100):
            names, rows = zip(*cases.special_rows(n, cases.DTYPES[dtype]), strict=True)
            logits = np.array(rows)
            for target in {0, n // 2, n - 1}:
                given = np.ascontiguousarray(logits.T) if axis == 0 else logits
                check_statistics(given, np.full(len(names), target), {"axis": axis, "softcap": softcap}, f"{n} classes")


@on_every_engine
def test_digits_near_certainty(engine):
    """1 - p = 1e-13 and less: log-probability and entropy keep their digits, in rows and in lanes."""
    with cases.running_on(*engine):
        for n in (3, 200, 3000):
            logits = np.zeros((4, n), np.float32)
            logits[:, n // 2] = [30, 45, 60, 80]
            for given in logits, logits.astype(np.float64):
                found = fastxent.token_statistics(given, np.full(4, n // 2))
                assert (found.log_prob < 0).all()
                assert (found.entropy > 0).all()
                check_statistics(given, np.full(4, n // 2), {})
                check_statistics(np.ascontiguousarray(given.T), np.full(4, n // 2), {"axis": 0})


@on_every_engine
def test_softcap_keeps_ranks(engine):
    """Far beyond the cap logits are equal after rounding; which was larger is still known."""
    logits = np.float32([[300, 301, 302, 299], [1e6, 1e5, 1e7, 0]])
    with cases.running_on(*engine):
        found = fastxent.token_statistics(logits, [0, 3], softcap=1.0)
    assert found.argmax.tolist() == [2, 2]
    assert found.rank.tolist() == [2, 3]


def test_empty():
    found = fastxent.token_statistics(np.zeros((0, 5), np.float32), np.zeros(0, int))
    assert [a.shape for a in found] == [(0,)] * 5
    assert [a.dtype for a in found] == [np.float32, np.float32, np.int64, np.int64, np.float32]
    with pytest.raises(ValueError, match="no classes"):
        fastxent.token_statistics(np.zeros((2, 0)), [0, 0])


def test_nothing_valid_is_not_read():
    logits = np.full((3, 4, 50), np.nan, np.float32)
    found = fastxent.token_statistics(logits, np.full((3, 4), 7000), mask=np.zeros((3, 4), bool))
    assert not found.log_prob.any()
    assert not found.entropy.any()
    assert (found.rank == -1).all()
    assert (found.argmax == -1).all()


@on_every_engine
def test_bits_are_a_position_s_own(engine):
    """Any number of threads, any neighbours: the same bits."""
    random = cases.rng(92)
    with cases.running_on(*engine):
        for shape, axis in (((40, 3000), -1), ((3000, 12), -1), ((4, 90, 700), 1)):
            logits = random.normal(size=shape).astype(np.float32)
            positions = shape[:axis] + shape[axis:][1:] if axis != -1 else shape[:-1]
            targets = random.integers(0, shape[axis], positions)
            one = fastxent.token_statistics(logits, targets, axis=axis, num_threads=1)
            two = fastxent.token_statistics(logits, targets, axis=axis, num_threads=2)
            some = fastxent.token_statistics(logits[1:3], targets[1:3], axis=axis)
            for a, b, c in zip(one, two, some, strict=True):
                assert a.tobytes() == b.tobytes()
                assert a[1:3].tobytes() == c.tobytes()


# --- errors

LOGITS = np.zeros((2, 3, 5), np.float32)


def test_bad_class_index():
    with pytest.raises(IndexError, match=r"position \(1, 2\) is 5, outside \[0, 5\)"):
        fastxent.token_statistics(LOGITS, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("function", [fastxent.token_statistics, fastxent.partials])
def test_class_probabilities_are_refused(function):
    with pytest.raises(TypeError, match="integers"):
        function(LOGITS, LOGITS)
    with pytest.raises(TypeError, match="integers"):
        function(LOGITS, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="one_hot"):
        function(LOGITS, LOGITS.astype(int))


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), (6, ValueError), (2.0, TypeError)])
def test_bad_k(k, error):
    with pytest.raises(error, match="k must be"):
        fastxent.top_k_log_probs(LOGITS, k)


@pytest.mark.parametrize("options", [{"logit_scale": 0.0}, {"softcap": -1.0}, {"axis": 3}, {"num_threads": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError):
        fastxent.top_k_log_probs(LOGITS, 2, **options)
    with pytest.raises(ValueError):
        fastxent.token_statistics(LOGITS, np.zeros((2, 3), int), **options)


# --- the k largest


def check_top(logits, k, label="", **options):
    values, indices = fastxent.top_k_log_probs(logits, k, **options)
    expected, order = reference_scoring.top_k_log_probs(logits, k, **options)
    np.testing.assert_array_equal(indices, order, label)
    assert values.dtype == cases.computed_in(logits.dtype)
    errors, axis = Errors(logits, **options), options.get("axis", -1)
    allowed = errors.of("log_prob", np.moveaxis(expected, axis, 0))  # k first, before the positions
    assert_within(values, expected, np.moveaxis(allowed, 0, axis), label)


@on_every_engine
@for_every_float
def test_top_k_layouts(engine, dtype):
    with cases.running_on(*engine):
        for case in cases.layout_cases(dtype):
            n = case.scores.shape[case.axis]
            for k in {1, min(n, 5), n}:
                check_top(case.scores, k, case.name, axis=case.axis)


@on_every_engine
@for_every_float
def test_top_k_orders(engine, dtype):
    """Rows that ascend, descend, have ties, nothing but ties, infinities."""
    random = cases.rng(93)
    with cases.running_on(*engine):
        for n in ROW_LENGTHS:
            rows = random.integers(-9, 9, (9, n)).astype(cases.DTYPES[dtype])
            rows[1], rows[2], rows[3] = np.arange(n), -np.arange(n), 1
            rows[4] = np.where(random.uniform(size=n) < 0.9, -np.inf, rows[4])
            rows[5] = random.normal(size=n)
            for k in {1, 2, n // 2 + 1, n, min(n, 1000)} & set(range(1, n + 1)):
                check_top(rows, k, f"{k} of {n}")
            check_top(rows, min(n, 7), f"{n} scaled", logit_scale=0.25)
            check_top(rows, min(n, 7), f"{n} capped", softcap=3.0)


@on_every_engine
@for_every_float
def test_top_k_special_rows(engine, dtype):
    with cases.running_on(*engine):
        for n in (1, 3, 17, 1100):
            for name, row in cases.special_rows(n, cases.DTYPES[dtype]):
                for k in {1, (n + 1) // 2, n}:
                    if np.isnan(row).any():
                        values, indices = fastxent.top_k_log_probs(row, k)
                        assert np.isnan(values).all()
                        assert (indices == -1).all()
                    else:
                        check_top(row, k, f"{name}: {k} of {n}")


def test_top_k_of_many():
    """A thousand of a vocabulary, from every thread."""
    logits = cases.rng(94).normal(size=(8, 30000)).astype(np.float32)
    check_top(logits, 1000)
    one, two = (fastxent.top_k_log_probs(logits, 1000, num_threads=n) for n in (1, 2))
    assert one[0].tobytes() == two[0].tobytes()
    assert one[1].tobytes() == two[1].tobytes()


# --- partials


@on_every_engine
@for_every_float
def test_partials(engine, dtype):
    """Each range, and their merge, against the oracle; targets of every range; options."""
    random = cases.rng(95)
    with cases.running_on(*engine):
        for n, axis in ((7, -1), (50, 0), (300, -1), (2500, -1), (300, 0)):
            shape = (4, 6, n) if axis == -1 else (n, 4, 6)
            logits = cases.scores(random, shape, cases.DTYPES[dtype])
            targets = random.integers(0, n, (4, 6)).astype(np.uint16)
            for options in ({}, {"logit_scale": 0.75}, {"softcap": 4.0}, {"shift": 1}, {"lengths": [0, 3, 6, 1]},
                            {"ignore_index": int(targets[0, 0])}, {"mask": random.uniform(size=6) < 0.5}):
                options = {"axis": axis, **options}
                ends = [0, *sorted(random.choice(np.arange(1, n), 2, replace=False).tolist()), n]
                merged = None
                for start, end in itertools.pairwise(ends):
                    part = np.moveaxis(np.moveaxis(logits, axis, 0)[start:end], 0, axis)
                    found = fastxent.partials(part, targets, class_offset=start, **options)
                    expected = reference_scoring.partials(part, targets, class_offset=start, **options)
                    check_partials(found, expected, part, options)
                    merged = found if merged is None else fastxent.merge_partials(merged, found)
                check_merged(merged, logits, targets, options)


def check_partials(found, expected, logits, options):
    assert found.dtype == np.float64
    errors = Errors(logits, **{k: v for k, v in options.items() if k in ("axis", "logit_scale", "softcap")})
    np.testing.assert_array_equal(found[..., 3:], expected[..., 3:])
    for i in 0, 2:
        size = np.where(np.isfinite(expected[..., i]), np.abs(expected[..., i]), 0)
        assert_within(found[..., i], expected[..., i], 2 * errors.u * size + errors.moved)
    reach = np.log(2.0**126 if errors.u > 1e-9 else 2.0**1022)
    assert_within(found[..., 1], expected[..., 1], ((8 + reach) * errors.u + errors.moved) * errors.s + errors.tiny)


def check_merged(merged, logits, targets, options):
    log_prob, logsumexp, argmax = fastxent.finish_partials(merged)
    whole = reference_scoring.token_statistics(logits, targets, **options)
    errors = Errors(logits, **{k: v for k, v in options.items() if k in ("axis", "logit_scale", "softcap")})
    np.testing.assert_array_equal(argmax, whole[2])
    for name, mine, theirs in (("log_prob", log_prob, whole[0]), ("logsumexp", logsumexp, whole[1])):
        # Log-probabilities near 0 are relatively exact here too; ranges far below the maximum have a gap of their own.
        size = errors.u * (100 + errors.gap) * (np.abs(theirs) + errors.log1p_s) + 2 * errors.moved
        assert_within(mine, theirs, size + errors.of(name, theirs))


@on_every_engine
def test_partials_of_special_rows(engine):
    """Cut anywhere, the whole row's answer: infinities, NaN and ties in each range."""
    with cases.running_on(*engine):
        for n in (2, 5, 40, 200):
            names, rows = zip(*cases.special_rows(n, np.float32), strict=True)
            logits, targets = np.array(rows), np.arange(len(rows)) % n
            whole = fastxent.token_statistics(logits, targets)
            for cut in {1, n // 2, n - 1}:
                left = fastxent.partials(logits[:, :cut], targets)
                right = fastxent.partials(logits[:, cut:], targets, class_offset=cut)
                for merged in fastxent.merge_partials(left, right), fastxent.merge_partials(right, left):
                    log_prob, logsumexp, argmax = fastxent.finish_partials(merged)
                    np.testing.assert_array_equal(argmax, whole.argmax, str(names))
                    np.testing.assert_allclose(log_prob, whole.log_prob, 1e-6, 1e-30, err_msg=str(names))
                    np.testing.assert_allclose(logsumexp, whole.logsumexp, 1e-6, err_msg=str(names))


def test_target_of_no_range():
    parts = [fastxent.partials(np.zeros((2, 3)), [1, 99], class_offset=at) for at in (0, 3)]
    with pytest.raises(IndexError, match=r"position \(1,\)"):
        fastxent.finish_partials(fastxent.merge_partials(*parts))
    negative = fastxent.partials(np.zeros(3), -1)
    with pytest.raises(IndexError):
        fastxent.finish_partials(negative)
    alone = fastxent.finish_partials(fastxent.partials(np.zeros(3), -100))
    assert alone.log_prob == 0 and all(type(a) is np.ndarray and a.shape == () for a in alone)


@pytest.mark.parametrize("offset", [-1, 0.5, 2**53 + 1, 2**63])
def test_bad_class_offset(offset):
    with pytest.raises((ValueError, TypeError), match="class_offset"):
        fastxent.partials(np.zeros(3), 0, class_offset=offset)
    assert fastxent.partials(np.zeros(3), 0, class_offset=2**53)[3] == 2**53  # exactly, as any below


def test_targets_of_small_and_large_types():
    """A class offset that the targets' type cannot hold, and targets that int64 cannot."""
    found = fastxent.partials(np.zeros((2, 3)), np.uint8([1, 2]), class_offset=1000)
    assert found[:, 4].tolist() == [0, 0]
    found = fastxent.partials(np.zeros((1, 3)), np.uint64([2**64 - 1]), ignore_index=None)
    assert found[:, 4].tolist() == [0]


def test_partials_are_recognised():
    with pytest.raises(TypeError, match="float64"):
        fastxent.finish_partials(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="shape"):
        fastxent.finish_partials(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="same positions"):
        fastxent.merge_partials(np.zeros((2, 5)), np.zeros((3, 5)))


LOGIT = st.one_of(st.integers(-3, 3).map(float), st.floats(-80, 80), st.just(-np.inf))
RANGES = st.lists(st.lists(LOGIT, min_size=1, max_size=5), min_size=3, max_size=6)


def parts_of(ranges, target):
    starts = np.cumsum([0, *map(len, ranges)])
    return [fastxent.partials(np.array(r), target, class_offset=int(s)) for r, s in zip(ranges, starts, strict=False)]


def assert_same(a, b):
    np.testing.assert_array_equal(a[[0, 2, 3, 4]], b[[0, 2, 3, 4]])
    np.testing.assert_allclose(a[1], b[1], rtol=1e-13, atol=1e-300)


@settings(max_examples=300, deadline=None)
@given(RANGES, st.data())
def test_merging_is_an_algebra(ranges, data):
    """Associative, commutative, equal to the whole, and to the oracle's merge."""
    row = np.concatenate([np.array(r) for r in ranges])
    target = data.draw(st.integers(0, row.size - 1))
    merge = fastxent.merge_partials
    parts = parts_of(ranges, target)
    left = parts[0]
    for p in parts[1:]:
        assert_same(merge(left, p), merge(p, left))
        assert_same(merge(left, p), reference_scoring.merge_partials(left, p))
        left = merge(left, p)
    right = parts[-1]
    for p in parts[-2::-1]:
        right = merge(p, right)
    assert_same(left, right)
    assert_same(merge(merge(parts[0], parts[1]), parts[2]), merge(parts[0], merge(parts[1], parts[2])))
    shuffled = data.draw(st.permutations(parts))
    some = shuffled[0]
    for p in shuffled[1:]:
        some = merge(some, p)
    assert_same(some, left)
    log_prob, logsumexp, argmax = fastxent.finish_partials(left)
    whole = fastxent.token_statistics(row, target)
    assert argmax == whole.argmax
    np.testing.assert_allclose(log_prob, whole.log_prob, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(logsumexp, whole.logsumexp, rtol=1e-12, atol=1e-14)


BEYOND = st.one_of(st.floats(-3, 3, width=32), st.floats(5, 2**100, width=32), st.integers(5, 60).map(float))


@on_every_engine
@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(BEYOND, min_size=1, max_size=5), min_size=2, max_size=6), st.sampled_from(["f4", "f8"]),
       st.data())
def test_argmax_of_logits_that_a_softcap_makes_equal(engine, ranges, dtype, data):
    """Within a range the larger logit, between ranges the larger z, of equal ones the first, in any order."""
    ranges = [np.array(r, dtype) for r in ranges]
    row, starts = np.concatenate(ranges), np.cumsum([0, *map(len, ranges)])[:-1].tolist()
    target = data.draw(st.integers(0, row.size - 1))
    with cases.running_on(*engine):
        parts = [fastxent.partials(r, target, class_offset=s, softcap=0.5) for r, s in zip(ranges, starts, strict=True)]
        whole = fastxent.token_statistics(row, target, softcap=0.5)
        one = fastxent.finish_partials(fastxent.partials(row, target, softcap=0.5))
    for part, r, start in zip(parts, ranges, starts, strict=True):
        assert part[3] == start + r.argmax()
    assert one.argmax == whole.argmax == row.argmax()
    for merge in fastxent.merge_partials, reference_scoring.merge_partials:
        merged = functools.reduce(merge, data.draw(st.permutations(parts)))
        best = [part for part in parts if part[0] == max(p[0] for p in parts)]
        assert merged[3] == min(part[3] for part in best)
        if len(best) == 1:
            assert merged[3] == whole.argmax


@settings(max_examples=100, deadline=None)
@given(st.lists(LOGIT, min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_neutral_range(row, n, data):
    """A range of nothing but -inf, on either side, changes nothing but where the target is."""
    target = data.draw(st.integers(0, len(row) - 1))
    some = fastxent.partials(np.array(row), target)
    nothing = fastxent.partials(np.full(n, -np.inf), target, class_offset=len(row))
    np.testing.assert_array_equal(fastxent.merge_partials(some, nothing), some)
    np.testing.assert_array_equal(fastxent.merge_partials(nothing, some), some)


def test_twin_of_finish():
    p = fastxent.partials(cases.rng(96).normal(size=(5, 9)), np.arange(5))
    for mine, theirs in zip(fastxent.finish_partials(p), reference_scoring.finish_partials(p), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-15)
        assert mine.dtype == theirs.dtype
