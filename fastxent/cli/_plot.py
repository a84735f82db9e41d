"""The figure of ``fastxent eval --plot``: calibration, loss by position in the sequence, histogram of token losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastxent.evaluation import Evaluation

from ._faults import UsageFault
from ._scores import BUCKET, N_BUCKETS, Scores
from .formats import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _RED, _GREY, _PALE = "#2b5c8a", "#c8553d", "#5f6a72", "#a9c3da"
_STYLE: dict[str, Any] = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _GREY, "axes.labelcolor": "#30363b",
    "xtick.color": _GREY, "ytick.color": _GREY, "axes.grid": True, "grid.color": "#e6e9ec", "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.framealpha": 0.85, "legend.edgecolor": "white", "legend.fancybox": False,
}


def format_of(path: str) -> str:
    """The format of the figure, by its suffix. UsageFault where it cannot be drawn: before an hour of scoring."""
    try:
        import matplotlib.backend_bases
    except ImportError as error:
        raise UsageFault("--plot needs matplotlib: pip install 'fastxent[plot]'") from error
    found = Path(path).suffix.lstrip(".").lower() or "png"
    known = sorted(matplotlib.backend_bases.FigureCanvasBase.get_supported_filetypes())
    if found not in known:
        raise UsageFault(f"--plot {path}: cannot draw a .{found}; expected one of {', '.join(known)}")
    return found


def draw(path: Path, form: str, scores: Scores, found: Evaluation, title: str) -> None:
    """Write the figure to `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    curves = scores.curves
    assert curves is not None
    by_time = curves.n_times > 1
    with rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(wspace=0.05, h_pad=0.08)
        figure = Figure(figsize=(12.6 if by_time else 8.6, 4.1), dpi=160, layout=layout)
        axes = figure.subplots(1, 3 if by_time else 2, squeeze=False)[0]
        figure.suptitle(_headline(found), x=0.008, ha="left", fontsize=12.5, fontweight="bold")
        figure.supxlabel(title, x=0.008, ha="left", fontsize=8, color=_GREY)
        _calibration(axes[0], scores, found)
        if by_time:
            _by_position(axes[1], curves.by_time, scores.steps, found)
        _histogram(axes[-1], curves.histogram, found)
        figure.savefig(path, format=form)


def _headline(found: Evaluation) -> str:
    if not found.n_tokens:
        return "No position was scored"
    return (
        f"Perplexity {found.perplexity:,.3f}   accuracy {found.accuracy:.1%}   "
        f"{found.n_tokens:,} positions scored, {found.n_masked:,} masked"
    )


def _calibration(axes: Axes, scores: Scores, found: Evaluation) -> None:
    """Accuracy over the largest probability, with how many positions each bin has."""
    tokens, right, confidence = scores.calibration()
    edges = np.linspace(0, 1, tokens.size + 1)
    used = tokens > 0
    n = tokens[used]
    x, y = confidence[used] / np.maximum(n, 1), right[used] / np.maximum(n, 1)
    low, high = _wilson(y, n)
    share = tokens / max(tokens.sum(), 1)
    axes.bar(edges[:-1], 0.3 * share / max(share.max(), 1e-9), np.diff(edges), align="edge", color=_PALE, alpha=0.55,
             linewidth=0, label="share of positions")
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    axes.errorbar(x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], color=_BLUE, marker="o", markersize=4,
                  linewidth=1.4, elinewidth=1, label="accuracy, 95 % interval")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the most likely class", ylabel="how often it is right",
             title=f"Calibration: expected error {found.ece:.4f}")
    axes.legend(loc="upper left", fontsize=8.5)


def _wilson(share: Array, n: Array) -> tuple[Array, Array]:
    """A 95 % interval of a share that stays within 0 to 1 (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def _by_position(axes: Axes, by_time: Array, steps: int, found: Evaluation) -> None:
    """Mean loss over the time in the sequence; of long sequences over stretches of it."""
    count, total, squares = by_time
    groups = max(1, min(count.size, 96, round(count.sum() / 100)))  # enough in each for a mean that says something
    group = np.arange(count.size) * groups // count.size
    count, total, squares = (np.bincount(group, row, groups) for row in (count, total, squares))
    used = count > 0
    x = ((np.arange(groups) + 0.5) * steps / groups - 0.5)[used]
    mean = total[used] / count[used]
    variance = np.maximum(squares[used] / count[used] - mean**2, 0) / np.maximum(count[used] - 1, 1)
    half = 1.96 * np.sqrt(variance)
    axes.fill_between(x, mean - half, mean + half, color=_PALE, alpha=0.6, linewidth=0, label="95 % interval")
    axes.plot(x, mean, color=_BLUE, linewidth=1.5, label="mean loss")
    if math.isfinite(found.nll):
        axes.axhline(found.nll, color=_RED, linewidth=1, linestyle=(0, (4, 3)), label=f"all positions: {found.nll:.3f}")
    axes.set(xlabel="position in the sequence", ylabel="loss, nats", title="Loss by position")
    axes.set_xlim(0, max(steps - 1, 1))
    if x.size:
        low, high = float((mean - half).min()), float((mean + half).max())
        room = 0.12 * max(high - low, 0.05 * abs(high), 1e-6)
        axes.set_ylim(max(0.0, low - room), high + 3 * room)
    axes.legend(loc="upper right", fontsize=8.5)


def _histogram(axes: Axes, histogram: Array, found: Evaluation) -> None:
    """How many positions have which loss."""
    counts, beyond = histogram[:N_BUCKETS], int(histogram[N_BUCKETS])
    total = int(histogram.sum())
    reach = _quantile(histogram, 0.998)
    width = max(1, round(reach / min(60, max(12, math.sqrt(total)))))
    groups = max(1, math.ceil(reach / width))
    grouped = np.add.reduceat(counts, np.arange(0, groups * width, width)[:groups]) if total else np.zeros(groups)
    beyond += int(counts[groups * width :].sum())
    if total and groups * width < N_BUCKETS:  # reduceat's last group runs to the end
        grouped[-1] -= counts[groups * width :].sum()
    share = grouped / max(total, 1)
    edges = np.arange(groups + 1) * width * BUCKET
    axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=_BLUE, edgecolor="white", linewidth=0.4)
    top = float(share.max()) if share.size else 1.0
    median = (_quantile(histogram, 0.5) - 0.5) * BUCKET
    marks = ((median, "median", _GREY, 1.14), (found.nll, "mean", _RED, 1.06))
    for value, name, colour, height in marks:
        if total and value <= edges[-1]:
            axes.axvline(value, ymax=height / 1.2, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(f" {name} {value:.2f}", (value, height * top), color=colour, fontsize=8.5, va="center")
    note = f"{beyond / max(total, 1):.2%} beyond {edges[-1]:.1f}" if beyond else ""
    axes.annotate(note, (1, 0.9), xycoords="axes fraction", ha="right", fontsize=8.5, color=_GREY)
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1.2 * (top or 1)), xlabel="loss of a position, nats",
             ylabel="share of positions", title="Losses")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def _quantile(histogram: Array, q: float) -> int:
    """The number of buckets below which a share `q` of the positions lies."""
    total = int(histogram.sum())
    return int(np.searchsorted(np.cumsum(histogram[:-1]), q * total)) + 1 if total else 100
