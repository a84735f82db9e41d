"""fastxent for JAX on the CPU: losses that ``jit``, ``grad``, ``vmap`` and the rest see through.

``from fastxent.jax import cross_entropy`` in place of an expression with ``optax``: one call of the compiled engine,
through XLA's foreign function interface, gives the loss and its gradient. The class axis is the last.
"""

from .activations import log_softmax, logsumexp, softmax
from .functional import cross_entropy, linear_cross_entropy, nll_loss

__all__ = ["cross_entropy", "linear_cross_entropy", "log_softmax", "logsumexp", "nll_loss", "softmax"]
