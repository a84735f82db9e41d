"""What is taken, where results go and what they are: array-likes of all kinds, numbers, outputs, dtypes, empty ones."""

import warnings

import cases
import ml_dtypes
import numpy as np
import pytest

import fastxent
from fastxent import _arguments, _options

same = np.testing.assert_array_equal
B, T, C = 3, 4, 5
RANDOM = cases.rng(4712)
LOGITS = RANDOM.normal(size=(B, T, C)).astype("f4")
TARGETS = RANDOM.integers(0, C, (B, T))


# --- outputs that share memory

OVERLAPS = {
    "shifted": lambda buffer, n: (buffer[:n], buffer[1 : n + 1]),
    "reversed": lambda buffer, n: (buffer[:n], buffer[:n][::-1]),
    "interleaved and touching": lambda buffer, n: (buffer[: 2 * n : 2], buffer[: 3 * n : 3]),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_outputs_that_overlap_inputs(overlap):
    buffer = np.zeros((B, T, 3 * C + 1), "f4")
    logits, out = OVERLAPS[overlap](np.moveaxis(buffer, -1, 0), C)
    logits, out = np.moveaxis(logits, 0, -1), np.moveaxis(out, 0, -1)
    for function in (fastxent.cross_entropy_and_grad, fastxent.cross_entropy_grad, fastxent.nll_loss_and_grad):
        with pytest.raises(ValueError, match=r"^out_grad overlaps (logits|log_probs) in memory; it may only be ex"):
            function(logits, TARGETS, out_grad=out)
    with pytest.raises(ValueError, match=r"^out_softmax overlaps logits in memory"):
        fastxent.cross_entropy_and_softmax(logits, TARGETS, out_softmax=out)
    with pytest.raises(ValueError, match=r"^out overlaps x in memory"):
        fastxent.softmax(logits, out=out)
    with pytest.raises(ValueError, match=r"^out overlaps upstream in memory"):
        fastxent.softmax_grad(LOGITS, logits, out=out)


def test_outputs_that_overlap_other_arguments():
    f8 = LOGITS.astype("f8")
    none = {"reduction": "none"}
    weight = np.ones((B, T))
    with pytest.raises(ValueError, match=r"^out overlaps sample_weight"):
        fastxent.cross_entropy(f8, TARGETS, sample_weight=weight, out=weight, **none)
    with pytest.raises(ValueError, match=r"^out overlaps upstream"):
        fastxent.cross_entropy_and_grad(f8, TARGETS, upstream=weight, out=weight, **none)
    with pytest.raises(ValueError, match=r"^out overlaps targets"):
        fastxent.cross_entropy(f8, TARGETS, out=TARGETS.view("f8"), **none)
    with pytest.raises(ValueError, match=r"^out overlaps logits"):
        fastxent.cross_entropy(f8, TARGETS, out=f8[..., 0], **none)
    probabilities = np.ones((B, T, C))
    with pytest.raises(ValueError, match="out_grad overlaps targets"):
        fastxent.cross_entropy_and_grad(f8, probabilities, out_grad=probabilities)
    with pytest.raises(ValueError, match="out_grad overlaps targets"):
        fastxent.cross_entropy_and_grad(f8, f8, out_grad=f8)
    with pytest.raises(ValueError, match=r"^out_grad overlaps out "):
        both = np.empty((B, T, C))
        fastxent.cross_entropy_and_grad(f8, TARGETS, out=both[..., 0], out_grad=both, **none)
    with pytest.raises(ValueError, match=r"^out_grad overlaps saved"):
        buffer = np.empty((B, T, C + 2))
        saved = buffer.ravel()[: B * T * 2].reshape(B, T, 2)
        fastxent.cross_entropy_grad(f8, TARGETS, saved=saved, out_grad=buffer[..., :C])


def test_neighbours_in_memory_do_not_overlap():
    """Interleaved, and none of it shared: bounds alone cannot tell."""
    buffer = np.zeros((B, T, 2 * C), "f4")
    buffer[..., ::2] = LOGITS
    loss, gradient = fastxent.cross_entropy_and_grad(LOGITS, TARGETS)
    got = fastxent.cross_entropy_and_grad(buffer[..., ::2], TARGETS, out_grad=buffer[..., 1::2])
    assert got[0] == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(buffer[..., 1::2], gradient, rtol=1e-6)
    same(buffer[..., ::2], LOGITS)


def test_outputs_that_overlap_themselves():
    strided = np.lib.stride_tricks.as_strided
    memory = np.zeros(400, "f4")
    for shape, strides in (
        ((B, T, C), (0, 20, 4)),
        ((B, T, C), (80, 16, 4)),
        ((B, T, C), (80, 20, 0)),
        ((B, T, C), (12, 4, 48)),
    ):
        with pytest.raises(ValueError, match=r"^out overlaps itself.*strides"):
            fastxent.softmax(LOGITS, out=strided(memory, shape, strides))
    weave = strided(memory, (2, 3), (12, 8))  # places 0 2 4 3 5 7: interleaved, each by itself
    x = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0]], "f4")
    same(fastxent.softmax(x, out=weave), fastxent.softmax(x))
    for shape, strides in (((1, 3), (0, 4)), ((1, 1), (0, 0)), ((0, 3), (0, 0))):
        out = strided(memory, shape, strides)
        assert fastxent.softmax(np.zeros(shape, "f4"), out=out) is out


