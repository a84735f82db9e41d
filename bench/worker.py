"""A child process: the same calls under another environment, or the peak memory of one call.

The instruction set is chosen when fastxent is loaded, and the high-water mark of memory belongs to a process: both
need one of their own. The parent writes one JSON object a line and reads one back; a worker sleeps on its input
between samples, so two of them can be contestants of one race.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from bench.worker import main; main()"


class Worker:
    """The parent's side. A context manager; `ask` raises RuntimeError with the child's message."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        # The child must import what the parent imported; the root comes last, so an installed fastxent wins.
        path = [os.path.abspath(entry) for entry in sys.path] + [str(ROOT)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | (environment or {}),
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the worker ended with status {self.process.wait(10)}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def sampler(self) -> Callable[[int], float]:
        return lambda loops: float(self.ask("sample", loops=loops))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


class Child:
    """The child's side: each method answers one question."""

    def prepare(self, case: dict[str, Any], operation: str, peer: str, threads: int) -> dict[str, Any]:
        """Make ready to sample; the answer's errors, and the library's configuration."""
        from .answers import Oracle
        from .measure import local

        data, chosen = make_case(case).make(), make_peer(peer, threads)
        call = chosen.calls(data)[operation]
        self.sampler = local(call)
        return Oracle(data).errors(operation, *chosen.answer(call(), data))

    def config(self) -> Any:
        import fastxent

        from .machine import jsonable

        return jsonable(fastxent.show_config(mode="dict"))

    def sample(self, loops: int) -> float:
        return self.sampler(loops)

    def memory(self, case: dict[str, Any], operation: str, peer: str, threads: int) -> dict[str, Any]:
        """Bytes that the call needs beyond its inputs, its result included.

        A small case first, so that imports and compilers are not counted. Then: the highest point of a second call,
        less what there was before the first. Memory that a library keeps for itself after the first call is counted.
        """
        whole, chosen = make_case(case), make_peer(peer, threads)
        small = dataclasses.replace(whole, shape=tuple(min(n, 16) for n in whole.shape))
        calls = chosen.calls(small.make())
        if operation not in calls:
            raise KeyError(f"{peer} has no {operation} for {whole.name}")
        calls[operation]()
        data = whole.make()
        call = chosen.calls(data)[operation]
        gc.collect()
        before = resident()
        call()
        gc.collect()
        exact = reset_peak()
        call()
        return {"extra_bytes": max(peak() - before, 0), "exact": exact, "result_bytes": result_bytes(data, operation)}

    def linear_memory(self, case: dict[str, Any], operation: str, peer: str, threads: int) -> dict[str, Any]:
        from .linear import extra_memory

        return extra_memory(case, operation, peer, threads)


def make_case(fields: dict[str, Any]) -> Any:
    from .cases import Case

    return Case(**{**fields, "shape": tuple(fields["shape"])})


def make_peer(name: str, threads: int) -> Any:
    from .peer import Fastxent, load

    return Fastxent(threads) if name == "fastxent" else load([name], threads)[0][0]


def result_bytes(data: Any, operation: str) -> int:
    return 0 if operation == "forward" else int(data.logits.nbytes)


def status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field + ":")), None)


def reset_peak() -> bool:
    """Set the high-water mark to what is resident now (Linux). False: it stays at the highest point since the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    now = status("VmRSS")
    return peak() if now is None else now


def peak() -> int:
    """The high-water mark of resident memory."""
    high = status("VmHWM")
    if high is not None:
        return high
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Answer until the input ends. Libraries may print: the answers keep the real output for themselves."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    child = Child()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply = {"value": getattr(child, question.pop("do"))(**question)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
