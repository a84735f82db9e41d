"""Softmax, its logarithm and its normaliser, of Dask arrays chunked along any axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import log_softmax as _log_softmax
from .. import logsumexp as _logsumexp
from .. import merge_partials
from .. import softmax as _softmax
from ._arrays import STATE, Layout, tree
from ._gradients import range_log_softmax, range_softmax
from ._judging import first, layout_of, with_positions
from ._ranges import BASE, Options, finished_logsumexp, sums_of_range


def softmax(x: Any, *, axis: int = -1, split_every: int | None = None) -> Any:
    r"""Compute the softmax along an axis of a Dask array, in its chunks; lazily.

    .. math:: p_c = \exp(x_c) / \sum_k \exp(x_k)

    Parameters
    ----------
    x : dask.array.Array
        As for `fastxent.softmax`. Anything else becomes a Dask array.
    axis : int, default -1
        The class axis.
    split_every : int, optional
        As for `cross_entropy`.

    Returns
    -------
    dask.array.Array
        Of the shape, chunks and dtype of `x` (float64 for integers). Where the class axis is divided, a chunk is needed
        twice, as for a gradient.

    Raises
    ------
    TypeError, ValueError
        As for `fastxent.softmax`; ValueError if chunks have unknown sizes.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastxent.dask
    >>> fastxent.dask.softmax(da.ones(4, chunks=2)).compute()
    array([0.25, 0.25, 0.25, 0.25])
    """
    layout, several = _opened(x, axis)
    every = layout.labels
    if layout.whole:
        found = layout.mapped(
            _softmax, every, layout.logits, every, dtype=layout.stored, spread=True, axis=layout.axis, num_threads=1
        )
        return first(found, several)
    ranges, merged = _sums(layout, split_every)
    found = layout.mapped(
        range_softmax, every, layout.logits, every, *layout.bounds(layout.axis), ranges, (*every, STATE), merged,
        (*layout.positions, STATE), dtype=layout.stored, spread=True, options=_plain(layout), stored=layout.stored,
    )
    return first(found, several)


def log_softmax(x: Any, *, axis: int = -1, split_every: int | None = None) -> Any:
    r"""Compute the logarithm of the softmax along an axis of a Dask array, in its chunks; lazily.

    .. math:: y_c = x_c - \log \sum_k \exp(x_k)

    Parameters
    ----------
    x, axis, split_every
        As for `softmax`. -inf stays -inf.

    Returns
    -------
    dask.array.Array
        As from `softmax`.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastxent.dask
    >>> fastxent.dask.log_softmax(da.from_array(np.array([0.0, -np.inf]), chunks=1)).compute()
    array([  0., -inf])
    """
    layout, several = _opened(x, axis)
    every = layout.labels
    if layout.whole:
        found = layout.mapped(
            _log_softmax, every, layout.logits, every, dtype=layout.stored, spread=True, axis=layout.axis, num_threads=1
        )
        return first(found, several)
    _, merged = _sums(layout, split_every)
    found = layout.mapped(
        range_log_softmax, every, layout.logits, every, merged, (*layout.positions, STATE), dtype=layout.stored,
        spread=True, axis=layout.axis, stored=layout.stored, computed=layout.computed,
    )
    return first(found, several)


def logsumexp(x: Any, *, axis: int = -1, keepdims: bool = False, split_every: int | None = None) -> Any:
    r"""Compute the logarithm of the sum of exponentials along an axis of a Dask array; lazily.

    .. math:: \log \sum_c \exp(x_c)

    Parameters
    ----------
    x, axis, split_every
        As for `softmax`.
    keepdims : bool, default False
        Whether the class axis stays, with length 1.

    Returns
    -------
    dask.array.Array
        float32 (float64 for float64 and integers), without the class axis, or with one class in one chunk.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastxent.dask
    >>> fastxent.dask.logsumexp(da.from_array(np.array([[1000.0, 1000.0]]), chunks=1)).compute().round(6)
    array([1000.693147])
    """
    layout, several = _opened(x, axis)
    at, every = layout.positions, layout.labels
    if layout.whole:
        found = layout.mapped(
            _logsumexp, every, layout.logits, every, dtype=layout.computed, axis=layout.axis, keepdims=True,
            num_threads=1,
        )
        return first(found if keepdims else layout.without_classes(found), several)
    _, merged = _sums(layout, split_every)
    found = layout.mapped(
        finished_logsumexp, at, merged, (*at, STATE), dtype=layout.computed, computed=layout.computed
    )
    return first(found[(slice(None),) * layout.axis + (None,)] if keepdims else found, several)


def _opened(x: Any, axis: int) -> tuple[Layout, bool]:
    """The array with an axis of positions, and whether it had one."""
    layout = layout_of(x, axis, "x")
    return with_positions(layout), layout.logits.ndim > 1


def _sums(layout: Layout, split_every: Any) -> tuple[Any, Any]:
    """The sums of the ranges of classes, and of all."""
    ranges = layout.mapped(
        sums_of_range, (*layout.labels, STATE), layout.logits, layout.labels, *layout.bounds(layout.axis),
        dtype=np.float64, numbers=BASE, options=_plain(layout),
    )
    return ranges, tree(ranges, layout.axis, merge_partials, split_every)


def _plain(layout: Layout) -> Options:
    return Options(layout.axis, layout.classes, 0.0, 0.0, 1.0, None)