# --- what is taken


def test_torch_tensors_share_their_memory():
    torch = pytest.importorskip("torch")
    logits, targets = torch.from_numpy(LOGITS.copy()), torch.from_numpy(TARGETS.copy())
    expected = fastxent.cross_entropy(LOGITS, TARGETS)
    assert fastxent.cross_entropy(logits, targets) == expected
    assert fastxent.cross_entropy(logits.transpose(1, 2), targets, axis=1) == pytest.approx(expected, rel=1e-6)
    mask = torch.ones(B, T, dtype=torch.bool)
    lengths = torch.full((B,), T, dtype=torch.int32)
    weight = torch.ones(B, T)
    options = {"mask": mask, "lengths": lengths, "sample_weight": weight, "class_weight": torch.ones(C)}
    assert fastxent.cross_entropy(logits, targets, **options) == pytest.approx(expected, rel=1e-6)
    plan = _arguments.activation_plan(_options.OP_SOFTMAX, logits, -1, None, None)
    assert np.shares_memory(plan.logits, logits.numpy())
    _, gradient = fastxent.cross_entropy_and_grad(logits.double(), targets, upstream=torch.tensor(2.0))
    np.testing.assert_allclose(gradient, 2 * fastxent.cross_entropy_grad(LOGITS.astype(float), TARGETS), rtol=1e-12)
    half = logits.half()
    assert fastxent.softmax(half).dtype == np.float16
    negated = torch.conj(torch.complex(torch.zeros(LOGITS.shape), logits)).imag
    assert negated.is_neg()
    assert fastxent.cross_entropy(negated, targets) == fastxent.cross_entropy(-LOGITS, TARGETS)


def test_jax_arrays_are_taken():
    jnp = pytest.importorskip("jax.numpy")
    expected = fastxent.cross_entropy(LOGITS, TARGETS)
    assert fastxent.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TARGETS)) == expected
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    assert fastxent.softmax(logits).dtype == ml_dtypes.bfloat16
    assert fastxent.cross_entropy(logits, TARGETS) == fastxent.cross_entropy(np.asarray(logits), TARGETS)


class Exporter:
    """An array by way of DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class ByArray:
    """An array by way of __array__ alone."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Subclass(np.ndarray):
    """An ndarray with a mind of its own."""

    def __array_finalize__(self, other):
        pass

    def __array_function__(self, *_):
        raise AssertionError("not to be asked")

    def __getitem__(self, _):
        raise AssertionError("not to be asked")


