"""fastxent.torch.linear_cross_entropy: against torch's own, whose logits are all there, and without them."""

import tracemalloc

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as theirs  # noqa: E402

import fastxent  # noqa: E402
import fastxent.torch as ours  # noqa: E402
from fastxent.torch import _linear  # noqa: E402

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["widened", "torch's products"])
def products(request, monkeypatch):
    """Both ways of bfloat16, and chunks that are short."""
    monkeypatch.setattr(_linear, "MULTIPLIES_BFLOAT16", request.param)
    sizes = _linear.gradient_chunks
    monkeypatch.setattr(_linear, "gradient_chunks", lambda *given: sizes(*given)._replace(rows=5))


def inputs(dtype=torch.float64, positions=(14,), features=6, classes=9):
    torch.manual_seed(3)
    x = torch.randn(*positions, features).to(dtype).requires_grad_()
    w = torch.randn(classes, features).to(dtype).requires_grad_()
    b = torch.randn(classes).to(dtype).requires_grad_()
    return x, w, b, torch.randint(0, classes, positions), (torch.rand(classes) + 0.5).to(dtype)


def value_and_grads(loss, operands, upstream=None):
    value = loss(*operands)
    upstream = torch.full_like(value, 1.5) if upstream is None else upstream.to(value.dtype)
    return [value.detach(), *torch.autograd.grad(value, [t for t in operands if t is not None], upstream)]


def agree(found, right, dtype):
    """To rounding; what is of half precision to the rounding of torch's logits, which are of half precision too."""
    tolerance = {torch.bfloat16: {"atol": 0.04, "rtol": 0.03}, torch.float16: {"atol": 0.006, "rtol": 0.004}}
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **tolerance.get(dtype, {}))


OPTIONS = [
    {},
    {"biased": True},
    {"weighted": True, "biased": True},
    {"ignore_index": 2},
    {"label_smoothing": 0.1, "biased": True},
    {"label_smoothing": 0.2, "weighted": True, "ignore_index": 1},
]


def in_torch(x, w, t, linear_bias=None, **options):
    """The function that torch has since 2.13, or its parts."""
    if hasattr(theirs, "linear_cross_entropy"):
        return theirs.linear_cross_entropy(x, w, t, linear_bias=linear_bias, **options)
    return theirs.cross_entropy(theirs.linear(x, w, linear_bias), t, **options)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_in_torch(dtype, options, reduction):
    x, w, b, t, weights = inputs(dtype)
    t[3] = options.get("ignore_index", -100)
    given = {k: v for k, v in options.items() if k not in ("biased", "weighted")} | {"reduction": reduction}
    if "weighted" in options:
        given["weight"] = weights
    upstream = torch.linspace(-1, 1, len(t)) if reduction == "none" else torch.tensor(1.5)
    operands = (x, w, b if "biased" in options else None)
    found, right = (
        value_and_grads(lambda x, w, b, f=f: f(x, w, t, linear_bias=b, **given), operands, upstream)
        for f in (ours.linear_cross_entropy, in_torch)
    )
    agree(found, right, dtype)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_does_not_know(dtype, reduction):
    x, w, b, t, weights = inputs(dtype, (3, 5))
    t[0, 0] = -100
    t[1, 4] = 1000  # not looked at
    options = {
        "weight": weights, "mask": torch.rand(3, 5) > 0.2, "lengths": torch.tensor([5, 4, 2]), "label_smoothing": 0.1,
        "sample_weight": torch.rand(3, 5) * (torch.rand(5) > 0.2), "z_loss": 0.01, "softcap": 3.0,
        "reduction": reduction,
    }

    def with_logits(x, w, b):
        return ours.cross_entropy(theirs.linear(x, w, b).movedim(-1, 1), t, **options)

    found = value_and_grads(lambda x, w, b: ours.linear_cross_entropy(x, w, t, linear_bias=b, **options), (x, w, b))
    agree(found, value_and_grads(with_logits, (x, w, b)), dtype)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_gradient_and_with_some(dtype):
    x, w, b, t, _ = inputs(dtype)
    with torch.no_grad():
        value = ours.linear_cross_entropy(x, w, t, linear_bias=b)
    assert not value.requires_grad and value.dtype is dtype and value.shape == ()
    agree([value], [in_torch(x, w, t, linear_bias=b).detach()], dtype)
    for i in range(3):
        operands = [o if i == j else o.detach() for j, o in enumerate((x, w, b))]
        gradient = [
            torch.autograd.grad(f(operands[0], operands[1], t, linear_bias=operands[2]), operands[i])[0]
            for f in (ours.linear_cross_entropy, in_torch)
        ]
        agree(gradient[:1], gradient[1:], dtype)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_counts(dtype, reduction):
    x, w, b, t, weights = inputs(dtype)
    for given in ({"ignore_index": 3, "target": torch.full_like(t, 3)}, {"mask": torch.zeros(14, dtype=torch.bool)}):
        options = {"target": t, "reduction": reduction, "weight": weights} | given
        value, *grads = value_and_grads(lambda x, w, b, o=options: ours.linear_cross_entropy(x, w, linear_bias=b, **o),
                                        (x, w, b))
        assert torch.all(value.isnan() if reduction == "mean" else value == 0)
        assert not any(torch.any(grad != 0) for grad in grads)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 4, 6)], ids=str)
