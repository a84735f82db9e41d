"""FILE.safetensors:NAME, by the documented format: a length, a header in JSON, the tensors one after the other.

The safetensors package maps the whole file; here nothing is mapped, so the header is read by hand. As in the package,
the tensors must fill the rest of the file without gap or overlap.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from .._faults import FileFault
from ._source import FileSource, Source, checked_shape, open_regular, source_of_bfloat16

_LONGEST_HEADER = 2 * 2**20

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}
# Bits of the types that other tensors of the file may have; a file with another type still is one file.
_BITS = {name: 8 * np.dtype(code).itemsize for name, code in DTYPES.items()} | {
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}


def open_safetensors(name: str, path: str, tensor: str) -> Source:
    """A tensor of a .safetensors file; the only one if `tensor` is empty."""
    file, size = open_regular(name, path)
    try:
        length = int.from_bytes(file.read(8) or b"", "little")
        if size < 8 or length > size - 8:
            raise FileFault(name, f"is no .safetensors file or cut short: {size} bytes, a header of {length} claimed")
        if length > _LONGEST_HEADER:
            raise FileFault(name, f"has a header of {length} bytes; at most {_LONGEST_HEADER} are read")
        text = file.read(length) or b""
        tensors = _tensors(name, text, size - 8 - length)
        if not tensor and len(tensors) == 1:
            (tensor,) = tensors
        if tensor not in tensors:
            there = ", ".join(sorted(tensors)[:20]) or "none"
            what = f"has no tensor {tensor!r}" if tensor else "say which tensor, as FILE.safetensors:NAME"
            raise FileFault(name, f"{what}; there are: {there}")
        code, shape, begin = tensors[tensor]
        if code not in DTYPES:
            raise FileFault(name, f"the tensor {tensor!r} is of type {code}; expected one of {', '.join(DTYPES)}")
        offset = 8 + length + begin
        if code == "BF16":
            return source_of_bfloat16(lambda dtype, stored: FileSource(name, file, offset, shape, dtype, stored))
        return FileSource(name, file, offset, shape, np.dtype(DTYPES[code]))
    except BaseException:
        file.close()
        raise


def _tensors(name: str, text: bytes, available: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Type, shape and begin of each tensor, all of them judged."""
    if text[:1] != b"{":
        raise FileFault(name, "is no .safetensors file: its header is no JSON object")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileFault(name, f"has an unreadable .safetensors header: {error}") from error
    header.pop("__metadata__", None)
    tensors, places = {}, []
    for key, entry in header.items():
        if not isinstance(entry, dict):
            raise FileFault(name, f"the entry of tensor {key!r} is no object")
        code, offsets = entry.get("dtype"), entry.get("data_offsets")
        shape = checked_shape(name, entry.get("shape"))
        if not isinstance(code, str) or code not in _BITS:
            raise FileFault(name, f"the tensor {key!r} has the unknown type {code!r}")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
            raise FileFault(name, f"the tensor {key!r} has the data_offsets {offsets!r}")
        begin, end = offsets
        if not 0 <= begin <= end <= available:
            raise FileFault(name, f"the tensor {key!r} lies outside the file: bytes {begin} to {end} of {available}")
        if math.prod(shape) * _BITS[code] != 8 * (end - begin):
            raise FileFault(name, f"the tensor {key!r}, {code} of shape {shape}, does not take {end - begin} bytes")
        tensors[key] = code, shape, begin
        places.append((begin, end, key))
    reached = 0
    for begin, end, key in sorted(places):
        if begin != reached:
            what = "overlaps another one" if begin < reached else f"leaves {begin - reached} bytes before it unused"
            raise FileFault(name, f"the tensor {key!r} {what}")
        reached = end
    if reached != available:
        raise FileFault(name, f"has {available - reached} bytes that belong to no tensor")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
