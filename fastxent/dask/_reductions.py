"""From losses of positions to the value, and to each position's share in it: one ratio of sums, at the very end.

Blocks add up losses and weights; the quotient is taken once, of the sums of all blocks. The divisors come from the
targets' side alone, so a gradient needs no look at the logits for its scale.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np

from ._arrays import Array, Layout, mapped

FLOAT64 = np.dtype(np.float64)


class Reduction:
    """What a reduction makes of a call's positions."""

    def __init__(
        self, layout: Layout, records: Any, reduction: str, normalizer: float | None, empty_value: float,
        split_every: Any,
    ) -> None:
        self._layout, self._kind, self._empty, self._split = layout, reduction, float(empty_value), split_every
        self._divisors = layout.mapped(_divisors, layout.positions, records, layout.positions, dtype=FLOAT64)
        shape = layout.shape
        self._by: Any = None
        if reduction == "batch_mean":
            self._by = float(math.prod(shape[:-1]) if len(shape) > 1 else shape[0])
        elif reduction == "sum":
            self._by = 1.0 if normalizer is None else float(normalizer)
        elif reduction == "mean":
            self._by = self._sum(self._divisors) if normalizer is None else float(normalizer)

    def value(self, losses: Any) -> Any:
        """The value, an array without axes; for "none" the losses."""
        if self._kind == "none":
            return losses
        if self._kind != "sequence_mean":
            return _scalar(_ratio, self._sum(losses), self._by, empty=self._empty)
        sums, divisors = self._of_sequences(losses), self._of_sequences(self._divisors)
        labels = tuple(range(sums.ndim))
        sizes = dict(enumerate(sums.chunks))
        means = mapped(_means, labels, sizes, sums, labels, divisors, labels, dtype=FLOAT64)
        return _scalar(_ratio, self._sum(means), self._sum(divisors != 0), empty=self._empty)

    def share(self) -> tuple[Any, Any]:
        """What one unit of loss at a position adds to the value: a number, or one for each sequence; and its labels."""
        if self._kind == "none":
            return 1.0, None
        if self._kind != "sequence_mean":
            return _scalar(_inverse, self._by), ()
        divisors = self._of_sequences(self._divisors)
        labels = self._layout.positions[: divisors.ndim]
        sizes = dict(zip(labels, divisors.chunks, strict=True))
        number = self._sum(divisors != 0)
        return mapped(_sequence_shares, labels, sizes, divisors, labels, number, (), dtype=FLOAT64), labels

    def _sum(self, array: Any) -> Any:
        return da.sum(array, dtype=FLOAT64, split_every=self._split)

    def _of_sequences(self, array: Any) -> Any:
        if array.ndim == 1:
            return array.astype(FLOAT64)
        return da.sum(array, axis=-1, dtype=FLOAT64, split_every=self._split)


def _scalar(function: Any, *numbers: Any, **keywords: Any) -> Any:
    """A function of numbers and arrays without axes."""
    pairs: list[Any] = []
    for number in numbers:
        pairs += (number, ()) if isinstance(number, da.Array) else (da.from_array(np.float64(number)), ())
    return mapped(function, (), {}, *pairs, dtype=FLOAT64, **keywords)


def _divisors(records: Array) -> Array:
    return np.asarray(records["weight"] * records["of_target"])


def _ratio(total: Any, by: Any, empty: float) -> Any:
    with np.errstate(all="ignore"):
        return np.float64(total / by if by else empty)


def _inverse(by: Any) -> Any:
    return np.float64(1 / by if by else 0.0)


def _means(sums: Array, divisors: Array) -> Array:
    result = np.zeros(np.shape(divisors))
    with np.errstate(all="ignore"):
        return np.divide(sums, divisors, out=result, where=np.asarray(divisors) != 0)


def _sequence_shares(divisors: Array, number: Any) -> Array:
    result = np.zeros(np.shape(divisors))
    with np.errstate(all="ignore"):
        return np.divide(1.0 / (number or 1.0), divisors, out=result, where=np.asarray(divisors) != 0)
