"""The peers, each in the best form that its documentation or our trials gave. This file is written for the sceptic.

"Best form": inputs are converted before the clock starts; compiled functions are compiled for the exact shape and
warmed up; every library uses `threads` threads (JAX: as many as the process may use); results stay in the library's
own array type; scratch memory is kept between calls where the library lets its user do so; NumPy and SciPy work in
blocks of rows that stay in the cache. A peer with two reasonable forms is entered twice (`torch`, `torch-manual`),
and the better counts.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call,attr-defined"
from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Data, dtype_of
from .peer import Calls, FastxentNumba, Peer

BLOCK = 1 << 16  # elements of a block of rows: 256 KB of float32


class NumPy(Peer):
    """Blocks of rows with kept scratch; half types are widened block by block."""

    name = distribution = "numpy"

    def calls(self, data: Data) -> Calls:
        if not data.case.plain:
            return {}
        x, t = data.rows, data.flat_targets
        n, classes = x.shape
        rows = min(n, max(1, BLOCK // classes))
        scratch = np.empty((rows, classes), np.float64 if x.dtype == np.float64 else np.float32)
        given, index = np.empty_like(x), np.arange(rows)

        def exponentials(start: int, z: Any) -> tuple[Any, Any]:
            """z = exp(x - max) for the block at `start`; the rows' sums and losses."""
            z[...] = x[start : start + rows]
            np.subtract(z, z.max(axis=1, keepdims=True), out=z)
            picked = z[index[: len(z)], t[start : start + rows]]
            np.exp(z, out=z)
            sums = z.sum(axis=1)
            return sums, np.log(sums) - picked

        def forward() -> Any:
            starts = range(0, n, rows)
            return sum(float(exponentials(s, scratch[: n - s])[1].sum(dtype=np.float64)) for s in starts) / n

        def gradient(out: Any) -> Any:
            total = 0.0
            for start in range(0, n, rows):
                block = out[start : start + rows]
                z = block if block.dtype == scratch.dtype else scratch[: n - start]
                sums, losses = exponentials(start, z)
                z *= (1 / (sums * n)).astype(z.dtype, copy=False)[:, None]
                z[index[: len(z)], t[start : start + rows]] -= 1 / n
                if z is not block:
                    block[...] = z
                total += float(losses.sum(dtype=np.float64))
            return total / n, out

        def softmax() -> Any:
            out = np.empty_like(x)
            for start in range(0, n, rows):
                z = scratch[: n - start]
                sums, _ = exponentials(start, z)
                np.divide(z, sums[:, None], out=out[start : start + rows], casting="same_kind")
            return out

        def log_softmax() -> Any:
            out = np.empty_like(x)
            for start in range(0, n, rows):
                z = x[start : start + rows].astype(scratch.dtype)
                z -= z.max(axis=1, keepdims=True)
                sums = np.exp(z, out=scratch[: n - start]).sum(axis=1, keepdims=True)
                np.subtract(z, np.log(sums), out=out[start : start + rows], casting="same_kind")
            return out

        calls: Calls = {"forward": forward, "softmax": softmax, "log_softmax": log_softmax}
        return calls | {"both": lambda: gradient(np.empty_like(x)), "given": lambda: gradient(given)}


