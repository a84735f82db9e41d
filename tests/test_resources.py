"""Memory that cannot be had, memory that must come back, Ctrl-C at any moment, other interpreters and other libraries.

FASTXENT_HEAVY=1 makes ten times as many calls: a million small ones, ten thousand failing ones, 200 interruptions.
"""

import importlib.util
import os
import sys

import isolated
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs linux")
HEAVY = bool(os.environ.get("FASTXENT_HEAVY"))

# One call of each kind of entry point: what it allocates, and by which way.
CALLS = """
random = np.random.default_rng(3)
x = random.normal(size=(64, 40, 33)).astype("f4")
wide = random.normal(size=(50, 3000)).astype("f4")
t, far = random.integers(0, 33, (64, 40)), random.integers(0, 3000, 50)
probs = fastxent.softmax(x)
weight = random.uniform(size=33)
hidden, matrix = random.normal(size=(64, 40, 16)).astype("f4"), random.normal(size=(33, 16)).astype("f4")
evaluator = fastxent.Evaluator()
calls = {
    "mean": lambda: fastxent.cross_entropy(x, t),
    "none": lambda: fastxent.cross_entropy(x, t, reduction="none"),
    "sequences": lambda: fastxent.cross_entropy(x, t, reduction="sequence_mean", lengths=np.full(64, 20)),
    "weights": lambda: fastxent.cross_entropy(x, t, class_weight=weight, sample_weight=np.ones(40), mask=t > 3),
    "rows": lambda: fastxent.cross_entropy(wide, far, num_threads=2),
    "columns": lambda: fastxent.cross_entropy(wide.T, far, axis=0),
    "swapped": lambda: fastxent.cross_entropy(x.astype(">f4"), t.astype(">i4")),
    "integers": lambda: fastxent.cross_entropy(t, t[0] * 0, axis=0),
    "grad": lambda: fastxent.cross_entropy_and_grad(x, t, num_threads=2)[1],
    "saved": lambda: fastxent.cross_entropy(x, t, return_saved=True)[1],
    "softmax beside": lambda: fastxent.cross_entropy_and_softmax(x, t)[1],
    "probabilities": lambda: fastxent.cross_entropy_and_grad(x, probs)[1],
    "nll": lambda: fastxent.nll_loss_and_grad(x, t)[1],
    "from probs": lambda: fastxent.cross_entropy_from_probs_and_grad(probs, t)[1],
    "softmax": lambda: fastxent.softmax(x),
    "logsumexp": lambda: fastxent.logsumexp(x),
    "softmax grad": lambda: fastxent.softmax_grad(probs, x),
    "one_hot": lambda: fastxent.one_hot(t, 33),
    "reduce": lambda: fastxent.sequence_reduce(x[..., 0], lengths=np.full(64, 20), reduction="sequence_mean"),
    "focal": lambda: fastxent.focal_loss_and_grad(x, t)[1],
    "divergence": lambda: fastxent.kl_div_and_grad(x, x[::-1])[1],
    "binary": lambda: fastxent.binary_cross_entropy_with_logits_and_grad(x, probs)[1],
    "squares": lambda: fastxent.mse_loss_and_grad(x, probs, reduction="none")[1],
    "penalty": lambda: fastxent.l2_penalty_and_grad(x, strength=0.5)[1][0],
    "sigmoid": lambda: fastxent.sigmoid(x),
    "statistics": lambda: fastxent.token_statistics(x, t)[3],
    "top": lambda: fastxent.top_k_log_probs(x, 3)[0],
    "partials": lambda: fastxent.finish_partials(fastxent.merge_partials(
        fastxent.partials(x[..., :20], t), fastxent.partials(x[..., 20:], t, class_offset=20)))[0],
    "evaluator": lambda: evaluator.update(x, t),
    "linear": lambda: fastxent.linear_cross_entropy_and_grad(hidden, matrix, t)[1].weight,
    "linear statistics": lambda: fastxent.linear_token_statistics(hidden, matrix, t)[3],
}
def bits(call):
    return np.asarray(call()).tobytes()
def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
import resource
"""