@pytest.mark.parametrize(
    "kind",
    [list, np.ndarray.tolist, memoryview, Exporter, ByArray, np.ma.array, lambda a: a.view(Subclass)],
    ids=["list of arrays", "lists", "memoryview", "DLPack", "__array__", "masked array without masked", "subclass"],
)
def test_array_likes(kind):
    logits = LOGITS.astype("f8")
    expected_loss, expected = fastxent.cross_entropy_and_grad(logits, TARGETS, sample_weight=np.ones((B, T)))
    loss, gradient = fastxent.cross_entropy_and_grad(
        kind(logits), kind(TARGETS), sample_weight=kind(np.ones((B, T))), lengths=kind(np.full(B, T)),
        mask=kind(np.ones((B, T), bool)), class_weight=kind(np.ones(C)),
    )
    assert type(gradient) is np.ndarray and type(loss) is np.float64
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    np.testing.assert_allclose(gradient, expected, rtol=1e-13, atol=1e-16)


def test_memory_maps(tmp_path):
    path = tmp_path / "logits"
    LOGITS.tofile(path)
    mapped = np.memmap(path, "f4", "r+", shape=LOGITS.shape)
    loss, gradient = fastxent.cross_entropy_and_grad(LOGITS, TARGETS)
    result = fastxent.cross_entropy_and_grad(mapped, TARGETS)
    assert type(result[1]) is np.ndarray and result[0] == loss
    result = fastxent.cross_entropy_and_grad(mapped, TARGETS, out_grad=mapped)
    assert result[1] is mapped
    same(mapped, gradient)
    with pytest.raises(ValueError, match="read-only"):
        fastxent.softmax(LOGITS, out=np.memmap(path, "f4", "r", shape=LOGITS.shape))


@pytest.mark.parametrize("index", cases.INTEGERS)
@pytest.mark.parametrize("order", "<>")
def test_targets_of_every_integer_type(index, order):
    expected = fastxent.cross_entropy(LOGITS, TARGETS)
    targets = TARGETS.astype(np.dtype(index).newbyteorder(order))
    assert fastxent.cross_entropy(LOGITS, targets) == expected
    unaligned = np.zeros(targets.nbytes + 1, "u1")[1:].view(targets.dtype).reshape(B, T)
    unaligned[...] = targets
    assert fastxent.cross_entropy(LOGITS, unaligned) == expected
    assert fastxent.cross_entropy(LOGITS[:, ::-1], targets[:, ::-1]) == pytest.approx(expected, rel=1e-6)


def test_ignore_index_is_compared_as_a_number():
    logits = np.zeros((4, 256), "f4")
    for dtype, value in (("u1", 156), ("u2", 65436), ("u4", 2**32 - 100), ("u8", 2**64 - 100), ("i1", -100)):
        targets = np.zeros(4, dtype)
        targets[1] = value
        ignored = np.dtype(dtype).kind == "i"
        if value < 256:
            losses = fastxent.cross_entropy(logits, targets, reduction="none")
            assert (losses[1] == 0) == ignored
        else:
            with pytest.raises(IndexError, match=str(value)):
                fastxent.cross_entropy(logits, targets)
        losses = fastxent.cross_entropy(logits, targets, ignore_index=value, reduction="none")
        assert losses[1] == 0 and losses[0] > 5
        assert fastxent.cross_entropy(logits, targets, ignore_index=np.asarray(value, dtype)[()]) > 5
    for never in (256, -200, 2**70, -(2**70), None):
        assert fastxent.cross_entropy(logits, np.zeros(4, "u1"), ignore_index=never) > 5
    assert np.isnan(fastxent.cross_entropy(logits, np.zeros(4, "i4"), ignore_index=0))


def test_numbers_of_other_types():
    options = {"label_smoothing": 0.25, "z_loss": 0.5, "logit_scale": 2.0, "softcap": 3.0, "normalizer": 4.0}
    expected = fastxent.cross_entropy(LOGITS, TARGETS, **options)
    for kind in (np.float16, np.float64, ml_dtypes.bfloat16, np.asarray):
        other = {name: kind(value) for name, value in options.items()}
        assert fastxent.cross_entropy(LOGITS, TARGETS, **other) == expected
    torch = pytest.importorskip("torch")
    assert fastxent.cross_entropy(LOGITS, TARGETS, **{n: torch.tensor(v) for n, v in options.items()}) == expected
    whole = {"axis": np.int8(2), "shift": np.uint8(1), "num_threads": np.int64(2), "ignore_index": np.int16(-1)}
    assert fastxent.cross_entropy(LOGITS, TARGETS, **whole) == fastxent.cross_entropy(LOGITS, TARGETS, shift=1)
    assert fastxent.cross_entropy(LOGITS, TARGETS, label_smoothing=1, logit_scale=2, z_loss=0) > 0


