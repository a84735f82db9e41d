"""What is measured: a `Case` names shape, dtype and options; `make` turns it into arrays, always the same ones.

Shapes are those of the logits. Large cases are larger than the last-level cache of the machines at hand (32 MB),
because only there is the memory the limit; small ones show the cost of a call.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MIB = 1 << 20
CACHE_BYTES = 32 * MIB

DTYPES = ["float32", "float64", "bfloat16", "float16"]
FEW_ELEMENTS = 262144 * 17


@dataclass(frozen=True)
class Case:
    """One set of inputs. `padding` is "", "lengths" or "mask", with the fraction `valid` of the positions left."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    axis: int = -1
    label_smoothing: float = 0.0
    weighted: bool = False
    probabilities: bool = False
    padding: str = ""
    valid: float = 1.0

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def positions(self) -> int:
        return math.prod(self.shape) // max(self.classes, 1)

    @property
    def last_axis(self) -> bool:
        return self.axis in (-1, len(self.shape) - 1)

    @property
    def plain(self) -> bool:
        """Class indices, classes last, no option: what every peer can do."""
        options = self.label_smoothing or self.weighted or self.probabilities or self.padding
        return self.last_axis and not options

    @property
    def name(self) -> str:
        words = ["x".join(map(str, self.shape)), self.dtype]
        if not self.last_axis:
            words.append(f"axis={self.axis}")
        if self.label_smoothing:
            words.append(f"smoothing={self.label_smoothing:g}")
        if self.weighted:
            words.append("weighted")
        if self.probabilities:
            words.append("probabilities")
        if self.padding:
            words.append(f"{self.padding}={self.valid:g}")
        return " ".join(words)

    def make(self) -> Data:
        return Data(self)


