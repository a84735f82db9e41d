"""Convert a file of logits, block by block: between .npy, .safetensors, .kld of llama.cpp, .npz and .zarr (from these).

SOURCE is any file that eval reads; DEST is F.npy, F.safetensors[:NAME] or F.kld, and appears only when it is whole.
A .kld holds log-probabilities in 16 bits, the tokens of each chunk, and rows for the second half of a chunk only:
written from logits of shape (chunks, n_ctx, classes), or of these rows alone, and tokens of shape (chunks, n_ctx).
Read, it gives its log-probabilities as float32, of shape (chunks, rows, classes).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from ._blocks import Block, positions_of, scored
from ._faults import FileFault, UsageFault
from ._options import add_reading
from ._output import amount, replacing
from ._progress import progress, warn
from .formats import Array, Source, TokenSource, open_logits, open_vector, split_name
from .formats._source import Dtype, bfloat16
from .formats.kld import HEADER, MAGIC, encode

HELP = "convert a file of logits to another format or type"
EXAMPLES = """\
examples:
  fastxent convert base.kld base.npy --tokens tokens.npy      tokens.npy is written, too
  fastxent convert logits.npy base.kld --tokens tokens.npy    tokens.npy is read
  fastxent convert logits.npy logits.safetensors:logits --dtype bfloat16

