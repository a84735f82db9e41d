"""Mutations of every format: whatever a file holds, it is scored or its fault is named, and memory stays small.

Seeded, 3 000 a format; FASTXENT_MUTATIONS=100000 makes it so many.
"""

import os
import tracemalloc
from pathlib import Path

import cli_files as files
import numpy as np
import pytest

MUTATIONS = int(os.environ.get("FASTXENT_MUTATIONS", 3000))
MAY_TAKE = 64 * 2**20  # bytes, beside the size of the file
LOGITS, TARGETS = files.model((4, 7, 11), "float16")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("t.npy", TARGETS)


def mutated(data, rng):
    """A few bytes changed, a stretch taken out, doubled or cut off; mostly near the start, where headers are."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, min(len(data), 200) if rng.random() < 0.7 else len(data)) if data else 0)
        kind, size = rng.integers(0, 7), int(rng.integers(1, 9))
        if kind == 0:
            data[at : at + size] = rng.bytes(size)
        elif kind == 1:
            data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(0, 8)))]) if at < len(data) else b""
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at : at + size] = rng.choice([b"\xff", b"\0", b"9", b"-", b"\x7f"]) * size
        else:
            digits = [i for i, byte in enumerate(data[:200]) if 48 <= byte < 58]
            if digits:
                data[digits[int(rng.integers(0, len(digits)))]] = int(rng.integers(48, 58))
    return bytes(data)


def run_mutations(name, data, path, count=MUTATIONS):
    path = Path(path)
    files.score(name)  # what is imported on the way is not of a file
    rng = np.random.default_rng(sum(map(ord, name)))
    outcomes = {"scored": 0, "fault": 0}
    measured = np.random.default_rng(1).random(count) < 0.03  # tracemalloc makes everything slow
    for number in range(count):
        changed = mutated(data, rng)
        path.write_bytes(changed)
        if measured[number]:
            tracemalloc.start()
        outcome = files.score(name)
        if measured[number]:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < len(changed) + MAY_TAKE, (number, outcome)
        outcomes["scored" if outcome == "scored" else "fault"] += 1
        assert "MemoryError" not in outcome, (number, outcome)
    return outcomes


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "kld"])
def test_mutations(kind):
    data = {
        "npy": files.npy(LOGITS), "npz": files.npz(True, x=LOGITS),
        "safetensors": files.safetensors(x=LOGITS, y=TARGETS), "kld": files.kld(*files.model((3, 12, 11))),
    }[kind]
    name = f"bad.{kind}:x" if kind in ("npz", "safetensors") else f"bad.{kind}"
    Path(f"bad.{kind}").write_bytes(data)
    assert files.score(name) == "scored"
    outcomes = run_mutations(name, data, f"bad.{kind}")
    assert outcomes["fault"] > MUTATIONS / 4
    assert outcomes["scored"] > MUTATIONS / 100


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore")  # of the zarr package, about what it reads
def test_mutations_of_zarr(version):
    meta = files.zarr_array("bad.zarr", LOGITS, version)
    assert files.score("bad.zarr") == "scored"
    outcomes = run_mutations("bad.zarr", meta.read_bytes(), meta, MUTATIONS // 4)
    assert outcomes["fault"] > MUTATIONS / 16
    meta.unlink()
    meta = files.zarr_array("two.zarr", LOGITS, version)
    chunk = Path("two.zarr", "c/1/0/0" if version == 3 else "1.0.0")
    data = chunk.read_bytes()
    assert files.score("two.zarr") == "scored"
    outcomes = run_mutations("two.zarr", data, chunk, MUTATIONS // 4)
    assert outcomes["fault"] > MUTATIONS / 16
