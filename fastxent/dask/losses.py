"""Cross-entropy of Dask arrays, and its gradient.

Where each block has all classes, a block is one call of the engine. Where the class axis is divided, ranges of classes
are summed up apart (`_ranges.py`), merged in a tree for each block of positions, and finished; the gradient of a range
then needs no more than those sums (`_gradients.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import cross_entropy as _cross_entropy
from .. import merge_partials
from ._arrays import STATE, TERMS, Array, Layout, part_of, tree
from ._gradients import range_gradient, whole_rows
from ._judging import Arguments, first, layout_of, with_positions
from ._positions import Positions
from ._ranges import BASE, COEFFICIENTS, Options, losses_of, merge_coefficients, range_of
from ._reductions import Reduction, terms


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    split_every: int | None = None,
) -> Any:
    r"""Compute the cross-entropy of logits that are a Dask array, chunked along any axes: lazily, each chunk read once.

    .. math:: \ell = -\sum_c w_c \, q_c \log p_c, \qquad \mathrm{mean} = \sum_i \ell_i \Big/ \sum_i s_i w_{t_i}

    as `fastxent.cross_entropy`; a mean is one ratio of sums over all chunks. Where the class axis is divided, the
    ranges of each position are merged by `fastxent.merge_partials`.

    Parameters
    ----------
    logits : dask.array.Array
        As for `fastxent.cross_entropy`, in any known chunks, which stay as they are. Anything else becomes a Dask
        array.
    targets : dask.array.Array or array_like
        Class indices of the positions' shape: whatever their chunks, they come to the logits' chunks, and with `shift`
        across their borders. Or class probabilities in the logits' chunks.
    axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, logit_scale, \
    softcap, reduction, normalizer, empty_value
        As for `fastxent.cross_entropy`; each array may be a Dask array.
    split_every : int, optional
        How many chunks a step of the trees of merges and of sums takes; by default as Dask is configured.

    Returns
    -------
    dask.array.Array
        Without axes, float64. For "none" of the positions' shape and chunks: float32 for float16, bfloat16 and float32
        logits, float64 for float64 and integers.

    Raises
    ------
    IndexError
        When computed, if the class index of a valid position is outside [0, C); the message has its position in the
        whole array.
    TypeError, ValueError
        At once, as for `fastxent.cross_entropy`; if chunks have unknown sizes, or class probabilities other chunks than
        the logits. When computed, for a Dask array of `lengths` that are out of range.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastxent.dask
    >>> logits = da.from_array(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), chunks=(1, 2))
    >>> loss = fastxent.dask.cross_entropy(logits, [0, 1])
    >>> round(float(loss.compute()), 6)  # -(log 0.5 + log 0.8) / 2
    0.458145

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax" (2018), section 3.1.
    """
    call = _Call(
        logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss,
        logit_scale, softcap, reduction, normalizer, empty_value, split_every, None,
    )
    return call.value()


def cross_entropy_and_grad(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
    upstream: ArrayLike | None = None,
    split_every: int | None = None,
) -> tuple[Any, Any]:
    r"""Compute `cross_entropy` and its gradient by the logits, in the logits' chunks.

    .. math:: \partial \ell / \partial z = W p - c, \qquad c_c = w_c \, q_c, \qquad W = \sum_c c_c

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, \
    logit_scale, softcap, reduction, normalizer, empty_value, split_every
        As for `cross_entropy`.
    upstream : float, dask.array.Array or array_like, optional
        As for `fastxent.cross_entropy_and_grad`.

    Returns
    -------
    loss : dask.array.Array
        As from `cross_entropy`.
    grad : dask.array.Array
        Of the shape, chunks and dtype of the logits (float64 for integers). Where the class axis is divided, a chunk
        is needed twice: for the sums over all classes of its positions, and once these are known. In between Dask
        keeps it.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastxent.dask
    >>> logits = da.from_array(np.log([[0.5, 0.25, 0.25]]), chunks=(1, 2))
    >>> loss, grad = fastxent.dask.cross_entropy_and_grad(logits, [0])
    >>> grad.chunks, grad.compute().round(6)
    (((1,), (2, 1)), array([[-0.5 ,  0.25,  0.25]]))
    """
    call = _Call(
        logits, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss,
        logit_scale, softcap, reduction, normalizer, empty_value, split_every, upstream,
    )
    losses, grad = call.losses_and_gradient()
    return call.value(losses), first(grad, call.several)


class _Call:
    """One call: its arguments as Dask arrays, and what is made of them."""

    def __init__(
        self, logits: Any, targets: Any, axis: Any, class_weight: Any, sample_weight: Any, mask: Any, lengths: Any,
        ignore_index: Any, shift: Any, label_smoothing: Any, z_loss: Any, logit_scale: Any, softcap: Any,
        reduction: Any, normalizer: Any, empty_value: Any, split_every: Any, upstream: Any,
    ) -> None:
        layout = layout_of(logits, axis, "logits")
        given = Arguments(
            layout, targets, class_weight, sample_weight, mask, lengths, upstream, ignore_index=ignore_index,
            shift=shift, label_smoothing=label_smoothing, z_loss=z_loss, logit_scale=logit_scale, softcap=softcap,
            reduction=reduction, normalizer=normalizer, empty_value=empty_value,
        )
        self.several = layout.logits.ndim > 1
        layout = with_positions(layout)
        targets, self.upstream = given.targets, given.upstream
        if not self.several:
            targets = targets[None]
            self.upstream = self.upstream if self.upstream is None or not self.upstream.ndim else self.upstream[None]
        self.layout: Layout = layout
        self.positions = Positions(
            layout, targets, given.class_weight, given.sample_weight, given.mask, given.lengths, ignore_index, shift
        )
        self.options = Options(
            layout.axis, layout.classes, float(label_smoothing), float(z_loss), float(logit_scale),
            None if softcap is None else float(softcap),
        )
        self.split_every = split_every
        self.reduction = Reduction(self.positions, reduction, normalizer, empty_value, split_every)

    def value(self, losses: Any = None) -> Any:
        """The value of the reduction; `losses` if there are any yet."""
        if self.reduction.kind != "none" and losses is None and self.layout.whole:
            return self.reduction.value(self._of_blocks(_terms_of_block, TERMS), self.layout.labels)
        if losses is None:
            losses = self._losses()
        if self.reduction.kind == "none":
            return first(losses, self.several)
        at = self.layout.positions
        both = self.positions.mapped(terms, (*at, TERMS), losses, at, dtype=np.float64, numbers=2)
        return self.reduction.value(both, at)

    def losses_and_gradient(self) -> tuple[Any, Any]:
        """Of each position and class."""
        layout, at, every = self.layout, self.layout.positions, self.layout.labels
        share = self.reduction.share()
        upstream = (None, None) if self.upstream is None else (self.upstream, at if self.upstream.ndim else ())
        if layout.whole:
            both = self.positions.mapped(
                whole_rows, every, layout.logits, every, *share, *upstream, *self.positions.coefficients(),
                dtype=layout.stored, spread=True, options=self.options,
            )
            return tuple(
                part_of((both, every), number, labels, layout, dtype)
                for number, labels, dtype in ((0, at, layout.computed), (1, every, layout.stored))
            )
        ranges = self._ranges()
        merged = self._merged(ranges)
        grad = self.positions.mapped(
            range_gradient, every, layout.logits, every, *layout.bounds(layout.axis), ranges, (*every, STATE), merged,
            (*at, STATE), *share, *upstream, *self.positions.coefficients(), dtype=layout.stored, spread=True,
            options=self.options, stored=layout.stored, computed=layout.computed,
        )
        return self._finished(merged), grad

    def _losses(self) -> Any:
        if self.layout.whole:
            return self.layout.without_classes(self._of_blocks(_losses_of_block))
        return self._finished(self._merged(self._ranges()))

    def _of_blocks(self, function: Any, *more: Any) -> Any:
        """Of blocks that have all classes, one element in place of them."""
        every = self.layout.labels
        return self.positions.mapped(
            function, (*every, *more), self.layout.logits, every, *self.positions.coefficients(),
            dtype=np.float64 if more else self.layout.computed, numbers=2 if more else None, options=self.options,
        )

    def _ranges(self) -> Any:
        layout = self.layout
        plain = self.positions.probabilities is None and not self.options.label_smoothing
        return self.positions.mapped(
            range_of, (*layout.labels, STATE), layout.logits, layout.labels, *layout.bounds(layout.axis),
            *self.positions.coefficients(), dtype=np.float64, options=self.options,
            numbers=BASE if plain else COEFFICIENTS,
        )

    def _merged(self, ranges: Any) -> Any:
        fold = merge_partials if ranges.shape[-1] == BASE else merge_coefficients
        return tree(ranges, self.layout.axis, fold, self.split_every)

    def _finished(self, merged: Any) -> Any:
        layout, at = self.layout, self.layout.positions
        return self.positions.mapped(
            losses_of, at, merged, (*at, STATE), dtype=layout.computed, options=self.options, computed=layout.computed,
            soft=self.positions.probabilities is not None,
        )


def _losses_of_block(x: Array, records: Array, q: Any, class_weight: Any, *, options: Options) -> Any:
    """The losses of a block that has all classes, with one in place of them."""
    losses = _cross_entropy(
        x, records["index"] if q is None else q, axis=options.axis, class_weight=class_weight,
        sample_weight=records["weight"], ignore_index=None, label_smoothing=options.label_smoothing,
        z_loss=options.z_loss, **options.scores, reduction="none", num_threads=1,
    )
    return np.expand_dims(losses, options.axis)


def _terms_of_block(x: Array, records: Array, q: Any, class_weight: Any, *, options: Options) -> Array:
    """The terms of a block that has all classes, with one in place of them."""
    losses = _losses_of_block(x, records, q, class_weight, options=options)
    return terms(losses, np.expand_dims(records, options.axis))
