"""fastxent.torch against torch on torch's own sample inputs: values, gradients, result dtypes.

The half types are compared with what torch computes of the same numbers in float32, which is the harder test.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch's own test helpers import it
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

import fastxent.torch as ours  # noqa: E402

FUNCTIONS = {
    "nn.functional.cross_entropy": ours.cross_entropy,
    "nn.functional.linear_cross_entropy": ours.linear_cross_entropy,
    "nn.functional.nll_loss": ours.nll_loss,
    "nn.functional.binary_cross_entropy_with_logits": ours.binary_cross_entropy_with_logits,
    "softmax": ours.softmax,
    "softmax.with_dtype": ours.softmax,
    "log_softmax": ours.log_softmax,
    "log_softmax.with_dtype": ours.log_softmax,
}
OPS = {op.full_name: op for op in op_db if op.full_name in FUNCTIONS}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
# Of results as large as a few units, rounded once or twice to the dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def test_torch_has_samples_of_every_function():
    assert OPS.keys() == FUNCTIONS.keys()


def results(function, sample, dtype=None):
    """The value, and the gradients by every input that needs one of a fixed weighting of the value's elements."""

    def convert(value):
        if isinstance(value, torch.Tensor):
            value = value.detach().to(dtype if dtype and value.is_floating_point() else value.dtype)
            return value.requires_grad_(next(needs))
        return dtype if dtype and isinstance(value, torch.dtype) and value in WIDE else value

    given = [sample.input, *sample.args, *sample.kwargs.values()]
    needs = iter([value.requires_grad for value in given if isinstance(value, torch.Tensor)])
    converted = [convert(value) for value in given]
    count = 1 + len(sample.args)
    value = function(*converted[:count], **dict(zip(sample.kwargs, converted[count:], strict=True)))
    leaves = [tensor for tensor in converted if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
    upstream = torch.linspace(0.5, 2.0, max(value.numel(), 1)).to(value.dtype)[: value.numel()].view(value.shape)
    return value.detach(), torch.autograd.grad(value, leaves, upstream)


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples(name, dtype):
    op, function = OPS[name], FUNCTIONS[name]
    theirs = getattr(torch.nn.functional, function.__name__)
    torch.manual_seed(0)
    count = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        value, grads = results(function, sample)
        expected, expected_grads = results(theirs, sample, WIDE.get(dtype))
        assert value.dtype == theirs(sample.input, *sample.args, **sample.kwargs).dtype, sample
        for found, right in zip((value, *grads), (expected, *expected_grads), strict=True):
            limit = TOLERANCE[found.dtype] * max(1.0, float(right.abs().nan_to_num(posinf=0.0).max())
                                                 if right.numel() else 1.0)
            torch.testing.assert_close(found.double(), right.double(), rtol=0.0, atol=limit, equal_nan=True)
        for found, tensor in zip(grads, [sample.input], strict=False):
            assert found.dtype == tensor.dtype
        count += 1
    assert count >= 5
