"""Cross-entropy and its kin, with gradients, as fast as memory allows: a CPU loss engine for NumPy and beyond."""

from .activations import log_softmax, log_softmax_grad, logsumexp, one_hot, softmax, softmax_grad
from .losses import cross_entropy, cross_entropy_and_grad, cross_entropy_and_softmax, cross_entropy_grad
from .nll import cross_entropy_from_probs, cross_entropy_from_probs_and_grad, nll_loss, nll_loss_and_grad
from .runtime import get_backend, get_num_threads, set_backend, set_num_threads, show_config
from .sequences import lengths_to_mask, sequence_reduce

__version__ = "0.1.0"

__all__ = [
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_and_softmax",
    "cross_entropy_from_probs",
    "cross_entropy_from_probs_and_grad",
    "cross_entropy_grad",
    "get_backend",
    "get_num_threads",
    "lengths_to_mask",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "nll_loss",
    "nll_loss_and_grad",
    "one_hot",
    "sequence_reduce",
    "set_backend",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_grad",
]
