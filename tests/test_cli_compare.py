"""``fastxent compare`` and ``fastxent convert``: divergences, percentiles and files against plain float64 NumPy."""

import csv
import io
import json
import math
import struct

import cli_files as files
import numpy as np
import pytest

from fastxent.cli import _quantiles, main
from fastxent.cli.compare import DELTA_PERCENTS, KL_PERCENTS


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastxent.cli._blocks._PIECE", 500)  # some rows: a block is read in several pieces


def run_json(capsys, *arguments):
    assert main(["compare", *arguments, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert "means are over the compared positions" in err
    return json.loads(out, parse_constant=pytest.fail)


def pair(shape=(4, 30, 50)):
    base, targets = files.model(shape)
    other = (base + files.model(shape, seed=1)[0] * 0.1).astype(np.float32)
    return base, other, targets


def expected(base, other, targets, valid):
    """By definition, in float64."""
    p, q = files.log_softmax(base), files.log_softmax(other)
    kl = (np.exp(p) * (p - q)).sum(-1)[valid]
    found = {
        "kl_mean": kl.mean(), "kl_stderr": kl.std(ddof=1) / math.sqrt(kl.size), "kl_max": kl.max(),
        **{f"kl_p{c:g}": np.percentile(kl, c) for c in KL_PERCENTS},
        "top1_agreement": (base.argmax(-1) == other.argmax(-1))[valid].mean(),
    }
    if targets is not None:
        t = np.where(valid, targets, 0)[..., None]
        p, q = (np.take_along_axis(x, t, -1)[..., 0][valid] for x in (p, q))
        delta, ratio = np.exp(q) - np.exp(p), np.exp(p.mean() - q.mean())
        found |= {
            "nll_base": -p.mean(), "nll_other": -q.mean(), "perplexity_ratio": ratio,
            "perplexity_ratio_stderr": ratio * (p - q).std(ddof=1) / math.sqrt(p.size),
            "delta_p_mean": delta.mean(), "delta_p_rms": math.sqrt((delta**2).mean()),
            **{f"delta_p_p{c:g}": np.percentile(delta, c) for c in DELTA_PERCENTS},
        }
    return found | {"n_tokens": kl.size, "n_masked": valid.size - kl.size}


def assert_same(found, wanted, rel=1e-5, absolute=2e-7):
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rel, absolute, err_msg=name)


def test_the_names_are_those_of_the_contract():
    assert [f"{p:g}" for p in KL_PERCENTS] == ["0.1", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9"]
    assert DELTA_PERCENTS[0] == 1
    assert DELTA_PERCENTS[-1] == 99


@pytest.mark.parametrize("block_rows", [1, 7, 30, 1000])
def test_without_targets(capsys, monkeypatch, block_rows):
    base, other, targets = pair()
    np.save("a.npy", base)
    np.save("b.npy", other)
    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: block_rows)
    assert_same(run_json(capsys, "a.npy", "b.npy"), expected(base, other, None, np.ones(targets.shape, bool)))


def test_with_targets_mask_and_shift(capsys):
    base, other, targets = pair()
    targets[0, :9] = -100
    lengths = np.array([30, 4, 17, 0])
    for name, array in {"a": base, "b": other, "t": targets, "l": lengths}.items():
        np.save(f"{name}.npy", array)
    valid = (np.arange(30) < lengths[:, None]) & (targets != -100)
    found = run_json(capsys, "a.npy", "b.npy", "t.npy", "--lengths", "l.npy")
    assert_same(found, expected(base, other, targets, valid))
    found = run_json(capsys, "a.npy", "b.npy", "t.npy", "--lengths", "l.npy", "--shift", "1")
    ahead = np.roll(valid, -1, 1) & (np.arange(30) < 29)
    assert_same(found, expected(base, other, np.roll(targets, -1, 1), ahead))
    assert main(["compare", "a.npy", "b.npy", "t.npy", "--format", "csv", "--quiet"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(row) == list(found)
    assert main(["compare", "a.npy", "b.npy", "t.npy"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "every mean is over these" in out


@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("float64", "float16"), ("float64", "float64")])
def test_any_two_formats_and_types(capsys, dtypes):
    base, other, targets = pair()
    base, other = base.astype(dtypes[0]), other.astype(dtypes[1])
    with open("a.safetensors", "wb") as file:
        file.write(files.safetensors(x=base))
    with open("b.npz", "wb") as file:
        file.write(files.npz(True, x=other))
    found = run_json(capsys, "a.safetensors:x", "b.npz:x")
    assert_same(found, expected(base, other, None, np.ones(targets.shape, bool)))


def test_a_model_with_itself(capsys):
    base, _, targets = pair()
    np.save("a.npy", base)
    np.save("t.npy", targets)
    found = run_json(capsys, "a.npy", "a.npy", "t.npy")
    assert (found["kl_max"], found["top1_agreement"], found["perplexity_ratio"]) == (0, 1, 1)
    assert found["delta_p_rms"] == 0


def test_kld_has_its_tokens(capsys):
    base, other, tokens = pair()
    with open("a.kld", "wb") as file:
        file.write(files.kld(base, tokens))
    np.save("b.npy", other[:, 15:29])
    found = run_json(capsys, "a.kld", "b.npy")
    _, stored = files.stored_log_probs(files.kld(base, tokens))
    assert_same(found, expected(stored, other[:, 15:29], tokens[:, 16:], np.ones((4, 14), bool)))
    assert run_json(capsys, "b.npy", "a.kld")["nll_other"] == pytest.approx(found["nll_base"], rel=1e-12)
    with open("b.kld", "wb") as file:
        file.write(files.kld(other, np.where(tokens == tokens[2, 20], tokens + 1, tokens)))
    assert main(["compare", "a.kld", "b.kld"]) == 1
    assert "of another text" in capsys.readouterr().err


def test_shapes_must_agree(capsys):
    base, other, _ = pair()
    np.save("a.npy", base)
    np.save("b.npy", other[:, :-1])
    assert main(["compare", "a.npy", "b.npy"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fastxent compare: b.npy: float32 of shape (4, 29, 50) does not fit a.npy")


def test_nan_is_not_hidden(capsys):
    base, other, _ = pair()
    other[1, 2, 3] = np.nan
    np.save("a.npy", base)
    np.save("b.npy", other)
    found = run_json(capsys, "a.npy", "b.npy")
    assert found["kl_mean"] is found["kl_p50"] is None
    assert main(["compare", "a.npy", "b.npy", "--quiet", "--fail-if", "kl_mean>1"]) == 1
    assert "cannot be judged" in capsys.readouterr().err


# Percentiles

@pytest.mark.parametrize("limit", [10**7, 100])
@pytest.mark.parametrize("kind", ["positive", "both signs", "wide", "infinite", "few"])
def test_quantiles(kind, limit):
    rng = np.random.default_rng(0)
    values = {
        "positive": rng.gamma(0.3, 1, 20001), "both signs": rng.normal(0, 0.1, 20000),
        "wide": np.exp(rng.normal(0, 8, 5000)) * rng.choice([-1, 0, 1], 5000),
        "infinite": np.append(rng.random(999), [np.inf] * 200), "few": np.array([3.0, -1.0]),
    }[kind]
    quantiles = _quantiles.Quantiles(values.size, limit)
    for part in np.array_split(values, 7):
        quantiles.add(part)
    percents = (0, 0.1, 1, 10, 50, 77.7, 80, 99, 99.9, 100)
    ordered = np.sort(values)
    for percent, found in zip(percents, quantiles.percentiles(percents), strict=True):
        place = percent / 100 * (values.size - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        wanted = low if low == high else low + (high - low) * (place - math.floor(place))
        if np.isinf(wanted):
            assert found == wanted
            continue
        error = 0 if quantiles.sketch is None else _quantiles.ERROR * max(abs(low), abs(high)) * 1.0001 + 1e-14
        assert abs(found - wanted) <= error + 1e-15 * abs(wanted)
    assert (quantiles.sketch is None) == (limit >= values.size)


def test_quantiles_of_nothing_and_nan():
    assert math.isnan(_quantiles.Quantiles(0).percentiles((50,))[0])
    quantiles = _quantiles.Quantiles(3, 1)
    quantiles.add(np.array([1.0, np.nan, 2.0]))
    assert math.isnan(quantiles.percentiles((50,))[0])


def test_mean_of_parts_is_that_of_all():
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    mean = _quantiles.Mean()
    for part in np.array_split(values, 9):
        mean.add(part)
    assert mean.mean == pytest.approx(values.mean(), rel=1e-14)
    assert mean.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-9)
    assert mean.rms == pytest.approx(math.sqrt((values**2).mean()), rel=1e-12)


# convert

def test_kld_is_written_as_llama_cpp_does(capsys):
    logits, tokens = files.model((3, 21, 37))
    logits[0, 12] -= np.where(np.arange(37) % 3, 30, 0)  # beyond the floor
    logits[1, 15] = 2.5  # no range at all
    logits[2, 16, 5] = -np.inf
    np.save("x.npy", logits)
    np.save("tokens.npy", tokens)
    assert main(["convert", "x.npy", "x.kld", "--tokens", "tokens.npy"]) == 0
    assert "x.kld" in capsys.readouterr().err
    with open("x.kld", "rb") as file:
        data = file.read()
    wanted = files.kld(logits, tokens)
    assert len(data) == len(wanted)
    (kept, found), (_, expected_) = files.stored_log_probs(data), files.stored_log_probs(wanted)
    np.testing.assert_array_equal(kept, tokens)
    np.testing.assert_allclose(found, expected_, atol=4e-6)
    truth = files.log_softmax(logits[:, 10:20])
    np.testing.assert_allclose(found, np.maximum(truth, truth.max(-1, keepdims=True) - 16), atol=1.3e-4)
    np.save("rows.npy", logits[:, 10:20])
    assert main(["convert", "rows.npy", "rows.kld", "--tokens", "tokens.npy", "--quiet"]) == 0
    with open("rows.kld", "rb") as file:
        assert file.read() == data


@pytest.mark.parametrize("through", ["npy", "safetensors"])
@pytest.mark.parametrize("n_vocab", [36, 37, 5000])
def test_kld_round_trip(through, n_vocab):
    logits, tokens = files.model((2, 24, n_vocab))
    with open("a.kld", "wb") as file:
        file.write(files.kld(logits * 2, tokens))
    assert main(["convert", "a.kld", f"b.{through}", "--tokens", "tokens.npy", "--quiet"]) == 0
    assert main(["convert", f"b.{through}", "c.kld", "--tokens", "tokens.npy", "--log-probs", "--quiet"]) == 0
    with open("a.kld", "rb") as first, open("c.kld", "rb") as second:
        one, two = first.read(), second.read()
    assert len(one) == len(two)
    (tokens_one, values), (tokens_two, again) = files.stored_log_probs(one), files.stored_log_probs(two)
    np.testing.assert_array_equal(tokens_one, tokens_two)
    np.testing.assert_allclose(values, again, atol=4e-6)
    if through == "npy":
        found = np.load("b.npy")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, atol=3e-6)
    assert main(["convert", "a.kld", "d.kld", "--log-probs", "--quiet"]) == 0
    with open("d.kld", "rb") as file:
        assert file.read() == two


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_types(kind, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    package = pytest.importorskip("safetensors.numpy")
    logits, _ = files.model((2, 30, 41), ">f4")
    np.save("x.npy", logits)
    assert main(["convert", "x.npy", f"y.{kind}", "--dtype", dtype, "--quiet"]) == 0
    wanted = logits.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = np.load("y.npy") if kind == "npy" else package.load_file("y.safetensors")["logits"]
    assert found.tobytes() == wanted.tobytes()
    assert found.shape == wanted.shape
    assert main(["convert", f"y.{kind}", "z.npy", "--dtype", "float64", "--quiet"]) == 0
    np.testing.assert_array_equal(np.load("z.npy"), wanted.astype(float))


def test_what_cannot_be_converted_leaves_nothing(capsys, tmp_path):
    logits, tokens = files.model((2, 24, 10))
    logits[1, 20, 3] = 1e6
    np.save("x.npy", logits)
    np.save("tokens.npy", tokens)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["convert", "x.npy", "y.npy", "--dtype", "float16"]) == 1
    assert "row 44 has a number beyond the range of float16" in capsys.readouterr().err
    for arguments, code in (
        (["x.npy", "x.npy"], 2), (["x.npy", "y.npz"], 2), (["x.npy", "y.kld"], 2),
        (["x.npy", "y.npy", "--log-probs"], 2),
        (["x.npy", "y.kld", "--tokens", "x.npy"], 1), (["x.npy", "y.kld", "--dtype", "float16"], 2),
        (["x.npy", "y.npy", "--tokens", "t.npy"], 2), (["tokens.npy", "y.kld", "--tokens", "tokens.npy"], 1),
    ):
        assert main(["convert", *arguments]) == code, arguments
        assert capsys.readouterr().err.count("\n") == 1
    np.save("nan.npy", np.where(logits > 1e5, np.nan, logits))
    assert main(["convert", "nan.npy", "y.kld", "--tokens", "tokens.npy"]) == 1
    assert "row 44 is no row of logits" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "nan.npy"])


@pytest.mark.parametrize("wide", ["bfloat16", "uint16"])
def test_types_of_two_bytes_whose_range_is_larger(capsys, wide):
    np.save("x.npy", np.array([[1, 2], [65535, 3]], "u2" if wide == "uint16" else "f4"))
    source = "x.npy"
    if wide == "bfloat16":
        pytest.importorskip("ml_dtypes")
        source = "x.safetensors"
        assert main(["convert", "x.npy", source, "--dtype", wide]) == 0
    capsys.readouterr()
    assert main(["convert", source, "y.npy", "--dtype", "float16"]) == 1
    assert "row 1 has a number beyond the range of float16" in capsys.readouterr().err


def test_the_header_of_kld():
    logits, tokens = files.model((2, 9, 5))
    np.save("x.npy", logits)
    np.save("tokens.npy", tokens)
    assert main(["convert", "x.npy", "x.kld", "--tokens", "tokens.npy", "--quiet"]) == 0
    with open("x.kld", "rb") as file:
        data = file.read()
    assert data[:8] == b"_logits_"
    assert struct.unpack_from("<Iii", data, 8) == (9, 5, 2)
    assert len(data) == 20 + 4 * 18 + 2 * 4 * (2 * (2 * 3 + 4))
