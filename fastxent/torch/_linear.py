"""The loss of a linear layer's logits, which are never all there, with its gradients by input, weight and bias.

Two ways to the same numbers:

- `fastxent.linear_cross_entropy_and_grad`, whose products are those of NumPy's BLAS, in float32 or float64;
- for bfloat16, on processors that multiply it themselves, torch's own products of chunks of positions, between which
  fastxent writes the gradient over the logits. Widened to float32 these take twice the time or more (measured).
  float16, which no usual processor multiplies, goes the first way.

A reduced loss computes its gradients together with its value: a second pass would make the logits again. What comes in
from above is then one more factor, except for float16, where a small gradient may vanish before it is scaled. For
reduction "none" the backward pass starts over, with the incoming gradient of each position.

Compiled code calls the operators ``fastxent::linear_cross_entropy`` and ``fastxent::linear_cross_entropy_grad``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastxent

from .._linear_arguments import DEFAULT_BYTES
from .._linear_chunks import Sizes, gradient_chunks, spans
from . import _composed
from ._closed_form import valid_positions
from ._composed import Call
from ._operators import computed
from ._tensors import array, checked_indices, followed, tensor_of, threads, undisturbed

_NAME = "linear_cross_entropy"
_NOTHING = (False, False, False)
MULTIPLIES_BFLOAT16 = any(
    getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)


# --- judging


def cast(*tensors: Any) -> list[Any]:
    """The operands in the dtype that torch's own linear layer would give them under autocast."""
    if not torch.is_autocast_enabled("cpu"):
        return list(tensors)
    to = torch.get_autocast_dtype("cpu")
    return [t if t is None or t.dtype is torch.float64 else t.to(to) for t in tensors]


def check_operands(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    """Refuse operands that do not fit each other."""
    for name, tensor in (("linear_weight", w), ("linear_bias", b)):
        if tensor is not None and tensor.dtype is not x.dtype:
            raise TypeError(f"{_NAME}(): {name} has dtype {tensor.dtype}, input {x.dtype}; they must be the same")
    if x.ndim == 0:
        raise ValueError(f"{_NAME}(): input has no axis of features")
    if w.ndim < 2 or w.shape[-1] != x.shape[-1]:
        raise ValueError(f"{_NAME}(): linear_weight must have shape (C, {x.shape[-1]}), got {tuple(w.shape)}")
    if b is not None and b.shape != w.shape[:-1]:
        raise ValueError(f"{_NAME}(): linear_bias must have shape {tuple(w.shape[:-1])}, got {tuple(b.shape)}")
    if w.ndim > 2 and x.ndim != 2:
        raise ValueError(
            f"{_NAME}(): linear_weight of more than two axes needs an input of shape (N, {x.shape[-1]}), got "
            f"{tuple(x.shape)}"
        )


def check_positions(x: Tensor, w: Tensor, call: Call) -> None:
    """Refuse class indices, and what describes positions, that do not fit the operands."""
    positions = tuple(x.shape[:-1])
    if tuple(call.target.shape) != positions:
        raise ValueError(f"{_NAME}(): target must have shape {positions}, got {tuple(call.target.shape)}")
    if call.weight is not None and tuple(call.weight.shape) != (w.shape[0],):
        raise ValueError(f"{_NAME}(): weight must have shape ({w.shape[0]},), got {tuple(call.weight.shape)}")
    if call.lengths is not None and (len(positions) < 2 or tuple(call.lengths.shape) != positions[:-1]):
        raise ValueError(
            f"{_NAME}(): lengths must have shape {positions[:-1]}, got {tuple(call.lengths.shape)}"
            + (": add a batch axis" if len(positions) < 2 else "")
        )
    for name, tensor in (("mask", call.mask), ("sample_weight", call.sample_weight)):
        if tensor is not None and not _broadcasts(tuple(tensor.shape), positions):
            raise ValueError(f"{_NAME}(): {name} must broadcast to {positions}, got shape {tuple(tensor.shape)}")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    tail = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def without_logits(x: Tensor, w: Tensor, b: Tensor | None, target: Tensor, weight: Any, sample_weight: Any) -> bool:
    """Whether the loss can do without its logits.

    Class probabilities are as large, further axes of the weight are further axes of positions, and torch.func and the
    gradients of weights and targets need operations that torch can follow.
    """
    if target.is_floating_point() or w.ndim > 2:
        return False
    if sample_weight is not None and sample_weight.requires_grad and torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or undisturbed(x, w, b, target, weight, sample_weight)


def logits_of(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The logits with their class axis where torch's losses expect it."""
    logits = torch.nn.functional.linear(x, w.flatten(0, -2), None if b is None else b.flatten())
    return logits.unflatten(-1, w.shape[:-1]) if w.ndim > 2 else logits.movedim(-1, 1) if x.ndim > 2 else logits


# --- autograd


def linear_cross_entropy(x: Tensor, w: Tensor, b: Tensor | None, call: Call) -> Tensor:
    """The loss of judged operands and class indices."""
    check_positions(x, w, call)
    needed = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, w, b)]
    if torch.compiler.is_compiling():
        now = needed if _at_once(x, call) else _NOTHING
        return _operator(x, w, b, *_flat(call), now)[0].to(call.result)
    if any(needed):
        result: Tensor = LinearCrossEntropy.apply(x, w, b, call)
        return result
    return loss_and_grads(x, w, b, call, None, _NOTHING)[0].to(call.result)


