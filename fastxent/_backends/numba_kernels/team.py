"""Threads for the Numba engine: kernels release the GIL, so Python's own threads do.

Numba's threading layers are not used: one of them does not bear concurrent callers, another not a fork. Here a call's
blocks are handed out in chunks to whoever is free: the calling thread, and helpers that live on between calls and
sleep when there is nothing to do. If all helpers are busy with another call, the calling thread does its work alone.
After a fork the child starts helpers of its own. Which thread takes a chunk changes no bit: each block has a place
for its sums.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Work = Callable[[int, Any], None]


class Job:
    """Chunks of one call: work(chunk, workspace)."""

    def __init__(self, work: Work, chunks: int) -> None:
        self.work, self.left = work, iter(range(chunks))
        self.change = threading.Condition()
        self.helping, self.closed = 0, False
        self.error: BaseException | None = None

    def take_part(self, workspace: Any) -> None:
        """Take chunks until there are none."""
        while True:
            with self.change:
                i = next(self.left, None)
            if i is None:
                return
            self.work(i, workspace)

    def fail(self, error: BaseException) -> None:
        """Remember the first error; nobody takes a further chunk."""
        self.error, self.left = self.error or error, iter(())

    def help(self, workspace: Any) -> None:
        """Take part as a helper, whose errors the caller raises."""
        with self.change:
            if self.closed:
                return
            self.helping += 1
        try:
            self.take_part(workspace)
        except BaseException as error:
            self.fail(error)
        finally:
            with self.change:
                self.helping -= 1
                self.change.notify_all()

    def finish(self) -> None:
        """Let no further helper begin, wait for those that have, and raise what went wrong."""
        finished = False
        while not finished:
            try:
                with self.change:
                    self.closed = True
                    while self.helping:
                        self.change.wait()
                finished = True
            except BaseException as error:  # Ctrl-C: the helpers end with the chunks they have
                self.fail(error)
        found, self.error = self.error, None  # lest the error, by its traceback, and the job keep each other alive
        if found is not None:
            try:
                raise found
            finally:
                del found


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Threads that start here take no signal: one would not interrupt the main thread at once."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    own = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - own)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Team:
    """The helpers of this process. `take` gives a thread its workspace, `give` takes it back."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[Job, Callable[[], Any], Callable[[Any], None]]] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.size = 0

    def run(
        self, work: Work, chunks: int, threads: int, take: Callable[[], Any], give: Callable[[Any], None]
    ) -> None:
        """Do all chunks, in any order, by up to `threads` threads."""
        job = Job(work, chunks)
        helpers = min(threads, chunks) - 1
        if self.size < helpers:
            self._grow(helpers)
        for _ in range(min(helpers, self.size)):
            self.jobs.put((job, take, give))
        workspace = take()
        try:
            job.take_part(workspace)
        except BaseException as error:
            job.fail(error)
        try:
            job.finish()
        finally:
            give(workspace)

    def _grow(self, helpers: int) -> None:
        with self.lock, _without_signals():
            while self.size < helpers:
                try:
                    threading.Thread(target=self._help, name="fastxent", daemon=True).start()
                except (RuntimeError, MemoryError):  # no more threads, or none any more: the interpreter ends
                    return
                self.size += 1

    def _help(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # the name that other tools show
                Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("fastxent")
        jobs = self.jobs
        while True:
            job, take, give = jobs.get()
            try:
                workspace = take()
            except MemoryError:
                continue
            job.help(workspace)
            give(workspace)
            del job, workspace  # lest a sleeping helper keeps a call's arrays alive


team = Team()


def _renew() -> None:
    global team
    team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
