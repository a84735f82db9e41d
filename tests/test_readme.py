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
def test_examples(page, framework, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
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
    assert first[2].splitlines() == ["pip install . && fastxent demo", "pip install '.[test]' && pytest -n auto"]


# The rows of README's table "From what you use now", each against the library it names.

def inputs():
    rng = np.random.default_rng(0)
    x, q = rng.standard_normal((6, 5, 4)).astype(np.float32), rng.dirichlet(np.ones(4), (6, 5)).astype(np.float32)
    return x, rng.integers(0, 4, (6, 5)), q, np.arange(5) < np.array([5, 1, 4, 2, 5, 3])[:, None]


def agree(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=2e-6, atol=1e-6)


def test_table_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, t, _, mask = inputs()
    tx, tt = torch.from_numpy(x.swapaxes(1, 2).copy()).requires_grad_(), torch.from_numpy(t)
    w = np.float32([1, 2, 3, 4])
    y = tx.detach().numpy()
    theirs = functional.cross_entropy(tx, tt)
    theirs.backward()
    loss, grad = fastxent.cross_entropy_and_grad(y, t, axis=1)
    agree(loss, theirs.detach())
    agree(grad, tx.grad)
    theirs = functional.cross_entropy(tx.detach(), tt, weight=torch.from_numpy(w), ignore_index=2, label_smoothing=0.1)
    agree(fastxent.cross_entropy(y, t, axis=1, class_weight=w, ignore_index=2, label_smoothing=0.1), theirs)
    log_probs = functional.log_softmax(tx.detach(), 1)
    agree(fastxent.log_softmax(y, axis=1), log_probs)
    agree(fastxent.nll_loss(log_probs.numpy(), t, axis=1), functional.nll_loss(log_probs, tt))
    tx = torch.from_numpy(x)
    agree(fastxent.cross_entropy(x, t, shift=1),
          functional.cross_entropy(tx[:, :-1].flatten(0, 1), tt[:, 1:].flatten()))
    losses = functional.cross_entropy(tx.flatten(0, 1), tt.flatten(), reduction="none").numpy().reshape(t.shape)
    agree(fastxent.cross_entropy(x, t, mask=mask), (losses * mask).sum() / mask.sum())
    agree(fastxent.cross_entropy(x, t, lengths=mask.sum(1)), (losses * mask).sum() / mask.sum())


def test_table_optax():
    optax = pytest.importorskip("optax")
    x, t, q, _ = inputs()
    agree(fastxent.cross_entropy(x, t, reduction="none"), optax.softmax_cross_entropy_with_integer_labels(x, t))
    agree(fastxent.cross_entropy(x, q, reduction="none"), optax.softmax_cross_entropy(x, q))
    agree(fastxent.cross_entropy(x, q, reduction="none"), optax.safe_softmax_cross_entropy(x, q))
    agree(fastxent.cross_entropy(x, q, label_smoothing=0.1, reduction="none"),
          optax.softmax_cross_entropy(x, optax.smooth_labels(q, 0.1)))


def test_table_scipy_and_scikit_learn():
    special = pytest.importorskip("scipy.special")
    log_loss = pytest.importorskip("sklearn.metrics").log_loss
    x, t, _, _ = inputs()
    for name in "softmax", "log_softmax", "logsumexp":
        agree(getattr(fastxent, name)(x), getattr(special, name)(x, axis=-1))
    p, y, s = special.softmax(x.reshape(30, 4).astype(float), axis=-1), t.reshape(30), np.linspace(0, 2, 30)
    agree(fastxent.cross_entropy_from_probs(p, y), log_loss(y, p))
    agree(fastxent.cross_entropy_from_probs(p, y, sample_weight=s, reduction="sum"),
          log_loss(y, p, sample_weight=s, normalize=False))


def test_table_sequence_loss():
    """TensorFlow Addons' formulas, by hand: the package is no longer released."""
    x, t, _, mask = inputs()
    weights = mask * np.linspace(0.5, 2, 30).reshape(6, 5)
    losses = fastxent.cross_entropy(x, t, reduction="none") * weights
    agree(fastxent.cross_entropy(x, t, sample_weight=weights, empty_value=0.0), losses.sum() / weights.sum())
    rows = fastxent.cross_entropy(x, t, sample_weight=weights, reduction="none").sum(1) / weights.sum(1)
    agree(rows, losses.sum(1) / weights.sum(1))
    agree(fastxent.cross_entropy(x, t, sample_weight=weights, reduction="sequence_mean"), rows.mean())
    agree(fastxent.cross_entropy(x, t, sample_weight=weights, normalizer=np.count_nonzero(weights)),
          losses.sum() / np.count_nonzero(weights))
