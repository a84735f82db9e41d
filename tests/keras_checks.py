"""Checks of fastxent.keras on the backend that KERAS_BACKEND names; a process can have only one. Prints JSON.

Each function check_* raises if something is wrong; `histories` are training runs, to be compared between backends.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import keras
import numpy as np
from keras import ops
from keras.src.backend import set_keras_mask

import fastxent
from fastxent.keras import CrossEntropyLoss

TRAINS = keras.config.backend() != "numpy"
REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)


def numpy(tensor):
    return np.asarray(tensor.detach() if hasattr(tensor, "detach") else tensor)


def inputs(shape=(4, 5, 7), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype("f4")
    q = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype("f4")
    y, weight = rng.integers(0, shape[-1], shape[:-1]), rng.random(shape[:-1]).astype("f4")
    return x, y, q, weight, rng.random(shape[:-1]) < 0.6


def value(loss, y, x, weight=None, mask=None):
    x = ops.convert_to_tensor(x.copy())
    if mask is not None:
        set_keras_mask(x, ops.convert_to_tensor(mask))
    return numpy(loss(y, x, weight))


def check_sparse_targets_as_keras_does():
    x, y, _, weight, mask = inputs()
    for reduction in REDUCTIONS:
        for ignored in (None, 3):
            theirs = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, ignore_class=ignored, reduction=reduction
            )
            ours = CrossEntropyLoss(ignore_class=ignored, reduction=reduction)
            for options in ({}, {"weight": weight}, {"mask": mask}, {"weight": weight, "mask": mask}):
                right = value(theirs, y, x, **options)
                np.testing.assert_allclose(value(ours, y, x, **options), right, rtol=2e-5, atol=1e-6)
    for given in (y[..., None], y.astype("f4"), y.astype("i1"), y.tolist()):
        np.testing.assert_allclose(value(CrossEntropyLoss(), given, x), value(CrossEntropyLoss(), y, x))


def check_probabilities_as_keras_does():
    x, y, q, weight, mask = inputs()
    for reduction in REDUCTIONS:
        for smoothing in (0.0, 0.2):
            options = {"reduction": reduction, "label_smoothing": smoothing}
            theirs = keras.losses.CategoricalCrossentropy(from_logits=True, **options)
            ours = CrossEntropyLoss(**options)
            for target in (q, np.eye(7, dtype=int)[y]):
                for more in ({}, {"weight": weight, "mask": mask}):
                    right = value(theirs, target, x, **more)
                    np.testing.assert_allclose(value(ours, target, x, **more), right, rtol=2e-5, atol=1e-6)


def check_weights_of_samples():
    x, y, _, weight, _ = inputs()
    theirs, ours = keras.losses.SparseCategoricalCrossentropy(from_logits=True), CrossEntropyLoss()
    flat = (y[:, 0], x[:, 0], weight[:, 0])
    np.testing.assert_allclose(value(ours, *flat), value(theirs, *flat), rtol=2e-5)
    np.testing.assert_allclose(value(ours, y, x, weight[:, :1]), value(theirs, y, x, weight[:, :1]), rtol=2e-5)


def check_options_are_fastxents():
    x, y, q, _, _ = inputs()
    for target in (y, q):
        options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 2.0}
        right = fastxent.cross_entropy(x.astype(float), target, reduction="none", **options)
        np.testing.assert_allclose(value(CrossEntropyLoss(reduction=None, **options), target, x), right, rtol=3e-6)
        losses = CrossEntropyLoss(**options).call(target, ops.convert_to_tensor(x))
        np.testing.assert_allclose(numpy(losses), right, rtol=3e-6)


def check_any_class_axis():
    x, y, q, _, _ = inputs()
    right = value(CrossEntropyLoss(reduction=None), y, x)
    for axis in (0, 1, 2, -1, -3):
        loss = CrossEntropyLoss(reduction=None, axis=axis)
        np.testing.assert_allclose(value(loss, y, np.moveaxis(x, -1, axis)), right, rtol=1e-6)
        found = value(loss, np.moveaxis(q, -1, axis), np.moveaxis(x, -1, axis))
        np.testing.assert_allclose(found, value(CrossEntropyLoss(reduction=None), q, x), rtol=1e-6)
    np.testing.assert_allclose(value(CrossEntropyLoss(reduction=None, axis=0), y[0], x[0].T), right[0], rtol=1e-6)
    np.testing.assert_allclose(value(CrossEntropyLoss(reduction=None, axis=0), q[0].T, x[0].T).shape, (5,))


def check_padding_is_not_looked_at():
    x, y, _, _, mask = inputs()
    clean = value(CrossEntropyLoss(), y, x, mask=mask)
    x[~mask], y[~mask] = np.nan, 99
    np.testing.assert_array_equal(value(CrossEntropyLoss(), y, x, mask=mask), clean)
    y[~mask] = -7
    np.testing.assert_array_equal(value(CrossEntropyLoss(ignore_class=-7), y, x), clean)


def check_all_masked_is_zero():
    x, y, _, _, mask = inputs()
    assert value(CrossEntropyLoss(), y, x, mask=mask & False) == 0.0


def check_half_types_keep_class_indices():
    x = np.zeros((2, 5000), "f4")
    x[[0, 1], [4099, 4999]] = 30.0  # neither is a number of float16 or bfloat16
    for dtype in ("float16", "bfloat16") if TRAINS else ("float16",):
        loss = CrossEntropyLoss(dtype=dtype)
        assert float(loss(np.array([4099, 4999]), x)) < 1e-3
        assert loss.get_config()["dtype"] == dtype


def check_configuration():
    options = {"label_smoothing": 0.1, "ignore_class": 2, "z_loss": 1e-4, "softcap": 30.0, "axis": 1}
    loss = CrossEntropyLoss(reduction="sum", name="a", **options)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is CrossEntropyLoss
    assert again.get_config() == loss.get_config()
    assert loss.get_config() == {"name": "a", "reduction": "sum", "from_logits": True} | options


def refused(error, words, call):
    try:
        call()
    except error as found:
        assert words in str(found), found
    else:
        raise AssertionError(f"not refused: {words}")


def check_errors():
    x, y, q, _, _ = inputs()
    refused(ValueError, "from_logits must be True", lambda: CrossEntropyLoss(from_logits=False))
    refused(ValueError, "label_smoothing must be from 0 to 1", lambda: CrossEntropyLoss(label_smoothing=1.5))
    refused(ValueError, "z_loss must be finite", lambda: CrossEntropyLoss(z_loss=-1.0))
    refused(ValueError, "softcap must be None", lambda: CrossEntropyLoss(softcap=0.0))
    refused(ValueError, "axis must be an integer", lambda: CrossEntropyLoss(axis=1.0))
    refused(ValueError, "reduction", lambda: CrossEntropyLoss(reduction="median"))
    refused(ValueError, "y_true must hold class indices", lambda: value(CrossEntropyLoss(), y[:, :3], x))
    refused(ValueError, "y_true must hold class indices", lambda: value(CrossEntropyLoss(), q[..., :3], x))
    refused(ValueError, "axis 3 is out of bounds", lambda: value(CrossEntropyLoss(axis=3), y, x))
    if keras.config.backend() != "jax":  # whose arrays have no value yet when they are checked
        refused(IndexError, "outside [0, 7)", lambda: value(CrossEntropyLoss(), y + 7, x))


def check_another_backend_is_refused():
    own = keras.config.backend
    keras.config.backend = lambda: "tensorflow"
    try:
        refused(RuntimeError, "torch, jax, numpy, not on tensorflow", CrossEntropyLoss)
    finally:
        keras.config.backend = own


def sequences():
    """A tagger of padded sequences, whose mask comes from an embedding."""
    rng = np.random.default_rng(5)
    words = rng.integers(1, 20, (48, 6))
    words[np.arange(6) >= rng.integers(1, 7, 48)[:, None]] = 0
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Embedding(20, 8, mask_zero=True), keras.layers.Dense(5)])
    model(words)  # so that it has weights, on every backend
    return model, words, words % 5


def histories():
    """Losses of training runs: with ours and with Keras' own loss."""
    found = {}
    for name, loss in {
        "ours": CrossEntropyLoss(),
        "theirs": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }.items():
        model, words, tags = sequences()
        rng = np.random.default_rng(7)  # the same start on every backend
        model.set_weights([rng.normal(size=w.shape).astype("f4") for w in model.get_weights()])
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss)
        weight = np.linspace(0.5, 1.5, words.size, dtype="f4").reshape(words.shape)
        run = model.fit(words, tags, sample_weight=weight, epochs=4, batch_size=16, shuffle=False, verbose=0)
        found[name] = [float(v) for v in run.history["loss"]]
    return found


def check_evaluate_and_saving():
    model, words, tags = sequences()
    model.compile(optimizer="sgd", loss=CrossEntropyLoss(label_smoothing=0.1))
    right = model.evaluate(words, tags, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path)
    assert isinstance(again.loss, CrossEntropyLoss)
    assert again.loss.label_smoothing == 0.1
    np.testing.assert_allclose(again.evaluate(words, tags, verbose=0), right, rtol=1e-6)


def main():
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
    if TRAINS:
        results["histories"] = histories()
    json.dump(results, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # frameworks side by side may quarrel at exit, over nothing that is tested here


if __name__ == "__main__":
    main()
