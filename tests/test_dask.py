"""Dask arrays: every chunking gives the answer of the whole array; lazily, in the logits' own chunks.

Compared with the oracle within the bounds of a call in memory: those of bounds.py, and `Errors` of test_statistics.py.
"""

import inspect
import itertools
import sys

import cases
import isolated
import numpy as np
import pytest
from bounds import Bounds, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st

import fastxent
from fastxent import reference, reference_scoring

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
import test_statistics  # noqa: E402

import fastxent.dask as chunked  # noqa: E402

TARGET_OPTIONS = ("mask", "lengths", "ignore_index", "shift", "logit_scale", "softcap")
ACTIVATIONS = ("softmax", "log_softmax", "logsumexp")


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("name", chunked.__all__)
def test_signatures(name):
    def essence(function, without=()):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: (p.kind, str(p.default)) for p in parameters if p.name not in without}

    elsewhere = {"out", "out_grad", "return_saved", "num_threads"}
    assert essence(getattr(chunked, name), {"split_every"}) == essence(getattr(fastxent, name), elsewhere)


# --- every chunking


def random_chunks(random, length):
    """A composition of the length."""
    share = random.choice([0.0, 2 / max(length, 2), 1.0 if length < 7 else 4 / length])
    cuts = np.flatnonzero(random.uniform(size=max(length - 1, 0)) < share) + 1
    return tuple(np.diff([0, *cuts.tolist(), length]).tolist())


def check_loss(case, x, split_every=None):
    """Value and gradient of a case whose logits are the Dask array x."""
    upstream = case.upstream(3)
    loss, grad = chunked.cross_entropy_and_grad(
        x, case.targets, axis=case.axis, upstream=upstream, split_every=split_every, **case.options
    )
    assert (grad.chunks, grad.dtype) == (x.chunks, cases.stored_as(x.dtype)), case.name
    reduced = case.options["reduction"] != "none"
    assert loss.dtype == (np.float64 if reduced else cases.computed_in(x.dtype)), case.name
    assert loss.chunks == (() if reduced else tuple(c for i, c in enumerate(x.chunks) if i != case.axis % x.ndim))
    bounds = Bounds(case, upstream)
    got = dask.compute(loss, grad)
    for found, lazy, (expected, error) in zip(got, (loss, grad), (bounds.losses(), bounds.gradient()), strict=True):
        assert (found.dtype, found.shape) == (lazy.dtype, lazy.shape), case.name
        assert_within(found, expected, error, f"{case.name} in {x.chunks}")


def check_statistics(case, x, split_every=None):
    options = {k: v for k, v in case.options.items() if k in TARGET_OPTIONS}
    found = chunked.token_statistics(x, case.targets, axis=case.axis, split_every=split_every, **options)
    expected = reference_scoring.token_statistics(case.scores, case.targets, axis=case.axis, **options)
    scoring = {k: v for k, v in options.items() if k in ("logit_scale", "softcap")}
    errors = test_statistics.Errors(case.scores, axis=case.axis, **scoring)
    for name, lazy, mine, theirs in zip(found._fields, found, dask.compute(*found), expected, strict=True):
        assert (lazy.dtype, lazy.shape) == (mine.dtype, mine.shape), case.name
        label = f"{name} of {case.name} in {x.chunks}"
        if theirs.dtype == np.int64:
            np.testing.assert_array_equal(mine, theirs, label)
        else:
            assert mine.dtype == cases.computed_in(x.dtype)
            assert_within(mine, theirs, np.broadcast_to(errors.of(name, theirs), theirs.shape), label)


def check_activations(case, x, split_every=None):
    single = cases.computed_in(x.dtype) == np.float32
    rows = np.moveaxis(reference._wide(case.scores), case.axis, -1)
    size = np.moveaxis(np.abs(rows).max(axis=-1, keepdims=True, initial=0), -1, case.axis)
    u = (2.0**-23 if single else 2.0**-52) * (8 + 4 * size)
    for name in ACTIVATIONS:
        found = getattr(chunked, name)(x, axis=case.axis, split_every=split_every)
        expected = getattr(reference, name)(case.scores, axis=case.axis)
        got = found.compute()
        assert (found.dtype, found.shape) == (got.dtype, got.shape)
        error = u * expected if name == "softmax" else u if name == "log_softmax" else np.squeeze(u, case.axis)
        error = np.broadcast_to(error + 1e-37, expected.shape)
        assert_within(got, expected, error, f"{name} of {case.name} in {x.chunks}")
        if name != "logsumexp":
            assert found.chunks == x.chunks


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_any_chunking_of_any_case(seed, split_every):
    case = cases.random_case(seed, "logits")
    random = cases.rng(9, seed)
    x = da.from_array(np.asarray(case.scores), chunks=tuple(random_chunks(random, n) for n in case.scores.shape))
    check_loss(case, x, split_every)
    check_activations(case, x, split_every)
    if case.targets.dtype.kind in "iu":
        check_statistics(case, x, split_every)