@linux
def test_memory_that_cannot_be_had():
    """From no room at all to enough of it: each call is right or a MemoryError, and right again when there is room."""
    isolated.run(f"""
{CALLS}
np.ma  # NumPy imports it at the first use, and an import has errors of its own
expected = {{}}
for name, call in calls.items():  # the first call of each meets the limit with no scratch memory, no threads, no caches
    if "linear" not in name:  # a BLAS that cannot have its buffers ends the process by itself
        resource.setrlimit(resource.RLIMIT_AS, (used(), resource.RLIM_INFINITY))
        try:
            call()
        except MemoryError:
            pass
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    expected[name] = bits(call)
outcomes = set()
for name, call in calls.items():
    if "linear" in name:
        continue
    for room in (0, 1, 16, 64, 256, 400, 700, 1500, 6000):
        resource.setrlimit(resource.RLIMIT_AS, (used() + room * 1024, resource.RLIM_INFINITY))
        try:
            result = call()
            outcome = "done"
        except MemoryError:
            outcome = "no memory"
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        outcomes.add(outcome)
        assert outcome == "no memory" or np.asarray(result).tobytes() == expected[name], (name, room)
        result = None
    assert bits(call) == expected[name], name
assert outcomes == {{"done", "no memory"}}, outcomes
# What a call needs at once is said at once: 8 GB for the losses of rows that are all one row.
long = np.broadcast_to(np.zeros((1, 5), "f4"), (2 * 10**9, 5))
resource.setrlimit(resource.RLIMIT_AS, (used() + (1 << 30), resource.RLIM_INFINITY))
zeros = np.broadcast_to(np.int8(0), len(long))
for call in (lambda: fastxent.cross_entropy(long, zeros, reduction="none"), lambda: fastxent.softmax(long),
             lambda: fastxent.cross_entropy(long, zeros, reduction="sequence_mean"),
             lambda: fastxent.token_statistics(long, zeros), lambda: fastxent.top_k_log_probs(long, 2),
             lambda: fastxent.one_hot(zeros, 5), lambda: fastxent.sigmoid(long), lambda: fastxent.partials(long, zeros),
             lambda: fastxent.linear_token_statistics(long, np.zeros((3, 5), "f4"), zeros)):
    try:
        call()
    except MemoryError:
        continue
    raise AssertionError("there was no such memory")
""", MALLOC_MMAP_THRESHOLD_="65536", FASTXENT_BACKEND="native")  # nothing of size from what was freed before


@linux
def test_nothing_leaks():
    """Objects are counted exactly; the process may keep what one call of each kind needs."""
    isolated.run(f"""
{CALLS}
import gc
many = {10 if HEAVY else 1}
small, one = np.zeros((1, 5), "f4"), np.zeros(1, int)
failing = [
    lambda: fastxent.cross_entropy(small, one + 5), lambda: fastxent.cross_entropy(small, one, axis=3),
    lambda: fastxent.cross_entropy_and_grad(small, one, out_grad=np.zeros((1, 5))),
    lambda: fastxent.cross_entropy_and_grad(small, one - 1, class_weight=np.ones(5), sample_weight=[1.0]),
    lambda: fastxent.cross_entropy(small, one, reduction="median"), lambda: fastxent.token_statistics(small, one + 9),
    lambda: fastxent.linear_cross_entropy(small, np.zeros((3, 5), "f4"), one + 3),
    lambda: fastxent.binary_cross_entropy(small + 2, small), lambda: fastxent.cross_entropy(small, [[True]]),
    lambda: fastxent.focal_loss_and_grad(small, one + 7),
]
def fail():
    for call in failing:
        try:
            call()
        except (ValueError, TypeError, IndexError):
            continue
        raise AssertionError
def work(count):
    for _ in range(count):
        fastxent.cross_entropy(small, one)
    for _ in range(count // 10):
        fastxent.cross_entropy_and_grad(small, one)
        fastxent.softmax(small)
    for _ in range(count // 1000):
        fail()
    for _ in range(count // 1000):
        for call in calls.values():
            call()
def blocks():
    gc.collect()
    return sys.getallocatedblocks()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
work(20_000)
grown = []
for _ in range(4):  # the interpreter fills caches of its own for a while; what leaks grows in every round
    before = blocks(), resident()
    work(30_000 * many)
    grown.append((blocks() - before[0], resident() - before[1]))
assert min(blocks for blocks, _ in grown) < 28, grown  # of each kind there were 30 calls and more
assert min(size for _, size in grown) < 1 << 19, grown
""", timeout=600)


