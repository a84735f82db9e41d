"""Putting fastxent in the place of ``torch.nn.functional.cross_entropy`` for a while."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from typing import Any

import torch
from torch import Tensor

from . import functional
from ._tensors import FLOATS

_lock = threading.Lock()
_depth = 0
_original: Any = None


class patch(ContextDecorator):
    """A context manager, and a decorator, under which torch's ``cross_entropy`` is computed by fastxent.

    ``torch.nn.functional.cross_entropy`` is replaced, for all threads: what calls it as an attribute of that module
    (``torch.nn.CrossEntropyLoss``, the models of Hugging Face Transformers) needs no change, while a name that was
    imported out of it before stays torch's. Logits on the CPU of a floating-point dtype go to
    `fastxent.torch.cross_entropy`; whatever else passes through to torch. Contexts nest; the last one to end brings
    torch's function back.

    Examples
    --------
    >>> import torch, fastxent.torch
    >>> with fastxent.torch.patch():
    ...     loss = torch.nn.CrossEntropyLoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
    >>> loss
    tensor(1.3863)
    """

    def __enter__(self) -> patch:
        global _depth, _original
        with _lock:
            if not _depth:
                _original = torch.nn.functional.cross_entropy
                torch.nn.functional.cross_entropy = _cross_entropy
            _depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        global _depth
        with _lock:
            _depth -= 1
            if not _depth:
                torch.nn.functional.cross_entropy = _original


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``torch.nn.functional.cross_entropy``, computed by fastxent where the logits are on the CPU."""
    ours = isinstance(input, Tensor) and input.is_cpu and input.dtype in FLOATS and input.layout is torch.strided
    function = functional.cross_entropy if ours else _original
    result: Tensor = function(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    return result
