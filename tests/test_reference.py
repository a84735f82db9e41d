"""The oracle itself: against exact digits, torch and finite differences, and what the contract says in words."""

import cases
import numpy as np
import pytest

from fastxent import reference

LOSSES = {
    "logits": reference.cross_entropy,
    "log_probs": reference.nll_loss,
    "probs": reference.cross_entropy_from_probs,
}
BOTH = {
    "logits": reference.cross_entropy_and_grad,
    "log_probs": reference.nll_loss_and_grad,
    "probs": reference.cross_entropy_from_probs_and_grad,
}
ULP = 2.0**-52
INF, NAN = np.inf, np.nan


# --- exact digits


def exactly(mp, logits, coefficients, z_loss=0.0, scale=1.0, softcap=None):
    """Loss and gradient of one row by the textbook, in mpmath numbers."""
    x = [mp.mpf(float(v)) for v in logits]
    c = [mp.mpf(float(v)) for v in coefficients]
    cap = None if softcap is None else mp.mpf(softcap)
    z = [scale * v if cap is None else cap * mp.tanh(scale * v / cap) for v in x]
    slope = [mp.mpf(scale) if cap is None else scale * (1 - mp.tanh(scale * v / cap) ** 2) for v in x]
    log_sum = mp.log(mp.fsum(mp.exp(v) for v in z))
    loss = mp.fsum(k * (log_sum - v) for k, v in zip(c, z, strict=True)) + z_loss * log_sum**2
    p = [mp.exp(v - log_sum) for v in z]
    total = mp.fsum(c) + 2 * z_loss * log_sum
    return float(loss), [float((total * pi - k) * d) for pi, k, d in zip(p, c, slope, strict=True)]


ROWS = [
    [0.0, -80.0],
    [-80.0, 0.0],
    [3.0, 1.0, 2.0],
    [1e8, 1e8 - 40.0, 1e8 - 3.0],
    [700.0, -700.0, 0.0, 699.5],
    [2.0, 2.0, 2.0],
    [0.0, -40.0, -41.0, -300.0],
    [5.0, 5.0, -30.0],
    [1e-9, 0.0],
]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.25}, {"logit_scale": 0.75}, {"softcap": 8.0}], ids=str)
def test_every_digit_of_class_indices(row, options):
    mp = pytest.importorskip("mpmath")
    with mp.workdps(700):  # exp(-1400) beside 1
        for target in range(len(row)):
            expected = exactly(mp, row, np.eye(len(row))[target], options.get("z_loss", 0.0),
                               options.get("logit_scale", 1.0), options.get("softcap"))
            got = reference.cross_entropy_and_grad([row], [target], **options)
            # a softcap is tanh at work: its differences have the error of the values, in 64 bits of mantissa
            atol = 8 * 2.0**-63 if "softcap" in options else 0.0
            np.testing.assert_allclose(got[0], expected[0], rtol=2 * ULP, atol=atol)
            np.testing.assert_allclose(got[1][0], expected[1], rtol=2 * ULP, atol=max(atol, 5e-324))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_digit_of_class_probabilities(row):
    mp = pytest.importorskip("mpmath")
    random = cases.rng(len(row))
    with mp.workdps(700):
        for weights in (
            random.uniform(size=len(row)),
            np.eye(len(row))[0],
            np.zeros(len(row)),
            np.full(len(row), 0.25),
        ):
            loss, gradient = exactly(mp, row, weights)
            got = reference.cross_entropy_and_grad([row], [weights])
            np.testing.assert_allclose(got[0], loss, rtol=2 * ULP, atol=5e-324)
            # W p - c may cancel: then to the digits of its terms, in 64 bits of mantissa
            np.testing.assert_allclose(got[1][0], gradient, rtol=2 * ULP, atol=2.0**-62 * weights.max() + 5e-324)


