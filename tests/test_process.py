"""What concerns the whole process: forks, signals, exit, the floating-point state."""

import multiprocessing
import sys

import isolated
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs linux")

# --- forks

FORKS = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads: the very thing tested

arrays = large()
expected = with_threads(1, arrays)

def child(generations, threads):
    "Forks; the child must give the same bits, and so must its own children, before and after it used its threads."
    if generations == 0:
        return
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child(generations - 1, threads)
            assert with_threads(threads, arrays) == expected
            assert pool() == threads - 1, pool()
            assert with_threads(threads, arrays) == expected
            child(generations - 1, threads)
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        os._exit(status)
    for _ in range(6000):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.01)
    else:
        os.kill(pid, signal.SIGKILL)
        raise AssertionError("the child hangs")
    assert status == 0, status
"""

BEFORE = {
    "never used": "",
    "used": "with_threads(threads, arrays)",
    "used with more": "with_threads(12, arrays)",
    "used in another thread": """
other = threading.Thread(target=with_threads, args=(threads, arrays))
other.start(); other.join()
""",
    "in use in other threads": """
finish = threading.Event()
def keep_calling():
    while not finish.is_set():
        with_threads(threads, arrays)
others = [threading.Thread(target=keep_calling) for _ in range(2)]
for other in others: other.start()
""",
}


@linux
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("before", BEFORE)
def test_fork(before, threads):
    repeats = 8 if before.startswith("in use") else 1
    isolated.run(f"""
{FORKS}
threads = {threads}
{BEFORE[before]}
for _ in range({repeats}):
    child({1 if repeats > 1 else 2}, threads)
if {repeats > 1}:
    finish.set()
    for other in others: other.join()
assert with_threads(threads, arrays) == expected
""")


@linux
def test_fork_from_another_thread():
    isolated.run(f"""
{FORKS}
with_threads(3, arrays)
failed = []
def fork():
    try:
        child(2, 3)
    except BaseException as error:
        failed.append(error)
other = threading.Thread(target=fork)
other.start()
while other.is_alive():
    assert with_threads(3, arrays) == expected
other.join()
assert not failed, failed
""")


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method, tmp_path):
    """Workers of each start method, after the parent used the pool."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""{isolated.PRELUDE}
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)

def work(n):
    return with_threads(n, large())

if __name__ == "__main__":
    expected = work(2)
    with multiprocessing.get_context({method!r}).Pool(2) as workers:
        assert workers.map_async(work, [1, 2, 8]).get(60) == [expected] * 3
"""
    )
    isolated.run("import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')", program)


# --- signals

INTERRUPTED = """
# Loading an engine, or compiling its kernels, is not what is interrupted here.
fastxent.logsumexp(np.zeros((1, 1000), "f4"))
fastxent.logsumexp(np.zeros((1, 5), "f4"))
arrays = endless()
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupted(call, after=0.3):
    "Whether a SIGINT some time after the call has begun ends it within a second, were all processors its own."
    used = []
    def interrupt():
        used.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(after, interrupt)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        return len(used) == 1 and time.process_time() - used[0] < os.cpu_count()
    finally:
        timer.join()
    return False
"""

CALLS = {
    "cross_entropy": "lambda: fastxent.cross_entropy(*arrays, num_threads=n)",
    "none": "lambda: fastxent.cross_entropy(*arrays, reduction='none', num_threads=n)",
    "logsumexp": "lambda: fastxent.logsumexp(arrays[0], num_threads=n)",
    "positions side by side": "lambda: fastxent.logsumexp(arrays[0].T, axis=0, num_threads=n)",
    "few classes": "lambda: fastxent.logsumexp(np.broadcast_to(np.zeros(5, 'f4'), (10**9, 5)), num_threads=n)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs posix")
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c(call, threads):
    isolated.run(f"""
{INTERRUPTED}
n = {threads}
assert interrupted({CALLS[call]})
ordinary = large()
assert with_threads(n, ordinary) == with_threads(1, ordinary)
""")


@linux
@pytest.mark.parametrize("call", ["cross_entropy", "none"])
def test_ctrl_c_leaves_nothing_behind(call):
    isolated.run(f"""
{INTERRUPTED}
n = 2
arrays = endless(100)  # 160 MB of losses and as much of whatever else goes by position
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
counts = [sys.getrefcount(array) for array in arrays]
for i in range(12):
    assert interrupted({CALLS[call]}, 0.15)
    if i == 2:
        before = memory()
