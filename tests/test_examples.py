"""The examples run as a reader runs them: each within a minute, with the accuracy that it is there to show."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# By chance alone: about 0.37 (the largest chapter), 0.35 (the most frequent kind), 0.33, 0.1.
# Of characters to come, by the most frequent one: about 0.25.
ACCURACY = {"classify_sequences": 0.6, "tag_sequences": 0.88, "from_scratch": 0.9, "train_in_numba": 0.8,
            "score_files": 0.35, "score_store": 0.45}
NEEDS = {"train_in_numba": ["numba"], "score_files": ["dask.bag"], "score_store": ["dask.array", "zarr"]}


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ACCURACY)


@pytest.mark.parametrize("name", ACCURACY)
def test_example(name, tmp_path):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    picture = tmp_path / "losses.png"
    plotting = importlib.util.find_spec("matplotlib") is not None
    arguments = ["--plot", str(picture)] if plotting else []
    code = (
        "import sys; from importlib.util import module_from_spec as make, spec_from_file_location as find;"
        "spec = find('example', sys.argv[1]); module = make(spec); spec.loader.exec_module(module);"
        "print('accuracy:', module.main(sys.argv[2:]))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert time.perf_counter() - start < 60
    assert len(run.stdout.splitlines()) > 5  # progress
    found = re.search(r"^accuracy: ([\d.]+)$", run.stdout, re.MULTILINE)
    assert found and float(found[1]) >= ACCURACY[name], run.stdout
    assert not plotting or picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
