"""The files of llama.cpp's ``--kl-divergence-base``: tokens, and log-probabilities in 16 bits.

``_logits_``, uint32 n_ctx, int32 n_vocab, int32 n_chunk, int32 tokens[n_chunk][n_ctx]; then for each chunk the rows
n_ctx // 2 to n_ctx - 2, each for the token after it: float32 scale, float32 minimum, uint16 q[n_vocab], padded to an
even number: log-probability = scale q + minimum. All little-endian.

Whatever lies more than 16 below the largest logit is stored at 16 below, so q = 0 is a floor, not a value, and a row's
probabilities add up to more than 1: by over 1 % for a large vocabulary, most of which is at the floor. For scoring
(`spread`), where that is more than 0.01 %, the classes at the floor get together what the others leave, which makes the
row a distribution again and every class above the floor exactly what was stored. Else a row is given as it is stored.
"""

from __future__ import annotations

import io
import struct

import numpy as np

import fastxent

from .._faults import FileFault
from ._source import PIECE, Array, Source, fill, open_regular

MAGIC = b"_logits_"
HEADER = struct.Struct("<8sIii")
DEPTH = 16.0  # how far below the largest logit the floor lies
STEPS = 65535
_LARGEST_EXCESS = 1e-3  # of the probabilities above the floor: 16 bits leave 1e-5
_LEAST_EXCESS = 1e-4  # of a floor that is worth the trouble
_LEAST = 0.02  # what a class at the floor keeps of the stored probability, where rounding leaves nothing for it


