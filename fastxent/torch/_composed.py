"""Losses made of operators: for compilers, for torch.func, for double backward, and for weights with a gradient.

The loss of each position comes from an operator, what is done with it from torch's own operations, in float64 as in
`fastxent`. The short way (`_eager.py`) gives the same values; it stands aside for this wherever torch has to see what
happens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _operators
from ._closed_form import valid_positions
from ._tensors import checked_indices, undisturbed


class Call(NamedTuple):
    """One call of a loss, judged: all but what is differentiated. Tensors, or None where there is none."""

    target: Tensor
    weight: Any
    pos_weight: Any
    mask: Any
    lengths: Any
    sample_weight: Any
    result: torch.dtype  # of the loss
    reduction: str
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    inplace: bool = False


def cross_entropy(x: Tensor, call: Call) -> Tensor:
    """The cross-entropy, by operators that torch can look into."""
    target, weight = call.target, call.weight
    axis = 0 if x.ndim == 1 else 1
    positions = x.shape[:axis] + x.shape[axis + 1 :]
    mask = _with_weights(call.mask, call.sample_weight)
    losses, _ = _operators.losses(
        x, target, weight, mask, call.lengths, axis, call.ignore_index, call.label_smoothing,
        call.z_loss, call.softcap,
    )
    valid = valid_positions(positions, mask, call.lengths, target, call.ignore_index)
    indices = not target.is_floating_point()
    return reduced(losses, target if indices else None, weight, valid, call)


def nll_loss(x: Tensor, call: Call) -> Tensor:
    """The loss of log-probabilities: one element of each position, which torch's own gather finds."""
    target, weight = call.target, call.weight
    axis = 0 if x.ndim == 1 else 1
    positions = x.shape[:axis] + x.shape[axis + 1 :]
    mask = _with_weights(call.mask, call.sample_weight)
    valid = valid_positions(positions, mask, call.lengths, target, call.ignore_index)
    at = target.long() if valid is None else torch.where(valid, target, 0).long()
    if undisturbed(x, target):  # elsewhere nobody can look at it, and gather says in its own words what is wrong
        checked_indices(at.reshape(-1), x.shape[axis], None, positions)
    losses = -x.gather(axis, at.unsqueeze(axis)).squeeze(axis).to(_operators.computed(x.dtype))
    if weight is not None:
        losses = losses * weight[at]
    if valid is not None:
        losses = torch.where(valid, losses, 0.0)
    return reduced(losses, target, weight, valid, call)


def binary_cross_entropy_with_logits(x: Tensor, call: Call) -> Tensor:
    """The binary loss of single elements, which torch's own kernel computes."""
    target, weight, pos_weight = call.target, call.weight, call.pos_weight
    valid = valid_elements(x, call)
    wide = _operators.computed(x.dtype)
    x, target = x.to(wide), target.to(wide)
    if valid is not None:  # what does not count is not looked at: 0 * NaN is NaN
        x, target = torch.where(valid, x, 0.0), torch.where(valid, target, 0.0)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        x, target, reduction="none", pos_weight=None if pos_weight is None else pos_weight.to(wide)
    )
    if weight is not None:
        losses = losses * weight
    if valid is not None:
        losses = torch.where(valid, losses, 0.0)
    return reduced(losses, None, None, valid, call)


def valid_elements(x: Tensor, call: Call) -> Any:
    """Which elements count in a binary loss; None: all."""
    return valid_positions(x.shape, _with_weights(call.mask, call.sample_weight), call.lengths)


def reduced(losses: Tensor, target: Any, weight: Any, valid: Any, call: Call) -> Tensor:
    """What the reduction makes of the losses of positions, which are 0 where they do not count."""
    sample_weight = call.sample_weight
    if sample_weight is not None:
        losses = losses * sample_weight
    if call.reduction == "none":
        return losses.to(call.result)
    total = losses.sum(dtype=torch.float64)
    if call.reduction == "mean":
        by = divisor(losses.shape, target, weight, valid, sample_weight)
        if isinstance(by, int):
            total = total / by if by else total + float("nan")
        else:  # the division by 1 keeps NaN out of the gradient
            total = torch.where(by != 0, total / torch.where(by != 0, by, 1.0), float("nan"))
    return total.to(call.result)


def divisor(positions: Any, target: Any, weight: Any, valid: Any, sample_weight: Any) -> Any:
    """The sum of sample_weight * class_weight[target] over the positions that count; an int if that is their number."""
    if target is None or weight is None:
        if sample_weight is None:
            return positions.numel() if valid is None else valid.sum(dtype=torch.float64)
        factors = sample_weight.double().expand(positions)
    else:
        at = target.long() if valid is None else torch.where(valid, target.long(), 0)
        factors = weight.double()[at]
        if sample_weight is not None:
            factors = factors * sample_weight
    return (factors if valid is None else torch.where(valid, factors, 0.0)).sum()


def _with_weights(mask: Any, sample_weight: Any) -> Any:
    """The mask, less the positions of weight 0."""
    if sample_weight is None:
        return mask
    counted = sample_weight.detach() != 0
    return counted if mask is None else counted & (mask != 0)
