"""The engines that do the arithmetic, and which of them is in use.

An engine is a module with ``NAME``, ``open(plan)`` (see `fastxent._reductions.Call`) and ``describe()``, a
dictionary with "compiler", "instruction_set" and "instruction_sets". It may have ``tile(plan)`` too, for the linear
losses (see `fastxent._linear_tiles`, whose plain NumPy does the same for an engine without), and
``plain(given, threads)``, which does the commonest call of a loss without a plan, and returns None for any other. One
is chosen by the first call that needs it, so that importing the package never fails and a bad environment variable is
the error of a call. From then on ``open_call`` and ``plain`` here are that engine's.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

VARIABLE = "FASTXENT_BACKEND"
ENGINES = {"native": "native_engine", "numba": "numba_engine"}

engine: Any = None  # the module in use; None: none chosen yet


def _choose_then_open(plan: Any) -> Any:
    return chosen().open(plan)


def _nothing_is_plain(given: Any, threads: int) -> None:
    """Leave every call to its plan: none chosen yet, or an engine without a ``plain``."""


open_call: Any = _choose_then_open
plain: Any = _nothing_is_plain


def chosen() -> Any:
    """The engine in use; the first time, the one of the environment or the native one."""
    if engine is None:
        name = os.environ.get(VARIABLE, "").strip()
        if name:
            select(name, f"the environment variable {VARIABLE}")
        else:
            _use(_default())
    return engine


def select(name: str, what: str = "the backend") -> None:
    """Use the engine called `name`; `what` is the thing that named it."""
    if not isinstance(name, str) or name not in ENGINES:
        raise ValueError(f"{what} is {name!r}; expected one of {', '.join(ENGINES)}")
    _use(_load(name))


def _use(module: Any) -> None:
    global engine, open_call, plain
    engine, open_call, plain = module, module.open, getattr(module, "plain", _nothing_is_plain)


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{ENGINES[name]}")
    except ImportError as error:
        raise ImportError(f"the {name} backend cannot be used: {error}") from error


def _default() -> Any:
    try:
        return _load("native")
    except ImportError as native_error:
        try:
            module = _load("numba")
        except ImportError:
            raise native_error from None
        reason = str(native_error)
    message = (
        f"fastxent runs on Numba, which is slower: {reason} (set_backend('numba') or {VARIABLE}=numba says that this "
        "is what you want)"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=6)
    return module