assert [sys.getrefcount(array) for array in arrays] == counts
assert memory() - before < 100e6, memory() - before
""")


@linux
def test_signals_are_not_for_the_pool():
    """A signal that a thread of the pool took would not interrupt a sleep of the main thread at once."""
    isolated.run("""
        with_threads(8, large())
        blocked = {}
        for task in os.listdir("/proc/self/task"):
            lines = pathlib.Path(f"/proc/self/task/{task}/status").read_text().splitlines()
            status = dict(line.split(":\\t") for line in lines if ":\\t" in line)
            if status["Name"].strip() == "fastxent":
                blocked[task] = int(status["SigBlk"], 16)
        assert len(blocked) == 7
        for mask in blocked.values():
            for name in "INT TERM ALRM CHLD USR1 PROF SEGV BUS FPE ILL".split():
                number = getattr(signal, "SIG" + name)
                assert (mask >> (number - 1) & 1) == (name not in "SEGV BUS FPE ILL"), (name, hex(mask))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    """)


# --- exit


@pytest.mark.parametrize(
    "last",
    [
        "",
        "with_threads(8, large())",
        "threading.Thread(target=with_threads, args=(8, large())).start()",
        "import atexit; atexit.register(with_threads, 8, large())",
        """
arrays = endless()
threading.Thread(target=fastxent.cross_entropy, args=arrays, kwargs=dict(num_threads=4), daemon=True).start()
time.sleep(0.3)
""",
    ],
    ids=["unused", "idle", "in a thread", "at exit", "in a daemon thread"],
)
def test_exit(last):
    assert isolated.run(last + "\nprint('last')", timeout=30) == "last\n"


# --- the floating-point state

MXCSR = """
import ctypes, mmap
code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("0fae1fc3" "0fae17c3"))  # stmxcsr [rdi]; ret; ldmxcsr [rdi]; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
store, load = (ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))(address + at) for at in (0, 4))
def state():
    word = ctypes.c_uint32()
    store(word)
    return word.value
def set_state(value):
    load(ctypes.c_uint32(value))
"""
x86 = pytest.mark.skipif(not isolated.X86_64, reason="needs x86-64")


@linux
@x86
def test_import_leaves_the_float_state():
    isolated.run(f"""
{MXCSR}
set_state(0x1f80)
for name in [name for name in sys.modules if name.split(".")[0] == "fastxent"]:
    del sys.modules[name]
import fastxent
assert state() & ~0x3f == 0x1f80, hex(state())
assert ctypes.c_float(1e-40).value > 0 and np.float32(1e-40) * np.float32(0.5) > 0
""")


@linux
@x86
@pytest.mark.parametrize("odd", [0x1F80, 0x9FC0, 0x3F80, 0x7F80, 0x1FBF], ids=hex)
def test_calls_leave_and_ignore_the_float_state(odd):
    """Flush-to-zero and denormals-are-zero, other roundings, raised exceptions: kept, and of no influence on arrays.

    A reduced value is finished in Python, by whatever rounding the caller has set.
    """
    isolated.run(f"""
{MXCSR}
logits, targets = large()
logits[::7, ::3] = 1e-40
logits[5::7] -= np.linspace(0, 120, logits.shape[1], dtype="f4")
def answers(n):
    out = fastxent.cross_entropy_and_grad(logits, targets, reduction="none", num_threads=n)
    out += fastxent.cross_entropy_and_softmax(
        logits.T, targets, axis=0, label_smoothing=0.1, reduction="none", num_threads=n)
    out += (fastxent.softmax(logits[:, :7], num_threads=n), fastxent.logsumexp(logits, num_threads=n))
    return out
expected = [np.asarray(a).tobytes() for a in answers(1)]
usual = state()
for n in (1, 2, 8):
    set_state({odd})
    found = answers(n)
    after = state()
    set_state(usual)
    assert [np.asarray(a).tobytes() for a in found] == expected, n
    assert after & ~0x3f == {odd} & ~0x3f, hex(after)
""")
