"""Sequences of unequal length: masks from lengths, and reductions of losses that know of both."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import reduce_plan
from ._calls import loss
from ._targets import lengths_arguments


def lengths_to_mask(lengths: ArrayLike, max_length: int | None = None) -> NDArray[np.bool_]:
    r"""Make a mask of lengths: true at the times below each sequence's length.

    .. math:: m_{b,t} = [t < \mathrm{lengths}_b]

    Parameters
    ----------
    lengths : array_like of int
        The length of each sequence, 0 or more; any shape.
    max_length : int, optional
        The number of times; by default the largest length.

    Returns
    -------
    numpy.ndarray of bool
        The shape of `lengths` with time as a new last axis.

    Raises
    ------
    TypeError
        If `lengths` or `max_length` are not integers.
    ValueError
        If a length is negative or larger than `max_length`.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.lengths_to_mask([1, 3])
    array([[ True, False, False],
           [ True,  True,  True]])
    """
    counts, times = lengths_arguments(lengths, max_length)
    return np.arange(times) < counts[..., np.newaxis]


def sequence_reduce(
    losses: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    empty_value: float = float("nan"),
) -> Any:
    r"""Reduce losses that are there already, over their valid positions.

    .. math:: \mathrm{mean} = \sum_i w_i \ell_i \, / \sum_i w_i

    Parameters
    ----------
    losses : array_like
        Of shape (..., time); with a single axis, that is the batch. Any dtype of `cross_entropy`'s logits.
    mask : array_like of bool or int, optional
        Which positions are valid; broadcasts to the losses' shape.
    lengths : array_like of int, optional
        How many times of each sequence are valid: of the losses' shape without time.
    weight : array_like, optional
        Multiplies the losses and adds up to the divisor of a mean; broadcasts to the losses' shape. A position of
        weight 0 is not valid. What is not valid is not looked at: it may be NaN.
    reduction : {"mean", "sum", "none", "sequence_mean", "batch_mean"}
        As in `cross_entropy`.
    normalizer : float, optional
        The divisor for "sum" and "mean", in place of their own.
    empty_value : float, default NaN
        The value where the divisor is 0.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        The value; for "none" an array of the losses' shape, 0 where not valid, float32 (float64 for float64 and
        integers).

    Raises
    ------
    TypeError
        If an argument has a dtype that is not named above.
    ValueError
        If an argument has a wrong shape or value.

    Examples
    --------
    >>> import fastxent
    >>> losses = [[1.0, 3.0], [5.0, float("nan")]]
    >>> float(fastxent.sequence_reduce(losses, lengths=[2, 1]))
    3.0
    >>> float(fastxent.sequence_reduce(losses, lengths=[2, 1], reduction="sequence_mean"))
    3.5
    """
    return loss(reduce_plan(losses, mask, lengths, weight, reduction, normalizer, empty_value), False)
