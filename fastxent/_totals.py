"""What an evaluation keeps, counts and float64 sums, and how a scored batch, or each sequence of one, becomes that."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._scoring_arguments import bytes_of_targets
from .statistics import TokenStatistics

Array = NDArray[Any]


@dataclass
class Totals:
    """What is known of the positions so far; nll_m2 is the sum of squared distances from their mean loss."""

    tokens: int
    masked: int
    sequences: int
    bytes: int
    correct: int
    nll: float
    nll_m2: float
    entropy: float
    sequence_nll: float
    top_k: list[int]
    bin_tokens: list[int]
    bin_correct: list[int]
    bin_confidence: list[float]

    def check(self) -> None:
        """ValueError where no batches could have led to these counts."""
        parts = (self.sequences, self.correct, *self.top_k, *self.bin_tokens)
        if min(*parts, *self.bin_correct, self.masked, self.bytes, self.nll_m2) < 0 or max(parts) > self.tokens:
            raise ValueError("a count is negative, or larger than that of the tokens")
        if sum(self.bin_tokens) != self.tokens or sum(self.bin_correct) != self.correct:
            raise ValueError("the bins' counts do not add up")

    def plus(self, other: Totals) -> Totals:
        total = Totals(**{f.name: _added(getattr(self, f.name), getattr(other, f.name)) for f in fields(Totals)})
        if self.tokens and other.tokens:  # Chan, Golub, LeVeque (1983): between the two means
            apart = other.nll / other.tokens - self.nll / self.tokens
            total.nll_m2 += apart * apart * (self.tokens * (other.tokens / total.tokens))
        return total

    def to_plain(self) -> dict[str, Any]:
        """In the types of JSON; infinities and NaN, which it lacks, as text."""
        return {name: _to_plain(value) for name, value in asdict(self).items()}

    def from_plain(self, plain: Any) -> Totals:
        """What `to_plain` of totals of as many bins returned; KeyError, TypeError, ValueError or OverflowError else."""
        found = Totals(**{name: _from_plain(plain[name], kind) for name, kind in asdict(self).items()})
        found.check()
        return found


class ScoredBatch(NamedTuple):
    """What `Evaluator.score` returns: all of a batch that counting it takes, without its logits.

    It may be cut and joined along its first axis, so that rows which are scored piece by piece are counted at once, or
    counted sequence by sequence after they were scored at once.
    """

    arrays: tuple[Array, ...]  # of the positions' shape: the statistics, the largest probability, the targets
    sequence_length: int
    classes: int

    @property
    def statistics(self) -> TokenStatistics:
        """What `token_statistics` returns."""
        return TokenStatistics(*self.arrays[:5])

    def part(self, chosen: slice) -> ScoredBatch:
        """Some of the batch."""
        return self._replace(arrays=tuple(array[chosen] for array in self.arrays))

    @staticmethod
    def joined(batches: Sequence[ScoredBatch]) -> ScoredBatch:
        """Batches of the same classes, one after the other."""
        columns = zip(*(batch.arrays for batch in batches), strict=True)
        return batches[0]._replace(arrays=tuple(map(np.concatenate, columns)))


@dataclass(frozen=True)
class Counting:
    """What is counted of a batch; of many sequences at once, since one at a time takes too long."""

    top_k: tuple[int, ...]
    edges: Array  # between the bins of calibration
    token_bytes: Array | None

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    def nothing(self) -> Totals:
        within, bins = [0] * len(self.top_k), [0] * self.bins
        return Totals(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, within, bins, [*bins], [0.0] * self.bins)

    def of_batch(self, batch: ScoredBatch) -> Totals:
        log_prob, logsumexp, _, rank, entropy, top, targets = batch.arrays
        valid = (rank >= 0) | np.isnan(logsumexp)  # a NaN row has no rank either, and counts
        tokens = int(np.count_nonzero(valid))
        total = self.nothing()
        total.masked = valid.size - tokens
        if not tokens:
            return total
        total.tokens = tokens

        def counted(a: Array) -> Array:
            return a.reshape(-1) if tokens == valid.size else a[valid]

        losses = np.where(valid, -log_prob.astype(np.float64), 0)
        right, confidence = counted(rank) == 0, counted(top).astype(np.float64)
        with np.errstate(all="ignore"):
            total.nll = float(losses.sum())
            total.nll_m2 = float(((counted(losses) - total.nll / tokens) ** 2).sum())
            total.entropy = float(counted(entropy).sum(dtype=np.float64))
            means = counted(losses)
            if batch.sequence_length != 1:
                by_sequence = valid.reshape(-1, batch.sequence_length)
                counts = by_sequence.sum(axis=1)
                means = losses.reshape(by_sequence.shape).sum(axis=1)[counts > 0] / counts[counts > 0]
            total.sequence_nll, total.sequences = float(means.sum()), means.size
        total.correct = int(right.sum())
        total.top_k = [int(np.count_nonzero((rank >= 0) & (rank < k))) for k in self.top_k]
        bins = self.edges.searchsorted(confidence, side="right")
        total.bin_tokens = np.bincount(bins, minlength=self.bins).tolist()
        total.bin_correct = np.bincount(bins[right], minlength=self.bins).tolist()
        total.bin_confidence = np.bincount(bins, confidence, minlength=self.bins).tolist()
        if self.token_bytes is not None:
            total.bytes = int(bytes_of_targets(self.token_bytes, targets, valid, batch.classes).sum())
        return total

    def of_each(self, batch: ScoredBatch) -> Iterator[Totals]:
        """The totals of each entry of the first axis."""
        n = len(batch.arrays[0])
        log_prob, logsumexp, _, rank, entropy, top, targets = (a.reshape(n, a.size // max(n, 1)) for a in batch.arrays)
        valid = (rank >= 0) | np.isnan(logsumexp)
        right = rank == 0
        tokens = np.count_nonzero(valid, axis=1)
        losses = np.where(valid, -log_prob.astype(np.float64), 0)
        with np.errstate(all="ignore"):
            nll = losses.sum(axis=1)
            apart = np.where(valid, losses - (nll / tokens)[:, None], 0)
            nll_m2, entropies = (apart**2).sum(axis=1), entropy.sum(axis=1, dtype=np.float64)  # 0 where not valid
            means = np.where(tokens > 0, nll / tokens, 0)
        within = [np.count_nonzero((rank >= 0) & (rank < k), axis=1) for k in self.top_k]
        bins = np.arange(n)[:, None] * self.bins + self.edges.searchsorted(top.astype(np.float64), side="right")
        bin_tokens, bin_correct, bin_confidence = (
            np.bincount(bins[chosen], weights, minlength=n * self.bins).reshape(n, self.bins)
            for chosen, weights in ((valid, None), (right, None), (valid, top[valid].astype(np.float64)))
        )
        stands_for = np.zeros(n, np.int64)
        if self.token_bytes is not None:
            counted = bytes_of_targets(self.token_bytes, targets, valid, batch.classes)
            np.add.at(stands_for, valid.nonzero()[0], counted)
        for i in range(n):
            yield Totals(
                int(tokens[i]),
                valid.shape[1] - int(tokens[i]),
                min(int(tokens[i]), 1),
                int(stands_for[i]),
                int(np.count_nonzero(right[i])),
                float(nll[i]),
                float(nll_m2[i]),
                float(entropies[i]),
                float(means[i]),
                [int(counts[i]) for counts in within],
                bin_tokens[i].tolist(),
                bin_correct[i].tolist(),
                bin_confidence[i].tolist(),
            )


def _added(a: Any, b: Any) -> Any:
    return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def _to_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_plain(value: Any, kind: Any) -> Any:
    """The number, or numbers, of the type that `kind` has."""
    if isinstance(kind, list):
        return [_from_plain(v, of) for v, of in zip(value, kind, strict=True)]
    return operator.index(value) if isinstance(kind, int) else float(value)
