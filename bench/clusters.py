"""fastxent.dask on clusters of processes on this machine: what it takes, what it moves, how it scales.

    python -m bench.clusters store [--gigabytes 3] [--memory 600MiB]    a store larger than the workers' memory
    python -m bench.clusters moved                                      bytes between workers, for each chunking
    python -m bench.clusters chunks                                     time of a task against the size of its chunk

`store` scores a compressed Zarr store with one worker of one thread, then with two, and asserts that the answers agree;
the workers' memory is limited, and the largest resident size of each is read when it is done. `moved` asks the workers
what came in over their sockets. `chunks` holds the cost of a task against that of the bytes in it. The figures of
docs/distributed.md come from here.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster

import fastxent
import fastxent.dask

TIME, CLASSES = 64, 32000
MIB = 2**20


def peak(dask_worker=None):
    """The largest resident size of this process so far, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def sequential_zarr(dask_worker=None):
    """One thread decodes, as one thread computes: otherwise a single worker is not a single core."""
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})


def incoming(dask_worker):
    """Bytes of data that came to a worker from the others."""
    return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)


def cluster(workers, memory="auto"):
    """So many processes of one thread each, and a client."""
    warnings.simplefilter("ignore")
    local = LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None, silence_logs=40
    )
    return local, Client(local)


# --- a store larger than memory


def write_store(path, gigabytes):
    """Logits (sequence, time, class) as a model would write them: float32 that was rounded to 11 bits of mantissa."""
    sequences = 8 * max(2, round(gigabytes * 1e9 / (32 * TIME * CLASSES)))
    random = np.random.default_rng(0)
    logits = zarr.create_array(store=path, shape=(sequences, TIME, CLASSES), chunks=(8, TIME, CLASSES // 2), dtype="f4")
    block = random.normal(size=(8, TIME, CLASSES)).astype("f2").astype("f4")
    for first in range(0, sequences, 8):
        logits[first : first + 8] = np.roll(block, 7 * first, axis=-1)
    return random.integers(0, CLASSES, (sequences, TIME)), random.integers(1, TIME + 1, sequences)


def score(path, targets, lengths, workers, memory):
    """Seconds, the answer, and the workers' peaks."""
    local, client = cluster(workers, memory)
    with local, client:
        client.run(sequential_zarr)
        x = da.from_zarr(path)
        fastxent.dask.cross_entropy(x[: 8 * workers], targets[: 8 * workers]).compute()  # imports
        start = time.perf_counter()
        value = fastxent.dask.cross_entropy(x, targets, lengths=lengths, shift=1).compute()
        seconds = time.perf_counter() - start
        return seconds, float(value), list(client.run(peak).values())


def store(options):
    """One worker and two, twice each."""
    limit = dask.utils.parse_bytes(options.memory)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "logits.zarr")
        targets, lengths = write_store(path, options.gigabytes)
        x = da.from_zarr(path)
        on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{x.nbytes / 1e9:.2f} GB of logits {x.shape}, {on_disk / 1e9:.2f} GB on disk, chunks {x.chunksize} of "
              f"{x.nbytes / x.npartitions / MIB:.1f} MiB; a worker may take {limit / MIB:.0f} MiB")
        best, values = {}, set()
        for workers in (1, 2, 1, 2):
            seconds, value, peaks = score(path, targets, lengths, workers, options.memory)
            values.add(round(value, 9))
            best[workers] = min(seconds, best.get(workers, math.inf))
            sizes = ", ".join(f"{size / MIB:.0f}" for size in peaks)
            print(f"{workers} worker(s): {seconds:.2f} s, {x.nbytes / seconds / 1e9:.2f} GB/s of logits; "
                  f"value {value:.9f}; largest resident size {sizes} MiB", flush=True)
            assert max(peaks) < limit, "a worker was above its limit"
        assert len(values) == 1, values
        print(f"two workers are {best[1] / best[2]:.2f} times as fast as one")


# --- what moves


def moved(options):
    """Bytes between two workers for each token, measured, and the depth of the tree."""
    tokens, classes = (64, 64), 4096
    random = np.random.default_rng(0)
    targets = random.integers(0, classes, tokens)

    print("chunks of (64, 64, 4096) | ranges | depth | bytes/token: value | value and gradient | logits")
    local, client = cluster(2)
    with local, client:
        for chunks in ((8, 64, 4096), (64, 8, 4096), (8, 64, 1024), (8, 64, 512), (8, 64, 256)):
            x = da.zeros((*tokens, classes), dtype="f4", chunks=chunks)
            found = []
            loss, grad = fastxent.dask.cross_entropy_and_grad(x, targets, shift=1)
            for wanted in ((loss,), (loss, grad.sum())):
                before = sum(client.run(incoming).values())
                client.compute(wanted, sync=True)
                time.sleep(0.5)
                found.append((sum(client.run(incoming).values()) - before) / targets.size)
            ranges = x.numblocks[2]
            depth = math.ceil(math.log(ranges, 4))
            print(f"{chunks} | {ranges} | {depth} | {found[0]:.0f} | {found[1]:.0f} | {4 * classes}", flush=True)


# --- the size of a chunk


def chunks(options):
    """Seconds of a whole computation over tasks of each size, one worker: made logits, and the scheduler's part."""
    local, client = cluster(1)
    print("chunk MiB | tasks of logits | seconds | ms a task | GB/s")
    with local, client:
        for rows in (2, 8, 32, 128, 512):
            number = max(8, min(1024, 16384 // rows))

            def repeated(rows=rows):  # one row, seen many times: only the kernel and the task cost
                return np.broadcast_to(np.linspace(-4, 4, CLASSES, dtype="f4"), (rows, CLASSES))

            x = da.map_blocks(repeated, chunks=((rows,) * number, (CLASSES,)), dtype="f4", meta=np.empty((0, 0), "f4"))
            targets = np.zeros(rows * number, np.int32)
            start = time.perf_counter()
            fastxent.dask.cross_entropy(x, targets).compute()
            seconds = time.perf_counter() - start
            print(f"{rows * CLASSES * 4 / MIB:.2f} | {number} | {seconds:.2f} | {1e3 * seconds / number:.2f} | "
                  f"{x.nbytes / seconds / 1e9:.2f}", flush=True)


def main():
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["store", "moved", "chunks"])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--memory", default="600MiB")
    options = parser.parse_args()
    {"store": store, "moved": moved, "chunks": chunks}[options.what](options)


if __name__ == "__main__":
    main()
