"""From the states of rows to losses and statistics, and to the terms that a gradient is written from.

The arithmetic of ``src/kernels/finish.inl`` for class indices, in float64 and over all rows at once: a few operations a
row, beside some hundred thousand multiplications. With L = log1p(s), gap = m - z_t and W the sum of the class weights,

    loss = w_t (1 - e) (gap + L) + e/C (dot + W L) + z_loss * logsumexp**2,

and the gradient is A p_c - coefficient_c with A = w_t (1 - e) + e/C W + 2 z_loss logsumexp. Where the target is the
maximum, p = 1 - s / (1 + s), so that nothing cancels as p -> 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._linear_arguments import Linear
from ._linear_tiles import (
    ARGMAX,
    DOT,
    MAX,
    MOMENT,
    RANK,
    REST,
    TARGET,
    TERM_FACTOR,
    TERM_MAX,
    TERM_SPREAD,
    TERM_VALUE,
    TERMS,
    bent,
)

Array = NDArray[Any]


class Finish:
    """Rows `begin` to `end` of a call, their states complete."""

    def __init__(self, linear: Linear, state: Array, begin: int, end: int) -> None:
        plan, self.linear, self.state = linear.plan, linear, state
        self.scale = 1.0 if bent(plan.logit_scale, plan.softcap) else plan.logit_scale
        self.top = state[:, MAX]
        defined = np.isfinite(self.top)
        self.rest = np.where(defined, state[:, REST], np.nan)
        self.log_rest = np.log1p(self.rest)
        self.gap = self.scale * (self.top - state[:, TARGET])
        self.sample = None if linear.sample is None else linear.sample[begin:end]
        weight = plan.class_weight
        self.smooth = plan.label_smoothing / max(1, plan.logits.shape[-1])
        self.all_weights = float(plan.logits.shape[-1] if weight is None else weight.sum())
        self.of_target = np.ones(len(state)) if weight is None else weight[linear.targets[begin:end]]
        self.own = (1 - plan.label_smoothing) * self.of_target
        self.log_sum = self.scale * self.top + self.log_rest

    def losses(self) -> Array:
        """Of each row, in the compute type; never -0."""
        plan = self.linear.plan
        loss = self.own * (np.where(self.own == 0, 0, self.gap) + self.log_rest)
        if plan.label_smoothing:
            loss += self.smooth * (self.scale * self.state[:, DOT] + self.all_weights * self.log_rest)
        if plan.z_loss:
            loss += plan.z_loss * self.log_sum * self.log_sum  # in this order: the square may be too large
        if self.sample is not None:
            loss *= self.sample
        losses: Array = (loss + 0.0).astype(self.linear.computed)
        return losses

    def terms(self, upstream: Array) -> Array:
        """What TILE_GRADIENT takes; `upstream`: what one unit of loss counts, for each row."""
        z_loss, by = self.linear.plan.z_loss, self.scale * upstream
        beside: Any = by * (2 * z_loss) * self.log_sum if z_loss else 0.0  # 2 * z_loss * log_sum may be too large
        total = by * (self.own + self.smooth * self.all_weights) + beside
        coefficient = self.own + self.smooth * self.of_target
        inverse = 1 / (1 + self.rest)
        others = self.smooth * (self.all_weights - self.of_target)
        at_top = inverse * (beside + by * (others - coefficient * self.rest))
        value = np.where(self.gap == 0, at_top, total * inverse * np.exp(-self.gap) - by * coefficient)
        terms = np.empty((len(self.state), TERMS), self.linear.computed)
        terms[:, TERM_MAX] = self.top
        terms[:, TERM_FACTOR] = total * inverse
        terms[:, TERM_SPREAD] = by * self.smooth
        terms[:, TERM_VALUE] = value
        return terms

    def largest_probability(self, top: Array) -> Array:
        """Of the classes of a tile whose largest logits are these."""
        probability: Array = np.exp(self.scale * (top - self.top)) / (1 + self.rest)
        return probability

    def statistics(self) -> tuple[Array, Array, Array, Array, Array]:
        """The fields of `TokenStatistics`, for each row."""
        kind, top = self.linear.computed, self.top
        nan = np.isnan(self.state[:, REST])
        log_prob = 0.0 - (self.gap + self.log_rest)
        log_sum = np.where(nan, np.nan, np.where(np.isfinite(top), self.log_sum, top))
        entropy = self.log_rest + self.state[:, MOMENT] / (1 + self.rest)
        argmax, rank = (np.where(nan, -1, self.state[:, k]).astype(np.int64) for k in (ARGMAX, RANK))
        return (log_prob + 0.0).astype(kind), log_sum.astype(kind), argmax, rank, (entropy + 0.0).astype(kind)
