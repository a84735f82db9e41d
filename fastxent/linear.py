r"""Cross-entropy of a linear layer: of ``hidden @ weight.T + bias``, without these logits ever being there at once.

The last layer of a language model has tens of thousands of classes, and its logits are larger than everything else the
model computes. Here they are made tile by tile, by NumPy's matrix product, and used while they are in the cache
(`_linear_run.py`; how tiles are cut: `_linear_chunks.py`). What a position's tiles have in common fits in a few float64
numbers; loss and gradient are formed from these, in the accurate forms of `cross_entropy`.

The results depend on the BLAS that NumPy was built with, on its number of threads and on how tiles are cut, in the last
bits: logits are sums over the features, and rounding depends on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _linear_run, _reductions
from ._linear_arguments import DEFAULT_BYTES, Linear, checked_filter, gradient_outputs, linear_plan
from ._linear_finish import Finish
from ._options import REDUCTION_SEQUENCE_MEAN
from .statistics import TokenStatistics

Array = NDArray[Any]


class LinearGrads(NamedTuple):
    """The gradients of `linear_cross_entropy_and_grad`, each of its operand's shape and dtype (float64 for integers).

    Attributes
    ----------
    hidden, weight : numpy.ndarray
        By the hidden states and by the weight.
    bias : numpy.ndarray or None
        By the bias; None without one.

    Examples
    --------
    >>> import fastxent
    >>> _, grads = fastxent.linear_cross_entropy_and_grad([[1.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]], [0])
    >>> grads.hidden, grads.bias is None
    (array([[0. , 0.5]]), True)
    """

    hidden: Array
    weight: Array
    bias: Array | None


class _Sums:
    """What `_reductions` asks of an engine's call."""

    def __init__(self, linear: Linear) -> None:
        plan = linear.plan
        self.plan = plan
        self.sequence = linear.rows // plan.sequence_length if plan.sequence_length else linear.rows
        shares = np.ones(len(linear.rows)) if linear.sample is None else linear.sample
        if plan.class_weight is not None:
            shares = shares * plan.class_weight[linear.targets]
        self.divisor = float(shares.sum())
        self.sequence_divisors = self.by_sequence(shares)
        self.sequence_sums = np.zeros(0)

    def by_sequence(self, values: Array) -> Array:
        if self.plan.reduction != REDUCTION_SEQUENCE_MEAN:
            return np.zeros(0)
        return np.bincount(self.sequence, weights=values, minlength=self.plan.n_sequences)

    def prepare(self) -> tuple[float, int]:
        return self.divisor, -1

    def run(self, scale: float = 1.0, sequence_scale: Any = None) -> tuple[float, float, int]:
        return 0.0, self.divisor, -1

    def value(self, linear: Linear, losses: Array) -> Any:
        """The value of the call, from the losses of its valid rows."""
        plan = self.plan
        if plan.losses is not None:
            plan.losses[...] = 0
            if not plan.losses.shape:
                plan.losses[np.newaxis][linear.rows] = losses
            else:
                plan.losses[np.unravel_index(linear.rows, plan.losses.shape)] = losses
        wide = losses.astype(np.float64)
        self.sequence_sums = self.by_sequence(wide)
        return _reductions.value(plan, self, float(wide.sum()), self.divisor)


