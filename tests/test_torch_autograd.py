"""fastxent.torch and what torch does with a function: autograd to the second order, transforms, compilation."""

import itertools
from functools import partial

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as theirs  # noqa: E402

import fastxent.torch as ours  # noqa: E402
from fastxent.torch import _eager, _operators  # noqa: E402

REDUCTIONS = ["mean", "sum", "none"]


@pytest.fixture
def saved(monkeypatch):
    monkeypatch.setattr(_eager, "AT_ONCE", 0)


@pytest.fixture(params=[1 << 20, 0], ids=["gradient at once", "statistics saved"])
def both_ways(request, monkeypatch):
    monkeypatch.setattr(_eager, "AT_ONCE", request.param)


def inputs(dtype=torch.float64, shape=(3, 4, 2)):
    torch.manual_seed(0)
    x = (2 * torch.randn(shape)).to(dtype).requires_grad_()
    t = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    t[0, 0] = -100
    return x, t, torch.rand(shape).to(dtype).requires_grad_(), torch.rand(shape[1]).to(dtype)


# --- derivatives


OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1, "softcap": 2.0}]
CHECKS = torch.autograd.gradcheck, torch.autograd.gradgradcheck


def check_indices(reduction, options, weighted):
    x, t, _, w = inputs()
    mask = torch.tensor([[True, True], [False, True], [True, True]])

    def loss(x):
        return ours.cross_entropy(x, t, w if weighted else None, **options, reduction=reduction, mask=mask)

    for check in CHECKS:
        assert check(loss, (x,), check_batched_grad=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(reduction, options, weighted):
    check_indices(reduction, options, weighted)
    x, _, q, w = inputs()

    def probabilities(x, q, *w):
        return ours.cross_entropy(x, q, *w, **options, reduction=reduction, lengths=torch.tensor([2, 0, 1]))

    more = (w.clone().requires_grad_(),) if weighted else ()
    for check in CHECKS:
        assert check(probabilities, (x, q, *more), check_batched_grad=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])  # "none" always saves statistics
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck_of_saved_statistics(saved, reduction, options, weighted):
    """As above where the logits are many; targets and weights with gradients of their own go another way."""
    check_indices(reduction, options, weighted)


