"""Some cases of the fuzzer, other ones than a nightly run begins with; and the documented commands that run many."""

import re
import subprocess
import sys
from pathlib import Path

import cases
import fuzz
import pytest

FIRST, COUNT, BLOCK = 10**6, 400, 100
ROOT = Path(__file__).parent.parent
COMMAND = re.compile(r"python ((?:-\w+ )*tests/fuzz\w*\.py(?: [a-z]+\b)?)")
FEW = {
    "fuzz.py": ["--cases", "2", "--engines", "-".join(filter(None, cases.engines()[0]))], "fuzz_files.py": ["-runs=20"]
}


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, BLOCK))
def test_random_products(first):
    failures = [(n, *failure) for n in range(first, first + BLOCK) for failure in fuzz.judge(n, cases.engines())]
    assert not failures, "\n".join(map(str, failures))


def documented():
    """The fuzzers' commands wherever they are written, without their options."""
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "reliability.md", *Path(__file__).parent.glob("fuzz*.py"),
             ROOT / ".github" / "workflows" / "nightly.yml"]
    return sorted({command for page in pages if page.exists() for command in COMMAND.findall(page.read_text())})


@pytest.mark.parametrize("command", documented())
def test_documented_commands(command):
    """Each runs as it is written, from the repository's root, on the package installed."""
    *flags, script, kind = command.split() if command.split()[-1].isalpha() else [*command.split(), ""]
    name = Path(script).name
    if name == "fuzz_files.py":
        pytest.importorskip("atheris")
    words = [sys.executable, *flags, script, *filter(None, [kind]), *FEW[name]]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_commands_are_documented():
    assert [command for command in documented() if "fuzz.py" in command] == ["tests/fuzz.py"]
    assert "tests/fuzz_files.py npy" in documented()


def test_given_options_win():
    """fuzz_files.py has limits of its own, which an option of the command line replaces: here by one that is passed."""
    pytest.importorskip("atheris")
    words = [sys.executable, "tests/fuzz_files.py", "npy", "-rss_limit_mb=1", "-max_total_time=60"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT)
    assert ran.returncode != 0
    assert "out-of-memory" in ran.stderr and "limit: 1Mb" in ran.stderr, ran.stderr[-2000:]
