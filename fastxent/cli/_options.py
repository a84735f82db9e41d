"""Arguments that several commands have, and how each is read."""

from __future__ import annotations

import argparse

from ._gate import Gate, gate
from ._output import FORMATS

BLOCK_MB = 16


def add_common(parser: argparse.ArgumentParser) -> None:
    """How results are given and the file is read."""
    parser.add_argument(
        "--format", choices=FORMATS, default="table",
        help="table (the default), json or csv; json and csv have all digits",
    )
    parser.add_argument("-o", "--output", metavar="F", help="write the result to F instead of standard output")
    parser.add_argument(
        "--fail-if", metavar="'NAME>X'", type=condition, action="append", default=[],
        help="exit with code 3 if this holds, for a gate in CI: a name of the json output (or ppl), one of > >= < <= "
        "== !=, a number; may be given several times",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How a file is read, and what is said meanwhile."""
    parser.add_argument(
        "--block-mb", type=block_size, default=BLOCK_MB, metavar="N",
        help=f"each thread takes on about N MB at a time, from 1 to 128 (default {BLOCK_MB}); 256 MB in all at most",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no remarks on standard error")


def condition(text: str) -> Gate:
    """A --fail-if."""
    try:
        return gate(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a comparison such as 'ppl>8.2', got {text!r}") from None


def whole(text: str) -> int:
    """A whole number from 0 up."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text!r}")
    return int(text)


def block_size(text: str) -> int:
    """A number of MB."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 128):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 128, got {text!r}")
    return int(text)


def ignored(text: str) -> int | None:
    """A class index, or none."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or 'none', got {text!r}") from None


def numbers(text: str) -> tuple[int, ...]:
    """1,5: one or more numbers from 1 up."""
    found = tuple(sorted({whole(part.strip()) for part in text.split(",")}))
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"expected numbers from 1 up, got {text!r}")
    return found
