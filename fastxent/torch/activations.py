"""Softmax and log_softmax with the signatures of ``torch.nn.functional``, computed by fastxent.

They take the ways that the losses of `functional` take: the short one, or an operator.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from . import _eager, _operators
from ._tensors import check_tensor, undisturbed

__all__ = ["log_softmax", "softmax"]


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    r"""Compute the logarithm of the softmax, as ``torch.nn.functional.log_softmax`` does.

    .. math:: y_c = x_c - \log \sum_k \exp(x_k)

    Parameters
    ----------
    input : Tensor
        On the CPU, of any shape and strides; float16, bfloat16, float32, float64.
    dim : int, optional
        The axis of the classes. Without one, torch's old choice, with its warning.
    _stacklevel : int
        torch's: where that warning points to.
    dtype : torch.dtype, optional
        What `input` is converted to first.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input` (or `dtype`).

    Raises
    ------
    TypeError
        If `input` is no tensor, is of another dtype, or is not on the CPU.
    IndexError
        If `dim` is out of range.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> fastxent.torch.log_softmax(torch.zeros(1, 4), 1)
    tensor([[-1.3863, -1.3863, -1.3863, -1.3863]])
    """
    return _activation("log_softmax", input, dim, _stacklevel, dtype)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    r"""Compute the softmax, as ``torch.nn.functional.softmax`` does.

    .. math:: y_c = \exp(x_c) / \sum_k \exp(x_k)

    Parameters
    ----------
    input, dim, _stacklevel, dtype
        As for `log_softmax`.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input` (or `dtype`).

    Raises
    ------
    IndexError, TypeError
        As for `log_softmax`.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> fastxent.torch.softmax(torch.zeros(1, 4), 1)
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return _activation("softmax", input, dim, _stacklevel, dtype)


def _activation(name: str, input: Any, dim: int | None, stacklevel: int, dtype: Any) -> Tensor:
    if dtype is not None and isinstance(input, Tensor):
        input = input.to(dtype)
    check_tensor(input, "input", name)
    ndim = input.ndim
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an "
            "argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if ndim in (0, 1, 3) else 1
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(f"{name}(): dim must be from {-max(ndim, 1)} to {max(ndim, 1) - 1}, got {dim}")
    if ndim == 0:
        return _activation(name, input.reshape(1), 0, stacklevel, None).reshape(())
    axis = dim % ndim
    if undisturbed(input):
        return _eager.activation(name, input, axis)
    operator = _operators.softmax if name == "softmax" else _operators.log_softmax
    result: Tensor = operator(input, axis)
    return result
