"""fastxent.torch where torch's own samples do not reach: masks, dtypes, layouts, autocast, errors, modules, patch()."""

import copy
import itertools
import pickle
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as theirs  # noqa: E402

import fastxent.torch as ours  # noqa: E402


def inputs(dtype=torch.float64, shape=(4, 5, 6), seed=0):
    """Logits (N, C, T), class indices (N, T), class probabilities, class weights, and a mask."""
    torch.manual_seed(seed)
    x = (2 * torch.randn(shape)).to(dtype).requires_grad_()
    positions = (shape[0], *shape[2:])
    t = torch.randint(0, shape[1], positions)
    q = torch.randn(shape).softmax(1).to(dtype)
    return x, t, q, torch.rand(shape[1]).to(dtype) + 0.5, torch.rand(positions) > 0.3


def value_and_grad(loss, x, upstream=1.5):
    value = loss(x)
    return value.detach(), torch.autograd.grad(value, x, torch.full_like(value, upstream))[0]


def agree(one, other, **tolerance):
    for found, right in zip(one, other, strict=True):
        torch.testing.assert_close(found, right, equal_nan=True, **tolerance)


# --- torch's own options, in combination


@pytest.mark.parametrize(
    ("probabilities", "weighted", "smoothing", "reduction"),
    list(itertools.product([False, True], [False, True], [0.0, 0.1], ["mean", "sum", "none"])),
)
def test_options(probabilities, weighted, smoothing, reduction):
    x, t, q, w, _ = inputs()
    t[0, :2] = -100
    options = {"weight": w if weighted else None, "label_smoothing": smoothing, "reduction": reduction}
    target = q if probabilities else t
    agree(value_and_grad(lambda x: ours.cross_entropy(x, target, **options), x),
          value_and_grad(lambda x: theirs.cross_entropy(x, target, **options), x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "view",
    {
        "classes last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
        "strided": lambda x: x.repeat_interleave(2, 2)[..., ::2],
        "expanded": lambda x: x[:1].expand(4, -1, -1),
        "channels": lambda x: x.unsqueeze(-1).expand(-1, -1, -1, 3),
    }.values(),
    ids=["classes last", "strided", "expanded", "channels"],
)
def test_layouts(view, dtype):
    x, t, *_ = inputs(dtype)
    x = view(x.detach()).requires_grad_()
    t = t.unsqueeze(-1).expand(-1, -1, 3) if x.ndim == 4 else t
    before = x.detach().clone()
    wide = before.float() if dtype in (torch.bfloat16, torch.float16) else before
    value, grad = value_and_grad(lambda x: ours.cross_entropy(x, t), x)
    expected, expected_grad = value_and_grad(lambda x: theirs.cross_entropy(x, t), wide.clone().requires_grad_())
    torch.testing.assert_close(value, expected.to(dtype))
    torch.testing.assert_close(grad, expected_grad.to(dtype))
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_integer_targets(kind):
    x, t, *_ = inputs()
    agree([ours.cross_entropy(x, t.to(getattr(torch, kind)))], [theirs.cross_entropy(x, t)])


def test_unbatched_and_empty():
    x, t = torch.randn(5), torch.tensor(3)
    q = torch.rand(5)
    for target in (t, t[None], q):
        for reduction in ("mean", "sum", "none"):
            agree([ours.cross_entropy(x, target, reduction=reduction)],
                  [theirs.cross_entropy(x, target, reduction=reduction)])
    empty = torch.empty(0, 5, requires_grad=True)
    for target in (torch.empty(0, dtype=torch.long), torch.empty(0, 5)):
        for reduction in ("mean", "sum", "none"):
            found, right = (
                value_and_grad(partial(f.cross_entropy, target=target, reduction=reduction), empty)
                for f in (ours, theirs)
            )
            agree(found, right)


def test_nothing_counts():
    x, t, *_ = inputs()
    value, grad = value_and_grad(lambda x: ours.cross_entropy(x, torch.full_like(t, -100)), x)
    assert value.isnan()
    assert not grad.any()


@pytest.mark.parametrize(("first", "second"), [("float16", "float32"), ("float32", "float64"), ("bfloat16", "float16")])
def test_result_is_promoted_with_probabilities(first, second):
    x, _, q, w, _ = inputs()
    x, q, w = x.detach().to(getattr(torch, first)), q.to(getattr(torch, second)), w.to(getattr(torch, second))
    for weight in (None, w):
        found, right = ours.cross_entropy(x, q, weight), theirs.cross_entropy(x, q, weight)
        assert found.dtype == right.dtype
        torch.testing.assert_close(found, right, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_autocast(reduction):
    x, t, q, _, _ = inputs(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for target in (t, q):
            found, right = (f.cross_entropy(x, target, reduction=reduction) for f in (ours, theirs))
            assert found.dtype == right.dtype == torch.float32
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
        assert torch.autograd.grad(found.sum(), x)[0].dtype == torch.bfloat16
        plain = ours.nll_loss(x, t)
        assert plain.dtype == theirs.nll_loss(x, t).dtype
        found, right = (f.binary_cross_entropy_with_logits(x, q) for f in (ours, theirs))
        assert found.dtype == right.dtype
        assert ours.softmax(x, 1).dtype == theirs.softmax(x, 1).dtype


@pytest.mark.parametrize("old", [{"size_average": False}, {"reduce": False}, {"size_average": True}, {"reduce": True}])
def test_deprecated_reductions(old):
    x, t, *_ = inputs()
    with pytest.warns(UserWarning, match="size_average and reduce args") as warned:
        found = ours.cross_entropy(x, t, **old)
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="size_average"):
        agree([found], [theirs.cross_entropy(x, t, **old)])
    with pytest.warns(UserWarning, match="elementwise_mean"):
        ours.cross_entropy(x, t, reduction="elementwise_mean")
    with pytest.warns(UserWarning, match="Implicit dimension choice") as warned:
        ours.log_softmax(x)
    assert warned[0].filename == __file__


# --- what torch does not have


def masked(losses, weights, reduction):
    """A loss for each position, reduced by weights in torch's own operations."""
    losses = losses * weights
    return losses if reduction == "none" else losses.sum() / (weights.sum() if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("differentiable", [False, True], ids=["short way", "operators"])
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_masks_lengths_and_sample_weights(reduction, probabilities, differentiable):
    x, t, q, _, mask = inputs()
    lengths = torch.tensor([6, 0, 3, 5])
    s = torch.rand(t.shape, dtype=torch.float64)
    s[3, 0] = 0
    counted = mask & (torch.arange(6) < lengths[:, None])
    target = q if probabilities else t
    spoilt = x.detach().clone().movedim(1, -1)
    spoilt[~counted] = torch.nan
    spoilt = spoilt.movedim(-1, 1).requires_grad_()
    given = {"mask": mask, "lengths": lengths, "sample_weight": s.clone().requires_grad_(differentiable)}
    found = ours.cross_entropy(spoilt, target, **given, reduction=reduction)
    weights = s.clone().requires_grad_()
    right = masked(theirs.cross_entropy(x, target, reduction="none"), weights * counted, reduction)
    torch.testing.assert_close(found, right)
    upstream = torch.rand_like(right)
    found_grads = torch.autograd.grad(found, [spoilt] + [given["sample_weight"]] * differentiable, upstream)
    right_grads = torch.autograd.grad(right, [x] + [weights] * differentiable, upstream)
    if differentiable:  # a weight of exactly 0 takes its position out
        right_grads[1][3, 0] = found_grads[1][3, 0]
    agree(found_grads, right_grads)


@pytest.mark.parametrize("differentiable", [False, True], ids=["short way", "operators"])
def test_z_loss_and_softcap(differentiable):
    x, _, q, *_ = inputs()
    x.data[0, 0] = -torch.inf
    q[0, 0] = 0
    q.requires_grad_(differentiable)

    def expected(x):
        z = torch.where(x.isinf(), x, 3 * torch.tanh(x / 3))
        log_p = z.log_softmax(1)
        return (-(q * torch.where(q == 0, 0.0, log_p)).sum(1) + 0.1 * z.logsumexp(1) ** 2).mean()

    value, grad = value_and_grad(lambda x: ours.cross_entropy(x, q, z_loss=0.1, softcap=3.0), x)
    right, right_grad = value_and_grad(expected, x)
    torch.testing.assert_close(value, right)
    torch.testing.assert_close(grad, right_grad.nan_to_num())  # torch.where has NaN where tanh(-inf) was


def test_masks_of_other_losses():
    x, t, q, _, mask = inputs()
    s = torch.rand(t.shape, dtype=torch.float64)
    log_p = x.log_softmax(1)
    found = ours.nll_loss(log_p, t, mask=mask, sample_weight=s)
    torch.testing.assert_close(found, masked(theirs.nll_loss(log_p, t, reduction="none"), s * mask, "mean"))
    mask, s, w = mask[:, None].expand_as(q), s[:, None].expand_as(q), torch.rand_like(q)
    losses = theirs.binary_cross_entropy_with_logits(x, q, w, reduction="none", pos_weight=w[0])
    for reduction in ("mean", "sum", "none"):
        found = ours.binary_cross_entropy_with_logits(
            x, q, w, pos_weight=w[0], mask=mask, sample_weight=s, reduction=reduction
        )
        torch.testing.assert_close(found, masked(losses, s * mask, reduction))


def test_what_describes_positions_may_be_arrays_and_lists():
    x, t, *_ = inputs()
    found = ours.cross_entropy(x, t, lengths=[6, 0, 3, 5], mask=np.ones(6, bool))
    torch.testing.assert_close(found, ours.cross_entropy(x, t, lengths=torch.tensor([6, 0, 3, 5])))


# --- errors


def test_tensors_elsewhere_are_told_what_to_do():
    x, t, *_ = inputs()
    with pytest.raises(TypeError, match=r"input is on meta.*input\.cpu\(\).*torch\.nn\.functional\.cross_entropy"):
        ours.cross_entropy(x.to("meta"), t)
    with pytest.raises(TypeError, match=r"target is on meta.*target\.cpu\(\)"):
        ours.cross_entropy(x, t.to("meta"))
    with pytest.raises(TypeError, match="mask is on meta"):
        ours.cross_entropy(x, t, mask=torch.ones(6, device="meta"))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (IndexError, r"position \(1, 2\) is 5, outside \[0, 5\)", lambda x, t, q: ours.cross_entropy(x, t)),
        (IndexError, "outside", lambda x, t, q: ours.nll_loss(x, t)),
        (IndexError, r"position \(1, 2\) is 5, outside \[0, 5\)",
         lambda x, t, q: ours.nll_loss(x, t, sample_weight=torch.ones(t.shape, requires_grad=True))),
        (TypeError, "must be a Tensor, not list", lambda x, t, q: ours.cross_entropy([[1.0]], t)),
        (TypeError, "must be a Tensor, not ndarray", lambda x, t, q: ours.cross_entropy(x, t.numpy())),
        (TypeError, "dtype torch.int64", lambda x, t, q: ours.cross_entropy(t, t)),
        (TypeError, "dtype torch.complex64", lambda x, t, q: ours.softmax(x.to(torch.complex64), 1)),
        (TypeError, "target has dtype torch.bool", lambda x, t, q: ours.cross_entropy(x, t > 1)),
        (TypeError, "expected class indices", lambda x, t, q: ours.nll_loss(x, q)),
        (TypeError, "sample_weight", lambda x, t, q: ours.cross_entropy(x, t, mask=torch.ones(4, 6))),
        (ValueError, "one_hot", lambda x, t, q: ours.cross_entropy(x, q.long())),
        (ValueError, "targets must have", lambda x, t, q: ours.cross_entropy(x, t[:2])),
        (ValueError, "no class axis", lambda x, t, q: ours.cross_entropy(torch.tensor(1.0), t)),
        (ValueError, "not a valid value for reduction", lambda x, t, q: ours.cross_entropy(x, t, reduction="all")),
        (ValueError, "ignore_index is not supported", lambda x, t, q: ours.cross_entropy(x, q, ignore_index=1)),
        (ValueError, "label_smoothing", lambda x, t, q: ours.cross_entropy(x, t, label_smoothing=1.5)),
        (ValueError, "softcap", lambda x, t, q: ours.cross_entropy(x, t, softcap=0.0)),
        (ValueError, "lengths", lambda x, t, q: ours.cross_entropy(x, t, lengths=torch.tensor([7, 1, 1, 1]))),
        (ValueError, "leaf", lambda x, t, q: ours.cross_entropy(x, t, inplace_backward=True)),
        (ValueError, "leaf", lambda x, t, q: ours.cross_entropy(x.view(x.shape), t, inplace_backward=True)),
        (ValueError, "shape", lambda x, t, q: ours.binary_cross_entropy_with_logits(x, q[:2])),
        (IndexError, "dim must be", lambda x, t, q: ours.softmax(x, 3)),
        (RuntimeError, "not differentiable by weight",
         lambda x, t, q: ours.cross_entropy(x, t, torch.ones(5, requires_grad=True))),
    ],
)
def test_errors(error, match, call):
    x, t, q, _, _ = inputs()
    t[1, 2] = 5
    with pytest.raises(error, match=match):
        call(x, t, q)


# --- modules


@pytest.mark.parametrize("weighted", [False, True])
def test_modules(weighted):
    x, t, _, w, mask = inputs()
    options = {"weight": w if weighted else None, "ignore_index": 2, "reduction": "sum"}
    module = ours.CrossEntropyLoss(**options, label_smoothing=0.1)
    right = torch.nn.CrossEntropyLoss(**options, label_smoothing=0.1)
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert module.state_dict().keys() == right.state_dict().keys()
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(same(x, t), right(x, t))
    torch.testing.assert_close(
        module(x, t, mask=mask), ours.cross_entropy(x, t, **options, label_smoothing=0.1, mask=mask)
    )
    same = pickle.loads(pickle.dumps(ours.CrossEntropyLoss(z_loss=0.1, softcap=5.0)))
    torch.testing.assert_close(same(x, t), ours.cross_entropy(x, t, z_loss=0.1, softcap=5.0))
    assert repr(same) == "CrossEntropyLoss(z_loss=0.1, softcap=5.0)"
    log_p = ours.LogSoftmax(1)(x)
    torch.testing.assert_close(log_p, torch.nn.LogSoftmax(1)(x))
    torch.testing.assert_close(ours.NLLLoss(**options)(log_p, t), torch.nn.NLLLoss(**options)(log_p, t))
    assert isinstance(pickle.loads(pickle.dumps(ours.NLLLoss(**options))), ours.NLLLoss)
    assert module.half().weight is None or module.weight.dtype == torch.float16


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("way", ["eager", "create_graph", "sample weight", "compile"])
def test_the_ignored_index_is_compared_as_a_number(dtype, way):
    """156 is no -100, nor is a class of 1 the 257 that an int8 cannot hold."""
    x, t = torch.randn(3, 200, requires_grad=True), torch.tensor([1, 100, 7 if dtype == "int8" else 156])
    loss = ours.cross_entropy
    if way == "compile":
        loss = torch.compile(ours.cross_entropy, backend="aot_eager")
    options = {"sample_weight": torch.ones(3, requires_grad=True)} if way == "sample weight" else {}
    for index in (-100, 100, 257):
        value = loss(x, t.to(getattr(torch, dtype)), ignore_index=index, **options)
        torch.testing.assert_close(value, theirs.cross_entropy(x, t, ignore_index=index))
        (grad,) = torch.autograd.grad(value, x, create_graph=way == "create_graph")
        (right,) = torch.autograd.grad(theirs.cross_entropy(x, t, ignore_index=index), x)
        torch.testing.assert_close(grad, right)


def test_no_positions_on_every_way():
    t = torch.zeros(0, dtype=torch.long)
    x = torch.zeros(0, 5, requires_grad=True)
    for loss in (ours.cross_entropy, torch.compile(ours.cross_entropy, backend="aot_eager"),
                 partial(ours.cross_entropy, sample_weight=torch.zeros(0, requires_grad=True))):  # fmt: skip
        value = loss(x, t)
        assert value.isnan()
        (grad,) = torch.autograd.grad(value, x)
        assert grad.shape == (0, 5)
    assert torch.autograd.grad(ours.cross_entropy(x, t), x, create_graph=True)[0].shape == (0, 5)
    assert torch.func.grad(partial(ours.cross_entropy, target=t))(torch.zeros(0, 5)).shape == (0, 5)
    assert torch.compile(lambda a: ours.softmax(a, 1), backend="aot_eager")(torch.zeros(0, 5)).shape == (0, 5)
    shares = torch.zeros(0, 5, requires_grad=True)
    ours.cross_entropy(x, shares).backward()
    assert shares.grad.shape == (0, 5)


def test_weights_of_a_single_position_and_weights_that_are_held():
    x, shares, w = torch.randn(4), torch.softmax(torch.randn(4), 0), torch.rand(4, requires_grad=True)
    got, right = (torch.autograd.grad(f(x, shares, w), w)[0] for f in (ours.cross_entropy, theirs.cross_entropy))
    torch.testing.assert_close(got, right)
    x, t = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(ours.cross_entropy(x, t, w), theirs.cross_entropy(x, t, w))
    with pytest.raises(RuntimeError, match="not differentiable by weight"):
        ours.cross_entropy(x, t, w)


def test_tensors_with_the_negative_bit():
    x, t = torch.randn(3, 5, dtype=torch.complex64).conj().imag, torch.tensor([0, 1, 2])
    assert x.is_neg()
    torch.testing.assert_close(ours.cross_entropy(x, t), theirs.cross_entropy(x, t))
    torch.testing.assert_close(ours.nll_loss(x, t), theirs.nll_loss(x, t))
    torch.testing.assert_close(ours.softmax(x, 1), torch.softmax(x, 1))
    x = x.detach().requires_grad_()
    got, right = (torch.autograd.grad(f(x, t), x)[0] for f in (ours.cross_entropy, theirs.cross_entropy))
    torch.testing.assert_close(got, right)


# --- patch()


def test_patch(monkeypatch):
    calls = []
    kernel = ours.functional.cross_entropy
    monkeypatch.setattr(ours.functional, "cross_entropy", lambda *args: calls.append(args) or kernel(*args))
    original = torch.nn.functional.cross_entropy
    x, t, _, w, _ = inputs()
    right = torch.nn.CrossEntropyLoss(w, label_smoothing=0.1)(x, t)
    with ours.patch() as outer:
        with outer, ours.patch():
            pass
        torch.testing.assert_close(torch.nn.CrossEntropyLoss(w, label_smoothing=0.1)(x, t), right)
        assert len(calls) == 1
        meta = torch.nn.functional.cross_entropy(x.to("meta"), t.to("meta"))  # passes through
        assert meta.device.type == "meta"
        assert len(calls) == 1
    assert torch.nn.functional.cross_entropy is original

    @ours.patch()
    def decorated():
        raise ArithmeticError(torch.nn.functional.cross_entropy(x, t, ignore_index=3, reduction="sum"))

    with pytest.raises(ArithmeticError):
        decorated()
    assert len(calls) == 2
    assert torch.nn.functional.cross_entropy is original
