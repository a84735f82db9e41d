"""``fastxent eval``: every number against its definition in float64, from every format, whatever the blocks."""

import csv
import io
import json
import math

import cli_files as files
import numpy as np
import pytest

import fastxent
from fastxent.cli import main


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastxent.cli._blocks._PIECE", 500)  # some rows: a block is read in several pieces


def run_json(capsys, *arguments):
    assert main(["eval", *arguments, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    found = json.loads(out, parse_constant=pytest.fail)  # no NaN or Infinity, which JSON lacks
    assert ("means are over the scored positions" if found["n_tokens"] else "no position was scored") in err
    return found


def write(logits, targets):
    np.save("x.npy", logits)
    np.save("t.npy", targets)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f2", "int8"])
def test_numbers_of_every_dtype(capsys, dtype):
    logits, targets = files.model(dtype=dtype)
    write(logits, targets)
    found = run_json(capsys, "x.npy", "t.npy")
    files.assert_scores(found, files.expected_scores(logits, targets, np.ones(targets.shape, bool)))


def bfloat16_files():
    logits, targets = files.model()
    words = (logits.view(np.uint32) >> 16).astype(np.uint16)
    data = words.tobytes()
    header = {"x": {"dtype": "BF16", "shape": list(words.shape), "data_offsets": [0, len(data)]}}
    with open("x.safetensors", "wb") as file:
        file.write(files.safetensors_of(header, data))
    np.save("t.npy", targets)
    return (words.astype(np.uint32) << 16).view(np.float32), targets


@pytest.mark.parametrize("with_ml_dtypes", [True, False])
def test_bfloat16(capsys, monkeypatch, with_ml_dtypes):
    logits, targets = bfloat16_files()
    if with_ml_dtypes:
        pytest.importorskip("ml_dtypes")
    else:
        monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    found = run_json(capsys, "x.safetensors:x", "t.npy")
    files.assert_scores(found, files.expected_scores(logits, targets, np.ones(targets.shape, bool)))


def test_bfloat16_in_npy(capsys):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    logits, targets = files.model()
    logits = logits.astype(ml_dtypes.bfloat16)
    write(logits, targets)
    found = run_json(capsys, "x.npy", "t.npy")
    files.assert_scores(found, files.expected_scores(logits, targets, np.ones(targets.shape, bool)))


@pytest.mark.parametrize("shape", [(11,), (40, 11), (3, 9, 11), (2, 3, 5, 11), (1, 1, 1)])
def test_shapes(capsys, shape):
    logits, targets = files.model(shape)
    write(logits, targets)
    found = run_json(capsys, "x.npy", "t.npy")
    if len(shape) == 1:
        logits, targets = logits[None], targets[None]
    files.assert_scores(found, files.expected_scores(logits, targets, np.ones(targets.shape, bool)))


@pytest.mark.parametrize("block_rows", [1, 5, 12, 13, 59])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_end_anywhere(capsys, monkeypatch, block_rows, threads):
    """Mask, lengths, ignored targets and shift, with sequences cut by blocks, whatever number of threads."""
    logits, targets = files.model()
    rng = np.random.default_rng(1)
    targets[rng.random(targets.shape) < 0.1] = 7
    lengths, mask = np.array([12, 5, 0, 1, 9]), rng.random(targets.shape) < 0.8
    write(logits, targets)
    np.save("l.npy", lengths)
    np.save("m.npy", mask)
    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: block_rows)
    before = fastxent.get_num_threads()
    fastxent.set_num_threads(threads)
    try:
        found = run_json(capsys, "x.npy", "t.npy", "--lengths", "l.npy", "--mask", "m.npy", "--ignore-index", "7",
                         "--shift", "2")
    finally:
        fastxent.set_num_threads(before)
    valid = mask & (np.arange(12) < lengths[:, None]) & (targets != 7)
    ahead, valid = np.roll(targets, -2, 1), np.roll(valid, -2, 1) & (np.arange(12) < 10)
    files.assert_scores(found, files.expected_scores(logits, ahead, valid))
    evaluator = fastxent.Evaluator(shift=2, ignore_index=7)
    evaluator.update(logits, targets, mask=mask, lengths=lengths)
    wanted = json.loads(json.dumps(evaluator.compute().to_dict()))
    files.assert_scores(found, wanted, rel=1e-12)


@pytest.mark.parametrize("shift", [0, 1, 11, 12, 20])
@pytest.mark.parametrize("mask", [True, False])
def test_shift_does_not_reach_into_the_next_sequence(capsys, monkeypatch, shift, mask):
    logits, targets = files.model()
    write(logits, targets)
    np.save("m.npy", np.arange(60).reshape(5, 12) % 5 > 0)
    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: 7)
    arguments = ["--mask", "m.npy"] if mask else []
    found = run_json(capsys, "x.npy", "t.npy", "--shift", str(shift), *arguments)
    evaluator = fastxent.Evaluator(shift=shift)
    evaluator.update(logits, targets, mask=np.load("m.npy") if mask else None)
    wanted = evaluator.compute().to_dict()
    for name in "nll", "accuracy", "ece", "sequence_nll", "n_tokens", "n_masked", "n_sequences":
        assert found[name] == (None if wanted[name] != wanted[name] else pytest.approx(wanted[name], rel=1e-12))


