"""fastxent.jax.linear_cross_entropy against the loss of logits that are all there."""

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import fastxent  # noqa: E402
import fastxent.jax as ours  # noqa: E402
from fastxent.jax import _linear  # noqa: E402

B, T, D, V = 3, 5, 4, 7
CHUNK_OF_4 = 4 * V * 4  # bytes


def inputs(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden, weight, bias = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((B, T, D), (V, D), (V,)))
    arrays = {
        "mask": rng.random((B, T)) > 0.3, "lengths": np.array([5, 0, 3]),
        "sample_weight": rng.uniform(0, 2, (B, T)).astype(np.float32),
        "class_weight": rng.uniform(0.5, 2, V).astype(np.float32),
    }
    return (hidden, weight, bias), jnp.asarray(rng.integers(0, V, (B, T))), arrays


def full(hidden, weight, bias, t, **options):
    return ours.cross_entropy(hidden @ weight.T + bias, t, **options)


def agree(found, right, tolerance=3e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance), found, right)


CASES = {
    "plain": ("", {}),
    "none": ("mask sample_weight", {"reduction": "none", "shift": 1}),
    "all arrays": ("mask lengths sample_weight class_weight", {"label_smoothing": 0.1, "z_loss": 0.01}),
    "sequences": ("lengths sample_weight", {"reduction": "sequence_mean", "shift": 1, "softcap": 4.0}),
    "batch mean": ("class_weight", {"reduction": "batch_mean", "ignore_index": 3, "logit_scale": 0.5}),
    "normalizer": ("mask", {"normalizer": 11}),
}


@pytest.mark.parametrize(("case", "max_bytes"), [
    *[(case, CHUNK_OF_4) for case in CASES], ("all arrays", 1 << 20), ("none", 1 << 20), ("sequences", 1),
])
def test_options(case, max_bytes):
    names, options = CASES[case]
    operands, t, arrays = inputs()
    options = options | {name: arrays[name] for name in names.split()}

    def both(function):
        return jax.jit(jax.value_and_grad(lambda operands: function(*operands).sum()))(operands)

    def linear(hidden, weight, bias):
        return ours.linear_cross_entropy(hidden, weight, t, bias=bias, max_bytes=max_bytes, **options)

    agree(both(linear), both(partial(full, t=t, **options)))
    if case in ("none", "all arrays"):
        agree(linear(*operands), full(*operands, t, **options))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves(dtype, reduction):
    operands, t, _ = inputs(dtype)
    wide = tuple(a.astype(jnp.float32) for a in operands)
    found = jax.value_and_grad(lambda o: ours.linear_cross_entropy(
        o[0], o[1], t, bias=o[2], max_bytes=100, reduction=reduction).sum())(operands)
    right = jax.value_and_grad(lambda o: full(*o, t, reduction=reduction).sum())(wide)
    assert found[0].dtype == jnp.float32 and all(grad.dtype == dtype for grad in found[1])
    agree(found[0], right[0])
    agree(found[1], right[1], 2e-2)


def test_vmap_and_forward_mode():
    (hidden, weight, _), t, _ = inputs()
    loss = partial(ours.linear_cross_entropy, max_bytes=3 * V * 4)
    one_by_one = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for axes in (0, None, 0), (None, None, 0):
        given = hidden if axes[0] == 0 else hidden[0], weight, t
        batched = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), axes))(*given)
        for i in range(B):
            one = [a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)]
            agree(jax.tree.map(lambda a, i=i: a[i], batched), one_by_one(*one))
    right = jax.jvp(lambda h, w: full(h, w, 0.0, t), (hidden, weight), (hidden, weight))
    agree(jax.jvp(lambda h, w: loss(h, w, t), (hidden, weight), (hidden, weight)), right)


def test_only_what_is_needed_is_computed():
    (hidden, weight, _), t, _ = inputs()
    text = str(jax.make_jaxpr(jax.grad(lambda h: ours.linear_cross_entropy(h, weight, t)))(hidden))
    assert text.count("dot_general") == 2


