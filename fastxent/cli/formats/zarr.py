"""F.zarr, by the zarr package: chunks decompressed as they are needed.

The metadata is judged before the package sees it: a codec may be one that loads pickles, a chunk may claim any size,
and an array may claim any shape while no chunk is there.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._faults import FileFault, UsageFault
from ._source import Array, Source, checked_shape

_LONGEST_METADATA = 2**20
_LARGEST_CHUNK = 128 * 2**20
_MISSING = "needs zarr: pip install 'fastxent[zarr]'"
_TYPES = {f"{kind}{size}" for kind, sizes in (("float", (16, 32, 64)), ("int", (8, 16, 32, 64)),
                                               ("uint", (8, 16, 32, 64))) for size in sizes} | {"bool"}
_CODES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
# Everything else that numcodecs offers is refused: some of it runs code from the file.
_CODECS = {
    "bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed", "zlib", "lz4", "shuffle",
    "delta", "fixedscaleoffset",
}


class ZarrSource(Source):
    """An array of chunks. Rows are read from the chunks that hold them."""

    def __init__(self, name: str, array: Any) -> None:
        super().__init__(name, tuple(array.shape), np.dtype(array.dtype))
        self.array = array

    @property
    def row_step(self) -> int:
        chunk, shape = self.array.chunks, self.shape
        if len(shape) < 2:
            return 1
        for axis in range(len(shape) - 1):  # the outermost axis along which a chunk is shorter than the array
            if chunk[axis] < shape[axis]:
                return int(chunk[axis]) * math.prod(shape[axis + 1 : -1])
        return math.prod(shape[:-1])

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        try:
            return self._elements((), self.shape, start, stop)
        except FileFault:
            raise
        except Exception as error:  # of any codec
            raise FileFault(self.name, f"cannot be read: {type(error).__name__}: {error}") from error

    def _elements(self, at: tuple[int, ...], shape: tuple[int, ...], start: int, stop: int) -> Array:
        """Elements of the part of the array at the indices `at`, as few rectangles as there are."""
        if not shape or start == stop:
            values: Array = np.asarray(self.array[at] if at or not shape else self.array[:0]).reshape(-1)
            return values[: stop - start].view(self.dtype) if values.size else np.empty(0, self.dtype)
        inner = math.prod(shape[1:])
        first, last = -(-start // inner), stop // inner
        parts = []
        if start // inner == last:  # within one index of the first axis
            begin = last * inner
            return self._elements((*at, last), shape[1:], start - begin, stop - begin)
        if start < first * inner:
            parts.append(self._elements((*at, first - 1), shape[1:], start - (first - 1) * inner, inner))
        if first < last:
            values = np.asarray(self.array[(*at, slice(first, last))])
            parts.append(np.ascontiguousarray(values).reshape(-1).view(self.dtype))
        if last * inner < stop:
            parts.append(self._elements((*at, last), shape[1:], 0, stop - last * inner))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_zarr(name: str, path: str, complete: bool) -> Source:
    """The array in the folder `path`; `complete`: none of its chunks may be missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileFault(name, "is no folder of a zarr array" if folder.exists() else "No such file or directory")
    n_chunks, nbytes = _judge(name, folder)
    there = 0
    for chunk in _chunk_files(folder):
        there += 1
        unpacked = _claimed_size(chunk)
        if unpacked > 2 * nbytes + 2**16:
            raise FileFault(name, f"{chunk.relative_to(folder)} unpacks to {unpacked} bytes; a chunk has {nbytes}")
    if complete and there < n_chunks:
        raise FileFault(name, f"has {there} of {n_chunks} chunks: it is not complete")
    try:
        import zarr
    except ImportError as error:
        raise UsageFault(f"{name}: {_MISSING}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = zarr.open_array(str(folder), mode="r")
            return ZarrSource(name, array)
    except Exception as error:
        raise FileFault(name, f"is no zarr array that can be read: {type(error).__name__}: {error}") from error


def _chunk_files(folder: Path) -> Iterator[Path]:
    for place, _, files in os.walk(folder):
        yield from (Path(place, file) for file in files if not file.startswith(".") and file != "zarr.json")


def _claimed_size(path: Path) -> int:
    """How large a compressed chunk says that it is unpacked, where its format says so (zstd, gzip); else 0.

    The other codecs do not take more than they are told, or at most a thousand times the size of the file (zlib).
    """
    with path.open("rb") as file:
        start = file.read(18)
        if start[:4] == b"\x28\xb5\x2f\xfd" and len(start) > 5:
            flag, single = start[4] >> 6, start[4] >> 5 & 1
            at = 5 + (not single) + (0, 1, 2, 4)[start[4] & 3]
            width = (single, 2, 4, 8)[flag]
            return int.from_bytes(start[at : at + width], "little") + (256 if width == 2 else 0)
        if start[:3] == b"\x1f\x8b\x08" and len(start) == 18:
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little")
    return 0


def _judge(name: str, folder: Path) -> tuple[int, int]:
    """Look at the metadata, of version 3 or 2, without the package; number and bytes of the chunks it should have."""
    meta = _metadata(name, folder / "zarr.json")
    if meta is not None:
        if meta.get("node_type") != "array":
            groups = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())[:20])
            raise FileFault(name, f"is a group; give the folder of an array in it ({groups})")
        kind = meta.get("data_type")
        if not isinstance(kind, str) or kind not in _TYPES:
            raise FileFault(name, f"has the data type {kind!r}; expected floats or integers")
        itemsize = 1 if kind == "bool" else int(kind.lstrip("uintfloa")) // 8
        chunk = _member(_member(meta, "chunk_grid"), "configuration").get("chunk_shape")
        codecs = meta.get("codecs")
    else:
        meta = _metadata(name, folder / ".zarray")
        if meta is None:
            raise FileFault(name, "is no zarr array: it has neither zarr.json nor .zarray")
        kind = meta.get("dtype")
        if not isinstance(kind, str) or kind[1:] not in _CODES:
            raise FileFault(name, f"has the dtype {kind!r}; expected floats or integers (objects are never loaded)")
        itemsize, chunk = int(kind[2:]), meta.get("chunks")
        codecs = [meta.get("compressor"), *(meta.get("filters") or [])]
    _judge_codecs(name, codecs)
    shape = checked_shape(name, meta.get("shape"))
    chunk = checked_shape(name, chunk)
    if len(chunk) != len(shape) or 0 in chunk:
        raise FileFault(name, f"has chunks of shape {chunk} for an array of shape {shape}")
    if math.prod(chunk) * itemsize > _LARGEST_CHUNK:
        raise FileFault(name, f"has chunks of {math.prod(chunk) * itemsize} bytes; at most {_LARGEST_CHUNK} are read")
    return math.prod(-(-n // size) for n, size in zip(shape, chunk, strict=True)), math.prod(chunk) * itemsize


def _judge_codecs(name: str, codecs: Any) -> None:
    """Only codecs that are known to do nothing but arithmetic, those inside shards too."""
    if not isinstance(codecs, list):
        raise FileFault(name, "has no list of codecs")
    for codec in codecs:
        if codec is None:
            continue
        kind = codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec
        if not isinstance(kind, str) or kind.removeprefix("numcodecs.") not in _CODECS:
            raise FileFault(name, f"is stored with the codec {kind!r}, which is not used here")
        inside = _member(codec, "configuration")
        for key in "codecs", "index_codecs":
            if key in inside:
                _judge_codecs(name, inside[key])


def _member(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _metadata(name: str, path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_METADATA + 1)
        meta = json.loads(text) if len(text) <= _LONGEST_METADATA else None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFault(name, f"has unreadable metadata in {path.name}: {error}") from error
    if not isinstance(meta, dict):
        raise FileFault(name, f"has unreadable metadata in {path.name}")
    return meta