class LinearCrossEntropy(torch.autograd.Function):
    """The loss by its three operands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, call: Call) -> Tensor:
        now = _at_once(x, call)
        loss, *grads = loss_and_grads(x, w, b, call, None, ctx.needs_input_grad[:3] if now else _NOTHING)
        ctx.grads = grads if now else None
        ctx.call = call
        ctx.save_for_backward(x, w, b, *[tensor for tensor in call[:6] if tensor is not None])
        return loss.to(call.result)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if followed(upstream):
            raise RuntimeError(
                f"{_NAME}() has no second derivatives and no batched gradients (create_graph=True, "
                "is_grads_batched=True): they need the logits, so use "
                "cross_entropy(torch.nn.functional.linear(input, linear_weight, linear_bias), ...)"
            )
        grads, ctx.grads = ctx.grads, None  # given away: a second time they have to be computed
        if grads is None:
            x, w, b, *_ = ctx.saved_tensors
            _, *grads = loss_and_grads(x, w, b, ctx.call, upstream, ctx.needs_input_grad[:3])
        elif (factor := upstream.item()) != 1.0:
            grads = [None if grad is None else grad.mul_(factor) for grad in grads]
        return *grads, None


def _at_once(x: Tensor, call: Call) -> bool:
    return call.reduction != "none" and x.dtype is not torch.float16


# --- the two ways


def loss_and_grads(x: Tensor, w: Tensor, b: Any, call: Call, upstream: Any, needed: Any) -> tuple[Any, ...]:
    """The loss, and the gradients that are `needed` of the three (None for the others), times `upstream`."""
    if x.dtype is torch.bfloat16 and MULTIPLIES_BFLOAT16:
        found = _by_torch(x, w, b, call, upstream, needed)
        if found is not None:
            return found
    return _by_fastxent(x, w, b, call, upstream, needed)


def _by_fastxent(x: Tensor, w: Tensor, b: Any, call: Call, upstream: Any, needed: Any) -> tuple[Any, ...]:
    given = _numbers(call)
    given |= {"ignore_index": call.ignore_index, "reduction": call.reduction}
    names = ("bias", "class_weight", "mask", "lengths", "sample_weight")
    tensors = (b, call.weight, call.mask, call.lengths, call.sample_weight)
    given |= {name: array(tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None}
    operands = array(x), array(w), array(call.target)
    if not any(needed):
        return _loss(fastxent.linear_cross_entropy(*operands, **given), x, call), None, None, None
    if upstream is not None:
        given["upstream"] = array(upstream) if call.reduction == "none" else upstream.item()
    loss, grads = fastxent.linear_cross_entropy_and_grad(*operands, **given)
    pairs = zip(grads, needed, strict=True)
    wanted = [tensor_of(grad, x) if need and grad is not None else None for grad, need in pairs]
    return _loss(loss, x, call), *wanted


def _loss(loss: Any, x: Tensor, call: Call) -> Tensor:
    if call.reduction == "none":
        return torch.as_tensor(loss)
    return torch.scalar_tensor(loss, dtype=computed(x.dtype))


def _numbers(call: Call) -> dict[str, Any]:
    return {
        "label_smoothing": call.label_smoothing,
        "z_loss": call.z_loss,
        "softcap": call.softcap or None,
        "num_threads": threads(),
    }


def _by_torch(x: Tensor, w: Tensor, b: Any, call: Call, upstream: Any, needed: Any) -> Any:
    """None if nothing counts, which needs no products."""
    positions, (classes, features) = x.shape[:-1], w.shape
    mask = _composed._with_weights(call.mask, call.sample_weight)
    indices = call.target.long()  # of the smaller unsigned types torch knows few operations
    valid = valid_positions(positions, mask, call.lengths, indices, call.ignore_index)
    rows = None if valid is None or valid.all() else valid.reshape(-1).nonzero().squeeze(1)

    def of_rows(tensor: Any) -> Any:
        """What counts of something that describes positions."""
        if tensor is None:
            return None
        tensor = tensor.detach().expand(positions).reshape(-1)
        return tensor if rows is None else tensor[rows]

    targets = checked_indices(of_rows(indices), classes, rows, positions)
    count, weights = len(targets), of_rows(call.sample_weight)
    if call.reduction == "mean":
        by = float(_composed.divisor(targets.shape, targets, call.weight, None, weights))
    else:
        by = 1.0
    if not count or not by:
        return None
    if call.reduction == "none" and upstream is not None:
        factors = of_rows(upstream).double()
    else:
        factors = torch.full((count,), (1.0 if upstream is None else upstream.item()) / by, dtype=torch.float64)
    given = _numbers(call) | {"axis": 1, "ignore_index": None, "reduction": "none"}
    if call.weight is not None:
        given["class_weight"] = array(call.weight)
    flat, transposed = x.reshape(-1, features), w.t()
    at_a_time = gradient_chunks(Sizes(count, features, classes, x.itemsize, False, False), DEFAULT_BYTES, False).rows
    parts = spans(count, at_a_time)
    by_x = (torch.empty if rows is None else torch.zeros)(flat.shape, dtype=x.dtype) if needed[0] else None
    by_w = by_b = None
    losses = torch.empty(count)
    for begin, end in parts:
        part = slice(begin, end)
        chosen = part if rows is None else rows[part]
        hidden = flat[chosen]
        logits = hidden @ transposed if b is None else torch.addmm(b, hidden, transposed)
        of_part = given if weights is None else given | {"sample_weight": array(weights[part])}
        scores, right = array(logits), array(targets[part])
        if not any(needed):
            fastxent.cross_entropy(scores, right, out=array(losses[part]), **of_part)
            continue
        fastxent.cross_entropy_and_grad(
            scores, right, out=array(losses[part]), out_grad=scores, upstream=array(factors[part]), **of_part
        )
        if by_x is not None:
            by_x[chosen] = logits @ w
        if needed[1]:
            by_w = _added(by_w, logits.t() @ hidden, len(parts))
        if needed[2]:
            by_b = _added(by_b, logits.sum(0, dtype=torch.float32), len(parts))
    by_x = None if by_x is None else by_x.reshape(x.shape)
    grads = [None if grad is None else grad.to(x.dtype) for grad in (by_x, by_w, by_b)]
    if call.reduction != "none":
        return (losses.sum(dtype=torch.float64) / by).float(), *grads
    if rows is not None:
        losses = torch.zeros(positions.numel()).index_copy_(0, rows, losses)
    return losses.reshape(positions), *grads


def _added(total: Any, part: Tensor, parts: int) -> Tensor:
    """A sum of several chunks is one of float32, rounded once; that of a single one is itself."""
    return part if parts == 1 else part.float() if total is None else total.add_(part)


# --- operators, for compilers


_ARGUMENTS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? mask, "
    "Tensor? lengths, Tensor? sample_weight, str reduction, int ignore_index, float label_smoothing, float z_loss, "
    "float softcap, bool[] needed"
)


def _flat(call: Call) -> tuple[Any, ...]:
    """A call as the operators' arguments."""
    return (
        call.target, call.weight, call.mask, call.lengths, call.sample_weight, call.reduction, call.ignore_index,
        call.label_smoothing, call.z_loss, call.softcap,
    )


