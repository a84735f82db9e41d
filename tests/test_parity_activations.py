"""Activations, their gradients, the masked reduction and the small helpers against the oracle, as in test_parity.py."""

import functools

import cases
import numpy as np
import pytest
from bounds import assert_within

import fastxent
from fastxent import reference

on_every_engine = pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))


def activation_cases(dtype):
    for case in (*cases.layout_cases(dtype), *cases.class_count_cases(dtype)):
        yield case.scores, case.axis
    if cases.DTYPES[dtype].kind not in "iu":
        for n in (1, 2, 5, 17, 33, 129, 1025):
            rows = np.array([row for _, row in cases.special_rows(n)])
            with np.errstate(over="ignore"):
                yield rows.astype(cases.DTYPES[dtype]), 1
                yield np.ascontiguousarray(rows.T.astype(cases.DTYPES[dtype])), 0
    for shape, axis in (((0, 3), 1), ((3, 0), 1), ((0,), 0), ((2, 0, 3), 2), ((2, 0, 3), 1)):
        yield np.ones(shape, cases.DTYPES[dtype]), axis


@functools.lru_cache(maxsize=1)
def expected_activations(dtype):
    items = []
    single = cases.computed_in(cases.DTYPES[dtype]) == np.float32
    u, tiny = (2.0**-23, 1e-30) if single else (2.0**-52, 1e-300)
    for x, axis in activation_cases(dtype):
        with np.errstate(all="ignore"):
            row = reference._Softmax(np.moveaxis(reference._wide(x), axis, -1))
            below = np.where(np.isfinite(row.below_top), -row.below_top, 0)
            gap = np.where(row.at_top | ~np.isfinite(row.below_top), np.inf, -row.below_top).min(
                axis=-1, initial=np.inf
            )
            gap = np.where(np.isfinite(gap), gap, 0)
            steps = (8 + 2 * below.max(axis=-1, initial=0))[..., None] * u
            of_log = (4 + gap) * u * row.log1p_s
            errors = {
                "softmax": np.moveaxis(steps * row.p + tiny, -1, axis),
                "log_softmax": np.moveaxis(of_log[..., None] + u * below + tiny, -1, axis),
                "logsumexp": of_log + u * np.abs(row.top) + tiny,
            }
        items.append(
            (x, axis, {name: (getattr(reference, name)(x, axis=axis), error) for name, error in errors.items()})
        )
    return items


@on_every_engine
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_activations(dtype, engine):
    computed, stored = cases.computed_in(cases.DTYPES[dtype]), cases.stored_as(cases.DTYPES[dtype])
    with cases.running_on(*engine):
        for x, axis, answers in expected_activations(dtype):
            label = f"{dtype} {x.shape} strides {x.strides} axis {axis}"
            for name in ("softmax", "log_softmax"):
                function = getattr(fastxent, name)
                y = function(x, axis=axis)
                assert y.dtype == stored and y.strides == np.empty_like(x, stored, "K").strides
                assert_within(y, *answers[name], f"{name} of {label}")
                out = np.full((*x.shape, 2), np.nan).astype(stored)[..., 1]
                assert function(x, axis=axis, out=out) is out
                assert_within(out, *answers[name], f"{name} of {label}, out")
                if x.dtype == stored:
                    copy = np.array(x)
                    function(copy, axis=axis, out=copy)
                    assert_within(copy, *answers[name], f"{name} of {label}, in place")
            value = np.asarray(fastxent.logsumexp(x, axis=axis))
            assert value.dtype == computed
            assert_within(value, *answers["logsumexp"], f"logsumexp of {label}")
            kept = fastxent.logsumexp(x, axis=axis, keepdims=True)
            np.testing.assert_array_equal(kept, np.expand_dims(value, axis))
            out = np.full(value.shape, np.nan, computed)
            assert fastxent.logsumexp(x, axis=axis, out=out) is out
            np.testing.assert_array_equal(out, value)


