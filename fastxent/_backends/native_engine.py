"""The compiled engine: the extension module ``fastxent._native``, built from ``src/``."""

from __future__ import annotations

import os
from typing import Any

try:
    from fastxent import _native
except ImportError as error:
    raise ImportError(
        f"fastxent's compiled module cannot be imported ({error}); to build it, run `pip install .` in the source "
        "folder, with a C compiler, or do without: `pip install 'fastxent[numba]'`"
    ) from error

NAME = "native"
VARIABLE = "FASTXENT_ISA"

open = _native.Call  # the name that every engine has
tile = _native.tile
plain = _native.plain


def _use_instruction_set_of_environment() -> None:
    name = os.environ.get(VARIABLE, "").strip()
    if not name:
        return
    available = _native.available_isas()
    if name not in available:
        raise ValueError(
            f"the environment variable {VARIABLE} is {name!r}; this machine and build have {', '.join(available)}"
        )
    _native.set_isa(name)


def describe() -> dict[str, Any]:
    """What this engine was built with and runs on."""
    return {
        "compiler": _native.compiler(),
        "instruction_set": _native.isa(),
        "instruction_sets": list(_native.available_isas()),
    }


_use_instruction_set_of_environment()
