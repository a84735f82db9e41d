"""fastxent.keras on each of its backends: keras_checks.py in one process a backend, all of it in one test."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("keras_checks.py")
# The losses of Keras' own loss, from the same weights: every backend goes this way.
TRAINING = [2.256035, 1.479762, 1.063789, 0.803466]


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_keras(backend):
    for module in ("keras", backend, *(["fastxent.jax"] if backend == "jax" else [])):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    histories = results.pop("histories", None)
    assert len(results) > 10
    assert not any(results.values()), "\n".join(results.values())
    if backend == "numpy":  # does not train
        return
    assert histories["theirs"] == pytest.approx(TRAINING, rel=1e-3)
    assert histories["ours"] == pytest.approx(histories["theirs"], rel=1e-4)