def binary(reduction):
    _, _, _, w = inputs()
    weight = torch.rand(3, 4, 2, dtype=torch.float64)
    return partial(ours.binary_cross_entropy_with_logits, weight=weight, pos_weight=w[:2], reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_the_others(reduction):
    x, t, q, w = inputs()
    s = torch.rand(3, 2, dtype=torch.float64).requires_grad_()
    for check in CHECKS:
        assert check(lambda x: ours.nll_loss(x, t, w, reduction=reduction), (x,), check_batched_grad=True)
        assert check(lambda x, s: ours.nll_loss(x, t, w, reduction=reduction, sample_weight=s), (x, s))
        assert check(lambda x, s: ours.cross_entropy(x, t, w, reduction=reduction, sample_weight=s), (x, s))
        assert check(binary(reduction), (x, q))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_binary_losses(both_ways, reduction):
    x, _, q, _ = inputs()
    for check in CHECKS:
        assert check(binary(reduction), (x, q.detach()))


def test_gradcheck_of_activations():
    x, *_ = inputs()
    for check in CHECKS:
        assert check(lambda x: ours.softmax(x, 1), (x,), check_batched_grad=True)
        assert check(lambda x: ours.log_softmax(x, -1), (x,), check_batched_grad=True)


def test_third_order():
    x, t, *_ = inputs(shape=(1, 3, 1))
    t[0, 0] = 1

    def third(loss):
        grad = loss(x)
        for _ in range(3):
            grad = torch.autograd.grad(grad.sum(), x, create_graph=True)[0].pow(2)
        return grad

    torch.testing.assert_close(third(lambda x: ours.cross_entropy(x, t)), third(lambda x: theirs.cross_entropy(x, t)))


def test_gradients_again_and_no_longer(both_ways):
    x, t, *_ = inputs()
    loss = ours.cross_entropy(x, t)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    kept = first.clone()
    first.zero_()  # it is the caller's
    second = torch.autograd.grad(3 * loss, x, retain_graph=True)[0]
    torch.testing.assert_close(second, 3 * kept)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def test_a_changed_input_is_seen(both_ways):
    x, t, *_ = inputs()
    for change, seen in ((0, "version"), (1, "version")):
        y, targets = x * 1.0, t.clone()
        loss = ours.cross_entropy(y, targets)
        right = torch.autograd.grad(theirs.cross_entropy(x, t), x)[0]
        with torch.no_grad():
            (y, targets)[change].add_(0 if change else 1)
        try:
            torch.testing.assert_close(torch.autograd.grad(loss, x)[0], right)  # it had been computed before
            assert _eager.AT_ONCE
        except RuntimeError as error:
            assert seen in str(error)
            assert not _eager.AT_ONCE


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_in_place(dtype, reduction):
    x, t, *_ = inputs(dtype)
    expected = x * 1.0
    right = ours.cross_entropy(expected, t, reduction=reduction)
    upstream = torch.rand_like(right)
    right = torch.autograd.grad(right, expected, upstream)[0]
    y = x * 1.0
    view = y.view(3, 4, 2, 1)
    loss = ours.cross_entropy(view, t[..., None], reduction=reduction, inplace_backward=True)
    grad = torch.autograd.grad(loss, view, upstream.view(loss.shape))[0]
    assert grad.data_ptr() == y.data_ptr()
    torch.testing.assert_close(grad.squeeze(-1), right)


def test_misuse_of_a_gradient_in_place_is_seen():
    x, t, *_ = inputs()
    y = x.exp()  # whose own gradient needs y
    loss = ours.cross_entropy(y, t, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    y = x * 1.0
    loss = ours.cross_entropy(y, t, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_float16_survives_a_loss_scale():
    """A gradient that float16 cannot hold is scaled before it is rounded."""
    x, t, *_ = inputs(torch.float16, (4000, 3, 40))
    t.clamp_(min=0)
    grad = torch.autograd.grad(32768 * ours.cross_entropy(x, t).float(), x)[0]
    wide = x.detach().float().requires_grad_()
    right = torch.autograd.grad(32768 * theirs.cross_entropy(wide, t), wide)[0]
    # Rounded to float16 twice, by the loss and by the scale's own backward pass: 2 * 2**-11.
    torch.testing.assert_close(grad.float(), right, rtol=2 * 2**-11, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_no_grad_anomalies_and_hooks(both_ways):
    x, t, *_ = inputs()
    with torch.no_grad():
        assert not ours.cross_entropy(x, t).requires_grad
        assert not ours.log_softmax(x, 1).requires_grad
    with torch.inference_mode():
        assert not ours.cross_entropy(x, t).requires_grad
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = ours.cross_entropy(x, t)
        loss.backward()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        loss = ours.cross_entropy(x, t)
    assert packed
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], x.grad)
    found = torch.utils.checkpoint.checkpoint(lambda x: ours.cross_entropy(2 * x, t), x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0],
                               torch.autograd.grad(theirs.cross_entropy(2 * x, t), x)[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_anomalies_are_found():
    x, t, *_ = inputs()
    x.data[1, 0, 0] = torch.nan
    with torch.autograd.detect_anomaly(check_nan=True), pytest.raises(RuntimeError, match="returned nan values"):
        ours.cross_entropy(x, t).backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own parts
def test_forward_mode_is_refused():
    x, t, *_ = inputs()
    with pytest.raises((NotImplementedError, RuntimeError), match=r"forward|jvp"):
        torch.func.jvp(lambda x: ours.cross_entropy(x, t), (x.detach(),), (x.detach(),))


# --- torch.func


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_transforms(reduction, weighted):
    x, t, q, w = (tensor.detach() for tensor in inputs(shape=(3, 4, 5)))
    mask = torch.rand(3, 5) > 0.3
    lengths = torch.tensor([[5, 2, 1]]).T
    func = torch.func

    def one(f, target, w, mask=None, lengths=None):
        options = {} if f is theirs else {"mask": mask, "lengths": lengths}

        def loss(x):
            value = f.cross_entropy(x[None], target[None], w if weighted else None,
                                    reduction="none" if f is theirs and mask is not None else reduction, **options)
            if f is ours or mask is None:
                return value
            counted = mask & (torch.arange(5) < lengths) & (target != -100)
            factors = counted * (w[target.clamp(0)] if weighted else 1.0)
            return (value * counted).sum() / (factors.sum() if reduction == "mean" else 1)

        return loss

    for transform in (lambda f: f, func.grad, lambda f: func.jacrev(func.jacrev(f))):
        found, right = (
            func.vmap(lambda x, *of, f=f, transform=transform: transform(one(f, of[0], w, *of[1:]))(x))(
                x, t, mask, lengths
            )
            for f in (ours, theirs)
        )
        torch.testing.assert_close(found, right)
        found, right = (
            func.vmap(lambda x, q, f=f, transform=transform: transform(one(f, q, w))(x))(x, q) for f in (ours, theirs)
        )
        torch.testing.assert_close(found, right)
        # Neither first nor everywhere: the axis of x is the last, the target is the same for all.
        found, right = (
            func.vmap(transform(one(f, t[1], w)), in_dims=2)(x.movedim(0, 2)) for f in (ours, theirs)
        )
        torch.testing.assert_close(found, right)


def test_transforms_of_weights_that_differ():
    x, t, _, _ = (tensor.detach() for tensor in inputs(shape=(3, 4, 5)))
    w = torch.rand(3, 4, dtype=torch.float64)
    found, right = (
        torch.func.vmap(torch.func.grad(lambda x, t, w, f=f: f.cross_entropy(x[None], t[None], w)))(x, t, w)
        for f in (ours, theirs)
    )
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_transforms_of_activations(name):
    x = inputs()[0].detach()
    one, other = ((lambda x, f=f: (getattr(f, name)(x, 0) ** 2).sum()) for f in (ours, theirs))
    func = torch.func
    for transform in (lambda f: f, func.grad, lambda f: func.jacrev(func.jacrev(f))):
        torch.testing.assert_close(func.vmap(transform(one), 1)(x), func.vmap(transform(other), 1)(x))


def test_the_other_losses_under_transforms():
    x, t, q, _ = (tensor.detach() for tensor in inputs(shape=(3, 4, 5)))
    for one, target in (("nll_loss", t), ("binary_cross_entropy_with_logits", q)):
        found, right = (
            torch.func.vmap(torch.func.grad(lambda x, t, f=f, one=one: getattr(f, one)(x[None], t[None])))(x, target)
            for f in (ours, theirs)
        )
        torch.testing.assert_close(found, right)


# --- torch.compile


CASES = {
    "indices": lambda f, x, t, q, w: f.cross_entropy(2 * x, t, w, label_smoothing=0.1),
    "probabilities": lambda f, x, t, q, w: f.cross_entropy(2 * x, q, reduction="sum"),
    "positions": lambda f, x, t, q, w: f.cross_entropy(2 * x, t, reduction="none").pow(2).sum(),
    "nll": lambda f, x, t, q, w: f.nll_loss(f.log_softmax(2 * x, 1), t, w),
    "binary": lambda f, x, t, q, w: f.binary_cross_entropy_with_logits(2 * x, q.detach(), w.view(1, -1, 1)),
    "softmax": lambda f, x, t, q, w: (f.softmax(2 * x, -1) * q).sum(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of its own parts
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_compile(case, dtype):
    torch._dynamo.reset()
    x, t, q, w = inputs(dtype)
    compiled = torch.compile(lambda x, t, q, w: CASES[case](ours, x, t, q, w), fullgraph=True, backend="aot_eager")
    found = compiled(x, t, q, w)
    right = CASES[case](theirs, x, t, q, w)
    tolerance = {"rtol": 5e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, right, **tolerance)
    grads = (torch.autograd.grad(loss, [x, q], allow_unused=True, materialize_grads=True) for loss in (found, right))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compile_with_inductor_and_masks():
    torch._dynamo.reset()
    x, t, *_ = inputs(torch.float32, (3, 4, 5))
    mask, lengths = torch.rand(3, 5) > 0.3, torch.tensor([5, 2, 0])

    def loss(x, t, mask, lengths):
        return ours.cross_entropy(x.relu(), t, mask=mask, lengths=lengths, z_loss=0.1, softcap=5.0)

    try:
        found = torch.compile(loss, fullgraph=True)(x, t, mask, lengths)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    right = loss(x, t, mask, lengths)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(right, x)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_export():
    x, t, _, w = inputs()
    program = torch.export.export(ours.CrossEntropyLoss(w), (x.detach(), t))
    assert "fastxent.cross_entropy" in program.graph_module.code
    torch.testing.assert_close(program.module()(x.detach(), t), theirs.cross_entropy(x, t, w))


OPTIONS = {
    "plain": (None, None, None, 1, -100, 0.0, 0.0, 0.0),
    "everything": (torch.rand(4).double(), torch.rand(3, 2) > 0.3, torch.tensor([2, 0, 1]), 1, -100, 0.1, 0.1, 5.0),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
def test_opcheck_of_the_loss(options, dtype, probabilities):
    x, t, q, _ = inputs(dtype)
    arguments = (x, q if probabilities else t, *OPTIONS[options])
    torch.library.opcheck(torch.ops.fastxent.cross_entropy.default, arguments)
    losses, saved = (tensor.detach() for tensor in _operators.cross_entropy(*arguments))
    upstream = losses.requires_grad_()
    arguments = (upstream, arguments[0], arguments[1], saved, *arguments[2:])
    torch.library.opcheck(torch.ops.fastxent.cross_entropy_grad.default, arguments)


@pytest.mark.parametrize(("name", "view"), list(itertools.product(["softmax", "log_softmax"], ["plain", "strided"])))
def test_opcheck_of_activations(name, view):
    x = inputs(torch.float32, (3, 4, 6))[0].detach()
    x = (x.movedim(0, 2)[::2] if view == "strided" else x).requires_grad_()
    operators = torch.ops.fastxent
    torch.library.opcheck(getattr(operators, name).default, (x, 1))
    y = getattr(operators, name)(x, 1).detach().requires_grad_()
    torch.library.opcheck(getattr(operators, f"{name}_grad").default, (y, torch.rand_like(y), 1))
