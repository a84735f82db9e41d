"""A few answers of the installed package against `fastxent.reference`, within the bounds that it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import fastxent
from fastxent import reference, reference_elementwise, reference_scoring

from .formats import Array
from .formats._source import bfloat16

_SHAPES = ((7, 5), (3, 9, 40), (4, 1000), (2, 50257))


class Check(NamedTuple):
    """What was checked, whether it was right, and how far it was off."""

    name: str
    right: bool
    remark: str


def run_checks() -> list[Check]:
    """All checks; an exception is a wrong answer too."""
    return [check for dtype in _dtypes() for check in _checks_of(dtype)] + [_masked()]


def _dtypes() -> list[np.dtype[Any]]:
    half = bfloat16()
    return [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), *([half] if half else [])]


def _checks_of(dtype: np.dtype[Any]) -> Iterator[Check]:
    unit = 2.0**-52 if dtype == np.float64 else 2.0**-23
    stored = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype.name, unit)
    cases: dict[str, tuple[float, Callable[[Any, Array, Array], Any]]] = {
        "cross_entropy": (64 * unit, lambda of, x, t: of("cross_entropy")(x, t, reduction="none")),
        "cross_entropy_and_grad": (
            64 * unit + 2 * stored, lambda of, x, t: of("cross_entropy_and_grad")(x, t, reduction="sum")[1]
        ),
        "softmax": (64 * unit + 2 * stored, lambda of, x, t: of("softmax")(x)),
        "kl_div": (64 * unit, lambda of, x, t: of("kl_div")(x, x[..., ::-1], reduction="none")),
        "token_statistics": (64 * unit, lambda of, x, t: np.stack([*map(np.float64, of("token_statistics")(x, t))])),
    }
    for name, (bound, way) in cases.items():
        worst, remark = 0.0, ""
        for shape in _SHAPES:
            rng = np.random.default_rng(shape[-1])
            x, t = (3 * rng.standard_normal(shape)).astype(dtype), rng.integers(0, shape[-1], shape[:-1])
            try:
                worst = max(worst, _error(way(_public, x, t), way(_oracle, x, t)))
            except Exception as error:
                worst, remark = np.inf, f"{type(error).__name__}: {error}"
        yield Check(f"{name}, {dtype.name}", worst <= bound, remark or f"error {worst:.1e}, allowed {bound:.1e}")


def _public(name: str) -> Any:
    return getattr(fastxent, name)


def _oracle(name: str) -> Any:
    return next(getattr(m, name) for m in (reference, reference_scoring, reference_elementwise) if hasattr(m, name))


def _error(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the number and of 1e-3 of the largest one of the array."""
    found, expected = np.asarray(found).astype(np.float64), np.asarray(expected).astype(np.float64)
    if found.shape != expected.shape:
        return np.inf
    scale = np.maximum(np.abs(expected), 1e-3 * np.abs(expected).max())
    return float(np.nan_to_num(np.abs(found - expected) / scale, nan=np.inf).max())


def _masked() -> Check:
    """Padding that holds NaN and impossible classes adds nothing."""
    rng = np.random.default_rng(1)
    x, t, lengths = rng.standard_normal((5, 8, 33)).astype(np.float32), rng.integers(0, 33, (5, 8)), [8, 3, 0, 5, 1]
    padding = np.arange(8) >= np.array(lengths)[:, None]
    x[padding], t[padding] = np.nan, 10**6
    try:
        found, expected = (float(of("cross_entropy")(x, t, lengths=lengths)) for of in (_public, _oracle))
    except Exception as error:
        return Check("padding", False, f"{type(error).__name__}: {error}")
    return Check("padding", abs(found - expected) <= 1e-5 * abs(expected), f"{found:.7g}, expected {expected:.7g}")