def row_length(n_vocab: int) -> int:
    """How many uint16 a row takes."""
    return 2 * ((n_vocab + 1) // 2) + 4


class KldSource(Source):
    """The log-probabilities, float32, of shape (n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)."""

    parallel = True

    def __init__(self, name: str, file: io.FileIO, n_ctx: int, n_vocab: int, n_chunk: int, spread: bool) -> None:
        rows = n_ctx - 1 - n_ctx // 2
        super().__init__(name, (n_chunk, rows, n_vocab), np.dtype(np.float32), "16-bit log-probabilities")
        self.file, self.spread, self.n_ctx = file, spread, n_ctx
        self.begin = HEADER.size + 4 * n_chunk * n_ctx

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        n_vocab = self.shape[-1]
        width = 2 * row_length(n_vocab)
        result = buffer[: 4 * (stop - start)].view(np.float32).reshape(-1, n_vocab)
        step = max(1, PIECE // width)
        raw = np.empty((min(step, len(result)), width), np.uint8)
        for at in range(0, len(result), step):
            out = result[at : at + step]
            self._decode(start // n_vocab + at, raw[: len(out)], out)
        return result.reshape(-1)

    def _decode(self, first: int, raw: Array, out: Array) -> None:
        """A few rows from `first` on, by way of `raw`."""
        fill(self.name, self.file, self.begin + first * raw.shape[1], raw.reshape(-1))
        steps = raw[:, 8 : 8 + 2 * self.shape[-1]].view("<u2")
        scale, minimum = raw[:, :8].copy().view("<f4").T
        wrong = ~(np.isfinite(scale) & np.isfinite(minimum) & (scale >= 0))
        if wrong.any():
            row = int(wrong.argmax())
            raise FileFault(self.name, f"row {first + row} has the scale {scale[row]} and the minimum {minimum[row]}")
        with np.errstate(over="ignore"):
            np.multiply(steps, scale[:, None], out=out, dtype=np.float32, casting="same_kind")
            out += minimum[:, None]
        if self.spread:
            deep = scale > DEPTH / STEPS * (1 - 1e-5)  # else nothing was cut off
            _spread(out, (steps == 0) & deep[:, None], minimum.astype(np.float64))

    def close(self) -> None:
        self.file.close()


def _spread(rows: Array, at_floor: Array, minimum: Array) -> None:
    """Give the classes at the floor of each row what the others leave, where these are a distribution's."""
    count = np.count_nonzero(at_floor, axis=1)
    with np.errstate(all="ignore"):
        stored = count * np.exp(minimum)
        # Of a whole that is nearly 1: the sum of all, less what is stored at the floor.
        above = np.exp(fastxent.logsumexp(rows, num_threads=1).astype(np.float64)) - stored
        share = np.maximum(1 - above, _LEAST * stored) / count
        lower = minimum + np.log(share / np.exp(minimum))
    for row in np.flatnonzero((above <= 1 + _LARGEST_EXCESS) & (stored > _LEAST_EXCESS) & (lower < minimum)):
        rows[row, at_floor[row]] = lower[row]


class TokenSource(Source):
    """The tokens that the rows of a `KldSource` are for, of the shape (n_chunk, rows); `all` has all of them."""

    def __init__(self, rows: KldSource) -> None:
        super().__init__(rows.name, rows.shape[:-1], np.dtype("<i4"), "int32")
        self.file, self.n_ctx = rows.file, rows.n_ctx

    def read(self, start: int, stop: int, buffer: Array) -> Array:
        rows = self.shape[1]
        if start == stop:
            return np.empty(0, self.dtype)
        first, last = start // rows, -(-stop // rows)
        chosen = self._chunks(first, last)[:, self.n_ctx - rows :].reshape(-1)
        return chosen[start - first * rows : stop - first * rows]

    def all(self) -> Array:
        """int32 of shape (n_chunk, n_ctx)."""
        return self._chunks(0, self.shape[0])

    def _chunks(self, first: int, last: int) -> Array:
        tokens = np.empty((last - first, self.n_ctx), self.dtype)
        fill(self.name, self.file, HEADER.size + 4 * first * self.n_ctx, tokens.reshape(-1).view(np.uint8))
        return tokens


def open_kld(name: str, path: str, spread: bool) -> tuple[KldSource, TokenSource]:
    """Rows and tokens of a .kld file."""
    file, size = open_regular(name, path)
    try:
        header = file.read(HEADER.size) or b""
        if header[:8] != MAGIC:
            raise FileFault(name, "is no .kld file: it does not begin with _logits_")
        if len(header) < HEADER.size:
            raise FileFault(name, "ends within its header")
        _, n_ctx, n_vocab, n_chunk = HEADER.unpack(header)
        if n_ctx < 3 or n_vocab < 1 or n_chunk < 0:
            raise FileFault(name, f"has a wrong header: n_ctx {n_ctx}, n_vocab {n_vocab}, n_chunk {n_chunk}")
        rows = n_chunk * (n_ctx - 1 - n_ctx // 2)
        needed = HEADER.size + 4 * n_chunk * n_ctx + 2 * rows * row_length(n_vocab)
        if needed != size:
            what = "is cut short or has a wrong header" if needed > size else "has a wrong header or bytes to spare"
            claimed = f"{n_chunk} chunks of {n_ctx} tokens and {n_vocab} classes take {needed} bytes, not {size}"
            raise FileFault(name, f"{what}: {claimed}")
        source = KldSource(name, file, n_ctx, n_vocab, n_chunk, spread)
        return source, TokenSource(source)
    except BaseException:
        file.close()
        raise


def encode(rows: Array, normalised: bool) -> Array:
    """Rows of logits, or of log-probabilities (`normalised`), as the bytes of a .kld file: uint8 (rows, bytes)."""
    count, n_vocab = rows.shape
    x = rows.astype(np.float32, copy=False)
    top = x.max(axis=1)
    low = np.maximum(x.min(axis=1), top - np.float32(DEPTH))
    scale = (top - low) / np.float32(STEPS)
    total = 0 if normalised else fastxent.logsumexp(x).astype(np.float64)
    out = np.zeros((count, 2 * row_length(n_vocab)), np.uint8)
    out[:, :8].view("<f4")[:] = np.stack([scale, (low.astype(np.float64) - total).astype(np.float32)], axis=1)
    steps = out[:, 8 : 8 + 2 * n_vocab].view("<u2")
    with np.errstate(all="ignore"):
        inverse = np.where(scale > 0, 1 / scale, 0)[:, None]
        for at in range(0, count, step := max(1, PIECE // (4 * n_vocab))):
            piece = slice(at, at + step)
            quantised = (np.maximum(x[piece], low[piece, None]) - low[piece, None]) * inverse[piece]
            steps[piece] = np.minimum(np.rint(quantised), STEPS)
    return out
