"""From calls to records: one race, its answers checked first, as the plain data that goes into results.json.

A record: suite, name, operation, the case's fields, the bytes it cannot do without, and for each contestant the
seconds of each round (aligned between contestants: rounds are pairs), the calls behind a sample, the answer's errors,
or why it fell out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .answers import Oracle
from .bandwidth import Bandwidth
from .cases import CACHE_BYTES, Case, Data, Plan
from .measure import Effort, Lap, Sampler, local, race
from .peer import Calls, Peer

Record = dict[str, Any]
LIMITS = ("read", "copy")


@dataclass
class Job:
    """One step of the progress bar: what it is called, and the records it makes."""

    name: str
    run: Callable[[], list[Record]]


@dataclass
class Context:
    """What every suite needs. `threads` is everybody's number; `bandwidth` is None without a C compiler."""

    subject: Peer
    peers: list[Peer]
    threads: int
    effort: Effort
    plan: Plan
    bandwidth: Bandwidth | None = None

    @property
    def aside(self) -> list[Peer]:
        """The peers that take part outside the grid."""
        return [peer for peer in self.peers if not self.plan.aside or peer.name in self.plan.aside]


@dataclass
class Entry:
    """A contestant: a label, the calls of a peer on some data, and the oracle of that data."""

    label: str
    peer: Peer
    oracle: Oracle
    calls: Calls

    @property
    def data(self) -> Data:
        return self.oracle.data


def entries(peers: list[Peer], data: Data) -> tuple[list[Entry], dict[str, str]]:
    """The peers that can do something with the data; and the errors of those that should and could not."""
    able, failed, oracle = [], {}, Oracle(data)
    for peer in peers:
        try:
            calls = peer.calls(data)
        except Exception as error:  # a peer may fail in any way; the report says so
            failed[peer.name] = f"{type(error).__name__}: {error}"[:300]
        else:
            if calls:
                able.append(Entry(peer.name, peer, oracle, calls))
    return able, failed


def contest(
    context: Context, suite: str, case: Case, operation: str, field: list[Entry], limits: bool = False
) -> Record:
    """Check the answers of the entries that know the operation, then race them, with the limits if wanted."""
    samplers: dict[str, Sampler] = {}
    answers: dict[str, dict[str, Any]] = {}
    for entry in field:
        if operation not in entry.calls:
            continue
        call = entry.calls[operation]
        try:
            answers[entry.label] = checked(entry.oracle, operation, entry.peer.answer(call(), entry.data))
        except Exception as error:
            answers[entry.label] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        answers[entry.label] |= {"case": entry.data.case.name, "valid": entry.data.valid_fraction}
        samplers[entry.label] = local(call)
    if limits and context.bandwidth:
        samplers |= {kind: local(call) for kind, call in context.bandwidth.calls().items()}
    record = finish(suite, case.name, operation, race(samplers, context.effort), answers, context.bandwidth)
    data = field[0].data
    return record | {"case": dataclasses.asdict(case), "bytes_read": data.bytes_read, "bytes_both": data.bytes_both}


def checked(oracle: Oracle, operation: str, answer: tuple[float | None, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict(oracle.errors(operation, *answer))
    loss_bound, array_bound = oracle.bounds(operation)
    # Not `error > bound`: a NaN must count as wrong.
    right = found.get("loss_error", 0.0) <= loss_bound and found.get("array_error", 0.0) <= array_bound
    return found | {"right": bool(right)}


def finish(
    suite: str,
    name: str,
    operation: str,
    laps: dict[str, Lap],
    answers: dict[str, dict[str, Any]] | None = None,
    bandwidth: Bandwidth | None = None,
) -> Record:
    """The record of a race."""
    contestants: dict[str, Any] = {label: dict(answer) for label, answer in (answers or {}).items()}
    for label, lap in laps.items():
        contestants.setdefault(label, {}).update({"seconds": lap.seconds, "loops": lap.loops})
        if lap.error:
            contestants[label]["error"] = lap.error
        if bandwidth and label in LIMITS:
            contestants[label]["bytes"] = bandwidth.nbytes[label]
    return {"suite": suite, "name": name, "operation": operation, "contestants": contestants}


def large(data: Data) -> bool:
    """Whether the memory is the limit: more logits than a cache holds."""
    return data.logits.nbytes > CACHE_BYTES
