"""Results as a table, JSON or CSV, on standard output or in a file that appears only when it is whole."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ._faults import FileFault, UsageFault
from .formats import split_name

FORMATS = ("table", "json", "csv")


def check_apart(outputs: Sequence[str | None], inputs: Sequence[str | None]) -> None:
    """Refuse to write over what is read, or two results to one file."""
    taken = [Path(split_name(name)[1]).resolve() for name in inputs if name is not None]
    for name in outputs:
        if name is None:
            continue
        target = Path(name).resolve()
        if target in taken and (target.is_file() or not target.exists()):
            raise UsageFault(f"{name}: would take the place of another file of this command")
        taken.append(target)


@contextlib.contextmanager
def opened(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file beside `path` that takes its place at the end, if nothing went wrong."""
    if path is None:
        yield sys.stdout
        return
    if stream := _standard_stream(path):
        yield stream
        return
    with replacing(Path(path)) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """The path of a new file in the same folder, renamed to `target` at the end, removed if anything went wrong."""
    if (target.exists() and not target.is_file()) or _is_device(target):  # a pipe, /dev/stderr: nothing to replace
        yield target
        return
    final = Path(os.path.realpath(target))  # a link stays what it is
    try:
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    except OSError as error:
        raise FileFault(target, f"cannot be written: {error.strerror}") from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # as a file that is simply opened
        part.replace(final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _standard_stream(path: str) -> TextIO | None:
    """The stream that `path` is another name of: /dev/stdout, or the file that it is written to."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # there is no such file; the stream is not the system's
            if os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                return stream
    return None


def _is_device(target: Path) -> bool:
    """Whether a path, or a link on its way, is among the system's names of open files."""
    path = os.path.abspath(target)
    for _ in range(40):  # as many links as the system follows
        if path.startswith(("/dev/", "/proc/")):
            return True
        if not os.path.islink(path):
            return False
        path = os.path.abspath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return False


def write(out: TextIO, text: str) -> None:
    """The last that is written; whoever reads it may have left."""
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Write nowhere from now on: Python would flush once more at exit and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def to_json(values: Mapping[str, Any], indent: bool = True) -> str:
    """An object by the standard of JSON, which has no NaN and no infinities: null, and 1e999, which reads as one."""
    items = [f"{json.dumps(str(name))}: {_json_value(value)}" for name, value in values.items()]
    return "{\n  " + ",\n  ".join(items) + "\n}" if indent else "{" + ", ".join(items) + "}"


def _json_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return to_json(value, indent=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_json_value, value)) + "]"
    if isinstance(value, float):
        if math.isnan(value):
            return "null"
        if math.isinf(value):
            return "1e999" if value > 0 else "-1e999"
    return json.dumps(value)


def to_csv(values: Mapping[str, Any], header: bool = True) -> str:
    """A line of names and a line of values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(values)
    writer.writerow("" if v is None else repr(v) if isinstance(v, float) else v for v in values.values())
    return text.getvalue()


def to_table(rows: list[tuple[str, str, str]]) -> str:
    """Name, value and remark in columns."""
    wide, right = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "".join(f"{name:<{wide}}  {value:>{right}}  {remark}".rstrip() + "\n" for name, value, remark in rows)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table."""
    if value is None:
        return "-"
    if value and math.isfinite(value) and not 0.1 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}"


def amount(nbytes: int) -> str:
    """A number of bytes."""
    if nbytes < 1000:
        return f"{nbytes} B"
    size = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size:.1f} TB"
