"""The benchmarks can be believed: peers and oracle agree with the reference, statistics and bars do what they say.

The peer `compile` is left out (its first compilation takes half a minute): every benchmark run checks its answers.
"""

import dataclasses
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastxent import reference

ROOT = Path(__file__).resolve().parents[1]
# Frameworks warn when they are imported and when they compile: not for these tests to judge.
pytestmark = pytest.mark.filterwarnings("ignore")


def load_bench():
    """The package bench/, without putting the root on sys.path: fastxent/ there would hide the installed package."""
    spec = importlib.util.spec_from_file_location(
        "bench", ROOT / "bench" / "__init__.py", submodule_search_locations=[str(ROOT / "bench")]
    )
    sys.modules["bench"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


load_bench()

from bench import __main__ as command  # noqa: E402
from bench import bars, compare, measure, report  # noqa: E402
from bench.answers import Oracle  # noqa: E402
from bench.bandwidth import open_bandwidth  # noqa: E402
from bench.baselines import PEERS  # noqa: E402
from bench.cases import DTYPES, FULL, QUICK, Case, uneven_lengths  # noqa: E402
from bench.contest import checked  # noqa: E402
from bench.peer import Fastxent, load  # noqa: E402
from bench.worker import Worker  # noqa: E402

CASES = [
    *[Case((37, 19), dtype) for dtype in DTYPES],
    *[Case((70, 1000)), Case((1, 5)), Case((3, 11, 7), axis=1)],
    *[Case((23, 9), label_smoothing=0.1), Case((23, 9), weighted=True), Case((23, 9), probabilities=True)],
    *[Case((4, 13, 9), padding="lengths", valid=0.6), Case((4, 13, 9), "float64", padding="mask", valid=0.3)],
    Case((23, 9), "float64", label_smoothing=0.2, weighted=True),
]
MODULES = {"fastxent-numba": "numba", "sklearn": "sklearn", "torch-manual": "torch", "compile": "torch", "jax": "optax"}


def expected(operation, data):
    """What the reference makes of a case: (loss, array), in float64."""
    case = data.case
    if operation in ("softmax", "log_softmax"):
        return None, getattr(reference, operation)(data.logits, axis=case.axis)
    options = {"class_weight": data.class_weight, "lengths": data.lengths, "mask": data.mask, "axis": case.axis}
    loss, grad = reference.cross_entropy_and_grad(
        data.logits, data.targets, label_smoothing=case.label_smoothing, **options
    )
    return float(loss), None if operation == "forward" else grad


def assert_answers(peer, data):
    calls = peer.calls(data)
    oracle = Oracle(data)
    # JAX and torch round log-probabilities of a half type, their sum and their mean to that type.
    rounded = 3 * {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(data.case.dtype, 0.0)
    for operation, call in calls.items():
        for _ in range(1 if operation == "in_place" else 2):  # the second call must not depend on the first
            loss, array = peer.answer(call(), data)
        loss_bound, array_bound = oracle.bounds(operation)
        true_loss, true_array = expected(operation, data)
        assert (loss is None) == (true_loss is None)
        if loss is not None:
            assert loss == pytest.approx(true_loss, rel=loss_bound + rounded), operation
        assert (array is None) == (true_array is None)
        if array is not None:
            scale = oracle.divisor if true_loss is not None else 1.0
            error = np.abs(np.asarray(array, float).reshape(true_array.shape) - true_array).max() * scale
            assert error <= array_bound, operation
    return calls


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", [kind for kind in PEERS if kind.name != "compile"], ids=lambda kind: kind.name)
def test_peers_agree_with_the_reference(kind, case):
    pytest.importorskip(MODULES.get(kind.name, kind.name))
    peers, absent = load([kind.name], 2)
    assert not absent
    calls = assert_answers(peers[0], case.make())
    if case.plain and case.dtype in ("float32", "float64"):
        assert {"forward", "both"} <= set(calls)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fastxent_agrees_with_the_reference(case):
    assert {"forward", "both", "given", "in_place"} <= set(assert_answers(Fastxent(2), case.make()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_oracle_agrees_with_the_reference(case):
    data = case.make()
    oracle = Oracle(data)
    loss, grad = expected("both", data)
    assert oracle.loss == pytest.approx(loss, rel=1e-13)
    part = oracle.sample
    np.testing.assert_allclose(oracle.gradient() / oracle.divisor, grad[part], rtol=1e-12, atol=1e-14)
    for operation in ("softmax", "log_softmax"):
        np.testing.assert_allclose(oracle.activation(operation), expected(operation, data)[1][part], rtol=1e-12)
    assert set(oracle.errors("both", loss, grad)) == {"loss", "loss_error", "array_error"}


def test_a_wrong_answer_is_seen():
    data = Case((6, 5)).make()
    oracle = Oracle(data)
    loss, grad = expected("both", data)
    assert checked(oracle, "both", (loss, grad))["right"]
    assert not checked(oracle, "both", (loss * 1.001, grad))["right"]
    assert not checked(oracle, "both", (math.nan, grad))["right"]
    grad[-1, -1] += 1e-3
    assert not checked(oracle, "both", (loss, grad))["right"]
    grad[-1, -1] = math.nan
    assert not checked(oracle, "both", (loss, grad))["right"]


def test_data_is_the_same_each_time_and_valid_as_asked():
    case = Case((50, 40, 7), padding="lengths", valid=0.37)
    one, two = case.make(), case.make()
    np.testing.assert_array_equal(one.logits, two.logits)
    assert one.valid_fraction == pytest.approx(0.37, abs=5e-3)
    np.testing.assert_array_equal(one.valid.sum(axis=1), one.lengths)
    np.testing.assert_array_equal(one.targets[~one.valid], -100)
    assert dataclasses.replace(case, padding="mask").make().valid_fraction == 0.37
    lengths = uneven_lengths(np.random.default_rng(0), 100, 1000, 0.5)
    assert lengths.min() < 50
    assert lengths.max() > 950


@pytest.mark.parametrize("plan", [FULL, QUICK], ids=["full", "quick"])
def test_plans_hold_what_the_bars_need(plan):
    assert {(1, 5), (320, 5)} <= set(plan.small)
    assert plan.few_elements >= 4_000_000
    assert any(size >= 512 for size in plan.sizes)
    assert plan.sizes_bytes > 32 << 20
    assert "avx2" in plan.forced


def test_ratios_are_paired():
    noise = np.array([1.0, 5.0, 1.0, 9.0, 1.0])
    found = measure.ratio(3 * noise, noise)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)
    spread = measure.median([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread.value == 3.0
    assert spread.low < 3.0 < spread.high


def test_a_race_goes_on_without_one_that_falls():
    def falls():
        raise ArithmeticError("no more")

    samplers = {"slow": measure.local(lambda: time.sleep(0.004)), "falls": measure.local(falls)}
    samplers["quick"] = measure.local(lambda: None, before=lambda: time.sleep(0.002))
    laps = measure.race(samplers, measure.SMOKE)
    assert laps["falls"].error == "ArithmeticError: no more"
    assert len(laps["slow"].seconds) == len(laps["quick"].seconds) == measure.SMOKE.least
    assert min(laps["slow"].seconds) >= 0.004
    assert max(laps["quick"].seconds) < 0.002  # what goes before is not timed


@pytest.mark.parametrize(("shorter", "calls"), [(0.002, 3), (0.0, 4)])
def test_a_long_trial_is_the_first_round(shorter, calls):
    """Where all take long, the call that asks how long is a sample; not where one is repeated for a sample."""
    made = []
    samplers = {"long": measure.local(lambda: made.append(time.sleep(0.002)))}
    samplers["other"] = measure.local(lambda: time.sleep(shorter) if shorter else None)
    laps = measure.race(samplers, measure.Effort(least=3, most=3, seconds=0, sample_seconds=0.001, warmed=True))
    assert [len(lap.seconds) for lap in laps.values()] == [3, 3]
    assert len(made) == calls


def test_bandwidth_reads_and_copies_everything():
    found = open_bandwidth(1 << 20, 2)
    if found is None:
        pytest.skip("needs a C compiler")
    rng = np.random.default_rng(0)
    found.source[:] = rng.integers(0, 256, found.source.size, dtype=np.uint8)
    for threads in (1, 2, 3):
        found.target[:] = 0
        calls = found.calls(threads)
        calls["read"]()
        calls["copy"]()
        np.testing.assert_array_equal(found.target, found.source[: found.target.size])


def record(suite, operation, shape, laps, **more):
    contestants = {name: {"seconds": [t] * 3} for name, t in laps.items()}
    for name in bars.LIMITS:
        if name in contestants:
            contestants[name]["bytes"] = 10**9
    case = dataclasses.asdict(Case(shape))
    known = {"name": Case(shape).name, "case": case, "bytes_read": 10**8, "bytes_both": 2 * 10**8}
    return {"suite": suite, "operation": operation, "contestants": contestants} | known | more


def test_bars_are_judged_against_the_capped_limit():
    shape = (10**5, 1000)
    fast = record("sizes", "forward", shape, {"fastxent": 1e8 / 32e9, "read": 1 / 60})  # 60 GB/s: capped at 34
    slow = record("sizes", "forward", shape, {"fastxent": 1e8 / 32e9, "read": 1 / 32})
    assert bars.share(fast).value == pytest.approx(32 / 34)
    assert bars.share(fast, capped=False).value == pytest.approx(32 / 60)
    assert bars.share(slow).value == pytest.approx(1.0)
    (check,) = bars.forward_share([fast])
    assert check.met
    assert check.margin == pytest.approx(32 / 34 / 0.9)
    (missed,) = bars.gradient_share([record("sizes", "given", shape, {"fastxent": 1.0, "copy": 1 / 48})])
    assert not missed.met


def test_bars_take_the_best_peer_and_the_valid_fraction():
    laps = {"fastxent": 1.0, "torch": 4.0, "jax": 2.0, "read": 0.1}
    cell, mean = bars.peers([record("grid", "forward", (10, 5), laps)])
    assert (cell.value.value, cell.met, mean.value.value, mean.met) == (2.0, True, pytest.approx(2.0), False)
    padded = record("masks", "given", (4, 8, 5), {"full": 1.0, "lengths 0.5": 0.7})
    padded["contestants"]["lengths 0.5"]["valid"] = 0.5
    (check,) = bars.masked([padded])
    assert check.met
    assert check.bound == pytest.approx(1.1 * 0.65)
    (row,) = bars.summary([check])
    assert (row["met"], row["of"], row["worst"]) == (1, 1, check)


def test_comparison_calls_only_clear_changes():
    def run(factor):
        laps = [1.0, 1.01, 0.99, 1.0]
        one = record("grid", "forward", (10, 5), {"fastxent": 1.0})
        one["contestants"]["fastxent"]["seconds"] = [t * factor for t in laps]
        return {"records": [one], "machine": {"time": "now", "processor": "one"}}

    assert "slower" in compare.compare(run(1.3), run(1.0))
    assert "faster" in compare.compare(run(0.8), run(1.0))
    text = compare.compare(run(1.02), run(1.0))
    assert "1.02x" in text
    assert "slower" not in text


def test_worker_measures_memory_of_its_own():
    case = dataclasses.asdict(Case((256, 4096)))
    with Worker() as worker:
        found = worker.ask("memory", case=case, operation="both", peer="numpy", threads=1)
        with pytest.raises(RuntimeError, match="KeyError"):
            worker.ask("memory", case=case, operation="unknown", peer="numpy", threads=1)
    assert found["result_bytes"] == 256 * 4096 * 4
    if found["exact"]:
        assert 0.9 * found["result_bytes"] < found["extra_bytes"] < 2 * found["result_bytes"]


def test_the_command_reports_on_every_suite(tmp_path, capsys):
    pytest.importorskip("tqdm")
    pytest.importorskip("scipy")
    assert command.main(["--smoke", "--against", "numpy,scipy", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    needed = {"torch": ["torch"], "jax": ["jax", "optax"], "hessian": ["sklearn"]}
    without = {suite for suite, names in needed.items() if not all(importlib.util.find_spec(name) for name in names)}
    assert {found["suite"] for found in results["records"]} == set(command.SUITES) - without
    for found in results["records"]:
        for name, contestant in found["contestants"].items():
            assert not contestant.get("error"), (found["name"], name)
            # torch's loss of bfloat16 is a sum of rounded numbers, rounded again: less exact than a bar asks.
            rounded = found["suite"] == "torch" and "bfloat16" in found["name"]
            assert contestant.get("right", True) or rounded, (found["name"], name)
    text = capsys.readouterr().out
    for title in ("## Machine", "## Bars", "## Small calls", "## Masks", "## Threads", "## Peak memory", "## Answers"):
        assert title in text
    assert "## Fell out" not in text
    again = ["--render", str(tmp_path / "results.json"), "--compare", str(tmp_path / "results.json")]
    assert command.main([*again, "--output", str(tmp_path / "again")]) == 0
    assert "## Comparison" in (tmp_path / "again" / "report.md").read_text()
    assert report.markdown(results | {"plots": ["share.png"]}).endswith("![share](share.png)\n")


@pytest.mark.parametrize(
    "arguments",
    [["--only", "nothing"], ["--against", "nobody"], ["--render", "nowhere.json"], ["--compare", "nowhere.json"]],
    ids=lambda arguments: arguments[0],
)
def test_the_command_refuses_what_it_does_not_know(arguments, tmp_path, capsys):
    pytest.importorskip("tqdm")
    assert command.main(["--smoke", "--output", str(tmp_path), *arguments]) == 2
    assert arguments[1] in capsys.readouterr().err