def compositions(length):
    for cuts in itertools.product((False, True), repeat=length - 1):
        yield tuple(np.diff([0, *(i + 1 for i, cut in enumerate(cuts) if cut), length]).tolist())


@pytest.mark.parametrize("reduction", ["mean", "sequence_mean"])
def test_all_chunkings_of_a_small_array(reduction):
    random = cases.rng(2, 3, 4)
    logits, targets, weight = random.normal(size=(2, 3, 4)), random.integers(0, 4, (2, 3)), random.uniform(size=(2, 3))
    keywords = {"lengths": [3, 2], "shift": 1, "sample_weight": weight, "reduction": reduction,
                "class_weight": [1, 2, 0, 3]}
    expected = fastxent.cross_entropy_and_grad(logits, targets, **keywords)
    for chunks in itertools.product(*map(compositions, logits.shape)):
        got = dask.compute(*chunked.cross_entropy_and_grad(da.from_array(logits, chunks=chunks), targets, **keywords))
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-16, err_msg=str(chunks))


@pytest.mark.parametrize("target", ["int16", "float32"])
def test_every_option(target):
    for i, name in enumerate(cases.option_names("logits", (4, 5))):
        for axis, shape in ((2, (4, 5, 18)), (1, (4, 18, 5))):
            reduced = cases.REDUCTIONS[(i + axis) % len(cases.REDUCTIONS)]
            case = cases.build(cases.rng(i, axis), shape, axis, target=target, options=[name], reduced=reduced)
            check_loss(case, da.from_array(case.scores, chunks=(3, 7, 7)))


@pytest.mark.parametrize("dtype", cases.FLOATS)
def test_every_special_row(dtype):
    rows = np.stack([row for _, row in cases.special_rows(6, cases.FLOATS[dtype])])
    targets = cases.rng(1).integers(0, 6, len(rows))
    for options in ({}, {"z_loss": 0.5}, {"label_smoothing": 0.25}, {"softcap": 3.0}):
        case = cases.Case("logits", rows, targets, -1, options | {"reduction": "none"}, str(options))
        for chunks in ((5, 1), (len(rows), 2), (7, (1, 5))):
            check_loss(case, da.from_array(rows, chunks=chunks))
    soft = cases.Case("logits", rows, cases.class_probabilities(cases.rng(2), rows.shape), -1, {"reduction": "none"})
    check_loss(soft, da.from_array(rows, chunks=(5, 2)))
    check_statistics(case, da.from_array(rows, chunks=(5, 2)))


@pytest.mark.parametrize("chunks", [(300, 2), (1000, 5)])
def test_z_loss_of_the_largest_logits(chunks):
    """2 z_loss logsumexp, or its square, may be beyond float64 where gradient and loss are not."""
    largest, targets = np.finfo(float).max, np.arange(1000) % 5
    x = da.from_array(np.full((1000, 5), largest), chunks=chunks)
    for options in ({}, {"label_smoothing": 0.25}):
        _, grad = dask.compute(*chunked.cross_entropy_and_grad(x, targets, z_loss=1.0, **options))
        np.testing.assert_allclose(grad, 2 / 1000 * largest / 5, rtol=1e-14)
    x = da.from_array(np.full((1000, 5), 2.0**522), chunks=chunks)
    loss = chunked.cross_entropy(x, targets, z_loss=2.0**-40)
    np.testing.assert_allclose(loss.compute(), 2.0**1004, rtol=1e-13)


