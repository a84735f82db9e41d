"""Files for the command line: one array in every format that it reads, and what goes with it."""

import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import fastxent
from fastxent.cli import _faults
from fastxent.cli._blocks import positions_of, scored
from fastxent.cli._positions import Positions
from fastxent.cli._scores import Scores
from fastxent.cli.formats import open_logits, open_vector

COMMAND = [sys.executable, "-P", "-m", "fastxent.cli"]  # -P: the package installed, not the folder we may stand in
CODES = {"float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(compressed=False, **arrays):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def safetensors(**arrays):
    """By hand, so that the reader is tested where the package is not installed."""
    header, at, data = {"__metadata__": {"format": "np"}}, 0, b""
    for name, array in arrays.items():
        header[name] = {
            "dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]
        }
        at += array.nbytes
        data += np.ascontiguousarray(array).tobytes()
    return safetensors_of(header, data)


def safetensors_of(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def kld(logits, tokens):
    """llama.cpp's rule, row by row and in float64 where it has the choice."""
    n_chunk, n_ctx, n_vocab = logits.shape
    out = b"_logits_" + struct.pack("<Iii", n_ctx, n_vocab, n_chunk) + tokens.astype("<i4").tobytes()
    for chunk in logits.astype(np.float32):
        for row in chunk[n_ctx // 2 : n_ctx - 1]:
            top = row.max()
            low = max(row.min(), top - np.float32(16))
            log_sum = np.log(np.exp((row - top).astype(np.float64)).sum())
            scale = (top - low) / np.float32(65535)
            steps = np.where(row > low, np.rint((row - low) / (scale or 1)), 0).astype("<u2")
            out += struct.pack("<ff", scale, float(low) - float(top) - log_sum) + steps.tobytes()
            out += b"\0\0" * (n_vocab % 2)
    return out


def stored_log_probs(data):
    """What a .kld says, by the format's description: tokens and float64 log-probabilities."""
    n_ctx, n_vocab, n_chunk = struct.unpack_from("<Iii", data, 8)
    tokens = np.frombuffer(data, "<i4", n_chunk * n_ctx, 20).reshape(n_chunk, n_ctx)
    rows = n_ctx - 1 - n_ctx // 2
    words = 2 * ((n_vocab + 1) // 2) + 4
    raw = np.frombuffer(data, "<u2", n_chunk * rows * words, 20 + 4 * tokens.size).reshape(n_chunk, rows, words)
    scale, minimum = np.moveaxis(raw[..., :4].copy().view("<f4").astype(np.float64), -1, 0)
    return tokens, scale[..., None] * raw[..., 4 : 4 + n_vocab] + minimum[..., None]


def zarr_array(path, logits, version=3):
    """An array in two chunks; the file of its metadata."""
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(path, shape=logits.shape, chunks=(2, 7, 11), dtype="f2", zarr_format=version)
    array[:] = logits
    return Path(path, "zarr.json" if version == 3 else ".zarray")


def model(shape=(5, 12, 37), dtype="float32", seed=0):
    """Logits that know something of their targets, and the targets."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, shape)
    targets = rng.integers(0, shape[-1], shape[:-1])
    known = rng.random(shape[:-1]) < 0.5
    logits[known, targets[known]] += 5
    return logits.astype(dtype), targets


def log_softmax(logits):
    """In float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def expected_scores(logits, targets, valid, top_k=(1, 5), bins=15):
    """All numbers of an evaluation, by their definitions in float64."""
    log_p = log_softmax(logits)
    inside = np.where(valid, targets, 0)
    losses = -np.take_along_axis(log_p, inside[..., None], -1)[..., 0]
    kept = losses[valid]
    rank = (-logits.astype(np.float64)).argsort(-1, kind="stable").argsort(-1, kind="stable")
    rank = np.take_along_axis(rank, inside[..., None], -1)[..., 0][valid]
    confidence = np.exp(log_p.max(-1))[valid]
    entropy = -(np.exp(log_p) * log_p).sum(-1)[valid]
    ece = 0.0
    for b in range(bins):
        here = (confidence >= b / bins) & ((confidence < (b + 1) / bins) | (b == bins - 1))
        ece += abs((rank[here] == 0).sum() - confidence[here].sum()) / kept.size
    rows = [(losses[i][valid[i]]).mean() for i in np.ndindex(valid.shape[:-1]) if valid[i].any()]
    if valid.ndim == 1:
        rows = list(kept)
    return {
        "nll": kept.mean(), "nll_stderr": kept.std(ddof=1) / np.sqrt(kept.size) if kept.size > 1 else None,
        "perplexity": np.exp(kept.mean()),
        "bits_per_token": kept.mean() / np.log(2), "bits_per_byte": None, "accuracy": (rank == 0).mean(),
        "top_k_accuracy": {str(k): (rank < k).mean() for k in top_k}, "entropy": entropy.mean(), "ece": ece,
        "sequence_nll": np.mean(rows), "n_tokens": kept.size, "n_masked": valid.size - kept.size,
        "n_sequences": len(rows),
    }


def assert_scores(found, expected, rel=3e-6):
    assert list(found) == list(expected) == list(fastxent.Evaluator().compute().to_dict())
    for name, value in expected.items():
        if isinstance(value, dict):
            assert found[name] == value
        elif value is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], value, rel, 1e-8, err_msg=name)


def score(name):
    """What eval does with a file, without the command around it; "scored", or the fault."""
    try:
        logits, own = open_logits(name)
    except (_faults.FileFault, _faults.UsageFault) as error:
        return str(error)
    targets = None
    try:
        positions_of([logits])
        targets = own or open_vector("t.npy")
        counted = Positions(logits.shape, targets)
        scores = Scores(counted.steps, (1, 5), None, False, False)
        for part in scored([logits], 10**6, counted.block, scores.score):
            list(scores.add(part))
        scores.result()
        return "scored"
    except (_faults.FileFault, _faults.UsageFault) as error:
        return str(error)
    finally:
        logits.close()
        if targets is not None:
            targets.close()
