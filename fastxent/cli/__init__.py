"""The ``fastxent`` command.

Every subcommand is a module of this package named in `COMMANDS`, with a one-line `HELP`, `configure(parser)`, which
adds its arguments, and `run(arguments)`, which returns the exit code. Results go to stdout, the rest to stderr.

Exit codes: 0 success, 1 failure, 2 wrong usage (argparse's own), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

__all__ = ["main"]

COMMANDS = ("demo",)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastxent", description="Softmax cross-entropy and its kin on the CPU.")
    parser.add_argument("--version", action="version", version=f"fastxent {version('fastxent')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"{__name__}.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`) and return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) left: not an error. Python would flush stdout once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            print(f"fastxent {arguments.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
