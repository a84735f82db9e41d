"""The short way: from tensors to arrays, to fastxent, and back, with a node of autograd only where one is needed.

What a loss keeps for its gradient was chosen by measuring (docs/performance.md):

- up to `AT_ONCE` bytes of logits, a reduced loss computes its gradient in the same pass: one call where there would be
  two, and exponentials that are made once. A factor on the way back is then one more multiplication of each element;
  float16, where a small gradient may vanish before it is scaled, always goes the other way.
- beyond, it saves the two numbers of each position with which the gradient takes one pass: slower by up to two fifths,
  but no array of the logits' size lives between forward and backward.

Gradients of gradients, and gradients under a transform, start over in `_composed.py`, which torch can follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastxent

from . import _composed, _operators
from ._composed import Call
from ._tensors import array, followed, tensor_of, threads, undisturbed

AT_ONCE = 512 << 20  # bytes of logits

_float16, _float32, _FLOAT32 = torch.float16, torch.float32, np.dtype(np.float32)
_grad_enabled = torch.is_grad_enabled
_scalar = torch.scalar_tensor


def plain_cross_entropy(
    x: Tensor, target: Tensor, dtype: torch.dtype, reduction: str, ignore_index: int, label_smoothing: float
) -> Any:
    """The cross-entropy of ordinary tensors of float32 or bfloat16 and class indices, without any other option.

    For calls so small that the checks of the others are most of what they take.
    """
    if x.is_neg():  # a view that torch negates when it is read
        x = x.resolve_neg()
    if not (x.requires_grad and _grad_enabled()):
        value = fastxent.cross_entropy(
            x.numpy() if dtype is _float32 else array(x), target.numpy(), axis=1, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction, num_threads=threads(),
        )
        return _loss(value, dtype, reduction)
    if reduction != "none" and x.nbytes <= AT_ONCE:
        return _plain_apply(x, target, (dtype, reduction, ignore_index, label_smoothing))
    call = Call(target, None, None, None, None, None, dtype, reduction, ignore_index, label_smoothing)
    return _apply(CrossEntropy)(x, call)


def cross_entropy(x: Tensor, call: Call) -> Tensor:
    """The cross-entropy of ordinary tensors."""
    if x.requires_grad and _grad_enabled():
        return _apply(CrossEntropy)(x, call)
    return _result(fastxent.cross_entropy(array(x), array(call.target), **_cross_entropy_keywords(x, call)), call)


def nll_loss(x: Tensor, call: Call) -> Tensor:
    """The loss of log-probabilities in ordinary tensors."""
    if x.requires_grad and _grad_enabled():
        return _apply(NLLLoss)(x, call)
    return _result(fastxent.nll_loss(array(x), array(call.target), **_class_keywords(x, call)), call)


def binary_cross_entropy_with_logits(x: Tensor, call: Call) -> Tensor:
    """The binary cross-entropy of ordinary tensors."""
    if x.requires_grad and _grad_enabled():
        return _apply(BinaryCrossEntropy)(x, call)
    given = _binary_keywords(x, call)
    return _result(fastxent.binary_cross_entropy_with_logits(array(x), array(call.target), **given), call)


def activation(name: str, x: Tensor, axis: int) -> Tensor:
    """Softmax or log_softmax of an ordinary tensor."""
    if x.requires_grad and _grad_enabled():
        return _apply(ACTIVATIONS[name])(x, axis)
    return tensor_of(getattr(fastxent, name)(array(x), axis=axis, num_threads=threads()), x)


def _apply(node: Any) -> Any:
    """``node.apply`` less what it does for torch.func, which is not about: that has been asked already."""
    return super(torch.autograd.Function, node).apply


# --- nodes of autograd


class PlainCrossEntropy(torch.autograd.Function):
    """What `CrossEntropy` does at once, with less around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, options: tuple[Any, ...]) -> Tensor:
        ctx.options = dtype, reduction, ignore_index, label_smoothing = options
        ctx.save_for_backward(x, target)
        loss, grad = fastxent.cross_entropy_and_grad(  # autograd is off here
            x.numpy() if dtype is _float32 else array(x), target.numpy(), axis=1, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction, num_threads=threads(),
        )
        ctx.grad = torch.from_numpy(grad) if dtype is _float32 else tensor_of(grad, x)
        return _loss(loss, dtype, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        grad = _take(ctx, upstream)
        if grad is not None:
            return grad, None, None
        _, target = ctx.saved_tensors
        ctx.call = Call(target, None, None, None, None, None, *ctx.options)
        ctx.statistics = None
        return (*CrossEntropy.backward(ctx, upstream), None)


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy by its logits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        given = _cross_entropy_keywords(x, call)
        if _at_once(x, call) and not call.inplace:
            loss, grad = fastxent.cross_entropy_and_grad(array(x), array(call.target), **given)
            ctx.grad = tensor_of(grad, x)
            ctx.statistics = None
        else:
            ctx.grad = None
            loss, ctx.statistics = fastxent.cross_entropy(array(x), array(call.target), return_saved=True, **given)
        _keep(ctx, x, call)
        return _result(loss, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        grad = _take(ctx, upstream)
        if grad is not None:
            return grad, None
        if followed(upstream):
            return _start_over(ctx, upstream, _composed.cross_entropy), None
        x, *_ = ctx.saved_tensors
        call = ctx.call
        logits = array(x)
        inplace: dict[str, Any] = {"out_grad": logits} if call.inplace else {}
        grad = fastxent.cross_entropy_grad(
            logits, array(call.target), saved=ctx.statistics, upstream=_upstream(upstream, call), **inplace,
            **_cross_entropy_keywords(x, call),
        )
        if not inplace:
            return tensor_of(grad, x), None
        torch.autograd.graph.increment_version(x)
        return x.detach(), None


class NLLLoss(torch.autograd.Function):
    """The loss of log-probabilities."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        _keep(ctx, x, call)
        return _result(fastxent.nll_loss(array(x), array(call.target), **_class_keywords(x, call)), call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if followed(upstream):
            return _start_over(ctx, upstream, _composed.nll_loss), None
        x, *_ = ctx.saved_tensors
        call = ctx.call
        given = _class_keywords(x, call) | {"upstream": _upstream(upstream, call)}
        return tensor_of(fastxent.nll_loss_and_grad(array(x), array(call.target), **given)[1], x), None


class BinaryCrossEntropy(torch.autograd.Function):
    """Binary cross-entropy by its logits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        given = _binary_keywords(x, call)
        ctx.grad = None
        if _at_once(x, call):
            loss, grad = fastxent.binary_cross_entropy_with_logits_and_grad(array(x), array(call.target), **given)
            ctx.grad = tensor_of(grad, x)
        else:
            loss = fastxent.binary_cross_entropy_with_logits(array(x), array(call.target), **given)
        _keep(ctx, x, call)
        return _result(loss, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        grad = _take(ctx, upstream)
        if grad is not None:
            return grad, None
        if followed(upstream):
            return _start_over(ctx, upstream, _composed.binary_cross_entropy_with_logits), None
        x, *_ = ctx.saved_tensors
        call = ctx.call
        given = _binary_keywords(x, call) | {"upstream": _upstream(upstream, call)}
        _, grad = fastxent.binary_cross_entropy_with_logits_and_grad(array(x), array(call.target), **given)
        return tensor_of(grad, x), None


def _keep(ctx: Any, x: Tensor, call: Call) -> None:
    """Keep the tensors with autograd, which frees them and sees when they are changed before the gradient."""
    ctx.call = call
    ctx.save_for_backward(x, *[tensor for tensor in call[:6] if tensor is not None])


def _take(ctx: Any, upstream: Tensor) -> Any:
    """The gradient that the forward pass left, if it did and torch need not see what happens (`followed`); or None.

    It is given away: a second time it has to be computed.
    """
    grad = ctx.grad
    if grad is None or _grad_enabled() or not undisturbed(upstream):
        return None
    try:
        factor = upstream.item()
    except RuntimeError:  # several gradients at once have no number: `followed` asks, but that takes longer
        return None
    ctx.grad = None
    return grad if factor == 1.0 else grad.mul_(factor)


def _start_over(ctx: Any, upstream: Tensor, loss: Any) -> Tensor:
    """The gradient, of a loss computed again from operators, so that torch can follow."""
    x = ctx.saved_tensors[0]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        alias = x.view_as(x)  # its gradient alone, with the way back to x kept
        return torch.autograd.grad(loss(alias, ctx.call), alias, upstream, create_graph=again)[0]


def _activation_node(name: str) -> Any:
    forward_array, backward_array = getattr(fastxent, name), getattr(fastxent, f"{name}_grad")
    operator = getattr(_operators, f"{name}_grad")

    class Activation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, axis: int) -> Tensor:
            ctx.axis = axis
            y = tensor_of(forward_array(array(x), axis=axis, num_threads=threads()), x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
            (y,) = ctx.saved_tensors
            if followed(upstream):
                return operator(y, upstream, ctx.axis), None
            grad = backward_array(array(y), array(upstream), axis=ctx.axis, num_threads=threads())
            return tensor_of(grad, y), None

    Activation.__name__ = Activation.__qualname__ = "LogSoftmax" if name == "log_softmax" else "Softmax"
    return Activation


_plain_apply = _apply(PlainCrossEntropy)
ACTIVATIONS = {name: _activation_node(name) for name in ("softmax", "log_softmax")}


# --- from torch's words to fastxent's


def _at_once(x: Tensor, call: Call) -> bool:
    return call.reduction != "none" and x.nbytes <= AT_ONCE and x.dtype is not _float16


def _class_keywords(x: Tensor, call: Call) -> dict[str, Any]:
    given: dict[str, Any] = {
        "axis": 1 if x.ndim > 1 else 0,
        "ignore_index": call.ignore_index,
        "reduction": call.reduction,
        "num_threads": threads(),
    }
    if call.weight is not None:
        given["class_weight"] = array(call.weight)
    _, _, _, mask, lengths, sample_weight, *_ = call
    if mask is not None:
        given["mask"] = array(mask)
    if lengths is not None:
        given["lengths"] = array(lengths)
    if sample_weight is not None:
        given["sample_weight"] = array(sample_weight)
    return given


def _cross_entropy_keywords(x: Tensor, call: Call) -> dict[str, Any]:
    given = _class_keywords(x, call)
    if call.label_smoothing:
        given["label_smoothing"] = call.label_smoothing
    if call.z_loss:
        given["z_loss"] = call.z_loss
    if call.softcap:
        given["softcap"] = call.softcap
    return given


def _binary_keywords(x: Tensor, call: Call) -> dict[str, Any]:
    """In torch the weight of an element multiplies its loss but does not enter the divisor of a mean."""
    given: dict[str, Any] = {"reduction": call.reduction, "num_threads": threads()}
    if call.mask is not None:
        given["mask"] = array(call.mask)
    if call.lengths is not None:
        given["lengths"] = array(call.lengths)
    if call.pos_weight is not None:
        given["pos_weight"] = array(call.pos_weight)
    weight = call.sample_weight
    if call.weight is not None:
        weight = call.weight.double()
        if call.sample_weight is not None:
            weight = weight * call.sample_weight
        if call.reduction == "mean":
            valid = _composed.valid_elements(x, call)
            given["normalizer"] = float(_composed.divisor(x.shape, None, None, valid, call.sample_weight))
    if weight is not None:
        given["sample_weight"] = array(weight)
    return given


def _loss(value: Any, dtype: torch.dtype, reduction: str) -> Tensor:
    """A loss of fastxent's as a tensor of the dtype that torch's has."""
    if reduction == "none":
        return torch.from_numpy(value).to(dtype)
    if dtype is _float32:  # as `_scalar`, in less time
        return torch.from_numpy(np.array(value, _FLOAT32))
    return _scalar(value, dtype=dtype)


def _result(value: Any, call: Call) -> Tensor:
    return _loss(value, call.result, call.reduction)


def _upstream(grad: Tensor, call: Call) -> Any:
    """The incoming gradient for fastxent: an array of the positions' shape, or a number."""
    return array(grad) if call.reduction == "none" else grad.item()
