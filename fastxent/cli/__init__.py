"""The ``fastxent`` command.

Every subcommand is a module of this package named in `COMMANDS`, with a one-line `HELP`, `configure(parser)`, which
adds its arguments, and `run(arguments)`, which returns the exit code; perhaps `EXAMPLES`, the end of its --help.
Results go to stdout, the rest to stderr.

Exit codes: 0 success, 1 failure, 2 wrong usage (argparse's own), 3 a --fail-if that holds, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import numpy as np

import fastxent

from ._faults import FileFault, UsageFault, one_line
from ._output import discard_stdout

__all__ = ["main"]

COMMANDS = ("demo", "eval", "compare", "convert", "doctor")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastxent",
        description="Softmax cross-entropy and its kin on the CPU.",
        epilog="fastxent COMMAND --help says what a command does, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"fastxent {fastxent.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"{__name__}.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=getattr(module, "EXAMPLES", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.configure(command)
        command.set_defaults(run=module.run, parser=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`) and return the exit code."""
    _open_streams()
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the usage of the command
    try:
        with np.errstate(all="ignore"):  # infinities and NaN speak for themselves in the result
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # after the terminal's own ^C
        print(f"fastxent {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        discard_stdout()  # the reader (head, less) left: not an error, unless something was to be judged
        return 1 if getattr(arguments, "fail_if", None) else 0
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            print(f"fastxent {arguments.command}: {_said(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageFault) else 1


def _open_streams() -> None:
    """Streams that are closed lead nowhere; where one cannot write all characters, it writes others in their place."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 for as long as the process is
            continue
        try:
            "±…×".encode(stream.encoding or "utf-8")
        except UnicodeEncodeError:
            stream.reconfigure(errors="replace")


def _said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, (FileFault, UsageFault)):
        return one_line(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(f"{type(error).__name__}: {error}")
