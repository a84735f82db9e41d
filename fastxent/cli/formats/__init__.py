"""Readers of arrays in files, one module a format, all behind `Source`: elements read by ranges, nothing mapped."""

from __future__ import annotations

import re
from pathlib import Path

from .._faults import UsageFault
from ._source import Array, Source
from .kld import KldSource, TokenSource, open_kld
from .npy import open_npy
from .npz import open_npz
from .safetensors import open_safetensors
from .zarr import open_zarr

__all__ = ["KINDS", "Array", "KldSource", "Source", "TokenSource", "open_logits", "open_vector", "split_name"]

KINDS = "F.npy, F.safetensors:NAME, F.npz:NAME, F.zarr, F.kld"

_NAMED = re.compile(r"(.*?\.(?:safetensors|npz))(?::(.*))?", re.DOTALL | re.IGNORECASE)


def split_name(name: str) -> tuple[str, str, str]:
    """Kind (the suffix), path and name inside the file of FILE or FILE:NAME."""
    match = _NAMED.fullmatch(name)
    path, inside = (match[1], match[2] or "") if match else (name, "")
    kind = Path(path).suffix.lower()
    if kind not in (".npy", ".safetensors", ".npz", ".kld") and any(p.endswith(".zarr") for p in Path(path).parts):
        kind = ".zarr"  # F.zarr/NAME: an array in a group
    return kind, path, inside


def open_logits(name: str, spread: bool = True) -> tuple[Source, TokenSource | None]:
    """The logits of a file, and its targets where it has its own (.kld).

    `spread`: see `kld.py`; for scores, not for values.
    """
    if split_name(name)[0] == ".kld":
        return open_kld(name, split_name(name)[1], spread)
    return _open(name, complete=True), None


def open_vector(name: str) -> Source:
    """Targets, a mask, lengths: anything with one number a position or sequence."""
    if split_name(name)[0] == ".kld":
        return open_kld(name, split_name(name)[1], spread=False)[1]
    return _open(name, complete=False)


def _open(name: str, complete: bool) -> Source:
    kind, path, inside = split_name(name)
    if kind == ".npy":
        return open_npy(name, path)
    if kind == ".safetensors":
        return open_safetensors(name, path, inside)
    if kind == ".npz":
        return open_npz(name, path, inside)
    if kind == ".zarr":
        return open_zarr(name, path, complete)
    raise UsageFault(f"{name}: unknown kind of file; expected one of {KINDS}")
