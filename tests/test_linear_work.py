"""Losses of a linear layer: gradients in given arrays, the filter, how much is multiplied, and in how much memory."""

import cases
import isolated
import numpy as np
import pytest
from linear_cases import LIMITS, MIB, TWINS, Head, exact, for_every_float, on_every_engine, rounding, running_on, u_of

import fastxent
from fastxent import _linear_chunks, _linear_run, reference_linear
from fastxent._linear_chunks import Sizes, forward_chunks, gradient_chunks

# --- gradients into given arrays


@on_every_engine
@for_every_float
@pytest.mark.parametrize("limit", LIMITS)
def test_accumulation(engine, dtype, limit):
    with running_on(*engine):
        head = Head(550, positions=(23,), dtype=dtype)
        options = {"bias": head.bias, "reduction": "sum", "normalizer": 23.0, "max_bytes": limit}
        _, whole = fastxent.linear_cross_entropy_and_grad(*head.operands, **options)
        start = [exact(head.random, a.shape, dtype) for a in whole]
        into = [a.copy() for a in start]
        names = ("out_hidden_grad", "out_weight_grad", "out_bias_grad")
        _, got = fastxent.linear_cross_entropy_and_grad(
            *head.operands, **options, **dict(zip(names, into, strict=True)), accumulate=True)
        for before, added, after, returned in zip(start, whole, into, got, strict=True):
            assert returned is after
            u = max(u_of(head.dtype), 2 * rounding(head.dtype))
            wide = before.astype("f8") + added.astype("f8")
            np.testing.assert_allclose(after.astype("f8"), wide, rtol=8 * u, atol=8 * u)
        # without accumulate what was there is gone
        _, again = fastxent.linear_cross_entropy_and_grad(
            *head.operands, **options, **dict(zip(names, into, strict=True)))
        for first, second in zip(whole, again, strict=True):
            np.testing.assert_array_equal(first, second)


def test_halves_over_chunks_are_rounded_once():
    head = Head(551, positions=(400,), classes=9, features=4, dtype="bfloat16", bias=False)
    one = fastxent.linear_cross_entropy_and_grad(*head.operands)[1].weight.astype("f8")
    many = fastxent.linear_cross_entropy_and_grad(*head.operands, max_bytes=600)[1].weight.astype("f8")
    np.testing.assert_allclose(many, one, rtol=2.0**-8)
    expected = reference_linear.linear_cross_entropy_and_grad(*head.operands)[1][1]
    np.testing.assert_allclose(many, expected, rtol=2.0**-8, atol=1e-6)


def test_outputs_of_any_layout():
    head = Head(552)
    _, expected = fastxent.linear_cross_entropy_and_grad(*head.operands, bias=head.bias)
    for layout in ("F", "every other", "reversed", "unaligned"):
        for limit in LIMITS:
            outs = [cases.lay_out(layout, np.zeros(a.shape, "f4")) for a in expected]
            losses = cases.lay_out(layout, np.zeros(head.positions, "f4"))
            fastxent.linear_cross_entropy_and_grad(
                *head.operands, bias=head.bias, out_hidden_grad=outs[0], out_weight_grad=outs[1],
                out_bias_grad=outs[2], max_bytes=limit)
            for mine, theirs in zip(outs, expected, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
            fastxent.linear_cross_entropy(*head.operands, reduction="none", out=losses)
            np.testing.assert_array_equal(losses, fastxent.linear_cross_entropy(*head.operands, reduction="none"))


def test_nothing_valid_leaves_sums_alone():
    head = Head(553)
    into = [np.ones_like(a) for a in (head.hidden, head.weight)]
    for add in (True, False):
        loss, _ = fastxent.linear_cross_entropy_and_grad(
            *head.operands, mask=np.zeros(5, bool), out_hidden_grad=into[0], out_weight_grad=into[1], accumulate=add)
        assert np.isnan(loss)
        assert all((a == (1 if add else 0)).all() for a in into)


# --- the filter


@on_every_engine
@pytest.mark.parametrize("limit", [30_000, 256 * MIB])
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.02}, {"logit_scale": 1.5}, {"label_smoothing": 0.1}], ids=str)
def test_gradient_filter_keeps_its_bound(engine, options, limit, monkeypatch):
    monkeypatch.setattr(_linear_chunks, "FILTER_CLASSES", 64)
    random = cases.rng(560)
    classes, features, n = 600, 8, 90
    weight = random.normal(size=(classes, features)).astype("f4") * np.linspace(0.1, 3, classes, dtype="f4")[:, None]
    hidden, targets = random.normal(size=(n, features)).astype("f4"), random.integers(0, classes, n)
    upstream = random.uniform(0.5, 2, n)
    left_out = 0
    given = {"reduction": "none", "upstream": upstream, "max_bytes": limit, **options}
    with running_on(*engine):
        plain_loss, plain = fastxent.linear_cross_entropy_and_grad(hidden, weight, targets, **given)
        for eps in (1e-7, 1e-4, 1e-2):
            loss, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, targets, gradient_filter=eps, **given)
            np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
            log_sum = fastxent.logsumexp(hidden @ weight.T * options.get("logit_scale", 1.0))
            total = upstream * options.get("logit_scale", 1.0) * (1 + 2 * options.get("z_loss", 0) * np.abs(log_sum))
            wrong = np.linalg.norm(grads.hidden - plain.hidden, axis=1)
            assert (wrong <= total * min(1, classes * eps) * np.linalg.norm(weight, axis=1).max() + 2e-5).all()
            wrong = np.linalg.norm(grads.weight - plain.weight, axis=1)
            assert (wrong <= eps * (total * np.linalg.norm(hidden, axis=1)).sum() + 2e-5 * n).all()
            left_out += not np.array_equal(grads.weight, plain.weight)
            # the target's class is never left out
            assert (np.abs(grads.hidden).sum(axis=1) > 0).all()
    assert left_out >= (0 if "label_smoothing" in options else 1)


