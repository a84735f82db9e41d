"""Python code in a process of its own, for what concerns a whole process: its threads, forks, signals, memory."""

import os
import platform
import subprocess
import sys
import textwrap

X86_64 = platform.machine() in ("x86_64", "AMD64")

PRELUDE = """
import os, pathlib, signal, sys, threading, time
import numpy as np
import fastxent

def name_of(task):
    try:
        return pathlib.Path("/proc/self/task", task, "comm").read_text()
    except OSError:  # it has ended since it was listed
        return ""

def pool():
    "The threads of the pool, by their names: a thread names itself once it runs, so wait until no more appear."
    count, since = -1, time.monotonic()
    while time.monotonic() < since + 0.3:
        now = sum(name_of(task) == "fastxent\\n" for task in os.listdir("/proc/self/task"))
        if now != count:
            count, since = now, time.monotonic()
        time.sleep(0.01)
    return count

def large(positions=3000, classes=1000):
    "Enough work for several threads; with_threads(n) does it and returns its bits."
    random = np.random.default_rng(5)
    return random.normal(size=(positions, classes)).astype("f4"), random.integers(0, classes, positions)

def with_threads(n, arrays):
    loss, grad = fastxent.cross_entropy_and_grad(*arrays, num_threads=n)
    return np.float64(loss).tobytes() + grad.tobytes()

def endless(seconds=3600):
    "A call of about so many seconds that needs no memory: rows that are all the same row."
    positions = int(seconds * 2e5)
    logits = np.broadcast_to(np.linspace(0, 1, 20000, dtype="f4"), (positions, 20000))
    return logits, np.broadcast_to(np.int64(3), positions)
"""


def run(code, *arguments, timeout=120, **environment):
    """Run `code` after PRELUDE; returns what it printed. Fails on another exit status than 0, and on any warning."""
    command = [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    process = subprocess.run(
        command, env=variables | environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=os.sep
    )
    assert process.returncode == 0, f"exit status {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process.stdout
