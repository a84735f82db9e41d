"""What was built and installed, and that the sources hold together. The builds themselves are run by .ci/run."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import isolated
import pytest

import fastxent

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(fastxent.__file__).parent
CYTHON = (".pyx", ".pxi")
SOURCES = sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in (".c", ".h", ".inl", ".def", *CYTHON))
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
    # An editable installation has a finder of its own beside the package, compiled in __pycache__.
    tops = {file.parts[0] for file in files if file.parts[0] != ".." and not file.name.startswith("__editable__")}
    assert {top for top in tops if not top.endswith((".dist-info", ".pth", ".py"))} <= {"fastxent"}
    assert not [str(file) for file in files if file.suffix in (".c", ".h", ".inl", *CYTHON)]


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


def test_workflows_use_pinned_actions():
    """A tag can be moved to other code, a commit cannot."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    if not workflows:
        pytest.skip("needs a checkout: the sdist has no workflows")
    for path in workflows:
        for action in re.findall(r"uses: *(.*)", path.read_text()):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), f"{path.name}: {action}"


# --- who may include what: the table of the architecture


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix not in CYTHON], ids=lambda p: "/".join(p.parts[-2:]))
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

    gcc, which makes the build on most machines, only reads them here. To make code of the kernels takes the others
    minutes, and finds what reading does not in the headers of vectors: of float32 here, of all with FASTXENT_HEAVY.
    """
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    flags = ["-std=c11", "-O0", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
    for path in SOURCES:
        if path.suffix == ".c" and path.parent.name in ("src", "isa"):
            large = path.parent.name == "isa" and path.stem not in ("avx512_f32", "neon_f32")
            read = compiler == "gcc" or (large and not os.environ.get("FASTXENT_HEAVY"))
            command = [compiler, *flags, f"-I{ROOT / 'src'}", "-c", path, "-o", tmp_path / "object.o"]
            command += ["-fsyntax-only"] * read
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


def test_avx512_as_portable_functions(tmp_path):
    """The AVX-512 kernels where there is no AVX-512, fuzzed as an engine (ten minutes, most of them compiling)."""
    simde = Path("/usr/include/simde/x86/avx512.h")
    if not isolated.X86_64 or not simde.exists() or not os.environ.get("FASTXENT_EMULATE"):
        pytest.skip("needs libsimde-dev and FASTXENT_EMULATE=1")
    pytest.importorskip("Cython")
    tree = tmp_path / "tree"
    for name in ("src", "fastxent"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    include, emulated = "#include <immintrin.h>\n", f'#include "{ROOT / "tests" / "c" / "avx512_emulated.h"}"\n'
    for name, before, after in [
        ("setup.py", '"-O3"', '"-O1"'),
        ("src/vec/avx512.h", "#pragma GCC target", "// "),
        ("src/vec/avx512_f32.h", include, emulated),
        ("src/vec/avx512_f64.h", include, emulated),
        ("src/cpu.c", "return 1u << FX_ISA_AVX2;", "return (1u << FX_ISA_AVX2) | (1u << FX_ISA_AVX512);"),
    ]:
        text = (tree / name).read_text()
        assert text.count(before) == 1, name
        (tree / name).write_text(text.replace(before, after))
    flags = "-g0 -w -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt"
    environment = os.environ | {"CFLAGS": flags, "CC": "gcc", "PYTHONPATH": str(tree)}
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = subprocess.run(build, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    fuzz = [sys.executable, ROOT / "tests" / "fuzz.py", "--cases", "1000", "--engines", "native-avx512"]
    ran = subprocess.run(fuzz, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "native-avx512" in ran.stdout, ran.stdout + ran.stderr


# --- instruction sets in the built module

# Which registers and instructions a file's code may and must have.
WIDE = re.compile(r"%(?:ymm|zmm|k[0-7]\b|xmm(?:1[6-9]|2\d|3[01]))")
AVX512 = re.compile(r"%(?:zmm|k[1-7]\b|[xy]mm(?:1[6-9]|2\d|3[01]))")
VEX = re.compile(r"^v[a-z]")


def code_by_file(module):
    """Instructions of the extension module by the C file that they come from, by its table of symbols."""
    def printed(*command):
        return subprocess.run([*command, module], capture_output=True, text=True, check=True).stdout.splitlines()

    places, owner = [], ""
    for line in printed("readelf", "-sW"):
        match line.split():
            case [_, _, _, "FILE", _, _, _, *name]:
                owner = name[0] if name else ""
            case [_, value, _, "FUNC", "LOCAL", _, section, name] if section != "UND":
                hidden = re.fullmatch(r"fx_[a-z_]+_(f16|bf16|f32|f64)_(baseline|avx2|avx512)", name)
                places.append((int(value, 16), f"{hidden[2]}_{hidden[1]}.c" if hidden else owner, name))
    places.sort()
    names, place, found, begun = {}, 0, {}, False
    for line in printed("objdump", "-d", "--no-show-raw-insn", "-j", ".text"):
        address, _, instruction = line.partition(":\t")
        if not instruction:
            continue
        at = int(address, 16)
        while place + 1 < len(places) and places[place + 1][0] <= at:
            place += 1
        begun = begun or places[place][0] <= at
        if begun:
            found.setdefault(places[place][1], []).append(instruction)
            names.setdefault(places[place][1], set()).add(places[place][2])
    return found, names


@pytest.mark.skipif(sys.platform != "linux", reason="needs linux")
def test_no_thread_local_data():
    """Its memory would be asked for at the first use in each thread; without any the C library ends the process."""
    if importlib.util.find_spec("fastxent._native") is None or shutil.which("readelf") is None:
        pytest.skip("needs gcc and readelf")
    command = ["readelf", "-lW", importlib.util.find_spec("fastxent._native").origin]
    headers = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "LOAD" in headers and "TLS" not in headers


@pytest.mark.skipif(not (isolated.X86_64 and sys.platform == "linux"), reason="needs x86-64 linux")
def test_each_instruction_set_stays_in_its_files():
    """No function of the baseline, nor what calls it, has a register that an old processor lacks."""
    if importlib.util.find_spec("fastxent._native") is None or shutil.which("objdump") is None:
        pytest.skip("needs gcc and objdump")
    found, names = code_by_file(importlib.util.find_spec("fastxent._native").origin)
    if "baseline_f32.c" not in found:
        pytest.skip("needs symbols: the module is stripped")
    for storage in ("f16", "bf16", "f32", "f64"):
        for isa in ("baseline", "avx2", "avx512"):
            assert f"fx_block_{storage}_{isa}" in names[f"{isa}_{storage}.c"]
    for file, code in found.items():
        isa = file.split("_")[0]
        wide = [line for line in code if WIDE.search(line) or (isa not in ("avx2", "avx512") and VEX.match(line))]
        best = [line for line in wide if AVX512.search(line)]
        if isa == "avx512":
            assert len(best) > 1000, file
        elif isa == "avx2":
            assert len(wide) > 1000 and not best, (file, best[:5])
        else:
            assert not wide, (file, wide[:5])


def test_an_old_processor_gets_the_baseline():
    """Python itself under an emulator of a Nehalem, which would stop at the first instruction of AVX."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or not isolated.X86_64 or importlib.util.find_spec("fastxent._native") is None:
        pytest.skip("needs qemu-x86_64")
    code = """
import numpy as np, fastxent
assert fastxent.show_config("dict")["instruction_sets"] == ["baseline"]
random = np.random.default_rng(0)
for classes in (3, 40, 700):
    for dtype in ("f2", "f4", "f8"):
        x, t = random.normal(size=(9, classes)).astype(dtype), random.integers(0, 3, 9)
        loss, grad = fastxent.cross_entropy_and_grad(x, t, num_threads=2)
        wide = x.astype("f8") - x.astype("f8").max(1, keepdims=True)
        p = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
        assert abs(loss + np.log(p[np.arange(9), t]).mean()) < 1e-5
        assert abs(grad.astype("f8") - (p - np.eye(classes)[t]) / 9).max() < 1e-3
        fastxent.token_statistics(x.T, t, axis=0), fastxent.mse_loss_and_grad(x, x), fastxent.kl_div(x, x)
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("FASTXENT_ISA", "FASTXENT_BACKEND")}
    command = [emulator, "-cpu", "Nehalem", sys.executable]
    ran = subprocess.run([*command, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd="/")
    assert ran.returncode == 0, ran.stderr
    if os.environ.get("FASTXENT_EMULATE"):
        fuzz = [*command, ROOT / "tests" / "fuzz.py", "--cases", "300", "--engines", "native-baseline"]
        ran = subprocess.run(fuzz, capture_output=True, text=True, check=False, env=environment)
        assert ran.returncode == 0, ran.stdout + ran.stderr
