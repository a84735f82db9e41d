"""From traced arrays to the compiled handler: what a call is, and ``jax.ffi`` around it.

The handler (``src/xla_ffi.c``) takes arrays as arguments and everything else as attributes, which are part of the
compiled program. It gives the loss and the gradient of a whole batch, or of each of several where vmap has put axes in
front. Where XLA refuses the handler, and with an engine that has none, a callback does the same (`_callback.py`).
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

import fastxent

from . import _callback

# The codes of src/fastxent.h and src/xla_call.c; a test compares them.
OPERATIONS = {
    "cross_entropy": 0,
    "cross_entropy_and_grad": 1,
    "softmax": 4,
    "log_softmax": 5,
    "logsumexp": 6,
    "nll_loss": 7,
    "nll_loss_and_grad": 8,
}
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2, "sequence_mean": 3, "batch_mean": 4}

TARGET = "fastxent"  # the handler's name in XLA
_registered: bool | None = None  # None: not tried yet


class Options(NamedTuple):
    """All of a call that is not an array: fixed when it is traced."""

    axis: int  # counted from the first
    reduction: str = "none"
    ignore_index: int | None = None  # None also where the targets' dtype cannot hold it
    shift: int = 0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float = 0.0
    normalizer: float = 1.0  # of "sum"
    empty_value: float = 0.0
    num_threads: int = 1
    inplace: bool = False  # the gradient may take the place of the logits


class Arrays(NamedTuple):
    """The arrays of a call besides its logits, with all axes of the positions, some perhaps of length 1."""

    targets: Any = None
    class_weight: Any = None
    sample_weight: Any = None
    mask: Any = None
    lengths: Any = None
    upstream: Any = None


def call(operation: str, options: Options, results: Any, x: Any, arrays: Arrays) -> Any:
    """The results of an operation, of the shapes and dtypes that `results` has."""
    arguments = (x, *arrays)
    given = [a for a in arguments if a is not None]
    if not registered():
        return _callback.call(operation, options, results, arguments)
    integers = (
        OPERATIONS[operation],
        sum(1 << i for i, a in enumerate(arguments) if a is not None),
        x.ndim - 1,
        options.axis,
        REDUCTIONS[options.reduction],
        options.shift,
        options.ignore_index is not None,
        np.array(options.ignore_index or 0).astype(np.int64),  # of uint64, the bits
        options.num_threads,
    )
    numbers = (
        options.label_smoothing, options.z_loss, options.logit_scale, options.softcap, options.normalizer,
        options.empty_value,
    )
    inplace = options.inplace and operation.endswith("_and_grad")
    return jax.ffi.ffi_call(
        TARGET,
        results,
        # An axis of vmap has length 1 in what it does not concern, which is free; in place, the logits need it in full.
        vmap_method="broadcast_all" if inplace else "expand_dims",
        input_output_aliases={0: 1} if inplace else None,
    )(*given, integers=np.array(integers, np.int64), numbers=np.array(numbers, np.float64))


def registered() -> bool:
    """Whether calls go to the handler; the first time it is offered to XLA. Asked whenever a call is traced."""
    global _registered
    if fastxent.get_backend() != "native":
        return False
    if _registered is None:
        try:
            _register()
        except Exception as error:
            message = (
                f"XLA does not take fastxent's handler ({error}); fastxent.jax calls back into Python, which is slower"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            _registered = False
        else:
            _registered = True
    return _registered


def _register() -> None:
    from fastxent import _native

    jax.ffi.register_ffi_target(TARGET, _native.xla_handler(), platform="cpu")