class SciPy(Peer):
    """scipy.special's functions by blocks of rows; they have no out=."""

    name = distribution = "scipy"

    def calls(self, data: Data) -> Calls:
        from scipy import special

        if not data.case.plain or data.case.dtype in ("float16", "bfloat16"):
            return {}
        x, t = data.rows, data.flat_targets
        n, classes = x.shape
        rows = min(n, max(1, BLOCK // classes))
        blocks = [(slice(s, s + rows), np.arange(min(rows, n - s))) for s in range(0, n, rows)]

        def forward() -> Any:
            total = 0.0
            for rows, index in blocks:
                losses = special.logsumexp(x[rows], axis=1) - x[rows][index, t[rows]]
                total += float(losses.sum(dtype=np.float64))
            return total / n

        def both() -> Any:
            total, grad = 0.0, np.empty_like(x)
            for rows, index in blocks:
                p = special.softmax(x[rows], axis=1)
                total -= float(np.log(p[index, t[rows]]).sum(dtype=np.float64))
                p[index, t[rows]] -= 1
                np.divide(p, n, out=grad[rows])
            return total / n, grad

        def activation(function: Any) -> Any:
            out = np.empty_like(x)
            for rows, _ in blocks:
                out[rows] = function(x[rows], axis=1)
            return out

        return {
            "forward": forward,
            "both": both,
            "softmax": lambda: activation(special.softmax),
            "log_softmax": lambda: activation(special.log_softmax),
        }


class ScikitLearn(Peer):
    """HalfMultinomialLoss: Cython, OpenMP. It wants targets in the logits' type, and gives the gradient of the sum."""

    name, distribution = "sklearn", "scikit-learn"

    def calls(self, data: Data) -> Calls:
        from sklearn._loss.loss import HalfMultinomialLoss

        if not data.case.plain or data.case.dtype not in ("float32", "float64"):
            return {}
        loss = HalfMultinomialLoss(n_classes=data.case.classes)
        x, t = data.rows, data.flat_targets.astype(data.logits.dtype)
        kept = {"loss_out": np.empty(len(x), x.dtype), "n_threads": self.threads}
        given = np.empty_like(x)

        def gradient(out: Any) -> Any:
            losses, grad = loss.loss_gradient(t, x, gradient_out=out, **kept)
            return losses.mean(dtype=np.float64), grad

        calls: Calls = {"forward": lambda: loss.loss(t, x, **kept).mean(dtype=np.float64)}
        return calls | {"both": lambda: gradient(None), "given": lambda: gradient(given)}

    def answer(self, result: Any, data: Data) -> tuple[float | None, Any]:
        loss, grad = super().answer(result, data)
        return loss, None if grad is None else grad / data.case.positions


class Numba(Peer):
    """What people write first: a loop over the rows, in parallel, with fastmath."""

    name = distribution = "numba"
    functions: tuple[Any, Any] | None = None

    def calls(self, data: Data) -> Calls:
        if not data.case.plain or data.case.dtype not in ("float32", "float64"):
            return {}
        loss, gradient = Numba.functions = Numba.functions or self.compile()
        x, t = data.rows, data.flat_targets
        losses, given = np.empty(len(x), x.dtype), np.empty_like(x)

        def forward() -> Any:
            loss(x, t, losses)
            return losses.mean(dtype=np.float64)

        def both(out: Any) -> Any:
            gradient(x, t, losses, out)
            return losses.mean(dtype=np.float64), out

        return {"forward": forward, "both": lambda: both(np.empty_like(x)), "given": lambda: both(given)}

    def compile(self) -> tuple[Any, Any]:
        import numba

        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))

        @numba.njit(parallel=True, fastmath=True)
        def loss(x: Any, t: Any, losses: Any) -> None:
            for i in numba.prange(x.shape[0]):
                m = x[i, 0]
                for c in range(x.shape[1]):
                    m = max(m, x[i, c])
                s = x.dtype.type(0)
                for c in range(x.shape[1]):
                    s += np.exp(x[i, c] - m)
                losses[i] = np.log(s) + m - x[i, t[i]]

        @numba.njit(parallel=True, fastmath=True)
        def gradient(x: Any, t: Any, losses: Any, grad: Any) -> None:
            for i in numba.prange(x.shape[0]):
                m = x[i, 0]
                for c in range(x.shape[1]):
                    m = max(m, x[i, c])
                s = x.dtype.type(0)
                for c in range(x.shape[1]):
                    grad[i, c] = np.exp(x[i, c] - m)
                    s += grad[i, c]
                losses[i] = np.log(s) + m - x[i, t[i]]
                scale = x.dtype.type(1 / (s * x.shape[0]))
                for c in range(x.shape[1]):
                    grad[i, c] *= scale
                grad[i, t[i]] -= 1 / x.shape[0]

        return loss, gradient


