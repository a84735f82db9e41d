"""Cross-entropy and its kin, with gradients, as fast as memory allows: a CPU loss engine for NumPy and beyond."""

from .activations import log_softmax, log_softmax_grad, logsumexp, one_hot, softmax, softmax_grad
from .evaluation import Evaluator
from .losses import cross_entropy, cross_entropy_and_grad, cross_entropy_and_softmax, cross_entropy_grad
from .nll import cross_entropy_from_probs, cross_entropy_from_probs_and_grad, nll_loss, nll_loss_and_grad
from .runtime import get_backend, get_num_threads, set_backend, set_num_threads, show_config
from .sequences import lengths_to_mask, sequence_reduce
from .statistics import finish_partials, merge_partials, partials, token_statistics, top_k_log_probs

__version__ = "0.1.0"

__all__ = [
    "Evaluator",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_and_softmax",
    "cross_entropy_from_probs",
    "cross_entropy_from_probs_and_grad",
    "cross_entropy_grad",
    "finish_partials",
    "get_backend",
    "get_num_threads",
    "lengths_to_mask",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "merge_partials",
    "nll_loss",
    "nll_loss_and_grad",
    "one_hot",
    "partials",
    "sequence_reduce",
    "set_backend",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_grad",
    "token_statistics",
    "top_k_log_probs",
]
