"""PNG plots of a result. matplotlib is asked for here alone; without it the report has no pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .bars import NOT_PEERS, of, seconds, share
from .contest import Record
from .linear import heads
from .measure import median, ratio

MIB = 1 << 20


def draw(records: list[Record], folder: Path) -> list[str]:
    """Draw what the records have; the names of the files, in the order of the report."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    made = []
    kinds = {"peers": peers, "share": shares, "threads": threads, "memory": memory, "linear": linear}
    for name, function in kinds.items():
        figure = function(plt, records)
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            plt.close(figure)
            made.append(f"{name}.png")
    return made


def peers(plt: Any, records: list[Record]) -> Any:
    """How many times our time each peer takes, over the number of classes: cells of the grid and few classes."""
    own = [
        r
        for r in of(records, "grid", "few")
        if r["operation"] in ("forward", "both") and math.prod(r["case"]["shape"]) >= 1e5
    ]
    names = [n for n in dict.fromkeys(n for r in own for n in r["contestants"]) if n not in NOT_PEERS]
    if not names:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for axis, operation, title in zip(axes, ("forward", "both"), ("loss", "loss and a new gradient"), strict=True):
        for name in names:
            points: dict[int, float] = {}
            for record in (r for r in own if r["operation"] == operation):
                if seconds(record, name) and seconds(record, "fastxent"):
                    found = ratio(seconds(record, name), seconds(record, "fastxent")).value
                    points[record["case"]["shape"][-1]] = found
            if points:
                axis.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=name)
        axis.axhline(1, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="classes", title=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("time / time of fastxent")
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[1].legend(handles.values(), handles.keys(), bbox_to_anchor=(1.02, 1), loc="upper left")
    return figure


def shares(plt: Any, records: list[Record]) -> Any:
    """The share of the bandwidth measured in the same race, over classes, a line for each type."""
    own = list(of(records, "sizes"))
    panels = [
        operation for operation in ("forward", "given") if any(share(r) for r in own if r["operation"] == operation)
    ]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.2), sharey=True, squeeze=False)
    for axis, operation in zip(axes[0], panels, strict=True):
        for dtype in dict.fromkeys(r["case"]["dtype"] for r in own):
            points = []
            for record in own:
                if record["operation"] == operation and record["case"]["dtype"] == dtype:
                    value = share(record, capped=False)
                    if value:
                        points.append((record["case"]["shape"][-1], value.value, value.low, value.high))
            if points:
                x, y, low, high = zip(*sorted(points), strict=True)
                line = axis.plot(x, y, marker="o", label=dtype)[0]
                axis.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        axis.axhline(1, color="black", linewidth=1)
        limit = "read bandwidth" if operation == "forward" else "streaming copy"
        axis.set(xscale="log", xlabel="classes", title=f"{operation}: share of the {limit}", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][-1].legend()
    return figure


def threads(plt: Any, records: list[Record]) -> Any:
    """Bytes a second over threads, with what the memory gives."""
    own = list(of(records, "threads"))
    if not own:
        return None
    figure, axes = plt.subplots(1, len(own), figsize=(3.2 * len(own), 3.6), squeeze=False)
    for axis, record in zip(axes[0], own, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for label, contestant in record["contestants"].items():
            name, _, count = label.rpartition(" ")
            moved = (
                contestant.get("bytes") or record["bytes_read" if record["operation"] == "forward" else "bytes_both"]
            )
            if contestant.get("seconds"):
                lines.setdefault(name, []).append((int(count), moved / median(contestant["seconds"]).value / 1e9))
        for name, points in lines.items():
            x, y = zip(*sorted(points), strict=True)
            axis.plot(x, y, marker="o", label=name, linestyle="-" if name == "fastxent" else "--")
            axis.set_xticks(x)
        axis.set(xlabel="threads", title=f"{record['name']}\n{record['operation']}", ylim=(0, None))
        axis.title.set_fontsize(8)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("GB/s")
    figure.tight_layout()
    return figure


def memory(plt: Any, records: list[Record]) -> Any:
    """Peak memory beyond the inputs, where peers were measured too."""
    own = [record for record in of(records, "memory") if len(record["contestants"]) > 1]
    if not own:
        return None
    figure, axes = plt.subplots(1, len(own), figsize=(5 * len(own), 3.6), squeeze=False)
    for axis, record in zip(axes[0], own, strict=True):
        found = {name: c["extra_bytes"] / MIB for name, c in record["contestants"].items() if "extra_bytes" in c}
        bars = axis.barh(
            list(found), list(found.values()), color=["C3" if name == "fastxent" else "C0" for name in found]
        )
        axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
        axis.axvline(record["logits_bytes"] / MIB, color="black", linewidth=1, linestyle=":")
        axis.invert_yaxis()
        axis.set(
            xlabel="MiB beyond the inputs (dotted: size of the logits)",
            title=f"{record['name']}, {record['operation']}",
        )
        axis.title.set_fontsize(9)
    figure.tight_layout()
    return figure


def linear(plt: Any, records: list[Record]) -> Any:
    """Time against the products alone, and peak memory, over the features; a row of panels for each operation."""
    from matplotlib.ticker import LogFormatter

    own = [record for record in heads(records) if record["suite"] == "sweep"] or heads(records)
    positions = dict(sorted((record["case"]["features"], record["case"]["positions"]) for record in own))
    classes = sorted({record["case"]["classes"] for record in own})
    if not classes:
        return None
    names = [n for n in dict.fromkeys(n for r in own for n in r["contestants"]) if n != "product"]
    figure, axes = plt.subplots(4, len(classes), figsize=(4 * len(classes), 12), squeeze=False, sharex=True)
    for k, (operation, what) in enumerate((o, w) for o in ("forward", "both") for w in ("time", "memory")):
        for axis, count in zip(axes[k], classes, strict=True):
            chosen = [r for r in own if r["operation"] == operation and r["case"]["classes"] == count]
            for name in names:
                points = sorted((r["case"]["features"], y) for r in chosen if (y := _of_head(r, name, what)))
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", label=name)
            if what == "time":
                axis.axhline(1, color="black", linewidth=1)
            axis.set(xscale="log", yscale="log", title=f"{operation}, {count} classes")
            axis.set_xticks(list(positions), [f"{d}\n({n})" for d, n in positions.items()])
            axis.set_xticks([], minor=True)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
            axis.title.set_fontsize(9)
            axis.grid(alpha=0.3, which="both")
        axes[k][0].set_ylabel("time / products alone" if what == "time" else "MiB beyond the inputs")
    for axis in axes[-1]:
        axis.set_xlabel("features (positions)")
    axes[0][-1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    return figure


def _of_head(record: Record, name: str, what: str) -> float | None:
    """A point of the plot; None where there is none."""
    if what == "memory":
        extra = record["contestants"].get(name, {}).get("extra_bytes")
        return None if extra is None else max(extra / MIB, 0.1)
    laps, floor = seconds(record, name), seconds(record, "product")
    return ratio(laps, floor).value if laps and floor else None