def test_digits_survive_as_the_probability_goes_to_one():
    loss, gradient = reference.cross_entropy_and_grad([[0.0, -69.0]], [0])
    assert loss == pytest.approx(np.exp(-69.0), rel=2 * ULP)
    assert gradient[0, 0] == pytest.approx(-np.exp(-69.0), rel=2 * ULP)
    assert gradient[0, 1] == pytest.approx(np.exp(-69.0), rel=2 * ULP)
    one_hot_loss, one_hot_gradient = reference.cross_entropy_and_grad([[0.0, -69.0]], [[1.0, 0.0]])
    assert one_hot_loss == loss
    np.testing.assert_array_equal(one_hot_gradient, gradient)


# --- torch


def torch_options(options, axis, torch):
    """The keyword arguments of torch's functional losses."""
    result = {k: v for k, v in options.items() if k in ("reduction", "label_smoothing", "ignore_index")}
    if "class_weight" in options:
        result["weight"] = torch.from_numpy(options["class_weight"])
    return result


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(6, 5), (5,), (3, 7, 4), (2, 4, 3, 5), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("target", ["int64", "float64"])
@pytest.mark.parametrize("chosen", [{}, {"class_weight"}, {"ignore_index"}, {"label_smoothing"},
                                    {"class_weight", "ignore_index", "label_smoothing"}], ids=sorted)
def test_cross_entropy_is_torchs(shape, target, chosen, reduction):
    torch = pytest.importorskip("torch")
    axis = 1 if len(shape) > 1 else 0
    random = cases.rng(*shape)
    case = cases.build(random, shape, axis, "float64", target=target, options=sorted(chosen), reduced=reduction)
    keywords = torch_options(case.options, axis, torch)
    if target == "float64":  # torch knows no ignored probabilities
        keywords.pop("ignore_index", None)
    logits = torch.from_numpy(case.scores).requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(case.targets), **keywords)
    upstream = np.asarray(case.upstream())
    got, gradient = reference.cross_entropy_and_grad(
        case.scores, case.targets, axis=axis, upstream=upstream, **case.options
    )
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-13)
    if expected.isfinite().all():
        expected.backward(torch.from_numpy(upstream))
        np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-12, atol=1e-15)
    else:
        assert chosen and reduction == "mean"  # everything ignored: torch's gradient is NaN, ours 0
        assert not gradient.any()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("chosen", [{}, {"class_weight"}, {"ignore_index", "class_weight"}], ids=sorted)
def test_nll_loss_is_torchs(chosen, reduction):
    torch = pytest.importorskip("torch")
    case = cases.build(cases.rng(5), (4, 6, 3), 1, "float64", "log_probs", options=sorted(chosen), reduced=reduction)
    x = torch.from_numpy(case.scores).requires_grad_()
    expected = torch.nn.functional.nll_loss(x, torch.from_numpy(case.targets), **torch_options(case.options, 1, torch))
    upstream = np.asarray(case.upstream())
    expected.backward(torch.from_numpy(upstream))
    got, gradient = reference.nll_loss_and_grad(case.scores, case.targets, axis=1, upstream=upstream, **case.options)
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_activations_are_torchs(axis):
    torch = pytest.importorskip("torch")
    random = cases.rng(6)
    values, upstream = random.normal(scale=4, size=(3, 5, 7)), random.normal(size=(3, 5, 7))
    for name in ("softmax", "log_softmax"):
        x = torch.from_numpy(values).requires_grad_()
        y = getattr(torch, name)(x, dim=axis)
        y.backward(torch.from_numpy(upstream))
        expected = y.detach().numpy()  # x - logsumexp(x): torch's log_softmax near 0 has the digits of x
        np.testing.assert_allclose(getattr(reference, name)(values, axis=axis), expected, rtol=1e-13, atol=2e-15)
        gradient = getattr(reference, name + "_grad")(y.detach().numpy(), upstream, axis=axis)
        np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-12, atol=1e-15)
    for keepdims in (False, True):
        expected = torch.logsumexp(torch.from_numpy(values), dim=axis, keepdim=keepdims).numpy()
        np.testing.assert_allclose(reference.logsumexp(values, axis=axis, keepdims=keepdims), expected, rtol=1e-14)


