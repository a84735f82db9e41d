"""What was built and installed, and that the sources hold together. The builds themselves are run by .ci/run."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import fastxent

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(fastxent.__file__).parent
SOURCES = sorted(path for path in (ROOT / "src").rglob("*") if path.suffix in (".c", ".h", ".inl", ".def", ".pyx"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_version_has_one_source():
    assert importlib.metadata.version("fastxent") == fastxent.__version__
    assert "version" not in PYPROJECT["project"]


def test_metadata():
    metadata = importlib.metadata.metadata("fastxent")
    requirements = metadata.get_all("Requires-Dist")
    assert [r for r in requirements if "extra ==" not in r] == ["numpy>=1.26"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert {"test", "torch", "jax", "sklearn", "dask", "numba", "bench", "plot", "cli"} <= set(
        metadata.get_all("Provides-Extra")
    )
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="fastxent")
    assert callable(script.load())


def test_typing_files_are_installed():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_native.pyi").exists()


def test_nothing_but_the_package_is_installed():
    files = importlib.metadata.files("fastxent")
    assert files is not None
    tops = {file.parts[0] for file in files if file.parts[0] != ".."}
    assert {top for top in tops if not top.endswith((".dist-info", ".pth", ".py"))} <= {"fastxent"}
    assert not [str(file) for file in files if file.suffix in (".c", ".h", ".pyx", ".inl")]


def test_extension_exports_its_initialiser_alone():
    """Names of ours that others could see could also be replaced by theirs."""
    if importlib.util.find_spec("fastxent._native") is None:
        pytest.skip("needs gcc")
    library = ctypes.CDLL(importlib.util.find_spec("fastxent._native").origin)
    assert hasattr(library, "PyInit__native")
    functions = {name for path in SOURCES for name in re.findall(r"\b(fx_\w+)\(", path.read_text())}
    assert {"fx_parallel", "fx_cpu_isas"} <= functions
    assert not [name for name in sorted(functions) if hasattr(library, name)]


def test_includes_are_there():
    """Every quoted include leads to a file of src/: in an sdist too."""
    for path in SOURCES:
        for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.MULTILINE):
            assert any((folder / name).exists() for folder in (path.parent, ROOT / "src")), f"{path.name}: {name}"


# --- who may include what: the table of the architecture


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix != ".pyx"], ids=lambda p: "/".join(p.parts[-2:]))
def test_c_files_keep_to_their_room(path):
    text = path.read_text()
    assert "Python.h" not in text
    if path.parent.name in ("kernels", "vec", "isa"):
        assert not re.search(r"#\s*include <(stdlib|pthread|threads)\.h>", text)
        assert not re.search(r"\b(malloc|calloc|free|pthread_\w+)\s*\(", text)
    if path.name != "parallel.c":
        assert not re.search(r"\bpthread_|#\s*include <threads\.h>|omp\.h|#pragma omp", text)


def test_python_files_keep_to_their_room():
    foreign = re.compile(r"^\s*(from|import) .*\b(_native|_backends|numba|torch|jax|scipy)\b", re.MULTILINE)
    for name in ("reference.py", "_arguments.py"):
        assert not foreign.search((PACKAGE / name).read_text()), name


# --- compilers


@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc"])
def test_compiles_without_warnings(compiler, tmp_path):
    """As in the build, with more warnings. A cross compiler shows that the NEON files are sound.

    The files are large: gcc, which makes the build on most machines, only reads them here.
    """
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    flags = ["-std=c11", "-O0", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
    flags += ["-fsyntax-only"] if compiler == "gcc" else []
    for path in SOURCES:
        if path.suffix == ".c" and path.parent.name in ("src", "isa"):
            command = [compiler, *flags, f"-I{ROOT / 'src'}", "-c", path, "-o", tmp_path / "object.o"]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            assert built.returncode == 0, f"{path.name}\n{built.stderr}"


def test_neon_agrees_with_portable_kernels(tmp_path):
    """NEON under an emulator of an Arm processor, against the baseline in the same program (a minute and more)."""
    compiler, emulator = "aarch64-linux-gnu-gcc", shutil.which("qemu-aarch64")
    if shutil.which(compiler) is None or emulator is None or not os.environ.get("FASTXENT_EMULATE"):
        pytest.skip(f"needs {compiler}, qemu-aarch64 and FASTXENT_EMULATE=1")
    sources = [path for path in SOURCES if path.suffix == ".c" and path.parent.name in ("src", "isa")]
    command = [compiler, "-O1", "-std=c11", "-ffp-contract=off", "-pthread", "-static", f"-I{ROOT / 'src'}"]
    command += [ROOT / "tests" / "c" / "isa_check.c", *sources, "-lm", "-o", tmp_path / "isa_check"]
    subprocess.run(command, check=True)
    checked = subprocess.run([emulator, tmp_path / "isa_check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stdout.startswith("neon: "), checked.stdout + checked.stderr
