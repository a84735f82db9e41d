"""``--fail-if 'ppl>8.2'``: a comparison that decides over the exit code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ._faults import FileFault, UsageFault

HOLDS = 3  # the exit code
ALIASES = {"ppl": "perplexity", "loss": "nll", "bpb": "bits_per_byte", "agreement": "top1_agreement"}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}
_GATE = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")


class Gate(NamedTuple):
    """NAME, comparison, NUMBER, and the text as it was given."""

    name: str
    compare: Callable[[float, float], bool]
    bound: float
    text: str


def gate(text: str) -> Gate:
    """Read a condition; ValueError if it is none."""
    match = _GATE.fullmatch(text)
    if not match or math.isnan(bound := float(match[3])):
        raise ValueError(text)
    return Gate(ALIASES.get(match[1], match[1]), _COMPARISONS[match[2]], bound, text.strip())


def check_names(gates: Sequence[Gate], names: Sequence[str]) -> None:
    """Refuse a condition on something that will not be computed, before anything is read."""
    for one in gates:
        if one.name not in names:
            raise UsageFault(f"--fail-if {one.text!r}: there is no {one.name!r}; there are {', '.join(names)}")


def holding(gates: Sequence[Gate], found: Mapping[str, float | None]) -> list[str]:
    """Those that hold, with the value; FileFault where there is no value to compare."""
    result = []
    for one in gates:
        value = found[one.name]
        if value is None or math.isnan(value):
            raise FileFault(f"--fail-if {one.text!r}", f"cannot be judged, {one.name} is {value}")
        if one.compare(value, one.bound):
            result.append(f"{one.text} holds: {one.name} is {value:.6g}")
    return result
