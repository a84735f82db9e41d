r"""Scoring: statistics of each position in one pass over the logits, the most likely classes, and parts that add up.

For a position with logits z, target t, m = max z and s the sum of exp(z - m) over the other classes, the
log-probability is -((m - z_t) + log1p(s)) and the entropy log1p(s) + sum_c exp(z_c - m) (m - z_c) / (1 + s): sums of
terms of one sign, which keep their digits as p -> 1.

`partials` is the same for a range of the classes, in five numbers a position that `merge_partials` adds up: an array
whose classes lie in several files, chunks or processes needs nothing else to travel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _backends
from ._arguments import Plan, class_index_error
from ._scoring_arguments import (
    missing_target_error,
    partials_argument,
    partials_pair,
    partials_plan,
    statistics_plan,
    top_k_plan,
)

Array = NDArray[Any]

_MAX, _REST, _TARGET, _ARGMAX, _HERE = range(5)


class TokenStatistics(NamedTuple):
    """What `token_statistics` returns: arrays of the positions' shape."""

    log_prob: Array
    logsumexp: Array
    argmax: Array
    rank: Array
    entropy: Array


class FinishedPartials(NamedTuple):
    """What `finish_partials` returns: arrays of the positions' shape."""

    log_prob: NDArray[np.float64]
    logsumexp: NDArray[np.float64]
    argmax: NDArray[np.int64]


class TopK(NamedTuple):
    """What `top_k_log_probs` returns."""

    values: Array
    indices: NDArray[np.int64]


def run_statistics(plan: Plan) -> tuple[Any, ...]:
    """Run a plan of scoring; its filled arrays, or the IndexError of a class index out of range."""
    results: tuple[Any, ...] = plan.statistics or ()
    if plan.logits.size:
        _, _, bad = _backends.open_call(plan).run()
        if bad >= 0:
            raise class_index_error(plan, bad)
    return results


