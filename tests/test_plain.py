"""The commonest call of a loss, which the compiled engine does without a plan: as with one, to the bit."""

import inspect
import itertools

import cases
import ml_dtypes
import numpy as np
import pytest

import fastxent
from fastxent import _arguments, _backends

LOSSES = (fastxent.cross_entropy, fastxent.cross_entropy_and_grad)
RANDOM = cases.rng(20)
FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
SHAPES = [((5,), 0), ((7, 9), -1), ((3, 4, 6), 1), ((4, 300), 1), ((0, 5), -1)]
INTEGERS = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]


@pytest.fixture(autouse=True)
def native():
    if fastxent.get_backend() != "native":
        pytest.skip("an engine without a way of its own for plain calls")


@pytest.fixture
def plain(monkeypatch):
    """Whether each call since was recognised."""
    found, ask = [], _backends.plain

    def recording(given, threads):
        result = ask(given, threads)
        found.append(result is not None)
        return result

    fastxent.get_num_threads()
    fastxent.cross_entropy(np.zeros((1, 2), ml_dtypes.bfloat16), [0])  # known from the first call on
    monkeypatch.setattr(_backends, "plain", recording)
    return found


def with_plan(function, *arrays, **given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "plain", lambda given, threads: None)
        return function(*arrays, **given)


def equal(one, other):
    if not isinstance(one, tuple):
        return type(one) is type(other) is np.float64 and one.tobytes() == other.tobytes()
    (loss, grad), (other_loss, other_grad) = one, other
    same = grad.dtype == other_grad.dtype and grad.strides == other_grad.strides
    return equal(loss, other_loss) and same and grad.tobytes() == other_grad.tobytes()


def logits_and_targets(dtype=np.float32, kind=np.int64, shape=(7, 9), axis=-1):
    x = RANDOM.normal(size=shape).astype(dtype)
    positions = np.delete(shape, axis)
    return x, RANDOM.integers(0, shape[axis], positions).astype(kind)


