"""`fastxent.numba` inside other people's functions, and what the Numba engine has of its own."""

import doctest
import subprocess
import sys

import cases
import isolated
import numpy as np
import pytest

import fastxent
from fastxent import reference

numba = pytest.importorskip("numba")
rows = pytest.importorskip("fastxent.numba")

# --- single rows


@numba.njit
def both(row, target, grad):
    return rows_loss(row, target), rows_both(row, target, grad)


rows_loss, rows_both = rows.cross_entropy_row, rows.cross_entropy_row_and_grad


def given(n, dtype, layout):
    """A row of n logits in some memory, and its values."""
    values = (cases.rng(n, 7).normal(size=n) * 5).astype(dtype)
    if layout == "strided":
        memory = np.zeros((n, 3), dtype)
        memory[:, 1] = values
        return memory[:, 1], values
    if layout == "reversed":
        return values[::-1].copy()[::-1], values
    return values.copy(), values


@pytest.mark.parametrize("layout", ["contiguous", "strided", "reversed"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 65, 100, 1000, 1089, 5000])
def test_rows(n, dtype, layout):
    row, values = given(n, dtype, layout)
    u = np.finfo(dtype).eps
    grad = np.full_like(row, np.nan)
    for target in {0, n // 2, n - 1, int(values.argmax())}:
        loss, gradient = reference.cross_entropy_and_grad(values, target, reduction="sum")
        for found in both(row, target, grad):
            assert np.dtype(dtype).type(found) == found  # Numba makes Python's float of it
            np.testing.assert_allclose(found, loss, rtol=8 * u, atol=1e-37)
        np.testing.assert_allclose(grad, gradient, rtol=60 * u, atol=1e-30)
        in_place = row.copy()
        rows_both(in_place, target, in_place)
        np.testing.assert_array_equal(in_place, grad)
    assert (row == values).all()
    np.testing.assert_allclose(rows.logsumexp_row(row), reference.logsumexp(values), rtol=4 * u, atol=4 * u)
    np.testing.assert_allclose(rows.log_softmax_row(row), reference.log_softmax(values), rtol=8 * u, atol=8 * u)
    out = np.empty(2 * n, dtype)[::2]
    assert np.shares_memory(rows.log_softmax_row(row, out), out)
    np.testing.assert_array_equal(out, rows.log_softmax_row(row))


def test_rows_in_a_parallel_loop():
    @numba.njit(parallel=True)
    def losses(logits, targets, grads):
        result = np.empty(len(targets))
        for i in numba.prange(len(targets)):
            result[i] = rows_both(logits[i], targets[i], grads[i])
        return result

    logits = cases.rng(3).normal(size=(200, 300))
    targets = cases.rng(4).integers(0, 300, 200)
    grads = np.empty_like(logits)
    loss, gradient = reference.cross_entropy_and_grad(logits, targets, reduction="none")
    np.testing.assert_allclose(losses(logits, targets, grads), loss, rtol=1e-14)
    np.testing.assert_allclose(grads, gradient, rtol=1e-13, atol=1e-30)


@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize("special", ["-inf", "all -inf", "inf", "nan", "sure"])
def test_special_values(special, n):
    row = np.linspace(-1, 1, n)
    if special == "all -inf":
        row[:] = -np.inf
    else:
        row[n // 2] = {"-inf": -np.inf, "inf": np.inf, "nan": np.nan, "sure": 70.0}[special]
    grad = np.empty(n)
    for target in (0, n // 2):
        loss, gradient = reference.cross_entropy_and_grad(row, target, reduction="sum")
        np.testing.assert_allclose(both(row, target, grad), [loss, loss], rtol=1e-13)
        np.testing.assert_allclose(grad, gradient, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(rows.logsumexp_row(row), reference.logsumexp(row), rtol=1e-14)
    np.testing.assert_allclose(rows.log_softmax_row(row), reference.log_softmax(row), rtol=1e-13)


def test_other_dtypes():
    row, grad = np.linspace(0, 1, 100, dtype="f4"), np.empty(100)
    rows_both(row, 5, grad)  # a gradient of another dtype than the row's
    narrow = np.empty(100, "f4")
    rows_both(row, 5, narrow)
    np.testing.assert_array_equal(grad, narrow)
    for wrong in (np.zeros(100, int), np.zeros(100, complex)):
        with pytest.raises(numba.core.errors.NumbaError):
            rows_loss(wrong, 0)


def test_row_errors():
    row, grad = np.zeros(4), np.ones(4)
    for target in (-1, 4):
        with pytest.raises(IndexError, match="target"):
            rows_loss(row, target)
        with pytest.raises(IndexError, match="target"):
            rows_both(row, target, grad)
    with pytest.raises(IndexError, match="target"):
        rows_loss(np.zeros(0), 0)
    for wrong in (np.zeros(3), np.zeros(5)):
        with pytest.raises(ValueError, match="grad"):
            rows_both(row, 0, wrong)
        with pytest.raises(ValueError, match="out"):
            rows.log_softmax_row(row, wrong)
    assert (grad == 1).all()


@pytest.mark.parametrize("name", rows.__all__)
def test_docstrings(name):
    """What test_doctests.py does for functions: to Python these are none."""
    function = getattr(rows, name).py_func
    report = []
    for test in doctest.DocTestFinder(recurse=False).find(function, name, module=False, globs={}):
        assert test.examples
        doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


# --- the engine


def test_vector_loops_call_nothing():
    """The sums and the results of rows are loops over whole vectors, without a call of a library's exp in them."""
    from fastxent._backends.numba_kernels.rows import row_sum

    row_sum = row_sum.intrinsic

    @numba.njit
    def function(tag, p, n):
        return row_sum(tag, p, n, 0.0, 1.0, -1, 0)

    signature = (numba.float32, numba.int64, numba.int64)
    function.compile(signature)
    (text,) = function.inspect_asm().values()
    body = text.split("rows.row_sum.f32:", 1)[1].split(".size", 1)[0]
    called = [line.split()[1] for line in body.splitlines() if line.split()[:1] in (["call"], ["callq"], ["bl"])]
    assert not called, called
    if isolated.X86_64:
        assert "mulps" in body or "fmadd" in body


def test_cached_on_disk(tmp_path):
    """A second process compiles nothing."""
    code = """
        from fastxent._backends.numba_kernels import entries
        fastxent.cross_entropy(np.zeros((1, 300), "f4"), [0])
        stats = entries.entry_of("rows").stats
        print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
    """
    for expected in ("0 1\n", "1 0\n"):
        assert isolated.run(code, FASTXENT_BACKEND="numba", NUMBA_CACHE_DIR=str(tmp_path)) == expected


def test_any_source_changes_the_key():
    """Numba looks at the file of the entry alone; the fingerprint has them all."""
    from pathlib import Path

    from fastxent._backends.numba_kernels import entries

    before = entries.fingerprint.__wrapped__()
    assert before == entries.fingerprint.__wrapped__() > 0
    assert len(list(Path(entries.__file__).parent.glob("*.py"))) > 10


def test_chosen_by_the_environment():
    assert isolated.run("print(fastxent.get_backend())", FASTXENT_BACKEND="numba") == "numba\n"
    code = "config = fastxent.show_config('dict'); print(config['backend'], 'llvm' in config['compiler'])"
    assert isolated.run(code, FASTXENT_BACKEND="numba") == "numba True\n"


def test_numba_is_imported_only_when_asked():
    code = "import sys, fastxent; fastxent.cross_entropy([[0.0, 1.0]], [0]); print('numba' in sys.modules)"
    if fastxent.get_backend() == "native":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


def test_without_numba():
    isolated.run("""
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name == "numba":
                    raise ImportError("no module named numba")
        sys.meta_path.insert(0, Hide())
        for call in (lambda: fastxent.set_backend("numba"), lambda: __import__("fastxent.numba")):
            try:
                call()
            except ImportError as error:
                assert "pip install 'fastxent[numba]'" in str(error), error
            else:
                raise AssertionError
    """, FASTXENT_BACKEND="" if fastxent.get_backend() == "native" else "native")


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_neighbours(axis, threads):
    """A position alone, and in a large batch: on the Numba engine."""
    random = cases.rng(11)
    logits = random.normal(size=(40, 300, 257)).astype("f4")
    targets = random.integers(0, logits.shape[axis], np.delete(logits.shape, axis))
    with cases.running_on("numba"):
        every, grads = fastxent.cross_entropy_and_grad(
            logits, targets, axis=axis, reduction="none", num_threads=threads
        )
        for i in (0, 7, 39):
            one, grad = fastxent.cross_entropy_and_grad(
                logits[i : i + 1], targets[i : i + 1], axis=axis, reduction="none", num_threads=1
            )
            assert one.tobytes() == every[i : i + 1].tobytes()
            assert grad.tobytes() == grads[i : i + 1].tobytes()
