"""Compare two models on the same text, to see whether quantising, pruning or a new kernel hurt.

BASE and OTHER are files of logits of one shape, in any two formats, read side by side in blocks: F.npy,
F.safetensors:NAME, F.npz:NAME, F.zarr, and F.kld of llama.cpp. The divergence is KL(base || other), in nats, per
position. With TARGETS (a .kld as BASE or OTHER has its own) also what happened to the probability of the right class.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from typing import Any, NamedTuple

import numpy as np

import fastxent

from . import _output
from ._blocks import Block, positions_of, scored
from ._faults import FileFault, UsageFault
from ._gate import check_names
from ._options import add_common, ignored, whole
from ._positions import Counted, Positions
from ._progress import progress, warn
from ._quantiles import Mean, Quantiles
from .eval import judge, opened_vector, remark_on_npz
from .formats import Array, Source, open_logits

_LARGEST = math.log(sys.float_info.max)  # whose exponential is finite

HELP = "compare two models' logits: divergence, agreement, change of the right class"
EXAMPLES = """\
examples:
  fastxent compare full.npy quantised.npy targets.npy
  fastxent compare base.kld quantised.safetensors:logits   the tokens are in base.kld
  fastxent compare full.npy quantised.npy --format json --fail-if 'kl_mean>0.01' --fail-if 'top1_agreement<0.97'

names (json, csv, --fail-if):
  kl_mean, kl_stderr, kl_max, kl_p0.1 ... kl_p50 ... kl_p99.9    nats per position, KL(base || other)
  top1_agreement                       how often both have the same most likely class
  nll_base, nll_other                  mean loss of each, over the positions whose target counts
  perplexity_ratio, perplexity_ratio_stderr    perplexity of other / perplexity of base
  delta_p_mean, delta_p_rms, delta_p_p1 ... delta_p_p99    change of the target's probability, other - base
  n_tokens, n_masked

Percentiles are exact up to 10 000 000 positions; beyond, each is within 0.1 % of its value.