def test_empty_lists():
    assert fastxent.cross_entropy(np.zeros((0, 3)), [], reduction="none").shape == (0,)
    assert fastxent.cross_entropy(np.zeros((0, 3)), [], mask=[], sample_weight=[], reduction="sum") == 0
    assert fastxent.lengths_to_mask([]).shape == (0, 0)
    assert fastxent.one_hot([], 3).shape == (0, 3)
    assert np.isnan(fastxent.sequence_reduce([]))


def test_masks_of_integers():
    mask = RANDOM.integers(0, 2, (B, T))
    expected = fastxent.cross_entropy(LOGITS, TARGETS, mask=mask.astype(bool))
    for dtype in cases.INTEGERS:
        assert fastxent.cross_entropy(LOGITS, TARGETS, mask=mask.astype(dtype) * 100) == expected
    assert fastxent.cross_entropy(LOGITS, TARGETS, mask=(mask * 256).astype("i2")) == expected
    row = fastxent.cross_entropy(LOGITS, TARGETS, mask=np.broadcast_to(mask[0], (B, T)))
    assert fastxent.cross_entropy(LOGITS, TARGETS, mask=mask[0]) == row
    assert fastxent.cross_entropy(LOGITS, TARGETS, mask=mask[:1]) == row
    assert np.isnan(fastxent.cross_entropy(LOGITS, TARGETS, mask=False))
    single = LOGITS[0, 0], TARGETS[0, 0]
    for one in (1, np.array(1), np.int8(1), True, np.True_):
        assert fastxent.cross_entropy(*single, mask=one) == fastxent.cross_entropy(*single)
        assert fastxent.cross_entropy(LOGITS, TARGETS, mask=one) == fastxent.cross_entropy(LOGITS, TARGETS)
        assert fastxent.sequence_reduce(2.0, mask=one, weight=one) == 2.0


@pytest.mark.parametrize("shift", [T, T + 1, 2**31, 2**63, 10**30])
def test_a_shift_past_the_end_leaves_nothing(shift):
    loss, gradient = fastxent.cross_entropy_and_grad(LOGITS, TARGETS, shift=shift, empty_value=-2.0)
    assert loss == -2.0 and not gradient.any()
    assert not fastxent.cross_entropy(LOGITS, TARGETS, shift=shift, reduction="none").any()


# --- results


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_types_and_layouts_of_results(dtype):
    dtype = cases.DTYPES[dtype]
    logits = np.asfortranarray(np.abs(LOGITS * 10)).astype(dtype)
    plain = fastxent.cross_entropy_and_grad(np.asarray(logits, order="C"), TARGETS)
    for x in (logits, logits.astype(dtype.newbyteorder("S"))):
        loss, gradient = fastxent.cross_entropy_and_grad(x, TARGETS)
        assert type(loss) is np.float64 and loss == pytest.approx(plain[0], rel=1e-6)
        assert type(gradient) is np.ndarray
        assert gradient.dtype == cases.stored_as(dtype) and gradient.dtype.isnative
        assert gradient.strides == np.empty_like(x, cases.stored_as(dtype), order="K").strides
        losses, saved = fastxent.cross_entropy(x, TARGETS, reduction="none", return_saved=True)
        assert losses.dtype == saved.dtype == cases.computed_in(dtype)
        assert (losses.shape, saved.shape) == ((B, T), (B, T, 2))
        assert fastxent.softmax(x).dtype == fastxent.log_softmax(x).dtype == cases.stored_as(dtype)
        assert fastxent.logsumexp(x).dtype == cases.computed_in(dtype)
        assert fastxent.logsumexp(x, axis=1, keepdims=True).shape == (B, 1, C)
        assert fastxent.sequence_reduce(x[..., 0], reduction="none").dtype == cases.computed_in(dtype)


