"""Cross-entropy and its kin, with gradients, as fast as memory allows: a CPU loss engine for NumPy and beyond."""

from .activations import log_softmax, log_softmax_grad, logsumexp, one_hot, softmax, softmax_grad
from .divergence import focal_loss, focal_loss_and_grad, kl_div, kl_div_and_grad
from .elementwise import (
    binary_cross_entropy,
    binary_cross_entropy_and_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_and_grad,
    log_sigmoid,
    sigmoid,
    tanh,
)
from .evaluation import Evaluator
from .linear import linear_cross_entropy, linear_cross_entropy_and_grad, linear_token_statistics
from .losses import cross_entropy, cross_entropy_and_grad, cross_entropy_and_softmax, cross_entropy_grad
from .nll import cross_entropy_from_probs, cross_entropy_from_probs_and_grad, nll_loss, nll_loss_and_grad
from .regression import (
    l1_loss,
    l1_loss_and_grad,
    l2_penalty,
    l2_penalty_and_grad,
    mse_loss,
    mse_loss_and_grad,
)
from .robust import huber_loss, huber_loss_and_grad, smooth_l1_loss, smooth_l1_loss_and_grad
from .runtime import get_backend, get_num_threads, set_backend, set_num_threads, show_config
from .sequences import lengths_to_mask, sequence_reduce
from .statistics import finish_partials, merge_partials, partials, token_statistics, top_k_log_probs

__version__ = "0.1.0"

__all__ = [
    "Evaluator",
    "binary_cross_entropy",
    "binary_cross_entropy_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_and_grad",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_and_softmax",
    "cross_entropy_from_probs",
    "cross_entropy_from_probs_and_grad",
    "cross_entropy_grad",
    "finish_partials",
    "focal_loss",
    "focal_loss_and_grad",
    "get_backend",
    "get_num_threads",
    "huber_loss",
    "huber_loss_and_grad",
    "kl_div",
    "kl_div_and_grad",
    "l1_loss",
    "l1_loss_and_grad",
    "l2_penalty",
    "l2_penalty_and_grad",
    "lengths_to_mask",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "linear_token_statistics",
    "log_sigmoid",
    "log_softmax",
    "log_softmax_grad",
    "logsumexp",
    "merge_partials",
    "mse_loss",
    "mse_loss_and_grad",
    "nll_loss",
    "nll_loss_and_grad",
    "one_hot",
    "partials",
    "sequence_reduce",
    "set_backend",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "smooth_l1_loss",
    "smooth_l1_loss_and_grad",
    "softmax",
    "softmax_grad",
    "tanh",
    "token_statistics",
    "top_k_log_probs",
]