def test_whole_rows_have_the_bits_of_one_call():
    case = cases.build(cases.rng(4), (6, 5, 33), -1, options=["lengths", "shift 1", "z_loss"], reduced="none")
    x = da.from_array(case.scores, chunks=(2, 3, 33))
    got = dask.compute(*chunked.cross_entropy_and_grad(x, case.targets, **case.options))
    expected = fastxent.cross_entropy_and_grad(case.scores, case.targets, **case.options)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(dask.compute(*chunked.token_statistics(x, case.targets)),
                            fastxent.token_statistics(case.scores, case.targets), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_argmax_of_logits_that_a_soft_cap_makes_equal():
    logits = np.float32([[30, 31, 32, 40, 33], [-np.inf, 50, 60, 55, 60]])
    x = da.from_array(logits, chunks=(2, 1))
    found = chunked.token_statistics(x, [3, 4], softcap=1.0)
    assert [a.compute().tolist() for a in (found.argmax, found.rank)] == [[3, 2], [0, 1]]
    # In whatever chunks: few different logits, most of them far beyond the cap, on either side of the targets.
    random = cases.rng(13)
    logits = random.choice(np.float32([-np.inf, -1, 0, 2, 9, 1e3, 1e4, 2e4, 1e30]), (60, 9))
    targets = random.integers(0, 9, 60)
    expected = fastxent.token_statistics(logits, targets, softcap=0.5)
    for chunks in ((3, 2, 4), (1,) * 9, (8, 1), (1, 8)):
        found = chunked.token_statistics(da.from_array(logits, chunks=(30, chunks)), targets, softcap=0.5)
        np.testing.assert_array_equal(found.argmax, expected.argmax)
        np.testing.assert_array_equal(found.rank, expected.rank)


def test_digits_of_what_is_nearly_certain():
    logits = np.zeros((3, 8), np.float32)
    logits[:, 5] = [40, 60, 80]
    q = np.zeros(logits.shape, np.float32)
    q[:, 5] = 1
    expected = 7 * np.exp(-np.array([40.0, 60, 80]))
    for chunks in ((3, 1), (2, 3), (1, 4)):
        x = da.from_array(logits, chunks=chunks)
        for targets in (np.full(3, 5), da.from_array(q, chunks=chunks)):
            loss, grad = dask.compute(*chunked.cross_entropy_and_grad(x, targets, reduction="none"))
            np.testing.assert_allclose(loss, expected, rtol=2e-5)
            np.testing.assert_allclose(grad[:, 5], -expected, rtol=2e-5)
            np.testing.assert_allclose(grad[:, 0], expected / 7, rtol=2e-5)


# --- what is not valid is not looked at; errors


def test_what_is_not_valid_may_hold_anything():
    case = cases.build(cases.rng(5), (4, 6, 9), -1, options=["mask", "lengths"])
    valid = case.options["mask"] & fastxent.lengths_to_mask(case.options["lengths"], 6)
    logits, targets = case.scores.copy(), case.targets.copy()
    logits[~valid], targets[~valid] = np.nan, 99
    for chunks in ((2, 4, 9), (3, 5, 4)):
        x = da.from_array(logits, chunks=chunks)
        got = dask.compute(*chunked.cross_entropy_and_grad(x, targets, **case.options))
        expected = fastxent.cross_entropy_and_grad(case.scores, case.targets, **case.options)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sequence_mean"])
def test_where_nothing_divides_the_gradient_is_0(reduction):
    logits, targets = np.full((2, 3, 4), np.nan), np.zeros((2, 3), int)
    options = {"class_weight": [0, 1, 1, 1], "reduction": reduction, "empty_value": 5}
    for chunks in ((1, 3, 4), (2, 2, 3)):
        x = da.from_array(logits, chunks=chunks)
        loss, grad = dask.compute(*chunked.cross_entropy_and_grad(x, targets, **options))
        assert loss == 5 and (grad == 0).all()


@pytest.mark.parametrize("chunks", [(2, 2, 5), (3, 4, 2)])
def test_an_index_out_of_range_is_reported_where_it_is(chunks):
    x, targets = da.zeros((4, 6, 5), chunks=chunks), np.zeros((4, 6), np.uint8)
    targets[3, 4] = 5
    for function in (chunked.cross_entropy, chunked.token_statistics):
        for shift, said in ((0, r"position \(3, 4\) is 5, outside \[0, 5\)"),
                            (3, r"position \(3, 1\) \(targets\[3, 4\], shift=3\) is 5")):
            found = function(x, targets, shift=shift)
            with pytest.raises(IndexError, match=said), dask.config.set(scheduler="threads"):
                dask.compute(found)
        dask.compute(function(x, targets, ignore_index=5))


def test_arguments_are_judged_at_once():
    x = da.zeros((4, 6, 5), chunks=(2, 3, 2))
    t = np.zeros((4, 6), int)
    for error, said, keywords in (
        (ValueError, "label_smoothing", {"label_smoothing": 2}),
        (ValueError, "reduction must be one of", {"reduction": "average"}),
        (ValueError, "normalizer is for", {"reduction": "none", "normalizer": 2}),
        (ValueError, "axis 3", {"axis": 3}),
        (ValueError, r"lengths must have one for each sequence, \(4,\)", {"lengths": [1, 2]}),
        (ValueError, "lengths must be from 0 to 6, got 7", {"lengths": [1, 2, 7, 0]}),
        (TypeError, "sample_weight", {"mask": np.ones((4, 6))}),
        (ValueError, r"mask must broadcast to the positions' shape, \(4, 6\)", {"mask": np.ones(4, bool)}),
        (ValueError, "class_weight", {"class_weight": np.ones(4)}),
        (TypeError, "shift", {"shift": 0.5}),
        (TypeError, "ignore_index", {"ignore_index": 0.5}),
    ):
        with pytest.raises(error, match=said):
            chunked.cross_entropy(x, t, **keywords)
    with pytest.raises(ValueError, match="one_hot"):
        chunked.cross_entropy(x, np.zeros(x.shape, int))
    with pytest.raises(ValueError, match="without the class axis"):
        chunked.cross_entropy(x, t[:3])
    with pytest.raises(TypeError, match="bool"):
        chunked.cross_entropy(x, t > 0)
    with pytest.raises(TypeError, match="class indices"):
        chunked.token_statistics(x, np.zeros(x.shape))
    with pytest.raises(ValueError, match="in other chunks than the logits"):
        chunked.cross_entropy(x, da.zeros(x.shape, chunks=(4, 6, 5)))
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        chunked.cross_entropy(x[x[:, 0, 0] == 0], t)
    with pytest.raises(ValueError, match="have no classes"):
        chunked.cross_entropy(x[..., :0], t)
    with pytest.raises(ValueError, match="add a batch axis"):
        chunked.cross_entropy(x[0], t[0], shift=1)
    with pytest.raises(ValueError, match="lengths must be from 0 to 6, got 7"):
        chunked.cross_entropy(x, t, lengths=da.full(4, 7)).compute()


# --- lazy, and nothing moved behind the user's back


def counting_source(logits, chunks, seen):
    def load(block):
        seen.append(block.shape)
        return block

    return da.from_array(logits, chunks=chunks, name=False).map_blocks(
        load, dtype=logits.dtype, meta=np.empty((0,) * logits.ndim, logits.dtype)
    )


@pytest.mark.parametrize("chunks", [(2, 3, 10), (4, 2, 3)])
def test_each_chunk_is_made_once_and_stays_as_it_is(chunks):
    case = cases.build(cases.rng(6), (4, 6, 10), -1, options=["lengths", "shift 1", "class_weight"])
    seen = []
    x = counting_source(case.scores, chunks, seen)
    loss, grad = chunked.cross_entropy_and_grad(x, case.targets, **case.options)
    statistics = chunked.token_statistics(x, case.targets, shift=1)
    activations = [getattr(chunked, name)(x) for name in ACTIVATIONS]
    assert not seen  # all of this is lazy
    shapes = sorted(tuple(map(len, map(range, s))) for s in itertools.product(*x.chunks))
    dask.compute(loss)
    assert sorted(seen) == shapes
    for together in ((loss, grad), tuple(statistics), tuple(activations)):
        seen.clear()
        dask.compute(*together, optimize_graph=True)
        assert sorted(seen) == shapes
    for found in (loss, grad, *statistics):
        moved = [name for name in found.dask.layers if "rechunk" in name]
        for name in moved:  # of the targets' side alone
            assert all(len(key) <= 3 for key in found.dask.layers[name] if isinstance(key, tuple)), name


def test_targets_come_in_chunks_of_their_own():
    names = ["mask", "sample_weight", "lengths", "class_weight"]
    case = cases.build(cases.rng(7), (5, 8, 6), -1, "float64", options=names)
    expected = fastxent.cross_entropy_and_grad(case.scores, case.targets, shift=3, **case.options)
    options = {k: da.from_array(v, chunks=2) if np.ndim(v) else v for k, v in case.options.items()}
    x = da.from_array(case.scores, chunks=(3, 3, 4))
    targets = da.from_array(case.targets, chunks=(1, 8))
    got = dask.compute(*chunked.cross_entropy_and_grad(x, targets, shift=3, **options))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-13)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12, atol=1e-16)
    upstream = np.arange(40.0).reshape(5, 8)
    expected = fastxent.cross_entropy_and_grad(case.scores, case.targets, reduction="none", upstream=upstream)
    for chunks in ((5, 8), (2, 3), (1, 8)):
        given = {"reduction": "none", "upstream": da.from_array(upstream, chunks=chunks)}
        got = dask.compute(*chunked.cross_entropy_and_grad(x, targets, **given))
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-12, atol=1e-16)