@pytest.mark.skipif(sys.platform == "win32", reason="needs posix")
def test_ctrl_c_at_any_moment():
    """Small calls and calls of a second, one thread and several: wherever it comes, the next call is as ever."""
    isolated.run(f"""
{CALLS}
names = ["mean", "none", "grad", "rows", "sequences", "statistics", "divergence", "linear", "weights", "evaluator"]
expected = {{name: bits(calls[name]) for name in names if name != "evaluator"}}
heavy = endless(1)
long = [lambda: fastxent.cross_entropy(*heavy, num_threads=1), lambda: fastxent.logsumexp(heavy[0], num_threads=3),
        lambda: fastxent.cross_entropy(*heavy, reduction="none", num_threads=2)]
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
reached = 0
for turn in range({200 if HEAVY else 40}):
    delay = float(random.uniform(1e-4, 0.02 if turn % 4 else 0.2))
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        while True:
            (long[turn // 4 % 3] if turn % 4 == 0 else calls[names[turn % 10]])()
    except KeyboardInterrupt:
        reached += 1
    if turn % 5 == 0:
        for name, value in expected.items():
            assert bits(calls[name]) == value, (turn, name)
assert reached == turn + 1
assert threading.active_count() == 1
""")


def test_other_interpreters_are_refused():
    """In an interpreter beside the first an import is an ImportError, and the first goes on."""
    code = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
{before}
other = interpreters.create()
said = interpreters.{run}(other, '''
try:
    import fastxent
    fastxent.cross_entropy([[0.0, 0.0]], [0])
except ImportError as error:
    print("refused")
else:
    print("taken")
''')
assert said is None, said
assert fastxent.cross_entropy([[0.0, 0.0]], [0]) > 0.69
print("as ever")
"""
    run = "exec" if sys.version_info >= (3, 13) else "run_string"
    for before in ("", "fastxent.cross_entropy([[0.0]], [0])"):
        said = isolated.run(code.format(before=before, run=run), PYTHONUNBUFFERED="1").splitlines()
        assert sorted(said) == ["as ever", "refused"], said


ORDERS = {
    "first": ["fastxent", "torch", "sklearn", "numba"],
    "last": ["numba", "sklearn", "torch", "fastxent"],
    "between": ["torch", "fastxent", "numba", "sklearn"],
}
USES = {
    "fastxent": "assert with_threads(2, arrays) == expected or expected is None; expected = with_threads(1, arrays)",
    "torch": "import torch; a = torch.ones(900, 900); (a @ a).sum().item(); torch.softmax(a, 1)",
    "sklearn": "import sklearn.linear_model; sklearn.linear_model.LogisticRegression(max_iter=3).fit(u, v)",
    "numba": "import numba; assert numba.njit(parallel=True)(lambda n: sum([i for i in range(n)]))(9) == 36",
}


@pytest.mark.parametrize("order", ORDERS)
def test_beside_other_libraries(order):
    """Whoever comes first brings its threads: fastxent gives the same bits before and after, and so does its child."""
    names = ORDERS[order]
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    uses = "\n".join(USES[name] for name in (*names, *names))
    fork = "" if sys.platform != "linux" else """
pid = os.fork()
if pid == 0:
    os._exit(with_threads(2, arrays) != expected)
assert os.waitpid(pid, 0)[1] == 0
"""
    isolated.run(f"""
import warnings
warnings.simplefilter("ignore")  # theirs
arrays, expected = large(), None
u, v = np.random.default_rng(0).normal(size=(200, 5)), np.arange(200) % 3
{uses}
assert with_threads(2, arrays) == expected
{fork}
""")
