"""Every Python example of README.md and docs/ runs, with exactly the output printed there.

Examples are doctests in ```python fences, one namespace a page. A fence that opens with ```python torch (or the name of
another framework) is run only where that framework is installed, with the page's plain ones in their order.
"""

import doctest
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import fastxent

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```python ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(text, framework):
    """`text` with everything blanked but the plain examples and those of `framework`, so that line numbers stay."""
    kept, end = [], 0
    for fence in FENCE.finditer(text):
        kept.append("\n" * text.count("\n", end, fence.start(2)))
        end = fence.start(2)
        if fence[1] in ("", framework):
            kept.append(fence[2])
            end = fence.end(2)
    return "".join(kept)


def cases():
    for page in PAGES:
        for framework in sorted({fence[1] for fence in FENCE.finditer(page.read_text("utf-8"))}):
            yield pytest.param(page, framework, id=f"{page.name}-{framework}".rstrip("-"))


@pytest.mark.parametrize(("page", "framework"), list(cases()))
def test_examples(page, framework):
    if framework:
        pytest.importorskip(framework)
    text = examples(page.read_text("utf-8"), framework)
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert test.examples
    report = []
    with np.printoptions():  # an example may not set them for the rest of the session
        doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_fences_hold_examples(page):
    for fence in FENCE.finditer(page.read_text("utf-8")):
        assert fence[2].startswith(">>> "), f"{page.name}: not a doctest:\n{fence[2]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_functions_exist(page):
    for name in sorted(set(re.findall(r"\bfastxent\.([a-z_]+)", page.read_text("utf-8")))):
        assert hasattr(fastxent, name) or importlib.util.find_spec(f"fastxent.{name}"), f"{page.name}: fastxent.{name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_first_block_is_two_commands():
    first = re.search(r"^```(.*)\n((?:.*\n)*?)```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == "sh"
    assert first[2].splitlines() == ["pip install . && fastxent demo", "pip install '.[test]' && pytest"]