@pytest.mark.parametrize("mask", [np.array([1, 0, 2, 0] * 3), np.array([[1], [0], [1], [1], [0]], bool), np.int8(1)])
def test_masks_broadcast(capsys, mask):
    logits, targets = files.model()
    write(logits, targets)
    np.save("m.npy", mask)
    valid = np.broadcast_to(np.asarray(mask) != 0, targets.shape)
    found = run_json(capsys, "x.npy", "t.npy", "--mask", "m.npy")
    files.assert_scores(found, files.expected_scores(logits, targets, valid))


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i4", "u8", "i8"])
def test_targets_of_every_integer_type(capsys, dtype):
    logits, targets = files.model()
    targets = targets.astype(dtype)
    write(logits, targets)
    expected = files.expected_scores(logits, targets.astype(int), np.ones(targets.shape, bool))
    files.assert_scores(run_json(capsys, "x.npy", "t.npy"), expected)


@pytest.mark.parametrize("kind", ["npz", "npz compressed", "safetensors", "fortran", "zarr", "zarr 2"])
def test_formats(capsys, kind):
    logits, targets = files.model()
    x, t = f"x.{kind.split()[0]}", "t.npy"
    np.save(t, targets)
    if kind.startswith("npz"):
        with open(x, "wb") as file:
            file.write(files.npz("compressed" in kind, a=logits, t=targets))
        x, t = "x.npz:a", "x.npz:t"
    elif kind == "safetensors":
        with open(x, "wb") as file:
            file.write(files.safetensors(other=targets[:1], a=logits, t=targets))
        x, t = "x.safetensors:a", "x.safetensors:t"
    elif kind == "fortran":
        x = "x.npy"
        np.save(x, np.asfortranarray(logits))
    else:
        zarr = pytest.importorskip("zarr")
        array = zarr.create_array(x := "x.zarr", shape=logits.shape, chunks=(2, 5, 37), dtype="f4",
                                  zarr_format=2 if "2" in kind else 3)
        array[:] = logits
        zarr.create_array("t.zarr", shape=targets.shape, chunks=(5, 7), dtype="i8")[:] = targets
        t = "t.zarr"
    expected = files.expected_scores(logits, targets, np.ones(targets.shape, bool))
    assert main(["eval", x, t, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert ("memory" in err) == kind.startswith("npz")  # the remark on archives
    files.assert_scores(json.loads(out), expected)


def test_the_package_safetensors_writes_the_same(capsys):
    package = pytest.importorskip("safetensors.numpy")
    logits, targets = files.model(dtype="float16")
    package.save_file({"logits": logits, "labels": targets}, "x.safetensors")
    found = run_json(capsys, "x.safetensors:logits", "x.safetensors:labels")
    files.assert_scores(found, files.expected_scores(logits, targets, np.ones(targets.shape, bool)))


def test_the_only_array_needs_no_name(capsys):
    logits, targets = files.model()
    np.savez("x.npz", logits)
    np.save("t.npy", targets)
    with open("t.safetensors", "wb") as file:
        file.write(files.safetensors(labels=targets))
    assert main(["eval", "x.npz", "t.safetensors", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_kld(capsys):
    logits, tokens = files.model((3, 20, 37))
    data = files.kld(logits, tokens)
    with open("x.kld", "wb") as file:
        file.write(data)
    rows, after = logits[:, 10:19], tokens[:, 11:20]
    found = run_json(capsys, "x.kld")
    files.assert_scores(found, files.expected_scores(rows, after, np.ones(after.shape, bool)), rel=2e-4)
    _, log_probs = files.stored_log_probs(data)
    files.assert_scores(found, files.expected_scores(log_probs, after, np.ones(after.shape, bool)))
    np.save("t.npy", after)
    assert run_json(capsys, "x.kld", "t.npy") == found


def test_kld_with_a_deep_floor(capsys):
    """Most classes are below what the format can hold: the loss is that of the logits, not too high by their number."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 40, 30000)).astype(np.float32)
    tokens = rng.integers(0, 30000, (2, 40))
    np.put_along_axis(logits[:, :-1], tokens[:, 1:, None], 17, -1)
    data = files.kld(logits, tokens)
    with open("x.kld", "wb") as file:
        file.write(data)
    rows, after = logits[:, 20:39], tokens[:, 21:40]
    truth = files.expected_scores(rows, after, np.ones(after.shape, bool))["nll"]
    _, log_probs = files.stored_log_probs(data)
    naive = files.expected_scores(log_probs, after, np.ones(after.shape, bool))["nll"]
    assert naive - truth > 1e-3
    assert abs(run_json(capsys, "x.kld")["nll"] - truth) < 1e-4


def test_bits_per_byte(capsys):
    logits, targets = files.model()
    write(logits, targets)
    sizes = np.arange(37) % 5 + 1
    np.save("b.npy", sizes)
    found = run_json(capsys, "x.npy", "t.npy", "--token-bytes", "b.npy")
    assert found["bits_per_byte"] == pytest.approx(found["nll"] * 60 / math.log(2) / sizes[targets].sum())


@pytest.mark.parametrize(("rows", "form"), [(5, "table"), (5, "json"), (0, "json")])
def test_nothing_is_scored(capsys, rows, form):
    logits, targets = files.model()
    write(logits[:rows], np.full_like(targets[:rows], -100))
    assert main(["eval", "x.npy", "t.npy", "--format", form]) == 0
    out, err = capsys.readouterr()
    assert err == f"fastxent eval: no position was scored, of {12 * rows}: every mean is nan\n"
    if form == "json":
        found = json.loads(out)
        assert (found["n_tokens"], found["n_masked"], found["nll"]) == (0, 12 * rows, None)
    assert main(["compare", "x.npy", "x.npy", "t.npy", "--format", form]) == 0
    assert capsys.readouterr().err == f"fastxent compare: no position was compared, of {12 * rows}: every mean is nan\n"


@pytest.mark.parametrize("lengths", [[], ["--lengths", "l.npy"]])
def test_a_shift_beyond_all_steps(capsys, lengths):
    logits, targets = files.model()
    write(logits, targets)
    np.save("l.npy", np.full(5, 6))
    assert run_json(capsys, "x.npy", "t.npy", "--shift", "9" * 20, *lengths)["n_tokens"] == 0


def test_sequences_without_a_position(capsys):
    write(np.zeros((3, 0, 5)), np.zeros((3, 0), int))
    assert main(["eval", "x.npy", "t.npy", "--format", "json", "--per-sequence"]) == 0
    assert [row["n_tokens"] for row in json.loads(capsys.readouterr().out)] == [0, 0, 0]


def test_numbers_without_end(capsys):
    """An infinite loss is 1e999 in JSON, which reads as infinity; NaN is null."""
    write(np.array([[0.0, -np.inf], [1.0, 2.0]]), np.array([1, 0]))
    assert main(["eval", "x.npy", "t.npy", "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert '"nll": 1e999' in out
    assert json.loads(out)["perplexity"] == math.inf
    write(np.array([[0.0, np.nan], [1.0, 2.0]]), np.array([1, 0]))
    assert run_json(capsys, "x.npy", "t.npy")["nll"] is None


def test_masked_rows_may_hold_anything(capsys):
    logits, targets = files.model()
    logits[:, 6:], targets[:, 6:] = np.nan, 10**9
    write(logits, targets)
    np.save("l.npy", np.full(5, 6))
    found = run_json(capsys, "x.npy", "t.npy", "--lengths", "l.npy")
    files.assert_scores(found, files.expected_scores(logits, targets, np.broadcast_to(np.arange(12) < 6, (5, 12))))


def test_many_short_sequences_make_no_evaluator_each(capsys, monkeypatch):
    random = np.random.default_rng(3)
    write(random.normal(size=(3000, 4)), random.integers(0, 4, 3000))
    made, true = [], fastxent.Evaluator

    def counting(**options):
        made.append(options)
        return true(**options)

    monkeypatch.setattr(fastxent, "Evaluator", counting)
    assert main(["eval", "x.npy", "t.npy", "--per-sequence", "--quiet", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3001
    assert 1 < len(made) < 20


@pytest.mark.parametrize("block_rows", [1, 5, 7, 12, 29, 36, 60])
def test_per_sequence(capsys, monkeypatch, block_rows):
    logits, targets = files.model()
    lengths = np.array([12, 5, 0, 1, 9])
    write(logits, targets)
    np.save("l.npy", lengths)
    monkeypatch.setattr("fastxent.cli._blocks._rows_at_a_time", lambda *_: block_rows)
    arguments = ["eval", "x.npy", "t.npy", "--lengths", "l.npy", "--per-sequence", "--quiet"]
    assert main([*arguments, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row.pop("sequence") for row in rows] == [0, 1, 2, 3, 4]
    for i, row in enumerate(rows):
        evaluator = fastxent.Evaluator()
        evaluator.update(logits[i : i + 1], targets[i : i + 1], lengths=lengths[i : i + 1])
        for name, value in json.loads(json.dumps(evaluator.compute().to_dict())).items():
            if isinstance(value, float) and math.isnan(value):
                assert row[name] is None
            elif isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=1e-12)
    assert [row["n_tokens"] for row in rows] == list(lengths)
    assert main([*arguments, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["n_masked"]) for row in table] == [0, 7, 12, 11, 3]
    assert float(table[1]["nll"]) == rows[1]["nll"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1].split()[:3] == ["all", "27", "33"]


def test_csv_has_the_numbers_of_json(capsys):
    logits, targets = files.model()
    write(logits, targets)
    found = run_json(capsys, "x.npy", "t.npy", "--top-k", "3,1")
    assert list(found["top_k_accuracy"]) == ["1", "3"]
    assert main(["eval", "x.npy", "t.npy", "--format", "csv", "--top-k", "1,3", "--quiet"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row.pop("bits_per_byte") == ""
    top = found.pop("top_k_accuracy")
    assert {k: float(v) for k, v in row.items()} == {
        **{k: v for k, v in found.items() if v is not None}, "top_1_accuracy": top["1"], "top_3_accuracy": top["3"]
    }


def test_table_says_which_mean(capsys):
    logits, targets = files.model()
    write(logits, targets)
    assert main(["eval", "x.npy", "t.npy"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "mean over the scored positions" in out
    assert "of 5 sequences" in out
    assert ["positions", "scored", "60"] in [line.split()[:3] for line in out.splitlines()]
    assert ["positions", "masked", "0"] in [line.split()[:3] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("shape", "suffix"),
    [((5, 12, 37), "png"), ((40, 11), "png"), ((1, 700, 3), "png"), ((40, 11), "svg"), ((40, 11), "pdf")],
)
def test_plot(capsys, suffix, shape):
    pytest.importorskip("matplotlib")
    write(*files.model(shape))
    assert main(["eval", "x.npy", "t.npy", "--plot", f"f.{suffix}"]) == 0
    with open(f"f.{suffix}", "rb") as file:
        assert file.read(5) in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_plot_of_nothing(capsys):
    pytest.importorskip("matplotlib")
    write(np.full((2, 3, 4), np.nan), np.zeros((2, 3), int))
    assert main(["eval", "x.npy", "t.npy", "--plot", "nan.svg"]) == 0
    assert main(["eval", "x.npy", "t.npy", "--plot", "none.png", "--ignore-index", "0"]) == 0


@pytest.mark.parametrize(("path", "code", "said"), [
    ("f.xyz", 2, "--plot f.xyz: cannot draw a .xyz; expected one of "),
    ("no/f.png", 1, "no/f.png: cannot be written: No such file or directory"),
])
def test_what_cannot_be_drawn_is_said_before_scoring(capsys, monkeypatch, path, code, said):
    pytest.importorskip("matplotlib")
    write(*files.model())
    monkeypatch.setattr("fastxent.cli._scores.Scores.add", lambda *_: pytest.fail("scored first"))
    assert main(["eval", "x.npy", "t.npy", "--plot", path]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastxent eval: {said}")


def test_plot_without_matplotlib_is_said_first(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["eval", "no.npy", "such.npy", "--plot", "f.png"]) == 2
    assert "pip install 'fastxent[plot]'" in capsys.readouterr().err
