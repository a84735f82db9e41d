"""The oracle of scoring: the functions of `fastxent.statistics` in plain NumPy, for tests to compare with.

As `reference.py`, whose softmax and rules of validity it uses: the same names, parameters and defaults as the public
functions, float64 results, whole arrays, arithmetic in ``np.longdouble``. All is written from its definition: a rank by
counting, the largest by a stable sort, partials by the sum over the range.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import numpy as np

from .reference import _ahead, _checked, _counts, _fits, _Softmax, _wide


def _classes_last(logits, axis):
    return np.moveaxis(_wide(logits), axis, -1)


def _validity(positions, targets, mask, lengths, ignore_index, shift):
    """Which positions are valid, and the targets, both read `shift` ahead."""
    targets = np.asarray(targets)
    valid = _counts(positions, mask, lengths)
    if ignore_index is not None and _fits(ignore_index, targets.dtype):
        valid = valid & (targets != ignore_index)
    return _ahead(valid, shift), _ahead(targets, shift)


def _real(values, valid):
    return np.where(valid, np.asarray(values, np.float64), 0.0)


def _whole(values, valid):
    return np.where(valid, values, -1).astype(np.int64)


def _pick(values, index):
    return np.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def token_statistics(logits, targets, *, axis=-1, mask=None, lengths=None, ignore_index=-100, shift=0,
                     logit_scale=1.0, softcap=None, num_threads=None):
    """Log-probability of the target, log-sum-exp, argmax, rank of the target, entropy."""
    x = _classes_last(logits, axis)
    valid, targets = _validity(x.shape[:-1], targets, mask, lengths, ignore_index, shift)
    index = _checked(targets, valid, x.shape[-1])
    if x.shape[-1] == 0:
        return tuple(np.zeros(x.shape[:-1], kind) for kind in (float, float, int, int, float))
    with np.errstate(all="ignore"):
        row = _Softmax(x, logit_scale, softcap)
        log_p = row.below_top - row.log1p_s[..., None]
        chosen = _pick(x, index)[..., None]
        before = np.arange(x.shape[-1]) < index[..., None]
        rank = ((x > chosen) | ((x == chosen) & before)).sum(axis=-1)
        # At the largest class -p log p is formed from 1 - p, which keeps its digits.
        terms = np.where(row.p == 0, 0, -row.p * log_p)
        terms = np.where(row.at_top, (row.log1p_s / (1 + row.s))[..., None], terms)
        entropy = np.where(row.defined, terms.sum(axis=-1), np.nan)
        nan = np.isnan(x).any(axis=-1)
        return (
            _real(np.where(row.defined, _pick(log_p, index), np.nan), valid) + 0.0,
            _real(row.log_sum_exp(), valid),
            _whole(np.where(nan, -1, x.argmax(axis=-1)), valid),
            _whole(np.where(nan, -1, rank), valid),
            _real(entropy, valid),
        )


def top_k_log_probs(logits, k, *, axis=-1, logit_scale=1.0, softcap=None, num_threads=None):
    """The k largest log-probabilities and their classes."""
    x = _classes_last(logits, axis)
    with np.errstate(all="ignore"):
        row = _Softmax(x, logit_scale, softcap)
        log_p = np.where(row.defined[..., None], row.below_top - row.log1p_s[..., None], np.nan)
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(log_p, order, axis=-1).astype(np.float64) + 0.0
    indices = np.where(np.isnan(x).any(axis=-1)[..., None], -1, order)
    return np.moveaxis(values, -1, axis), np.moveaxis(indices, -1, axis)


def partials(logits, targets, *, class_offset=0, axis=-1, mask=None, lengths=None, ignore_index=-100, shift=0,
             logit_scale=1.0, softcap=None, num_threads=None):
    """Maximum, sum without it, the target's z, argmax and whether the target is in this range of the classes."""
    x = _classes_last(logits, axis)
    valid, targets = _validity(x.shape[:-1], targets, mask, lengths, ignore_index, shift)
    here = (targets >= class_offset) & (targets < class_offset + x.shape[-1])
    index = np.where(here, targets.astype(np.int64) - class_offset, 0)
    with np.errstate(all="ignore"):
        row = _Softmax(x, logit_scale, softcap)
        nan = np.isnan(x).any(axis=-1)
        z = np.where(row.defined[..., None], row.below_top + row.top[..., None], x)
        numbers = (
            np.where(nan, np.nan, row.top),
            np.where(nan, np.nan, np.where(row.defined, row.s, 0)),
            np.where(here, _pick(z, index), -np.inf),
            np.where(nan, -1, x.argmax(axis=-1) + class_offset),
            here,
        )
        result = np.stack([np.asarray(n, np.float64) for n in numbers], axis=-1)
    return np.where(valid[..., None], result, [0.0, 0.0, 0.0, -1.0, 1.0])


def merge_partials(a, b):
    """Two ranges of the classes together, by a loop over the positions."""
    a, b = np.asarray(a), np.asarray(b)
    result = [_merged(p, q) for p, q in zip(a.reshape(-1, 5), b.reshape(-1, 5), strict=True)]
    return np.array(result, np.float64).reshape(a.shape)


def _merged(a, b):
    for p in a, b:
        if p[3] < 0 and np.isfinite(p[0]):
            return p
    target, here = max(a[2], b[2]), max(a[4], b[4])
    if np.isnan(a[1]) or np.isnan(b[1]):
        return np.nan, np.nan, target, -1, here
    high, low = (a, b) if (-a[0], a[3]) <= (-b[0], b[3]) else (b, a)
    if not np.isfinite(high[0]) or low[0] == -np.inf:
        return high[0], high[1], target, high[3], here
    scale = np.exp(_wide(low[0]) - _wide(high[0]))
    return high[0], high[1] + (1 + low[1]) * scale, target, high[3], here


def finish_partials(p):
    """Log-probability of the target, log-sum-exp, argmax."""
    top, rest, target, argmax, here = np.moveaxis(_wide(p), -1, 0)
    if (here == 0).any():
        raise IndexError("a target is in no range of classes")
    with np.errstate(all="ignore"):
        log_prob = np.where(np.isfinite(top), -((top - target) + np.log1p(rest)), np.nan)
        return np.float64(log_prob + 0.0), np.float64(top + np.log1p(rest)), argmax.astype(np.int64)