def test_logits_are_never_all_there():
    (hidden, weight, _), t, _ = inputs()
    step = jax.value_and_grad(partial(ours.linear_cross_entropy, max_bytes=4 * V * 4), (0, 1))
    text = jax.jit(step).lower(hidden, weight, t).as_text()
    assert f"tensor<4x{V}xf32>" in text and f"{B * T}x{V}xf32" not in text


def test_errors():
    (hidden, weight, bias), t, arrays = inputs()
    failure = (jax.errors.JaxRuntimeError, ValueError)
    with pytest.raises(failure, match=r"the target at position \(2, 1\) is 9, outside"):
        jax.block_until_ready(ours.linear_cross_entropy(hidden, weight, t.at[2, 1].set(9), max_bytes=50))
    with pytest.raises(TypeError, match="no second derivatives"):
        jax.hessian(ours.linear_cross_entropy)(hidden, weight, t)
    for reduction in "mean", "none":
        with pytest.raises(TypeError, match="differentiable by hidden, weight and bias"):
            jax.grad(lambda w, r=reduction: ours.linear_cross_entropy(
                hidden, weight, t, sample_weight=w, reduction=r).sum())(arrays["sample_weight"])
    for change, error, message in [
        ({"weight": weight[:, :2]}, ValueError, r"weight must have shape \(V, 4\)"),
        ({"bias": bias[:3]}, ValueError, r"bias must have shape \(7,\)"),
        ({"targets": np.zeros((B, T, V))}, TypeError, "class probabilities are as large as the logits"),
        ({"hidden": 1.0}, ValueError, "at least one axis"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1"),
    ]:
        with pytest.raises(error, match=message):
            ours.linear_cross_entropy(**{"hidden": hidden, "weight": weight, "targets": t} | change)


def test_nothing_counts():
    (hidden, weight, _), t, _ = inputs()
    nan = jnp.full_like(hidden, jnp.nan)
    loss = partial(ours.linear_cross_entropy, empty_value=2, mask=jnp.zeros(T, bool))
    value, grads = jax.value_and_grad(loss, (0, 1))(nan, weight, t)
    assert value == 2 and not any(grad.any() for grad in grads)
    assert np.isnan(ours.linear_cross_entropy(hidden[:0], weight, t[:0]))
    assert _linear._rows(10, 8, 32) == (4, 3)


@pytest.mark.parametrize("reduction", ["sum", "mean", "sequence_mean", "batch_mean", "none"])
@pytest.mark.parametrize("positions", [(0,), (2, 0), (0, 3)])
def test_no_positions(positions, reduction):
    hidden, weight, targets = np.ones((*positions, 4), "f4"), np.ones((5, 4), "f4"), np.zeros(positions, int)
    loss = partial(ours.linear_cross_entropy, reduction=reduction)
    right = fastxent.linear_cross_entropy(hidden, weight, targets, reduction=reduction)
    np.testing.assert_array_equal(loss(hidden, weight, targets), right)
    grads = jax.grad(lambda *a: loss(*a, targets).sum(), (0, 1))(jnp.asarray(hidden), jnp.asarray(weight))
    assert [grad.shape for grad in grads] == [hidden.shape, weight.shape] and not grads[1].any()


def test_float64_divides_by_float64():
    random, by = np.random.default_rng(0), np.array([0.1, 0.2, 0.3, 0.7])
    arrays = random.normal(size=(4, 3)), random.normal(size=(6, 3)), np.arange(4)
    with jax.enable_x64(True):
        for reduction in ("mean", "sequence_mean"):
            for options in ({"sample_weight": by}, {"class_weight": np.r_[by, 1.1, 1.3]}):
                got = ours.linear_cross_entropy(*map(jnp.asarray, arrays), reduction=reduction, **options)
                right = fastxent.linear_cross_entropy(*arrays, reduction=reduction, **options)
                assert float(got) == pytest.approx(right, rel=1e-14)
