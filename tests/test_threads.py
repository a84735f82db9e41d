"""The thread pool: the same bits for any number of threads, no more threads than asked for, callers side by side.

What is measured here are answers and numbers of threads, never times.
"""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import isolated
import numpy as np
import pytest

import fastxent

THREADS = (1, 2, 3, 7, 16, 32)
ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs linux")


# --- bits


def problem(shape, axis, dtype, options):
    """Logits, class indices and keyword arguments; large enough to be divided."""
    random = cases.rng(*shape)
    logits = cases.scores(random, shape, dtype)
    positions = tuple(np.delete(shape, axis))
    targets = cases.class_indices(random, positions, shape[axis])
    keywords = {"axis": axis}
    if "weights" in options:
        keywords["class_weight"] = random.uniform(size=shape[axis])
        keywords["sample_weight"] = random.uniform(size=positions)
    if "padded" in options:
        keywords["lengths"] = random.integers(0, positions[-1] + 1, positions[:-1])
    if "smooth" in options:
        keywords["label_smoothing"] = 0.1
    return logits, targets, keywords


def bits(*results):
    return [np.asarray(result).tobytes() for result in results]


PROBLEMS = [
    ((3000, 1000), -1, "plain"),
    ((40, 50257), -1, "weights smooth"),
    ((60000, 17), -1, "weights"),
    ((60000, 3), -1, "plain"),
    ((60, 130, 257), -1, "padded weights smooth"),
    ((60, 257, 130), 1, "padded weights"),
    ((257, 60, 130), 0, "smooth"),
    ((7, 11, 40000), 1, "padded"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "axis", "options"), PROBLEMS, ids=str)
def test_same_bits(shape, axis, options, dtype):
    logits, targets, keywords = problem(shape, axis, cases.DTYPES[dtype], options)
    log_probs = fastxent.log_softmax(logits, axis=axis)
    without = {name: value for name, value in keywords.items() if name != "label_smoothing"}
    first = None
    for n in THREADS:
        answers = [fastxent.cross_entropy(logits, targets, reduction=r, num_threads=n, **keywords)
                   for r in ("none", "sum", "mean", "sequence_mean", "batch_mean")]
        answers += fastxent.cross_entropy_and_grad(logits, targets, num_threads=n, **keywords)
        answers += fastxent.cross_entropy_and_softmax(logits, targets, num_threads=n, **keywords)
        answers += fastxent.nll_loss_and_grad(log_probs, targets, num_threads=n, **without)
        for function in (fastxent.softmax, fastxent.log_softmax, fastxent.logsumexp):
            answers.append(function(logits, axis=axis, num_threads=n))
        first = first or bits(*answers)
        assert bits(*answers) == first, f"{n} threads"


# --- how many threads


@linux
def test_threads_start_when_needed():
    isolated.run("""
        arrays = large()
        assert pool() == 0
        with_threads(1, arrays)
        fastxent.cross_entropy(arrays[0][:1, :5], arrays[1][:1] % 5, num_threads=8)
        assert pool() == 0
        with_threads(3, arrays)
        assert pool() == 2, pool()
        with_threads(2, arrays)
        assert pool() == 2, pool()
        fastxent.set_num_threads(6)
        fastxent.cross_entropy(*arrays)
        assert pool() == 5, pool()
    """)


@linux
def test_concurrent_callers_share_the_threads():
    isolated.run("""
        arrays = large()
        expected = with_threads(1, arrays)
        wrong = []
        def call():
            for _ in range(20):
                if with_threads(4, arrays) != expected:
                    wrong.append(1)
        callers = [threading.Thread(target=call) for _ in range(5)]
        for thread in callers: thread.start()
        for thread in callers: thread.join()
        assert not wrong
        assert 1 <= pool() <= 3, pool()
    """)


@linux
def test_affinity_limits_the_default():
    isolated.run("""
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(everywhere)})
        assert fastxent.get_num_threads() == 1
        fastxent.cross_entropy(*large())
        assert pool() == 0
        assert with_threads(5, large()) == with_threads(1, large())
    """)


