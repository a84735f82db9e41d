"""Adding up the blocks of an evaluation: an `Evaluator`, and what needs to know which sequence a row belongs to.

A block ends where memory says, perhaps within a sequence, so sequences are put together here: `Evaluator` itself gets
single positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import fastxent
from fastxent.evaluation import Evaluation, ScoredBatch

from ._blocks import Block
from ._positions import Counted
from .formats import Array

N_BUCKETS = 4096  # of a loss histogram, before it is drawn
BUCKET = 0.01  # nats
N_TIMES = 512


class Part(NamedTuple):
    """What is known of one block."""

    start: int
    evaluator: fastxent.Evaluator
    losses: Array
    valid: Array
    batch: ScoredBatch | None  # if each sequence is asked for
    nbytes: int


class Scores:
    """The numbers of all blocks. `steps` positions are a sequence."""

    def __init__(
        self, steps: int, top_k: tuple[int, ...], token_bytes: Array | None, for_plot: bool, per_sequence: bool
    ) -> None:
        self.steps, self.top_k, self.token_bytes = max(steps, 1), top_k, token_bytes
        self.evaluator = self._fresh(1)
        self.means = _SequenceMeans(self.steps)
        self.curves = _Curves(self.steps) if for_plot else None
        self.per_sequence = per_sequence
        self.open = self._fresh(1)
        self.index = 0

    def _fresh(self, threads: int) -> fastxent.Evaluator:
        return fastxent.Evaluator(
            top_k=self.top_k, ignore_index=None, token_bytes=self.token_bytes, num_threads=threads
        )

    def score(self, block: Block, counted: Counted) -> Part:
        """A block for itself; several threads may do this at once."""
        evaluator = self._fresh(block.threads)
        targets, valid = counted.targets, counted.valid
        batches, nbytes = [], 0
        for part, (logits,) in block.pieces:
            batches.append(evaluator.score(logits, targets[part], mask=None if counted.all_valid else valid[part]))
            nbytes += logits.nbytes
        batch = ScoredBatch.joined(batches)
        evaluator.add(batch)
        losses = np.where(valid, -batch.statistics.log_prob.astype(np.float64), 0.0)
        return Part(block.start, evaluator, losses, valid, batch if self.per_sequence else None, nbytes)

    def add(self, part: Part) -> Iterator[tuple[int, Evaluation]]:
        """Add the next block; the sequences that end in it, if they are asked for."""
        self.evaluator.merge(part.evaluator)
        if self.steps > 1:
            self.means.add(part.start, part.losses, part.valid)
        if self.curves is not None:
            self.curves.add(part.start, part.losses, part.valid)
        if part.batch is not None:
            yield from self._sequences(part.batch, part.start, part.start + part.valid.size)

    def _sequences(self, batch: ScoredBatch, start: int, stop: int) -> Iterator[tuple[int, Evaluation]]:
        """Those that end in a block: the one that was open, and whole ones; the last may stay open."""
        first, last = -(-start // self.steps) * self.steps, stop // self.steps * self.steps
        if start < min(first, stop):
            self.open.add(batch.part(slice(0, min(first, stop) - start)))
            if first <= stop:
                yield self._finish_sequence()
        if first < last:
            inside = batch.part(slice(first - start, last - start))
            shape = ((last - first) // self.steps, self.steps)
            for found in self.evaluator.each(inside._replace(arrays=tuple(a.reshape(shape) for a in inside.arrays))):
                self.index += 1
                yield self.index - 1, found
        if first <= last < stop:
            self.open.add(batch.part(slice(last - start, stop - start)))

    def empty_sequences(self, count: int) -> Iterator[tuple[int, Evaluation]]:
        """Those of `count` that have no position at all, after all blocks."""
        while self.per_sequence and self.index < count:
            yield self._finish_sequence()

    def _finish_sequence(self) -> tuple[int, Evaluation]:
        found = self.open.compute()
        self.open.reset()
        self.index += 1
        return self.index - 1, dataclasses.replace(found, sequence_nll=found.nll, n_sequences=min(found.n_tokens, 1))

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
