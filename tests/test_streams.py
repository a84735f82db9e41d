"""Results larger than the caches, which are stored past them: bit for bit those of small calls.

Whatever their alignment, with zeros and targets at every place, on every backend and instruction set; and what lies
around them stays as it was.
"""

import cases
import numpy as np
import pytest

import fastxent

ENGINES = cases.engines()
on_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(filter(None, e)))
every_float = pytest.mark.parametrize("dtype", cases.FLOATS)
same = np.testing.assert_array_equal
NONE = {"reduction": "none"}


@on_every_engine
@every_float
@pytest.mark.parametrize("n_classes", [17, 250, 501, 1025])
def test_results_larger_than_the_caches_are_those_of_small_calls(n_classes, dtype, engine):
    """Large outputs are stored past the caches: whatever their alignment, with zeros and targets at every place."""
    random = cases.rng(94, n_classes)
    n = 6 * 2**20 // (cases.FLOATS[dtype].itemsize * n_classes)
    logits = cases.scores(random, (n, n_classes), cases.FLOATS[dtype])
    targets, mask = np.arange(n) % n_classes, random.uniform(size=n) < 0.9
    with cases.running_on(*engine):
        pieces = [slice(i, i + 97) for i in range(0, n, 97)]
        small = [fastxent.cross_entropy_and_grad(logits[i], targets[i], mask=mask[i], **NONE) for i in pieces]
        loss, gradient = (np.concatenate(parts) for parts in zip(*small, strict=True))
        p, logs = (np.concatenate([f(logits[i]) for i in pieces]) for f in (fastxent.softmax, fastxent.log_softmax))
        for offset in (0, 1, 2 * cases.FLOATS[dtype].itemsize, 16):
            raw = np.zeros(logits.nbytes + offset, np.uint8)[offset:].view(logits.dtype).reshape(logits.shape)
            got = fastxent.cross_entropy_and_grad(logits, targets, mask=mask, out_grad=raw, **NONE)
            same(got[0], loss)
            same(raw, gradient)
            same(fastxent.softmax(logits, out=raw), p)
            same(fastxent.log_softmax(logits, out=raw), logs)


@on_every_engine
@every_float
@pytest.mark.parametrize("n_classes", [19, 300, 1000, 1100])
def test_large_results_of_columns(n_classes, dtype, engine):
    """Positions side by side, whole panels of them masked. The lines of all classes begin at the same place of a cache
    line, or each at its own; where pieces of them meet, one writes the cache line that both share."""
    random, item = cases.rng(95, n_classes), cases.FLOATS[dtype].itemsize
    times = 5 * 2**20 // (2 * item * n_classes)
    for length, share, stretch in ((times | 1, 0.9, 200), (-(-times // 32) * 32, 0.998, 300)):
        logits = cases.scores(random, (2, n_classes, length), cases.FLOATS[dtype])
        targets = random.integers(0, n_classes, (2, length))
        mask = (random.uniform(size=(2, length)) < share) & (np.arange(length) // stretch % 3 > 0)
        upstream = random.normal(size=(2, length))
        given = {"axis": 1, "class_weight": random.uniform(size=n_classes) + 0.5}
        with cases.running_on(*engine):
            parts = []
            for i in range(0, length, 97):
                x, t, m, u = (a[..., i : i + 97] for a in (logits, targets, mask, upstream))
                x = np.ascontiguousarray(x)
                parts.append(fastxent.cross_entropy_and_grad(x, t, mask=m, upstream=u, **given, **NONE))
            loss, gradient = np.concatenate([a for a, _ in parts], 1), np.concatenate([b for _, b in parts], 2)
            mean = fastxent.cross_entropy(logits, targets, mask=mask, **given)
            for offset in (0, item, 16, 48, 60):
                memory = np.full(logits.nbytes + 256, 7, np.uint8)
                raw = memory[128 + offset :][: logits.nbytes].view(logits.dtype).reshape(logits.shape)
                given["out_grad"] = raw
                assert fastxent.cross_entropy_and_grad(logits, targets, mask=mask, **given)[0] == mean
                got = fastxent.cross_entropy_and_grad(logits, targets, mask=mask, upstream=upstream, **given, **NONE)
                same(got[0], loss)
                same(raw, gradient)
                assert (memory[: 128 + offset] == 7).all() and (memory[128 + offset + logits.nbytes :] == 7).all()
            given["out_grad"] = raw = memory[128:][: logits.nbytes].view(logits.dtype).reshape(logits.shape)
            apart = np.repeat(logits, 2, axis=2)[..., ::2]  # gathered position by position
            fastxent.cross_entropy_and_grad(apart, targets, mask=mask, upstream=upstream, **given, **NONE)
            same(raw, gradient)
            given["out_grad"] = over = logits.copy()
            fastxent.cross_entropy_and_grad(over, targets, mask=mask, upstream=upstream, **given, **NONE)
            same(over, gradient)


@on_every_engine
@every_float
@pytest.mark.parametrize("n_classes", [900, 1100, 20000])
def test_a_layout_of_results(n_classes, dtype, engine):
    """Neighbours in memory, every other element, or far apart; the maximum comes late."""
    random = cases.rng(96, n_classes)
    logits = np.sort(cases.scores(random, (3, n_classes), cases.FLOATS[dtype]), axis=1)
    targets = random.integers(0, n_classes, 3)
    with cases.running_on(*engine):
        gradient, p = fastxent.cross_entropy_and_grad(logits, targets)[1], fastxent.softmax(logits)
        for out in (np.empty((3, 2 * n_classes), logits.dtype)[:, ::2], np.empty((n_classes, 3), logits.dtype).T):
            same(fastxent.cross_entropy_and_grad(logits, targets, out_grad=out)[1], gradient)
            same(out, gradient)
            same(fastxent.softmax(logits, out=out), p)
