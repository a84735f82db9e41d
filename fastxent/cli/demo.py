"""Score held-out text with a small language model, beside plain NumPy; then train a better model by gradient descent.

The text is Python's own help, which every Python carries. Everything is computed here and now; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

import fastxent
from fastxent.cli._demo_models import Floats, Lengths, Network, Tokens, Trigrams
from fastxent.cli._demo_text import N_SYMBOLS, batches, pad, read_sentences

HELP = "masked loss, perplexity and training on real text, in a few seconds"

ROUNDS = 7
BATCH = 16
RATE = 0.8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastxent demo``."""
    parser.add_argument("--steps", type=_count, default=300, metavar="N", help="steps of the descent (default 300)")
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="seed of split and network (default 0)")


def run(arguments: argparse.Namespace) -> int:
    """Run ``fastxent demo``: 0, or 1 if fastxent and NumPy disagree about the loss."""
    rng = np.random.default_rng(arguments.seed)
    sentences = read_sentences()
    order = rng.permutation(len(sentences))
    held_out, training = ([sentences[i] for i in part] for part in np.split(order, [len(sentences) // 8]))
    config = fastxent.show_config("dict")
    using = "fastxent {version}, {backend}, {instruction_set}, {num_threads} threads; NumPy {numpy}, Python {python}"
    say(using.format_map(config) + "\n")
    shortest, longest = min(map(len, sentences)), max(map(len, sentences))
    say(f"Text    Python's own help: {len(sentences)} sentences of {shortest} to {longest} characters")

    start = time.perf_counter()
    trigrams = Trigrams(*pad(training), N_SYMBOLS)
    say(f"Model   interpolated trigrams of characters, counted on {len(training)} of them "
        f"in {time.perf_counter() - start:.2f} s")
    agreed, trigram_loss = score(trigrams, *pad(held_out))
    train(training, held_out, trigram_loss, arguments.steps, rng)
    return 0 if agreed else 1


def score(model: Trigrams, tokens: Tokens, lengths: Lengths) -> tuple[bool, float]:
    """Print the held-out loss by fastxent and by NumPy, with their times; return whether they agree, and the loss."""
    logits = model.logits(tokens)
    share = (lengths - 1).sum() / tokens.size
    say(f"Logits  {logits.dtype} {logits.shape}, {logits.nbytes / 1e6:.0f} MB: the other {len(tokens)} sentences, "
        f"padded; {share:.0%} is text\n")

    ways: dict[str, Callable[[], float]] = {
        "fastxent": lambda: float(fastxent.cross_entropy(logits, tokens, lengths=lengths, shift=1)),
        "NumPy, the whole array": lambda: numpy_loss(logits, tokens, lengths),
        "NumPy, padding taken out": lambda: numpy_loss_of_valid(logits, tokens, lengths),
    }
    losses, seconds = race(ways, ROUNDS)
    say("1. Score the held-out sentences: cross_entropy(logits, tokens, lengths=lengths, shift=1)\n")
    say(f"   {'':26}{'loss':>10}{'perplexity':>13}{'time':>13}")
    for name, loss in losses.items():
        ratio = "" if name == "fastxent" else f"   {seconds[name] / seconds['fastxent']:.1f} times fastxent's"
        say(f"   {name:26}{loss:10.5f}{np.exp(loss):13.4f}{1000 * seconds[name]:10.2f} ms{ratio}")
    say(f"\n   In nats, a mean over symbols. Times: the best of {ROUNDS} runs, taken in turn.")
    by_sentence = fastxent.cross_entropy(logits, tokens, lengths=lengths, shift=1, reduction="sequence_mean")
    say(f'   The mean of the sentences\' own means, reduction="sequence_mean", is {by_sentence:.5f}.\n')

    agreed = all(abs(loss - losses["fastxent"]) <= 1e-5 * abs(loss) for loss in losses.values())
    if not agreed:
        print("fastxent demo: fastxent and NumPy disagree about the loss: please report this", file=sys.stderr)
    return agreed, losses["fastxent"]


def train(training: list[str], held_out: list[str], trigram_loss: float, steps: int, rng: np.random.Generator) -> None:
    """Train the network by gradient descent and print its held-out loss on the way."""
    network = Network(N_SYMBOLS, rng)
    training_batches, held_out_batches = batches(training, BATCH), batches(held_out, 4 * BATCH)
    say(f"2. Train a network of {sum(parameter.size for parameter in network.parameters)} parameters on the other "
        f"sentences, from a random start:\n"
        f"   {steps} steps of gradient descent with momentum by cross_entropy_and_grad, {BATCH} sentences each\n")
    say(f"   {'step':>6}{'held-out loss':>16}{'perplexity':>13}")
    loss = report(0, network, held_out_batches)
    reported = {round(steps * quarter / 4) for quarter in (1, 2, 3, 4)}
    total = inside = 0.0
    for step in range(1, steps + 1):
        start = time.perf_counter()
        tokens, lengths = training_batches[rng.integers(len(training_batches))]
        logits = network.logits(tokens)
        before = time.perf_counter()
        fastxent.cross_entropy_and_grad(logits, tokens, lengths=lengths, shift=1, out_grad=logits)
        inside += time.perf_counter() - before
        network.descend(logits, RATE * min(1.0, 2 - 2 * step / (steps + 1)))
        total += time.perf_counter() - start
        progress(f"   step {step} of {steps}")
        if step in reported:
            loss = report(step, network, held_out_batches)
    say(f"\n   {total:.1f} s of training, {inside:.2f} s of it in cross_entropy_and_grad; the rest is NumPy.")
    where = "below" if loss < trigram_loss else "above"
    say(f"   It ends {where} the trigrams, {loss:.4f} against {trigram_loss:.4f}; "
        f"it sees {network.CONTEXT} symbols, they see 2.")


def report(step: int, network: Network, held_out: list[tuple[Tokens, Lengths]]) -> float:
    """Print one row of the training table; return the held-out loss, a mean over the symbols of all batches."""
    n_predicted = sum(int((lengths - 1).sum()) for _, lengths in held_out)
    loss = 0.0
    for tokens, lengths in held_out:
        logits = network.logits(tokens)
        loss += float(fastxent.cross_entropy(logits, tokens, lengths=lengths, shift=1, normalizer=n_predicted))
    progress("")
    say(f"   {step:6}{loss:16.4f}{np.exp(loss):13.3f}")
    return loss


def numpy_loss(logits: Floats, tokens: Tokens, lengths: Lengths) -> float:
    """The mean loss as one writes it in NumPy: everything for every position, then the mask."""
    shifted = logits[:, :-1] - logits[:, :-1].max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    mask = np.arange(1, tokens.shape[1]) < lengths[:, None]
    return float((losses * mask).sum() / mask.sum())


def numpy_loss_of_valid(logits: Floats, tokens: Tokens, lengths: Lengths) -> float:
    """The mean loss in NumPy with more care: the padding is taken out first."""
    mask = np.arange(1, tokens.shape[1]) < lengths[:, None]
    rows, targets = logits[:, :-1][mask], tokens[:, 1:][mask]
    rows -= rows.max(-1, keepdims=True)
    chosen = np.take_along_axis(rows, targets[:, None], axis=-1)[:, 0]
    return float((np.log(np.exp(rows).sum(-1)) - chosen).mean())


def race(ways: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """What each way returns, and the best of its times in seconds; they take turns, so that they share the weather."""
    results: dict[str, float] = {}
    seconds = dict.fromkeys(ways, np.inf)
    for turn in range(rounds):
        progress(f"   round {turn + 1} of {rounds}")
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    progress("")
    return results, seconds


def say(line: str) -> None:
    """Print a result at once, also into a pipe."""
    print(line, flush=True)


def progress(text: str) -> None:
    """Show `text` in the terminal's last line until the next call; nothing where stderr is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text!r}")
    return int(text)
