"""fastxent.keras on each of its backends: keras_checks.py in one process a backend, its results here."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("keras_checks.py")
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text("utf-8"), re.MULTILINE)
BACKENDS = ["numpy", "torch", "jax"]
pytestmark = pytest.mark.xdist_group("keras")


@functools.cache
def results(backend):
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", CHECKS)
def test_check(backend, check):
    needs("keras", backend)
    failure = results(backend)[check]
    assert not failure, failure


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_training_goes_the_way_of_keras_own_loss(backend):
    needs("keras", backend)
    histories = results(backend)["histories"]
    assert histories["ours"] == pytest.approx(histories["theirs"], rel=1e-4)
    assert histories["ours"][-1] < 0.8 * histories["ours"][0]


def test_training_goes_the_same_way_on_both_backends():
    needs("keras", "torch", "jax")
    one, other = (results(backend)["histories"]["ours"] for backend in BACKENDS[1:])
    assert one == pytest.approx(other, rel=1e-4)


def test_another_backend_is_refused():
    needs("keras")
    code = """
import keras, fastxent.keras
keras.config.backend = lambda: "tensorflow"
try:
    fastxent.keras.CrossEntropyLoss()
except RuntimeError as error:
    print(error)
"""
    environment = os.environ | {"KERAS_BACKEND": "numpy"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "torch, jax, numpy, not on tensorflow" in done.stdout, done.stderr