def test_numpy_arrays_and_lists_just_work():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    assert chunked.cross_entropy(logits, [0, 1]).compute() == pytest.approx(fastxent.cross_entropy(logits, [0, 1]))
    assert chunked.cross_entropy(logits[0].tolist(), 0).compute() == pytest.approx(np.log(2))
    one = da.from_array(logits[0], chunks=1)
    loss, grad = dask.compute(*chunked.cross_entropy_and_grad(one, 0, reduction="none"))
    assert loss.shape == () and loss == pytest.approx(np.log(2))
    np.testing.assert_allclose(grad, [-0.5, 0.25, 0.25])
    assert [a.shape for a in dask.compute(*chunked.token_statistics(one, 0))] == [()] * 5
    assert chunked.logsumexp(one, keepdims=True).compute().shape == (1,)
    assert chunked.logsumexp(da.from_array(logits, chunks=1), axis=0, keepdims=True).compute().shape == (1, 3)


def test_empty_batches():
    for chunks in ((1, 3, 4), (1, 3, 2)):
        x, t = da.zeros((0, 3, 4), chunks=chunks), np.zeros((0, 3), int)
        assert np.isnan(chunked.cross_entropy(x, t).compute())
        assert chunked.cross_entropy(x, t, reduction="batch_mean", empty_value=2).compute() == 2
        assert chunked.cross_entropy(x, t, reduction="sum").compute() == 0
        loss, grad = dask.compute(*chunked.cross_entropy_and_grad(x, t, reduction="none"))
        assert (loss.shape, grad.shape) == ((0, 3), (0, 3, 4))