# --- finite differences


@pytest.mark.parametrize("seed", range(60))
def test_gradient_is_the_slope_of_the_value(seed):
    case = cases.random_case(seed, dtype="float64")
    random = cases.rng(9, seed)
    if case.kind == "logits" and max(np.abs(case.scores).max(initial=0), 1) > 30:
        case.scores = case.scores / 10
    upstream = case.upstream()
    _, gradient = BOTH[case.kind](case.scores, case.targets, axis=case.axis, upstream=upstream, **case.options)
    direction = random.normal(size=case.scores.shape)
    if case.kind == "probs":
        direction *= case.scores.astype(float)  # stay positive
    step = 1e-4

    def value(t):
        loss = LOSSES[case.kind](case.scores + t * direction, case.targets, axis=case.axis, **case.options)
        return float(np.sum(upstream * loss))

    # a five-point rule: error of order step^4, and of rounding / step
    slope = (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * step)
    if np.isfinite(slope):
        size = np.abs(gradient * direction).sum() + abs(value(0))
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-9, abs=1e-10 * size)


# --- the contract, in words


def test_infinities_and_nan():
    rows = np.array(
        [[1.0, -INF, 2.0], [1.0, -INF, 2.0], [-INF, -INF, -INF], [0.0, INF, 1.0], [0.0, NAN, 1.0], [-INF, 3.0, -INF]]
    )
    targets = np.array([0, 1, 0, 1, 0, 1])
    losses, gradient = reference.cross_entropy_and_grad(rows, targets, reduction="none")
    assert losses[0] == pytest.approx(1 + np.log1p(np.exp(-1)))
    assert losses[1] == INF
    assert np.isnan(losses[2:5]).all() and np.isnan(gradient[2:5]).all()
    assert losses[5] == 0 and not gradient[5].any()
    assert gradient[0, 1] == 0 and gradient[1, 1] == -1
    np.testing.assert_allclose(gradient[1], [1 / (1 + np.e), -1, np.e / (1 + np.e)])
    np.testing.assert_array_equal(reference.logsumexp(rows)[2:4], [-INF, INF])
    assert np.isnan(reference.logsumexp(rows)[4])
    assert reference.softmax(rows)[0, 1] == 0 and reference.log_softmax(rows)[0, 1] == -INF


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("logit_scale", [1.0, 0.5])
def test_a_removed_class_stays_removed(softcap, logit_scale):
    options = {"softcap": softcap, "logit_scale": logit_scale}
    loss, gradient = reference.cross_entropy_and_grad([[1.0, -INF, 2.0]], [0], **options)
    without = reference.cross_entropy_and_grad([[1.0, 2.0]], [0], **options)
    assert loss == without[0] and gradient[0, 1] == 0
    np.testing.assert_array_equal(gradient[0, ::2], without[1][0])
    assert np.isnan(reference.cross_entropy([[1.0, INF]], [0], **options))


def test_a_zero_coefficient_makes_its_term_zero():
    row = [[1.0, -INF, 2.0]]
    assert np.isfinite(reference.cross_entropy(row, [[0.5, 0.0, 0.5]]))
    assert reference.cross_entropy(row, [[0.5, 1e-9, 0.5]]) == INF
    loss, gradient = reference.cross_entropy_and_grad(row, [1], class_weight=[1.0, 0.0, 1.0], reduction="sum")
    assert loss == 0 and not gradient.any()
    assert np.isfinite(reference.cross_entropy(row, [0], class_weight=[1.0, 0.0, 1.0], label_smoothing=0.1))
    assert reference.cross_entropy(row, [0], label_smoothing=0.1) == INF
    assert np.isnan(reference.cross_entropy([[1.0, NAN]], [[0.0, 0.0]], reduction="sum"))
    loss, gradient = reference.cross_entropy_from_probs_and_grad([[0.0, 1.0]], [[0.0, 1.0]])
    assert loss == 0
    np.testing.assert_array_equal(gradient, [[0, -1]])


