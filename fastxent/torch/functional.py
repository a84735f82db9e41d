"""Losses with the signatures and conventions of ``torch.nn.functional``, computed by fastxent.

Whatever torch's own function takes, these take, with the same meaning: the class axis is 1 (0 for a single unbatched
position), a reduced loss is a tensor without axes, in the logits' dtype. What torch does not know comes as keywords
after torch's own arguments.

Ordinary tensors go the short way (`_eager.py`). Under torch.compile, torch.export and torch.func, and where a target or
a weight needs a gradient, the same loss is made of operators (`_operators.py`, `_composed.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _composed, _eager, _linear
from ._composed import Call
from ._judging import (
    REDUCTIONS,
    check_given,
    check_shapes,
    checked_classes,
    checked_reduction,
    describing,
    short_way,
    unbatched,
    under_autocast,
)
from ._tensors import check_tensor, plain

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "linear_cross_entropy", "nll_loss"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    r"""Compute the cross-entropy between softmax(input) and target, as ``torch.nn.functional.cross_entropy`` does.

    .. math:: \ell = -\sum_c w_c \, q_c \log \mathrm{softmax}(x)_c

    with q of 1 - `label_smoothing` at the target's class (or `target` times that), plus `label_smoothing` / C at each.

    Parameters
    ----------
    input : Tensor
        Logits of shape (C,), (N, C) or (N, C, d1, ...), on the CPU, of any strides: float16, bfloat16, float32 or
        float64.
    target : Tensor
        Class indices: integers of the shape of `input` without C. Or class probabilities: floats of its whole shape,
        through which gradients flow as well.
    weight : Tensor, optional
        Of shape (C,): w above.
    size_average, reduce : bool, optional
        torch's deprecated names for `reduction`; with its warning.
    ignore_index : int, default -100
        Positions with this class index do not count. For class probabilities it must be negative, as in torch.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the sum of the weights of the targets; for class probabilities by the number of positions.
    label_smoothing : float, default 0.0
        From 0 to 1.
    mask : Tensor of bool or int, optional
        Which positions count; broadcasts to the shape of `input` without C. What does not count is not looked at.
    lengths : Tensor of int, optional
        How many steps of the last axis count: the shape of `input` without C and that axis.
    sample_weight : Tensor, optional
        Multiplies the loss of a position, and enters the divisor of "mean"; broadcasts like `mask`; differentiable.
    z_loss : float, default 0.0
        Adds z_loss * logsumexp(x)**2 to the loss of a position.
    softcap : float, optional
        Replaces x by softcap * tanh(x / softcap).
    inplace_backward : bool, default False
        Permits the backward pass to write the gradient over `input`, which must not be a leaf or a view of one: no
        memory for it is needed, and autograd reports whoever needs `input` afterwards. Compiled code plans its memory
        itself.

    Returns
    -------
    Tensor
        A tensor without axes, for "none" of the positions' shape; of the dtype that torch returns: that of `input`,
        promoted with class probabilities, float32 for half types under autocast.

    Raises
    ------
    IndexError
        If the class index of a position that counts is outside [0, C).
    TypeError
        If an argument is no tensor, has a dtype that is not named above, or is not on the CPU.
    ValueError
        If a shape or a number does not fit.

    See Also
    --------
    fastxent.cross_entropy, fastxent.torch.patch

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], requires_grad=True)
    >>> loss = fastxent.torch.cross_entropy(logits, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 4), [round(g, 4) for g in logits.grad[0].tolist()]
    (0.3606, [-0.0781, 0.0571, 0.021])

    References
    ----------
    .. [1] ``torch.nn.CrossEntropyLoss``, the documentation of PyTorch.
    """
    if (
        weight is size_average is reduce is mask is lengths is sample_weight is softcap is None
        and not (z_loss or inplace_backward)
        and reduction in REDUCTIONS
        and (dtype := plain(input, target))
    ):
        return _eager.plain_cross_entropy(input, target, dtype, reduction, ignore_index, label_smoothing)
    reduction = checked_reduction(reduction, size_average, reduce)
    check_tensor(input, "input", "cross_entropy")
    result, indices = checked_classes(input, target, weight, "cross_entropy")
    if indices:
        target = unbatched(input, target)
    elif ignore_index >= 0:
        raise ValueError("cross_entropy(): ignore_index is not supported for class probabilities; use mask")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"cross_entropy(): softcap must be greater than 0, got {softcap}")
    if mask is not None or lengths is not None or sample_weight is not None:
        mask, lengths, sample_weight = describing(mask, lengths, sample_weight, "cross_entropy")
    leaf = input.is_leaf or (input._base is not None and input._base.is_leaf)
    if inplace_backward and input.requires_grad and leaf:
        raise ValueError("cross_entropy(): inplace_backward would overwrite a leaf of the graph; give it a result")
    call = Call(
        target, weight, None, mask, lengths, sample_weight, result, reduction, ignore_index, label_smoothing, z_loss,
        softcap or 0.0, inplace_backward,
    )
    if short_way(input, call):
        return _eager.cross_entropy(input, call)
    check_shapes(input, call)
    return _composed.cross_entropy(input, call)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Compute the loss of log-probabilities, as ``torch.nn.functional.nll_loss`` does.

    .. math:: \ell = -w_t \, x_t

    Parameters
    ----------
    input : Tensor
        Log-probabilities, shaped and stored like the logits of `cross_entropy`.
    target : Tensor
        Class indices: integers of the shape of `input` without C.
    weight, size_average, ignore_index, reduce, reduction, mask, lengths, sample_weight
        As for `cross_entropy`.

    Returns
    -------
    Tensor
        As from `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> fastxent.torch.nll_loss(torch.tensor([[-1.0, -0.5], [-2.0, -0.25]]), torch.tensor([0, 1]))
    tensor(0.6250)
    """
    reduction = checked_reduction(reduction, size_average, reduce)
    check_tensor(input, "input", "nll_loss")
    result, indices = checked_classes(input, target, weight, "nll_loss")
    if not indices:
        raise TypeError(f"nll_loss(): target has dtype {target.dtype}; expected class indices, integers")
    mask, lengths, sample_weight = describing(mask, lengths, sample_weight, "nll_loss")
    target = unbatched(input, target)
    call = Call(target, weight, None, mask, lengths, sample_weight, result, reduction, ignore_index)
    if short_way(input, call):
        return _eager.nll_loss(input, call)
    check_shapes(input, call)
    return _composed.nll_loss(input, call)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    r"""Compute the cross-entropy of a linear layer, as torch's function of the same name does, without its logits.

    .. math:: \ell = \mathrm{cross\_entropy}(h W^T + b, t)

    Logits are made chunk by chunk, within 256 MiB. A reduced loss computes its gradients in the same pass, and they
    are kept for the backward pass; for "none" the backward pass makes the logits again.

    Parameters
    ----------
    input : Tensor
        h, of shape (D,), (N, D) or, beyond torch, (N, d1, ..., D); on the CPU: float16, bfloat16, float32, float64.
    linear_weight : Tensor
        W, of shape (C, D) and the dtype of `input`; (C, d1, ..., D) for a target of shape (N, d1, ...).
    target : Tensor
        Class indices: integers of the shape of `input` without D. Class probabilities, and weights (C, d1, ..., D), are
        taken as well; their logits are made all at once.
    linear_bias : Tensor, optional
        b, of the shape of `linear_weight` without D.
    weight : Tensor, optional
        Of shape (C,): multiplies the losses of a class.
    reduction : {"mean", "sum", "none"}
        As for `cross_entropy`.
    ignore_index : int, optional
        Positions with this class index do not count; None: -100. Not for class probabilities.
    label_smoothing : float, default 0.0
        From 0 to 1.
    options : None
        How torch cuts the product up; here that is chosen by itself.
    mask, lengths, sample_weight, z_loss, softcap
        As for `cross_entropy`. Beside a `sample_weight` that needs a gradient the logits are made all at once.

    Returns
    -------
    Tensor
        As from `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As for `cross_entropy`.
    RuntimeError
        If a second derivative is asked for.

    See Also
    --------
    fastxent.linear_cross_entropy, fastxent.linear_cross_entropy_and_grad

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> layer = torch.nn.Linear(2, 3)
    >>> hidden, target = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([2, 0])
    >>> loss = fastxent.torch.linear_cross_entropy(hidden, layer.weight, target, linear_bias=layer.bias)
    >>> loss.backward()
    >>> bool(loss.isclose(fastxent.torch.cross_entropy(layer(hidden), target))), layer.weight.grad.shape
    (True, torch.Size([3, 2]))

    References
    ----------
    .. [1] E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024).
    """
    name = "linear_cross_entropy"
    reduction = checked_reduction(reduction, None, None)
    if options is not None:
        raise ValueError(f"{name}(): options say how torch cuts the product up; fastxent chooses: leave them out")
    check_tensor(input, "input", name)
    check_tensor(linear_weight, "linear_weight", name)
    if linear_bias is not None:
        check_tensor(linear_bias, "linear_bias", name)
    input, linear_weight, linear_bias = _linear.cast(input, linear_weight, linear_bias)
    _linear.check_operands(input, linear_weight, linear_bias)
    result, indices = checked_classes(input, target, weight, name)
    if not indices and ignore_index is not None:
        raise ValueError(f"{name}(): ignore_index is not supported for class probabilities; use mask")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"{name}(): softcap must be greater than 0, got {softcap}")
    mask, lengths, sample_weight = describing(mask, lengths, sample_weight, name)
    ignore_index = -100 if ignore_index is None else ignore_index
    if _linear.without_logits(input, linear_weight, linear_bias, target, weight, sample_weight):
        call = Call(
            unbatched(input, target), weight, None, mask, lengths, sample_weight, result, reduction, ignore_index,
            label_smoothing, z_loss, softcap or 0.0,
        )
        return _linear.linear_cross_entropy(input, linear_weight, linear_bias, call)
    if not indices and input.ndim > 2:
        target = target.movedim(-1, 1)
    return cross_entropy(
        _linear.logits_of(input, linear_weight, linear_bias), target, weight, ignore_index=ignore_index,
        reduction=reduction, label_smoothing=label_smoothing, mask=mask, lengths=lengths, sample_weight=sample_weight,
        z_loss=z_loss, softcap=softcap,
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Compute the binary cross-entropy of sigmoid(input), as torch's function of the same name does.

    .. math:: \ell = w \left( p \, y \log(1 + e^{-x}) + (1 - y) \log(1 + e^x) \right)

    Parameters
    ----------
    input : Tensor
        Logits of any shape, on the CPU; float16, bfloat16, float32, float64.
    target : Tensor
        Of the same shape: from 0 to 1; differentiable if a float.
    weight : Tensor, optional
        w above: multiplies the loss of an element, and does not enter the divisor of "mean"; broadcasts to `input`.
    size_average, reduce : bool, optional
        torch's deprecated names for `reduction`; with its warning.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of elements, or the sum of their `sample_weight`.
    pos_weight : Tensor, optional
        p above; broadcasts to `input`.
    mask, lengths, sample_weight
        As for `cross_entropy`, for single elements; time is the last of two or more axes.

    Returns
    -------
    Tensor
        A tensor without axes, for "none" of the shape of `input`; of its dtype promoted with that of `target`.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> fastxent.torch.binary_cross_entropy_with_logits(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor(0.6931)
    """
    name = "binary_cross_entropy_with_logits"
    reduction = checked_reduction(reduction, size_average, reduce)
    check_tensor(input, "input", name)
    for what, tensor in (("target", target), ("weight", weight), ("pos_weight", pos_weight)):
        if tensor is not None or what == "target":
            check_given(tensor, what, name)
    if target.shape != input.shape:
        raise ValueError(f"{name}(): target has shape {tuple(target.shape)}, input {tuple(input.shape)}")
    result = under_autocast(torch.promote_types(input.dtype, target.dtype))
    mask, lengths, sample_weight = describing(mask, lengths, sample_weight, name)
    call = Call(target, weight, pos_weight, mask, lengths, sample_weight, result, reduction)
    if short_way(input, call):
        return _eager.binary_cross_entropy_with_logits(input, call)
    return _composed.binary_cross_entropy_with_logits(input, call)
