"""How fastxent.jax reaches the engine: XLA's C interface, its version, and the way by callback."""

import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import fastxent  # noqa: E402
import fastxent.jax as ours  # noqa: E402
from fastxent import _options  # noqa: E402
from fastxent.jax import _handler  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# Our structures and XLA's: field by field.
LAYOUT = {
    ("FxXlaExtension", "XLA_FFI_Extension_Base"): "size=struct_size type next",
    ("FxXlaVersion", "XLA_FFI_Api_Version"): "size=struct_size extension=extension_start major=major_version "
    "minor=minor_version",
    ("FxXlaMetadata", "XLA_FFI_Metadata"): "size=struct_size version=api_version traits",
    ("FxXlaMetadataExtension", "XLA_FFI_Metadata_Extension"): "base=extension_base metadata",
    ("FxXlaErrorArguments", "XLA_FFI_Error_Create_Args"): "size=struct_size extension=extension_start message "
    "code=errc",
    ("FxXlaApi", "XLA_FFI_Api"): "size=struct_size extension=extension_start version=api_version "
    "internal=internal_api create_error=XLA_FFI_Error_Create",
    ("FxXlaBuffer", "XLA_FFI_Buffer"): "size=struct_size extension=extension_start dtype data rank dims",
    ("FxXlaArray", "XLA_FFI_Array"): "dtype count=size data",
    ("FxXlaString", "XLA_FFI_ByteSpan"): "text=ptr length=len",
    ("FxXlaList", "XLA_FFI_Args"): "size=struct_size extension=extension_start count=size types items=args",
    ("FxXlaList", "XLA_FFI_Rets"): "size=struct_size extension=extension_start count=size types items=rets",
    ("FxXlaAttributes", "XLA_FFI_Attrs"): "size=struct_size extension=extension_start count=size types names "
    "items=attrs",
    ("FxXlaFrame", "XLA_FFI_CallFrame"): "size=struct_size extension=extension_start api context=ctx stage "
    "arguments=args results=rets attributes=attrs",
}
NUMBERS = {
    "FX_XLA_METADATA": "XLA_FFI_Extension_Metadata", "FX_XLA_BUFFER": "XLA_FFI_ArgType_BUFFER",
    "FX_XLA_ARRAY": "XLA_FFI_AttrType_ARRAY", "FX_XLA_EXECUTE": "XLA_FFI_ExecutionStage_EXECUTE",
    "FX_XLA_INVALID_ARGUMENT": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "FX_XLA_RESOURCE_EXHAUSTED": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "FX_XLA_OUT_OF_RANGE": "XLA_FFI_Error_Code_OUT_OF_RANGE",
    "FX_XLA_MAJOR": "XLA_FFI_API_MAJOR",
    **{f"FX_XLA_{name}": f"XLA_FFI_DataType_{name}"
       for name in ("PRED", "S8", "S16", "S32", "S64", "U8", "U16", "U32", "U64", "F16", "F32", "F64", "BF16")},
}


def test_declarations_are_those_of_jaxlib(tmp_path):
    """The compiler compares our declaration of the interface with the headers that jaxlib brings along."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    lines = ['#include "xla_ffi.h"', '#include "xla/ffi/api/c_api.h"']
    lines += ["#if XLA_FFI_API_MINOR >= 4", "typedef XLA_FFI_InternalExtension XLA_FFI_Extension_Base;", "#endif"]
    for (our, their), fields in LAYOUT.items():
        for field in fields.split():
            one, _, other = field.partition("=")
            lines.append(f'_Static_assert(offsetof({our}, {one}) == offsetof({their}, {other or one}), "{our}.{one}");')
    lines += [f'_Static_assert((int){our} == (int){their}, "{our}");' for our, their in NUMBERS.items()]
    lines.append('_Static_assert(FX_XLA_MINOR <= XLA_FFI_API_MINOR, "version");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    command = ["gcc", "-std=c11", "-fsyntax-only", f"-I{ROOT / 'src'}", f"-I{jax.ffi.include_dir()}", source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def test_codes():
    for name, code in _handler.OPERATIONS.items():
        form = name.upper().replace("CROSS_ENTROPY", "LOSS").replace("NLL_LOSS", "NLL").replace("_AND", "")
        assert code == getattr(_options, f"OP_{form}"), name
    assert _handler.REDUCTIONS == _options.REDUCTIONS
    text = (ROOT / "src" / "xla_call.c").read_text()
    listed = re.findall(r"REDUCTION_(\w+)", re.search(r"enum \{ REDUCTION_NONE[^}]*\}", text)[0])
    assert [name.lower() for name in listed] == list(_handler.REDUCTIONS)


@pytest.fixture
def fresh():
    """Nothing compiled, and the handler not yet offered; afterwards again."""
    before = _handler._registered
    jax.clear_caches()
    _handler._registered = None
    yield
    jax.clear_caches()
    _handler._registered = before


def answers():
    """Something of everything, as arrays."""
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((3, 4, 5)).astype(np.float32), rng.integers(0, 5, (3, 4))
    q, lengths = rng.dirichlet(np.ones(5), (3, 4)).astype(np.float32), np.array([4, 0, 2])
    w = np.float32([1, 2, 0, 1, 3])
    found = [
        ours.cross_entropy(x, t, lengths=lengths, class_weight=w, shift=1, z_loss=0.1, softcap=5.0),
        *jax.jit(jax.value_and_grad(ours.cross_entropy))(x, q),
        jax.vmap(jax.grad(ours.cross_entropy), (None, 0))(x[0], t),
        jax.vmap(jax.grad(lambda x, t, w: ours.nll_loss(x, t, class_weight=w)))(x, t, np.stack([w, w + 1, w + 2])),
        ours.cross_entropy(x, t, reduction="none", mask=t > 1),
        ours.log_softmax(x), ours.softmax(x, 0), jax.vmap(ours.logsumexp)(x),
        *jax.value_and_grad(ours.linear_cross_entropy)(x[..., :4], x[0, :, :4], t % 4, max_bytes=40, lengths=lengths),
    ]
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=r"target at position \(1, 1\) is 9, outside"):
        t[1, 1] = 9
        jax.block_until_ready(ours.cross_entropy(x, t))
    return found


def test_refused(fresh, monkeypatch):
    """One warning, and the same answers by callback."""
    if fastxent.get_backend() != "native":
        pytest.skip("needs gcc")
    right = answers()
    jax.clear_caches()
    _handler._registered = None

    def refuse(*_, **__):
        raise RuntimeError("too old")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    with pytest.warns(RuntimeWarning, match=r"does not take fastxent's handler \(too old\)"):
        ours.logsumexp(np.ones(3, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = answers()
    assert not _handler.registered()
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-6)


def test_numba_engine(fresh):
    pytest.importorskip("numba")
    x, t = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32), np.arange(6) % 5
    backend = fastxent.get_backend()
    fastxent.set_backend("numba")
    try:
        assert not _handler.registered()
        found = jax.jit(jax.value_and_grad(ours.cross_entropy))(x, t)
    finally:
        fastxent.set_backend(backend)
    for one, other in zip(found, fastxent.cross_entropy_and_grad(x, t), strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-6)


def test_calls_go_to_the_handler():
    if fastxent.get_backend() != "native":
        pytest.skip("needs gcc")
    assert _handler.registered()
    text = jax.jit(ours.cross_entropy).lower(jnp.zeros((2, 3)), jnp.zeros(2, int)).as_text()
    assert f"@{_handler.TARGET}(" in text and "callback" not in text
