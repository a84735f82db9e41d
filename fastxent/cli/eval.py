"""Score a file of logits against its targets: perplexity, accuracy, calibration, in little memory.

The file is read in blocks, so it may be far larger than memory. Files: F.npy, F.safetensors:NAME, F.npz:NAME,
F.zarr, and F.kld of llama.cpp, which has its own targets. Logits are (positions, classes) or (batch, time, classes);
float16, bfloat16, float32, float64. Targets are class indices, of the logits' shape without the classes.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import fastxent
from fastxent.evaluation import Evaluation

from . import _output
from ._blocks import positions_of, scored
from ._faults import FileFault, UsageFault
from ._gate import HOLDS, check_names, holding
from ._options import add_common, ignored, numbers, whole
from ._positions import Positions
from ._progress import progress, warn
from ._scores import Scores
from .formats import Array, Source, open_logits, open_vector, split_name

HELP = "score a file of logits: perplexity, accuracy, calibration"
EXAMPLES = """\
examples:
  fastxent eval logits.npy targets.npy
  fastxent eval dump.safetensors:logits dump.safetensors:labels --shift 1 --lengths lengths.npy
  fastxent eval base.kld                                   the tokens are in the file
  fastxent eval logits.npy targets.npy --format json -o scores.json --plot scores.png
  fastxent eval logits.npy targets.npy --fail-if 'ppl>8.2' --fail-if 'accuracy<0.5'

names (json, csv, --fail-if):
  nll, nll_stderr, perplexity, bits_per_token, bits_per_byte      loss in nats, its standard error, exp, in bits
  accuracy, top_k_accuracy (csv, --fail-if: top_5_accuracy)       target among the k most likely classes
  entropy, ece                      of the predictions, nats; expected calibration error, 15 bins
  sequence_nll                      mean of the sequences' own mean losses
  n_tokens, n_masked, n_sequences   positions scored, positions left out, sequences with a scored position

Every mean is over the positions that count (valid positions): those that the mask and the lengths keep, whose target
is not the ignored index. Only sequence_nll gives each sequence the same weight.

exit code: 0, or 1 if a file cannot be scored, 2 for wrong usage, 3 if a --fail-if holds
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastxent eval``."""
    parser.add_argument("logits", metavar="LOGITS", help="the file of logits; FILE:NAME for an array inside a file")
    parser.add_argument("targets", metavar="TARGETS", nargs="?", help="the file of class indices; a .kld has its own")
    parser.add_argument("--mask", metavar="F", help="booleans or integers that broadcast to the targets: 0 leaves out")
    parser.add_argument("--lengths", metavar="F", help="the length of each sequence; what is beyond is left out")
    parser.add_argument(
        "--ignore-index", type=ignored, default=-100, metavar="N", help="targets to leave out (default -100), or none"
    )
    parser.add_argument(
        "--shift", type=whole, default=0, metavar="N",
        help="compare the logits at time t with the target at t + N; 1 where TARGETS are the model's input tokens",
    )
    parser.add_argument("--top-k", type=numbers, default=(1, 5), metavar="1,5", help="accuracies to compute")
    parser.add_argument("--token-bytes", metavar="F", help="bytes of text of each class, for bits per byte")
    parser.add_argument("--per-sequence", action="store_true", help="one row for each sequence instead of one for all")
    parser.add_argument(
        "--plot", metavar="F.png", help="draw calibration, loss by position and a histogram of losses"
    )
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run ``fastxent eval``."""
    if arguments.plot:
        from . import _plot

        plot_format = _plot.format_of(arguments.plot)
    check_names(arguments.fail_if, names(arguments.top_k))
    if arguments.token_bytes is None and any(one.name == "bits_per_byte" for one in arguments.fail_if):
        raise UsageFault("--fail-if on bits per byte needs --token-bytes")
    given = (arguments.logits, arguments.targets, arguments.mask, arguments.lengths, arguments.token_bytes)
    _output.check_apart((arguments.output, arguments.plot), given)
    with contextlib.ExitStack() as stack:
        logits, targets = open_inputs(arguments, stack)
        positions_of([logits])
        mask, lengths = (opened_vector(name, stack) for name in (arguments.mask, arguments.lengths))
        counted = Positions(logits.shape, targets, mask, lengths, arguments.ignore_index, arguments.shift)
        token_bytes = _token_bytes(arguments, logits, stack)
        scores = Scores(counted.steps, arguments.top_k, token_bytes, bool(arguments.plot), arguments.per_sequence)
        out = stack.enter_context(_output.opened(arguments.output))
        if arguments.plot:
            figure = stack.enter_context(_output.replacing(Path(arguments.plot)))
        rows = _Rows(out, arguments.format)
        report = stack.enter_context(progress(logits.size * logits.dtype.itemsize, arguments.quiet))
        parts = scored([logits], arguments.block_mb * 10**6, counted.block, scores.score)
        for part in stack.enter_context(contextlib.closing(parts)):
            for index, sequence in scores.add(part):
                rows.add(index, sequence)
            report(part.nbytes)
        for index, sequence in scores.empty_sequences(counted.sequences):
            rows.add(index, sequence)
        found = scores.result()
        if arguments.plot:
            _plot.draw(figure, plot_format, scores, found, f"{logits.name}: {logits.describe()}")
        if arguments.per_sequence:
            rows.finish(found)
        else:
            _output.write(out, _text(found, arguments.format))
    if not found.n_tokens:
        warn("eval", f"no position was scored, of {found.n_masked}: every mean is nan", arguments.quiet)
    elif arguments.per_sequence or arguments.format != "table":
        warn("eval", _which_mean(found), arguments.quiet)
    return judge("eval", arguments, flat(found))


