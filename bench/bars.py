"""The bars of docs/performance.md, each as a function from records to checks: measured value, bound, met or not.

Shares are of min(measured bandwidth, cap): on the machine that the bars were written for, bandwidth has two modes,
and a share of the faster one says more about the neighbours than about the code. Elsewhere the caps may be far too
low: the tables of the report therefore give the share of what was measured, without a cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .cases import CACHE_BYTES, FEW_ELEMENTS, dtype_of
from .contest import LIMITS, Record
from .linear import heads
from .measure import Estimate, median, ratio

CAPS = {"read": 34e9, "copy": 48e9}
OTHER_ENGINE = "fastxent-numba"
NOT_PEERS = ("fastxent", OTHER_ENGINE, "last axis", "full", "product", *LIMITS)
MIB = 1 << 20


@dataclass(frozen=True)
class Check:
    """One measured value against one bound."""

    bar: str
    case: str
    value: Estimate
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value.value >= self.bound if self.at_least else self.value.value <= self.bound

    @property
    def margin(self) -> float:
        """Above 1 where the bar is met: how many times over."""
        quotient = self.value.value / self.bound
        return quotient if self.at_least else 1 / max(quotient, 1e-12)


def seconds(record: Record, label: str) -> list[float]:
    found: list[float] = record["contestants"].get(label, {}).get("seconds", [])
    return found


def bandwidth(record: Record, kind: str) -> float:
    """Bytes a second that the limit reached in this race; NaN where it did not run."""
    laps = seconds(record, kind)
    return record["contestants"][kind]["bytes"] / median(laps).value if laps else math.nan


def share(record: Record, label: str = "fastxent", capped: bool = True) -> Estimate | None:
    """The part of the limit that the contestant reached."""
    kind, nbytes = ("read", "bytes_read") if record["operation"] == "forward" else ("copy", "bytes_both")
    limit, laps = bandwidth(record, kind), seconds(record, label)
    if math.isnan(limit) or not laps:
        return None
    limit = min(limit, CAPS[kind]) if capped else limit
    return median([record[nbytes] / t / limit for t in laps])


def best_peer(record: Record) -> tuple[str, Estimate] | None:
    """The fastest peer of a race, and how many times our time it took."""
    ours = seconds(record, "fastxent")
    peers = [label for label in record["contestants"] if label not in NOT_PEERS and seconds(record, label)]
    if not ours or not peers:
        return None
    best = min(peers, key=lambda label: median(seconds(record, label)).value)
    return best, ratio(seconds(record, best), ours)


def label(record: Record) -> str:
    return f"{record['name']}, {record['operation']}"


def forward_share(records: list[Record]) -> Iterator[Check]:
    bounds = {"float32": 0.9, "float64": 0.9, "bfloat16": 0.6, "float16": 0.5}
    for record in of(records, "sizes", "grid", "types", operation="forward"):
        case = record["case"]
        if case["shape"][-1] >= 512 and logits_bytes(record) > CACHE_BYTES and (value := share(record)):
            dtype = case["dtype"]
            title = f"forward, C >= 512, beyond the cache, {dtype}: share of the read bandwidth"
            yield Check(title, label(record), value, bounds[dtype], True)


def gradient_share(records: list[Record]) -> Iterator[Check]:
    for operation in ("given", "in_place"):
        for record in of(records, "sizes", "grid", operation=operation):
            case = record["case"]
            wanted = case["dtype"] == "float32" and case["shape"][-1] >= 512 and logits_bytes(record) > CACHE_BYTES
            if wanted and (value := share(record)):
                title = (
                    f"loss + gradient, {operation}, C >= 512, beyond the cache, float32: share of the copy bandwidth"
                )
                yield Check(title, label(record), value, 0.7, True)


def few_classes(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "few", "sizes", operation="forward"):
        n, classes = record["case"]["shape"]
        if n * classes < FEW_ELEMENTS or classes > 64 or record["case"]["dtype"] != "float32":
            continue
        group, bound = ("16 to 64", 0.6) if classes >= 16 else ("below 16", 0.5)
        if value := share(record):
            yield Check(f"few classes, C {group}: share of the read bandwidth", label(record), value, bound, True)
        if best := best_peer(record):
            title = "few classes: times the best peer"
            yield Check(title, f"{label(record)}, {best[0]}", best[1], 2.0, True, "x")


def layouts(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "layout"):
        ours, last = seconds(record, "fastxent"), seconds(record, "last axis")
        if ours and last and record["operation"] in ("forward", "given"):
            title = "class axis not last: time against the last axis, same data"
            yield Check(title, label(record), ratio(ours, last), 1.3, False, "x")


def peers(records: list[Record]) -> Iterator[Check]:
    found = [(record, best) for record in of(records, "grid") if record["operation"] in ("forward", "both")
             and (best := best_peer(record))]  # fmt: skip
    for record, (name, value) in found:
        yield Check("every cell of the grid: times the best peer", f"{label(record)}, {name}", value, 1.5, True, "x")
    if found:
        ends = [[getattr(value, end) for _, (_, value) in found] for end in ("value", "low", "high")]
        mean = Estimate(*(math.exp(sum(map(math.log, column)) / len(column)) for column in ends))
        title = "the grid: geometric mean of times the best peer"
        yield Check(title, f"{len(found)} cells", mean, 4.0, True, "x")


def other_engine(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "grid"):
        numba, ours, torch = (seconds(record, name) for name in (OTHER_ENGINE, "fastxent", "torch"))
        if not numba or record["operation"] not in ("forward", "both", "given"):
            continue
        if ours and record["case"]["shape"][-1] >= 1000:
            title = "the Numba engine, C ≥ 1000: time against the compiled one"
            yield Check(title, label(record), ratio(numba, ours), 2.5, False, "x")
        if torch:
            yield Check("the Numba engine: times torch eager", label(record), ratio(torch, numba), 1.0, True, "x")


def small_calls(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "small", operation="forward"):
        bound = {(1, 5): 3.0, (320, 5): 5.0}.get(tuple(record["case"]["shape"]))
        if bound and (laps := seconds(record, "fastxent")):
            yield Check("a small call", label(record), median(laps).times(1e6), bound, False, " us")


def masked(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "masks"):
        for name, contestant in record["contestants"].items():
            if name == "full" or not contestant.get("seconds"):
                continue
            v = contestant["valid"]
            bound = 1.1 * (v if record["operation"] == "forward" else v + 0.3 * (1 - v))
            value = ratio(contestant["seconds"], seconds(record, "full"))
            title = f"a fraction valid, {record['operation']}: time against all valid"
            yield Check(title, f"{record['name']} {v:.2f}", value, bound, False, "x")


def one_pass(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "scoring"):
        loss, all_at_once = seconds(record, "cross_entropy"), seconds(record, "token_statistics")
        if loss and all_at_once and record["case"]["shape"][record["case"]["axis"]] >= 1000:
            title = "token_statistics, C >= 1000: time against cross_entropy"
            yield Check(title, record["name"], ratio(all_at_once, loss), 1.3, False, "x")


def avx2(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "isa"):
        chosen, forced = (record["contestants"].get(name, {}) for name in ("default", "avx2"))
        if chosen.get("config", {}).get("instruction_set") == "avx512" and forced.get("seconds"):
            value = ratio(chosen["seconds"], forced["seconds"])
            yield Check("AVX2 forced: speed against AVX-512", label(record), value, 0.6, True)


def products(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "gemm"):
        alone, after = seconds(record, "alone"), seconds(record, "after")
        if alone and after:
            title = "a foreign GEMM between two calls: time against alone"
            yield Check(title, label(record), ratio(after, alone), 1.05, False, "x")


def torch(records: list[Record]) -> Iterator[Check]:
    """The adapter for torch against torch, by the size of the logits."""
    for record in of(records, "torch"):
        theirs, ours = (seconds(record, name) for name in ("torch", "fastxent.torch"))
        case = record["case"]
        size = math.prod(case["shape"])
        if not theirs or not ours or size < 320 * 5:
            continue
        value = ratio(theirs, ours)
        bound = 2.0 if size >= 256 * 1000 else 1.0
        title = f"fastxent.torch, from {'256 x 1000' if bound > 1 else '320 x 5'} up: times torch"
        yield Check(title, label(record), value, bound, True, "x")
        if tuple(case["shape"]) == (1024, 50257) and record["operation"] == "both":
            title = "fastxent.torch, forward + backward at 1024 x 50257: times torch"
            yield Check(title, label(record), value, 4.0, True, "x")


def jax(records: list[Record]) -> Iterator[Check]:
    """The adapter for JAX against optax, both under jit."""
    for record in of(records, "jax"):
        theirs, ours = (seconds(record, name) for name in ("jax", "fastxent.jax"))
        if theirs and ours and math.prod(record["case"]["shape"]) >= 320 * 5:
            title = "fastxent.jax, from 320 x 5 up: times optax under jit"
            yield Check(title, label(record), ratio(theirs, ours), 1.5, True, "x")


def hessians(records: list[Record]) -> Iterator[Check]:
    for record in of(records, "hessian"):
        theirs, ours = (seconds(record, name) for name in ("sklearn", "fastxent.sklearn"))
        if theirs and ours and math.prod(record["case"]["shape"]) >= 32768 * 1000:
            title = "gradient and Hessian at 32768 x 1000: times scikit-learn"
            yield Check(title, label(record), ratio(theirs, ours), 3.0, True, "x")


def extra_memory(records: list[Record]) -> Iterator[Check]:
    """O(positions), made a number: 64 bytes a position, and 4 MiB for stacks and the like."""
    for record in of(records, "memory"):
        ours = record["contestants"].get("fastxent", {})
        if "extra_bytes" in ours and record["logits_bytes"] > 16 * MIB:
            extra = (ours["extra_bytes"] - ours["result_bytes"]) / MIB
            bound = 64 * record["positions"] / MIB + 4
            title = "extra memory beyond the gradient: O(positions)"
            yield Check(title, label(record), Estimate(extra, extra, extra), bound, False, " MiB")


def linear_heads(records: list[Record]) -> Iterator[Check]:
    """At a language model's head the products alone are the floor; elsewhere the report has the figures."""
    bounds = {"forward": 1.1, "both": 1.2}
    for record in heads(records):
        ours, floor = seconds(record, "fastxent"), seconds(record, "product")
        if not ours or not floor or record["case"]["positions"] < 2048:
            continue
        operation = record["operation"]
        title = f"linear cross-entropy, {operation}: time against the products alone"
        yield Check(title, label(record), ratio(ours, floor), bounds[operation], False, "x")
        if best := best_peer(record):
            title = "linear cross-entropy: times the best peer"
            yield Check(title, f"{label(record)}, {best[0]}", best[1], 1.0, True, "x")
        own = record["contestants"]["fastxent"]
        if "extra_bytes" in own:
            extra = (own["extra_bytes"] - own["result_bytes"]) / MIB
            title = f"linear cross-entropy, {operation}: extra memory beyond the gradients"
            bound = 64.0 if operation == "forward" else 256.0
            yield Check(title, label(record), Estimate(extra, extra, extra), bound, False, " MiB")


BARS: list[Callable[[list[Record]], Iterator[Check]]] = [
    forward_share, gradient_share, few_classes, layouts, peers, other_engine, small_calls, masked, one_pass, avx2,
    products, torch, jax, hessians, extra_memory, linear_heads,
]  # fmt: skip


def of(records: list[Record], *suites: str, operation: str = "") -> Iterator[Record]:
    """The records of some suites; without a race that fell out on our side."""
    for record in records:
        if record["suite"] in suites and (not operation or record["operation"] == operation):
            yield record


def logits_bytes(record: Record) -> int:
    return int(math.prod(record["case"]["shape"]) * dtype_of(record["case"]["dtype"]).itemsize)


def check_all(records: list[Record]) -> list[Check]:
    return [check for bar in BARS for check in bar(records)]


def summary(checks: list[Check]) -> list[dict[str, Any]]:
    """One row for each bar: how many cases met it, and the worst of them."""
    rows = []
    for title in dict.fromkeys(check.bar for check in checks):
        own = [check for check in checks if check.bar == title]
        rows.append(
            {"bar": title, "met": sum(c.met for c in own), "of": len(own), "worst": min(own, key=lambda c: c.margin)}
        )
    return rows