@functools.lru_cache(maxsize=1)
def expected_gradients(upstream_dtype, dtype):
    items, stored = [], cases.stored_as(cases.DTYPES[dtype])
    u = 2.0**-23 if cases.computed_in(cases.DTYPES[dtype]) == np.float32 else 2.0**-52
    for case in cases.layout_cases(dtype):
        axis, random = case.axis, cases.rng(30, case.scores.size)
        upstream = random.normal(size=case.scores.shape).astype(cases.FLOATS[upstream_dtype])
        g = np.asarray(upstream, np.float64)
        for name, made in (("softmax_grad", cases.as_probs), ("log_softmax_grad", cases.as_log_probs)):
            y = case.scores if stored == np.float64 and name == "softmax_grad" else made(case.scores, axis)
            wide = np.asarray(y).astype(np.float64)
            # a product, a difference, two rounded inputs; the sum is carried in more digits or compensated
            if name == "softmax_grad":
                error = np.abs(wide) * (np.abs(g) + np.abs(wide * g).sum(axis, keepdims=True)) * 6 * u
            else:
                p = np.exp(wide)
                error = (np.abs(g) + p * (6 + np.abs(wide)) * np.abs(g).sum(axis, keepdims=True)) * u + 1e-30
            answer = getattr(reference, name)(y, upstream, axis=axis)
            items.append((name, y, upstream, axis, answer, error, f"{name} {case.name}"))
    return items


@on_every_engine
@pytest.mark.parametrize("dtype", [*cases.FLOATS, "int8", "uint64"])
@pytest.mark.parametrize("upstream_dtype", ["float32", "float64", "bfloat16"])
def test_gradients_of_activations(upstream_dtype, dtype, engine):
    stored = cases.stored_as(cases.DTYPES[dtype])
    with cases.running_on(*engine):
        for name, y, upstream, axis, answer, error, label in expected_gradients(upstream_dtype, dtype):
            got = getattr(fastxent, name)(y, upstream, axis=axis)
            assert got.dtype == stored
            assert_within(got, answer, error, label)
            out = np.full((*y.shape, 2), np.nan).astype(stored)[..., 1]
            assert getattr(fastxent, name)(y, upstream, axis=axis, out=out) is out
            assert_within(out, answer, error, label)


# --- what needs no engine, and the masked reduction


@on_every_engine
@pytest.mark.parametrize("dtype", [*cases.FLOATS, "int16"])
@pytest.mark.parametrize("reduced", cases.REDUCTIONS)
def test_sequence_reduce(reduced, dtype, engine):
    names = [n for n in cases.option_names("probs", (3, 4)) if n.split()[0] in ("mask", "lengths", "sample_weight")]
    with cases.running_on(*engine):
        for i, positions in enumerate([(3, 4), (2, 5, 7), (9,), (1, 1), (0, 4), (4, 0), (200, 33), ()]):
            for j, name in enumerate([None, *names]):
                random = cases.rng(40, i, j)
                if name and (len(positions) < 2 if name == "lengths" else not positions):
                    continue
                losses = cases.lay_out(["C", "reversed", "every other", "byte-swapped"][(i + j) % 4],
                                       cases.scores(random, positions, cases.DTYPES[dtype]))
                options = cases.option(random, name, positions, 1) if name else {}
                if "sample_weight" in options:
                    options["weight"] = options.pop("sample_weight")
                keywords = cases.reduction(reduced) | options | {"empty_value": -1.0}
                got = fastxent.sequence_reduce(losses, **keywords)
                answer = reference.sequence_reduce(losses, **keywords)
                size = np.abs(np.asarray(losses).astype(float))
                u = 2.0**-22 if cases.computed_in(losses.dtype) == np.float32 else 2.0**-51
                error = u * 2 * (size if reduced == "none" else size.max(initial=0))
                if reduced == "none":
                    error = np.where(answer == 0, 0, error)
                elif reduced not in ("sequence_mean", "mean"):
                    error = error * losses.size
                assert_within(got, answer, error, f"{reduced} {dtype} {positions} {name}")


def test_one_hot_and_lengths_to_mask():
    for name in cases.INTEGERS:
        for layout in ("C", "reversed", "every other", "byte-swapped", "unaligned", "read-only"):
            targets = cases.lay_out(layout, cases.class_indices(cases.rng(50), (3, 4), 6, name))
            for dtype in (*cases.FLOATS.values(), np.dtype("i1"), np.dtype("?")):
                got = fastxent.one_hot(targets, 6, dtype=dtype)
                assert got.dtype == dtype
                np.testing.assert_array_equal(got, reference.one_hot(targets, 6, dtype=dtype))
            assert fastxent.one_hot(targets, 6).dtype == reference.one_hot(targets, 6).dtype == np.float32
            for longest in (None, 5, 9):
                got = fastxent.lengths_to_mask(targets, longest)
                assert got.dtype == bool
                np.testing.assert_array_equal(got, reference.lengths_to_mask(targets, longest))
    for targets in ([0, 3], [-1], np.uint64(2**63)):
        with pytest.raises(IndexError):
            fastxent.one_hot(targets, 3)