@pytest.mark.parametrize("variable", ["FASTXENT_NUM_THREADS", "OMP_NUM_THREADS"])
def test_environment_sets_the_default(variable):
    isolated.run("assert fastxent.get_num_threads() == 5", **{variable: "5"})


@linux
def test_goes_on_where_threads_are_refused():
    """A limit on address space leaves no room for another stack, as a limit on processes leaves none for a thread."""
    isolated.run("""
        import resource
        arrays = large()
        expected = with_threads(1, arrays)
        grad = np.zeros_like(arrays[0])
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), resource.RLIM_INFINITY))
        loss, _ = fastxent.cross_entropy_and_grad(*arrays, num_threads=200, out_grad=grad)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        assert np.float64(loss).tobytes() + grad.tobytes() == expected
        some = pool()
        assert some < 59, some
        time.sleep(1.1)  # it does not ask again at once
        assert with_threads(60, arrays) == expected
        assert pool() == 59, pool()
    """)


# --- callers side by side


def test_releases_the_gil():
    finished, ticks = threading.Event(), []

    def tick():
        while not finished.wait(1e-3):
            ticks.append(1)

    row = np.broadcast_to(np.linspace(0, 1, 20000, dtype="f4"), (40000, 20000))
    other = threading.Thread(target=tick)
    other.start()
    try:
        before = len(ticks)
        fastxent.logsumexp(row, num_threads=1)
        assert len(ticks) - before > 5
    finally:
        finished.set()
        other.join()


def test_many_python_threads():
    jobs = []
    for number, (shape, axis, options) in enumerate(PROBLEMS):
        logits, targets, keywords = problem(shape, axis, np.float32, options)
        expected = bits(*fastxent.cross_entropy_and_grad(logits, targets, num_threads=1, **keywords))
        jobs += [(logits, targets, keywords, 1 + (number + n) % 4, expected) for n in range(6)]

    def answers(job):
        logits, targets, keywords, threads, expected = job
        return bits(*fastxent.cross_entropy_and_grad(logits, targets, num_threads=threads, **keywords)) == expected

    with ThreadPoolExecutor(6) as executor:
        assert all(executor.map(answers, jobs))


def test_error_in_one_thread_leaves_the_others_alone():
    logits, targets, _ = problem((3000, 1000), -1, np.float32, "plain")
    wrong = targets.copy()
    wrong[2000] = 1000
    expected = bits(fastxent.cross_entropy(logits, targets, num_threads=1))

    def call(number):
        if number % 2:
            return bits(fastxent.cross_entropy(logits, targets, num_threads=3)) == expected
        with pytest.raises(IndexError, match="2000"):
            fastxent.cross_entropy(logits, wrong, num_threads=3)
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(call, range(60)))


# --- the pool by itself


VARIANTS = {
    "futex": [],
    "condition variable": ["-DFX_NO_FUTEX"],
    "no threads": ["-DFX_NO_THREADS"],
    "refused threads": ["-DSTRESS_REFUSE", "-Wl,--wrap=pthread_create"],
    "thread sanitizer": ["-fsanitize=thread"],
    "thread sanitizer, condition variable": ["-fsanitize=thread", "-DFX_NO_FUTEX"],
}


@linux
@pytest.mark.parametrize("variant", VARIANTS)
def test_stress(variant, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs gcc")
    sources = [ROOT / "tests/c/pool_stress.c", ROOT / "src/parallel.c", ROOT / "src/cpu.c"]
    program = tmp_path / "pool_stress"
    flags = ["-std=c11", "-O2", "-g", "-pthread", f"-I{ROOT / 'src'}", *VARIANTS[variant]]
    command = [compiler, *flags, *sources, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0 and "tsan" in built.stderr:
        pytest.skip("needs gcc with ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    assert not built.stderr
    # By default ThreadSanitizer ends a child of a process with several threads that starts threads itself.
    environment = os.environ | {"TSAN_OPTIONS": "die_after_fork=0 halt_on_error=1"}
    ran = subprocess.run([program, "1"], capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stderr
