"""Two runs beside each other, for those who carry the work on: what became faster, what slower, and is it noise?

Times of two runs share no rounds, so the interval is that of two independent medians, and a machine in another mood
shifts everything: the share of the limit and the ratio to the best peer, each taken within its own run, are the
better witnesses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .bars import best_peer, seconds, share
from .contest import Record
from .measure import Estimate
from .report import milliseconds, number, table

OURS = ("fastxent", "last axis", "full", "default")


def unpaired(above: list[float], below: list[float], resamples: int = 2000) -> Estimate:
    """The ratio of two medians, each resampled by itself."""
    rng = np.random.default_rng(0)
    a, b = (np.median(np.asarray(x)[rng.integers(0, len(x), (resamples, len(x)))], axis=1) for x in (above, below))
    low, high = np.quantile(a / b, [0.025, 0.975])
    return Estimate(float(np.median(above) / np.median(below)), float(low), float(high))


def by_key(results: dict[str, Any]) -> dict[tuple[str, str, str], Record]:
    return {(r["suite"], r["name"], r["operation"]): r for r in results["records"]}


def within(record: Record) -> str:
    part, best = share(record, capped=False), best_peer(record)
    words = [f"{part.value:.2f} of limit"] if part else []
    return ", ".join(words + ([f"{best[1].value:.2f}x {best[0]}"] if best else [])) or "–"


def compare(new: dict[str, Any], old: dict[str, Any]) -> str:
    """A Markdown table of our own times in both runs, the largest changes first."""
    before, rows = by_key(old), []
    for key, record in by_key(new).items():
        for name in OURS:
            now, then = seconds(record, name), seconds(before.get(key, {"contestants": {}}), name)
            if now and then:
                change = unpaired(now, then)
                clear = change.low > 1.05 or change.high < 0.95
                verdict = ("slower" if change.value > 1 else "faster") if clear else ""
                label = " ".join((*key, *([name] if name != "fastxent" else [])))
                cells = [label, milliseconds(then), milliseconds(now), number(change, "x"), verdict]
                rows.append((abs(np.log(change.value)), [*cells, within(before[key]), within(record)]))
    rows.sort(key=lambda row: -row[0])
    head = ["case", "old, ms", "new, ms", "new / old", "", "old run", "new run"]
    about = "; ".join(f"{r['machine']['time']}, {r['machine']['processor']}" for r in (old, new))
    return f"## Comparison\n\nOld, then new: {about}.\n\n" + table(head, [row for _, row in rows])
