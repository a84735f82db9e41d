r"""The algebra of a class axis in ranges, block by block, in NumPy.

A range R of the classes knows the five numbers of `fastxent.partials`, hence lse_R = m + log1p(s), and what follows is
relative to it. Two ranges a and b merge by d_a = lse_ab - lse_a = log(1 + exp(lse_b - lse_a)) and d_b likewise:

- coefficients c on -log p (label smoothing, class probabilities): W_R = sum of c, E_R = sum of c_c (lse_R - z_c);
  E_ab = (E_a + W_a d_a) + (E_b + W_b d_b).
- entropy H_R within the range, whose share is P_a = exp(-d_a) of both:
  H_ab = P_a (H_a + d_a) + P_b (H_b + d_b).

All terms have one sign, so digits of a small loss or entropy survive the merges as they survive one pass over the row.
A range of nothing but -inf has lse = -inf: with a coefficient its d is infinite, and so is the loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import cross_entropy, finish_partials, merge_partials, partials, token_statistics
from ._arrays import Array

BASE = 5  # numbers of `fastxent.partials`
COEFFICIENTS = BASE + 2  # and E, W
ENTROPY = BASE + 2  # and H, and the largest logit as it was given
_MAX, _REST, _, _ARGMAX, _ = range(BASE)
_ROWS_BYTES = 2**21  # of a block of rows that is looked at several times: it stays in cache


class Options(NamedTuple):
    """What a position's loss depends on."""

    axis: int
    classes: int  # of all ranges
    label_smoothing: float
    z_loss: float
    logit_scale: float
    softcap: float | None

    @property
    def scores(self) -> dict[str, Any]:
        """What turns logits into z, as keywords."""
        return {"logit_scale": self.logit_scale, "softcap": self.softcap}


def range_of(x: Array, records: Array, place: tuple[slice], q: Any, class_weight: Any, *, options: Options) -> Array:
    """The numbers of a range for a loss, the class axis with one element in place, the numbers last."""
    x, records = np.asarray(x), np.asarray(records)
    valid = records["weight"] != 0
    start = place[0].start
    index = records["index"] if q is None else np.broadcast_to(np.int64(start), valid.shape)
    axis, smooth = options.axis, options.label_smoothing
    base = _base(x, index, valid, start, options)
    if q is None and not smooth:
        return np.expand_dims(base, axis)
    result = np.zeros((*valid.shape, COEFFICIENTS))
    result[..., :BASE] = base
    # Within the range smoothing is spread over its own classes: the same coefficients are those of another smoothing.
    part = x.shape[axis] / options.classes
    share = smooth * part if q is None else (1 - smooth) + smooth * part
    if share:
        counted = valid & np.isfinite(base[..., _MAX])
        losses = 0.0 if not counted.any() else cross_entropy(
            x, np.broadcast_to(np.int64(0), valid.shape) if q is None else q, axis=axis, class_weight=class_weight,
            mask=counted, ignore_index=None, label_smoothing=1.0 if q is None else smooth * part / share,
            **options.scores, reduction="none", num_threads=1,
        )
        result[..., BASE] = share * np.asarray(losses, np.float64)
    result[..., BASE + 1] = np.where(valid, _mass(x.shape[axis], q, class_weight, options), 0)
    return np.expand_dims(result, axis)


def _base(x: Array, index: Array, valid: Array, start: int, options: Options) -> Array:
    """`fastxent.partials`; of a range without classes what is neutral."""
    if x.shape[options.axis]:
        return partials(
            x, index, class_offset=start, axis=options.axis, mask=valid, ignore_index=None, **options.scores,
            num_threads=1,
        )
    neutral, invalid = (-np.inf, 0.0, -np.inf, start, 0.0), (0.0, 0.0, 0.0, -1.0, 1.0)
    return np.where(valid[..., None], neutral, invalid)


def _mass(classes: int, q: Any, class_weight: Any, options: Options) -> Any:
    """The sum of the coefficients of a range."""
    w = np.ones(classes) if class_weight is None else np.asarray(class_weight, np.float64)
    uniform = options.label_smoothing / options.classes * w.sum()
    if q is None:
        return uniform
    q = np.moveaxis(np.asarray(q), options.axis, -1)
    total = np.empty(q.shape[:-1])
    for rows in row_blocks(q):
        total[rows] = q[rows].astype(np.float64) @ w
    return (1 - options.label_smoothing) * total + uniform