def token_statistics(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> TokenStatistics:
    r"""Compute log-probability and rank of each target, entropy and most likely class, reading the logits once.

    .. math::
        \mathrm{log\_prob} = \log p_t, \qquad
        \mathrm{rank} = \#\{c : x_c > x_t\} + \#\{c < t : x_c = x_t\}, \qquad
        \mathrm{entropy} = -\sum_c p_c \log p_c

    with p = softmax(z), and z of `cross_entropy`, that is, after `logit_scale` and `softcap`; 0 log 0 is 0.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    targets : array_like of int
        Class indices, of the positions' shape.
    axis, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads
        As for `cross_entropy`.

    Returns
    -------
    TokenStatistics
        A named tuple of arrays of the positions' shape: `log_prob`, `logsumexp` and `entropy` in natural units,
        float32 (float64 for float64 and integer logits); `argmax`, the first class with the largest logit, and
        `rank`, 0 where that is the target, int64. At a position that is not valid the floats are 0 and the integers
        -1; with a NaN among its logits NaN and -1. With +inf, or with -inf alone, `log_prob` and `entropy` are NaN and
        `logsumexp` is that infinity.

    Raises
    ------
    IndexError
        If the class index of a valid position is outside [0, C).
    TypeError
        If targets are not integers, and as for `cross_entropy`.
    ValueError
        As for `cross_entropy`.

    See Also
    --------
    Evaluator : the same, added up over batches.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    >>> found = fastxent.token_statistics(logits, [2, 1])
    >>> np.exp(found.log_prob).round(6), found.rank, found.argmax
    (array([0.25, 0.8 ]), array([2, 0]), array([0, 1]))
    >>> (found.entropy / np.log(2)).round(6)  # in bits
    array([1.5     , 0.921928])

    References
    ----------
    .. [1] T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd edition, Wiley (2006), section 2.1.
    """
    plan = statistics_plan(
        logits, targets, axis, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads
    )
    return TokenStatistics(*run_statistics(plan)[:5])


def top_k_log_probs(
    logits: ArrayLike,
    k: int,
    *,
    axis: int = -1,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> TopK:
    r"""Find the k most likely classes of each position and their log-probabilities, without a sort of all.

    .. math:: \mathrm{values}_j = \log p_{c_j}, \qquad x_{c_1} \ge x_{c_2} \ge \dots \ge x_{c_k}

    with p of `cross_entropy`, over all classes.

    Parameters
    ----------
    logits : array_like
        As for `cross_entropy`.
    k : int
        How many classes, from 1 to C.
    axis, logit_scale, softcap, num_threads
        As for `cross_entropy`.

    Returns
    -------
    values : numpy.ndarray
        The log-probabilities, the largest first: of the logits' shape with k in place of C, float32 (float64 for
        float64 and integer logits). NaN where `log_softmax` is.
    indices : numpy.ndarray of int64
        Their classes; of equal logits the smaller index comes first. -1 where a logit of the position is NaN.

    Raises
    ------
    TypeError
        As for `cross_entropy`.
    ValueError
        If k is less than 1 or larger than C, and as for `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> values, indices = fastxent.top_k_log_probs(np.log([[0.2, 0.5, 0.2, 0.1]]), 2)
    >>> np.exp(values).round(6), indices
    (array([[0.5, 0.2]]), array([[1, 0]]))
    """
    plan = top_k_plan(logits, k, axis, logit_scale, softcap, num_threads)
    values, indices = run_statistics(plan)
    if plan.axis == values.ndim - 1:
        return TopK(values, indices)
    return TopK(np.moveaxis(values, -1, plan.axis), np.moveaxis(indices, -1, plan.axis))


def partials(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    class_offset: int = 0,
    axis: int = -1,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> NDArray[np.float64]:
    r"""Sum up a range of the classes, to be merged with the other ranges by `merge_partials`.

    .. math:: m = \max_c z_c, \qquad s = \sum_c \exp(z_c - m) - 1

    over the classes of this range, with z of `cross_entropy`.

    Parameters
    ----------
    logits : array_like
        The logits of the classes from `class_offset` on, as for `cross_entropy`.
    targets : array_like of int
        Class indices among all classes, of the positions' shape.
    class_offset : int, default 0
        Which class the first of these logits belongs to.
    axis, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads
        As for `cross_entropy`; the same for all ranges.

    Returns
    -------
    numpy.ndarray of float64
        Of the positions' shape + (5,): m, s, the target's z (-inf if its class is not in this range), the class of m
        among all classes (of equal z the larger logit's; -1 if a logit is NaN), and 1 if the target's class is in this
        range, else 0. A position that is not valid is (0, 0, 0, -1, 1).

    Raises
    ------
    TypeError, ValueError
        As for `token_statistics`. A class index that no range holds is an error of `finish_partials`.

    See Also
    --------
    merge_partials, finish_partials

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> logits = np.log([[1.0, 2.0, 4.0, 1.0]])
    >>> left = fastxent.partials(logits[:, :2], [2])
    >>> right = fastxent.partials(logits[:, 2:], [2], class_offset=2)
    >>> found = fastxent.finish_partials(fastxent.merge_partials(left, right))
    >>> np.exp(found.log_prob).round(6), found.argmax
    (array([0.5]), array([2]))
    """
    plan, here, offset = partials_plan(
        logits, targets, class_offset, axis, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads
    )
    result: NDArray[np.float64]
    (result,) = run_statistics(plan)
    if offset:
        argmax = result[..., _ARGMAX]
        np.add(argmax, offset, out=result[..., _ARGMAX], where=argmax >= 0)
    if plan.shift:
        here = np.roll(here, -plan.shift, axis=-1)
    elsewhere = ~here & ~_invalid(result)
    if elsewhere.any():
        result[elsewhere, _TARGET] = -np.inf
        result[elsewhere, _HERE] = 0
    return result


def merge_partials(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    r"""Put the sums of two ranges of classes together: associative and commutative, up to rounding.

    .. math:: m = \max(m_a, m_b), \qquad 1 + s = (1 + s_a) e^{m_a - m} + (1 + s_b) e^{m_b - m}

    Parameters
    ----------
    a, b : array_like of float64
        What `partials` or `merge_partials` returned, for the same positions and for different classes. A range of
        nothing but -inf is neutral: it changes no number of the other.

    Returns
    -------
    numpy.ndarray of float64
        The same numbers for both ranges together. Ranges are compared by m, of equal ones the smaller class counts:
        the argmax of `token_statistics` over all classes, unless `softcap` or the rounding of `logit_scale` made the
        largest logits of two ranges one z. Then it is the first of these ranges' argmaxes; which logit was larger is
        not among the five numbers. No other number depends on it.

    Raises
    ------
    TypeError, ValueError
        If a or b are not partials, or not of the same positions.

    See Also
    --------
    partials, finish_partials

    Examples
    --------
    >>> import fastxent
    >>> left = fastxent.partials([0.0, 0.0], 0)
    >>> right = fastxent.partials([-float("inf"), 0.0], 0, class_offset=2)
    >>> fastxent.merge_partials(left, right)
    array([0., 2., 0., 0., 1.])

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax" (2018), section 3.1.
    """
    a, b = partials_pair(a, b)
    first = (a[..., _MAX] > b[..., _MAX]) | ((a[..., _MAX] == b[..., _MAX]) & (a[..., _ARGMAX] <= b[..., _ARGMAX]))
    above, below = np.where(first[..., None], a, b), np.where(first[..., None], b, a)
    result = above.copy()
    top, low = above[..., _MAX], below[..., _MAX]
    with np.errstate(all="ignore"):
        # Nothing is added by a range of nothing but -inf, nor to +inf, beside which no sum has a meaning.
        adds = (low > -np.inf) & (top < np.inf)
        result[..., _REST] += np.where(adds, (1 + below[..., _REST]) * np.exp(low - top), 0)
    result[..., _TARGET] = np.maximum(a[..., _TARGET], b[..., _TARGET])
    result[..., _HERE] = np.maximum(a[..., _HERE], b[..., _HERE])
    undefined = np.isnan(a[..., _REST]) | np.isnan(b[..., _REST])
    result[undefined, _MAX] = result[undefined, _REST] = np.nan
    result[undefined, _ARGMAX] = -1
    result[_invalid(a) | _invalid(b)] = (0, 0, 0, -1, 1)
    return result


def finish_partials(p: ArrayLike) -> FinishedPartials:
    r"""Turn the sums of all ranges of classes into log-probability, log-sum-exp and most likely class.

    .. math:: \mathrm{log\_prob} = -((m - z_t) + \log(1 + s)), \qquad \mathrm{logsumexp} = m + \log(1 + s)

    Parameters
    ----------
    p : array_like of float64
        What `merge_partials` made of the `partials` of all ranges.

    Returns
    -------
    FinishedPartials
        A named tuple of arrays of the positions' shape: `log_prob` and `logsumexp`, float64, and `argmax`, int64. All
        as in `token_statistics`; for `argmax` of ranges with an equal m see `merge_partials`.

    Raises
    ------
    IndexError
        If no range held the class of a valid position's target; the message has the position.
    TypeError, ValueError
        If p are not partials.

    See Also
    --------
    partials, merge_partials

    Examples
    --------
    >>> import fastxent
    >>> found = fastxent.finish_partials(fastxent.partials([[0.0, 0.0, 0.0]], [1]))
    >>> found.log_prob.round(6), found.argmax
    (array([-1.098612]), array([0]))
    """
    p = partials_argument(p, "p")
    missing = p[..., _HERE] == 0
    if missing.any():
        raise missing_target_error(tuple(int(i) for i in np.argwhere(missing)[0]))
    top, rest = p[..., _MAX], p[..., _REST]
    with np.errstate(all="ignore"):
        log_rest = np.log1p(rest)
        log_prob = np.where(np.isfinite(top), 0.0 - ((top - p[..., _TARGET]) + log_rest), np.nan)
        return FinishedPartials(log_prob, np.asarray(top + log_rest), np.asarray(p[..., _ARGMAX]).astype(np.int64))


def _invalid(p: Array) -> Array:
    """Where a position is not valid: no class is the largest, and yet there is a largest logit."""
    invalid: Array = (p[..., _ARGMAX] < 0) & np.isfinite(p[..., _MAX])
    return invalid
