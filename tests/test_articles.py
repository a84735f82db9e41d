"""Numbers worked out in print: the examples by which people learn this loss, on the public functions and the oracle.

Cross-entropy of two rows of four logits; the softmax of [5, 4, 2] and its gradient; a tagger's padded batch; a
segmentation's images with the classes on axis 1.
"""

import cases
import numpy as np
import pytest

import fastxent
from fastxent import reference

LOGITS = np.array([[1, 3, 5, 7], [1, -9, 4, 8]])
CLASSES = np.array([3, 1])
LOSSES = [0.14507794, 17.01904505]
GRADIENT = [[2.14400878e-03, 1.58422012e-02, 1.17058913e-01, -1.35045123e-01],
            [8.94679461e-04, -9.99999959e-01, 1.79701173e-02, 9.81135163e-01]]
PRINTED = {"rtol": 5e-9}  # nine digits in print
FLOAT32 = {"rtol": 16 * 2.0**-23}

both_sides = pytest.mark.parametrize("engine", [fastxent, reference], ids=lambda module: module.__name__)


@both_sides
@pytest.mark.parametrize("dtype", ["i8", "i4", "f8"])
def test_two_rows_of_integers(engine, dtype):
    logits = LOGITS.astype(dtype)
    np.testing.assert_allclose(engine.cross_entropy(logits, CLASSES, reduction="none"), LOSSES, rtol=4e-8)
    loss, gradient = engine.cross_entropy_and_grad(logits, CLASSES, reduction="sum")
    np.testing.assert_allclose(gradient, GRADIENT, **PRINTED)
    assert loss == pytest.approx(sum(LOSSES), rel=4e-9)
    assert engine.cross_entropy(logits, CLASSES) == pytest.approx(sum(LOSSES) / 2, rel=4e-9)
    np.testing.assert_allclose(engine.cross_entropy_grad(logits, CLASSES), np.array(GRADIENT) / 2, **PRINTED)


@both_sides
def test_the_same_from_predictions_and_one_hot(engine):
    predictions = engine.softmax(LOGITS)
    one_hot = engine.one_hot(CLASSES, 4)
    np.testing.assert_array_equal(one_hot, [[0, 0, 0, 1], [0, 1, 0, 0]])
    for targets in (CLASSES, one_hot):
        from_probs = engine.cross_entropy_from_probs(predictions, targets, reduction="none")
        from_logs = engine.nll_loss(engine.log_softmax(LOGITS), targets, reduction="none")
        np.testing.assert_allclose(from_probs, LOSSES, rtol=4e-8)
        np.testing.assert_allclose(from_logs, LOSSES, rtol=4e-8)
        gradient = engine.cross_entropy_grad(LOGITS, targets, reduction="sum")
        np.testing.assert_allclose(gradient, GRADIENT, **PRINTED)
    _, by_predictions = engine.cross_entropy_from_probs_and_grad(predictions, CLASSES, reduction="sum")
    np.testing.assert_allclose(engine.softmax_grad(predictions, by_predictions), GRADIENT, **PRINTED)
    _, by_logs = engine.nll_loss_and_grad(engine.log_softmax(LOGITS), CLASSES, reduction="sum")
    np.testing.assert_allclose(engine.log_softmax_grad(engine.log_softmax(LOGITS), by_logs), GRADIENT, **PRINTED)


@both_sides
def test_softmax_of_five_four_two(engine):
    np.testing.assert_allclose(
        engine.softmax(np.array([5.0, 4.0, 2.0])), [0.70538451, 0.25949646, 0.03511903], rtol=2e-7
    )
    gradient = engine.cross_entropy_grad(np.array([5.0, 4.0, 2.0]), 0)
    np.testing.assert_allclose(gradient, [-0.29461549, 0.25949646, 0.03511903], rtol=2e-7)


def textbook(logits, targets):
    """Losses of (..., classes), one operation at a time."""
    e = np.exp(logits.astype(np.float64))
    p = e / e.sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(p, targets[..., None], axis=-1)[..., 0])


@both_sides
def test_a_batch_of_tagged_sequences(engine):
    random = cases.rng(16, 20, 5)
    logits_btc, targets_bt = random.normal(size=(16, 20, 5)).astype("f4"), random.integers(0, 5, (16, 20))
    expected = textbook(logits_btc, targets_bt)
    for logits, axis in (
        (logits_btc, -1),
        (logits_btc.transpose(0, 2, 1), 1),
        (logits_btc.transpose(0, 2, 1).copy(), 1),
    ):
        losses = engine.cross_entropy(logits, targets_bt, axis=axis, reduction="none")
        np.testing.assert_allclose(losses, expected, **FLOAT32)
        np.testing.assert_allclose(losses.mean(axis=1), expected.mean(axis=1), **FLOAT32)
        assert engine.cross_entropy(logits, targets_bt, axis=axis) == pytest.approx(
            expected.mean(), rel=FLOAT32["rtol"]
        )


@both_sides
def test_a_padded_batch(engine):
    random = cases.rng(16, 20, 5, 1)
    logits, targets = random.normal(size=(16, 20, 5)), random.integers(0, 5, (16, 20))
    lengths = np.r_[5:21]
    mask = np.arange(20) < lengths[:, None]
    np.testing.assert_array_equal(engine.lengths_to_mask(lengths), mask)
    losses = textbook(logits, targets)
    expected = (losses * mask).sum() / mask.sum()
    logits[~mask] = np.nan
    targets[~mask] = 77
    assert engine.cross_entropy(logits, targets, mask=mask) == pytest.approx(expected, rel=1e-13)
    assert engine.cross_entropy(logits, targets, lengths=lengths) == pytest.approx(expected, rel=1e-13)
    none = engine.cross_entropy(logits, targets, lengths=lengths, reduction="none")
    np.testing.assert_allclose(none, losses * mask, rtol=1e-13)
    assert engine.sequence_reduce(none, lengths=lengths) == pytest.approx(expected, rel=1e-13)
    assert engine.sequence_reduce(none, mask=mask) == pytest.approx(expected, rel=1e-13)

    per_sequence = (losses * mask).sum(axis=1) / lengths  # (1/T) sum over t
    by_hand = [float(engine.cross_entropy(logits[b, :n], targets[b, :n])) for b, n in enumerate(lengths)]
    np.testing.assert_allclose(by_hand, per_sequence, rtol=1e-13)
    for value in (engine.cross_entropy(logits, targets, lengths=lengths, reduction="sequence_mean"),
                  engine.sequence_reduce(none, lengths=lengths, reduction="sequence_mean")):
        assert value == pytest.approx(per_sequence.mean(), rel=1e-13)


@both_sides
def test_images_with_their_classes_on_axis_1(engine):
    random = cases.rng(5, 4, 8, 8)
    log_probs = np.log(random.dirichlet(np.ones(4), size=(5, 8, 8)).transpose(0, 3, 1, 2))
    targets = random.integers(0, 4, (5, 8, 8))
    picked = np.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
    assert engine.nll_loss(log_probs, targets, axis=1) == pytest.approx(-picked.mean(), rel=1e-13)
    np.testing.assert_array_equal(engine.nll_loss(log_probs, targets, axis=1, reduction="none"), -picked)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 8, 8\)"):
        fastxent.nll_loss(np.zeros((5, 4, 8, 3)), np.zeros((5, 8, 8), int), axis=1)
