"""Statistics of positions of Dask arrays.

Where the class axis is divided, a rank needs a second look: the target's logit is in one range, and every range counts
the classes that come before it.
"""

from __future__ import annotations

from operator import add
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import token_statistics as _token_statistics
from ..statistics import TokenStatistics
from ._arrays import STATE, Array, part_of, tree
from ._judging import Arguments, first, layout_of, with_positions
from ._positions import Positions
from ._ranges import (
    ENTROPY,
    Options,
    merge_entropy,
    rank_in_range,
    statistics_of,
    statistics_of_range,
    targets_logit,
)


def token_statistics(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    split_every: int | None = None,
) -> TokenStatistics:
    r"""Compute log-probability and rank of each target, entropy and most likely class, of a Dask array; lazily.

    .. math::
        \mathrm{rank} = \sum_R \#\{c \in R : x_c > x_t\} + \#\{c \in R : c < t, x_c = x_t\}, \qquad
        \mathrm{entropy} = \sum_R P_R \, (H_R - \log P_R)

    over the ranges R of classes, with P_R the probability of a range and H_R the entropy within it.

    Parameters
    ----------
    logits, targets, axis, mask, lengths, ignore_index, shift, logit_scale, softcap, split_every
        As for `cross_entropy`; targets are class indices.

    Returns
    -------
    TokenStatistics
        The fields of `fastxent.token_statistics`, each a Dask array of the positions' shape and chunks. Compute them
        together, by ``dask.compute(*found)``. Where the class axis is divided, a chunk is needed twice for `rank`: for
        the target's logit, and once that is known; in between Dask keeps it.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`; TypeError if targets are not integers.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastxent.dask
    >>> logits = da.from_array(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), chunks=(2, 2))
    >>> log_prob, _, argmax, rank, _ = dask.compute(*fastxent.dask.token_statistics(logits, [2, 1]))
    >>> np.exp(log_prob).round(6), rank, argmax
    (array([0.25, 0.8 ]), array([2, 0]), array([0, 1]))
    """
    layout = layout_of(logits, axis, "logits")
    given = Arguments(
        layout, targets, None, None, mask, lengths, ignore_index=ignore_index, shift=shift, logit_scale=logit_scale,
        softcap=softcap,
    )
    if given.targets.dtype.kind not in "iu":
        raise TypeError(f"targets have dtype {given.targets.dtype}; expected integers (class indices)")
    several = layout.logits.ndim > 1
    layout = with_positions(layout)
    indices = given.targets if several else given.targets[None]
    positions = Positions(layout, indices, None, None, given.mask, given.lengths, ignore_index, shift)
    options = Options(
        layout.axis, layout.classes, 0.0, 0.0, float(logit_scale), None if softcap is None else float(softcap)
    )
    at, every = layout.positions, layout.labels
    if layout.whole:
        blocks = positions.mapped(
            _statistics_of_block, every, layout.logits, every, dtype=layout.computed, options=options
        ), every
    else:
        place = layout.bounds(layout.axis)
        ranges = positions.mapped(
            statistics_of_range, (*every, STATE), layout.logits, every, *place, dtype=np.float64, numbers=ENTROPY,
            options=options,
        )
        logit = positions.mapped(
            targets_logit, every, layout.logits, every, *place, dtype=layout.logits.dtype, axis=layout.axis
        )
        chosen = tree(logit, layout.axis, add, split_every)
        counts = positions.mapped(
            rank_in_range, every, layout.logits, every, *place, chosen, at, dtype=np.int64, axis=layout.axis
        )
        merged = tree(ranges, layout.axis, merge_entropy, split_every)
        rank = tree(counts, layout.axis, add, split_every)
        blocks = positions.mapped(
            statistics_of, at, merged, (*at, STATE), rank, at, dtype=layout.computed, computed=layout.computed
        ), at
    kinds = (layout.computed, layout.computed, np.dtype(np.int64), np.dtype(np.int64), layout.computed)
    parts = (part_of(blocks, number, at, layout, kind) for number, kind in enumerate(kinds))
    return TokenStatistics(*(first(part, several) for part in parts))


def _statistics_of_block(x: Array, records: Array, *, options: Options) -> TokenStatistics:
    """The statistics of a block that has all classes."""
    return _token_statistics(
        x, records["index"], axis=options.axis, mask=records["weight"] != 0, ignore_index=None, **options.scores,
        num_threads=1,
    )