def test_chunks_of_nothing():
    case = cases.build(cases.rng(10), (4, 5, 6), -1, options=["lengths", "label_smoothing"])
    x = da.from_array(case.scores, chunks=((4,), (0, 3, 2), (3, 0, 3)))
    check_loss(case, x)
    case.options.pop("label_smoothing")
    check_loss(case, x)
    check_statistics(case, x)
    check_activations(case, x)


def test_the_threaded_scheduler():
    case = cases.build(cases.rng(8), (40, 30, 64), -1, options=["lengths"], reduced="sequence_mean")
    expected = fastxent.cross_entropy_and_grad(case.scores, case.targets, **case.options)
    for chunks in ((4, 10, 64), (8, 10, 16)):
        lazy = chunked.cross_entropy_and_grad(da.from_array(case.scores, chunks=chunks), case.targets, **case.options)
        got, again = (dask.compute(*lazy, scheduler="threads", num_workers=4) for _ in range(2))
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-9)
        assert got[0] == again[0] and (got[1] == again[1]).all()  # merges have an order


ONE_THREAD = """
import dask, dask.array as da, fastxent.dask as chunked
logits, targets = large(2000)
for chunks in (1000, 1000), (1000, 500):
    x = da.from_array(logits, chunks=chunks)
    found = [chunked.cross_entropy(x, targets), chunked.token_statistics(x, targets)]
    found += [chunked.cross_entropy_and_grad(x, targets, label_smoothing=s) for s in (0.0, 0.1)]
    found += [getattr(chunked, name)(x) for name in ("softmax", "log_softmax", "logsumexp")]
    dask.compute(found, scheduler="threads")
    assert pool() == 0, pool()
with_threads(2, (logits, targets))
assert pool() == 1, pool()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs linux")
def test_kernels_use_one_thread():
    isolated.run(ONE_THREAD, FASTXENT_NUM_THREADS="2")


def test_xarray_maps_the_engine_over_blocks_with_all_classes():
    xarray = pytest.importorskip("xarray")
    case = cases.build(cases.rng(9), (6, 5, 7), -1)
    x = xarray.DataArray(case.scores, dims=("line", "time", "class")).chunk({"line": 2, "time": 5, "class": 7})
    t = xarray.DataArray(case.targets, dims=("line", "time")).chunk({"line": 2, "time": 5})
    losses = xarray.apply_ufunc(
        fastxent.cross_entropy, x, t, kwargs={"reduction": "none", "num_threads": 1}, input_core_dims=[["class"], []],
        dask="parallelized", output_dtypes=[np.float32],
    )
    expected = fastxent.cross_entropy(case.scores, case.targets, reduction="none")
    np.testing.assert_array_equal(losses.compute(), expected)
    assert float(chunked.cross_entropy(x.chunk({"class": 3}), t).compute()) == pytest.approx(expected.mean(), rel=1e-6)
