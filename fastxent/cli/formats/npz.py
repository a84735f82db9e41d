"""FILE.npz:NAME: a .npy file inside a zip archive, read as a stream; never the whole of it in memory."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

from .._faults import FileFault
from ._source import Array, Dtype, Source, checked_size, open_regular, source_of_bfloat16
from .npy import read_header

_LONGEST_DIRECTORY = 2**20  # bytes: a directory makes some ten times its size of objects
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # what NumPy writes
_PIECE = 2**20


class _Archive(io.FileIO):
    """A file that does not hand out more than a directory's worth in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _LONGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size) or b""


class NpzSource(Source):
    """A member of an archive: it can be read forwards, and again from the start."""

    def __init__(
        self, name: str, file: io.FileIO, archive: zipfile.ZipFile, member: str, offset: int, shape: tuple[int, ...],
        dtype: Dtype, stored: str,
    ) -> None:
        super().__init__(name, shape, dtype, stored)
        self.file, self.archive, self.member, self.offset = file, archive, member, offset
        self.stream: Any = None
        self.at = 0

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        size = self.dtype.itemsize
        view = buffer[: (stop - start) * size]
        with faults_of_zip(self.name):
            self._go_to(self.offset + start * size)
            self._fill(view.data)
            if stop == self.size and self.stream.read(1):  # the end is where the checksum is compared
                raise FileFault(self.name, "has bytes after its elements")
        return view.view(self.dtype)

    def _go_to(self, place: int) -> None:
        if self.stream is None or self.at > place:
            if self.stream is not None:
                self.stream.close()
            self.stream, self.at = self.archive.open(self.member), 0
        scratch = memoryview(bytearray(min(_PIECE, place - self.at)))
        while self.at < place:
            self._fill(scratch[: place - self.at])

    def _fill(self, rest: memoryview) -> None:
        while len(rest):
            count = self.stream.readinto(rest[:_PIECE])
            if not count:
                raise FileFault(self.name, f"ends {len(rest)} bytes early")
            self.at += count
            rest = rest[count:]

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.file.close()


def open_npz(name: str, path: str, array: str) -> Source:
    """An array of a .npz file; the only one if `array` is empty."""
    open_regular(name, path)[0].close()
    file = _Archive(path)
    try:
        with faults_of_zip(name):
            archive = zipfile.ZipFile(file)
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        if not array and len(members) == 1:
            (array,) = members
        if array not in members:
            there = ", ".join(sorted(members)[:20]) or "none"
            what = f"has no array {array!r}" if array else "say which array, as FILE.npz:NAME"
            raise FileFault(name, f"{what}; there are: {there}")
        info = members[array]
        if info.compress_type not in _METHODS:
            raise FileFault(name, f"is compressed by a method that NumPy does not use ({info.compress_type})")
        with faults_of_zip(name), archive.open(info) as stream:
            shape, fortran, dtype, offset = read_header(name, stream)  # type: ignore[arg-type]
        checked_size(name, shape, dtype.itemsize, info.file_size - offset)
        if fortran and sum(n > 1 for n in shape) > 1:
            raise FileFault(name, "is stored in Fortran's order; save numpy.ascontiguousarray(a) instead")

        def make(of: Dtype, stored: str) -> Source:
            return NpzSource(name, file, archive, info.filename, offset, shape, of, stored)

        return source_of_bfloat16(make) if dtype.kind == "V" else make(dtype, dtype.name)
    except BaseException:
        file.close()
        raise


@contextlib.contextmanager
def faults_of_zip(name: str) -> Iterator[None]:
    """Whatever zipfile and its decompressors raise of a broken archive, as the file's fault."""
    try:
        yield
    except FileFault:
        raise
    except Exception as error:
        raise FileFault(name, f"is no zip archive that can be read: {error or type(error).__name__}") from error
