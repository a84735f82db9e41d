"""The compiled engine, built from src/_native.pyx."""

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

PLAN_FIELDS: tuple[str, ...]

@final
class Call:
    """One plan, ready to run."""

    sequence_sums: NDArray[np.float64]
    sequence_divisors: NDArray[np.float64]

    def __init__(self, plan: tuple[Any, ...]) -> None: ...
    def prepare(self) -> tuple[float, int]: ...
    def run(
        self, scale: float = 1.0, sequence_scale: NDArray[np.float64] | None = None
    ) -> tuple[float, float, int]: ...

def codes() -> dict[str, int]: ...
def isa() -> str: ...
def available_isas() -> tuple[str, ...]: ...
def set_isa(name: str) -> None: ...
def compiler() -> str: ...
