"""fastxent.jax against the oracle: options, dtypes, and what JAX's transforms make of it."""

import math
import threading
from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import fastxent  # noqa: E402
import fastxent.jax as ours  # noqa: E402
from fastxent import reference  # noqa: E402

B, T, C = 3, 4, 5
NUMPY_DTYPES = {"float32": 3e-6, "bfloat16": 1e-2, "float16": 2e-3}


def inputs(dtype="float32", seed=0):
    """Logits (B, T, C), class indices, class probabilities, and what describes positions."""
    rng = np.random.default_rng(seed)
    x = np.asarray(jnp.asarray(2 * rng.standard_normal((B, T, C)), dtype))
    t = rng.integers(0, C, (B, T)).astype(np.int32)
    q = rng.dirichlet(np.ones(C), (B, T)).astype(np.float32)
    arrays = {
        "class_weight": rng.uniform(0.5, 2, C).astype(np.float32),
        "sample_weight": rng.uniform(0, 2, (B, T)).astype(np.float32),
        "mask": rng.random((B, T)) > 0.3,
        "lengths": np.array([4, 0, 2], np.int32),
    }
    arrays["sample_weight"][0, 1] = 0
    return x, t, q, arrays


def agree(found, right, tolerance=3e-6):
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.asarray(right, np.float64), rtol=tolerance, atol=tolerance
    )


