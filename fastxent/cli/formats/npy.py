"""NumPy's .npy: a magic word, a header with the text of a dict, the elements."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from .._faults import FileFault
from ._source import (
    WHOLE_LIMIT,
    Dtype,
    FileSource,
    InMemory,
    Source,
    checked_shape,
    checked_size,
    fill,
    open_regular,
    source_of_bfloat16,
)

_LONGEST_HEADER = 2**16  # NumPy itself refuses more than 10 000 characters


def open_npy(name: str, path: str) -> Source:
    """The array of a .npy file."""
    file, size = open_regular(name, path)
    try:
        shape, fortran, dtype, offset = read_header(name, file)
        checked_size(name, shape, dtype.itemsize, size - offset)

        def make(of: Dtype, stored: str) -> Source:
            if fortran and sum(n > 1 for n in shape) > 1:
                return _reordered(name, file, offset, shape, of, stored)
            return FileSource(name, file, offset, shape, of, stored)

        return source_of_bfloat16(make) if dtype.kind == "V" else make(dtype, dtype.name)
    except BaseException:
        file.close()
        raise


def read_header(name: str, file: BinaryIO | io.FileIO) -> tuple[tuple[int, ...], bool, Dtype, int]:
    """Shape, whether in Fortran's order, dtype (V2: bfloat16), and where the elements begin."""
    start = file.read(12) or b""
    if start[:6] != npy_format.MAGIC_PREFIX:
        raise FileFault(name, "is no .npy file: it does not begin with \\x93NUMPY")
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FileFault(name, f"has the unknown .npy version {'.'.join(map(str, version))}")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > _LONGEST_HEADER:
        raise FileFault(name, f"claims a header of {length} bytes")
    text = start[8 + width :] + (file.read(max(0, length - (4 - width))) or b"")
    if len(start) < 12 or len(text) < length:
        raise FileFault(name, "ends within its header")
    stream = io.BytesIO(start[8 : 8 + width] + text[:length])
    read: Any = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = read(stream)
    except Exception as error:  # literal_eval of any text: SyntaxError, RecursionError, MemoryError, ...
        raise FileFault(name, f"has an unreadable .npy header ({type(error).__name__})") from error
    if dtype.hasobject:
        raise FileFault(name, "holds Python objects (a pickle), which are never loaded; save an array of numbers")
    number = dtype.kind in "fiub" and dtype.itemsize <= 8
    if dtype.names or dtype.subdtype or not (number or dtype.str[1:] == "V2"):
        raise FileFault(name, f"has the dtype {dtype}; expected floats of 16, 32 or 64 bits, bfloat16 or integers")
    return checked_shape(name, shape), bool(fortran), dtype, 8 + width + length


def _reordered(
    name: str, file: io.FileIO, offset: int, shape: tuple[int, ...], dtype: Dtype, stored: str
) -> Source:
    """An array in Fortran's order: its rows are spread over the whole file, so only a small one is taken."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > WHOLE_LIMIT:
        raise FileFault(
            name,
            f"{stored} of shape {shape} is stored in Fortran's order, a row spread over the whole file; save "
            "numpy.ascontiguousarray(a) instead",
        )
    data = np.empty(nbytes, np.uint8)
    fill(name, file, offset, data)
    file.close()
    array = data.view(dtype).reshape(shape, order="F")
    return InMemory(name, np.ascontiguousarray(array), stored)
