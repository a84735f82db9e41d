"""A linear layer whose loss and gradients can be judged, on every engine and in plain NumPy.

Hidden states and weights are small multiples of 1/8 unless a test says otherwise: then every logit is exact in float32
whatever order BLAS adds in, and errors are those of what comes after. u is one rounding of the compute type.
"""

import contextlib
import types

import cases
import numpy as np
import pytest

import fastxent
from fastxent import _backends, _native, reference, reference_linear

TWINS = ("linear_cross_entropy", "linear_cross_entropy_and_grad", "linear_token_statistics")
PLAIN = ("plain", "")
ENGINES = [*cases.engines(), PLAIN]
on_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(filter(None, e)))
for_every_float = pytest.mark.parametrize("dtype", cases.FLOATS)
MIB = 1 << 20
LIMITS = (1, 3000, 20_000, 256 * MIB)  # of the workspace: one row and one class, a few, everything


@contextlib.contextmanager
def running_on(backend, isa=""):
    """An engine, or ("plain", ""): the tiles in plain NumPy, as for an engine without any."""
    if (backend, isa) != PLAIN:
        with cases.running_on(backend, isa):
            yield
        return
    before = _backends.engine
    _backends.chosen()
    _backends.engine = types.SimpleNamespace(open=_native.Call)
    try:
        yield
    finally:
        _backends.engine = before


def u_of(dtype):
    return 2.0**-23 if cases.computed_in(dtype) == np.float32 else 2.0**-52


def exact(random, shape, dtype, spread=1.0):
    """Small multiples of 1/8: products and their sums have few digits, in every dtype."""
    values = np.rint(random.normal(scale=spread, size=shape) * 8) / 8
    return np.clip(values, -15, 15).astype(cases.DTYPES.get(dtype, dtype))


class Head:
    """One linear layer: hidden states, weight, bias, targets."""

    def __init__(self, seed, positions=(3, 5), features=6, classes=70, dtype="float32", bias=True, spread=1.0):
        random = cases.rng(500, seed, *positions, features, classes)
        self.random, self.positions, self.classes = random, positions, classes
        self.dtype = np.dtype(cases.DTYPES[dtype])
        self.hidden = exact(random, (*positions, features), dtype, spread)
        self.weight = exact(random, (classes, features), dtype)
        self.bias = exact(random, classes, dtype) if bias else None
        self.targets = random.integers(0, classes, positions)

    @property
    def operands(self):
        return self.hidden, self.weight, self.targets

    def check(self, options, upstream=None, label="", **more):
        """Loss and gradients within what roundings can do."""
        given = {"bias": self.bias, **options}
        expected, grads = reference_linear.linear_cross_entropy_and_grad(*self.operands, upstream=upstream, **given)
        magnitudes = self.magnitudes(given, upstream)
        found = fastxent.linear_cross_entropy(*self.operands, **given, **more)
        self.same_loss(found, expected, given, label)
        found, got = fastxent.linear_cross_entropy_and_grad(*self.operands, upstream=upstream, **given, **more)
        self.same_loss(found, expected, given, label)
        for name, mine, theirs, size, operand in zip(
            ("hidden", "weight", "bias"), got, grads, magnitudes, (self.hidden, self.weight, self.bias), strict=True
        ):
            if operand is None:
                assert mine is None
                continue
            assert mine.shape == operand.shape and mine.dtype == cases.stored_as(operand.dtype), f"{label}: {name}"
            # A product's sum of n terms is wrong by n u of their sizes at most; every logit's gradient by some dozen u.
            error = u_of(self.dtype) * (60 + self.classes / 4) * size + 1e-35
            error = error + rounding(mine.dtype) * np.abs(theirs) + (2.0**-25 if mine.dtype == np.float16 else 0)
            wide = mine.astype("f8")
            with np.errstate(invalid="ignore"):
                bad = ~((np.abs(wide - theirs) <= error) | (np.isnan(theirs) & np.isnan(wide)))
            assert not bad.any(), f"{label}: {name}: {mine[bad][:3]} for {theirs[bad][:3]}, +- {error[bad][:3]}"
        return found, got

    def magnitudes(self, options, upstream):
        """Sums of the sizes of what the gradients add up."""
        x = reference_linear._logits(self.hidden, self.weight, options.get("bias"))
        own = {name: value for name, value in options.items() if name != "bias"}
        _, g = reference.cross_entropy_and_grad(x, self.targets, upstream=upstream, **own)
        # W p - c may cancel: its size is that of its parts, W p + c.
        size = np.abs(g) + np.abs(g).max(axis=-1, keepdims=True) * 1e-3 + spread_of(options, g)
        rows, states = size.reshape(-1, self.classes), np.abs(self.hidden.astype("f8"))
        return size @ np.abs(self.weight.astype("f8")), rows.T @ states.reshape(len(rows), -1), rows.sum(axis=0)

    def same_loss(self, found, expected, options, label):
        u = u_of(self.dtype)
        logits = reference_linear._logits(self.hidden, self.weight, options.get("bias"))
        size = np.abs(np.where(np.isfinite(logits), logits, 0)).max(initial=0)
        expected = np.asarray(expected)
        assert np.shape(found) == expected.shape, label
        rtol = (30 + 2 * size) * u
        atol = 0.0
        if {"softcap", "z_loss", "label_smoothing"} & set(options):
            atol = 40 * u * (1 + size) ** 2 * (1 + np.abs(options.get("z_loss", 0)))
        np.testing.assert_allclose(np.asarray(found, "f8"), expected, rtol=rtol, atol=atol, err_msg=label)


def spread_of(options, g):
    return np.abs(g).max() * options.get("label_smoothing", 0.0)


def rounding(dtype):
    return {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}.get(np.dtype(dtype).name, 0.0)
