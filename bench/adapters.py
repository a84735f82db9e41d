"""fastxent's adapters, raced against the framework's own function on the same tensors, with the same autograd.

An adapter is no peer of `fastxent` on arrays: it has suites, bars and a row in the table of memory of its own.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from .baselines import Jax, Torch
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


class FastxentJax(Jax):
    """fastxent.jax in optax's place: the arrays, jit and value_and_grad are those of `Jax`."""

    name = "fastxent.jax"

    @property
    def version(self) -> str:
        import fastxent

        return f"{fastxent.__version__}, jax {importlib.metadata.version('jax')}"

    def loss(self, data: Data) -> Callable[[Any, Any], Any]:
        from fastxent.jax import cross_entropy

        case = data.case
        given: dict[str, Any] = {"axis": case.axis, "label_smoothing": case.label_smoothing}
        if data.class_weight is not None:
            given["class_weight"] = data.class_weight
        return lambda x, t: cross_entropy(x, t, **given)

    def activations(self) -> Any:
        import fastxent.jax

        return fastxent.jax


def hessian_calls(data: Data, threads: int) -> dict[str, Calls]:
    """Gradient and diagonal Hessian of the multinomial loss, by fastxent.sklearn and by scikit-learn: checked alike."""
    from sklearn._loss.loss import HalfMultinomialLoss

    from fastxent.sklearn import multinomial_gradient_hessian as ours

    x, y = data.rows, data.flat_targets
    floats, theirs = y.astype(x.dtype), HalfMultinomialLoss(n_classes=data.case.classes).gradient_hessian
    given = {name: np.empty_like(x) for name in ("gradient_out", "hessian_out")}
    for one, other in zip(ours(x, y), theirs(floats, x, n_threads=threads), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=64 * np.finfo(x.dtype).eps)
    return {
        "fastxent.sklearn": {"both": lambda: ours(x, y), "given": lambda: ours(x, y, **given)},
        "sklearn": {
            "both": lambda: theirs(floats, x, n_threads=threads),
            "given": lambda: theirs(floats, x, n_threads=threads, **given),
        },
    }


ADAPTERS: list[type[Peer]] = [FastxentTorch, FastxentJax]


def installed(*frameworks: str) -> bool:
    """Whether what an adapter is raced with is there."""
    return all(importlib.util.find_spec(framework) for framework in frameworks)
