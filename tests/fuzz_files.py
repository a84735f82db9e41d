"""Coverage-guided fuzzing of the file formats: whatever a file holds, it is scored or its fault is named.

    pip install atheris
    python tests/fuzz_files.py npy -max_total_time=3600     (npy, npz, safetensors, kld; options of libFuzzer)

Good files of several dtypes and shapes are the seeds. Any other exception than a named fault, a MemoryError included,
ends the run, and libFuzzer writes the file that did it. Findings become cases of test_cli_hostile.py.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["fastxent.cli", "numpy.lib.format", "zipfile", "json", "ast"]):
    import cli_files as files


def seeds(kind):
    """Good files of a kind."""
    for shape, dtype in (((4, 7, 11), "float16"), ((3, 12, 11), "float32"), ((5, 3), "float64"), ((2, 1, 4), "int64")):
        logits = files.model(shape, "float64")[0].astype(dtype)
        if kind == "npy":
            yield files.npy(logits)
            yield files.npy(np.asfortranarray(logits.astype(logits.dtype.newbyteorder("S"))))
        elif kind == "npz":
            yield files.npz(x=logits)
            yield files.npz(True, y=logits[:1], x=logits)
        elif kind == "safetensors":
            yield files.safetensors(x=logits)
            yield files.safetensors(y=logits[:1], x=logits)
        elif len(shape) == 3 and dtype != "int64":
            yield files.kld(logits, files.model(shape)[1])


def main():
    kind, folder = sys.argv.pop(1), tempfile.mkdtemp()
    os.chdir(folder)
    corpus = Path("corpus")
    corpus.mkdir()
    for number, data in enumerate(seeds(kind)):
        corpus.joinpath(str(number)).write_bytes(data)
    np.save("t.npy", files.model((4, 7, 11))[1])
    path = Path(f"bad.{kind}")
    name = f"{path}:x" if kind in ("npz", "safetensors") else str(path)
    outcomes = {}

    def one(data):
        path.write_bytes(data)
        outcome = files.score(name)
        if "MemoryError" in outcome:
            raise MemoryError(outcome)
        outcomes[outcome == "scored"] = outcomes.get(outcome == "scored", 0) + 1

    warnings.simplefilter("ignore")
    print(f"in {folder}: {len(list(corpus.iterdir()))} seeds", flush=True)
    # Of an option given twice libFuzzer takes the last: these are defaults.
    atheris.Setup([sys.argv[0], "-rss_limit_mb=1024", "-timeout=10", *sys.argv[1:], str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
