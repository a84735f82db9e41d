"""Percentiles of a stream of numbers: exact up to a limit, from then on by a sketch with a bounded error.

Up to `LIMIT` numbers are kept and sorted. Beyond, all go into buckets whose ends grow by a constant factor (Masson, Rim
and Lee, "DDSketch", VLDB 2019), one set for each sign: a number is then known to within `ERROR` of itself, or to within
`SMALLEST` of 0 if it is smaller than that, however many there are. A percentile is interpolated between the two
numbers next to it, as NumPy does it, so its error is at most `ERROR` times the larger of the two.
"""

from __future__ import annotations

import math

import numpy as np

from .formats import Array

LIMIT = 10**7
ERROR = 1e-3
SMALLEST, LARGEST = 1e-14, 1e39  # as large as a float32
_LOG_FACTOR = math.log((1 + ERROR) / (1 - ERROR))
_FIRST = math.ceil(math.log(SMALLEST) / _LOG_FACTOR)
_N_BUCKETS = math.ceil(math.log(LARGEST) / _LOG_FACTOR) - _FIRST + 1


class Quantiles:
    """Numbers are added; then percentiles are asked for. NaN as soon as one number is."""

    def __init__(self, expected: int, limit: int = LIMIT) -> None:
        self.limit = limit
        self.kept = np.empty(min(expected, limit))  # no memory until it is written
        self.count = 0
        self.nan = False
        self.sketch: _Sketch | None = None

    def add(self, values: Array) -> None:
        """Add float64 numbers."""
        self.nan = self.nan or bool(np.isnan(values).any())
        if self.sketch is None and self.count + values.size > self.kept.size:
            self.sketch = _Sketch()
            self.sketch.add(self.kept[: self.count])
            self.kept = np.empty(0)
        if self.sketch is not None:
            self.sketch.add(values)
        else:
            self.kept[self.count : self.count + values.size] = values
        self.count += values.size

    def percentiles(self, percents: tuple[float, ...]) -> list[float]:
        """As `numpy.percentile`, by linear interpolation."""
        if self.nan or not self.count:
            return [math.nan] * len(percents)
        if self.sketch is None:
            self.kept[: self.count].sort()
        found = []
        for percent in percents:
            place = (self.count - 1) * (percent / 100)
            below = math.floor(place)
            low, high = (self._ordered(min(i, self.count - 1)) for i in (below, below + 1))
            part = place - below
            found.append(low if part == 0 or low == high else low + (high - low) * part)
        return found

    def _ordered(self, index: int) -> float:
        """The number at `index` of the sorted ones."""
        return float(self.kept[index]) if self.sketch is None else self.sketch.ordered(index)


class _Sketch:
    """How many numbers each bucket has: -inf, the negative ones, 0, the positive ones, +inf, in this order."""

    def __init__(self) -> None:
        # of a number v > 0: bucket ceil(log v / log factor), which holds factor^(b-1) < v <= factor^b
        self.counts = np.zeros(2 * _N_BUCKETS + 3, np.int64)
        ends = np.exp((_FIRST + np.arange(_N_BUCKETS)) * _LOG_FACTOR)
        middles = ends * (1 - ERROR)  # 2 ends / (1 + factor): as far from one end as from the other, in proportion
        self.values = np.concatenate([[-np.inf], -middles[::-1], [0.0], middles, [np.inf]])

    def add(self, values: Array) -> None:
        values = values[~np.isnan(values)]
        size = np.abs(values)
        with np.errstate(divide="ignore"):
            bucket = np.ceil(np.log(size) / _LOG_FACTOR) - _FIRST
        place = np.clip(bucket, 0, _N_BUCKETS - 1) + 1
        place = np.where(size < SMALLEST, 0, np.where(np.isinf(size), _N_BUCKETS + 1, place)).astype(np.int64)
        self.counts += np.bincount(np.where(values < 0, -place, place) + _N_BUCKETS + 1, minlength=self.counts.size)

    def ordered(self, index: int) -> float:
        return float(self.values[np.searchsorted(np.cumsum(self.counts), index, side="right")])


class Mean:
    """Mean and standard error of a stream of numbers, merged block by block (Chan, Golub, LeVeque 1983)."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: Array) -> None:
        """Add float64 numbers."""
        if not values.size:
            return
        with np.errstate(all="ignore"):
            total = float(values.sum())
            squares = float(((values - total / values.size) ** 2).sum())
        if self.count:
            apart = total / values.size - self.total / self.count
            squares += apart * apart * (self.count * (values.size / (self.count + values.size)))
        self.count += values.size
        self.total += total
        self.squares += squares

    @property
    def mean(self) -> float:
        """NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    @property
    def stderr(self) -> float:
        """Of the mean, the numbers taken as independent."""
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else math.nan

    @property
    def rms(self) -> float:
        """The root of the mean square."""
        return math.sqrt(self.squares / self.count + self.mean**2) if self.count else math.nan
