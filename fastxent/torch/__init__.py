"""fastxent for PyTorch on the CPU: the losses of ``torch.nn.functional``, with autograd, where they were.

Changing one import is the whole migration: ``from fastxent.torch import cross_entropy``, or `patch` around code that
cannot be changed.
"""

from ._patch import patch
from .activations import log_softmax, softmax
from .functional import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy, nll_loss
from .modules import CrossEntropyLoss, LogSoftmax, NLLLoss

__all__ = [
    "CrossEntropyLoss",
    "LogSoftmax",
    "NLLLoss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear_cross_entropy",
    "log_softmax",
    "nll_loss",
    "patch",
    "softmax",
]
