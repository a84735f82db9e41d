"""The same calls by way of Python, through fastxent's public functions: for engines and runtimes without the handler.

``jax.pure_callback`` stops the compiled program, copies its arguments and waits for Python's lock, so this is for
machines that have nothing better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import fastxent

if TYPE_CHECKING:
    from ._handler import Options

NAMES = ("x", "targets", "class_weight", "sample_weight", "mask", "lengths", "upstream")


def call(operation: str, options: Options, results: Any, arguments: Any) -> Any:
    """What `_handler.call` does."""
    names = [name for name, a in zip(NAMES, arguments, strict=True) if a is not None]
    own = arguments[0].ndim
    flat, tree = jax.tree.flatten(results)

    def host(*given: Any) -> Any:
        arrays = dict(zip(names, map(np.asarray, given), strict=True))
        batch = np.broadcast_shapes(*(a.shape[: arrays["x"].ndim - own] for a in arrays.values()))
        found = [np.empty(batch + r.shape, r.dtype) for r in flat]
        for index in np.ndindex(batch):
            one = {name: a[_of(index, a)] for name, a in arrays.items()}
            if "targets" in one and options.reduction == "none":  # logits may be the same for several positions
                shape = list(flat[0].shape)
                shape.insert(options.axis, one["x"].shape[options.axis])
                one["x"] = np.broadcast_to(one["x"], shape)
            for whole, part in zip(found, _run(operation, options, one), strict=True):
                whole[index] = part
        return jax.tree.unflatten(tree, found)

    return jax.pure_callback(host, results, *(a for a in arguments if a is not None), vmap_method="expand_dims")


def _of(index: tuple[int, ...], array: Any) -> tuple[int, ...]:
    """An index of the axes of vmap, for an array in which some have length 1."""
    return tuple(i if n > 1 else 0 for i, n in zip(index, array.shape, strict=False))


def _run(operation: str, options: Options, arrays: dict[str, Any]) -> Any:
    x, targets = arrays.pop("x"), arrays.pop("targets", None)
    function = getattr(fastxent, operation)
    given: dict[str, Any] = {"axis": options.axis, "num_threads": options.num_threads}
    if targets is None:
        return (function(x, **given),)
    given |= {
        "ignore_index": options.ignore_index, "shift": options.shift, "reduction": options.reduction,
        "empty_value": options.empty_value,
    }
    if options.reduction == "sum":
        given["normalizer"] = options.normalizer
    if operation.startswith("cross_entropy"):
        given |= {
            "label_smoothing": options.label_smoothing, "z_loss": options.z_loss, "logit_scale": options.logit_scale,
            "softcap": options.softcap or None,
        }
    found = function(x, targets, **arrays, **given)
    return found if operation.endswith("_and_grad") else (found,)