def test_shapes(shape, dtype):
    x, w, b, t, _ = inputs(dtype, shape[:-1])

    def flat(x, w, b):
        logits = theirs.linear(x, w, b).reshape(-1, 9)
        return theirs.cross_entropy(logits, t.reshape(-1), reduction="none").reshape(t.shape)

    def loss(x, w, b):
        return ours.linear_cross_entropy(x, w, t, linear_bias=b, reduction="none")

    agree(value_and_grads(loss, (x, w, b)), value_and_grads(flat, (x, w, b)), dtype)
    if len(shape) == 1:
        assert ours.linear_cross_entropy(x, w, t.reshape(1), linear_bias=b) == loss(x, w, b)
        with pytest.raises(IndexError, match=r"position \(\) is -1"):
            ours.linear_cross_entropy(x, w, t * 0 - 1)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["int8", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_integer_targets_and_strides(kind, dtype):
    x, w, _, t, _ = inputs(dtype)
    x, w = (tensor.detach().repeat_interleave(2, 1).t().contiguous().t()[:, ::2].requires_grad_() for tensor in (x, w))
    found = value_and_grads(lambda x, w: ours.linear_cross_entropy(x, w, t.to(getattr(torch, kind))), (x, w))
    agree(found, value_and_grads(lambda x, w: in_torch(x, w, t), (x, w)), dtype)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_that_have_to_be_there(reduction):
    """Class probabilities, weights of more axes, gradients by sample_weight."""
    x, w, b, t, weights = inputs()
    q = torch.rand(14, 9, dtype=x.dtype).softmax(1).requires_grad_()
    found, right = (
        value_and_grads(lambda x, w, b, q, f=f: f(x, w, q, linear_bias=b, weight=weights, reduction=reduction),
                        (x, w, b, q))
        for f in (ours.linear_cross_entropy, in_torch)
    )
    agree(found, right, x.dtype)
    wide, more, many = torch.randn(9, 2, 3, 6).double(), torch.randn(9, 2, 3).double(), torch.randint(0, 9, (14, 2, 3))
    found, right = (
        value_and_grads(lambda x, w, b, f=f: f(x, w, many, linear_bias=b, reduction=reduction),
                        (x, wide.requires_grad_(), more.requires_grad_()))
        for f in (ours.linear_cross_entropy, in_torch)
    )
    agree(found, right, x.dtype)
    s = torch.rand(14).double().requires_grad_()
    losses = in_torch(x, w, t, reduction="none").detach()
    grad = torch.autograd.grad(ours.linear_cross_entropy(x, w, t, sample_weight=s, reduction="sum"), s)
    agree(grad, [losses], x.dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction):
    x, w, b, t, weights = inputs(positions=(2, 4), features=3, classes=5)
    t[0, 1] = -100

    def loss(x, w, b):
        return ours.linear_cross_entropy(
            x, w, t, linear_bias=b, weight=weights, label_smoothing=0.1, z_loss=0.1, softcap=4.0,
            lengths=torch.tensor([4, 3]), reduction=reduction,
        )

    assert torch.autograd.gradcheck(loss, (x, w, b))


def test_gradients_again():
    x, w, _, t, _ = inputs()
    loss = ours.linear_cross_entropy(x, w, t)
    first = torch.autograd.grad(loss, (x, w), torch.tensor(2.0).double(), retain_graph=True)
    again = torch.autograd.grad(loss, (x, w), torch.tensor(4.0).double())
    agree(again, [2 * grad for grad in first], x.dtype)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = ours.linear_cross_entropy(x * 1, w, t, reduction="none")
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_second_derivatives_are_refused():
    x, w, _, t, _ = inputs()
    loss = ours.linear_cross_entropy(x, w, t)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)
    losses = ours.linear_cross_entropy(x, w, t, reduction="none")
    with pytest.raises(RuntimeError, match="batched gradients"):
        torch.autograd.grad(losses, x, torch.eye(14).double(), is_grads_batched=True)


def test_float16_survives_a_loss_scale():
    x, w, _, t, _ = inputs(torch.float16, (4000,))
    scale = 2.0**12
    grad = torch.autograd.grad(ours.linear_cross_entropy(x, w, t).float() * scale, x)[0]
    right = torch.autograd.grad(theirs.cross_entropy(theirs.linear(x.float(), w.float()), t) * scale, x)[0]
    torch.testing.assert_close(grad, right, rtol=0.002, atol=1e-4)