def statistics_of_range(x: Array, records: Array, place: tuple[slice], *, options: Options) -> Array:
    """The numbers of a range for statistics: with the entropy within the range."""
    x, records = np.asarray(x), np.asarray(records)
    valid = records["weight"] != 0
    result = np.zeros((*valid.shape, ENTROPY))
    result[..., :BASE] = _base(x, records["index"], valid, place[0].start, options)
    counted = valid & np.isfinite(result[..., _MAX])
    if counted.any():
        result[..., BASE] = token_statistics(
            x, np.broadcast_to(np.int64(0), valid.shape), axis=options.axis, mask=counted, ignore_index=None,
            **options.scores, num_threads=1,
        ).entropy
        argmax = np.where(counted, result[..., _ARGMAX].astype(np.int64) - place[0].start, 0)
        result[..., BASE + 1] = np.take_along_axis(x, np.expand_dims(argmax, options.axis), options.axis).squeeze(
            options.axis
        )
    result[..., BASE + 1] = np.where(counted, result[..., BASE + 1], result[..., _MAX])
    return np.expand_dims(result, options.axis)


def sums_of_range(x: Array, place: tuple[slice], *, options: Options) -> Array:
    """The numbers of a range where there is no target."""
    x, start, axis = np.asarray(x), place[0].start, options.axis
    valid = np.ones(x.shape[:axis] + x.shape[axis + 1 :], bool)
    return np.expand_dims(_base(x, np.broadcast_to(np.int64(start), valid.shape), valid, start, options), axis)


def log_sum(p: Array) -> Array:
    """Of a range: lse_R."""
    result: Array = p[..., _MAX] + np.log1p(p[..., _REST])
    return result


def merge_coefficients(a: Array, b: Array) -> Array:
    """Two ranges of `COEFFICIENTS` numbers together."""
    result = np.empty_like(a)
    result[..., :BASE] = merge_partials(a[..., :BASE], b[..., :BASE])
    with np.errstate(all="ignore"):
        terms = (p[..., BASE] + _times(p[..., BASE + 1], d) for p, d in zip((a, b), _gaps(a, b), strict=True))
        result[..., BASE] = sum(terms)
    result[..., BASE + 1] = a[..., BASE + 1] + b[..., BASE + 1]
    return result


def merge_entropy(a: Array, b: Array) -> Array:
    """Two ranges of `ENTROPY` numbers together. A soft cap makes large logits equal: as given they tell the argmax."""
    result = np.empty_like(a)
    result[..., :BASE] = merge_partials(a[..., :BASE], b[..., :BASE])
    with np.errstate(all="ignore"):
        terms = (_times(np.exp(-d), p[..., BASE] + d) for p, d in zip((a, b), _gaps(a, b), strict=True))
        result[..., BASE] = sum(terms)
    (top_a, first_a), (top_b, first_b) = ((p[..., BASE + 1], p[..., _ARGMAX]) for p in (a, b))
    result[..., BASE + 1] = np.maximum(top_a, top_b)
    first = np.where((top_a > top_b) | ((top_a == top_b) & (first_a < first_b)), first_a, first_b)
    result[..., _ARGMAX] = np.where(result[..., _ARGMAX] >= 0, first, -1)
    return result


def _gaps(a: Array, b: Array) -> tuple[Array, Array]:
    """lse_ab - lse_a and lse_ab - lse_b: 0 where both are -inf."""
    below = (b[..., _MAX] - a[..., _MAX]) + (np.log1p(b[..., _REST]) - np.log1p(a[..., _REST]))
    nothing = ~np.isfinite(a[..., _MAX]) & ~np.isfinite(b[..., _MAX])
    gaps = np.logaddexp(0, below), np.logaddexp(0, -below)
    return np.where(nothing, 0, gaps[0]), np.where(nothing, 0, gaps[1])


def _times(factor: Array, value: Array) -> Array:
    """0 where the factor is 0, whatever it multiplies."""
    return np.where(factor == 0, 0, factor * value)