exit code: 0, or 1 if a file cannot be converted, 2 for wrong usage
"""

_NAMES = {"float16": ("F16", "<f2"), "bfloat16": ("BF16", ""), "float32": ("F32", "<f4"), "float64": ("F64", "<f8")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastxent convert``."""
    parser.add_argument("source", metavar="SOURCE", help="the file of logits; FILE:NAME for an array inside a file")
    parser.add_argument("dest", metavar="DEST", help="F.npy, F.safetensors, F.safetensors:NAME or F.kld")
    parser.add_argument("--dtype", choices=list(_NAMES), help="the type of the numbers in DEST (default: as in SOURCE)")
    parser.add_argument(
        "--tokens", metavar="F",
        help="tokens of shape (chunks, n_ctx): read from F to write a .kld; written to F.npy where SOURCE is a .kld",
    )
    parser.add_argument(
        "--log-probs", action="store_true",
        help="SOURCE has log-probabilities already (such as those of a .kld): no softmax is taken for a .kld",
    )
    add_reading(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run ``fastxent convert``."""
    kind, path, inside = split_name(arguments.dest)
    if kind not in (".npy", ".safetensors", ".kld"):
        raise UsageFault(f"{arguments.dest}: expected F.npy, F.safetensors, F.safetensors:NAME or F.kld to write to")
    if inside == "__metadata__":
        raise UsageFault(f"{arguments.dest}: the format keeps that name for itself")
    if kind == ".kld" and arguments.dtype:
        raise UsageFault("a .kld has a type of its own: no --dtype")
    if arguments.log_probs and kind != ".kld":
        raise UsageFault("--log-probs is for writing a .kld")
    with contextlib.ExitStack() as stack:
        source, own = open_logits(arguments.source, spread=False)
        stack.callback(source.close)
        positions_of([source])
        target = Path(path)
        if Path(split_name(arguments.source)[1]).resolve() == target.resolve():
            raise UsageFault(f"{arguments.dest}: SOURCE and DEST are one file")
        if arguments.tokens and kind != ".kld":
            if own is None:
                raise UsageFault("--tokens is for a .kld as SOURCE or DEST")
            if Path(arguments.tokens).resolve() == target.resolve():
                raise UsageFault(f"{arguments.tokens}: DEST and --tokens are one file")
        out = stack.enter_context(stack.enter_context(replacing(target)).open("wb"))
        if kind == ".kld":
            _write_kld(out, source, own, arguments, stack)
        else:
            _write_array(out, source, kind, inside or "logits", arguments)
            if own is not None and arguments.tokens:
                _write_tokens(arguments.tokens, own)
        size = out.tell()
    warn("convert", f"{arguments.dest}: {amount(size)} of {source.describe()}", arguments.quiet)
    return 0


def _write_array(out: BinaryIO, source: Source, kind: str, name: str, arguments: argparse.Namespace) -> None:
    if arguments.dtype:
        dtype: Dtype | None = bfloat16() if arguments.dtype == "bfloat16" else np.dtype(arguments.dtype)
        if dtype is None:
            raise UsageFault("--dtype bfloat16 needs ml_dtypes: pip install ml_dtypes")
    else:
        dtype = source.dtype.newbyteorder("<")
    if kind == ".npy":
        header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": source.shape}
        npy_format.write_array_header_1_0(out, header)
    else:
        out.write(_safetensors_header(name, source.shape, dtype))
    for values in _copied(source, dtype, arguments):
        out.write(values)


def _copied(source: Source, dtype: Dtype, arguments: argparse.Namespace) -> Any:
    """The elements in the type of the new file, as bytes; out of its range is a fault."""

    def converted(block: Block, _: None) -> Array:
        values = np.empty((block.stop - block.start, source.shape[-1]), dtype)
        for part, (rows,) in block.pieces:
            with np.errstate(over="ignore"):
                values[part] = rows
            if dtype != rows.dtype and dtype.itemsize < 8:
                lost = np.isinf(values[part].astype(np.float32)) & np.isfinite(rows)
                if lost.any():
                    row = block.start + part.start + int(np.argwhere(lost)[0][0])
                    raise FileFault(source.name, f"row {row} has a number beyond the range of {dtype}")
        return values.reshape(-1).view(np.uint8)

    parts = scored([source], arguments.block_mb * 10**6, lambda *_: None, converted)
    with progress(source.size * dtype.itemsize, arguments.quiet) as report, contextlib.closing(parts):
        for values in parts:
            yield values.data
            report(values.size)


def _safetensors_header(name: str, shape: tuple[int, ...], dtype: Dtype) -> bytes:
    codes = {code[1:]: key for key, code in _NAMES.values() if code}
    codes |= {f"{kind}{n}": f"{kind.upper()}{8 * n}" for kind in "iu" for n in (1, 2, 4, 8)}
    code = "BF16" if dtype.name == "bfloat16" else codes[f"{dtype.kind}{dtype.itemsize}"]
    end = math.prod(shape) * dtype.itemsize
    text = json.dumps({name: {"dtype": code, "shape": list(shape), "data_offsets": [0, end]}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tokens(path: str, own: TokenSource) -> None:
    if not path.endswith(".npy"):
        raise UsageFault(f"--tokens {path}: expected F.npy to write to")
    with replacing(Path(path)) as part, part.open("wb") as out:
        np.save(out, own.all())


def _write_kld(
    out: BinaryIO, source: Source, own: TokenSource | None, arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> None:
    if len(source.shape) != 3:
        raise FileFault(source.name, f"{source.describe()}: a .kld is written from shape (chunks, n_ctx, classes)")
    n_chunk, n_rows, n_vocab = source.shape
    tokens = _tokens(source, own, arguments, stack)
    n_ctx = tokens.shape[1]
    rows = n_ctx - 1 - n_ctx // 2
    if n_rows not in (n_ctx, rows):
        raise FileFault(
            source.name, f"{source.describe()}: with {n_ctx} tokens a chunk expected {n_ctx} rows each, or the {rows} "
            "that a .kld has",
        )
    first = n_ctx // 2 if n_rows == n_ctx else 0
    out.write(HEADER.pack(MAGIC, n_ctx, n_vocab, n_chunk))
    out.write(tokens.astype("<i4").data)

    def encoded(block: Block, _: None) -> tuple[Array, int]:
        pieces, nbytes = [], 0
        for part, (logits,) in block.pieces:
            time = np.arange(block.start + part.start, block.start + part.stop) % n_rows
            kept = np.flatnonzero((time >= first) & (time < first + rows))
            chosen = logits[kept]
            top = chosen.astype(np.float32, copy=False).max(axis=1)
            if not np.isfinite(top).all():  # a NaN or +inf among them, or nothing but -inf
                row = int((~np.isfinite(top)).argmax())
                where = block.start + part.start + int(kept[row])
                raise FileFault(source.name, f"row {where} is no row of logits: its largest number is {top[row]}")
            pieces.append(encode(chosen, arguments.log_probs))
            nbytes += logits.nbytes
        return np.concatenate(pieces), nbytes

    parts = scored([source], arguments.block_mb * 10**6, lambda *_: None, encoded)
    with progress(source.size * source.dtype.itemsize, arguments.quiet) as report, contextlib.closing(parts):
        for data, nbytes in parts:
            out.write(data.data)
            report(nbytes)


def _tokens(
    source: Source, own: TokenSource | None, arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> Array:
    if own is not None and not arguments.tokens:
        return own.all()
    if not arguments.tokens:
        raise UsageFault("a .kld has the tokens of each chunk: give --tokens F, of shape (chunks, n_ctx)")
    given = open_vector(arguments.tokens)
    stack.callback(given.close)
    if given.dtype.kind not in "iu" or len(given.shape) != 2 or given.shape[0] != source.shape[0]:
        raise FileFault(given.name, f"{given.describe()}: expected integers of shape ({source.shape[0]}, n_ctx)")
    if given.shape[1] < 3:
        raise FileFault(given.name, f"{given.describe()}: n_ctx is at least 3")
    tokens = given.whole()
    if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) < source.shape[-1]):
        raise FileFault(given.name, f"has tokens outside [0, {source.shape[-1]})")
    return tokens
