"""Every public docstring's examples run, with exactly the output printed there; and every public function has some."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import fastxent

SECTIONS = ("Parameters", "Returns", "Examples")


def public_modules():
    names = (info.name for info in pkgutil.walk_packages(fastxent.__path__, "fastxent."))
    return ["fastxent", *(name for name in names if not any(part.startswith("_") for part in name.split(".")))]


def load(name):
    """The module, or a skip if it is an adapter of a framework that is not here."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] == "fastxent":
            raise
        pytest.skip(f"could not import '{error.name}'")


def public_objects(module):
    """What a user finds in the module: its __all__, else what it defines under a public name."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = (n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__)
        names = [n for n in own if not n.startswith("_")]
    found = ((name, getattr(module, name)) for name in names)
    return [(name, thing) for name, thing in found if inspect.isroutine(thing) or inspect.isclass(thing)]


@pytest.mark.parametrize("name", public_modules())
def test_examples(name):
    module = load(name)
    tests = [t for t in doctest.DocTestFinder(recurse=False).find(module, name) if t.examples]
    for attribute, thing in public_objects(module):
        tests += [t for t in doctest.DocTestFinder().find(thing, f"{name}.{attribute}", module=False) if t.examples]
    report = []
    for test in tests:
        test.globs = {}
        doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("framework", ["dask", "jax", "keras", "numba", "sklearn", "torch"])
def test_an_adapter_names_the_framework_that_is_missing(framework):
    code = (
        f"import sys; sys.modules['{framework}'] = None\n"
        f"try: import fastxent.{framework}\nexcept ImportError as error: print(error.name)"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().split(".")[0] == framework


@pytest.mark.parametrize("name", fastxent.__all__)
def test_docstring_is_complete(name):
    function = getattr(fastxent, name)
    text = inspect.getdoc(function)
    assert text, "no docstring"
    parameters = inspect.signature(function).parameters
    for section in SECTIONS:
        if (section == "Parameters" and not parameters) or (section == "Returns" and "set_" in name):
            continue
        assert f"\n{section}\n{'-' * len(section)}\n" in text, f"no section {section}"
    for parameter in parameters:
        assert any(form in text for form in (f"{parameter} :", f"{parameter}, ", f", {parameter}")), parameter
    assert ">>> " in text, "no example"
