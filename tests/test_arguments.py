"""Every argument that is refused, and that it is named; the tables that code agrees on. (What is taken: test_intake.)

The rows of `ERRORS` are calls: what to change in a good call, the exception, and what its message must say.
"""

import inspect
import re

import cases
import ml_dtypes
import numpy as np
import pytest

import fastxent
from fastxent import _arguments, _options

B, T, C = 3, 4, 5
RANDOM = cases.rng(4711)
LOGITS = RANDOM.normal(size=(B, T, C)).astype("f4")
TARGETS = RANDOM.integers(0, C, (B, T))

CROSS_ENTROPY = (
    fastxent.cross_entropy,
    fastxent.cross_entropy_and_grad,
    fastxent.cross_entropy_grad,
    fastxent.cross_entropy_and_softmax,
)
OF_PROBABILITIES = (
    fastxent.nll_loss,
    fastxent.nll_loss_and_grad,
    fastxent.cross_entropy_from_probs,
    fastxent.cross_entropy_from_probs_and_grad,
)
LOSSES = CROSS_ENTROPY + OF_PROBABILITIES
ACTIVATIONS = (fastxent.softmax, fastxent.log_softmax, fastxent.logsumexp)


def by_name(function):
    return function.__name__


def accepts(function, arguments):
    return set(arguments) <= set(inspect.signature(function).parameters)


def call(function, **changes):
    """`function` on good arrays, but for the `changes`; "scores" stands for its first argument."""
    scores, targets = changes.pop("scores", LOGITS), changes.pop("targets", TARGETS)
    return function(scores, targets, **changes)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def torch_tensor(**options):
    torch = pytest.importorskip("torch")
    options = {name: getattr(torch, value) if name == "dtype" else value for name, value in options.items()}
    return torch.zeros(B, T, C, **options)


class OnDevice:
    """What a tensor on a GPU looks like from outside."""

    device = "cuda:1"
    dtype = np.dtype("f4")

    def __dlpack__(self, **_):
        raise AssertionError("not to be asked")

    def __dlpack_device__(self):
        return (2, 1)


# --- what is refused

FOREIGN = (
    # name, value, what the message must say beside the argument's name
    ("objects", np.full((B, T, C), None), "object"),
    ("strings", np.full((B, T, C), "a"), "<U1"),
    ("complex", np.zeros((B, T, C), complex), "complex128"),
    ("booleans", np.zeros((B, T, C), bool), "bool"),
    ("dates", np.zeros((B, T, C), "M8[s]"), "datetime64"),
    ("records", np.zeros((B, T, C), "f4,f4"), "f4"),
    ("float8", np.zeros((B, T, C), ml_dtypes.float8_e4m3fn), "float8"),
    ("long double", np.zeros((B, T, C), np.longdouble), "longdouble|float128|float96"),
    ("a dictionary", {}, "object"),
    ("nothing", None, "object"),
    ("a GPU tensor", OnDevice(), r"cuda:1.*\.cpu\(\)"),
    ("masked elements", np.ma.masked_less(LOGITS, 0), "mask="),
)


