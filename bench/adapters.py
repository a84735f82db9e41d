"""fastxent's adapters, raced against the framework's own function on the same tensors, with the same autograd.

An adapter is no peer of `fastxent` on arrays: it has suites, bars and a row in the table of memory of its own.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

from .baselines import Torch
from .cases import Data
from .peer import Calls, Peer


class FastxentTorch(Torch):
    """fastxent.torch in torch's place: the tensors, the options and the way to the gradient are those of `Torch`."""

    name = "fastxent.torch"

    @property
    def version(self) -> str:
        import fastxent

        return f"{fastxent.__version__}, torch {importlib.metadata.version('torch')}"

    def calls(self, data: Data) -> Calls:
        import torch

        import fastxent.torch as ours

        x, t, options = self.tensors(data)
        leaf = x.detach().requires_grad_()

        def both() -> Any:
            loss = ours.cross_entropy(leaf, t, **options)
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

        return {
            "forward": lambda: ours.cross_entropy(x, t, **options),
            "both": both,
            "softmax": lambda: ours.softmax(x, 1),
            "log_softmax": lambda: ours.log_softmax(x, 1),
        }


ADAPTERS: list[type[Peer]] = [FastxentTorch]


def installed(framework: str) -> bool:
    """Whether the framework of an adapter can be raced here."""
    return importlib.util.find_spec(framework) is not None
