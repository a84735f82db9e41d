"""Not a byte outside the caller's arrays is touched: each lies against a page that cannot be read or written.

A kernel that does it all the same ends the process. The same arrays show that no bit changes with a row's place in the
batch, or with an output that is new, given or the logits themselves.
"""

import ctypes
import mmap
import sys

import cases
import numpy as np
import pytest

import fastxent

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="pages are protected by mprotect")

CLASSES = (*range(1, 20), 31, 32, 33, 63, 64, 65, 100, 255, 256, 257, 511, 512, 1000, 1025)
POSITIONS = (1, 3, 8, 9, 17, 33)


class Guarded:
    """Arrays that end where memory ends, or begin where it begins."""

    def __init__(self):
        self.protect = ctypes.CDLL(None, use_errno=True).mprotect
        self.maps = []

    def __call__(self, values, at_end):
        page = mmap.PAGESIZE
        pages = -(-values.nbytes // page) + 2
        memory = mmap.mmap(-1, pages * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for address in (start, start + (pages - 1) * page):
            assert self.protect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
        self.maps.append(memory)
        offset = (pages - 1) * page - values.nbytes if at_end else page
        array = np.frombuffer(memory, np.uint8, values.nbytes, offset).view(values.dtype).reshape(values.shape)
        array[...] = values
        return array


def same_bits(a, b):
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("engine", cases.engines(), ids=lambda engine: "-".join(filter(None, engine)))
def test_nothing_outside_is_touched(engine, dtype):
    random = cases.rng(20)
    with cases.running_on(*engine):
        for n_classes in CLASSES:
            for n in POSITIONS if n_classes < 256 else (1, 9):
                guarded = Guarded()
                logits = random.normal(size=(n, n_classes)).astype(dtype)
                targets = random.integers(0, n_classes, n)
                losses = fastxent.cross_entropy(logits, targets, reduction="none")
                _, grad = fastxent.cross_entropy_and_grad(logits, targets)
                softmax = fastxent.softmax(logits)
                for at_end in (True, False):
                    x, t = guarded(logits, at_end), guarded(targets, at_end)
                    given, columns = guarded(grad * 0, at_end), guarded(np.ascontiguousarray(logits.T)[None], at_end)
                    same_bits(fastxent.cross_entropy(x, t, reduction="none"), losses)
                    for i in (0, n - 1):
                        same_bits(fastxent.cross_entropy(x[i:i + 1], t[i:i + 1], reduction="none"), losses[i:i + 1])
                    fastxent.cross_entropy_and_grad(x, t, out_grad=given)
                    same_bits(given, grad)
                    same_bits(fastxent.softmax(x, out=given), softmax)
                    fastxent.log_softmax(x, out=given)
                    fastxent.token_statistics(x, t)
                    fastxent.token_statistics(columns, t[None], axis=1)
                    fastxent.cross_entropy_and_grad(columns, t[None], axis=1, out_grad=columns)
                    fastxent.cross_entropy_and_grad(x, t, out_grad=x)
                    same_bits(x, grad)


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("engine", cases.engines(), ids=lambda engine: "-".join(filter(None, engine)))
def test_a_nan_beside_the_maximum_leads_nowhere(engine, dtype):
    """A maximum may be seen by integers, in whose order some NaN are the lowest, and not by numbers."""
    with cases.running_on(*engine):
        for n_classes in (64, 300, 1024, 3000):
            logits = np.zeros((66, n_classes), np.float32)
            for i, row in enumerate(logits):
                row[0], row[1 + i // 2 % (n_classes - 1)] = 5, np.copysign(np.nan, (-1) ** i)
            x = Guarded()(logits.astype(cases.DTYPES[dtype]), at_end=False)
            found = fastxent.token_statistics(x, np.zeros(66, int))
            assert np.isnan(found.log_prob).all() and (found.argmax == -1).all() and (found.rank == -1).all()
            for i in range(66):  # each at the page's beginning
                one = Guarded()(x[i : i + 1], at_end=False)
                assert fastxent.token_statistics(one, [0]).argmax == -1
                assert np.isnan(fastxent.partials(one, [0])[0, 0])