def judge(command: str, arguments: argparse.Namespace, found: Mapping[str, Any]) -> int:
    """The exit code by --fail-if."""
    held = holding(arguments.fail_if, found)
    for text in held:
        warn(command, text, False)
    return HOLDS if held else 0


def open_inputs(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Source, Source]:
    """Logits and targets."""
    logits, own = open_logits(arguments.logits)
    stack.callback(logits.close)
    if arguments.targets is None:
        if own is None:
            raise UsageFault(f"{arguments.logits} has no targets of its own: give TARGETS")
        if arguments.shift:
            raise UsageFault("the targets of a .kld are the tokens to come already: no --shift")
        return logits, own
    targets = opened_vector(arguments.targets, stack)
    assert targets is not None
    remark_on_npz("eval", arguments, (arguments.logits, arguments.targets))
    return logits, targets


def opened_vector(name: str | None, stack: contextlib.ExitStack) -> Source | None:
    """Targets, a mask, lengths, if there are any."""
    if name is None:
        return None
    source = open_vector(name)
    stack.callback(source.close)
    return source


def remark_on_npz(command: str, arguments: argparse.Namespace, files: Sequence[str]) -> None:
    """Say what an archive costs."""
    for name in files:
        if split_name(name)[0] == ".npz":
            remark = "an .npz is unpacked on one core, as a stream: memory stays small, but .npy is faster"
            warn(command, f"{name}: {remark}", arguments.quiet)


def names(top_k: tuple[int, ...]) -> list[str]:
    """What --fail-if may name."""
    return list(flat(fastxent.Evaluator(top_k=top_k).compute()))


def flat(found: Evaluation) -> dict[str, Any]:
    """The numbers in one level, for CSV and --fail-if."""
    values = found.to_dict()
    top_k = values.pop("top_k_accuracy")
    result: dict[str, Any] = {}
    for name, value in values.items():
        result[name] = value
        if name == "accuracy":
            result |= {f"top_{k}_accuracy": v for k, v in top_k.items()}
    return result


def _token_bytes(arguments: argparse.Namespace, logits: Source, stack: contextlib.ExitStack) -> Array | None:
    source = opened_vector(arguments.token_bytes, stack)
    if source is None:
        return None
    if source.shape != logits.shape[-1:] or source.dtype.kind not in "iu":
        raise FileFault(source.name, f"{source.describe()}: expected {logits.shape[-1]} integers, one for each class")
    found = source.whole()
    if found.min() < 0:
        raise FileFault(source.name, f"has a negative number of bytes, {found.min()}")
    return found


def _which_mean(found: Evaluation) -> str:
    return (
        f"{found.n_tokens} positions scored, {found.n_masked} masked; means are over the scored positions, "
        f"sequence_nll over {found.n_sequences} sequences"
    )


def _text(found: Evaluation, form: str) -> str:
    if form == "json":
        return _output.to_json(found.to_dict()) + "\n"
    if form == "csv":
        return _output.to_csv(flat(found))
    return table(found)


def table(found: Evaluation) -> str:
    """The numbers for a reader, with what each is a mean of."""
    n = _output.number
    top = [(f"top-{k} accuracy", n(v), "") for k, v in found.top_k_accuracy.items() if k != 1]
    bits = [] if found.bits_per_byte is None else [("bits per byte", n(found.bits_per_byte), "")]
    return _output.to_table([
        ("perplexity", n(found.perplexity), "exp of the mean loss"),
        ("loss", n(found.nll), f"nats, ± {n(found.nll_stderr)}: mean over the scored positions"),
        ("", n(found.sequence_nll), f"mean of the own means of {found.n_sequences} sequences"),
        ("bits per token", n(found.bits_per_token), ""),
        *bits,
        ("accuracy", n(found.accuracy), "the target is the most likely class"),
        *top,
        ("entropy", n(found.entropy), "nats, of the predictions"),
        ("calibration error", n(found.ece), "of the largest probability, 15 bins"),
        ("positions scored", str(found.n_tokens), "the mean is over these"),
        ("positions masked", str(found.n_masked), ""),
    ])


class _Rows:
    """A row for each sequence, written as soon as it is complete."""

    def __init__(self, out: TextIO, form: str) -> None:
        self.out, self.form, self.count = out, form, 0

    def add(self, index: int, found: Evaluation) -> None:
        if self.form == "json":
            self.out.write(",\n" if self.count else "[\n")
            self.out.write(_output.to_json({"sequence": index} | found.to_dict(), indent=False))
        elif self.form == "csv":
            self.out.write(_output.to_csv({"sequence": index} | flat(found), header=not self.count))
        else:
            if not self.count:
                self.out.write(_line("sequence", "scored", "masked", "loss", "perplexity", "accuracy"))
            self._row(str(index), found)
        self.count += 1

    def _row(self, name: str, found: Evaluation) -> None:
        shown = [_output.number(v) if not math.isnan(v) else "-" for v in (found.nll, found.perplexity, found.accuracy)]
        self.out.write(_line(name, str(found.n_tokens), str(found.n_masked), *shown))

    def finish(self, found: Evaluation) -> None:
        if self.form == "json":
            self.out.write("\n]\n" if self.count else "[]\n")
        elif self.form == "csv" and not self.count:
            self.out.write(_output.to_csv({"sequence": 0} | flat(found)).splitlines()[0] + "\n")
        elif self.form == "table":
            self._row("all", found)


def _line(first: str, *others: str) -> str:
    return f"{first:>8}" + "".join(f"{other:>13}" for other in others) + "\n"