def test_a_single_position():
    losses = fastxent.cross_entropy(LOGITS[0, 0], TARGETS[0, 0], reduction="none")
    assert isinstance(losses, np.ndarray) and losses.shape == ()
    out = np.empty((), "f4")
    assert fastxent.cross_entropy(LOGITS[0, 0], 2, reduction="none", out=out) is out
    assert isinstance(fastxent.logsumexp(LOGITS[0, 0]), np.ndarray)
    for reduction in ("mean", "sum", "sequence_mean", "batch_mean"):
        assert fastxent.cross_entropy(LOGITS[0, 0], 2, reduction=reduction) == pytest.approx(float(out), rel=1e-6)


def test_divisors_of_zero():
    nan_row = np.full((B, T, C), np.nan, "f4")
    for options in (
        {"class_weight": np.zeros(C)},
        {"normalizer": 0},
        {"normalizer": 0, "reduction": "sum"},
        {"mask": False},
        {"class_weight": np.zeros(C), "reduction": "sequence_mean"},
    ):
        loss, gradient = fastxent.cross_entropy_and_grad(nan_row, TARGETS, empty_value=7.0, **options)
        assert loss == 7.0 and not gradient.any()
        assert fastxent.cross_entropy(nan_row, TARGETS, empty_value=7, **options) == 7.0
        out = np.full(nan_row.shape, 3.0, "f4")
        assert fastxent.cross_entropy_grad(LOGITS, TARGETS, out_grad=out, upstream=np.inf, **options) is out
        assert not out.any()
    # A sequence that does not count adds nothing, not even a NaN.
    logits, weight = LOGITS.copy(), np.ones((B, T))
    logits[1], weight[1] = np.nan, [1, -1, 1, -1]
    loss, gradient = fastxent.cross_entropy_and_grad(logits, TARGETS, sample_weight=weight, reduction="sequence_mean")
    kept = [0, 2]
    assert loss == fastxent.cross_entropy(logits[kept], TARGETS[kept], reduction="sequence_mean")
    assert not gradient[1].any() and np.isfinite(gradient).all()


def test_sequences_without_time():
    empty, targets = np.zeros((B, 0, C), "f4"), np.zeros((B, 0), int)
    assert fastxent.cross_entropy(empty, targets, reduction="batch_mean") == 0
    assert fastxent.cross_entropy(empty, targets, reduction="sequence_mean", empty_value=2) == 2
    assert fastxent.cross_entropy(empty, targets, lengths=[0] * B, shift=2, empty_value=2) == 2


def test_activations_without_classes():
    x = np.zeros((B, 0), "f4")
    assert fastxent.softmax(x).shape == fastxent.log_softmax(x).shape == fastxent.softmax_grad(x, x).shape == (B, 0)
    same(fastxent.logsumexp(x), np.full(B, -np.inf, "f4"))
    same(fastxent.logsumexp(x, keepdims=True), np.full((B, 1), -np.inf, "f4"))
    assert fastxent.logsumexp(np.zeros((0, B)), axis=1).shape == (0,)


def test_no_warnings_and_no_changes():
    """Numbers that overflow or are not there are results, not warnings; and what is read stays as it is."""
    logits = np.array([[[np.inf, 1], [np.nan, 1]], [[-np.inf, -np.inf], [3e38, -3e38]]], "f4")
    targets, weight = np.array([[0, 1], [0, 1]]), np.array([[1.0, 2.0], [0.5, 1e-320]])
    before = logits.tobytes(), targets.tobytes(), weight.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reduction in _options.REDUCTIONS:
            fastxent.cross_entropy_and_grad(logits, targets, sample_weight=weight, reduction=reduction)
            fastxent.cross_entropy_and_grad(
                logits[1:], targets[1:], sample_weight=weight[1:] * [0, 1], reduction=reduction, upstream=1e308
            )
    assert (logits.tobytes(), targets.tobytes(), weight.tobytes()) == before
