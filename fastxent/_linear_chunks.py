"""How a product of hidden states and weights is cut up: the one rule, for the loss and for its gradient.

The loss keeps no logits. A tile of `rows` hidden states by `classes` classes is multiplied out, summed up and written
over by the next one. The largest matrix products come from tiles with both sides long; a tile that stays in the
last-level cache is read back for next to nothing, and pages must be mapped for all of it, which costs what some hundred
multiplications an element do. So: up to 2048 rows, and as many classes as `FORWARD_BYTES` holds, `BYTES_A_FEATURE` for
fewer features (measured).

The gradient keeps the logits of a chunk of rows, all classes wide, until the rows' sums are known. Long chunks need
memory whose pages have to be mapped, short ones read and write the weight's gradient once each: with n rows of d
features the one costs a share of the three products that grows like rows / (n d), the other one that falls like
1 / rows, and sqrt(2 n d) rows are about the least of the sum (measured). Never fewer than `LEAST_ROWS` by choice;
`max_bytes` has the last word, down to one row.

All in bytes of what the call allocates beyond its results and some 200 bytes a position.
"""

from __future__ import annotations

import math
from typing import NamedTuple

FORWARD_BYTES = 32 << 20
BYTES_A_FEATURE = 160 << 10
LEAST_BYTES = 8 << 20
TILE_ROWS = 2048
TILE_CLASSES = 4096
FILTER_CLASSES = 1024  # a row is left out of a tile as a whole: narrower tiles leave out more
LEAST_ROWS = 512
LEAST_CLASSES = 512  # below, a product's operands are read more often than they are used
ROUND = 16  # classes: whole vectors


class Sizes(NamedTuple):
    """What the rule looks at."""

    rows: int  # valid positions
    features: int
    classes: int
    itemsize: int  # of the compute type
    copies_hidden: bool  # rows of hidden states are gathered or converted
    copies_weight: bool  # weights are converted, tile by tile


class Chunks(NamedTuple):
    """Rows and classes of a tile. A gradient holds the logits of that many rows, of all classes."""

    rows: int
    classes: int


def forward_chunks(sizes: Sizes, max_bytes: int) -> Chunks:
    """The tiles of a loss alone."""
    budget = min(max_bytes, FORWARD_BYTES, max(LEAST_BYTES, BYTES_A_FEATURE * sizes.features))
    rows = max(1, min(sizes.rows, TILE_ROWS))
    wanted = min(sizes.classes, LEAST_CLASSES)
    while (classes := _classes_that_fit(sizes, rows, budget)) < wanted and rows > 1:
        rows = (rows + 1) // 2
    return Chunks(even(sizes.rows, rows), even(sizes.classes, max(1, classes), ROUND))


def _classes_that_fit(sizes: Sizes, rows: int, budget: int) -> int:
    left = budget - rows * sizes.features * sizes.itemsize * 2 * sizes.copies_hidden
    return left // (sizes.itemsize * (rows + sizes.features * sizes.copies_weight))


def gradient_chunks(sizes: Sizes, max_bytes: int, filtered: bool) -> Chunks:
    """The chunks of a loss with its gradient; `filtered`: rows are left out of the products of a tile."""
    of_class = sizes.itemsize * sizes.features * (1 + sizes.copies_weight)  # the product for the weight; the weight
    most = FILTER_CLASSES if filtered else TILE_CLASSES
    classes = max(1, min(sizes.classes, most, max(ROUND, max_bytes // 8 // max(of_class, 1))))
    classes = even(sizes.classes, classes, ROUND)
    of_row = sizes.itemsize * (sizes.classes + ROUND + sizes.features * (2 + 2 * sizes.copies_hidden))
    if filtered:
        of_row += sizes.itemsize * (classes + 2 * sizes.features)
    chosen = max(LEAST_ROWS, math.isqrt(2 * sizes.rows * sizes.features))
    fitting = (max_bytes - of_class * classes) // of_row
    return Chunks(even(sizes.rows, max(1, min(chosen, fitting, sizes.rows))), classes)


def even(total: int, most: int, multiple: int = 1) -> int:
    """The size of equal parts of at most `most` (rounded up to a multiple within it, where `most` is at least one)."""
    if most >= total:
        return max(1, total)
    if most >= multiple:
        most -= most % multiple
    size = -(-total // -(-total // most))
    return min(most, -(-size // multiple) * multiple)


def spans(total: int, size: int) -> list[tuple[int, int]]:
    """The parts themselves: (begin, end)."""
    return [(begin, min(begin + size, total)) for begin in range(0, total, size)]