def test_gradient_filter_multiplies_less(monkeypatch):
    monkeypatch.setattr(_linear_chunks, "FILTER_CLASSES", 64)
    head = Head(561, positions=(64,), classes=3000, features=4, spread=6.0)
    seen = products(monkeypatch)
    fastxent.linear_cross_entropy_and_grad(*head.operands)
    whole = sum(seen)
    seen.clear()
    fastxent.linear_cross_entropy_and_grad(*head.operands, gradient_filter=1e-4)
    assert sum(seen) < 0.9 * whole


# --- how much is done, and in how much memory


def products(monkeypatch):
    """What each matrix product costs, in multiplications, as they are made."""
    seen = []
    true = np.matmul

    def counting(a, b, **keywords):
        seen.append(int(np.prod(a.shape)) * (b.shape[1] if b.ndim > 1 else 1))
        return true(a, b, **keywords)

    monkeypatch.setattr(_linear_run.np, "matmul", counting)
    return seen


@pytest.mark.parametrize("limit", [20_000, 256 * MIB])
@pytest.mark.parametrize("name", ["mask", "lengths", "ignore_index", "sample_weight", "shift"])
def test_only_valid_positions_are_multiplied(name, limit, monkeypatch):
    head = Head(570, positions=(4, 10), classes=200)
    valid = head.random.uniform(size=(4, 10)) < 0.3
    options = {"mask": {"mask": valid}, "sample_weight": {"sample_weight": valid * 2.0}, "shift": {"shift": 7},
               "lengths": {"lengths": [3, 0, 10, 1]}, "ignore_index": {"ignore_index": -1}}[name]
    if name == "ignore_index":
        head.targets[~valid] = -1
    if name == "lengths":
        valid = fastxent.lengths_to_mask([3, 0, 10, 1], 10)
    if name == "shift":
        valid = np.broadcast_to(np.arange(10) < 3, (4, 10))
    seen = products(monkeypatch)
    fastxent.linear_cross_entropy(*head.operands, max_bytes=limit, **options)
    assert sum(seen) == valid.sum() * 200 * 6
    seen.clear()
    fastxent.linear_cross_entropy_and_grad(*head.operands, max_bytes=limit, **options)
    assert sum(seen) == 3 * valid.sum() * 200 * 6


def test_half_weights_are_widened_once_in_a_loss(monkeypatch):
    head = Head(571, positions=(300,), classes=1500, dtype="bfloat16", bias=False)
    copied = []
    true = np.copyto
    monkeypatch.setattr(_linear_run.np, "copyto", lambda to, a, **more: (copied.append(len(a)), true(to, a, **more)))
    fastxent.linear_cross_entropy(*head.operands, max_bytes=40_000)
    assert sum(copied) == 1500 and len(copied) > 1


GRID = [Sizes(n, d, v, item, copies, wide)
        for n in (0, 1, 7, 300, 2048, 100_000) for d in (1, 64, 768, 4096) for v in (1, 17, 8192, 50257, 256_000)
        for item in (4, 8) for copies in (False, True) for wide in (False, True)]