@pytest.mark.parametrize("function", LOSSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_as_with_a_plan(function, dtype, shape, axis, plain):
    x, t = logits_and_targets(dtype, shape=shape, axis=axis)
    for reduction, smoothing, ignored in itertools.product(("mean", "sum"), (0.0, 0.25), (-100, 1, None)):
        given = {"axis": axis, "reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
        assert equal(function(x, t, **given), with_plan(function, x, t, **given)), given
    assert any(plain)  # all that have a position that counts


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_ignored_index_is_a_number(kind, plain):
    x, t = logits_and_targets(kind=kind)
    t[2] = np.array(156).astype(kind)  # what -100 would be, were it wrapped; of int8 it is -100
    for ignored in (-100, 156, 3, 2**63, -(2**63), 2**70):
        found = []
        for ask in (lambda f, *a, **k: f(*a, **k), with_plan):
            try:
                found.append(ask(fastxent.cross_entropy_and_grad, x, t, ignore_index=ignored))
            except IndexError as error:
                found.append(str(error))
        assert found[0] == found[1] if isinstance(found[0], str) else equal(*found), ignored


def test_recognised(plain):
    x, t = logits_and_targets()
    for given in ({}, {"num_threads": 1}, {"empty_value": 0.0}, {"axis": 1}):
        fastxent.cross_entropy(x, t, **given)
    fastxent.cross_entropy(x[::2, ::-1], t[::2])
    assert plain == [True] * 5


@pytest.mark.parametrize("function", LOSSES, ids=lambda f: f.__name__)
def test_the_rest_goes_the_long_way(function, plain):
    x, t = logits_and_targets()
    for given in (
        {"class_weight": np.ones(9)}, {"sample_weight": 1}, {"mask": True}, {"z_loss": 0.5}, {"logit_scale": 2.0},
        {"softcap": 3.0}, {"normalizer": 2.0}, {"reduction": "none"}, {"reduction": "batch_mean"}, {"shift": 0.0},
        {"label_smoothing": 2.0}, {"z_loss": -1.0}, {"empty_value": "x"}, {"num_threads": 0}, {"num_threads": True},
        {"reduction": "Mean"}, {"axis": 2}, {"axis": 1.0}, {"ignore_index": 1.5}, {"logit_scale": 0.0}, {"mask": 1.0},
    ):
        found = []
        for ask in (lambda f, *a, **k: f(*a, **k), with_plan):
            try:
                ask(function, x, t, **given)
                found.append(None)
            except (TypeError, ValueError) as error:
                found.append((type(error), str(error)))
        assert found[0] == found[1], given
    for arrays in ((x.tolist(), t), (x, t.tolist()), (x.astype(">f4"), t), (x, t.astype(">i8")), (x.astype(int), t)):
        assert equal(function(*arrays), with_plan(function, *arrays))
    assert not any(plain)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_gradient_into_a_given_array(dtype, shape, axis, plain):
    x, t = logits_and_targets(dtype, shape=shape, axis=axis)
    for reduction in ("mean", "sum"):
        given = {"axis": axis, "reduction": reduction}
        expected = with_plan(fastxent.cross_entropy_and_grad, x, t, **given)
        for out in (np.full_like(x, 7), x.copy()):
            logits = out if (out == x).all() else x
            found = fastxent.cross_entropy_and_grad(logits, t, out_grad=out, **given)
            assert found[1] is out
            assert equal(found, expected), given
    assert any(plain)


def test_given_arrays_that_are_looked_at_twice(plain):
    x, t = logits_and_targets(shape=(6, 8))
    memory = np.zeros(200, np.float32)
    memory[:48] = x.ravel()
    for logits, out in (
        (x, np.empty_like(x, order="F")),
        (x, np.empty((6, 16), np.float32)[:, ::2]),
        (np.asfortranarray(x), np.empty_like(x)),
        (memory[:48].reshape(6, 8), memory[47:95].reshape(6, 8)),
        (memory[:48].reshape(6, 8), memory[:48].reshape(6, 8)),
        (x, np.empty((6, 8), np.float64)), (x, np.empty((8, 6), np.float32)), (x, np.empty((6, 8), ">f4")),
        (x, t), (x, x.tolist()), (x, np.frombuffer(bytes(4 * 48), np.float32).reshape(6, 8)),
    ):
        found, start = [], memory.copy()
        for ask in (lambda f, *a, **k: f(*a, **k), with_plan):
            memory[:] = start
            try:
                loss, grad = ask(fastxent.cross_entropy_and_grad, logits, t, out_grad=out)
                found.append((loss.tobytes(), grad is out, grad.tobytes()))
            except (TypeError, ValueError) as error:
                found.append((type(error), str(error)))
        assert found[0] == found[1]
    indices = memory.view(np.int64)
    indices[50:56] = t
    with pytest.raises(ValueError, match="out_grad overlaps targets"):
        fastxent.cross_entropy_and_grad(x, indices[50:56], out_grad=memory[64:112].reshape(6, 8))
    assert not any(plain)
    fastxent.cross_entropy_and_grad(x, indices[50:56], out_grad=memory[:48].reshape(6, 8))
    assert plain[-1]


@pytest.mark.parametrize("function", LOSSES, ids=lambda f: f.__name__)
def test_bad_index_and_nothing_valid(function):
    x, t = logits_and_targets(shape=(5000, 3))
    assert equal(function(x, np.full(5000, -100)), with_plan(function, x, np.full(5000, -100)))
    for bad, n in itertools.product((3, -1), (5, 5000)):  # counted, and found in blocks
        t[4] = bad
        with pytest.raises(IndexError, match=rf"the target at position \(4,\) is {bad}, outside \[0, 3\)"):
            function(x[:n], t[:n])


def test_arguments_are_those_of_a_plan():
    theirs = pytest.importorskip("fastxent._native").LOSS_ARGUMENTS
    assert tuple(inspect.signature(_arguments.loss_plan).parameters) == theirs