@pytest.mark.parametrize("function", LOSSES, ids=by_name)
@pytest.mark.parametrize(("value", "says"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_scores_of_a_foreign_type(function, value, says):
    name = next(iter(inspect.signature(function).parameters))
    with pytest.raises(TypeError, match=f"^{name}.*({says})"):
        call(function, scores=value)


@pytest.mark.parametrize("function", ACTIVATIONS, ids=by_name)
@pytest.mark.parametrize(("value", "says"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_activations_of_a_foreign_type(function, value, says):
    with pytest.raises(TypeError, match=f"^x.*({says})"):
        function(value)


@pytest.mark.parametrize(("value", "says"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_targets_of_a_foreign_type(value, says):
    for function in LOSSES:
        with pytest.raises(TypeError, match=f"^targets.*({says})"):
            call(function, targets=value)


TORCH = (
    ("requires_grad", {"requires_grad": True}, r"logits requires a gradient.*fastxent\.torch.*detach\(\)"),
    ("bfloat16", {"dtype": "bfloat16"}, r"logits is a bfloat16 tensor.*fastxent\.torch"),
    ("meta", {"device": "meta"}, "logits"),
    ("complex", {"dtype": "complex64"}, "logits has dtype complex64"),
    ("bool", {"dtype": "bool"}, "logits has dtype bool"),
)


@pytest.mark.parametrize(("options", "says"), [row[1:] for row in TORCH], ids=[row[0] for row in TORCH])
def test_torch_tensors_that_cannot_be_read(options, says):
    with pytest.raises(TypeError, match=f"^{says}"):
        fastxent.cross_entropy(torch_tensor(**options), TARGETS)


ERRORS = (
    # shapes
    ({"scores": np.zeros((B, T))}, ValueError, r"^targets.*\(3, 4\).*\(3,\)|^targets.*\(3,\)"),
    ({"scores": np.float32(1)}, ValueError, "axis.*out of bounds"),
    ({"scores": [[1.0], [1.0, 2.0]]}, ValueError, "^(logits|probs|log_probs)"),
    ({"scores": np.zeros((B, T, 0))}, ValueError, "no classes"),
    ({"targets": TARGETS[0]}, ValueError, r"^targets.*\(3, 4\); got int64 of shape \(4,\)"),
    ({"targets": TARGETS.T}, ValueError, r"^targets.*\(3, 4\); got int64 of shape \(4, 3\)"),
    ({"targets": 2}, ValueError, r"^targets.*\(3, 4\); got int64 of shape \(\)"),
    ({"targets": np.zeros((B, T, C), int)}, ValueError, "one_hot"),
    ({"targets": TARGETS.astype(float)}, ValueError, r"^targets.*class probabilities.*\(3, 4, 5\)"),
    ({"targets": np.zeros((B, T, C + 1))}, ValueError, r"^targets.*\(3, 4, 5\).*\(3, 4, 6\)"),
    ({"targets": TARGETS.astype(bool)}, TypeError, "^targets.*bool"),
    ({"targets": np.zeros((B, T, C), np.longdouble)}, TypeError, "^targets"),
    ({"axis": 3}, np.exceptions.AxisError, "axis"),
    ({"axis": -4}, ValueError, "axis"),
    ({"axis": 1.0}, TypeError, "^axis"),
    ({"axis": None}, TypeError, "^axis"),
    ({"axis": True}, TypeError, "^axis"),
    ({"axis": (1, 2)}, TypeError, "^axis"),
    ({"class_weight": np.ones(C + 1)}, ValueError, r"^class_weight.*\(5,\).*\(6,\)"),
    ({"class_weight": 1.0}, ValueError, r"^class_weight.*\(5,\)"),
    ({"class_weight": np.ones(C, complex)}, TypeError, "^class_weight.*complex"),
    ({"class_weight": ["a"] * C}, TypeError, "^class_weight"),
    ({"sample_weight": np.ones((T, B))}, ValueError, r"^sample_weight.*\(3, 4\).*\(4, 3\)"),
    ({"sample_weight": np.ones((1, B, T))}, ValueError, "^sample_weight"),
    ({"sample_weight": np.ones((B, T), complex)}, TypeError, "^sample_weight.*complex"),
    ({"sample_weight": "heavy"}, TypeError, "^sample_weight"),
    ({"mask": np.ones((B, T))}, TypeError, "^mask.*float64.*sample_weight"),
    ({"mask": np.ones((B, T), ml_dtypes.bfloat16)}, TypeError, "^mask.*bfloat16.*sample_weight"),
    ({"mask": np.ones((B, T), complex)}, TypeError, "^mask.*complex"),
    ({"mask": np.ones((T, B), bool)}, ValueError, r"^mask.*\(3, 4\).*\(4, 3\)"),
    ({"mask": np.ones((1, B, T), bool)}, ValueError, "^mask"),
    ({"lengths": [T] * (B + 1)}, ValueError, r"^lengths.*\(3,\).*\(4,\)"),
    ({"lengths": T}, ValueError, r"^lengths.*\(3,\).*\(\)"),
    ({"lengths": [[T]] * B}, ValueError, r"^lengths.*\(3,\)"),
    ({"lengths": [T, T, T + 1]}, ValueError, "^lengths.*from 0 to 4, got 5"),
    ({"lengths": [T, -1, T]}, ValueError, "^lengths.*from 0 to 4, got -1"),
    ({"lengths": np.array([1, 2**64 - 1, 1], "u8")}, ValueError, "^lengths.*18446744073709551615"),
    ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "^lengths.*float64"),
    ({"lengths": [True, False, True]}, TypeError, "^lengths.*bool"),
    ({"lengths": [2], "scores": LOGITS[0], "targets": TARGETS[0]}, ValueError, "^lengths.*add a batch axis"),
    ({"shift": 1, "scores": LOGITS[0], "targets": TARGETS[0]}, ValueError, "^shift.*add a batch axis"),
    ({"shift": 1, "scores": LOGITS[0, 0], "targets": TARGETS[0, 0]}, ValueError, "^shift.*add a batch axis"),
    # numbers
    ({"shift": -1}, ValueError, "^shift.*-1"),
    ({"shift": 1.0}, TypeError, "^shift"),
    ({"shift": True}, TypeError, "^shift"),
    ({"shift": None}, TypeError, "^shift"),
    ({"ignore_index": 1.0}, TypeError, "^ignore_index"),
    ({"ignore_index": False}, TypeError, "^ignore_index"),
    ({"ignore_index": "pad"}, TypeError, "^ignore_index"),
    ({"ignore_index": [1, 2]}, TypeError, "^ignore_index"),
    ({"label_smoothing": -0.1}, ValueError, "^label_smoothing.*-0.1"),
    ({"label_smoothing": 1.1}, ValueError, "^label_smoothing.*1.1"),
    ({"label_smoothing": float("nan")}, ValueError, "^label_smoothing.*nan"),
    ({"label_smoothing": "0.1"}, TypeError, "^label_smoothing"),
    ({"label_smoothing": None}, TypeError, "^label_smoothing"),
    ({"label_smoothing": True}, TypeError, "^label_smoothing"),
    ({"label_smoothing": np.zeros(2)}, TypeError, "^label_smoothing"),
    ({"label_smoothing": 0.1j}, TypeError, "^label_smoothing"),
    ({"z_loss": -1e-4}, ValueError, "^z_loss"),
    ({"z_loss": float("inf")}, ValueError, "^z_loss.*inf"),
    ({"z_loss": float("nan")}, ValueError, "^z_loss.*nan"),
    ({"z_loss": None}, TypeError, "^z_loss"),
    ({"logit_scale": 0.0}, ValueError, "^logit_scale"),
    ({"logit_scale": -1}, ValueError, "^logit_scale"),
    ({"logit_scale": float("inf")}, ValueError, "^logit_scale.*inf"),
    ({"logit_scale": float("nan")}, ValueError, "^logit_scale.*nan"),
    ({"logit_scale": 10**400}, ValueError, "^logit_scale"),
    ({"logit_scale": None}, TypeError, "^logit_scale"),
    ({"softcap": 0.0}, ValueError, "^softcap"),
    ({"softcap": -30}, ValueError, "^softcap"),
    ({"softcap": float("inf")}, ValueError, "^softcap.*inf"),
    ({"softcap": float("nan")}, ValueError, "^softcap.*nan"),
    ({"softcap": "30"}, TypeError, "^softcap"),
    ({"num_threads": 0}, ValueError, "^num_threads.*0"),
    ({"num_threads": -1}, ValueError, "^num_threads"),
    ({"num_threads": 1.0}, TypeError, "^num_threads"),
    ({"num_threads": True}, TypeError, "^num_threads"),
    ({"num_threads": "all"}, TypeError, "^num_threads"),
    # reductions
    ({"reduction": "average"}, ValueError, "^reduction.*none.*sum.*mean.*sequence_mean.*batch_mean.*average"),
    ({"reduction": None}, ValueError, "^reduction.*None"),
    ({"reduction": ["mean"]}, ValueError, "^reduction.*mean"),
    ({"reduction": 2}, ValueError, "^reduction.*2"),
    *(
        ({"reduction": reduction, "normalizer": 2.0}, ValueError, "^normalizer")
        for reduction in ("none", "sequence_mean", "batch_mean")
    ),
    ({"normalizer": "all"}, TypeError, "^normalizer"),
    ({"normalizer": float("nan")}, ValueError, "^normalizer.*nan"),
    ({"normalizer": float("inf")}, ValueError, "^normalizer.*inf"),
    ({"normalizer": np.ones(3)}, TypeError, "^normalizer"),
    ({"empty_value": None}, TypeError, "^empty_value"),
    ({"empty_value": "nan"}, TypeError, "^empty_value"),
    # upstream and saved
    ({"upstream": np.ones((B, T))}, ValueError, "^upstream.*none"),
    ({"upstream": np.ones(1)}, ValueError, "^upstream"),
    ({"upstream": np.ones((B, 1)), "reduction": "none"}, ValueError, r"^upstream.*\(3, 4\).*\(3, 1\)"),
    ({"upstream": "one"}, TypeError, "^upstream"),
    ({"upstream": 1j}, TypeError, "^upstream.*complex"),
    ({"saved": np.zeros((B, T, 3), "f4")}, ValueError, r"^saved.*\(3, 4, 2\).*\(3, 4, 3\)"),
    ({"saved": np.zeros((B, T, 2))}, ValueError, "^saved.*float32.*float64"),
    ({"saved": np.zeros((B, T, 2), int)}, ValueError, "^saved"),
    # outputs
    ({"out": np.empty((B, T), "f4")}, ValueError, "^out.*none"),
    ({"out": np.empty((B, T)), "reduction": "none"}, ValueError, "^out must be float32.*float64"),
    ({"out": np.empty((B, T), ">f4"), "reduction": "none"}, ValueError, "^out must be float32.*byte-swapped"),
    ({"out": np.empty((T, B), "f4"), "reduction": "none"}, ValueError, r"^out.*\(3, 4\).*\(4, 3\)"),
    ({"out": [0.0], "reduction": "none"}, TypeError, "^out.*list"),
    ({"out": np.ma.zeros((B, T), "f4"), "reduction": "none"}, TypeError, "^out.*MaskedArray"),
    ({"out": read_only(np.zeros((B, T), "f4")), "reduction": "none"}, ValueError, "^out is read-only"),
    (
        {"out": np.lib.stride_tricks.as_strided(np.zeros(T, "f4"), (B, T), (0, 4)), "reduction": "none"},
        ValueError,
        "^out overlaps itself",
    ),
    ({"out_grad": np.empty((B, T, C))}, ValueError, "^out_grad must be float32.*float64"),
    ({"out_grad": np.empty((B, T), "f4")}, ValueError, r"^out_grad.*\(3, 4, 5\)"),
    ({"out_grad": read_only(LOGITS)}, ValueError, "^out_grad is read-only"),
    ({"out_grad": LOGITS.tolist()}, TypeError, "^out_grad.*list"),
    ({"out_softmax": np.empty((B, T, C))}, ValueError, "^out_softmax must be float32"),
    ({"out_softmax": read_only(LOGITS)}, ValueError, "^out_softmax is read-only"),
)


def identity(changes):
    return ",".join(f"{name}={type(value).__name__}" for name, value in changes.items())


@pytest.mark.parametrize(("changes", "exception", "says"), ERRORS, ids=[identity(row[0]) for row in ERRORS])
def test_errors(changes, exception, says):
    names = [name for name in changes if name not in ("scores", "targets")]
    functions = [function for function in LOSSES if accepts(function, names)]
    assert functions
    for function in functions:
        with pytest.raises(exception, match=says):
            call(function, **changes)


ACTIVATION_ERRORS = (
    (lambda: fastxent.softmax(1.0), ValueError, "axis"),
    (lambda: fastxent.logsumexp(LOGITS, axis=3), np.exceptions.AxisError, "axis"),
    (lambda: fastxent.log_softmax(LOGITS, axis="last"), TypeError, "^axis"),
    (lambda: fastxent.softmax(LOGITS, num_threads=0), ValueError, "^num_threads"),
    (lambda: fastxent.softmax(LOGITS, out=np.empty((B, T, C))), ValueError, "^out must be float32"),
    (lambda: fastxent.softmax(LOGITS, out=read_only(LOGITS)), ValueError, "^out is read-only"),
    (lambda: fastxent.logsumexp(LOGITS, out=np.empty((B, T, 1), "f4")), ValueError, r"^out.*\(3, 4\)"),
    (lambda: fastxent.logsumexp(LOGITS, keepdims=True, out=np.empty((B, T), "f4")), ValueError, r"^out.*\(3, 4, 1\)"),
    (lambda: fastxent.softmax_grad(LOGITS, LOGITS[0]), ValueError, r"^upstream.*\(3, 4, 5\).*\(4, 5\)"),
    (lambda: fastxent.softmax_grad(LOGITS, LOGITS.astype(complex)), TypeError, "^upstream.*complex"),
    (lambda: fastxent.log_softmax_grad(LOGITS.astype(str), LOGITS), TypeError, "^y"),
    (lambda: fastxent.log_softmax_grad(LOGITS, LOGITS, out=LOGITS.tolist()), TypeError, "^out"),
    (lambda: fastxent.one_hot([0.0], 2), TypeError, "^targets.*float64"),
    (lambda: fastxent.one_hot([True], 2), TypeError, "^targets.*bool"),
    (lambda: fastxent.one_hot([0], -1), ValueError, "^num_classes.*-1"),
    (lambda: fastxent.one_hot([0], 2.0), TypeError, "^num_classes"),
    (lambda: fastxent.one_hot([0], 2, dtype="U1"), TypeError, "^dtype"),
    (lambda: fastxent.one_hot([[0, 1], [2, 0]], 2), IndexError, r"\(1, 0\).* 2"),
    (lambda: fastxent.one_hot([0, -1], 2), IndexError, r"\(1,\).* -1"),
    (lambda: fastxent.lengths_to_mask([1.0]), TypeError, "^lengths"),
    (lambda: fastxent.lengths_to_mask([-1]), ValueError, "^lengths.*-1"),
    (lambda: fastxent.lengths_to_mask(np.uint64([2**63])), ValueError, "^lengths.*from 0 to"),
    (lambda: fastxent.lengths_to_mask([3], 2), ValueError, "^lengths.*from 0 to 2, got 3"),
    (lambda: fastxent.lengths_to_mask([3], 2.0), TypeError, "^max_length"),
    (lambda: fastxent.lengths_to_mask([], -1), ValueError, "^max_length"),
    (lambda: fastxent.sequence_reduce(["a"]), TypeError, "^losses"),
    (lambda: fastxent.sequence_reduce([1.0], lengths=[1]), ValueError, "^lengths.*add a batch axis"),
    (lambda: fastxent.sequence_reduce([1.0], mask=[1.0]), TypeError, "^mask.*sample_weight"),
    (lambda: fastxent.sequence_reduce([1.0], weight=[1.0, 2.0]), ValueError, "^weight"),
    (lambda: fastxent.sequence_reduce([1.0], reduction="all"), ValueError, "^reduction.*batch_mean"),
    (lambda: fastxent.sequence_reduce([1.0], reduction=[]), ValueError, "^reduction"),
    (lambda: fastxent.sequence_reduce([1.0], reduction="none", normalizer=1), ValueError, "^normalizer"),
    (lambda: fastxent.sequence_reduce([1.0], empty_value="x"), TypeError, "^empty_value"),
    (lambda: fastxent.set_num_threads(0), ValueError, "^n must be at least 1, got 0"),
    (lambda: fastxent.set_num_threads(2.0), TypeError, "^n "),
    (lambda: fastxent.set_num_threads(True), TypeError, "^n "),
    (lambda: fastxent.set_backend("cuda"), ValueError, "cuda.*native, numba"),
    (lambda: fastxent.set_backend(None), ValueError, "None.*native, numba"),
    (lambda: fastxent.show_config("json"), ValueError, "^mode.*text.*dict.*json"),
)


@pytest.mark.parametrize("row", ACTIVATION_ERRORS, ids=[str(i) for i in range(len(ACTIVATION_ERRORS))])
def test_errors_of_other_functions(row):
    do, exception, says = row
    with pytest.raises(exception, match=says):
        do()


def test_a_bad_class_index_is_found_where_it_is_read():
    targets = TARGETS.astype("u1")
    targets[1, 2] = 200
    with pytest.raises(IndexError, match=r"^the target at position \(1, 2\) is 200, outside \[0, 5\)$"):
        fastxent.cross_entropy(LOGITS, targets)
    with pytest.raises(IndexError, match=r"position \(1, 1\) \(targets\[1, 2\], shift=1\) is 200, outside"):
        fastxent.cross_entropy(LOGITS, targets, shift=1)
    with pytest.raises(IndexError, match=r"position \(\) is -7, outside"):
        fastxent.cross_entropy(LOGITS[0, 0], np.int64(-7))
    with pytest.raises(IndexError, match=r"position \(0, 1\) is 18446744073709551516, outside"):
        fastxent.cross_entropy(LOGITS, np.where(np.arange(T) == 1, np.uint64(2**64 - 100), np.uint64(0)) + 0 * targets)
    with pytest.raises(IndexError, match=r"position \(2, 1\) is 5"):
        fastxent.cross_entropy(np.moveaxis(LOGITS, -1, 0), np.where(np.arange(12).reshape(B, T) == 9, 5, 0), axis=0)


# --- tables that code agrees on


def test_codes():
    kinds = "(OP|REDUCTION|TILE|COEFFICIENTS)_"
    mine = {name: value for name, value in vars(_options).items() if re.match(kinds, name)}
    theirs = pytest.importorskip("fastxent._native").codes()
    assert {name for name in mine if not name.startswith("REDUCTION")} <= set(theirs)
    assert {name: mine[name] for name in theirs} == theirs
    assert len(set(_options.REDUCTIONS.values())) == 5


def test_plan_fields():
    theirs = tuple(pytest.importorskip("fastxent._native").PLAN_FIELDS)
    assert _arguments.Plan._fields[: len(theirs)] == theirs


def test_defaults_are_the_same_everywhere():
    """One default for one name, and keyword-only where the surface says so."""
    defaults = {}
    for function in LOSSES + ACTIVATIONS:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, (function, name)
                assert repr(defaults.setdefault(name, parameter.default)) == repr(parameter.default), (function, name)
