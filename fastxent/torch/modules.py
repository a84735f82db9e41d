"""Modules that are torch's own, but for where their forward pass is computed.

Each is a subclass of the module it stands in for: ``isinstance``, state dictionaries, ``copy.deepcopy`` and pickles
work as they do there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import activations, functional

__all__ = ["CrossEntropyLoss", "LogSoftmax", "NLLLoss"]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    r"""Cross-entropy of logits, as ``torch.nn.CrossEntropyLoss``.

    .. math:: \ell = -\sum_c w_c \, q_c \log \mathrm{softmax}(x)_c

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As for `fastxent.torch.cross_entropy`.
    z_loss, softcap, inplace_backward
        As for `fastxent.torch.cross_entropy`.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> loss = fastxent.torch.CrossEntropyLoss(reduction="sum")
    >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]), mask=torch.tensor([True, False]))
    tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.softcap = softcap
        self.inplace_backward = inplace_backward

    def forward(
        self, input: Tensor, target: Tensor, *, mask: Any = None, lengths: Any = None, sample_weight: Any = None
    ) -> Tensor:
        """Compute the loss; the parameters are those of `fastxent.torch.cross_entropy`."""
        return functional.cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing, mask=mask, lengths=lengths, sample_weight=sample_weight,
            z_loss=self.z_loss, softcap=self.softcap, inplace_backward=self.inplace_backward,
        )

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses: the options that are not at their defaults."""
        shown = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "softcap": None}
        return ", ".join(f"{k}={getattr(self, k)!r}" for k, default in shown.items() if getattr(self, k) != default)


class NLLLoss(torch.nn.NLLLoss):
    r"""The loss of log-probabilities, as ``torch.nn.NLLLoss``.

    .. math:: \ell = -w_t \, x_t

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction
        As for `fastxent.torch.nll_loss`.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> fastxent.torch.NLLLoss()(torch.tensor([[-1.0, -0.5]]), torch.tensor([1]))
    tensor(0.5000)
    """

    def forward(
        self, input: Tensor, target: Tensor, *, mask: Any = None, lengths: Any = None, sample_weight: Any = None
    ) -> Tensor:
        """Compute the loss; the parameters are those of `fastxent.torch.nll_loss`."""
        return functional.nll_loss(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            mask=mask, lengths=lengths, sample_weight=sample_weight,
        )


class LogSoftmax(torch.nn.LogSoftmax):
    r"""The logarithm of the softmax, as ``torch.nn.LogSoftmax``.

    .. math:: y_c = x_c - \log \sum_k \exp(x_k)

    Parameters
    ----------
    dim : int, optional
        The axis of the classes.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> fastxent.torch.LogSoftmax(1)(torch.zeros(1, 2))
    tensor([[-0.6931, -0.6931]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Compute the activation."""
        return activations.log_softmax(input, self.dim, _stacklevel=5)
