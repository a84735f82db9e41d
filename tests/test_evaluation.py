"""The Evaluator against plain NumPy over all positions at once, and its sums: merged, saved, loaded, reset."""

import dataclasses
import json
import math

import cases
import numpy as np
import pytest

import fastxent
from fastxent import reference_scoring

N, C, T = 6, 40, 9
BYTES = np.arange(C) % 7 + 1


def batch(seed=0, n=N, dtype=np.float32):
    random = cases.rng(97, seed)
    logits = (random.normal(size=(n, T, C)) * 3).astype(dtype)
    targets = np.where(random.uniform(size=(n, T)) < 0.4, logits.argmax(-1), random.integers(0, C, (n, T)))
    return logits, targets, random.integers(0, T + 1, n)


def expected(logits, targets, valid, bins=15, top_k=(1, 5)):
    """All numbers from the definition, position by position."""
    log_prob, _, argmax, rank, entropy = reference_scoring.token_statistics(logits, np.where(valid, targets, 0))
    nll = -log_prob[valid]
    n = nll.size
    wide = logits.astype(float)
    confidence = np.exp(wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)).max(-1)[valid]
    right = (argmax == targets)[valid]
    ece = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & ((confidence < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            ece += inside.sum() / n * abs(right[inside].mean() - confidence[inside].mean())
    sequences = [-log_prob[i][valid[i]].mean() for i in range(len(valid)) if valid[i].any()]
    return {
        "nll": nll.mean(), "nll_stderr": nll.std(ddof=1) / np.sqrt(n), "perplexity": np.exp(nll.mean()),
        "bits_per_token": nll.mean() / np.log(2), "bits_per_byte": nll.sum() / np.log(2) / BYTES[targets[valid]].sum(),
        "accuracy": right.mean(), "entropy": entropy[valid].mean(), "ece": ece, "sequence_nll": np.mean(sequences),
        "n_tokens": n, "n_masked": valid.size - n, "n_sequences": len(sequences),
        **{f"top {k}": (rank[valid] < k).mean() for k in top_k},
    }


def assert_close(found, wanted, rtol=2e-6):
    found = found.to_dict()
    found |= {f"top {k}": v for k, v in found.pop("top_k_accuracy").items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert type(found[name]) is (int if name.startswith("n_") else float), name
        np.testing.assert_allclose(found[name], value, rtol, 1e-7, err_msg=name)


def evaluator(**options):
    return fastxent.Evaluator(token_bytes=BYTES, **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_against_definition(dtype, bins):
    logits, targets, lengths = batch(dtype=dtype)
    e = evaluator(calibration_bins=bins, top_k=[5, 1, 39])
    e.update(logits, targets, lengths=lengths)
    valid = fastxent.lengths_to_mask(lengths, T)
    assert_close(e.compute(), expected(logits, targets, valid, bins, (1, 5, 39)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("steps", [1, T])
def test_each_sequence_alone(dtype, steps):
    logits, targets, lengths = batch(3, dtype=dtype)
    logits[0, 0], logits[1, 1, 2], logits[2, 2, :5] = np.nan, np.inf, -np.inf
    valid = fastxent.lengths_to_mask(lengths, T)
    valid[3], valid[:3, :4] = False, True
    if steps == 1:
        logits, targets, valid = logits.reshape(-1, C), targets.reshape(-1), valid.reshape(-1)
    e = evaluator(top_k=[1, 7])
    found = list(e.each(e.score(logits, targets, mask=valid)))
    assert len(found) == len(logits) and e.compute().n_masked == 0
    for i, each in enumerate(found):
        one = evaluator(top_k=[1, 7])
        one.update(logits[i : i + 1], targets[i : i + 1], mask=valid[i : i + 1])
        wanted, mine = one.compute().to_dict(), each.to_dict()
        assert [type(v) for v in mine.values()] == [type(v) for v in wanted.values()]
        wanted |= wanted.pop("top_k_accuracy")
        mine |= mine.pop("top_k_accuracy")
        for name, value in wanted.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-12, atol=1e-14, err_msg=f"{i} {name}")


def test_each_of_none():
    e = evaluator()
    assert list(e.each(e.score(np.zeros((0, T, C)), np.zeros((0, T), int)))) == []
    (found,) = e.each(e.score(np.zeros((1, 0, C)), np.zeros((1, 0), int)))
    assert (found.n_tokens, found.n_masked, found.n_sequences) == (0, 0, 0) and math.isnan(found.nll)


@pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
def test_batches_shift_and_mask(engine):
    """Several batches give the numbers of all at once; what is read ahead is the target and all that describes it."""
    with cases.running_on(*engine):
        e = evaluator(shift=1, ignore_index=3)
        kept = []
        for seed in range(3):
            logits, targets, lengths = batch(seed)
            mask = cases.rng(98, seed).uniform(size=(N, T)) < 0.8
            e.update(logits, targets, mask=mask, lengths=lengths)
            valid = mask & fastxent.lengths_to_mask(lengths, T) & (targets != 3)
            ahead = np.roll(targets, -1, axis=1), np.roll(valid, -1, axis=1) & (np.arange(T) < T - 1)
            kept.append((logits, *ahead))
        assert_close(e.compute(), expected(*(np.concatenate(part) for part in zip(*kept, strict=True))))


def test_update_and_statistics_is_both():
    logits, targets, lengths = batch()
    one, two = evaluator(shift=1), evaluator(shift=1)
    one.update(logits, targets, lengths=lengths)
    found = two.update_and_statistics(logits, targets, lengths=lengths)
    assert one.state_dict() == two.state_dict()
    wanted = fastxent.token_statistics(logits, targets, lengths=lengths, shift=1)
    for name in wanted._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("cut", [1, 4, N])
def test_scored_in_pieces_and_counted_in_others(cut):
    """Rows scored in two pieces and joined, then counted in parts, are what `update` counts of each part."""
    logits, targets, lengths = batch()
    e = evaluator(shift=1)
    scratch = np.empty_like(logits)
    pieces = []
    for rows in slice(2), slice(2, N):
        piece = scratch[: len(logits[rows])]  # read over by the next piece
        piece[:] = logits[rows]
        pieces.append(e.score(piece, targets[rows], lengths=lengths[rows]))
    assert e.compute().n_tokens == 0
    scored = pieces[0].joined(pieces)
    wanted = fastxent.token_statistics(logits, targets, lengths=lengths, shift=1)
    for name in wanted._fields:
        np.testing.assert_array_equal(getattr(scored.statistics, name), getattr(wanted, name))
    for rows in slice(cut), slice(cut, N):
        one, two = evaluator(shift=1), evaluator(shift=1)
        one.add(scored.part(rows))
        if logits[rows].size:
            two.update(logits[rows], targets[rows], lengths=lengths[rows])
        assert one.state_dict() == two.state_dict()


def test_shapes():
    """One axis of positions: each is a sequence; none: one position."""
    logits, targets, _ = batch()
    flat = evaluator()
    flat.update(logits.reshape(-1, C), targets.ravel())
    assert flat.compute().n_sequences == N * T
    assert flat.compute().sequence_nll == pytest.approx(flat.compute().nll)
    one = evaluator(axis=0)
    one.update(logits[0, 0], targets[0, 0])
    assert (one.compute().n_tokens, one.compute().n_sequences) == (1, 1)
    assert math.isnan(one.compute().nll_stderr)
    moved = evaluator(axis=1)
    moved.update(np.moveaxis(logits, -1, 1), targets)
    whole = evaluator()
    whole.update(logits, targets)
    assert moved.compute().nll == pytest.approx(whole.compute().nll, rel=1e-6)
    assert moved.compute().n_sequences == N


def test_empty():
    e = fastxent.Evaluator()
    e.update(np.zeros((2, 0, 5)), np.zeros((2, 0), int))
    e.update(np.zeros((2, 3, 5)), np.full((2, 3), -100))
    found = e.compute()
    assert (found.n_tokens, found.n_masked, found.n_sequences, found.bits_per_byte) == (0, 6, 0, None)
    for name in "nll", "nll_stderr", "perplexity", "accuracy", "entropy", "ece", "sequence_nll":
        assert math.isnan(getattr(found, name)), name
    assert all(map(math.isnan, found.top_k_accuracy.values()))


def test_merge_is_one_evaluation():
    whole, parts = evaluator(), [evaluator() for _ in range(4)]
    for seed in range(8):
        logits, targets, lengths = batch(seed)
        whole.update(logits, targets, lengths=lengths)
        parts[seed % 4].update(logits, targets, lengths=lengths)
    forward, backward = evaluator(), evaluator()
    for part in parts:
        forward.merge(part)
    parts[2].merge(parts[3])
    parts[1].merge(parts[2])
    backward.merge(parts[1])
    backward.merge(parts[0])
    for merged in forward, backward:
        for name, value in whole.compute().to_dict().items():
            wanted = value if name.startswith("n_") else pytest.approx(value, rel=1e-12)
            assert getattr(merged.compute(), name) == wanted


@pytest.mark.parametrize("rows", [[[0.0, 1.0]], [[0.0, -np.inf]], [[np.nan, 0.0]], [[0.0, np.inf]]], ids=str)
def test_state_survives_json(rows):
    e = fastxent.Evaluator(top_k=(1, 2))
    e.update(np.array(rows), [1])
    text = json.dumps(e.state_dict(), allow_nan=False)
    f = fastxent.Evaluator(top_k=(1, 2))
    f.load_state_dict(json.loads(text))
    for _ in range(2):
        np.testing.assert_equal(f.compute().to_dict(), e.compute().to_dict())
        e.update(np.array(rows), [1])
        f.update(np.array(rows), [1])
    assert json.dumps(f.state_dict()) == json.dumps(e.state_dict())


def test_state_is_constant_in_size():
    e = evaluator()
    sizes = set()
    for seed in range(4):
        e.update(*batch(seed)[:2])
        sizes.add(len(e.state_dict()["totals"]["bin_tokens"]))
        assert all(isinstance(v, (int, float, list)) for v in e.state_dict()["totals"].values())
    assert sizes == {15}
    e.reset()
    assert e.state_dict() == evaluator().state_dict()


def test_loading_replaces():
    a, b = evaluator(), evaluator()
    a.update(*batch(1)[:2])
    b.update(*batch(2)[:2])
    b.load_state_dict(a.state_dict())
    assert a.compute() == b.compute()


@pytest.mark.parametrize("change", [
    lambda state: state.pop("settings"),
    lambda state: state.update(totals=None),
    lambda state: state["totals"].pop("nll"),
    lambda state: state["totals"].update(nll="x"),
    lambda state: state["totals"].update(nll=10**400),
    lambda state: state["totals"].update(tokens=[]),
    lambda state: state["totals"].update(tokens=float("nan")),
    lambda state: state["totals"].update(bin_tokens=3),
    lambda state: state["totals"].update(tokens=1.5),
    lambda state: state["totals"].update(masked=-1),
    lambda state: state["totals"].update(nll_m2=-1.0),
    lambda state: state["totals"].update(correct=state["totals"]["tokens"] + 1),
    lambda state: state["totals"].update(tokens=0),
    lambda state: state["totals"]["bin_tokens"].append(state["totals"]["bin_tokens"].pop() + 1),
    lambda state: state["totals"]["bin_correct"].append(state["totals"]["bin_correct"].pop() - 1),
    lambda state: state["totals"]["bin_tokens"].pop(),
    lambda state: state["totals"]["top_k"].append(1),
])
def test_loading_what_is_no_state(change):
    """A broken checkpoint is refused whole: nothing of it is kept."""
    e = evaluator()
    e.update(*batch(1)[:2])
    before, broken = e.state_dict(), json.loads(json.dumps(e.state_dict()))
    change(broken)
    with pytest.raises(ValueError, match="state is not what state_dict returned"):
        e.load_state_dict(broken)
    assert e.state_dict() == before


def test_special_rows():
    """NaN counts as a wrong position and shows in the sums; a class of no probability is an infinite loss."""
    e = fastxent.Evaluator(top_k=(1, 2))
    e.update([[0.0, np.nan], [1.0, 0.0]], [0, 0])
    found = e.compute()
    assert (found.n_tokens, found.accuracy, found.top_k_accuracy) == (2, 0.5, {1: 0.5, 2: 0.5})
    assert math.isnan(found.nll)
    assert math.isnan(found.ece)
    e.reset()
    e.update([[0.0, -np.inf]], [1])
    assert (e.compute().nll, e.compute().perplexity) == (math.inf, math.inf)
    e.reset()
    e.update([[2000.0, 0.0]], [1])
    assert e.compute().perplexity == math.inf
    e.reset()
    e.update([[709.5, 0.0]], [1])
    assert e.compute().perplexity == math.exp(709.5)


def test_bins_are_closed_below():
    """A confidence of exactly 1/2, and of 1."""
    e = fastxent.Evaluator(calibration_bins=2)
    e.update([[0.0, 0.0], [2000.0, 0.0]], [1, 0])
    assert e.state_dict()["totals"]["bin_tokens"] == [0, 2]
    assert e.compute().ece == pytest.approx(0.25)


def test_failed_update_adds_nothing():
    e = evaluator()
    e.update(*batch()[:2])
    before = e.state_dict()
    logits, targets, _ = batch(1)
    targets[2, 3] = C
    with pytest.raises(IndexError):
        e.update(logits, targets)
    with pytest.raises(ValueError, match="token_bytes"):
        e.update(logits[..., :-1], np.zeros((N, T), int))
    assert e.state_dict() == before


@pytest.mark.parametrize(("options", "error"), [
    ({"top_k": 5}, TypeError), ({"top_k": (0,)}, ValueError), ({"top_k": (1.5,)}, TypeError),
    ({"token_bytes": [1.5]}, TypeError), ({"token_bytes": [[1]]}, ValueError), ({"token_bytes": [-1]}, ValueError),
    ({"shift": -1}, ValueError), ({"axis": "a"}, TypeError), ({"softcap": -1}, ValueError),
    ({"ignore_index": 1.0}, TypeError), ({"num_threads": 0}, ValueError), ({"logit_scale": 0}, ValueError),
    ({"calibration_bins": 0}, ValueError), ({"calibration_bins": 1.0}, TypeError),
])
def test_bad_options(options, error):
    (name,) = options
    with pytest.raises(error, match=name):
        fastxent.Evaluator(**options)


@pytest.mark.parametrize("options", [
    {"top_k": (1, 3)}, {"calibration_bins": 3}, {"token_bytes": None}, {"logit_scale": 2}, {"softcap": 30},
])
def test_other_options_do_not_merge(options):
    (name,) = options
    a, b = evaluator(), fastxent.Evaluator(**{"token_bytes": BYTES, **options})
    with pytest.raises(ValueError, match=name):
        a.merge(b)
    with pytest.raises(ValueError, match=name):
        a.load_state_dict(b.state_dict())
    with pytest.raises(TypeError, match="Evaluator"):
        a.merge({})
    with pytest.raises(TypeError, match="state_dict"):
        a.load_state_dict([])
    with pytest.raises(ValueError, match="version"):
        a.load_state_dict({})


@pytest.mark.parametrize("options", [
    {"ignore_index": None}, {"shift": 1}, {"axis": 1}, {"num_threads": 1}, {"logit_scale": np.float32(1)},
])
def test_where_targets_are_may_differ(options):
    a, b = evaluator(), fastxent.Evaluator(token_bytes=BYTES, **options)
    a.merge(b)
    a.load_state_dict(json.loads(json.dumps(b.state_dict())))


def test_result_is_a_dataclass():
    found = evaluator().compute()
    assert dataclasses.is_dataclass(found)
    assert list(found.to_dict()) == [
        "nll", "nll_stderr", "perplexity", "bits_per_token", "bits_per_byte", "accuracy", "top_k_accuracy", "entropy",
        "ece", "sequence_nll", "n_tokens", "n_masked", "n_sequences",
    ]


def test_tensors():
    torch = pytest.importorskip("torch")
    logits, targets, lengths = batch()
    mask = fastxent.lengths_to_mask(lengths, T)
    a, b = evaluator(), evaluator()
    a.update(logits, targets, mask=mask)
    b.update(torch.from_numpy(logits), torch.from_numpy(targets), mask=torch.from_numpy(mask))
    assert a.compute() == b.compute()
    with pytest.raises(TypeError, match="detach"):
        b.update(torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets))
