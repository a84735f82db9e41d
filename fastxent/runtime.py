"""Threads, backend, and what is in use.

`set_num_threads` and `set_backend` act on the whole process. What they replace is found by the first call that needs
it: from the environment (``FASTXENT_NUM_THREADS``, ``OMP_NUM_THREADS``, ``FASTXENT_BACKEND``, ``FASTXENT_ISA``), else
from the machine.
"""

from __future__ import annotations

import platform
from typing import Any, Literal, overload

import numpy as np

import fastxent

from . import _backends, _threads


def set_num_threads(n: int) -> None:
    """Set the largest number of threads that a call uses, in the whole process.

    Parameters
    ----------
    n : int
        1 or more. Small calls run on the calling thread whatever the number. Results do not depend on it.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import fastxent
    >>> before = fastxent.get_num_threads()
    >>> fastxent.set_num_threads(2)
    >>> fastxent.get_num_threads()
    2
    >>> fastxent.set_num_threads(before)
    """
    _threads.set_count(n)


def get_num_threads() -> int:
    """Return the largest number of threads that a call uses.

    It is what `set_num_threads` set; before that ``FASTXENT_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number
    of processors this process may use (its affinity and the CPU quota of its control group).

    Returns
    -------
    int
        1 or more.

    Raises
    ------
    ValueError
        If an environment variable holds something else than a number of threads.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.get_num_threads() >= 1
    True
    """
    return _threads.count or _threads.determine()


def set_backend(name: str) -> None:
    """Choose what does the arithmetic, for the whole process.

    Parameters
    ----------
    name : {"native", "numba"}
        The compiled module, or kernels that Numba compiles on this machine at the first call that needs them (and
        keeps on disk): slower, but without a build. Needs Numba.

    Raises
    ------
    ValueError
        If there is no backend of this name.
    ImportError
        If it cannot be used here; the message says what is missing.

    Examples
    --------
    >>> import fastxent
    >>> before = fastxent.get_backend()
    >>> fastxent.set_backend(before)
    >>> fastxent.get_backend() == before
    True
    """
    _backends.select(name)


def get_backend() -> str:
    """Return the name of the backend in use: "native" or "numba".

    Returns
    -------
    str
        What `set_backend` chose; before that ``FASTXENT_BACKEND``, else "native" where the compiled module is there.

    Raises
    ------
    ValueError
        If ``FASTXENT_BACKEND`` or ``FASTXENT_ISA`` holds an unknown or unavailable name.
    ImportError
        If no backend can be used.

    Examples
    --------
    >>> import fastxent
    >>> fastxent.get_backend() in ("native", "numba")
    True
    """
    return str(_backends.chosen().NAME)


@overload
def show_config(mode: Literal["text"] = "text") -> None: ...


@overload
def show_config(mode: Literal["dict"]) -> dict[str, Any]: ...


def show_config(mode: str = "text") -> dict[str, Any] | None:
    """Show the version, the backend, the instruction set and the threads in use.

    Parameters
    ----------
    mode : {"text", "dict"}
        "text" prints it; "dict" returns it.

    Returns
    -------
    dict or None
        For "dict": version, python, numpy, platform, backend, compiler, instruction_set (in use), instruction_sets
        (those this machine and build have), num_threads, num_threads_reason. All of them plain JSON types.

    Raises
    ------
    ValueError
        If `mode` is another one, or an environment variable holds an unknown or unavailable value.

    Examples
    --------
    >>> import fastxent
    >>> config = fastxent.show_config(mode="dict")
    >>> config["num_threads"] == fastxent.get_num_threads()
    True
    """
    if mode not in ("text", "dict"):
        raise ValueError(f"mode must be 'text' or 'dict', got {mode!r}")
    config = {
        "version": fastxent.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "backend": get_backend(),
        **_backends.chosen().describe(),
        "num_threads": get_num_threads(),
        "num_threads_reason": _threads.reason,
    }
    if mode == "dict":
        return config
    width = max(map(len, config))
    for name, value in config.items():
        print(f"{name:<{width}}  {', '.join(value) if isinstance(value, list) else value}")
    return None
