"""A Zarr store of logits, chunked along lines, time and classes, scored by Dask: no chunk is changed, none read twice.

A model of characters, counted in one part of Python's own library, writes its predictions for another part into a
store, as a model that runs on several devices would: each has a range of the vocabulary. `fastxent.dask` sums the
ranges up apart and merges them; `shift=1` compares a prediction with the next character, across chunks of time too.

    python score_store.py [--plot losses.png]
"""

import argparse
import inspect
import tempfile
import textwrap
import tokenize
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr

import fastxent.dask

CHARACTERS = 128  # ASCII; 1 is any other
LONGEST = 80
CHUNKS = (400, 20, 32)  # lines, time, classes


def padded_lines(*modules):
    """(line, time) characters of these modules' sources, and the lines' lengths."""
    text = "\n".join(inspect.getsource(module) for module in modules)
    lines = [line[:LONGEST] for line in text.splitlines() if len(line) > 1]
    tokens = np.zeros((len(lines), LONGEST), np.uint8)
    for row, line in zip(tokens, lines, strict=True):
        row[: len(line)] = [ord(char) if ord(char) < CHARACTERS else 1 for char in line]
    return tokens, np.array([len(line) for line in lines])


def counted_model(tokens, lengths):
    """Log p of a character after the two before it: (before, character, next character)."""
    counts = np.full((CHARACTERS,) * 3, 0.01, np.float32)
    inside = np.arange(2, LONGEST) < lengths[:, None]
    np.add.at(counts, (tokens[:, :-2][inside], tokens[:, 1:-1][inside], tokens[:, 2:][inside]), 1)
    counts += 0.5 * counts.sum(axis=0) / counts.sum(axis=(0, 2))[:, None]
    return np.log(counts / counts.sum(axis=-1, keepdims=True))


def main(arguments=None):
    """Write the store and score it; returns the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="F.png", help="write a figure of the mean loss at each time")
    options = parser.parse_args(arguments)
    model = counted_model(*padded_lines(inspect, textwrap))
    tokens, lengths = padded_lines(argparse, tokenize)
    before = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    with tempfile.TemporaryDirectory() as folder:
        store = zarr.create_array(
            store=Path(folder, "logits.zarr"), shape=(*tokens.shape, CHARACTERS), chunks=CHUNKS, dtype="float32"
        )
        for first in range(0, len(tokens), CHUNKS[0]):
            lines = slice(first, first + CHUNKS[0])
            store[lines] = model[before[lines], tokens[lines]]
        logits = da.from_zarr(Path(folder, "logits.zarr"))
        megabytes = logits.nbytes / 1e6
        print(f"logits {logits.shape} in {logits.npartitions} chunks of {logits.chunksize}, {megabytes:.0f} MB")

        keywords = {"lengths": lengths, "shift": 1}
        mean = fastxent.dask.cross_entropy(logits, tokens, **keywords)
        by_line = fastxent.dask.cross_entropy(logits, tokens, reduction="sequence_mean", **keywords)
        found = fastxent.dask.token_statistics(logits, tokens, **keywords)
        counted = found.rank >= 0
        at_time = -found.log_prob.sum(axis=0) / da.maximum(counted.sum(axis=0), 1)
        accuracy = (found.rank == 0).sum() / counted.sum()
        top5 = (counted & (found.rank < 5)).sum() / counted.sum()
        results = dask.compute(mean, by_line, accuracy, top5, counted.sum(), at_time, scheduler="threads")
    mean, by_line, accuracy, top5, number, at_time = results
    print(f"{number} characters")
    print(f"perplexity {np.exp(mean):.3f}")
    print(f"each line counting alike {np.exp(by_line):.3f}")
    print(f"accuracy {accuracy:.3f}, top 5 {top5:.3f}")
    print("mean loss, every tenth character:", *(f"{loss:.2f}" for loss in at_time[::10]))
    if options.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(at_time[:-1])
        axes.set(xlabel="time", ylabel="mean loss (nats)")
        figure.savefig(options.plot)
    return accuracy


if __name__ == "__main__":
    main()
