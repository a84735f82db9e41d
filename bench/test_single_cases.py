"""Single cases on pytest-benchmark: ``pytest bench``, ``pytest bench -k "torch and 50257"``.

For work on one kernel. Contestants do not interleave, so ratios between them mean less than those of the report.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.answers import Oracle
from bench.baselines import PEERS
from bench.cases import FULL, Case, Data
from bench.contest import checked
from bench.peer import Fastxent, Peer, load

# Other libraries warn on import and when compiling; that is not for this suite to judge.
pytestmark = pytest.mark.filterwarnings("ignore")

GRID = [Case(shape) for shape in FULL.grid]
OTHERS = [
    *[Case((1024, 50257), dtype) for dtype in ("bfloat16", "float16", "float64")],
    *[Case((16384, 1000), label_smoothing=0.1), Case((16384, 1000), weighted=True)],
    *[Case((16384, 1000), probabilities=True), Case((64, 512, 1000), padding="lengths", valid=0.5)],
    *[Case((64, 17, 4096), axis=1), Case((32, 1000, 1024), axis=1), Case((1, 5))],
]
NAMES = ["fastxent", *(kind.name for kind in PEERS)]


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest) -> Data:
    case: Case = request.param
    return case.make()


def contestant(name: str) -> Peer:
    import fastxent

    threads = fastxent.get_num_threads()
    if name == "fastxent":
        return Fastxent(threads)
    peers, absent = load([name], threads)
    if not peers:
        pytest.skip(absent[name])
    return peers[0]


def run(benchmark: Any, name: str, data: Data, operation: str) -> None:
    peer = contestant(name)
    calls = peer.calls(data)
    if operation not in calls:
        pytest.skip(f"{name} has no {operation} for {data.case.name}")
    call = calls[operation]
    found = checked(Oracle(data), operation, peer.answer(call(), data))
    if name == "fastxent":
        assert found["right"], found
    benchmark.group = f"{data.case.name}, {operation}"
    benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    nbytes = data.bytes_read if operation == "forward" else data.bytes_both
    found = {key: value for key, value in found.items() if not (isinstance(value, float) and math.isnan(value))}
    benchmark.extra_info |= found | {"gigabytes_per_second": nbytes / benchmark.stats["median"] / 1e9}


def identity(value: Any) -> str:
    return value.name.replace(" ", "-") if isinstance(value, Case) else str(value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", ["forward", "both"])
@pytest.mark.parametrize("data", GRID + OTHERS, indirect=True, ids=identity)
def test_loss(benchmark: Any, data: Data, operation: str, name: str) -> None:
    run(benchmark, name, data, operation)


@pytest.mark.parametrize("operation", ["given", "in_place"])
@pytest.mark.parametrize("data", GRID + OTHERS, indirect=True, ids=identity)
def test_into_given_array(benchmark: Any, data: Data, operation: str) -> None:
    run(benchmark, "fastxent", data, operation)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", ["softmax", "log_softmax"])
@pytest.mark.parametrize("data", [Case(shape) for shape in FULL.activations], indirect=True, ids=identity)
def test_activation(benchmark: Any, data: Data, operation: str, name: str) -> None:
    run(benchmark, name, data, operation)