def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    out: Array | None = None,
    num_threads: int | None = None,
    gradient_filter: float = 0.0,
    max_bytes: int = DEFAULT_BYTES,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    r"""Compute the cross-entropy of a linear layer's logits, which are never all in memory.

    .. math:: \ell = \mathrm{cross\_entropy}(x, t), \qquad x_c = \sum_d h_d W_{cd} + b_c

    A position that is not valid is left out before anything is multiplied: what 30 % of the positions are valid costs
    30 % of the time.

    Parameters
    ----------
    hidden : array_like
        Hidden states of shape (…, D): the last axis holds the features, the others are positions, as those of logits
        in `cross_entropy`. float16, bfloat16 (of ml_dtypes), float32, float64, or integers (as float64).
    weight : array_like
        Of shape (V, D), a row for each class. Any of these dtypes, any strides. If anything is float64 all is computed
        in float64, otherwise in float32; halves are widened a tile at a time.
    targets : array_like of int
        Class indices, of hidden's shape without its last axis.
    bias : array_like, optional
        Of shape (V,), added to the logits.
    class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, z_loss, logit_scale, softcap, \
    reduction, normalizer, empty_value
        As for `cross_entropy`.
    out : numpy.ndarray, optional
        Where to write the losses for "none": of their shape, float32 or float64 as computed.
    num_threads : int, optional
        The largest number of threads for what is not a matrix product; by default `get_num_threads()`. The matrix
        products use as many as NumPy's BLAS does (threadpoolctl sets them).
    gradient_filter : float, default 0.0
        As for `linear_cross_entropy_and_grad`, so that both take the same options. It does not concern the value.
    max_bytes : int, default 256 MiB
        The largest workspace; that of one row at least. Tiles of 32 MiB or so are the quickest, so that a loss without
        its gradient takes less than 64 MB however large this is.
    progress : callable, optional
        Called as ``progress(done, total)`` after each tile.

    Returns
    -------
    numpy.float64 or numpy.ndarray
        As from ``cross_entropy(hidden @ weight.T + bias, targets)``: a number; for "none" an array of the positions'
        shape, float32 or float64 as computed.

    Raises
    ------
    IndexError
        If the class index of a valid position is outside [0, V).
    TypeError
        If targets are not integers (class probabilities would be as large as the logits), and as for `cross_entropy`.
    ValueError
        If shapes do not fit, and as for `cross_entropy`.

    See Also
    --------
    linear_cross_entropy_and_grad, linear_token_statistics

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> hidden = np.array([[1.0, 2.0], [0.5, -1.0]])
    >>> weight = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss = fastxent.linear_cross_entropy(hidden, weight, [2, 0])
    >>> round(float(loss), 6), round(float(fastxent.cross_entropy(hidden @ weight.T, [2, 0])), 6)
    (0.435987, 0.435987)

    References
    ----------
    .. [1] E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024).
    .. [2] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax" (2018).
    """
    checked_filter(gradient_filter)
    linear = linear_plan(
        hidden, weight, targets, bias, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, empty_value, num_threads, max_bytes,
        progress, out,
    )
    return _Sums(linear).value(linear, _linear_run.losses_of(linear, _linear_run.forward(linear)))


def linear_cross_entropy_and_grad(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    out: Array | None = None,
    num_threads: int | None = None,
    gradient_filter: float = 0.0,
    max_bytes: int = DEFAULT_BYTES,
    progress: Callable[[int, int], object] | None = None,
    upstream: ArrayLike | None = None,
    out_hidden_grad: Array | None = None,
    out_weight_grad: Array | None = None,
    out_bias_grad: Array | None = None,
    accumulate: bool = False,
) -> tuple[Any, LinearGrads]:
    r"""Compute `linear_cross_entropy` and its gradients by hidden states, weight and bias.

    .. math::
        \partial \ell / \partial h = \sum_c g_c W_c, \qquad
        \partial \ell / \partial W_c = \sum_i g_{ic} h_i, \qquad
        \partial \ell / \partial b_c = \sum_i g_{ic}

    with g the gradient of `cross_entropy_and_grad` by the logits and i over positions: three matrix products, none of
    them made twice.

    Parameters
    ----------
    hidden, weight, targets, bias, class_weight, sample_weight, mask, lengths, ignore_index, shift, label_smoothing, \
    z_loss, logit_scale, softcap, reduction, normalizer, empty_value, out, num_threads
        As for `linear_cross_entropy`.
    gradient_filter : float, default 0.0
        A probability eps: positions whose probabilities are all below eps in a tile of classes (and whose target is
        elsewhere) are left out of the tile's products. Each entry of g so left out is smaller than eps times
        A = w_t + 2 z_loss |logsumexp| and what the position counts, u. So the error of a position's hidden gradient is
        below u A min(1, V eps) times the largest row norm of `weight`, that of a class's weight gradient below eps
        times the sum of u A times the positions' norms; the value has none. With label smoothing every class has a
        coefficient of its own, and nothing is left out.
    max_bytes : int, default 256 MiB
        The largest workspace beside the gradients; that of one row at least. It holds the logits of a chunk of
        positions; below 512 positions or so the products become slower. The gradient of a half-precision weight over
        several chunks is summed in a float32 array of its own, beside `max_bytes`.
    progress : callable, optional
        Called as ``progress(done, total)`` after each tile, on the way there and on the way back.
    upstream : float or array_like, optional
        Multiplies the gradients. A number; for "none" a number or one for each position, the gradients then being
        those of the sum of upstream * losses.
    out_hidden_grad, out_weight_grad, out_bias_grad : numpy.ndarray, optional
        Where to write the gradients: of exactly their operands' shapes and dtypes (float64 for integers).
    accumulate : bool, default False
        Whether to add to the arrays given, not write over them.

    Returns
    -------
    loss : numpy.float64 or numpy.ndarray
        As from `linear_cross_entropy`.
    grads : LinearGrads
        A named tuple (hidden, weight, bias) of the gradients of the returned value times `upstream`, each of its
        operand's shape and dtype (float64 for integers), or the arrays given; bias is None without a bias. The hidden
        gradient is 0 at positions that are not valid.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `linear_cross_entropy`. Nothing has been written then. ValueError too if an output shares memory with
        an input, or `accumulate` is true with no array to add to.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> hidden, weight = np.array([[1.0, 2.0]]), np.array([[0.0, 0.0], [0.0, 0.0]])
    >>> loss, grads = fastxent.linear_cross_entropy_and_grad(hidden, weight, [0], bias=[0.0, 0.0])
    >>> grads.weight, grads.bias
    (array([[-0.5, -1. ],
           [ 0.5,  1. ]]), array([-0.5,  0.5]))

    References
    ----------
    .. [1] E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024): the filter.
    """
    filtered = checked_filter(gradient_filter)
    linear = linear_plan(
        hidden, weight, targets, bias, class_weight, sample_weight, mask, lengths, ignore_index, shift,
        label_smoothing, z_loss, logit_scale, softcap, reduction, normalizer, empty_value, num_threads, max_bytes,
        progress, out, upstream,
    )
    outputs = gradient_outputs(linear, out_hidden_grad, out_weight_grad, out_bias_grad, accumulate)
    sums, plan = _Sums(linear), linear.plan
    scales = _reductions.gradient_scale(plan, sums, sums.divisor)
    grads = LinearGrads(outputs.hidden, outputs.weight, outputs.bias)
    if scales is None:  # nothing counts: even a NaN adds nothing
        for array, add in zip(grads, outputs.add, strict=True):
            if array is not None and not add:
                array.fill(0)
        return sums.value(linear, np.zeros(len(linear.rows), linear.computed)), grads
    scale, shares = scales
    counts = np.full(len(linear.rows), scale)
    if shares is not None:
        counts *= shares[sums.sequence]
    if plan.upstream is not None:
        counts *= plan.upstream.reshape(-1)[linear.rows]
    if linear.sample is not None:
        counts *= linear.sample
    return sums.value(linear, _linear_run.gradient(linear, counts, outputs, filtered)), grads


