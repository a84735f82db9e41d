"""Adding up the blocks of an evaluation: an `Evaluator`, and what needs to know which sequence a row belongs to.

A block ends where memory says, perhaps within a sequence, so sequences are put together here: `Evaluator` itself gets
single positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

import fastxent
from fastxent.evaluation import Evaluation

from ._positions import Counted
from .formats import Array

N_BUCKETS = 4096  # of a loss histogram, before it is drawn
BUCKET = 0.01  # nats
N_TIMES = 512


class Scores:
    """The numbers of all blocks. `steps` positions are a sequence."""

    def __init__(self, steps: int, top_k: tuple[int, ...], token_bytes: Array | None, for_plot: bool) -> None:
        self.steps = max(steps, 1)
        self.evaluator = fastxent.Evaluator(top_k=top_k, ignore_index=None, token_bytes=token_bytes)
        self.means = _SequenceMeans(self.steps)
        self.curves = _Curves(self.steps) if for_plot else None

    def add(self, start: int, logits: Array, counted: Counted) -> None:
        """Rows from `start` on."""
        mask = None if counted.all_valid else counted.valid
        found = self.evaluator.update_and_statistics(logits, counted.targets, mask=mask)
        losses = np.where(counted.valid, -found.log_prob.astype(np.float64), 0.0)
        if self.steps > 1:
            self.means.add(start, losses, counted.valid)
        if self.curves is not None:
            self.curves.add(start, losses, counted.valid)

    def result(self) -> Evaluation:
        """What `Evaluator.compute` would return of whole sequences."""
        found = self.evaluator.compute()
        if self.steps == 1:
            return found
        mean, count = self.means.result()
        return dataclasses.replace(found, sequence_nll=mean, n_sequences=count)

    def calibration(self) -> tuple[Array, Array, Array]:
        """Of each bin of the largest probability: positions, right ones, sum of that probability."""
        totals = self.evaluator.state_dict()["totals"]
        tokens, right, confidence = (
            np.array([float(v) for v in totals[name]]) for name in ("bin_tokens", "bin_correct", "bin_confidence")
        )
        return tokens, right, confidence


class _SequenceMeans:
    """The mean of the sequences' own means; one sequence may be open between two blocks."""

    def __init__(self, steps: int) -> None:
        self.steps, self.total, self.count = steps, 0.0, 0
        self.open_sum, self.open_count = 0.0, 0

    def add(self, start: int, losses: Array, valid: Array) -> None:
        index = np.arange(start, start + losses.size) // self.steps
        index -= start // self.steps
        sums, counts = np.bincount(index, losses), np.bincount(index, valid).astype(np.int64)
        sums[0] += self.open_sum
        counts[0] += self.open_count
        self.open_sum, self.open_count = 0.0, 0
        if (start + losses.size) % self.steps:
            self.open_sum, self.open_count = float(sums[-1]), int(counts[-1])
            sums, counts = sums[:-1], counts[:-1]
        with np.errstate(all="ignore"):
            self.total += float((sums[counts > 0] / counts[counts > 0]).sum())
        self.count += int(np.count_nonzero(counts))

    def result(self) -> tuple[float, int]:
        return (self.total / self.count if self.count else math.nan), self.count


class _Curves:
    """What is drawn: losses by their place in the sequence, and how many there are of each size."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.n_times = min(steps, N_TIMES)
        self.by_time = np.zeros((3, self.n_times))  # count, sum, sum of squares
        self.histogram = np.zeros(N_BUCKETS + 1, np.int64)  # the last: all that is larger

    def add(self, start: int, losses: Array, valid: Array) -> None:
        kept = losses[valid]
        kept = np.where(np.isnan(kept), np.inf, kept)
        bucket = np.minimum(kept / BUCKET, N_BUCKETS).astype(np.int64)
        self.histogram += np.bincount(bucket, minlength=N_BUCKETS + 1)
        time = (np.flatnonzero(valid) + start) % self.steps * self.n_times // self.steps
        finite = np.isfinite(kept)
        for row, weights in enumerate((None, kept[finite], kept[finite] ** 2)):
            self.by_time[row] += np.bincount(time[finite], weights, self.n_times)


@dataclasses.dataclass
class _Open:
    """The sequence whose rows are being read."""

    index: int
    evaluator: fastxent.Evaluator
    rows: int = 0


class PerSequence:
    """An evaluation of each sequence for itself; `total` has all of them."""

    def __init__(self, steps: int, top_k: tuple[int, ...], token_bytes: Array | None) -> None:
        self.steps, self.top_k, self.token_bytes = steps, top_k, token_bytes
        self.current = _Open(0, self._fresh())

    def _fresh(self) -> fastxent.Evaluator:
        return fastxent.Evaluator(top_k=self.top_k, ignore_index=None, token_bytes=self.token_bytes)

    def add(self, start: int, logits: Array, counted: Counted) -> Iterator[tuple[int, Evaluation]]:
        """Rows from `start` on; the sequences that end among them."""
        at, stop = 0, len(logits)
        while at < stop:
            end = min(stop, at + self.steps - (start + at) % self.steps)
            piece = slice(at, end)
            self.current.evaluator.update(logits[piece], counted.targets[piece], mask=counted.valid[piece])
            if (start + end) % self.steps == 0:
                yield self.current.index, self._finished()
            at = end

    def _finished(self) -> Evaluation:
        found = self.current.evaluator.compute()
        self.current = _Open(self.current.index + 1, self._fresh())
        return dataclasses.replace(found, sequence_nll=found.nll, n_sequences=min(found.n_tokens, 1))
