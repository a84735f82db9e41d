"""The operators that torch's dispatcher knows: what torch.compile, torch.export, torch.func and double backward use.

``fastxent::cross_entropy`` gives the loss of each position, ``fastxent::cross_entropy_grad`` its gradient; softmax and
log_softmax come with theirs. Each has a kernel for the CPU, a fake one (shapes and dtypes), a derivative and a rule for
vmap. Positions do not know of each other here, so a rule for vmap only has to put the new axis in front; reductions
are made of torch's own operations (`_composed.py`), which a compiler fuses.

The derivative of a gradient is taken by torch, of the closed form in torch's own operations: that is right to any
order, and nobody waits for it.

What is called is `losses`, `softmax`, `log_softmax` and `log_softmax_grad`, `softmax_grad`: the operator itself where a
compiler looks on, else a node of autograd around it, because the derivatives of operators that are written in Python
are unknown to torch.func, and those of nodes are known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastxent

from ._closed_form import (
    along,
    gradient,
    log_probs,
    log_softmax_gradient,
    smoothed,
    softmax_gradient,
    unmasked,
    valid_positions,
)
from ._tensors import array, empty_like, optional_array, threads

_OPTIONS = (
    "Tensor? weight, Tensor? mask, Tensor? lengths, int axis, int? ignore_index, float label_smoothing, float z_loss, "
    "float softcap"
)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses of logits of `dtype`."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _positions(x: Tensor, axis: int) -> tuple[int, ...]:
    shape = tuple(x.shape)
    return shape[:axis] + shape[axis + 1 :]


def _options(weight: Any, mask: Any, lengths: Any, axis: int, ignore_index: Any, *numbers: float) -> dict[str, Any]:
    smoothing, z_loss, softcap = numbers
    name = "cross_entropy"
    return {
        "class_weight": optional_array(weight, "weight", name),
        "mask": optional_array(mask, "mask", name),
        "lengths": optional_array(lengths, "lengths", name),
        "axis": axis,
        "ignore_index": ignore_index,
        "label_smoothing": smoothing,
        "z_loss": z_loss,
        "softcap": softcap or None,
        "reduction": "none",
        "num_threads": threads(),
    }


# --- losses


@torch.library.custom_op(
    "fastxent::cross_entropy",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor x, Tensor target, {_OPTIONS}) -> (Tensor, Tensor)",
)
def cross_entropy(x: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """The loss of each position, and the statistics that spare the gradient a pass."""
    losses, saved = fastxent.cross_entropy(array(x), array(target), return_saved=True, **_options(*options))
    return torch.from_numpy(losses), torch.from_numpy(saved)


@cross_entropy.register_fake
def _(x: Tensor, target: Tensor, weight: Any, mask: Any, lengths: Any, axis: int, *rest: Any) -> tuple[Tensor, Tensor]:
    positions = _positions(x, axis)
    dtype = computed(x.dtype)
    return x.new_empty(positions, dtype=dtype), x.new_empty((*positions, 2), dtype=dtype)


def _save_for_losses(ctx: Any, inputs: Any, output: Any) -> None:
    x, target, weight, mask, lengths, *ctx.options = inputs
    _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(x, target, weight, mask, lengths, saved)


def _losses_backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    x, target, weight, mask, lengths, saved = ctx.saved_tensors
    axis, ignore_index, smoothing, _, softcap = ctx.options
    grads: list[Any] = [None] * 10
    if ctx.needs_input_grad[0]:
        grads[0] = losses_grad(upstream, x, target, saved, weight, mask, lengths, *ctx.options)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        valid = valid_positions(upstream.shape, mask, lengths, target, ignore_index)
        logs = unmasked(-upstream.unsqueeze(axis) * log_probs(x, axis, softcap), valid, axis)
        if ctx.needs_input_grad[1]:
            by_class = logs if weight is None else logs * along(weight, x.ndim, axis)
            grads[1] = ((1 - smoothing) * by_class).to(target.dtype)
        if ctx.needs_input_grad[2]:
            if valid is not None and not target.is_floating_point():
                target = torch.where(valid, target.long(), 0)
            shares = logs * smoothed(target, x.shape[axis], axis, smoothing, logs.dtype)
            positions = [i for i in range(x.ndim) if i != axis]  # torch takes no axes for all of them
            grads[2] = (shares.sum(positions) if positions else shares).to(weight.dtype)
    return tuple(grads)


@torch.library.custom_op(
    "fastxent::cross_entropy_grad",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor upstream, Tensor x, Tensor target, Tensor saved, {_OPTIONS}) -> Tensor",
)
def cross_entropy_grad(upstream: Tensor, x: Tensor, target: Tensor, saved: Tensor, *options: Any) -> Tensor:
    """The gradient of the sum of upstream * losses by the logits."""
    grad = empty_like(x)
    given = _options(*options) | {"upstream": array(upstream), "saved": array(saved)}
    fastxent.cross_entropy_grad(array(x), array(target), out_grad=array(grad), **given)
    return grad


@cross_entropy_grad.register_fake
def _(upstream: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _save_for_grad(ctx: Any, inputs: Any, output: Any) -> None:
    upstream, x, target, _, weight, mask, lengths, *ctx.options = inputs
    ctx.save_for_backward(upstream, x, target, weight, mask, lengths)


def _grad_backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4)]
    upstream, x, target, weight, mask, lengths = ctx.saved_tensors

    def form(upstream: Tensor, x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return gradient(upstream, x, target, weight, mask, lengths, *ctx.options)

    du, dx, dq, dw = _pull_back(form, needed, v, upstream, x, target, weight)
    return (du, dx, dq, None, dw, *[None] * 7)


def _pull_back(form: Any, needed: list[bool], v: Tensor, *inputs: Any) -> list[Any]:
    """The gradients of the sum of v * form(*inputs), themselves differentiable."""
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]

    def of_wanted(*given: Tensor) -> Tensor:
        rest = iter(given)
        return form(*(next(rest) if need else t for t, need in zip(inputs, needed, strict=True)))

    found = iter(torch.func.vjp(of_wanted, *wanted)[1](v))
    return [next(found) if need else None for need in needed]


def _node(operator: Any, save: Any, backward: Any) -> Any:
    """A function that calls `operator`: by a node of autograd that torch.func knows, unless a compiler looks on."""
    name = operator._opoverload._opname

    class Node(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Any) -> Any:
            return operator(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            save(ctx, inputs, output)

    Node.backward = staticmethod(backward)
    Node.__name__ = Node.__qualname__ = "".join(word.capitalize() for word in name.split("_"))
    operator.register_autograd(backward, setup_context=save)

    def call(*inputs: Any) -> Any:
        return operator(*inputs) if torch.compiler.is_compiling() else Node.apply(*inputs)

    return call


losses = _node(cross_entropy, _save_for_losses, _losses_backward)
losses_grad = _node(cross_entropy_grad, _save_for_grad, _grad_backward)


# --- activations


def _activation(name: str, closed_gradient: Any) -> tuple[Any, Any]:
    forward, backward = getattr(fastxent, name), getattr(fastxent, f"{name}_grad")

    @torch.library.custom_op(
        f"fastxent::{name}", mutates_args=(), device_types="cpu", schema="(Tensor x, int axis) -> Tensor"
    )
    def activation(x: Tensor, axis: int) -> Tensor:
        y = empty_like(x)
        forward(array(x), axis=axis, out=array(y), num_threads=threads())
        return y

    @torch.library.custom_op(
        f"fastxent::{name}_grad",
        mutates_args=(),
        device_types="cpu",
        schema="(Tensor y, Tensor upstream, int axis) -> Tensor",
    )
    def activation_grad(y: Tensor, upstream: Tensor, axis: int) -> Tensor:
        grad = empty_like(y)
        backward(array(y), array(upstream), axis=axis, out=array(grad), num_threads=threads())
        return grad

    def first(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return grad_node(ctx.saved_tensors[0], upstream, ctx.axis), None

    def save_output(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.axis = inputs[1]
        ctx.save_for_backward(output)

    def save_inputs(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.axis = inputs[2]
        ctx.save_for_backward(*inputs[:2])

    def second(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        def form(y: Tensor, upstream: Tensor) -> Tensor:
            return closed_gradient(y, upstream, ctx.axis)

        return (*_pull_back(form, list(ctx.needs_input_grad[:2]), v, *ctx.saved_tensors), None)

    activation.register_fake(lambda x, axis: torch.empty_like(x))
    activation_grad.register_fake(lambda y, upstream, axis: torch.empty_like(y))
    grad_node = _node(activation_grad, save_inputs, second)
    activation.register_vmap(lambda info, dims, x, axis: (activation(x.movedim(dims[0], 0), axis + 1), 0))

    def batched(info: Any, dims: Any, y: Tensor, upstream: Tensor, axis: int) -> tuple[Tensor, int]:
        y, upstream = (in_front(t, dim, info.batch_size) for t, dim in ((y, dims[0]), (upstream, dims[1])))
        return activation_grad(y, upstream, axis + 1), 0

    activation_grad.register_vmap(batched)
    return _node(activation, save_output, first), grad_node


softmax, softmax_grad = _activation("softmax", softmax_gradient)
log_softmax, log_softmax_grad = _activation("log_softmax", log_softmax_gradient)


# --- vmap


def in_front(tensor: Any, dim: int | None, size: int) -> Any:
    """A tensor with the axis of vmap first; one that has none is repeated, without a copy."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _batch_mask(mask: Any, dim: int | None, size: int, ndim: int) -> Any:
    """A mask with the axis of vmap, which must stay in front when it is broadcast to positions of `ndim` axes."""
    if mask is None or dim is None:
        return mask
    mask = mask.movedim(dim, 0)
    return mask.reshape(size, *[1] * (ndim - mask.ndim + 1), *mask.shape[1:])


