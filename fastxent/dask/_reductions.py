"""From losses of positions to the value, and to each position's share in it: one ratio of sums, at the very end.

Blocks add up losses and weights; the quotient is taken once, of the sums of all blocks. The divisors come from the
targets' side alone.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np

from ._arrays import TERMS, Array, Labels, mapped
from ._positions import Positions

FLOAT64 = np.dtype(np.float64)


class Reduction:
    """What a reduction makes of a call's positions."""

    def __init__(
        self, positions: Positions, reduction: str, normalizer: float | None, empty_value: float, split_every: Any
    ) -> None:
        self._positions, self.kind, self._empty, self._split = positions, reduction, float(empty_value), split_every
        shape = positions.layout.shape
        self._by: float | None = None  # the sum of the divisors
        if reduction == "batch_mean":
            self._by = float(math.prod(shape[:-1]) if len(shape) > 1 else shape[0])
        elif reduction == "sum":
            self._by = 1.0 if normalizer is None else float(normalizer)
        elif reduction == "mean" and normalizer is not None:
            self._by = float(normalizer)

    def value(self, both: Any, labels: Labels) -> Any:
        """The value, an array without axes, from the `terms` of positions; `labels` of their axes but the last."""
        kept: tuple[Any, ...] = ()
        if self.kind == "sequence_mean":
            at = self._positions.layout.positions
            kept = at[:-1] if len(at) > 1 else at
        sums = self._sum(both, tuple(i for i, label in enumerate(labels) if label not in kept))
        if kept:
            pairs = (*kept, TERMS)
            sizes = dict(zip(pairs, sums.chunks, strict=True))
            means = mapped(_mean_and_count, pairs, sizes, sums, pairs, dtype=FLOAT64)
            sums = self._sum(means, tuple(range(len(kept))))
        return mapped(_ratio, (), {}, sums, (TERMS,), dtype=FLOAT64, by=self._by, empty=self._empty)

    def share(self) -> tuple[Any, Any]:
        """What one unit of loss at a position adds to the value: a number, or one for each sequence; and its labels.

        It comes from the targets' side alone: the scale of a gradient needs no look at the logits.
        """
        if self.kind == "none":
            return 1.0, None
        if self._by is not None:
            return _inverse(self._by), None
        layout = self._positions.layout
        at = layout.positions
        divisors = self._positions.mapped(_divisors, at, dtype=FLOAT64)
        if self.kind == "mean":
            return mapped(_inverse, (), {}, self._sum(divisors), (), dtype=FLOAT64), ()
        if len(at) > 1:
            divisors, at = self._sum(divisors, divisors.ndim - 1), at[:-1]
        sizes = dict(zip(at, divisors.chunks, strict=True))
        number = self._sum(divisors != 0)
        return mapped(_sequence_shares, at, sizes, divisors, at, number, (), dtype=FLOAT64), at

    def _sum(self, array: Any, axis: Any = None) -> Any:
        return da.sum(array, axis=axis, dtype=FLOAT64, split_every=self._split)


def terms(losses: Array, records: Array) -> Array:
    """What each position adds to the sum of losses and to its divisor."""
    return np.stack([np.asarray(losses, np.float64), _divisors(records)], axis=-1)


def _divisors(records: Array) -> Array:
    return np.asarray(records["weight"] * records["of_target"])


def _ratio(sums: Array, by: float | None, empty: float) -> Any:
    total, by = sums[0], sums[1] if by is None else by
    with np.errstate(all="ignore"):
        return np.float64(total / by if by else empty)


def _inverse(by: Any) -> Any:
    return np.float64(1 / by if by else 0.0)


def _mean_and_count(sums: Array) -> Array:
    """Of each sequence: its own mean, and 1; 0 and 0 where nothing divides it."""
    counted = sums[..., 1] != 0
    means = np.zeros(counted.shape)
    with np.errstate(all="ignore"):
        np.divide(sums[..., 0], sums[..., 1], out=means, where=counted)
    return np.stack([means, counted.astype(np.float64)], axis=-1)


def _sequence_shares(divisors: Array, number: Any) -> Array:
    result = np.zeros(np.shape(divisors))
    with np.errstate(all="ignore"):
        return np.divide(1.0 / (number or 1.0), divisors, out=result, where=np.asarray(divisors) != 0)
