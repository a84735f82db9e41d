"""Tensors seen as arrays, and whether a call may take the short way past torch's dispatcher.

An array here shares the memory of its tensor: torch and NumPy agree about strides, and bfloat16, which NumPy has not,
goes through an integer view to the bfloat16 of ml_dtypes. Results as large as the logits lie in memory that NumPy
allocated, because it asks the kernel for huge pages: filling 200 MB of fresh memory in pages of 4 KB, as torch's own
allocator hands it out, takes longer than computing what is written there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastxent

Array = NDArray[Any]

_bfloat16, _float32, _int64 = torch.bfloat16, torch.float32, torch.int64
FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
HALVES = frozenset((torch.bfloat16, torch.float16))
_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))

# Whether anything stands between a Python call and the CPU kernels: transforms of torch.func, and modes that record or
# fake operations. The names are not public; without them every call goes through the dispatcher, which is always right.
_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_batched = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", lambda tensor: True)
_is_compiling = torch.compiler.is_compiling
_forward_mode = torch.autograd.forward_ad
_ml_bfloat16: Any = None  # the dtype of ml_dtypes, when it has been needed


def undisturbed(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors, in ordinary eager code: then arrays can be made of them at once."""
    if _is_compiling() or _transformed() or _modes() or _forward_mode._current_level >= 0:
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator takes longer than the rest of this function
        if type(tensor) not in _PLAIN_TYPES:
            return False
    return True


def checked_indices(targets: Tensor, classes: int, rows: Any, positions: Any) -> Tensor:
    """Flat targets of the positions `rows` (None: all), if each of them is a class."""
    outside = (targets < 0) | (targets >= classes)
    if outside.any():
        at = outside.nonzero()[0, 0]
        where = tuple(int(i) for i in np.unravel_index(int(at if rows is None else rows[at]), tuple(positions)))
        raise IndexError(f"the target at position {where} is {int(targets[at])}, outside [0, {classes})")
    return targets


def plain(input: Any, target: Any) -> Any:
    """The dtype of ordinary float logits of two or more axes with class indices, as most are; None: they are not."""
    if not (type(input) is type(target) is Tensor and undisturbed() and target.dtype is _int64):
        return None
    dtype = input.dtype
    if not (dtype is _float32 or (dtype is _bfloat16 and not torch.is_autocast_enabled("cpu"))):
        return None
    return dtype if input.ndim > 1 and input.is_cpu and target.is_cpu else None


def followed(upstream: Tensor) -> bool:
    """Whether torch has to see what a backward pass does with the gradient that comes in."""
    # torch.autograd.grad(..., is_grads_batched=True) does not show as a transform: only the tensor knows.
    return torch.is_grad_enabled() or _batched(upstream) or not undisturbed(upstream)


def check_tensor(tensor: Any, name: str, function: str) -> None:
    """Refuse what is no floating-point tensor on the CPU."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}(): {name} must be a Tensor, not {type(tensor).__name__}")
    if not tensor.is_cpu:
        check_device(tensor, name, function)
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{function}(): {name} has dtype {tensor.dtype}; expected torch.float16, bfloat16, float32 or float64"
        )


def check_device(tensor: Tensor, name: str, function: str) -> None:
    """Refuse a tensor that is not in the CPU's memory, and say what to do."""
    if tensor.device.type != "cpu":
        raise TypeError(
            f"{function}(): {name} is on {tensor.device}, and fastxent.torch computes on the CPU; use {name}.cpu(), or "
            f"torch.nn.functional.{function} there (fastxent.torch.patch() chooses by device)"
        )


def array(tensor: Tensor) -> Array:
    """The memory of a tensor on the CPU as an array; its gradient is not followed."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():  # a view that torch negates when it is read
        tensor = tensor.resolve_neg()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_ml_bfloat16 or bfloat16())
    result: Array = tensor.numpy()
    return result


def tensor_of(array: Array, like: Tensor) -> Tensor:
    """A tensor in the memory of a fresh array of the dtype of `like`: what `array` is for the other direction."""
    if like.dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    result: Tensor = torch.from_numpy(array)
    return result


def optional_array(value: Any, name: str, function: str) -> Any:
    """What describes a target, if it is given: an array of a tensor, and anything else as it is."""
    if isinstance(value, Tensor):
        check_device(value, name, function)
        return array(value)
    return value


def bfloat16() -> Any:
    """NumPy's dtype for bfloat16."""
    global _ml_bfloat16
    if _ml_bfloat16 is None:
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError("bfloat16 tensors need ml_dtypes: pip install ml_dtypes", name="ml_dtypes") from error
        _ml_bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return _ml_bfloat16


def threads() -> int | None:
    """Torch's number of threads where it is the smaller one: torch.set_num_threads counts here too."""
    number: int = torch.get_num_threads()
    return number if number < fastxent.get_num_threads() else None


def empty_like(tensor: Tensor) -> Tensor:
    """A tensor to be filled, with the shape, dtype and strides that ``torch.empty_like`` gives it."""
    strides = torch.empty_like(tensor, device="meta").stride()
    memory = torch.from_numpy(np.empty(tensor.nbytes or tensor.itemsize, np.uint8)).view(tensor.dtype)
    return memory.as_strided(tensor.shape, strides)
