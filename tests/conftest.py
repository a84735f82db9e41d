"""What is under test, and that it is what was meant.

The package must be an installed one, with the engine and the instruction set that the environment names (the compiled
one and the best available, if it names none): a build that failed half-way must not pass by way of something else.

FASTXENT_REQUIRE, a comma-separated list of modules and tools, makes the run strict: each of these must be there, and a
skipped test fails unless it says "could not import 'x'" or "needs x" of an x that is not in the list.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

# Keras' own default is TensorFlow. Here it runs on what is installed of what trains.
for name in ("torch", "jax"):
    if importlib.util.find_spec(name):
        os.environ.setdefault("KERAS_BACKEND", name)

REQUIRED = os.environ.get("FASTXENT_REQUIRE")
LACK = re.compile(r"(?:Skipped: )?(?:could not import '([\w.]+)'|needs (?:an? )?([\w.+-]+))")


def under_test():
    """Where the imported package lies, and its configuration; UsageError if either is not as it should be."""
    import fastxent

    found = Path(fastxent.__file__).resolve().parent
    try:
        installed = importlib.metadata.distribution("fastxent")
    except importlib.metadata.PackageNotFoundError:
        raise pytest.UsageError(f"{found} is not an installed package: first pip install '.[test]'") from None
    editable = '"editable": true' in (installed.read_text("direct_url.json") or "")
    if not editable and found != Path(str(installed.locate_file("fastxent"))).resolve():
        raise pytest.UsageError(f"{found} hides the installed package: run pytest, not python -m pytest")
    config = fastxent.show_config(mode="dict")
    backend = os.environ.get("FASTXENT_BACKEND") or "native"
    if config["backend"] != backend:
        raise pytest.UsageError(f"the backend is {config['backend']}, not {backend}")
    best = [name for name in ("baseline", "neon", "avx2", "avx512") if name in config["instruction_sets"]][-1:]
    isa = os.environ.get("FASTXENT_ISA") or "".join(best)
    if backend == "native" and config["instruction_set"] != isa:
        raise pytest.UsageError(f"the instruction set is {config['instruction_set']}, not {isa}")
    return found, config


def pytest_configure(config):
    config.fastxent_under_test = under_test()
    for name in filter(None, (REQUIRED or "").split(",")):
        if importlib.util.find_spec(name) is None and shutil.which(name) is None:
            raise pytest.UsageError(f"FASTXENT_REQUIRE names {name}, which is not installed")


def pytest_report_header(config):
    found, settings = config.fastxent_under_test
    return (
        f"fastxent: {settings['version']} in {found}, {settings['backend']} backend, {settings['instruction_set']} of "
        f"{', '.join(settings['instruction_sets'])}, {settings['num_threads']} threads"
    )


def fail_unexpected_skip(report):
    if REQUIRED is None or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    lack = LACK.match(reason)
    if lack is None or (lack[1] or lack[2]).split(".")[0] in REQUIRED.split(","):
        report.outcome = "failed"
        report.longrepr = f"skipped where every skip must have an excuse: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    fail_unexpected_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    fail_unexpected_skip(report)
    return report


def pytest_collection_finish():
    """Beside other workers of pytest-xdist one thread each for torch and BLAS, whose threads spin while they wait."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if importlib.util.find_spec("threadpoolctl"):
        importlib.import_module("threadpoolctl").threadpool_limits(1, "blas")


@pytest.fixture(autouse=True)
def jax_of_32_bits():
    """The benchmarks let JAX have 64 bits, in all of the process: the next test gets JAX as users find it."""
    yield
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_enable_x64:
        jax.config.update("jax_enable_x64", False)