exit code: 0, or 1 if the files cannot be compared, 2 for wrong usage, 3 if a --fail-if holds
"""

KL_PERCENTS = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
DELTA_PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastxent compare``."""
    parser.add_argument("base", metavar="BASE", help="the logits to compare with")
    parser.add_argument("other", metavar="OTHER", help="the logits in question, of the same shape")
    parser.add_argument("targets", metavar="TARGETS", nargs="?", help="class indices; ignored ones are left out")
    parser.add_argument("--mask", metavar="F", help="booleans or integers that broadcast to the targets: 0 leaves out")
    parser.add_argument("--lengths", metavar="F", help="the length of each sequence; what is beyond is left out")
    parser.add_argument(
        "--ignore-index", type=ignored, default=-100, metavar="N", help="targets to leave out (default -100), or none"
    )
    parser.add_argument(
        "--shift", type=whole, default=0, metavar="N",
        help="compare the logits at time t with the target at t + N; 1 where TARGETS are the models' input tokens",
    )
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run ``fastxent compare``."""
    with contextlib.ExitStack() as stack:
        base, own = open_logits(arguments.base)
        stack.callback(base.close)
        other, others_own = open_logits(arguments.other)
        stack.callback(other.close)
        remark_on_npz("compare", arguments, (arguments.base, arguments.other))
        targets: Source | None = own or others_own
        if arguments.targets is not None:
            targets = opened_vector(arguments.targets, stack)
        elif own is not None and others_own is not None:
            _same_tokens(own, others_own)
        if arguments.targets is None and arguments.shift:
            raise UsageFault("--shift is for TARGETS; the targets of a .kld are the tokens to come already")
        check_names(arguments.fail_if, names(targets is not None))
        given = (arguments.base, arguments.other, arguments.targets, arguments.mask, arguments.lengths)
        _output.check_apart((arguments.output,), given)
        positions_of([base, other])
        mask, lengths = (opened_vector(name, stack) for name in (arguments.mask, arguments.lengths))
        counted = Positions(base.shape, targets, mask, lengths, arguments.ignore_index, arguments.shift)
        comparison = Comparison(counted.count, targets is not None)
        out = stack.enter_context(_output.opened(arguments.output))
        nbytes = base.size * (base.dtype.itemsize + other.dtype.itemsize)
        report = stack.enter_context(progress(nbytes, arguments.quiet))
        parts = scored([base, other], arguments.block_mb * 10**6, counted.block, comparison.score)
        for part in stack.enter_context(contextlib.closing(parts)):
            comparison.add(part)
            report(part.nbytes)
        found = comparison.result()
        if arguments.format == "table":
            _output.write(out, table(found))
        else:
            form = _output.to_json if arguments.format == "json" else _output.to_csv
            _output.write(out, form(found).rstrip("\n") + "\n")
    if not found["n_tokens"]:
        warn("compare", f"no position was compared, of {found['n_masked']}: every mean is nan", arguments.quiet)
    elif arguments.format != "table":
        counts = f"{found['n_tokens']} positions compared, {found['n_masked']} masked"
        warn("compare", f"{counts}; means are over the compared positions", arguments.quiet)
    return judge("compare", arguments, found)


def names(with_targets: bool) -> list[str]:
    """What --fail-if may name."""
    return list(Comparison(0, with_targets).result())


class Part(NamedTuple):
    """What is known of one block: of each position that counts, and of all."""

    divergence: Array
    log_base: Array
    log_other: Array
    agreed: int
    positions: int
    nbytes: int


class Comparison:
    """The numbers of all blocks."""

    def __init__(self, expected: int, with_targets: bool) -> None:
        self.with_targets = with_targets
        self.tokens = self.masked = self.agreed = 0
        self.divergence, self.divergences = Mean(), Quantiles(expected)
        self.base, self.other, self.worse, self.delta = Mean(), Mean(), Mean(), Mean()
        self.deltas = Quantiles(expected if with_targets else 0)

    def score(self, block: Block, counted: Counted) -> Part:
        """A block of rows of both; several threads may do this at once."""
        pieces = [self._score(rows, counted, part, block.threads) for part, rows in block.pieces]
        divergence, log_base, log_other = (np.concatenate([piece[i] for piece in pieces]) for i in range(3))
        agreed, positions, nbytes = (sum(numbers) for numbers in zip(*(piece[3:] for piece in pieces), strict=True))
        return Part(divergence, log_base, log_other, agreed, positions, nbytes)

    def _score(self, rows: list[Array], counted: Counted, part: slice, threads: int) -> Part:
        base, other = rows
        targets, valid = counted.targets[part], counted.valid[part]
        mask = None if counted.all_valid else valid
        divergence = fastxent.kl_div(other, base, mask=mask, reduction="none", num_threads=threads)
        first, second = (
            fastxent.token_statistics(logits, targets, mask=mask, ignore_index=None, num_threads=threads)
            for logits in (base, other)
        )
        agreed = int(np.count_nonzero((first.argmax == second.argmax) & (first.argmax >= 0) & valid))
        log_base, log_other = (found.log_prob[valid].astype(np.float64) for found in (first, second))
        nbytes = base.nbytes + other.nbytes
        return Part(divergence[valid].astype(np.float64), log_base, log_other, agreed, valid.size, nbytes)

    def add(self, part: Part) -> None:
        """Add the next block."""
        self.tokens += part.divergence.size
        self.masked += part.positions - part.divergence.size
        self.agreed += part.agreed
        self.divergence.add(part.divergence)
        self.divergences.add(part.divergence)
        if self.with_targets:
            log_base, log_other = part.log_base, part.log_other
            self.base.add(-log_base)
            self.other.add(-log_other)
            with np.errstate(all="ignore"):
                self.worse.add(log_base - log_other)
                delta = np.exp(log_other) - np.exp(log_base)
            self.delta.add(delta)
            self.deltas.add(delta)

    def result(self) -> dict[str, Any]:
        """All of it under flat names."""
        found: dict[str, Any] = {
            "kl_mean": self.divergence.mean,
            "kl_stderr": self.divergence.stderr,
            "kl_max": self.divergences.percentiles((100,))[0],
            **_named("kl_p", KL_PERCENTS, self.divergences),
            "top1_agreement": self.agreed / self.tokens if self.tokens else math.nan,
        }
        if self.with_targets:
            apart = self.other.mean - self.base.mean
            ratio = math.exp(apart) if not apart > _LARGEST else math.inf
            found |= {
                "nll_base": self.base.mean,
                "nll_other": self.other.mean,
                "perplexity_ratio": ratio,
                "perplexity_ratio_stderr": ratio * self.worse.stderr,
                "delta_p_mean": self.delta.mean,
                "delta_p_rms": self.delta.rms,
                **_named("delta_p_p", DELTA_PERCENTS, self.deltas),
            }
        return found | {"n_tokens": self.tokens, "n_masked": self.masked}


def _named(prefix: str, percents: tuple[float, ...], values: Quantiles) -> dict[str, float]:
    return {f"{prefix}{p:g}": v for p, v in zip(percents, values.percentiles(percents), strict=True)}


def _same_tokens(one: Source, two: Source) -> None:
    """Two .kld files are comparable only if they are of the same text."""
    if one.shape != two.shape:
        return  # said better of the logits
    step = 2**20
    buffers = [np.empty(4 * step, np.uint8) for _ in range(2)]
    for start in range(0, one.size, step):
        stop = min(start + step, one.size)
        first, second = (s.read(start, stop, b) for s, b in zip((one, two), buffers, strict=True))
        if not np.array_equal(first, second):
            raise FileFault(two.name, f"is of another text than {one.name}: its tokens differ")


def table(found: dict[str, Any]) -> str:
    """The numbers for a reader."""
    n = _output.number
    rows = [
        ("KL divergence", n(found["kl_mean"]), f"± {n(found['kl_stderr'])} nats: mean of KL(base || other)"),
        *[(f"  {_percentile(p)}", n(found[f"kl_p{p:g}"]), "") for p in reversed(KL_PERCENTS)],
        ("  maximum", n(found["kl_max"]), ""),
        ("same top class", n(found["top1_agreement"]), "share of the positions"),
    ]
    rows.insert(1, rows.pop(-2))
    if "nll_base" in found:
        ratio = found["perplexity_ratio"]
        rows += [
            ("perplexity, base", n(_exp(found["nll_base"])), f"loss {n(found['nll_base'])} nats"),
            ("perplexity, other", n(_exp(found["nll_other"])), f"loss {n(found['nll_other'])} nats"),
            ("  other / base", n(ratio), f"± {n(found['perplexity_ratio_stderr'])}"),
            ("target's probability", n(found["delta_p_mean"]), "mean of other - base"),
            ("  root mean square", n(found["delta_p_rms"]), ""),
            *[(f"  {_percentile(p)}", n(found[f"delta_p_p{p:g}"]), "") for p in reversed(DELTA_PERCENTS)],
        ]
    rows += [
        ("positions compared", str(found["n_tokens"]), "every mean is over these"),
        ("positions masked", str(found["n_masked"]), ""),
    ]
    return _output.to_table(rows)


def _percentile(percent: float) -> str:
    return "median" if percent == 50 else f"{percent:g} %"


def _exp(value: float) -> float:
    return math.exp(value) if not value > _LARGEST else math.inf
