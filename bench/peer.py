"""What takes part in a race: a library that turns the arrays of a case into calls by operation.

forward    the mean loss over the valid positions
both       the mean loss and a new gradient array
given      the same into a gradient array made beforehand
in_place   the same into the logits
softmax, log_softmax    a new array

What a library cannot do is left out. `Fastxent` is the subject, `FastxentNumba` its other engine, beside it and not
one of those it is measured against; the peers are in baselines.py.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import Data

Calls = dict[str, Callable[[], Any]]


class Peer:
    """A library to compare with. `distribution` is the name under which its version is found."""

    name = ""
    distribution = ""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.distribution)

    def calls(self, data: Data) -> Calls:
        raise KeyError(self.name)

    def answer(self, result: Any, data: Data) -> tuple[float | None, Any]:
        """What a call returned, as (mean loss, gradient of the mean or activation), for checking: not timed."""
        loss, array = result if isinstance(result, tuple) else (result, None)
        if np.ndim(loss):
            loss, array = None, loss
        return (None if loss is None else float(loss)), (None if array is None else self.to_numpy(array))

    def to_numpy(self, array: Any) -> Any:
        return np.asarray(array)


class Fastxent(Peer):
    """The public functions. Options are passed only where a case has them, as users do; 0 threads: its own choice."""

    name = distribution = "fastxent"

    @property
    def version(self) -> str:
        import fastxent

        return str(fastxent.__version__)

    def calls(self, data: Data) -> Calls:
        import fastxent

        case, x, t = data.case, data.logits, data.targets
        axis: dict[str, Any] = {} if case.last_axis else {"axis": case.axis}
        threads: dict[str, Any] = {"num_threads": self.threads} if self.threads else {}
        named = {"class_weight": data.class_weight, "lengths": data.lengths, "mask": data.mask}
        options = axis | threads | {name: value for name, value in named.items() if value is not None}
        if case.label_smoothing:
            options["label_smoothing"] = case.label_smoothing
        kept: dict[str, np.ndarray[Any, Any]] = {}

        def given() -> Any:
            if "out" not in kept:
                kept["out"] = np.empty_like(x)
            return fastxent.cross_entropy_and_grad(x, t, out_grad=kept["out"], **options)

        def in_place() -> Any:
            # From the second call on the logits are a gradient: the time depends on no value.
            if "logits" not in kept:
                kept["logits"] = x.copy()
            return fastxent.cross_entropy_and_grad(kept["logits"], t, out_grad=kept["logits"], **options)

        return {
            "forward": lambda: fastxent.cross_entropy(x, t, **options),
            "both": lambda: fastxent.cross_entropy_and_grad(x, t, **options),
            "given": given,
            "in_place": in_place,
            "softmax": lambda: fastxent.softmax(x, **axis, **threads),
            "log_softmax": lambda: fastxent.log_softmax(x, **axis, **threads),
        }


class FastxentNumba(Fastxent):
    """The same functions on the Numba engine: each call switches over and back, for some tenths of a microsecond."""

    name = "fastxent-numba"

    @property
    def version(self) -> str:
        return f"{super().version}, numba {importlib.metadata.version('numba')}"

    def calls(self, data: Data) -> Calls:
        return {operation: self.switched(call) for operation, call in super().calls(data).items()}

    def switched(self, call: Callable[[], Any]) -> Callable[[], Any]:
        import fastxent

        before = fastxent.get_backend()

        def on_numba() -> Any:
            fastxent.set_backend("numba")
            try:
                return call()
            finally:
                fastxent.set_backend(before)

        return on_numba


def load(names: list[str] | None, threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The wanted peers (None: all) that are installed, and for the others why not."""
    from .adapters import ADAPTERS
    from .baselines import PEERS

    kinds = {kind.name: kind for kind in PEERS}
    if names is not None:  # adapters take part only where they are named
        kinds |= {kind.name: kind for kind in ADAPTERS}
    unknown = [name for name in names or [] if name not in kinds]
    if unknown:
        raise ValueError(f"unknown peers {unknown}: choose from {', '.join(kinds)}")
    peers, absent = [], {}
    for name in kinds if names is None else names:
        peer = kinds[name](threads)
        try:
            assert peer.version
        except importlib.metadata.PackageNotFoundError as error:
            absent[name] = f"{error.name} is not installed"
        else:
            peers.append(peer)
    return peers, absent
