"""Judging the arguments of `functional`: what torch's conventions make of them, and whom they go to."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ._composed import Call
from ._tensors import FLOATS, HALVES, check_device, undisturbed

REDUCTIONS = ("mean", "sum", "none")
_INDICES = frozenset(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))


def checked_reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction by its present name; the deprecated ones with torch's warnings."""
    if size_average is not None or reduce is not None:
        averaged, reduced = size_average is not False, reduce is not False
        reduction = "none" if not reduced else "mean" if averaged else "sum"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead.",
            stacklevel=3,
        )
    if reduction in REDUCTIONS:
        return reduction
    if reduction == "elementwise_mean":
        warnings.warn("reduction='elementwise_mean' is deprecated. Please use reduction='mean' instead.", stacklevel=3)
        return "mean"
    raise ValueError(f"{reduction} is not a valid value for reduction; expected mean, sum or none")


def check_given(tensor: Any, name: str, function: str) -> None:
    """Refuse what is no tensor on the CPU."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}(): {name} must be a Tensor, not {type(tensor).__name__}")
    if not tensor.is_cpu:
        check_device(tensor, name, function)


def checked_classes(input: Tensor, target: Any, weight: Any, function: str) -> tuple[torch.dtype, bool]:
    """The dtype that torch's result has, and whether the targets are class indices."""
    check_given(target, "target", function)
    if input.ndim == 0:
        raise ValueError(f"{function}(): input has no class axis")
    result, kind = input.dtype, target.dtype
    indices = kind not in FLOATS
    if weight is not None:
        check_given(weight, "weight", function)
        if indices and weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{function}(): the loss of class indices is not differentiable by weight; give weight.detach()"
            )
    if not indices:
        result = torch.promote_types(result, kind)
        if weight is not None:
            result = torch.promote_types(result, weight.dtype)
    elif kind not in _INDICES:
        raise TypeError(f"{function}(): target has dtype {kind}; expected class indices or class probabilities")
    return (result if result not in HALVES else under_autocast(result)), indices


def unbatched(input: Tensor, target: Tensor) -> Tensor:
    """Torch takes a batch of one target for a position that has no batch."""
    return target[0] if input.ndim == 1 and target.ndim == 1 and target.shape[0] == 1 else target


def describing(mask: Any, lengths: Any, sample_weight: Any, function: str) -> tuple[Any, Any, Any]:
    """What describes positions, as tensors: a list or an array will do."""
    found = []
    for name, value in (("mask", mask), ("lengths", lengths), ("sample_weight", sample_weight)):
        if value is not None:
            value = torch.as_tensor(value)
            check_given(value, name, function)
        found.append(value)
    mask, lengths, sample_weight = found
    if mask is not None and mask.dtype.is_floating_point:
        raise TypeError(f"{function}(): mask has dtype {mask.dtype}; weights of positions are sample_weight")
    return mask, lengths, sample_weight


def short_way(input: Tensor, call: Call) -> bool:
    """Whether these are ordinary tensors of which only the logits may need a gradient."""
    target, weight, pos_weight, mask, lengths, sample_weight, *_ = call
    if not undisturbed(input, target, weight, pos_weight, mask, lengths, sample_weight):
        return False
    for tensor in (target, weight, pos_weight, sample_weight):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            return False
    return True


def check_shapes(input: Tensor, call: Call) -> None:
    """The shapes that torch's own operations would broadcast without a word; otherwise fastxent judges them."""
    target, weight, _, _, lengths, *_ = call
    axis = 0 if input.ndim == 1 else 1
    positions = (*input.shape[:axis], *input.shape[axis + 1 :])
    expected = input.shape if target.dtype.is_floating_point else positions
    if tuple(target.shape) != tuple(expected):
        raise ValueError(f"target must have shape {tuple(expected)}, got {tuple(target.shape)}")
    if weight is not None and tuple(weight.shape) != (input.shape[axis],):
        raise ValueError(f"weight must have shape ({input.shape[axis]},), got {tuple(weight.shape)}")
    if lengths is not None and (len(positions) < 2 or tuple(lengths.shape) != positions[:-1]):
        raise ValueError(f"lengths must have shape {positions[:-1]}, got {tuple(lengths.shape)}: add a batch axis")


def under_autocast(dtype: torch.dtype) -> torch.dtype:
    """What torch's losses return under autocast: float32 for the half types."""
    if dtype in HALVES and torch.is_autocast_enabled("cpu"):
        return torch.float32
    return dtype
