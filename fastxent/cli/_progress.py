"""A bar with rate and time left on a terminal's standard error: tqdm, where it is installed. Elsewhere nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(nbytes: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A function to be told how many bytes have been scored since the last time."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _: None
        return
    with tqdm(total=nbytes, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, file=sys.stderr) as bar:
        yield lambda n: bar.update(n) and None


def warn(command: str, text: str, quiet: bool) -> None:
    """A remark on standard error."""
    if not quiet:
        print(f"fastxent {command}: {text}", file=sys.stderr)