def test_one_class_is_plus_zero():
    for value in (0.0, 5.0, -3.0):
        for targets in ([0], [[1.0]], [[0.5]]):
            loss, gradient = reference.cross_entropy_and_grad([[value]], targets, label_smoothing=0.25)
            assert loss == 0 and not np.signbit(loss) and not np.signbit(gradient).any()
    assert not np.signbit(reference.log_softmax([[5.0]])).any()
    for value in (reference.nll_loss([[0.0]], [0]), reference.cross_entropy_from_probs([[1.0]], [0])):
        assert value == 0 and not np.signbit(value)


def test_no_classes_and_no_positions():
    assert reference.softmax(np.ones((2, 0))).shape == reference.log_softmax(np.ones((2, 0))).shape == (2, 0)
    np.testing.assert_array_equal(reference.logsumexp(np.ones((2, 0))), [-INF, -INF])
    for shape in ((0, 3), (0, 4, 3), (2, 0, 3)):
        empty, targets = np.ones(shape), np.ones(shape[:-1], int)
        assert reference.cross_entropy(empty, targets, reduction="none").shape == shape[:-1]
        assert reference.cross_entropy(empty, targets, reduction="sum") == 0
        assert np.isnan(reference.cross_entropy(empty, targets))
        assert reference.cross_entropy(empty, targets, reduction="sequence_mean", empty_value=7.0) == 7
        assert reference.cross_entropy_grad(empty, targets).shape == shape


@pytest.mark.parametrize(
    "targets, ignored",
    [
        (np.array([156, 1], np.uint8), -100),
        (np.array([2**63 - 1, 1]), 2**63),
        (np.array([2**64 - 1, 1], np.uint64), -1),
        (np.array([-1, 1], np.int8), 255),
    ],
)
def test_ignore_index_is_a_number(targets, ignored):
    with pytest.raises(IndexError, match="outside"):
        reference.cross_entropy(np.ones((2, 3)), targets, ignore_index=ignored)
    same = int(targets[0])
    assert reference.cross_entropy(np.ones((2, 3)), targets, ignore_index=same) == pytest.approx(np.log(3))


def test_what_is_not_valid_is_not_looked_at():
    logits = np.array([[1.0, 2.0], [NAN, INF], [3.0, 1.0]])
    targets = np.array([0, 99, 1])
    for options in ({"mask": [True, False, True]}, {"sample_weight": [1.0, 0.0, 1.0]}, {"ignore_index": 99}):
        loss, gradient = reference.cross_entropy_and_grad(logits, targets, **options)
        expected = reference.cross_entropy_and_grad(logits[::2], targets[::2])
        assert loss == expected[0] and not gradient[1].any()
        np.testing.assert_array_equal(gradient[::2], expected[1])
    in_time = reference.cross_entropy(logits[None], targets[None], lengths=[1])
    assert in_time == reference.cross_entropy(logits[:1], targets[:1])


def test_shift_reads_the_targets_later():
    random = cases.rng(10)
    logits, targets = random.normal(size=(3, 6, 4)), random.integers(0, 4, (3, 6))
    mask, weight, lengths = random.integers(0, 2, (3, 6)), random.uniform(size=(3, 6)), np.array([6, 3, 0])
    for k in (1, 2, 5):
        for reduction in ("none", "mean", "sequence_mean"):
            loss, gradient = reference.cross_entropy_and_grad(
                logits, targets, shift=k, mask=mask, sample_weight=weight, lengths=lengths, reduction=reduction)
            cut = reference.cross_entropy_and_grad(
                logits[:, :-k], targets[:, k:], mask=mask[:, k:], sample_weight=weight[:, k:],
                lengths=np.maximum(lengths - k, 0), reduction=reduction)
            np.testing.assert_array_equal(loss[:, :-k] if reduction == "none" else loss, cut[0])
            np.testing.assert_array_equal(gradient[:, :-k], cut[1])
            assert not gradient[:, -k:].any()
    probabilities = random.uniform(size=(3, 6, 4))
    assert reference.cross_entropy(logits, probabilities, shift=2) == reference.cross_entropy(
        logits[:, :-2], probabilities[:, 2:]
    )
    assert np.isnan(reference.cross_entropy(logits, targets, shift=6))