def _batch_losses(info: Any, dims: Any, x: Tensor, target: Tensor, *rest: Any) -> Any:
    size = info.batch_size
    weight, mask, lengths, axis, *numbers = rest
    if dims[2] is not None:
        each = [cross_entropy(*_one(i, dims, (x, target, *rest))) for i in range(size)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0, 0)
    ndim = x.ndim - (dims[0] is not None) - 1
    x, target, lengths = (in_front(t, d, size) for t, d in ((x, dims[0]), (target, dims[1]), (lengths, dims[4])))
    mask = _batch_mask(mask, dims[3], size, ndim)
    return cross_entropy(x, target, weight, mask, lengths, axis + 1, *numbers), (0, 0)


def _batch_grad(info: Any, dims: Any, upstream: Tensor, x: Tensor, target: Tensor, saved: Tensor, *rest: Any) -> Any:
    size = info.batch_size
    weight, mask, lengths, axis, *numbers = rest
    if dims[4] is not None:
        every = (upstream, x, target, saved, *rest)
        return torch.stack([cross_entropy_grad(*_one(i, dims, every)) for i in range(size)]), 0
    ndim = x.ndim - (dims[1] is not None) - 1
    upstream, x, target, saved = (
        in_front(t, d, size) for t, d in zip((upstream, x, target, saved), dims[:4], strict=True)
    )
    mask = _batch_mask(mask, dims[5], size, ndim)
    lengths = in_front(lengths, dims[6], size)
    return cross_entropy_grad(upstream, x, target, saved, weight, mask, lengths, axis + 1, *numbers), 0


def _one(i: int, dims: Any, arguments: Any) -> list[Any]:
    """The arguments of one call of those that vmap stands for."""
    return [a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)]


cross_entropy.register_vmap(_batch_losses)
cross_entropy_grad.register_vmap(_batch_grad)
