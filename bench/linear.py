"""Linear cross-entropy against those who have all the logits, or chunks of them: time and peak memory.

Every contestant gets the same hidden states (N, D), weights (V, D) and class indices, float32, converted beforehand.
`forward` is the mean loss, `both` the mean loss and new gradients of hidden states and weights. `product` is the floor:
NumPy's matrix product of the logits into an array that is there already, for `both` the three products of a step.

A language model's head is seconds of work: rounds are few, and one call is the warm-up. The peers here are classes like
those of baselines.py, in the best form we know; the answers are checked against float64 sums of float32 logits.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call,attr-defined"
from __future__ import annotations

import dataclasses
import gc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .measure import Effort
from .peer import Calls

SUITES = ("linear", "sweep")
OPERATIONS = ("forward", "both")
EFFORT = Effort(least=3, most=9, seconds=3.0, sample_seconds=0.02, warmed=True)
LOSS_BOUND, GRADIENT_BOUND = 1e-5, 1e-3  # coarse: float32 products of thousands of terms, in anyone's order
CHECKED = 4  # rows of the hidden gradient


@dataclass(frozen=True)
class LinearCase:
    """`positions` hidden states of `features` to `classes` classes."""

    positions: int
    features: int
    classes: int

    @property
    def name(self) -> str:
        return f"{self.positions}x{self.features} -> {self.classes}"

    @property
    def fields(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"dtype": "float32", "shape": [self.positions, self.classes]}

    def make(self) -> LinearData:
        return LinearData(self)


class LinearData:
    """The arrays of a case, and the right answer."""

    def __init__(self, case: LinearCase) -> None:
        self.case = case
        rng = np.random.default_rng(zlib.crc32(case.name.encode()))
        self.hidden = rng.standard_normal((case.positions, case.features), dtype=np.float32)
        self.weight = rng.standard_normal((case.classes, case.features), dtype=np.float32)
        self.weight *= np.float32(2 / case.features**0.5)
        self.targets = rng.integers(0, case.classes, case.positions)

    @property
    def gradient_bytes(self) -> int:
        return int(self.hidden.nbytes + self.weight.nbytes)

    @cached_property
    def loss(self) -> float:
        total, step = 0.0, max(1, (1 << 22) // self.case.classes)
        for start in range(0, self.case.positions, step):
            rows = slice(start, start + step)
            logits = (self.hidden[rows] @ self.weight.T).astype(np.float64)
            top = logits.max(axis=1)
            picked = logits[np.arange(len(logits)), self.targets[rows]]
            logits -= top[:, None]
            total += float((np.log(np.exp(logits, out=logits).sum(axis=1)) + top - picked).sum())
        return total / self.case.positions

    @cached_property
    def sample(self) -> Any:
        """The hidden gradient of the sum of the losses, for some positions."""
        rows = self.rows
        logits = self.hidden[rows].astype(np.float64) @ self.weight.T.astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), self.targets[rows]] -= 1
        return p @ self.weight.astype(np.float64)

    @property
    def rows(self) -> Any:
        return np.unique(np.linspace(0, self.case.positions - 1, CHECKED).astype(int))

    def errors(self, loss: float, hidden: Any) -> dict[str, Any]:
        """How far an answer is off, and whether that is in bounds."""
        found: dict[str, Any] = {"loss": loss, "loss_error": abs(loss - self.loss) / abs(self.loss)}
        if hidden is not None:
            found["array_error"] = float(
                np.abs(np.asarray(hidden)[self.rows] * self.case.positions - self.sample).max()
            )
        right = found["loss_error"] <= LOSS_BOUND and found.get("array_error", 0.0) <= GRADIENT_BOUND
        return found | {"right": bool(right)}


class LinearPeer:
    """One contestant: `calls` makes the operations of a case, `answer` (loss, hidden gradient) of what one returned."""

    name = peer = ""  # `peer`: the library in baselines.py that it belongs to

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def calls(self, data: LinearData) -> Calls:
        raise KeyError(self.name)

    def answer(self, result: Any) -> tuple[float, Any]:
        loss, grads = result if isinstance(result, tuple) else (result, None)
        return float(loss), None if grads is None else np.asarray(grads[0])


class Subject(LinearPeer):
    name = peer = "fastxent"

    def calls(self, data: LinearData) -> Calls:
        import fastxent

        operands = data.hidden, data.weight, data.targets
        threads: dict[str, Any] = {"num_threads": self.threads} if self.threads else {}
        return {
            "forward": lambda: fastxent.linear_cross_entropy(*operands, **threads),
            "both": lambda: fastxent.linear_cross_entropy_and_grad(*operands, **threads),
        }


class Products(LinearPeer):
    """The floor: the products alone, into arrays that are there. Its answers are no losses."""

    name, peer = "product", ""

    def calls(self, data: LinearData) -> Calls:
        logits = np.zeros((data.case.positions, data.case.classes), np.float32)
        hidden, weight = np.zeros_like(data.hidden), np.zeros_like(data.weight)

        def one() -> None:
            np.matmul(data.hidden, data.weight.T, out=logits)

        def three() -> None:
            one()
            np.matmul(logits, data.weight, out=hidden)
            np.matmul(logits.T, data.hidden, out=weight)

        return {"forward": one, "both": three}


class Torch(LinearPeer):
    """As most write it: linear, cross_entropy, autograd."""

    name = peer = "torch"

    def tensors(self, data: LinearData) -> tuple[Any, Any, Any]:
        import torch

        torch.set_num_threads(self.threads or torch.get_num_threads())
        hidden, weight, targets = (torch.from_numpy(a) for a in (data.hidden, data.weight, data.targets))
        return hidden, weight, targets

    def loss(self, hidden: Any, weight: Any, targets: Any) -> Any:
        from torch.nn import functional

        return functional.cross_entropy(functional.linear(hidden, weight), targets)

    def calls(self, data: LinearData) -> Calls:
        import torch

        hidden, weight, targets = self.tensors(data)
        leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()

        def both() -> Any:
            loss = self.loss(*leaves, targets)
            return loss.detach(), torch.autograd.grad(loss, leaves)

        return {"forward": lambda: self.loss(hidden, weight, targets), "both": both}


class TorchChunked(Torch):
    """torch's own linear_cross_entropy, in chunks by its own choice."""

    name = "torch-chunked"

    def loss(self, hidden: Any, weight: Any, targets: Any) -> Any:
        import torch
        from torch.nn import functional

        return functional.linear_cross_entropy(
            hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions()
        )