class Torch(Peer):
    """torch.nn.functional.cross_entropy and autograd, as models are trained."""

    name = distribution = "torch"

    def tensors(self, data: Data) -> tuple[Any, Any, dict[str, Any]]:
        """Logits with the class axis second, as torch wants it, targets, and options."""
        import torch

        torch.set_num_threads(self.threads)

        def tensor(array: Any) -> Any:
            if array.dtype == dtype_of("bfloat16"):
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(array)

        case = data.case
        x, t = (tensor(data.rows if case.last_axis else data.logits), tensor(data.targets))
        t = t.reshape(x.shape if case.probabilities else (-1,)) if case.last_axis else t
        options: dict[str, Any] = {"label_smoothing": case.label_smoothing}
        if data.class_weight is not None:
            options["weight"] = torch.from_numpy(data.class_weight).to(x.dtype)
        return x, t, options

    def calls(self, data: Data) -> Calls:
        import torch
        from torch.nn import functional

        x, t, options = self.tensors(data)
        leaf = x.detach().requires_grad_()
        class_axis = 1

        def both() -> Any:
            loss = functional.cross_entropy(leaf, t, **options)
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

        return {
            "forward": lambda: functional.cross_entropy(x, t, **options),
            "both": both,
            "softmax": lambda: torch.softmax(x, class_axis),
            "log_softmax": lambda: torch.log_softmax(x, class_axis),
        }

    def to_numpy(self, array: Any) -> Any:
        import torch

        return (array.to(torch.float32) if array.dtype == torch.bfloat16 else array).numpy()


class TorchManual(Torch):
    """torch without autograd: log_softmax into a kept array, gradient in place. Few write so, but it is faster."""

    name = "torch-manual"

    def calls(self, data: Data) -> Calls:
        import torch
        from torch.nn import functional

        if not data.case.plain:
            return {}
        x, t, _ = self.tensors(data)
        kept, index, n = torch.empty_like(x), torch.arange(len(x)), len(x)

        def both(out: Any) -> Any:
            torch.log_softmax(x, 1, out=out)
            loss = functional.nll_loss(out, t)
            out.exp_()
            out[index, t] -= 1
            return loss, out.div_(n)

        calls: Calls = {"forward": lambda: functional.nll_loss(torch.log_softmax(x, 1, out=kept), t)}
        return calls | {"both": lambda: both(torch.empty_like(x)), "given": lambda: both(kept)}


class TorchCompile(Torch):
    """torch.compile for this very shape. Loss and gradient in one graph: faster than compiled forward + autograd."""

    name = "compile"

    def calls(self, data: Data) -> Calls:
        import torch
        from torch.nn import functional

        x, t, options = self.tensors(data)
        torch._dynamo.reset()  # its cache is by code object: after some shapes it would quietly run uncompiled

        def loss(x: Any, t: Any) -> Any:
            return functional.cross_entropy(x, t, **options)

        def gradient(x: Any, t: Any) -> Any:
            grad, value = torch.func.grad_and_value(loss)(x, t)
            return value, grad

        def compiled(function: Any, *arguments: Any) -> Callable[[], Any]:
            fast = torch.compile(function, dynamic=False, fullgraph=True)
            return lambda: fast(*arguments)

        return {
            "forward": compiled(loss, x, t),
            "both": compiled(gradient, x, t),
            "softmax": compiled(lambda x: torch.softmax(x, 1), x),
            "log_softmax": compiled(lambda x: torch.log_softmax(x, 1), x),
        }


