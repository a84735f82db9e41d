"""``fastxent demo``: its text, its models, what it prints, and the command around it."""

import importlib.metadata
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import fastxent
from fastxent import reference
from fastxent.cli import _demo_models, _demo_text, demo, main

COMMAND = [sys.executable, "-P", "-m", "fastxent.cli"]  # -P: the package installed, not the folder we may stand in


@pytest.fixture(scope="module")
def sentences():
    return _demo_text.read_sentences()


@pytest.fixture(scope="module")
def output():
    """What a whole run prints, in a process of its own."""
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # beside other tests a waiting BLAS thread spins
    run = subprocess.run([*COMMAND, "demo"], env=os.environ | one_thread, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # no progress where stderr is not a terminal
    return run.stdout


def held_out_losses(text):
    """The (step, loss) pairs of the training table."""
    rows = re.findall(r"^ +(\d+) +(\d+\.\d{4}) +\d+\.\d{3}$", text, re.MULTILINE)
    return [(int(step), float(loss)) for step, loss in rows]


def scores(text):
    """The {name: loss} of the scoring table."""
    return {name: float(loss) for name, loss in re.findall(r"^   (\S.*?) {2,}(\d+\.\d{5}) .* ms", text, re.MULTILINE)}


# The text

def test_sentences_are_many_distinct_and_of_different_lengths(sentences):
    lengths = [len(sentence) for sentence in sentences]
    assert len(sentences) == len(set(sentences)) > 1000
    assert min(lengths) < 20
    assert max(lengths) <= _demo_text.LONGEST
    assert max(lengths) > 300


def test_pad_keeps_every_character():
    tokens, lengths = _demo_text.pad(["To be.", "~ or", "é!"])
    assert tokens.dtype == np.uint8
    assert lengths.tolist() == [8, 6, 4]
    assert bytes(tokens[0, 1:7] + 31) == b"To be."
    assert bytes(tokens[1, 1:5] + 31) == b"~ or"
    assert bytes(tokens[2, 1:3] + 31) == b"?!"
    assert tokens.max() == _demo_text.N_SYMBOLS - 1
    for row, length in zip(tokens, lengths, strict=True):
        assert row[0] == 0
        assert not row[length - 1 :].any()


def test_batches_hold_every_sentence_once_with_little_padding(sentences):
    batches = _demo_text.batches(sentences, 16)
    lengths = np.concatenate([lengths for _, lengths in batches])
    assert sorted(lengths - 2) == sorted(map(len, sentences))
    assert lengths.sum() > 0.9 * sum(tokens.size for tokens, _ in batches)


# The models

def test_trigrams_by_hand():
    """One sentence, symbols 0 1 1 2 0: after 1 come 1 and 2, after (1, 1) comes 2."""
    model = _demo_models.Trigrams(np.array([[0, 1, 1, 2, 0]], np.uint8), np.array([5]), 4)
    single = (np.array([1, 2, 1, 0]) + 3 / 4) / (4 + 3)
    after_1 = (np.array([0, 1, 1, 0]) + 2 * single) / (2 + 2)
    after_11 = (np.array([0, 0, 1, 0]) + 1 * after_1) / (1 + 1)
    np.testing.assert_allclose(np.exp(model.log_probs[1, 1]), after_11, rtol=1e-6)
    np.testing.assert_allclose(np.exp(model.log_probs[3, 1]), after_1, rtol=1e-6)  # (3, 1) was never seen
    np.testing.assert_allclose(np.exp(model.log_probs[1, 3]), single, rtol=1e-6)
    np.testing.assert_allclose(np.exp(model.log_probs).sum(-1), 1, rtol=1e-6)


def test_trigrams_do_not_count_padding_or_look_ahead():
    tokens, lengths = np.array([[0, 1, 2, 0], [0, 2, 0, 0]], np.uint8), np.array([4, 3])
    model = _demo_models.Trigrams(tokens, lengths, 3)
    wider = _demo_models.Trigrams(np.pad(tokens, ((0, 0), (0, 3))), lengths, 3)
    np.testing.assert_array_equal(model.log_probs, wider.log_probs)
    logits = model.logits(tokens)
    changed = tokens.copy()
    changed[:, 3] = 1
    np.testing.assert_array_equal(model.logits(changed)[:, :3], logits[:, :3])
    np.testing.assert_array_equal(logits[0, 1], model.log_probs[0, 1])
    np.testing.assert_array_equal(logits[0, 2], model.log_probs[1, 2])


def test_network_descends_along_its_gradient():
    """The step of every parameter array against the numerical derivative in a random direction of that array."""
    rng = np.random.default_rng(1)
    tokens, lengths = rng.integers(0, 7, (3, 9)).astype(np.uint8), np.array([9, 4, 6])
    network = _demo_models.Network(7, rng)
    network.out_weight += rng.standard_normal(network.out_weight.shape).astype(np.float32)

    def loss():
        return fastxent.cross_entropy(network.logits(tokens), tokens, lengths=lengths, shift=1)

    _, grad = fastxent.cross_entropy_and_grad(network.logits(tokens), tokens, lengths=lengths, shift=1)
    before = [parameter.copy() for parameter in network.parameters]
    network.descend(grad, rate=1.0, momentum=0.0)
    steps = [old - new for old, new in zip(before, network.parameters, strict=True)]
    for parameter, old in zip(network.parameters, before, strict=True):
        parameter[...] = old
    for parameter, old, step in zip(network.parameters, before, steps, strict=True):
        noise = rng.standard_normal(step.shape).astype(np.float32)
        direction = step / np.sqrt((step**2).sum()) + 0.3 * noise / step.size**0.5
        parameter[...] = old + np.float32(0.01) * direction
        above = loss()
        parameter[...] = old - np.float32(0.01) * direction
        below = loss()
        parameter[...] = old
        assert (above - below) / 0.02 == pytest.approx((step * direction).sum(), rel=5e-3)


def test_the_numpy_ways_are_right(sentences):
    rng = np.random.default_rng(2)
    tokens, lengths = _demo_text.pad(sentences[:5])
    logits = rng.standard_normal((*tokens.shape, _demo_text.N_SYMBOLS)).astype(np.float32)
    expected = reference.cross_entropy(logits, tokens, lengths=lengths, shift=1)
    assert demo.numpy_loss(logits, tokens, lengths) == pytest.approx(expected, rel=1e-6)
    assert demo.numpy_loss_of_valid(logits, tokens, lengths) == pytest.approx(expected, rel=1e-6)


# The command

def test_the_ways_print_the_same_loss(output):
    losses = scores(output)
    assert len(losses) == 3
    assert max(losses.values()) - min(losses.values()) <= 1.01e-5  # one unit of the last digit printed
    assert 1.0 < losses["fastxent"] < 3.0  # between a very good and a very poor model of English characters


def test_descent_lowers_the_held_out_loss_below_the_trigrams(output):
    losses = held_out_losses(output)
    assert [step for step, _ in losses] == [0, 75, 150, 225, 300]
    assert losses[0][1] == pytest.approx(np.log(_demo_text.N_SYMBOLS), abs=1e-4)  # zero output weights: all alike
    assert [loss for _, loss in losses] == sorted((loss for _, loss in losses), reverse=True)
    assert losses[-1][1] < scores(output)["fastxent"]
    assert "ends below the trigrams" in output


def test_a_seed_fixes_everything_but_the_times(capsys):
    texts = []
    for seed in "3", "3", "4":
        assert main(["demo", "--steps", "4", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    losses = [(scores(text), held_out_losses(text)) for text in texts]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_no_steps_leave_the_network_above_the_trigrams(capsys):
    assert main(["demo", "--steps", "0"]) == 0
    text = capsys.readouterr().out
    assert [step for step, _ in held_out_losses(text)] == [0]
    assert "ends above the trigrams" in text


def test_progress_goes_to_a_terminal_only(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["demo", "--steps", "2"]) == 0
    out, err = capsys.readouterr()
    assert "\r" not in out
    assert "step 2 of 2" in err
    assert err.endswith("\r\x1b[K")  # nothing of it stays on the screen


def test_disagreement_is_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(demo, "numpy_loss", lambda *_: 1.0)
    assert main(["demo", "--steps", "0"]) == 1
    assert "disagree" in capsys.readouterr().err


def test_errors_are_one_line_unless_debugged(capsys, monkeypatch):
    def fail():
        raise RuntimeError("no text here")

    monkeypatch.setattr(demo, "read_sentences", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr() == ("", "fastxent demo: RuntimeError: no text here\n")
    assert main(["demo", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["", "sing", "demo --steps -1", "demo --seed x", "demo more"])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments.split())
    assert exit_info.value.code == 2
    assert "usage: fastxent" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"fastxent {fastxent.__version__}\n"


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen([*COMMAND, "demo", "--steps", "1"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("fastxent ")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_the_command_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="fastxent")
    assert script.load() is main
