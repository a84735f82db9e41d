"""Many files of logits, each scored where it lies: an `Evaluator` for each file, merged in a tree by Dask.

What travels is an evaluator's few numbers, not logits: the files may lie on several machines. A model of characters,
counted in one half of Python's own library, writes its predictions for the other half to .npy files; `dask.bag` maps
over their names, ``fold`` merges. With a `dask.distributed.Client` around it the same lines run on a cluster.

    python score_files.py [--plot likelihood.png]
"""

import argparse
import inspect
import json
import tempfile
import textwrap
import tokenize
from pathlib import Path

import dask.bag
import numpy as np

import fastxent

CHARACTERS = 128  # ASCII; 1 is any other
LINES_PER_FILE = 200
LONGEST = 80


def lines_of(*modules):
    """The lines of these modules' sources, as arrays of characters."""
    text = "\n".join(inspect.getsource(module) for module in modules)
    lines = (line[:LONGEST] for line in text.splitlines() if len(line) > 1)
    return [np.array([ord(char) if ord(char) < CHARACTERS else 1 for char in line]) for line in lines]


def counted_model(lines):
    """Log p of a character after another, smoothed: (character, next character)."""
    counts = np.full((CHARACTERS, CHARACTERS), 0.05)
    for line in lines:
        np.add.at(counts, (line[:-1], line[1:]), 1)
    return np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def write_files(folder, model, lines):
    """Logits (line, time, character), the characters themselves and the lines' lengths: three files each."""
    for number, first in enumerate(range(0, len(lines), LINES_PER_FILE)):
        some = lines[first : first + LINES_PER_FILE]
        tokens = np.zeros((len(some), LONGEST), np.uint8)
        for row, line in zip(tokens, some, strict=True):
            row[: len(line)] = line
        np.save(folder / f"{number:03}.tokens.npy", tokens)
        np.save(folder / f"{number:03}.lengths.npy", [len(line) for line in some])
        np.save(folder / f"{number:03}.logits.npy", model[tokens])
    return sorted(map(str, folder.glob("*.logits.npy")))


def evaluator():
    """The same options everywhere: the logits at a time predict the next character."""
    return fastxent.Evaluator(top_k=(1, 5), shift=1, num_threads=1)


def score(name):
    """What one file adds: an evaluator's state, of plain types."""
    tokens, lengths = (np.load(name.replace("logits", part)) for part in ("tokens", "lengths"))
    part = evaluator()
    part.update(np.load(name), tokens, lengths=lengths)
    return part.state_dict()


def merge(state, other):
    """Two states together."""
    first, second = evaluator(), evaluator()
    first.load_state_dict(state)
    second.load_state_dict(other)
    first.merge(second)
    return first.state_dict()


def main(arguments=None):
    """Write, score, merge; returns the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="F.png", help="write a figure of the files' mean losses")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        names = write_files(Path(folder), counted_model(lines_of(inspect, textwrap)), lines_of(argparse, tokenize))
        print(f"{len(names)} files of {LINES_PER_FILE} lines")
        states = dask.bag.from_sequence(names, npartitions=len(names)).map(score)
        total = states.fold(merge, split_every=4)
        parts, whole = dask.compute(states, total, scheduler="threads")
    losses = []
    for name, state in zip(names, parts, strict=True):
        part = evaluator()
        part.load_state_dict(state)
        losses.append(part.compute().nll)
        print(f"{Path(name).name}: {len(json.dumps(state))} bytes say: loss {losses[-1]:.4f}")
    merged = evaluator()
    merged.load_state_dict(whole)
    found = merged.compute()
    print(f"all: {found.n_tokens} characters, perplexity {found.perplexity:.3f}, top 5 {found.top_k_accuracy[5]:.3f}")
    if options.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(losses)), losses)
        axes.axhline(found.nll, color="black", label="all files")
        axes.set(xlabel="file", ylabel="mean loss (nats)")
        axes.legend()
        figure.savefig(options.plot)
    return found.accuracy


if __name__ == "__main__":
    main()
