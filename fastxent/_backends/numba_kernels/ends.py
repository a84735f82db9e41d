"""The way from a pass's findings to terms of the gradient and losses, by the operation and options of a call."""

from __future__ import annotations

from ..._options import OP_GRAD, OP_LOG_SOFTMAX, OP_LOGSUMEXP, OP_LOSS_SOFTMAX, OP_SOFTMAX
from .emission import INLINE
from .finish import finish_activation, finish_gradient, finish_logsumexp, finish_losses, focal_losses, focal_slopes
from .language import kernel
from .layout import (
    CLASS_WEIGHT,
    CLASS_WEIGHT_SUM,
    CLASSES,
    DATA,
    FOCAL,
    GAMMA,
    MAX,
    OPERATION,
    PROBS,
    SAVED_OUT,
    SCALE,
    SMOOTHING,
    UNIFORM_UPSTREAM,
    UNIT,
    WEIGHT,
    Z_LOSS,
    Z_SCALE,
)  # fmt: skip
from .positions import operand
from .runs import save


@kernel("i", INLINE)
def wants_loss(tag, c):
    """Whether the operation has losses."""
    return c[OPERATION] != OP_GRAD and c[OPERATION] != OP_SOFTMAX and c[OPERATION] != OP_LOG_SOFTMAX


@kernel()
def finish_terms(tag, c, f, a, n):
    """factor, spread and value of n positions from the one at a."""
    operation = c[OPERATION]
    if operation >= OP_LOSS_SOFTMAX:
        finish_activation(tag, a, n, operation == OP_LOG_SOFTMAX)
        return
    if c[FOCAL] and f[GAMMA] != 0:
        focal_slopes(tag, a, n, f[GAMMA], f[Z_SCALE])
    finish_gradient(
        tag, a, n, c[PROBS], c[CLASS_WEIGHT] != 0, c[UNIFORM_UPSTREAM] == 0, f[SMOOTHING] != 0, f[Z_SCALE], f[SCALE],
        1.0 - f[SMOOTHING], f[SMOOTHING] / c[CLASSES], f[CLASS_WEIGHT_SUM], f[Z_LOSS], f[UNIT],
    )  # fmt: skip


@kernel()
def finish_run(tag, c, f, r, s, n):
    """Losses of n positions, and what is saved of them."""
    if c[SAVED_OUT]:
        save(tag, c, f, r, s, n)
    if c[OPERATION] == OP_LOGSUMEXP:
        finish_logsumexp(tag, s + MAX, n, f[Z_SCALE])
        return
    if not wants_loss(tag, c):
        return
    finish_losses(
        tag, s + MAX, n, c[PROBS], c[CLASS_WEIGHT] != 0, operand(tag, c, WEIGHT, DATA) != 0, f[SMOOTHING] != 0,
        f[Z_SCALE], 1.0 - f[SMOOTHING], f[SMOOTHING] / c[CLASSES], f[CLASS_WEIGHT_SUM], f[Z_LOSS],
    )  # fmt: skip
    if c[FOCAL] and f[GAMMA] != 0:
        focal_losses(tag, s + MAX, n, f[GAMMA], f[Z_SCALE])
