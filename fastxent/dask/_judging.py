"""Judging arguments before there is anything to compute: shapes here, dtypes and options by the engine itself.

The engine judges a call of one element of the same dtypes and number of axes, so that its errors are the errors here.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from .. import cross_entropy_and_grad, logsumexp, softmax
from ._arrays import Layout, as_dask, is_lazy, rechunked
from ._positions import judged


def layout_of(logits: Any, axis: Any, name: str) -> Layout:
    """The logits and how they are divided."""
    logits = as_dask(logits, name)
    one = np.zeros((1,) * logits.ndim, logits.dtype)
    computed, stored = logsumexp(one, axis=axis).dtype, softmax(one, axis=axis).dtype
    return Layout(logits, int(axis) % logits.ndim, computed, stored)


def with_positions(layout: Layout) -> Layout:
    """Logits of a single position get an axis of positions."""
    if layout.logits.ndim > 1:
        return layout
    return layout._replace(logits=layout.logits[None], axis=1)


class Arguments:
    """The targets' side of a call as Dask arrays, judged; for logits with an axis of positions."""

    def __init__(
        self, layout: Layout, targets: Any, class_weight: Any, sample_weight: Any, mask: Any, lengths: Any,
        upstream: Any = None, **options: Any,
    ) -> None:
        shape = layout.shape
        if not layout.classes and 0 not in shape:
            raise ValueError(f"logits of shape {layout.logits.shape} have no classes (axis {layout.axis})")
        self.targets = _targets(targets, layout)
        self.class_weight = self.sample_weight = self.mask = self.lengths = self.upstream = None
        if class_weight is not None:
            self.class_weight = judged(class_weight, "class_weight", (layout.classes,), "a weight for each class")
        if sample_weight is not None:
            self.sample_weight = judged(sample_weight, "sample_weight", shape, "the positions' shape", broadcast=True)
        if mask is not None:
            self.mask = judged(mask, "mask", shape, "the positions' shape", broadcast=True)
        if lengths is not None:
            # Without an axis of time the engine finds the words.
            sequences = shape[:-1] if len(shape) > 1 else np.shape(lengths)
            self.lengths = judged(lengths, "lengths", sequences, "one for each sequence")
        if upstream is not None:
            self.upstream = as_dask(upstream, "upstream", -1)
            if self.upstream.ndim:
                self.upstream = judged(upstream, "upstream", shape, "the positions' shape", layout.chunks)
                self.upstream = rechunked(self.upstream, layout.chunks)
        self._judge_options(layout, options)
        if lengths is not None and not is_lazy(lengths):
            _judge_lengths(np.asarray(lengths), shape[-1])

    def _judge_options(self, layout: Layout, options: dict[str, Any]) -> None:
        """By a call of one element that is not valid: no option can then raise for what the arrays hold."""
        ones = (1,) * layout.logits.ndim
        small: dict[str, Any] = {}
        for name in ("class_weight", "sample_weight", "mask", "lengths", "upstream"):
            array = getattr(self, name)
            if array is not None:
                small[name] = np.zeros((1,) * array.ndim, array.dtype)
        targets = np.zeros((1,) * self.targets.ndim, self.targets.dtype)
        with np.errstate(all="ignore"):
            cross_entropy_and_grad(
                np.zeros(ones, layout.logits.dtype), targets, axis=layout.axis, num_threads=1, **small, **options
            )


def _judge_lengths(lengths: Any, times: int) -> None:
    if lengths.size and (lengths.min() < 0 or lengths.max() > times):
        wrong = lengths[(lengths < 0) | (lengths > times)].flat[0]
        raise ValueError(f"lengths must be from 0 to {times}, got {wrong}")


def _targets(targets: Any, layout: Layout) -> Any:
    """Class indices in the positions' chunks, or class probabilities in those of the logits."""
    if not is_lazy(targets):
        targets = np.asarray(targets)
        if not targets.size and targets.dtype == np.float64 and targets.shape == layout.shape:
            targets = targets.astype(np.int64)  # an empty list says nothing of its dtype
    if targets.dtype.kind not in "iu":
        if targets.dtype.kind in "bcOSUmM":
            raise TypeError(
                f"targets have dtype {targets.dtype}; expected integers (class indices) or float16, bfloat16, float32 "
                "or float64 (class probabilities)"
            )
        return judged(targets, "targets", layout.logits.shape, "as class probabilities the logits' shape",
                      layout.logits.chunks)
    if targets.shape == layout.logits.shape != layout.shape:
        raise ValueError(
            f"targets are integers of the logits' shape {targets.shape}; class indices have the shape without the "
            f"class axis, {layout.shape}, and class probabilities are floats (fastxent.one_hot makes them)"
        )
    return judged(targets, "targets", layout.shape, "the logits' shape without the class axis", layout.chunks)


def first(array: Any, several: bool) -> Any:
    """The array, or the first of its first axis where that axis was added."""
    return array if several else da.squeeze(array, axis=0)
