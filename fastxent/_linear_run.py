"""The work of the linear losses: matrix products tile by tile, and what is done with a tile while the cache holds it.

One product at a time, on as many threads as the BLAS has; then this package's kernels on the tile. A loss goes over all
tiles once and keeps a few numbers a row. A gradient keeps the logits of a chunk of rows until their sums are known,
then goes back over its tiles: the logits become their gradient in place, which is multiplied by the weights (the hidden
states' gradient) and by the hidden states (the weights').
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._linear_arguments import Linear, Outputs
from ._linear_chunks import Chunks, Sizes, forward_chunks, gradient_chunks, spans
from ._linear_finish import Finish
from ._linear_gemm import Classes, Rows, dots
from ._linear_tiles import GIVEN_TARGET, TilePlan, new_state
from ._linear_tiles import run as run_tile
from ._options import (
    COEFFICIENTS_CLASS_WEIGHT,
    COEFFICIENTS_NONE,
    COEFFICIENTS_ONE,
    TILE_GRADIENT,
    TILE_SCORES,
    TILE_SUMS,
)

Array = NDArray[Any]

_COMPACTED = 0.75  # rows of a tile are left out once no more than this part of them is left


class Steps:
    """Tells the caller's function how far the work is."""

    def __init__(self, progress: Any, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


class Work:
    """The operands of one call."""

    def __init__(self, linear: Linear) -> None:
        plan, kind = linear.plan, linear.computed
        self.linear, self.plan = linear, plan
        self.hidden, self.weight = Rows(linear.hidden, linear.rows, kind), Classes(linear.weight, kind)
        self.bias = None if linear.bias is None else np.require(linear.bias, kind, ["C", "A"])
        self.coefficients, self.class_weight = COEFFICIENTS_NONE, None
        if plan.label_smoothing:
            self.coefficients = COEFFICIENTS_ONE
            if plan.class_weight is not None:
                self.coefficients, self.class_weight = COEFFICIENTS_CLASS_WEIGHT, plan.class_weight.astype(kind)
        features = linear.hidden.shape[-1]
        self.sizes = Sizes(
            len(linear.rows), features, linear.weight.shape[0], kind.itemsize, self.hidden.copies, self.weight.copies
        )

    def sum_tile(self, operation: int, tile: Array, rows: tuple[int, int], classes: tuple[int, int], state: Array,
                 top: Any = None) -> None:
        """Multiply out a tile, and merge it into its rows' states."""
        np.matmul(self.hidden.chunk(*rows), self.weight.tile(*classes).T, out=tile)
        plan, some = self.plan, slice(*classes)
        run_tile(TilePlan(
            operation, tile, classes[0], self.linear.targets[slice(*rows)],
            None if self.bias is None else self.bias[some],
            None if self.class_weight is None else self.class_weight[some], self.coefficients,
            plan.logit_scale, plan.softcap, state, top, None, plan.num_threads,
        ))

    def write_gradient(self, tile: Array, targets: Array, classes: tuple[int, int], terms: Array) -> None:
        """Write the gradient over a tile of logits."""
        plan = self.plan
        run_tile(TilePlan(
            TILE_GRADIENT, tile, classes[0], targets, None,
            None if self.class_weight is None else self.class_weight[slice(*classes)], self.coefficients,
            plan.logit_scale, plan.softcap, None, None, terms, plan.num_threads,
        ))


def forward(linear: Linear, scores: bool = False) -> Array:
    """The states of all valid rows; `scores`: those of statistics."""
    work = Work(linear)
    state = new_state(work.sizes.rows)
    if not work.sizes.rows:
        return state
    if scores:
        state[:, GIVEN_TARGET] = _target_logits(work)
    chunks = forward_chunks(work.sizes, linear.max_bytes)
    by_rows, by_classes = spans(work.sizes.rows, chunks.rows), spans(work.sizes.classes, chunks.classes)
    buffer = np.empty(chunks.rows * chunks.classes, linear.computed)
    steps = Steps(linear.progress, len(by_rows) * len(by_classes))
    pairs = [(rows, classes) for rows in by_rows for classes in by_classes]
    if work.weight.copies:  # each is converted once
        pairs.sort(key=lambda pair: pair[1])
    with np.errstate(all="ignore"):
        for rows, classes in pairs:
            tile = _matrix(buffer, rows[1] - rows[0], classes[1] - classes[0])
            work.sum_tile(TILE_SCORES if scores else TILE_SUMS, tile, rows, classes, state[slice(*rows)])
            steps.step()
    return state


def _target_logits(work: Work) -> Array:
    """The targets' own logits, in the compute type: a rank must know them before the other classes."""
    targets, linear = work.linear.targets, work.linear
    found = np.empty(len(targets))
    with np.errstate(all="ignore"):
        for begin, end in spans(len(targets), 1024):
            index = work.hidden.index(begin, end)
            found[begin:end] = dots(linear.hidden[index], linear.weight, targets[begin:end])
        if work.bias is not None:
            found += work.bias[targets]
        return found.astype(linear.computed).astype(np.float64)


def losses_of(linear: Linear, state: Array) -> Array:
    """The losses of the valid rows."""
    with np.errstate(all="ignore"):
        return Finish(linear, state, 0, len(state)).losses()


def gradient(linear: Linear, upstream: Array, outputs: Outputs, filtered: float) -> Array:
    """Write the gradients; the losses of the valid rows. `upstream`: what one unit of loss counts, for each row."""
    return _Gradient(linear, upstream, outputs, filtered).run()


class _Gradient:
    def __init__(self, linear: Linear, upstream: Array, outputs: Outputs, filtered: float) -> None:
        self.work, self.linear, self.upstream, self.outputs = Work(linear), linear, upstream, outputs
        # With smoothing every class has a coefficient of its own: no row has nothing to add.
        self.filtered = 0.0 if linear.plan.label_smoothing else filtered
        sizes = self.work.sizes
        self.chunks: Chunks = gradient_chunks(sizes, linear.max_bytes, self.filtered > 0)
        self.by_rows, self.by_classes = spans(sizes.rows, self.chunks.rows), spans(sizes.classes, self.chunks.classes)
        self.losses = np.empty(sizes.rows, linear.computed)
        self.steps = Steps(linear.progress, 2 * len(self.by_rows) * len(self.by_classes))
        self.bias_sum = np.zeros(sizes.classes)

    def run(self) -> Array:
        kind, sizes, outputs = self.linear.computed, self.work.sizes, self.outputs
        if not outputs.add[0] and sizes.rows != self.linear.plan.targets.size:
            outputs.hidden.fill(0)
        if not sizes.rows:
            if not outputs.add[1]:
                outputs.weight.fill(0)
        else:
            rows, classes, features = self.chunks.rows, self.chunks.classes, sizes.features
            self.logits = np.empty(rows * sizes.classes, kind)
            self.tops = np.empty((len(self.by_classes), rows)) if self.filtered else None
            self.hidden_sum, self.product = np.empty((2, rows, features), kind)
            several = len(self.by_rows) > 1
            self.exact = outputs.weight.dtype == kind
            self.direct = self.exact and not outputs.add[1] and outputs.weight.flags.c_contiguous
            # A half would be rounded after each chunk: its sum is kept apart.
            self.weight_sum = np.zeros((sizes.classes, features), kind) if several and not self.exact else None
            self.of_weight = np.empty((classes, features), kind) if several or not self.direct else None
            with np.errstate(all="ignore"):
                for number in range(len(self.by_rows)):
                    self._chunk(number)
        if outputs.bias is not None:
            total = self.bias_sum + outputs.bias if outputs.add[2] else self.bias_sum
            outputs.bias[...] = total.astype(outputs.bias.dtype)
        return self.losses

    def _chunk(self, number: int) -> None:
        rows = begin, end = self.by_rows[number]
        work, n = self.work, end - begin
        state, tiles, at = new_state(n), [], 0
        for j, classes in enumerate(self.by_classes):
            width = classes[1] - classes[0]
            tiles.append(_matrix(self.logits[at:], n, width))
            at += n * width
            work.sum_tile(TILE_SUMS, tiles[j], rows, classes, state, None if self.tops is None else self.tops[j, :n])
            self.steps.step()
        finish = Finish(self.linear, state, begin, end)
        self.losses[begin:end] = finish.losses()
        upstream = self.upstream[begin:end]
        terms = finish.terms(upstream)
        uncounted = upstream == 0
        started = False
        for j in reversed(range(len(self.by_classes))):
            kept = None
            if self.tops is not None:
                kept = self._kept(finish.largest_probability(self.tops[j, :n]), begin, end, self.by_classes[j])
            if uncounted.any():  # 0 times NaN is NaN, and adds nothing all the same
                kept = np.flatnonzero(~uncounted) if kept is None else kept[~uncounted[kept]]
            started |= self._tile(number, j, tiles[j], terms, kept, started)
            self.steps.step()
        self._put_hidden(begin, end, self.hidden_sum[:n] if started else np.zeros((n, work.sizes.features)))

    def _kept(self, probability: Array, begin: int, end: int, classes: tuple[int, int]) -> Any:
        """The rows that have something to add; None for all."""
        targets = self.linear.targets[begin:end]
        keep = ~(probability < self.filtered) | ((targets >= classes[0]) & (targets < classes[1]))
        rows = np.flatnonzero(keep)
        return rows if len(rows) <= _COMPACTED * len(keep) else None

    def _tile(self, number: int, j: int, tile: Array, terms: Array, kept: Any, started: bool) -> bool:
        """A tile's part of all gradients; whether the hidden states' had one."""
        work, classes, (begin, end) = self.work, self.by_classes[j], self.by_rows[number]
        hidden, targets = work.hidden.chunk(begin, end), self.linear.targets[begin:end]
        if kept is not None:
            tile, terms, hidden, targets = tile[kept], terms[kept], hidden[kept], targets[kept]
        work.write_gradient(tile, targets, classes, terms)
        if self.outputs.bias is not None:
            self.bias_sum[slice(*classes)] += np.matmul(np.ones(len(tile), tile.dtype), tile)
        self._put_weight(number, classes, tile, hidden)
        if not len(tile):
            return False
        n = end - begin
        if kept is None:
            to = (self.product if started else self.hidden_sum)[:n]
            np.matmul(tile, work.weight.tile(*classes), out=to)
            if started:
                self.hidden_sum[:n] += to
            return True
        if not started:
            self.hidden_sum[:n] = 0
        self.hidden_sum[kept] += np.matmul(tile, work.weight.tile(*classes), out=self.product[: len(tile)])
        return True

    def _put_weight(self, number: int, classes: tuple[int, int], tile: Array, hidden: Array) -> None:
        """Add a tile's part to the weights' gradient, which is complete after the last chunk of rows."""
        some, add, out = slice(*classes), self.outputs.add[1], self.outputs.weight
        if number == 0 and self.direct:
            np.matmul(tile.T, hidden, out=out[some])
            return
        assert self.of_weight is not None
        part = np.matmul(tile.T, hidden, out=self.of_weight[: classes[1] - classes[0]])
        if self.weight_sum is not None:
            self.weight_sum[some] += part
            if number < len(self.by_rows) - 1:
                return
            part = self.weight_sum[some]
        if add or (number and self.weight_sum is None):
            part += out[some]
        out[some] = part

    def _put_hidden(self, begin: int, end: int, values: Array) -> None:
        index, out = self.work.hidden.index(begin, end), self.outputs.hidden
        if self.outputs.add[0]:
            values += out[index]
        out[index] = values


def _matrix(buffer: Array, rows: int, columns: int) -> Array:
    """The beginning of a buffer, as a matrix."""
    matrix: Array = buffer[: rows * columns].reshape(rows, columns)
    return matrix