class Jax(Peer):
    """optax's losses under jit, value_and_grad in one function; int32 targets, which it prefers."""

    name, distribution = "jax", "jax"

    @property
    def version(self) -> str:
        return f"{super().version}, optax {importlib.metadata.version('optax')}"

    def loss(self, data: Data) -> Callable[[Any, Any], Any]:
        import jax
        import jax.numpy as jnp
        import optax

        case, axis = data.case, data.case.axis
        if case.weighted and case.label_smoothing:
            raise KeyError("no such loss in optax")

        def loss(x: Any, t: Any) -> Any:
            if case.probabilities:
                return optax.softmax_cross_entropy(x, t, axis=axis).mean()
            if case.label_smoothing:
                q = optax.smooth_labels(jax.nn.one_hot(t, case.classes, axis=axis, dtype=x.dtype), case.label_smoothing)
                return optax.softmax_cross_entropy(x, q, axis=axis).mean()
            losses = optax.softmax_cross_entropy_with_integer_labels(x, jnp.maximum(t, 0), axis=axis)
            if data.class_weight is not None:
                weight = jnp.asarray(data.class_weight).astype(x.dtype)
                return (losses * weight[t]).sum() / weight[t].sum()
            return losses.mean(where=t >= 0) if case.padding else losses.mean()

        return loss

    def activations(self) -> Any:
        import jax

        return jax.nn

    def calls(self, data: Data) -> Calls:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)  # else float64 is narrowed without a word
        case, axis = data.case, data.case.axis
        try:
            loss = self.loss(data)
        except KeyError:
            return {}
        x = jnp.asarray(data.logits)
        t = jnp.asarray(data.targets if case.probabilities else data.targets.astype(np.int32))
        module = self.activations()

        def jitted(function: Any, *arguments: Any) -> Callable[[], Any]:
            fast = jax.jit(function)
            return lambda: jax.block_until_ready(fast(*arguments))

        return {
            "forward": jitted(loss, x, t),
            "both": jitted(jax.value_and_grad(loss), x, t),
            "softmax": jitted(lambda x: module.softmax(x, axis=axis), x),
            "log_softmax": jitted(lambda x: module.log_softmax(x, axis=axis), x),
        }


class OnnxRuntime(Peer):
    """LogSoftmax and GatherElements: twice as fast as the operator SoftmaxCrossEntropyLoss."""

    name, distribution = "onnxruntime", "onnxruntime"

    def calls(self, data: Data) -> Calls:
        if not data.case.plain or data.case.dtype not in ("float32", "float64"):
            return {}
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        x, t = data.rows, data.flat_targets
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        constants = {
            "one": np.array([1]),
            "scale": np.array(1 / len(x), x.dtype),
            "updates": np.full((len(x), 1), -1 / len(x), x.dtype),
        }
        softmax = [helper.make_node("Softmax", ["x"], ["softmax"], axis=1)]
        log_softmax = [helper.make_node("LogSoftmax", ["x"], ["log_softmax"], axis=1)]
        forward = [
            *log_softmax,
            helper.make_node("Unsqueeze", ["t", "one"], ["column"]),
            helper.make_node("GatherElements", ["log_softmax", "column"], ["picked"], axis=1),
            helper.make_node("ReduceMean", ["picked"], ["mean"], keepdims=0),
            helper.make_node("Neg", ["mean"], ["loss"]),
        ]
        both = [
            *forward,
            helper.make_node("Exp", ["log_softmax"], ["exp"]),
            helper.make_node("Mul", ["exp", "scale"], ["scaled"]),
            helper.make_node("ScatterElements", ["scaled", "column", "updates"], ["grad"], axis=1, reduction="add"),
        ]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads

        def session(nodes: Any, *outputs: str) -> Callable[[], Any]:
            shapes: dict[str, Any] = {"x": x.shape, "t": t.shape, "loss": ()}
            value = {
                name: helper.make_tensor_value_info(name, kind, shapes.get(name, x.shape)) for name in ("x", *outputs)
            }
            value["t"] = helper.make_tensor_value_info("t", TensorProto.INT64, t.shape)
            used = {name for node in nodes for name in node.input}
            inputs = [value[name] for name in ("x", "t") if name in used]
            kept = [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
            graph = helper.make_graph(nodes, "loss", inputs, [value[name] for name in outputs], kept)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
            run = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run
            feed = {name: array for name, array in (("x", x), ("t", t)) if name in used}
            return lambda: tuple(run(outputs, feed)) if len(outputs) > 1 else run(outputs, feed)[0]

        return {
            "forward": session(forward, "loss"),
            "both": session(both, "loss", "grad"),
            "softmax": session(softmax, "softmax"),
            "log_softmax": session(log_softmax, "log_softmax"),
        }


PEERS: list[type[Peer]] = [
    FastxentNumba, NumPy, SciPy, ScikitLearn, Numba, Torch, TorchManual, TorchCompile, Jax, OnnxRuntime,
]  # fmt: skip