class Data:
    """The arrays of a case. Peers that know no mask get -100 in `targets` at invalid positions, as they expect."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(zlib.crc32(case.name.encode()))
        axis = case.axis % len(case.shape)
        positions = case.shape[:axis] + case.shape[axis + 1 :]
        self.logits = rng.standard_normal(case.shape, dtype=np.float32)
        self.logits *= 2
        self.logits = self.logits.astype(dtype_of(case.dtype), copy=False)
        self.lengths: np.ndarray[Any, Any] | None = None
        self.mask: np.ndarray[Any, Any] | None = None
        if case.padding == "lengths":
            self.lengths = uneven_lengths(rng, positions[0], positions[1], case.valid)
            self.valid = np.arange(positions[1]) < self.lengths[:, None]
        elif case.padding == "mask":
            flat = np.arange(case.positions) < round(case.valid * case.positions)
            self.mask = self.valid = rng.permutation(flat).reshape(positions)
        else:
            self.valid = np.ones(positions, bool)
        self.targets: np.ndarray[Any, Any]
        if case.probabilities:
            q = rng.random(case.shape, dtype=np.float32)
            q /= q.sum(axis, keepdims=True)
            self.targets = q.astype(self.logits.dtype, copy=False)
        else:
            self.targets = rng.integers(0, case.classes, positions)
            if case.padding:
                self.targets[~self.valid] = -100
        self.class_weight = None
        if case.weighted:
            self.class_weight = rng.uniform(0.5, 2.0, case.classes)

    @cached_property
    def rows(self) -> np.ndarray[Any, Any]:
        """The logits as (positions, classes), a view."""
        return self.logits.reshape(-1, self.case.classes)

    @cached_property
    def flat_targets(self) -> np.ndarray[Any, Any]:
        return self.targets.reshape(-1)

    @cached_property
    def valid_fraction(self) -> float:
        return float(self.valid.mean())

    @property
    def bytes_read(self) -> int:
        """Bytes that a loss cannot do without: the logits of valid positions, and the targets."""
        return int(self.logits.nbytes * self.valid_fraction) + int(self.targets.nbytes)

    @property
    def bytes_both(self) -> int:
        """Bytes that loss and gradient cannot do without: logits of valid positions read, the gradient written."""
        return int(self.logits.nbytes * self.valid_fraction) + int(self.logits.nbytes)


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return np.dtype(name)


def uneven_lengths(rng: np.random.Generator, batch: int, time: int, valid: float) -> np.ndarray[Any, Any]:
    """Lengths from 0 to `time`, very uneven, whose mean is `valid` * `time`: a power of uniform numbers."""
    u = (np.arange(batch) + rng.random(batch)) / batch
    low, high = 0.0, 200.0
    for _ in range(60):
        power = (low + high) / 2
        low, high = (power, high) if np.mean(u**power) > valid else (low, power)
    return rng.permutation(np.round(time * u**power).astype(np.int64))


def rows_for(classes: int, dtype: str, nbytes: int) -> int:
    """Positions that make logits of about `nbytes`."""
    return max(1, round(nbytes / (classes * dtype_of(dtype).itemsize)))


@dataclass(frozen=True)
class Plan:
    """How large a run is: the shapes of each suite."""

    grid: list[tuple[int, ...]]
    few: list[int]
    few_elements: int
    sizes: list[int]
    sizes_bytes: int
    types: list[Case]
    options: list[tuple[int, ...]]
    sequences: list[tuple[int, ...]]
    activations: list[tuple[int, ...]]
    small: list[tuple[int, ...]]
    layouts: list[tuple[int, ...]]
    fractions: list[float]
    scoring: list[Case]
    threads: list[tuple[int, ...]]
    isa: list[Case]
    forced: list[str]
    gemm: list[tuple[int, ...]]
    gemm_size: int
    torch: list[Case]
    jax: list[Case]
    hessian: list[Case]
    memory: tuple[int, int]
    memory_cases: list[Case]
    linear: list[tuple[int, int, int]]  # positions, features, classes
    sweep: list[tuple[int, int, int]]
    aside: tuple[str, ...] = ()  # the peers outside the grid, which has all; () stands for all here too


FULL = Plan(
    grid=[(320, 5), (8192, 17), (262144, 17), (256, 1000), (32768, 1000), (1024, 50257), (512, 128256)],
    few=[2, 3, 5, 8, 10, 12, 16, 17, 24, 32, 40, 50, 64],
    few_elements=FEW_ELEMENTS,
    sizes=[17, 64, 128, 256, 512, 1000, 4096, 16384, 50257, 128256],
    sizes_bytes=128 * MIB,
    types=[Case(shape, dtype) for dtype in DTYPES[1:] for shape in [(262144, 17), (32768, 1000), (1024, 50257)]],
    options=[(65536, 17), (16384, 1000), (512, 50257)],
    sequences=[(64, 512, 1000), (8, 128, 50257), (512, 512, 17)],
    activations=[(262144, 17), (32768, 1000), (1024, 50257)],
    small=[(1, 5), (320, 5), (32, 10), (1, 1000)],
    layouts=[(64, 17, 4096), (64, 32, 2048), (16, 128, 8192), (32, 1000, 1024), (4, 50257, 256)],
    fractions=[0.1, 0.25, 0.5, 0.75, 0.9],
    scoring=[
        *[Case(s, d) for s in [(32768, 1000), (1024, 50257)] for d in DTYPES],
        *[Case((64, 32, 2048), axis=1), Case((32, 1000, 1024), axis=1), Case((262144, 17))],
    ],
    threads=[(262144, 17), (32768, 1000), (1024, 50257)],
    isa=[
        *[Case((262144, 17)), Case((32768, 1000)), Case((1024, 50257))],
        *[Case((2048, 50257), "bfloat16"), Case((2048, 50257), "float16"), Case((512, 50257), "float64")],
    ],
    forced=["avx2", "baseline"],
    gemm=[(320, 5), (2048, 1000), (16384, 1000)],
    gemm_size=1024,
    torch=[
        *[Case(s, d) for s in [(320, 5), (320, 50), (1024, 64)] for d in DTYPES[::2]],
        *[Case(s, d) for s in [(256, 1000), (4096, 1000), (32768, 1000), (1024, 50257)] for d in DTYPES[::2]],
        *[Case((16, 1000, 1024), axis=1), Case((4096, 1000), weighted=True), Case((4096, 1000), probabilities=True)],
    ],
    jax=[
        *[Case(s, d) for s in [(320, 5), (8192, 17), (256, 1000), (32768, 1000), (1024, 50257)] for d in DTYPES[::2]],
        *[Case((4096, 1000), weighted=True), Case((4096, 1000), probabilities=True)],
    ],
    hessian=[Case(s, d) for s in [(32768, 1000), (262144, 17), (1797, 10)] for d in DTYPES[:2]],
    memory=(1024, 50257),
    memory_cases=[
        *[
            Case((262144, 17)),
            Case((1024, 50257), "bfloat16"),
            Case((1024, 50257), "float64"),
            Case((4, 50257, 256), axis=1),
        ],
        *[Case((1024, 50257), label_smoothing=0.1, weighted=True), Case((1024, 50257), probabilities=True)],
        Case((16, 64, 50257), padding="lengths", valid=0.5),
    ],
    linear=[(2048, 768, 50257)],
    # Fewer positions where each takes longer.
    sweep=[(n, d, v) for v in (8192, 50257, 128256) for n, d in ((1024, 64), (512, 256), (256, 768), (256, 2048))],
)

QUICK = Plan(
    grid=[(320, 5), (262144, 17), (256, 1000), (16384, 1000), (512, 50257)],
    few=[5, 10, 32, 50],
    few_elements=FEW_ELEMENTS,
    sizes=[17, 1000, 50257],
    sizes_bytes=64 * MIB,
    types=[Case((256, 50257), "bfloat16")],
    options=[(4096, 1000)],
    sequences=[(32, 512, 1000)],
    activations=[(8192, 1000)],
    small=[(1, 5), (320, 5)],
    layouts=[(64, 17, 4096), (16, 1000, 1024)],
    fractions=[0.25, 0.75],
    scoring=[Case((16384, 1000)), Case((512, 50257), "bfloat16"), Case((16, 1000, 1024), axis=1)],
    threads=[(16384, 1000)],
    isa=[Case((262144, 17)), Case((16384, 1000))],
    forced=["avx2"],
    gemm=[(2048, 1000)],
    gemm_size=1024,
    torch=[Case(s, d) for s in [(320, 5), (256, 1000), (1024, 50257)] for d in DTYPES[::2]],
    jax=[Case(s) for s in [(320, 5), (256, 1000), (1024, 50257)]],
    hessian=[Case((32768, 1000))],
    memory=(256, 50257),
    memory_cases=[Case((256, 50257), "bfloat16"), Case((8, 32, 50257), padding="lengths", valid=0.5)],
    linear=[(512, 768, 50257)],
    sweep=[(256, d, 8192) for d in (64, 256)],
    aside=("fastxent-numba", "numpy", "sklearn", "torch", "jax"),
)

SMOKE = Plan(
    grid=[(32, 5), (7, 300)],
    few=[3],
    few_elements=300,
    sizes=[33],
    sizes_bytes=4096,
    types=[Case((8, 20), dtype) for dtype in DTYPES[1:]],
    options=[(16, 9)],
    sequences=[(3, 8, 11)],
    activations=[(8, 20)],
    small=[(1, 5)],
    layouts=[(3, 5, 16)],
    fractions=[0.5],
    scoring=[Case((16, 40)), Case((3, 5, 16), axis=1)],
    threads=[(16, 40)],
    isa=[Case((16, 40))],
    forced=["baseline"],
    gemm=[(16, 40)],
    gemm_size=32,
    torch=[Case((16, 40)), Case((16, 40), "bfloat16"), Case((3, 5, 16), axis=1)],
    jax=[Case((16, 40))],
    hessian=[Case((16, 40)), Case((16, 40), "float64")],
    memory=(16, 40),
    memory_cases=[],
    linear=[(16, 8, 40)],
    sweep=[(16, d, v) for v in (40, 60) for d in (4, 8)],
)

PLANS = {"full": FULL, "quick": QUICK, "smoke": SMOKE}