# Each: which arrays, whether class probabilities, and the other options.
CASES = {
    "plain": ("", False, {}),
    "none": ("mask", False, {"reduction": "none"}),
    "sum": ("class_weight", False, {"reduction": "sum", "label_smoothing": 0.1}),
    "all arrays": ("class_weight sample_weight mask lengths", False, {"z_loss": 0.01}),
    "shift": ("mask lengths sample_weight", False, {"shift": 1, "reduction": "batch_mean"}),
    "sequences": ("sample_weight lengths class_weight", False, {"reduction": "sequence_mean", "ignore_index": 2}),
    "scaled": ("", False, {"logit_scale": 0.5, "softcap": 3.0, "ignore_index": None}),
    "normalizer": ("mask", False, {"normalizer": 7}),
    "probabilities": ("class_weight sample_weight", True, {"label_smoothing": 0.2}),
    "probabilities of sequences": ("lengths", True, {"reduction": "sequence_mean", "shift": 1}),
    "probabilities, each": ("sample_weight mask", True, {"reduction": "none", "z_loss": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_options(case):
    names, probabilities, options = CASES[case]
    x, t, q, arrays = inputs()
    targets = q if probabilities else t
    given = {name: arrays[name] for name in names.split()}
    value, grad = reference.cross_entropy_and_grad(x.astype(np.float64), targets, **given, **options)
    agree(ours.cross_entropy(x, targets, **given, **options), value)

    @jax.jit
    def both(x, targets, given):
        def total(x):
            return (loss := ours.cross_entropy(x, targets, **given, **options)).sum(), loss

        return jax.value_and_grad(total, has_aux=True)(x)

    (_, found), gradient = both(x, targets, given)
    assert found.dtype == jnp.float32 and gradient.dtype == jnp.float32
    agree(found, value)
    agree(gradient, grad)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_halves(dtype, reduction):
    x, t, _, arrays = inputs(dtype)
    given = {"mask": arrays["mask"], "class_weight": arrays["class_weight"], "reduction": reduction}
    value, grad = reference.cross_entropy_and_grad(x.astype(np.float64), t, **given)
    loss = partial(ours.cross_entropy, targets=t, **given)
    found, gradient = loss(x), jax.grad(lambda x: loss(x).sum())(x)
    assert found.dtype == jnp.float32 and gradient.dtype == dtype
    agree(found, value)
    agree(gradient, grad, NUMPY_DTYPES[dtype])


def test_float16_survives_a_scaled_loss():
    """1e-10 is no float16, 2**15 times it is: a gradient must not be rounded before it is scaled."""
    x = jnp.array([[0.0, -16.0]], jnp.float16)
    grad = jax.grad(lambda x: 2.0**15 * ours.cross_entropy(x, jnp.array([0])))(x)
    agree(grad[0, 1], 2.0**15 * math.exp(-16), 1e-3)


@pytest.mark.parametrize("integer", ["uint8", "int64"])
def test_float64_and_integers(integer):
    x, t, _, arrays = inputs()
    with jax.enable_x64(True):
        x = np.asarray(x, np.float64)
        loss, grad = jax.value_and_grad(ours.cross_entropy)(x, jnp.asarray(t, integer), mask=arrays["mask"])
        assert loss.dtype == grad.dtype == jnp.float64
        value, right = reference.cross_entropy_and_grad(x, t, mask=arrays["mask"])
        agree(loss, value, 1e-14)
        agree(grad, right, 1e-14)
        assert ours.cross_entropy(np.array([[1, 2, 3]]), jnp.array([0], integer)).dtype == jnp.float64


@pytest.mark.parametrize("axis", [0, 1])
def test_class_axis(axis):
    x, t, _, arrays = inputs()
    right = reference.cross_entropy_and_grad(x.astype(float), t, lengths=arrays["lengths"])
    moved = np.moveaxis(x, -1, axis).copy()
    loss = partial(ours.cross_entropy, targets=t, axis=axis, lengths=arrays["lengths"])
    value, grad = jax.jit(jax.value_and_grad(loss))(moved)
    agree(value, right[0])
    agree(jnp.moveaxis(grad, axis, -1), right[1])


@pytest.mark.parametrize("weighted", ["", "class_weight sample_weight mask lengths"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_nll_loss(weighted, probabilities):
    x, t, q, arrays = inputs()
    given = {name: arrays[name] for name in weighted.split()}
    targets, log_probs = q if probabilities else t, np.asarray(ours.log_softmax(x))
    right = reference.nll_loss_and_grad(log_probs.astype(float), targets, **given)
    found = jax.jit(jax.value_and_grad(lambda x: ours.nll_loss(x, targets, **given)))(log_probs)
    for one, other in zip(found, right, strict=True):
        agree(one, other)


@pytest.mark.parametrize("name", ["log_softmax", "softmax", "logsumexp"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations(name, dtype):
    x = inputs(dtype)[0]
    weights = np.linspace(0, 1, B * T * C, dtype=np.float32).reshape(x.shape)

    def both(function, x):
        def weighted(x):
            y = function(x, -1, keepdims=True) if name == "logsumexp" else function(x, -1)
            return (y * weights).sum(), y

        (_, y), grad = jax.jit(jax.value_and_grad(weighted, has_aux=True))(x)
        return y, grad

    y, grad = both(getattr(ours, name), x)
    assert y.dtype == (jnp.float32 if name == "logsumexp" else dtype) and grad.dtype == dtype
    for found, right in zip((y, grad), both(getattr(jax.nn, name), x.astype(np.float32)), strict=True):
        agree(found, right, NUMPY_DTYPES[dtype])
    agree(getattr(ours, name)(x, axis=0), getattr(fastxent, name)(x, axis=0))


def test_nothing_to_reduce():
    empty, t = jnp.zeros((0, C)), jnp.zeros(0, int)
    assert math.isnan(ours.cross_entropy(empty, t)) and ours.cross_entropy(empty, t, empty_value=2) == 2
    assert ours.cross_entropy(empty, t, reduction="sum") == 0
    assert ours.cross_entropy(empty, t, reduction="none").shape == (0,)
    assert jax.grad(ours.cross_entropy)(empty, t).shape == (0, C)
    assert ours.logsumexp(jnp.zeros((2, 0))).tolist() == [-math.inf] * 2
    slope = jax.grad(ours.logsumexp)
    for size in (0.0, 1e5, 1e8):
        assert slope(jnp.array([size, size], jnp.float32)).tolist() == [0.5, 0.5]
    assert slope(jnp.full(2, -jnp.inf)).tolist() == [0.0, 0.0]
    assert np.isnan(slope(jnp.array([1.0, jnp.inf]))[1])
    assert ours.log_softmax(jnp.zeros((2, 0))).shape == (2, 0)
    nan = jnp.full((2, C), jnp.nan)
    value, grad = jax.value_and_grad(ours.cross_entropy)(nan, jnp.zeros(2, int), mask=jnp.zeros(2, bool), empty_value=1)
    assert value == 1 and not grad.any()
    value, grad = jax.value_and_grad(ours.cross_entropy)(nan, jnp.zeros(2, int), class_weight=jnp.zeros(C))
    assert math.isnan(value) and not grad.any()


# --- vmap


@pytest.mark.parametrize("batched", ["x t", "t", "x", "x t mask", "t class_weight", "x lengths", "sample_weight"])
def test_vmap(batched):
    """Four batches at once; what is not named is the same for all."""
    rng = np.random.default_rng(1)
    x, t, _, arrays = inputs()
    given = {"x": x, "t": t} | arrays
    changed = {
        "x": lambda: rng.standard_normal(x.shape).astype(np.float32), "t": lambda: rng.integers(0, C, (B, T)),
        "mask": lambda: rng.random((B, T)) > 0.5, "lengths": lambda: rng.integers(0, T + 1, B),
        "class_weight": lambda: rng.uniform(0.1, 3, C), "sample_weight": lambda: rng.uniform(0, 2, (B, T)),
    }
    names = batched.split()
    given |= {name: np.stack([changed[name]() for _ in range(4)]) for name in names}

    def loss(given, reduction):
        rest = {name: a for name, a in given.items() if name not in "xt"}
        return ours.cross_entropy(given["x"], given["t"], reduction=reduction, **rest)

    axes = ({name: 0 if name in names else None for name in given},)
    for reduction in "mean", "sequence_mean":
        def gradient(given, reduction=reduction):
            return jax.value_and_grad(lambda x: loss(given | {"x": x}, reduction))(given["x"])

        values, grads = jax.jit(jax.vmap(gradient, axes))(given)
        losses = jax.vmap(lambda given: loss(given, "none"), axes)(given)
        for i in range(4):
            one = {name: a[i] if name in names else a for name, a in given.items()}
            rest = {name: a for name, a in one.items() if name not in "xt"}
            value, grad = fastxent.cross_entropy_and_grad(one["x"], one["t"], reduction=reduction, **rest)
            agree(values[i], value)
            agree(grads[i], grad)
            agree(losses[i], fastxent.cross_entropy(one["x"], one["t"], reduction="none", **rest))


def test_nested_vmap():
    x, t, _, _ = inputs()
    alone = jax.vmap(jax.vmap(ours.cross_entropy))(x, t)
    agree(alone, fastxent.cross_entropy(x, t, reduction="none"))
    every = jax.jit(jax.vmap(jax.vmap(jax.grad(ours.cross_entropy), (None, 0)), (0, None)))(x[:, :2], t[:, :2])
    for i, k in np.ndindex(B, B):
        agree(every[i, k], fastxent.cross_entropy_and_grad(x[i, :2], t[k, :2])[1])


def test_uncounted_batches_have_no_gradient():
    """Where vmap has several values, one without a divisor must not let its NaN logits through."""
    x = jnp.stack([jnp.full((2, C), jnp.nan), jnp.ones((2, C))])
    weight = jnp.array([0.0, 1, 1, 1, 1])
    t = jnp.array([[0, 0], [1, 2]])
    values, grads = jax.vmap(jax.value_and_grad(partial(ours.cross_entropy, class_weight=weight)))(x, t)
    assert math.isnan(values[0]) and not grads[0].any()
    agree(grads[1], fastxent.cross_entropy_and_grad(np.ones((2, C), np.float32), [1, 2], class_weight=weight)[1])


# --- the rest of JAX


@pytest.mark.parametrize("case", ["all arrays", "probabilities, each", "shift"])
def test_derivatives(case):
    """By logits, weights and class probabilities, in both modes, against differences."""
    names, probabilities, options = CASES[case]
    x, t, q, arrays = inputs()
    with jax.enable_x64(True):
        given = {n: jnp.asarray(arrays[n], float if arrays[n].dtype.kind == "f" else None) for n in names.split()}
        differentiated = {n: a for n, a in given.items() if n.endswith("weight")}
        if "sample_weight" in differentiated:
            differentiated["sample_weight"] += 0.1  # at 0 a position drops out: no derivative there
        if probabilities:
            differentiated["targets"] = jnp.asarray(q, float)

        @jax.jit
        def loss(x, differentiated):
            return ours.cross_entropy(x, **{"targets": t} | given | differentiated, **options)

        point = (jnp.asarray(x, float), differentiated)
        check_grads(loss, point, order=1, modes=["fwd", "rev"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["none", "sequences", "scaled"])
def test_second_derivatives(case):
    """Forward over reverse and reverse over reverse, against differences of the oracle's gradient."""
    names, _, options = CASES[case]
    x, t, _, arrays = inputs()
    given = {name: arrays[name] for name in names.split()}
    v, h = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32), 1e-5

    def gradient(x):
        return jax.grad(lambda x: ours.cross_entropy(x, t, **given, **options).sum())(x)

    forward, reverse = jax.jit(lambda x: (jax.jvp(gradient, (x,), (v,))[1], jax.vjp(gradient, x)[1](v)[0]))(x)
    ahead, back = (
        reference.cross_entropy_and_grad(x.astype(float) + s * h * v, t, **given, **options)[1] for s in (1, -1)
    )
    for found in forward, reverse:
        agree(found, (ahead - back) / (2 * h), 2e-5)


def test_mixed_derivative():
    """The gradient by the logits, differentiated by the class weights."""
    x, t, _, arrays = inputs()
    w, v, h = arrays["class_weight"], np.linspace(-1, 1, C, dtype=np.float32), 1e-5
    gradient = jax.grad(lambda x, w: ours.cross_entropy(x, t, class_weight=w, label_smoothing=0.1))
    found = jax.jit(lambda w: jax.jvp(lambda w: gradient(x, w), (w,), (v,))[1])(w)
    ahead, back = (
        reference.cross_entropy_and_grad(x.astype(float), t, class_weight=near, label_smoothing=0.1)[1]
        for near in (w.astype(float) + h * v, w.astype(float) - h * v)
    )
    agree(found, (ahead - back) / (2 * h), 2e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_donated(inplace):
    """The gradient may then be written where the logits were; and if the logits are still needed, they are kept."""
    x, t, _, _ = inputs()
    right = fastxent.cross_entropy_and_grad(x, t)

    @partial(jax.jit, donate_argnums=0)
    def step(x):
        return jax.value_and_grad(partial(ours.cross_entropy, targets=t, inplace_backward=inplace))(x)

    given = jnp.array(x)
    place = given.unsafe_buffer_pointer()
    value, grad = step(given)
    assert given.is_deleted()
    assert not inplace or grad.unsafe_buffer_pointer() == place
    agree(value, right[0])
    agree(grad, right[1])
    kept, grad = jax.jit(lambda x: (jnp.sin(x), jax.grad(
        lambda x: ours.cross_entropy(jnp.sin(x), t, inplace_backward=inplace))(x)))(x)
    agree(kept, np.sin(x))
    agree(grad, fastxent.cross_entropy_and_grad(np.sin(x), t)[1] * np.cos(x))
    batched = jax.vmap(jax.grad(partial(ours.cross_entropy, inplace_backward=inplace)), (None, 0))(x[0], t)
    agree(batched[2], fastxent.cross_entropy_and_grad(x[0], t[2])[1])


def test_threads_at_once():
    rng = np.random.default_rng(0)
    step = jax.jit(jax.value_and_grad(ours.cross_entropy))
    work = [(rng.standard_normal((64, 1000)).astype(np.float32), rng.integers(0, 1000, 64)) for _ in range(4)]
    right = [step(*one) for one in work]
    wrong = []

    def repeat(k):
        for _ in range(20):
            value, grad = step(*work[k])
            if value != right[k][0] or not (grad == right[k][1]).all():
                wrong.append(k)

    threads = [threading.Thread(target=repeat, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_control_flow_and_checkpoint():
    x, t, _, _ = inputs()
    total, _ = jax.lax.scan(lambda sum, one: (sum + ours.cross_entropy(*one), None), 0.0, (x, t))
    agree(total, sum(fastxent.cross_entropy(*one) for one in zip(x, t, strict=True)))

    def summed(x):
        return jax.lax.scan(lambda sum, one: (sum + ours.cross_entropy(*one), None), 0.0, (x, t))[0]

    right = np.stack([fastxent.cross_entropy_and_grad(*one)[1] for one in zip(x, t, strict=True)])
    agree(jax.jit(jax.grad(summed))(x), right)
    agree(jax.grad(jax.checkpoint(summed))(x), right)

    def descend(state):
        x, _ = state
        loss, grad = jax.value_and_grad(ours.cross_entropy)(x, t)
        return x - 5 * grad, loss

    _, loss = jax.lax.while_loop(lambda state: state[1] > 0.1, descend, (jnp.asarray(x), jnp.inf))
    assert loss <= 0.1


def test_a_traced_normalizer():
    x, t, _, _ = inputs()
    value, grad = jax.jit(jax.value_and_grad(lambda x, n: ours.cross_entropy(x, t, normalizer=n)))(x, 5.0)
    right = fastxent.cross_entropy_and_grad(x, t, normalizer=5)
    agree(value, right[0])
    agree(grad, right[1])
    assert ours.cross_entropy(x, t, normalizer=jnp.array(0.0), empty_value=3) == 3


def test_compiles_once():
    x, t, _, _ = inputs()
    before = ours._losses.loss_of._cache_size()
    for _ in range(3):
        ours.cross_entropy(x, t, empty_value=float("nan"), label_smoothing=0.125)
    assert ours._losses.loss_of._cache_size() == before + 1


# --- errors


def test_index_errors():
    x, t, _, _ = inputs()
    bad = t.copy()
    bad[1, 2] = 7
    message = r"the target at position \(1, 2\) is 7, outside \[0, 5\)"
    for function in (ours.cross_entropy, jax.jit(ours.cross_entropy), jax.grad(ours.cross_entropy),
                     jax.vmap(ours.cross_entropy), jax.jit(jax.vmap(jax.grad(ours.cross_entropy)))):
        agree(jnp.sum(function(x, t)) * 0, 0)  # also a call whose compiled form has already run
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message):
            jax.block_until_ready(function(x, bad))
    for function in ours.cross_entropy, jax.grad(ours.cross_entropy):
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=r"\(1, 1\) \(targets\[1, 2\], shift=1\)"):
            jax.block_until_ready(function(x, bad, shift=1))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="lengths must be from 0 to 4, got 5"):
        jax.block_until_ready(ours.cross_entropy(x, t, lengths=jnp.array([1, 5, 2])))
    assert np.isfinite(ours.cross_entropy(x, bad, mask=bad != 7))


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"targets": np.zeros((B, T), bool)}, TypeError, "targets have dtype bool"),
    ({"targets": np.zeros(T, int)}, ValueError, "targets must have the logits' shape without the class axis"),
    ({"targets": np.zeros((B, T, C), int)}, ValueError, "one_hot"),
    ({"targets": np.zeros((B, T))}, ValueError, "class probabilities"),
    ({"mask": np.zeros((B, T))}, TypeError, "sample_weight"),
    ({"mask": np.zeros((2, T), bool)}, ValueError, "mask must broadcast"),
    ({"class_weight": np.zeros(3)}, ValueError, r"class_weight must have shape \(5,\)"),
    ({"lengths": np.zeros(B)}, TypeError, "lengths has dtype"),
    ({"lengths": np.zeros(2, int)}, ValueError, r"lengths must have shape \(3,\)"),
    ({"axis": 3}, ValueError, "axis 3 is out of bounds"),
    ({"shift": -1}, ValueError, "shift must be at least 0"),
    ({"label_smoothing": 2}, ValueError, "label_smoothing must be from 0 to 1"),
    ({"softcap": 0}, ValueError, "softcap must be finite and greater than 0"),
    ({"z_loss": -1}, ValueError, "z_loss must be finite and at least 0"),
    ({"reduction": "median"}, ValueError, "reduction must be one of"),
    ({"reduction": "none", "normalizer": 2}, ValueError, "normalizer is for"),
    ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
    ({"logits": np.zeros((B, T, C), np.complex64)}, TypeError, "logits has dtype complex64"),
    ({"logits": np.zeros((B, T, 0))}, ValueError, "have no classes"),
])
def test_arguments(change, error, message):
    x, t, _, _ = inputs()
    with pytest.raises(error, match=message):
        ours.cross_entropy(**{"logits": x, "targets": t} | change)


def test_options_are_known_when_traced():
    x, t, _, _ = inputs()
    with pytest.raises(TypeError, match="label_smoothing must be a Python number"):
        jax.jit(lambda e: ours.cross_entropy(x, t, label_smoothing=e))(0.1)


# --- a small model


def test_recurrent_tagger_trains_as_with_optax():
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    vocabulary, tags, width, batch, steps = 20, 6, 12, 8, 5
    words = jnp.asarray(rng.integers(0, vocabulary, (batch, steps)))
    labels = (words * 7 + jnp.roll(words, 1, 1)) % tags
    lengths = jnp.asarray(rng.integers(1, steps + 1, batch))
    within = jnp.arange(steps) < lengths[:, None]
    shapes = {"embed": (vocabulary, width), "step": (width, width), "out": (width, tags)}
    start = {name: jnp.asarray(rng.standard_normal(shape) / 3, jnp.float32) for name, shape in shapes.items()}

    def logits(parameters):
        def step(state, x):
            state = jnp.tanh(state @ parameters["step"] + x)
            return state, state

        inputs = jnp.swapaxes(parameters["embed"][words], 0, 1)
        _, states = jax.lax.scan(step, jnp.zeros((batch, width)), inputs)
        return jnp.swapaxes(states, 0, 1) @ parameters["out"]

    def theirs(parameters):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(parameters), labels)
        return jnp.where(within, losses, 0).sum() / within.sum()

    def train(loss):
        @jax.jit
        def update(parameters):
            value, grads = jax.value_and_grad(loss)(parameters)
            return jax.tree.map(lambda a, grad: a - 0.5 * grad, parameters, grads), value

        parameters, values = start, []
        for _ in range(60):
            parameters, value = update(parameters)
            values.append(float(value))
        return values

    found = train(lambda parameters: ours.cross_entropy(logits(parameters), labels, lengths=lengths))
    np.testing.assert_allclose(found, train(theirs), rtol=2e-3)
    assert found[-1] < 0.8 * found[0]
