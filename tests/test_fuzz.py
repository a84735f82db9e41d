"""Some cases of the fuzzer, other ones than a nightly run begins with; see fuzz.py for many."""

import cases
import fuzz
import pytest

FIRST, COUNT, BLOCK = 10**6, 400, 100


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, BLOCK))
def test_random_products(first):
    failures = [(n, *failure) for n in range(first, first + BLOCK) for failure in fuzz.judge(n, cases.engines())]
    assert not failures, "\n".join(map(str, failures))