def test_reductions():
    losses = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    lengths, weight = [1, 0, 2], np.array([1.0, 2.0, 1.0])
    expected = {"sum": 1 + 7 + 16, "mean": 24 / 4, "batch_mean": 24 / 3, "sequence_mean": (1 + 23 / 3) / 2}
    for reduction, value in expected.items():
        got = reference.sequence_reduce(losses, lengths=lengths, weight=weight, reduction=reduction)
        assert got == pytest.approx(value, rel=4 * ULP)
    assert reference.sequence_reduce(losses, lengths=lengths, reduction="sum", normalizer=5.0) == 16 / 5
    np.testing.assert_array_equal(
        reference.sequence_reduce(losses, lengths=lengths, reduction="none"), [[1, 0, 0], [0, 0, 0], [7, 8, 0]]
    )
    assert reference.sequence_reduce([1.0, 3.0], reduction="sequence_mean") == 2  # each position its own sequence


def test_a_divisor_of_zero():
    logits = cases.rng(11).normal(size=(3, 4))
    logits[1] = NAN
    for options in ({"mask": np.zeros(3, bool)}, {"class_weight": np.zeros(4)}, {"normalizer": 0.0}):
        loss, gradient = reference.cross_entropy_and_grad(logits, [0, 1, 2], empty_value=-1.5, **options)
        assert loss == -1.5
        np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


def test_shifted_by_a_constant():
    random = cases.rng(12)
    logits = np.rint(random.normal(scale=40, size=(5, 7)))
    targets = random.integers(0, 7, 5)
    plain = reference.cross_entropy_and_grad(logits, targets, reduction="none")
    moved = reference.cross_entropy_and_grad(logits + 1e8, targets, reduction="none")
    np.testing.assert_array_equal(plain[0], moved[0])
    np.testing.assert_array_equal(plain[1], moved[1])


def test_saved_and_softmax():
    logits = np.array([[3.0, 1.0, 3.0], [0.0, -1.0, -INF]])
    loss, saved = reference.cross_entropy(logits, [1, 0], reduction="none", return_saved=True)
    np.testing.assert_allclose(saved, [[3.0, 1 + np.exp(-2)], [0.0, np.exp(-1)]], rtol=ULP)
    np.testing.assert_allclose(loss, saved[:, 0] - [1.0, 0.0] + np.log1p(saved[:, 1]), rtol=2 * ULP)
    _, p = reference.cross_entropy_and_softmax(logits, [1, 0], mask=[False, True])
    np.testing.assert_array_equal(p, [[0, 0, 0], reference.softmax(logits)[1]])


def test_one_hot_and_masks():
    encoded = reference.one_hot(np.array([[2, 0]], np.uint8), 3)
    assert encoded.dtype == np.float32 and encoded.tolist() == [[[0, 0, 1], [1, 0, 0]]]
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            reference.one_hot([0, wrong], 3)
    assert reference.lengths_to_mask([2, 0, 3]).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert reference.lengths_to_mask(np.array([[1]]), 2).tolist() == [[[True, False]]]


def test_outputs_are_written():
    random = cases.rng(13)
    logits = random.normal(size=(4, 3)).astype("f4")
    expected = reference.cross_entropy_and_grad(logits, [0, 1, 2, 0], reduction="none")
    out = np.empty(4, "f4")
    loss, gradient = reference.cross_entropy_and_grad(logits, [0, 1, 2, 0], reduction="none", out=out, out_grad=logits)
    assert loss is out and gradient is logits
    np.testing.assert_array_equal(loss, expected[0].astype("f4"))
    np.testing.assert_array_equal(gradient, expected[1].astype("f4"))
