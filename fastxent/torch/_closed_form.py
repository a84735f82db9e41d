"""Gradients in torch's own operations, so that torch can differentiate them again; never on the way of a first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def valid_positions(
    shape: Sequence[int], mask: Any = None, lengths: Any = None, target: Any = None, ignore_index: int | None = None
) -> Any:
    """Which positions count, as booleans of the positions' shape; None: all of them."""
    valid = None if mask is None else (mask != 0).expand(shape)
    if lengths is not None:
        in_time = torch.arange(shape[-1], device=lengths.device) < lengths.long().unsqueeze(-1)
        valid = in_time if valid is None else valid & in_time
    if target is None or ignore_index is None or target.is_floating_point():
        return valid
    if ignore_index < 0 and not target.dtype.is_signed:
        return valid
    heeded = target.long() != ignore_index  # as numbers: in the targets' own type -100 would be a uint8's 156
    return heeded if valid is None else valid & heeded


def unmasked(values: Tensor, valid: Any, axis: int) -> Tensor:
    """`values` of the logits' shape, 0 at positions that do not count, whatever they were."""
    return values if valid is None else torch.where(valid.unsqueeze(axis), values, 0.0)


def capped(x: Tensor, softcap: float) -> tuple[Tensor, Any]:
    """The logits z that the loss is of, at least in float32, and dz/dx (None: 1). -inf stays -inf."""
    z = x if x.dtype is torch.float64 else x.float()
    if not softcap:
        return z, None
    infinite = z.isinf()
    t = torch.tanh(torch.where(infinite, 0.0, z) / softcap)
    return torch.where(infinite, z, softcap * t), torch.where(infinite, 1.0, 1 - t * t)


def log_probs(x: Tensor, axis: int, softcap: float) -> Tensor:
    """The logarithms of the probabilities that the loss is of."""
    return torch.log_softmax(capped(x, softcap)[0], axis)


def smoothed(target: Tensor, classes: int, axis: int, label_smoothing: float, dtype: torch.dtype) -> Tensor:
    """What the target says of each class, in the logits' shape. Class indices must be in range."""
    if not target.is_floating_point():
        every = torch.arange(classes, device=target.device)
        target = target.long().unsqueeze(axis) == along(every, target.ndim + 1, axis)
    return (1 - label_smoothing) * target.to(dtype) + label_smoothing / classes


def along(weight: Tensor, ndim: int, axis: int) -> Tensor:
    """One number for each class as a tensor that broadcasts to logits."""
    return weight.view([-1 if i == axis else 1 for i in range(ndim)])


def gradient(
    upstream: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Any,
    mask: Any,
    lengths: Any,
    axis: int,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> Tensor:
    """What ``fastxent::cross_entropy_grad`` computes: upstream * ((W + 2 z_loss logsumexp(z)) p - c) * dz/dx."""
    indices = not target.is_floating_point()
    classes = x.shape[axis]
    valid = valid_positions(upstream.shape, mask, lengths, target, ignore_index)
    if valid is not None:  # what does not count is not looked at: 0 * NaN is NaN
        x, upstream = unmasked(x, valid, axis), torch.where(valid, upstream, 0.0)
        target = torch.where(valid, target.long(), 0) if indices else unmasked(target, valid, axis)
    z, slope = capped(x, softcap)
    coefficients = smoothed(target, classes, axis, label_smoothing, z.dtype)
    if weight is not None:
        coefficients = coefficients * along(weight.to(z.dtype), x.ndim, axis)
    factor = coefficients.sum(axis, keepdim=True)
    if z_loss:
        factor = factor + 2 * z_loss * torch.logsumexp(z, axis, keepdim=True)
    grad = upstream.to(z.dtype).unsqueeze(axis) * (factor * torch.softmax(z, axis) - coefficients)
    return (grad if slope is None else grad * slope).to(x.dtype)


def softmax_gradient(y: Tensor, upstream: Tensor, axis: int) -> Tensor:
    """The gradient of a softmax from its result."""
    return y * (upstream - (upstream * y).sum(axis, keepdim=True))


def log_softmax_gradient(y: Tensor, upstream: Tensor, axis: int) -> Tensor:
    """The gradient of a log_softmax from its result."""
    return upstream - y.exp() * upstream.sum(axis, keepdim=True)
