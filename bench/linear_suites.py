"""The suites of the linear layer: one head of a usual size, which has bars; a sweep over features and classes.

Time is raced in this process. Memory is asked of child processes, one for each contestant, which goes through all
cases: starting libraries takes longer than most of the calls.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from functools import partial
from typing import Any

from .contest import Context, Job, Record, finish
from .linear import EFFORT, OPERATIONS, LinearCase, contestants
from .measure import SMOKE, local, race
from .worker import Worker

# glibc's malloc keeps larger and larger blocks for itself as a process goes on: as in one that has just begun.
FRESH = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}


def linear(context: Context) -> Iterator[Job]:
    """The loss of a linear layer, and its gradients: time beside the products alone, and peak memory."""
    return _jobs(context, "linear", context.plan.linear)


def sweep(context: Context) -> Iterator[Job]:
    """The same over features and classes, against each other."""
    return _jobs(context, "sweep", context.plan.sweep)


def _jobs(context: Context, suite: str, shapes: list[tuple[int, int, int]]) -> Iterator[Job]:
    def time(case: LinearCase, operation: str) -> list[Record]:
        data, samplers, answers = case.make(), {}, {}
        for contestant in field:
            try:
                call = contestant.calls(data)[operation]
                result = call()
                if result is not None:
                    answers[contestant.name] = data.errors(*contestant.answer(result))
                del result
            except Exception as error:  # a peer may fail in any way; the report says so
                answers[contestant.name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            else:
                samplers[contestant.name] = local(call)
        effort = SMOKE if context.effort is SMOKE else EFFORT
        return [finish(suite, case.name, operation, race(samplers, effort), answers) | {"case": case.fields}]

    def memory(case: LinearCase, operation: str) -> list[Record]:
        found: dict[str, Any] = {}
        for name in (contestant.name for contestant in field if contestant.name != "product"):
            try:
                found[name] = worker_of(name).ask("linear_memory", case=case.fields, operation=operation, peer=name,
                                                  threads=context.threads)  # fmt: skip
            except RuntimeError as error:
                found[name] = {"error": str(error)}
        return [finish(suite, case.name, operation, {}, found) | {"case": case.fields}]

    def worker_of(name: str) -> Worker:
        """The child of a contestant; a new one where it has ended."""
        if name not in workers or workers[name].process.poll() is not None:
            workers[name] = Worker(FRESH)
            atexit.register(workers[name].__exit__, None, None, None)
        return workers[name]

    workers: dict[str, Worker] = {}
    field = contestants(context.threads, [peer.name for peer in context.peers])
    for shape in shapes:
        case = LinearCase(*shape)
        for operation in OPERATIONS:
            yield Job(f"{suite}: {case.name} {operation}", partial(time, case, operation))
            yield Job(f"{suite} memory: {case.name} {operation}", partial(memory, case, operation))
