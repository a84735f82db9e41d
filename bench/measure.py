"""Interleaved timing, and what may be concluded from it.

A *race* runs its contestants in turn, round after round, in a new order each round, so that a slow minute of the
machine hits all of them. A sample is the mean of a few calls (one, if it takes long), with the garbage collector off.
Before a sample we wait until the process is idle: OpenMP, XLA and ONNX Runtime keep their threads spinning on the
other cores for milliseconds after a call, and the next contestant would pay for it. Ratios are taken round by round;
their median comes with an interval from resampling the rounds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Sampler = Callable[[int], float]  # number of calls -> seconds a call


@dataclass(frozen=True)
class Effort:
    """How long a race goes on: at least `least` rounds, at most `most`, and about `seconds` in between."""

    least: int
    most: int
    seconds: float
    sample_seconds: float
    warmed: bool = False  # every contestant has been called already


FULL = Effort(least=9, most=31, seconds=8.0, sample_seconds=0.02)
QUICK = Effort(least=5, most=11, seconds=0.4, sample_seconds=0.004)
SMOKE = Effort(least=2, most=2, seconds=0.0, sample_seconds=0.0)


@dataclass
class Lap:
    """What a contestant did: seconds a call in each round, the number of calls behind a sample, or why it fell out."""

    seconds: list[float] = field(default_factory=list)
    loops: int = 1
    error: str = ""


def local(call: Callable[[], Any], before: Callable[[], Any] | None = None) -> Sampler:
    """Time `call` in this process; `before`, run before each call, is not timed."""

    def sample(loops: int) -> float:
        enabled = gc.isenabled()
        gc.disable()
        try:
            if before is None:
                start = time.perf_counter()
                for _ in range(loops):
                    call()
                return (time.perf_counter() - start) / loops
            total = 0.0
            for _ in range(loops):
                before()
                start = time.perf_counter()
                call()
                total += time.perf_counter() - start
            return total / loops
        finally:
            if enabled:
                gc.enable()

    return sample


def settle(patience: float = 0.5) -> None:
    """Return when the threads of this process have gone to sleep, or patience is at an end."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        busy = time.process_time()
        time.sleep(0.002)
        if time.process_time() - busy < 0.0004:
            return


def race(samplers: dict[str, Sampler], effort: Effort, seed: int = 0) -> dict[str, Lap]:
    """Run all samplers in turn. One that raises falls out, with its error kept; the others go on."""
    laps = {name: Lap() for name in samplers}
    trials: dict[str, float] = {}
    for name, sampler in samplers.items():
        try:
            if not effort.warmed:
                sampler(1)  # compiles, allocates, warms up
            settle()
            once = sampler(1)
            for _ in range(4):
                if once < effort.sample_seconds:
                    once = min(once, sampler(1))
        except Exception as error:  # a peer may fail in any way; the report says so
            laps[name].error = f"{type(error).__name__}: {error}"[:300]
        else:
            trials[name] = once
            laps[name].loops = max(1, min(100_000, round(effort.sample_seconds / max(once, 1e-9))))
    running = [name for name, lap in laps.items() if not lap.error]
    rounds = 0
    if effort.warmed and running and min(trials[name] for name in running) >= effort.sample_seconds:
        rounds = 1  # each was called once, in turn: a round like the others
        for name in running:
            laps[name].seconds.append(trials[name])
    rng = np.random.default_rng(seed)
    begin = time.perf_counter()
    for done in range(rounds, effort.most):
        if done >= effort.least and time.perf_counter() - begin > effort.seconds:
            break
        for index in rng.permutation(len(running)):
            name = running[index]
            settle()
            if laps[name].loops > 1:
                samplers[name](1)  # short calls are measured warm: caches, and threads awake
            laps[name].seconds.append(samplers[name](laps[name].loops))
    return laps


@dataclass(frozen=True)
class Estimate:
    """A median with the interval that holds 95 % of the medians of resampled rounds."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def median(values: Any, resamples: int = 2000) -> Estimate:
    """The median of `values` and its bootstrap interval."""
    values = np.asarray(values, float)
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    picks = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def ratio(above: Any, below: Any) -> Estimate:
    """The median of above / below, paired round by round."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return median(above / below)
