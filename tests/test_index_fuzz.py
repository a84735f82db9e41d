"""Class indices that lie: every integer type and its extremes, every entry point and reduction, every engine.

What is asked of an index outside [0, C) is an IndexError that names the first one that counts, no write before it, and
nothing at all where the position is left out. tests/sanitize.sh runs this file under AddressSanitizer, which sees the
read that a test cannot.
"""

import threading

import cases
import numpy as np
import pytest

import fastxent

on_every_engine = pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
REDUCTIONS = ("none", "sum", "mean", "sequence_mean", "batch_mean")
B, T = 5, 9
SHAPES = [(3, -1), (17, -1), (17, 1), (300, -1), (300, 1)]  # tiles, columns, rows: (classes, axis)


def values_of(dtype, n_classes):
    """Indices of this type that are no class of so many."""
    limits = np.iinfo(dtype)
    tried = (-1, n_classes, n_classes + 1, -n_classes, 2**31 - 1, 2**31, -(2**31), 2**32, 2**32 + 1, 2**63 - 1, 2**63,
             limits.min, limits.max, limits.max - 1, limits.min + 1)
    return sorted({v for v in tried if limits.min <= v <= limits.max and not 0 <= v < n_classes})


def linear(function):
    """A linear loss over the same positions: the logits' first rows stand for hidden states."""
    def call(logits, targets, axis=-1, **options):
        hidden = np.moveaxis(logits, axis, -1)
        weight = np.zeros((logits.shape[axis], hidden.shape[-1]), hidden.dtype)
        return function(hidden, weight, targets, **options)

    return call


WITH_REDUCTION = {
    "cross_entropy": fastxent.cross_entropy,
    "cross_entropy, saved": lambda *a, **k: fastxent.cross_entropy(*a, return_saved=True, **k)[0],
    "cross_entropy_and_grad": fastxent.cross_entropy_and_grad,
    "cross_entropy_grad": fastxent.cross_entropy_grad,
    "cross_entropy_and_softmax": fastxent.cross_entropy_and_softmax,
    "nll_loss": fastxent.nll_loss,
    "nll_loss_and_grad": fastxent.nll_loss_and_grad,
    "cross_entropy_from_probs": fastxent.cross_entropy_from_probs,
    "cross_entropy_from_probs_and_grad": fastxent.cross_entropy_from_probs_and_grad,
    "focal_loss": fastxent.focal_loss,
    "focal_loss_and_grad": fastxent.focal_loss_and_grad,
    "linear_cross_entropy": linear(fastxent.linear_cross_entropy),
    "linear_cross_entropy_and_grad": linear(fastxent.linear_cross_entropy_and_grad),
}


def evaluate(logits, targets, axis=-1, **options):
    evaluator = fastxent.Evaluator(ignore_index=options.pop("ignore_index"))
    evaluator.update(np.moveaxis(logits, axis, -1), targets, **options)


def finish(logits, targets, axis=-1, **options):
    del options["ignore_index"]  # partials know nothing of validity
    return fastxent.finish_partials(fastxent.partials(logits, targets, axis=axis))


WITHOUT = {
    "token_statistics": fastxent.token_statistics,
    "linear_token_statistics": linear(fastxent.linear_token_statistics),
    "Evaluator": evaluate,
    "partials": finish,
}
OUTPUTS = {
    "cross_entropy_and_grad": "out_grad", "cross_entropy_grad": "out_grad", "cross_entropy_and_softmax": "out_softmax",
    "nll_loss_and_grad": "out_grad", "cross_entropy_from_probs_and_grad": "out_grad", "focal_loss_and_grad": "out_grad",
}


def logits_of(n_classes, axis, dtype="float32"):
    shape = (B, T, n_classes) if axis == -1 else (B, n_classes, T)
    return cases.rng(n_classes).uniform(0.1, 1.0, shape).astype(cases.FLOATS[dtype])


def bad_targets(random, dtype, n_classes, value):
    """Class indices of which one, two or all but one are `value`, in some layout; and where the first is."""
    targets = cases.class_indices(random, (B, T), n_classes, dtype)
    count = int(random.choice([1, 2, B * T - 1]))
    flat = random.choice(B * T, size=count, replace=False)
    targets.reshape(-1)[flat] = value
    layout = str(random.choice(["C", "F", "every other", "reversed", "unaligned", "byte-swapped", "read-only"]))
    return cases.lay_out(layout, targets), tuple(map(int, divmod(int(flat.min()), T)))


@on_every_engine
@pytest.mark.parametrize("name", [*WITH_REDUCTION, *WITHOUT])
def test_every_bad_index_is_found(name, engine):
    random = cases.rng(*name.encode())
    with cases.running_on(*engine):
        for n_classes, axis in SHAPES:
            logits = logits_of(n_classes, axis)
            for dtype in cases.INTEGERS.values():
                some = slice(None) if engine[0] == "native" else slice(int(random.integers(3)), None, 3)
                for value in values_of(dtype, n_classes)[some]:
                    targets, place = bad_targets(random, dtype, n_classes, value)
                    check_found(name, logits, targets, axis, place, value, random)


def check_found(name, logits, targets, axis, place, value, random):
    options = {"axis": axis, "ignore_index": None}
    if name in WITH_REDUCTION:
        options["reduction"] = str(random.choice(REDUCTIONS))
    call = (WITH_REDUCTION | WITHOUT)[name]
    if name == "partials":
        with pytest.raises(IndexError):
            call(logits, targets, **options)
        return
    output = OUTPUTS.get(name)
    if output:
        options[output] = np.full_like(logits, 7)
    with pytest.raises(IndexError) as raised:
        call(logits, targets, **options)
    assert f"{place} is {value}, outside" in str(raised.value)
    assert not output or (options.pop(output) == 7).all()
    # Left out by a mask or as the index to ignore, it is nothing.
    mask = (targets >= 0) & (targets < logits.shape[axis])
    result = call(logits, targets, **options | {"mask": mask})
    assert result is None or np.isfinite(np.asarray(result[0] if isinstance(result, tuple) else result)).all()
    call(logits, targets, **options | {"ignore_index": value})


@pytest.mark.parametrize(
    ("engine", "dtype"), [(e, d) for e in cases.engines() for d in cases.FLOATS if e[0] == "native" or d == "float32"]
)
@pytest.mark.parametrize(("n_classes", "axis"), SHAPES)
def test_indices_that_another_thread_changes(n_classes, axis, dtype, engine):
    """They were right when they were checked. The call gives some answer or an IndexError; it stays in its memory."""
    logits = logits_of(n_classes, axis, dtype)
    logits = np.concatenate([logits] * 40)
    targets = np.zeros((len(logits), T), np.int64)
    values, finished = np.array([0, -1, n_classes, 2**62, -(2**63), 2**31], np.int64), threading.Event()
    out = np.empty_like(logits)

    def change():
        turn = 0
        while not finished.is_set():
            turn += 1
            targets[:] = values[turn % 2 * (turn // 2 % 6)]

    other = threading.Thread(target=change)
    other.start()
    try:
        with cases.running_on(*engine):
            for turn in range(40):
                call = list(WITH_REDUCTION.values())[turn % 11]
                name = OUTPUTS.get(list(WITH_REDUCTION)[turn % 11])
                try:
                    call(logits, targets, axis=axis, ignore_index=None, num_threads=2, **{name: out} if name else {})
                except IndexError as error:
                    assert "outside" in str(error)
    finally:
        finished.set()
        other.join()
