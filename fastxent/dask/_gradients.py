r"""Gradients, softmax and log-softmax of a range of classes, once the sums over all classes are known; in NumPy.

With p of all classes and p_R within the range, p = P p_R, where P = exp(lse_R - lse). `cross_entropy_grad` of the
range with a class j for target, and `upstream` f, is f (p_R - [c = j]) dz/dx, rounded once: so f = u A P makes
u A p dz/dx of every class but j, with A = W + 2 z_loss lse. Two columns are then set in float64, u (A p - c) dz/dx:
that of the target, and that of the largest logit, where A - c cancels and the form is ((A - c) - c s) / (1 + s). Only
coefficients of all classes (label smoothing, class probabilities) need a pass more, in blocks of rows that stay in
cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import cross_entropy_and_grad, cross_entropy_grad
from ._arrays import Array
from ._ranges import _ARGMAX, _MAX, _REST, BASE, COEFFICIENTS, Options, _local, log_sum, row_blocks


def whole_rows(
    x: Array, records: Array, share: Array, upstream: Any, q: Any, class_weight: Any, *, options: Options,
) -> tuple[Array, Array]:
    """Losses and gradient of a block that has all classes."""
    x, records = np.asarray(x), np.asarray(records)
    share = _share(share, records.shape)
    losses, grad = cross_entropy_and_grad(
        x, records["index"] if q is None else q, axis=options.axis, class_weight=class_weight,
        sample_weight=records["weight"], ignore_index=None, label_smoothing=options.label_smoothing,
        z_loss=options.z_loss, **options.scores, reduction="none", num_threads=1,
        upstream=share if upstream is None else share * upstream,
    )
    _clear(np.moveaxis(grad, options.axis, -1), share == 0)  # even where a logit is NaN
    return losses, grad


def _share(share: Any, shape: tuple[int, ...]) -> Array:
    """One number for each position, of one for all or for each sequence."""
    share = np.asarray(share)
    return np.broadcast_to(share if share.ndim in (0, len(shape)) else share[..., None], shape)


def _clear(grad: Array, where: Array) -> None:
    if where.any():
        grad[where] = 0


def range_gradient(
    x: Array, records: Array, place: tuple[slice], own: Array, merged: Array, share: Array, upstream: Any, q: Any,
    class_weight: Any, *, options: Options, stored: np.dtype[Any], computed: np.dtype[Any],
) -> Array:
    """The gradient of a range: `own` its numbers, `merged` those of all ranges."""
    x, records, merged = np.asarray(x), np.asarray(records), np.asarray(merged)
    own = np.asarray(own).squeeze(options.axis)
    unit = records["weight"] * _share(share, records.shape)
    valid = unit != 0
    if upstream is not None:
        unit = unit * upstream
    mass = merged[..., BASE + 1] if merged.shape[-1] == COEFFICIENTS else np.zeros(valid.shape)
    if q is None:
        mass = mass + (1 - options.label_smoothing) * records["of_target"]
    with np.errstate(all="ignore"):
        # Scaled at once: 2 z_loss lse may be too large.
        extra = unit * (2 * options.z_loss) * log_sum(merged) if options.z_loss else np.zeros(valid.shape)
    out = np.empty_like(x, stored)
    if not out.size:
        return out
    indexed = records if q is None else None
    side = _Range(x, out, indexed, place, own, merged, valid, unit, mass, extra, options)
    if q is None and not options.label_smoothing:
        side.spread(...)
        side.set_columns(..., side.out, None)
        return out
    coefficients = _Coefficients(q, class_weight, x.shape[options.axis], options)
    for rows in row_blocks(side.x):
        part = np.empty(side.x[rows].shape, computed)
        side.spread(rows, side.x[rows].astype(computed, copy=False), part)
        side.subtract(rows, part, coefficients)
        side.set_columns(rows, part, coefficients)
        side.out[rows] = part
    return out


def range_softmax(
    x: Array, place: tuple[slice], own: Array, merged: Array, *, options: Options, stored: np.dtype[Any]
) -> Array:
    """The softmax of a range."""
    x, merged = np.asarray(x), np.asarray(merged)
    own = np.asarray(own).squeeze(options.axis)
    out = np.empty_like(x, stored)
    if not out.size:
        return out
    one, zero = np.ones(merged.shape[:-1]), np.zeros(merged.shape[:-1])
    side = _Range(x, out, None, place, own, merged, one > 0, one, one, zero, options)
    side.spread(...)
    side.set_columns(..., side.out, None)
    return out


def range_log_softmax(x: Array, merged: Array, *, axis: int, stored: np.dtype[Any], computed: np.dtype[Any]) -> Array:
    """The logarithm of the softmax of a range."""
    x, merged = np.asarray(x), np.asarray(merged)
    out = np.empty_like(x, stored)
    to, x = np.moveaxis(out, axis, -1), np.moveaxis(x, axis, -1)
    with np.errstate(all="ignore"):
        top = np.where(np.isfinite(merged[..., _MAX]), merged[..., _MAX], np.nan)[..., None].astype(computed)
        log_rest = np.log1p(merged[..., _REST])[..., None].astype(computed)
        for rows in row_blocks(x):
            to[rows] = (x[rows].astype(computed, copy=False) - top[rows]) - log_rest[rows]
    return out


class _Coefficients:
    """The coefficients of all classes of a range but that of a class index itself."""

    def __init__(self, q: Any, class_weight: Any, classes: int, options: Options) -> None:
        self.q = None if q is None else np.moveaxis(np.asarray(q), options.axis, -1)
        self.keep = 1 - options.label_smoothing
        self.weight = np.ones(classes) if class_weight is None else np.asarray(class_weight, np.float64)
        self.uniform = options.label_smoothing / options.classes * self.weight

    def of_rows(self, rows: Any, dtype: np.dtype[Any]) -> Array:
        """Of some rows, all classes."""
        if self.q is None:
            return self.uniform.astype(dtype)
        scaled = self.q[rows].astype(dtype) * (self.keep * self.weight).astype(dtype)
        return np.asarray(scaled + self.uniform.astype(dtype))

    def of_column(self, rows: Any, column: Array) -> Array:
        """Of one class of each row."""
        found = self.uniform[column]
        if self.q is not None:
            q = np.take_along_axis(self.q[rows], column[..., None], axis=-1)[..., 0].astype(np.float64)
            found = found + self.keep * self.weight[column] * q
        return np.asarray(found)


class _Range:
    """A range of classes with the classes last, and what is known of each of its positions."""

    def __init__(
        self, x: Array, out: Array, records: Any, place: tuple[slice], own: Array, merged: Array, valid: Array,
        unit: Array, mass: Array, extra: Array, options: Options,
    ) -> None:
        self.options = options
        self.x, self.out = np.moveaxis(x, options.axis, -1), np.moveaxis(out, options.axis, -1)
        self.records, self.merged, self.valid, self.unit = records, merged, valid, unit  # records: of class indices
        self.mass, self.extra = mass, extra
        self.defined = np.isfinite(merged[..., _MAX])
        argmax = merged[..., _ARGMAX].astype(np.int64) - place[0].start
        self.has_top = self.defined & (argmax >= 0) & (argmax < self.x.shape[-1])
        self.column = np.where(self.has_top, argmax, 0)
        if records is not None:
            here, self.target = _local(records, place)
            self.here = here & valid
        with np.errstate(all="ignore"):
            below = (own[..., _MAX] - merged[..., _MAX]) + (np.log1p(own[..., _REST]) - np.log1p(merged[..., _REST]))
            self.counted = valid & self.defined & np.isfinite(own[..., _MAX])
            self.factor = np.where(self.counted, (unit * mass + extra) * np.exp(below), 0)

    def spread(self, rows: Any, x: Any = None, out: Any = None) -> None:
        """Write (unit * mass + extra) * p * dz/dx of every class but `column`."""
        cross_entropy_grad(
            self.x[rows] if x is None else x, self.column[rows], mask=self.counted[rows], ignore_index=None,
            **self.options.scores, reduction="none", upstream=self.factor[rows], num_threads=1,
            out_grad=self.out[rows] if out is None else out,
        )

    def subtract(self, rows: Any, part: Array, coefficients: _Coefficients) -> None:
        """Take the coefficients of all classes off, where they count."""
        unit = np.where(self.valid[rows], self.unit[rows], 0).astype(part.dtype)[..., None]
        with np.errstate(all="ignore"):
            terms = coefficients.of_rows(rows, part.dtype) * unit
            if self.options.softcap is not None:
                terms *= self._slope(self.x[rows].astype(part.dtype))
            elif self.options.logit_scale != 1:
                terms *= part.dtype.type(self.options.logit_scale)
            part -= np.where(self.valid[rows][..., None], terms, 0)  # what an invalid position holds may be NaN

    def set_columns(self, rows: Any, part: Array, coefficients: _Coefficients | None) -> None:
        """Set the columns of the largest logit and of the target; NaN where no sum is defined."""
        self._set(rows, part, self.column[rows], self.valid[rows], coefficients)
        if self.records is not None:
            self._set(rows, part, self.target[rows], self.here[rows], coefficients)
        undefined = self.valid[rows] & ~self.defined[rows]
        if undefined.any():
            part[undefined] = np.nan

    def _set(self, rows: Any, part: Array, column: Array, where: Array, coefficients: _Coefficients | None) -> None:
        top, rest = self.merged[rows][..., _MAX], self.merged[rows][..., _REST]
        unit, mass, extra = self.unit[rows], self.mass[rows], self.extra[rows]
        x = np.take_along_axis(self.x[rows], column[..., None], axis=-1)[..., 0].astype(np.float64)
        wanted = np.zeros(x.shape) if coefficients is None else coefficients.of_column(rows, column)
        if self.records is not None:
            own = (1 - self.options.label_smoothing) * self.records[rows]["of_target"]
            wanted = wanted + np.where(self.here[rows] & (self.target[rows] == column), own, 0)
        with np.errstate(all="ignore"):
            at_top = self.has_top[rows] & (self.column[rows] == column)
            p = np.where(at_top, 1, np.exp(self._z(x) - top)) / (1 + rest)
            close = (unit * ((mass - wanted) - wanted * rest) + extra) / (1 + rest)
            value = np.where(at_top, close, (unit * mass + extra) * p - unit * wanted) * self._slope(x)
        at = (*np.nonzero(where), column[where])
        part[at] = value[where].astype(part.dtype)

    def _z(self, x: Array) -> Array:
        cap, scale = self.options.softcap, self.options.logit_scale
        return x * scale if cap is None else np.where(np.isinf(x), x, cap * np.tanh(x * scale / cap))

    def _slope(self, x: Array) -> Any:
        """dz/dx; a removed class is removed linearly."""
        cap, scale = self.options.softcap, self.options.logit_scale
        if cap is None:
            return scale
        return np.where(np.isinf(x), scale, scale * (1 - np.square(np.tanh(x * (scale / cap)))))