def _run(upstream: Any, x: Tensor, w: Tensor, b: Any, *rest: Any) -> tuple[Tensor, ...]:
    target, weight, mask, lengths, sample_weight, reduction, *numbers, needed = rest
    call = Call(target, weight, None, mask, lengths, sample_weight, x.dtype, reduction, *numbers)
    loss, *grads = loss_and_grads(x, w, b, call, upstream, needed)
    return loss, *(x.new_empty(0) if grad is None else grad.contiguous() for grad in grads)


def _fake_grads(x: Tensor, w: Tensor, b: Any, needed: Any) -> list[Tensor]:
    return [
        x.new_empty(tensor.shape if tensor is not None and need else 0)
        for tensor, need in zip((x, w, b), needed, strict=True)
    ]


@torch.library.custom_op(
    "fastxent::linear_cross_entropy",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _operator(x: Tensor, w: Tensor, b: Any, *rest: Any) -> tuple[Tensor, ...]:
    return _run(None, x, w, b, *rest)


@_operator.register_fake
def _(x: Tensor, w: Tensor, b: Any, *rest: Any) -> tuple[Tensor, ...]:
    positions = x.shape[:-1] if rest[5] == "none" else ()
    return x.new_empty(positions, dtype=computed(x.dtype)), *_fake_grads(x, w, b, rest[-1])


@torch.library.custom_op(
    "fastxent::linear_cross_entropy_grad",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor upstream, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _operator_grad(upstream: Tensor, x: Tensor, w: Tensor, b: Any, *rest: Any) -> tuple[Tensor, ...]:
    return _run(upstream, x, w, b, *rest)[1:]


@_operator_grad.register_fake
def _(upstream: Tensor, x: Tensor, w: Tensor, b: Any, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(_fake_grads(x, w, b, rest[-1]))


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *ctx.options, now = inputs[8:]
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    ctx.at_once = any(now)
    ctx.save_for_backward(*(grads if ctx.at_once else inputs[:8]))


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[:3]
    if ctx.at_once:
        found = [grad * upstream for grad in ctx.saved_tensors]  # a tensor without axes does not promote
    else:
        found = _operator_grad(upstream, *ctx.saved_tensors, *ctx.options, needed)
    grads = [grad if need else None for grad, need in zip(found, needed, strict=True)]
    return *grads, *[None] * 11


_operator.register_autograd(_backward, setup_context=_save)
