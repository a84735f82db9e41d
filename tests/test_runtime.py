"""Threads, backend and configuration: of the environment, of the machine, and as set."""

import importlib.util
import itertools
import os
import re

import isolated
import pytest

import fastxent
from fastxent import _threads


def test_threads_of_the_environment():
    code = "print(fastxent.get_num_threads(), fastxent.show_config('dict')['num_threads_reason'])"
    assert isolated.run(code, FASTXENT_NUM_THREADS="3", OMP_NUM_THREADS="5") == (
        "3 the environment variable FASTXENT_NUM_THREADS\n"
    )
    assert isolated.run(code, OMP_NUM_THREADS="5,2") == "5 the environment variable OMP_NUM_THREADS\n"
    number, reason = isolated.run(code, FASTXENT_NUM_THREADS=" ").split(maxsplit=1)
    assert int(number) <= (os.cpu_count() or 1) and "processors" in reason
    for variable, value in itertools.product(_threads.VARIABLES, ("0", "-1", "two", "1.5", "²")):
        isolated.run(
            f"""
            try:
                fastxent.cross_entropy(np.zeros((1, 2)), [0])
            except ValueError as error:
                assert {variable!r} in str(error) and {value!r} in str(error), error
            else:
                raise AssertionError
            assert fastxent.softmax([0.0], num_threads=1) == 1
            """,
            **{variable: value},
        )


def test_backend_and_instruction_set_of_the_environment():
    wrong = [("FASTXENT_BACKEND", "cuda", "native, numba", "native"), ("FASTXENT_ISA", "avx1024", "baseline", "native")]
    if importlib.util.find_spec("numba"):
        wrong.append(("FASTXENT_ISA", "avx1024", "baseline", "numba"))
    for variable, value, says, backend in wrong:
        isolated.run(
            f"""
            for call in (fastxent.get_backend, fastxent.show_config, lambda: fastxent.cross_entropy([[0.0]], [0])):
                try:
                    call()
                except ValueError as error:
                    assert {variable!r} in str(error) and {value!r} in str(error) and {says!r} in str(error), error
                else:
                    raise AssertionError
            """,
            **({"FASTXENT_BACKEND": backend} | {variable: value}),
        )
    code = "print(fastxent.show_config('dict')['instruction_set'])"
    assert isolated.run(code, FASTXENT_BACKEND="native", FASTXENT_ISA="baseline") == "baseline\n"


def test_set_num_threads():
    before = fastxent.get_num_threads()
    try:
        fastxent.set_num_threads(3)
        config = fastxent.show_config("dict")
        assert (fastxent.get_num_threads(), config["num_threads_reason"]) == (3, "set_num_threads")
        fastxent.set_num_threads(10**9)
        assert fastxent.get_num_threads() == _threads.MAX_THREADS
    finally:
        fastxent.set_num_threads(before)


def test_show_config(capsys):
    config = fastxent.show_config(mode="dict")
    assert config["version"] == fastxent.__version__
    assert config["instruction_set"] in config["instruction_sets"]
    assert fastxent.show_config() is None
    text = capsys.readouterr().out
    for name, value in config.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        assert re.search(rf"^{name} +{re.escape(shown)}$", text, re.MULTILINE)


GROUPS = (
    # files below the root of the control groups, /proc/self/cgroup, the quota in processors
    ({"cpu.max": "max 100000"}, "0::/", None),
    ({"cpu.max": "150000 100000"}, "0::/", 1.5),
    ({"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000", "cpu.max": "800000 100000"}, "0::/a/b", 4.0),
    ({"cpu.max": "50000 100000"}, "0::/of/the/host", 0.5),
    ({"unified/a/cpu.max": "200000 100000"}, "1:name=systemd:/a\n0::/a", 2.0),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", None),
    ({"cpu,cpuacct/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"}, "3:cpu,cpuacct:/a", 5.0),
    ({"cpu.max": "150000 100000"}, "3:memory:/a", None),
    ({"cpu.max": "nonsense"}, "0::/", None),
    ({}, "0::/../..", None),
)


@pytest.mark.parametrize(("files", "groups", "quota"), GROUPS)
def test_cgroup_quota(files, groups, quota, tmp_path):
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "self").write_text(groups + "\n")
    assert _threads.cgroup_quota(tmp_path / "self", root) == quota
    assert _threads.cgroup_quota(tmp_path / "missing", root) is None


HIDDEN = """
import types, warnings
sys.modules.pop("fastxent._native", None)
vars(fastxent).pop("_native", None)
hidden = {"fastxent._native"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ImportError(f"hidden: {name}")
sys.meta_path.insert(0, Hide())
def error_of(call):
    try:
        call()
    except ImportError as error:
        return str(error)
    raise AssertionError
"""


def test_without_the_compiled_module_and_numba():
    isolated.run(
        f"""
{HIDDEN}
hidden.add("fastxent._backends.numba_engine")
for call in (fastxent.get_backend, lambda: fastxent.cross_entropy([[0.0]], [0])):
    message = error_of(call)
    assert "pip install" in message and "compiler" in message and "native" in message, message
assert "numba backend" in error_of(lambda: fastxent.set_backend("numba"))
assert fastxent.lengths_to_mask([1]).all()
""",
        FASTXENT_BACKEND="",
    )


def test_without_the_compiled_module():
    """Numba does the work, after one warning."""
    isolated.run(
        f"""
{HIDDEN}
class Call:
    def __init__(self, plan): pass
    def run(self): return 6.0, 2.0, -1
engine = types.ModuleType("fastxent._backends.numba_engine")
engine.NAME, engine.open = "numba", Call
sys.modules["fastxent._backends.numba_engine"] = engine
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert [fastxent.cross_entropy([[0.0]], [0]) for _ in range(3)] == [3.0] * 3
(warning,) = seen
assert "Numba" in str(warning.message) and "pip install" in str(warning.message), warning
assert fastxent.get_backend() == "numba"
""",
        FASTXENT_BACKEND="",
    )