@pytest.mark.usefixtures("products")
def test_autocast():
    x, w, b, t, _ = inputs(torch.float32)

    def under(f):
        def loss(x, w, b):
            with torch.autocast("cpu", torch.bfloat16):
                return f(x, w, t, linear_bias=b)

        return loss

    found, right = (value_and_grads(under(f), (x, w, b))
                    for f in (ours.linear_cross_entropy, in_torch))
    assert [t.dtype for t in found] == [t.dtype for t in right] == [torch.float32] * 4
    agree(found, right, torch.bfloat16)


def test_transforms():
    x, w, b, t, _ = inputs()
    found, right = (
        torch.func.grad(lambda w, f=f: f(x.detach(), w, t, linear_bias=b.detach()))(w.detach())
        for f in (ours.linear_cross_entropy, in_torch)
    )
    agree([found], [right], x.dtype)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compile(dtype, reduction):
    x, w, b, t, weights = inputs(dtype, (3, 5))
    t[0, 0] = -100
    options = {"weight": weights, "lengths": torch.tensor([5, 4, 2]), "reduction": reduction}

    def loss(x, w, b):
        return 2 * ours.linear_cross_entropy(1 * x, w, t, linear_bias=b, **options)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    agree(value_and_grads(compiled, (x, w, b)), value_and_grads(loss, (x, w, b)), dtype)
    with torch.no_grad():
        agree([compiled(x, w, b)], [loss(x, w, b)], dtype)


@pytest.mark.parametrize("needed", [[True, True, False], [False, False, False]], ids=str)
def test_opcheck(needed):
    x, w, _, t, weights = inputs()
    given = (x, w, None, t, weights, None, None, None, "mean", -100, 0.1, 0.0, 0.0, needed)
    torch.library.opcheck(torch.ops.fastxent.linear_cross_entropy.default, given)


def test_logits_are_never_all_there(monkeypatch):
    """48 MB of float32 logits, and less than 2 MB at a time: chunks, gradients and losses."""
    engine = fastxent.linear_cross_entropy_and_grad
    monkeypatch.setattr(fastxent, "linear_cross_entropy_and_grad", lambda *a, **k: engine(*a, **k, max_bytes=1 << 20))
    x, w, _, t, _ = inputs(torch.float32, (4000,), 4, 3000)
    for _ in range(2):  # the first time loads what is loaded once
        tracemalloc.start()
        torch.autograd.grad(ours.linear_cross_entropy(x, w, t), (x, w))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 2 << 20


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_of_bfloat16(monkeypatch, reduction):
    """No more logits at a time than the rule of chunks allows, each position once."""
    sizes = []

    def seen(logits, *given, **options):
        sizes.append(logits.shape)
        return engine(logits, *given, **options)

    engine = fastxent.cross_entropy_and_grad
    monkeypatch.setattr(fastxent, "cross_entropy_and_grad", seen)
    monkeypatch.setattr(_linear, "MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(_linear, "DEFAULT_BYTES", 1 << 20)
    x, w, _, t, _ = inputs(torch.bfloat16, (1000,), 4, 3000)
    ours.linear_cross_entropy(x, w, t, reduction=reduction).sum().backward()
    assert sum(rows for rows, _ in sizes) == 1000
    assert max(rows * classes * 2 for rows, classes in sizes) <= 1 << 20


def test_refusals():
    x, w, b, t, _ = inputs()

    def refused(error, match, *given, **options):
        with pytest.raises(error, match=match):
            ours.linear_cross_entropy(*given, **options)

    refused(ValueError, "options", x, w, t, options=torch.nn.LinearCrossEntropyOptions())
    refused(TypeError, "linear_weight has dtype", x, w.float(), t)
    refused(TypeError, "linear_bias must be a Tensor", x, w, t, linear_bias=[1.0])
    refused(TypeError, "is on meta", x.to("meta"), w, t)
    refused(ValueError, r"linear_weight must have shape \(C, 6\)", x, w[:, :5], t)
    refused(ValueError, r"linear_bias must have shape \(9,\)", x, w, t, linear_bias=b[:5])
    refused(ValueError, r"target must have shape \(14,\)", x, w, t[:5])
    refused(ValueError, r"weight must have shape \(9,\)", x, w, t, weight=torch.ones(8))
    refused(ValueError, "mask must broadcast", x, w, t, mask=torch.ones(3, dtype=torch.bool))
    refused(ValueError, "add a batch axis", x, w, t, lengths=torch.tensor(3))
    refused(ValueError, "ignore_index is not supported", x, w, torch.ones(14, 9), ignore_index=1)
    refused(ValueError, "softcap must be", x, w, t, softcap=-1.0)
    refused(ValueError, "not a valid value for reduction", x, w, t, reduction="median")
    refused(ValueError, "label_smoothing", x, w, t, label_smoothing=-0.5)
    refused(ValueError, "needs an input of shape", x[0], torch.zeros(9, 2, 6).double(), t)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_index_outside(dtype):
    x, w, _, t, _ = inputs(dtype, (3, 5))
    t[1, 0], t[0, 0] = 9, -100
    with pytest.raises(IndexError, match=r"position \(1, 0\) is 9, outside \[0, 9\)"):
        ours.linear_cross_entropy(x, w, t)
