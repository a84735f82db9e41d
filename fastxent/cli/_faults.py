"""What goes wrong for a reason that one line can say: a file that is not what it should be, a wrong command line."""

from __future__ import annotations

__all__ = ["FileFault", "UsageFault", "one_line"]

_LONGEST = 600


class FileFault(Exception):
    """A file that cannot be used: its name and what is the matter with it."""

    def __init__(self, name: object, fault: str) -> None:
        super().__init__(f"{name}: {fault}")


class UsageFault(Exception):
    """A command line that asks for something that is not there."""


def one_line(text: object) -> str:
    """`text` without line ends and other characters that a terminal would obey, and not endless."""
    words = " ".join(str(text).split())
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)
    return safe if len(safe) <= _LONGEST else f"{safe[:_LONGEST]} …"