class TorchCompile(Torch):
    """torch.compile for this very shape, loss and gradients in one graph."""

    name = peer = "compile"

    def calls(self, data: LinearData) -> Calls:
        import torch

        hidden, weight, targets = self.tensors(data)
        torch._dynamo.reset()

        def gradient(hidden: Any, weight: Any, targets: Any) -> Any:
            grads, loss = torch.func.grad_and_value(self.loss, argnums=(0, 1))(hidden, weight, targets)
            return loss, grads

        def compiled(function: Any) -> Callable[[], Any]:
            fast = torch.compile(function, dynamic=False, fullgraph=True)
            return lambda: fast(hidden, weight, targets)

        return {"forward": compiled(self.loss), "both": compiled(gradient)}


class Jax(LinearPeer):
    """optax's loss of hidden @ weight.T under jit, value_and_grad in one function."""

    name = peer = "jax"

    def calls(self, data: LinearData) -> Calls:
        import jax
        import jax.numpy as jnp
        import optax

        operands = jnp.asarray(data.hidden), jnp.asarray(data.weight), jnp.asarray(data.targets.astype(np.int32))

        def loss(hidden: Any, weight: Any, targets: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(hidden @ weight.T, targets).mean()

        def jitted(function: Any) -> Callable[[], Any]:
            fast = jax.jit(function)
            return lambda: jax.block_until_ready(fast(*operands))

        return {"forward": jitted(loss), "both": jitted(jax.value_and_grad(loss, argnums=(0, 1)))}


CONTESTANTS: list[type[LinearPeer]] = [Subject, Products, Torch, TorchCompile, TorchChunked, Jax]


_STARTED: set[tuple[str, str]] = set()  # contestants and operations that this process has run


def contestants(threads: int, peers: list[str]) -> list[LinearPeer]:
    """The subject, the floor, and those of the libraries that take part."""
    return [kind(threads) for kind in CONTESTANTS if kind.peer in ("", "fastxent", *peers)]


def heads(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of the linear layer, those of time and of memory put together."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        if record["suite"] not in SUITES:
            continue
        kept = found.setdefault((record["name"], record["operation"]), record | {"contestants": {}})
        for name, contestant in record["contestants"].items():
            kept["contestants"].setdefault(name, {}).update(contestant)
    return list(found.values())


def extra_memory(fields: dict[str, Any], operation: str, name: str, threads: int) -> dict[str, Any]:
    """Bytes that the first call of a case needs beyond its inputs, new gradients included: for a child process.

    A small case first in each process, so that imports and what compilers take are not counted; of a compiled function
    its compilation for the case itself is, where that needs more than the call.
    """
    from .worker import give_back, peak, reset_peak, resident

    case = LinearCase(fields["positions"], fields["features"], fields["classes"])
    (kind,) = (kind for kind in CONTESTANTS if kind.name == name)
    contestant = kind(threads)
    if (name, operation) not in _STARTED:
        contestant.calls(LinearCase(8, 16, 64).make())[operation]()
        _STARTED.add((name, operation))
    data = case.make()
    call = contestant.calls(data)[operation]
    np.matmul(data.hidden[:64], data.weight[:256].T)  # BLAS's own buffers
    gc.collect()
    give_back()  # what earlier calls have freed would be taken again, unseen
    before = resident()
    exact = reset_peak()
    result = call()
    extra = max(peak() - before, 0)
    del result
    return {"extra_bytes": extra, "exact": exact, "result_bytes": data.gradient_bytes * (operation == "both")}