def linear_token_statistics(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    ignore_index: int | None = -100,
    shift: int = 0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
    max_bytes: int = DEFAULT_BYTES,
    progress: Callable[[int, int], object] | None = None,
) -> TokenStatistics:
    r"""Compute `token_statistics` of a linear layer's logits, which are never all in memory.

    .. math::
        \mathrm{log\_prob} = \log p_t, \qquad
        \mathrm{rank} = \#\{c : x_c > x_t\} + \#\{c < t : x_c = x_t\}, \qquad
        \mathrm{entropy} = -\sum_c p_c \log p_c, \qquad x_c = \sum_d h_d W_{cd} + b_c

    The target's logit is a sum in float64 of its own, rounded once; the other classes' are BLAS's. A rank counts by
    these, so equal logits are as equal as their sums are exact.

    Parameters
    ----------
    hidden, weight, targets, bias, mask, lengths, ignore_index, shift, logit_scale, softcap, num_threads, \
    max_bytes, progress
        As for `linear_cross_entropy`.

    Returns
    -------
    TokenStatistics
        As from `token_statistics`: arrays of the positions' shape, float32 or float64 as computed, and int64.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `linear_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> weight = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> found = fastxent.linear_token_statistics(np.array([[1.0, 2.0]]), weight, [1])
    >>> found.rank, found.argmax, found.log_prob.round(6)
    (array([1]), array([2]), array([-1.407606]))
    """
    linear = linear_plan(
        hidden, weight, targets, bias, None, None, mask, lengths, ignore_index, shift, 0.0, 0.0, logit_scale, softcap,
        "sum", None, math.nan, num_threads, max_bytes, progress,
    )
    positions = linear.plan.targets.shape
    with np.errstate(all="ignore"):
        found = Finish(linear, _linear_run.forward(linear, True), 0, len(linear.rows)).statistics()
    fields = []
    for values in found:
        field = np.full(linear.plan.targets.size, -1 if values.dtype == np.int64 else 0, values.dtype)
        field[linear.rows] = values
        fields.append(field.reshape(positions))
    return TokenStatistics(*fields)