def losses_of(merged: Array, records: Array, *, options: Options, computed: np.dtype[Any], soft: bool) -> Array:
    """The losses of positions from the merged numbers of all ranges."""
    merged, records = np.asarray(merged), np.asarray(records)
    valid = records["weight"] != 0
    log_prob, logsumexp, _ = finish_partials(merged[..., :BASE])
    with np.errstate(all="ignore"):
        result = np.zeros(valid.shape)
        if not soft:
            result = _times((1 - options.label_smoothing) * records["of_target"], -log_prob)
        if merged.shape[-1] == COEFFICIENTS:
            result = result + merged[..., BASE]
        if options.z_loss:
            result = result + options.z_loss * logsumexp * logsumexp  # in this order: the square may be too large
        result = np.where(np.isfinite(merged[..., _MAX]), result, np.nan) * records["weight"]
        return np.asarray(np.where(valid, result, 0) + 0.0).astype(computed)


def row_blocks(x: Array) -> list[Any]:
    """Slices of the first axis of an array with the classes last, each small enough for the cache."""
    row = max(1, x[:1].size * 8)
    step = max(1, _ROWS_BYTES // row)
    return [slice(first, first + step) for first in range(0, x.shape[0], step)]


# --- ranks


def targets_logit(x: Array, records: Array, place: tuple[slice], *, axis: int) -> Array:
    """The target's logit as it is stored, where its class is in this range, else 0: their sum over ranges is exact."""
    x, records = np.asarray(x), np.asarray(records)
    here, local = _local(records, place)
    if not x.shape[axis]:
        return np.zeros([1 if i == axis else n for i, n in enumerate(x.shape)], x.dtype)
    found = np.take_along_axis(x, np.expand_dims(local, axis), axis=axis)
    return np.where(np.expand_dims(here, axis), found, np.zeros((), x.dtype))


def rank_in_range(x: Array, records: Array, place: tuple[slice], chosen: Array, *, axis: int) -> Array:
    """How many classes of this range come before the target, whose logit is `chosen`.

    Where the target is elsewhere its logit joins the range, at the end if its class comes later, at the start if
    earlier: then its rank there is the count, by the engine's own rule for ties.
    """
    x, records, chosen = np.moveaxis(np.asarray(x), axis, -1), np.asarray(records), np.asarray(chosen)
    here, local = _local(records, place)
    count = np.zeros(here.shape, np.int64)
    if here.any():
        count = token_statistics(x, local, mask=here, ignore_index=None, num_threads=1).rank
    elsewhere = np.nonzero((records["weight"] != 0) & ~here)
    if not x.shape[-1]:
        return np.expand_dims(count, axis)
    step = max(1, _ROWS_BYTES // ((x.shape[-1] + 2) * x.itemsize))
    rows = np.empty((step, x.shape[-1] + 2), x.dtype)
    for first in range(0, elsewhere[0].size if elsewhere else 0, step):
        at = tuple(i[first : first + step] for i in elsewhere)
        some = rows[: at[0].size]
        some[:, 1:-1], some[:, 0], some[:, -1] = x[at], chosen[at], chosen[at]
        later = records["index"][at] >= place[0].stop
        rank = token_statistics(some, np.where(later, x.shape[-1] + 1, 0), ignore_index=None, num_threads=1).rank
        count[at] = rank - later  # the copy at the start is no class
    return np.expand_dims(np.where(count < 0, 0, count), axis)


def _local(records: Array, place: tuple[slice]) -> tuple[Array, Array]:
    """Where a valid target's class is in this range, and which of the range's classes it is; 0 elsewhere."""
    start, end = place[0].start, place[0].stop
    here = (records["weight"] != 0) & (records["index"] >= start) & (records["index"] < end)
    return here, np.where(here, records["index"] - start, 0)


def statistics_of(merged: Array, records: Array, rank: Array, *, computed: np.dtype[Any]) -> tuple[Array, ...]:
    """The fields of `fastxent.token_statistics` from the merged numbers of all ranges."""
    merged, records = np.asarray(merged), np.asarray(records)
    valid = records["weight"] != 0
    log_prob, logsumexp, argmax = finish_partials(merged[..., :BASE])
    defined = np.isfinite(merged[..., _MAX])
    with np.errstate(all="ignore"):
        reals = [
            np.where(valid, values, 0.0).astype(computed)
            for values in (log_prob, logsumexp, np.where(defined, merged[..., BASE], np.nan))
        ]
    rank = np.where(valid & ~np.isnan(merged[..., _MAX]), rank, -1)
    return reals[0], reals[1], argmax, rank, reals[2]


def finished_logsumexp(merged: Array, *, computed: np.dtype[Any]) -> Array:
    """The logarithm of the sum of exponentials of all ranges."""
    with np.errstate(all="ignore"):
        return np.asarray(log_sum(np.asarray(merged)).astype(computed))