def used(sizes, chunks, gradient, filtered=False):
    """Bytes of a workspace, by what `_linear_run` allocates."""
    rows, classes = chunks
    total = rows * sizes.features * 2 * sizes.copies_hidden + classes * sizes.features * sizes.copies_weight
    if not gradient:
        return sizes.itemsize * (total + rows * classes)
    total += rows * sizes.classes + 2 * rows * sizes.features + classes * sizes.features
    if filtered:
        total += rows * (classes + 2 * sizes.features)
    return sizes.itemsize * total


@pytest.mark.parametrize("limit", [1, 10_000, MIB, 64 * MIB, 256 * MIB, 4096 * MIB])
def test_the_rule_of_chunks(limit):
    for sizes in GRID:
        forward = forward_chunks(sizes, limit)
        assert 1 <= forward.rows <= max(1, sizes.rows) and 1 <= forward.classes <= sizes.classes
        assert used(sizes, forward, False) <= max(min(limit, 64 * MIB), used(sizes, (1, 1), False)) or forward == (1, 1)
        for filtered in (False, True):
            both = gradient_chunks(sizes, limit, filtered)
            assert 1 <= both.rows <= max(1, sizes.rows) and 1 <= both.classes <= sizes.classes
            assert used(sizes, both, True, filtered) <= limit or both.rows == 1, (sizes, both)


def test_the_rule_of_chunks_at_a_language_model():
    sizes = Sizes(2048, 768, 50257, 4, False, False)
    assert forward_chunks(sizes, 256 * MIB) == (2048, 3872)
    assert gradient_chunks(sizes, 256 * MIB, False) == (1024, 3872)
    assert gradient_chunks(sizes, 1024 * MIB, False).rows == 1024  # sqrt(2 n d) = 1773: two equal chunks
    assert gradient_chunks(sizes._replace(rows=100_000), 1 << 40, False).rows >= 2 * 768


def test_parts_are_even():
    for total in (1, 5, 100, 4097):
        for most in (1, 3, 16, 50, 5000):
            for multiple in (1, 16):
                size = _linear_chunks.even(total, most, multiple)
                assert 1 <= size <= max(most, 1) or size == total
                parts = _linear_chunks.spans(total, size)
                assert parts[0][0] == 0 and parts[-1][1] == total


def test_progress():
    head = Head(580, positions=(40,), classes=300)
    for call in (fastxent.linear_cross_entropy, fastxent.linear_cross_entropy_and_grad,
                 fastxent.linear_token_statistics):
        seen = []
        call(*head.operands, max_bytes=9000, progress=lambda done, total, seen=seen: seen.append((done, total)))
        total = seen[0][1]
        assert total > 3 and seen == [(k + 1, total) for k in range(total)]
    with pytest.raises(KeyError):
        fastxent.linear_cross_entropy(*head.operands, progress=lambda done, total: {}["stop"])


MEMORY = """
    from pathlib import Path
    limit, what, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]

    def status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    random = np.random.default_rng(0)
    def head(n, d, v):
        hidden, weight = random.normal(size=(n, d)).astype(kind), random.normal(size=(v, d)).astype(kind)
        return hidden, weight, random.integers(0, v, n)

    call = getattr(fastxent, what)
    call(*head(64, 16, 100))
    arrays = head(800, 32, 40000)  # logits of 128 or 256 MB
    outs = {}
    if "grad" in what:
        outs = {"out_hidden_grad": np.ones_like(arrays[0]), "out_weight_grad": np.ones_like(arrays[1])}
    np.matmul(arrays[0][:512], arrays[1][:512].T)  # BLAS's own buffers
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call(*arrays, max_bytes=limit, **outs)
    print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("what", TWINS)
@pytest.mark.parametrize("megabytes", [8, 100])
def test_the_workspace_is_honoured(what, megabytes, kind):
    if not isolated.sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    extra = int(isolated.run(MEMORY, megabytes * MIB, what, kind))
    limit = megabytes * MIB if "grad" in what else min(megabytes, 64) * MIB
    assert extra <= limit + 3 * MIB, f"{extra / MIB:.1f} MiB"  # positions' arrays, and an allocator's rounding


def test_neither_positions_nor_classes():
    arrays = np.ones((0, 4)), np.ones((0, 4)), np.zeros(0, int)
    assert np.isnan(fastxent.linear_cross_entropy(*arrays))
    assert fastxent.linear_cross_entropy(*arrays, reduction="sum") == 0
    assert np.isnan(fastxent.linear_cross_entropy_and_grad(*arrays)[0])
    assert fastxent.linear_token_statistics(*arrays).rank.shape == (0,)
