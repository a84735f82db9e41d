"""What memory can be read with here, and the share of it that the kernels reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastxent

from .formats import Array

_CLASSES = 32768
_ROUNDS = 5


def measure(nbytes: int) -> list[dict[str, Any]]:
    """A plain read by as many threads as fastxent uses, and forward passes over as many bytes; taken in turn."""
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(0)
    rows = max(1, nbytes // (4 * _CLASSES))
    logits = np.empty((rows, _CLASSES), np.float32)
    for row in logits:
        rng.standard_normal(dtype=np.float32, out=row)
    targets = rng.integers(0, _CLASSES, 2 * rows)
    halves = logits.view(np.float16).reshape(2 * rows, _CLASSES)  # the same memory as other numbers
    n_threads = fastxent.get_num_threads()
    parts = np.array_split(logits.reshape(-1).view(np.uint64), n_threads)
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(n_threads) as pool:
        _race(seconds, {
            "plain read": lambda: list(pool.map(np.add.reduce, parts)),
            "cross_entropy, float32": lambda: fastxent.cross_entropy(logits, targets[:rows]),
        })
        _make_halves(logits, halves)
        _race(seconds, {"cross_entropy, float16": lambda: fastxent.cross_entropy(halves, targets)})
    rates = {what: logits.nbytes / s / 1e9 for what, s in seconds.items()}
    read = rates["plain read"]
    return [
        {"what": f"{what}, {logits.nbytes / 1e6:.0f} MB, {n_threads} threads", "gb_per_s": rate,
         "share": None if what == "plain read" else rate / read}
        for what, rate in rates.items()
    ]


def _make_halves(logits: Array, halves: Array) -> None:
    """Turn the numbers into twice as many of half the size, in place."""
    for row, pair in zip(logits, halves.reshape(len(logits), -1), strict=True):
        pair[: row.size] = row.copy()
        pair[row.size :] = pair[: row.size]


def _race(seconds: dict[str, float], ways: dict[str, Callable[[], object]]) -> None:
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)
