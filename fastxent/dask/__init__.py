"""fastxent on Dask arrays, chunked along any axes, that of the classes too: lazy, for arrays of any size and clusters.

A block of positions with all its classes is one call of the engine; ranges of classes are summed up apart, merged in a
tree and finished; means are one ratio of sums. Kernels use one thread, for a task is what Dask runs side by side.
Chunks and dtypes of results are known before anything is computed, and the logits' chunks are never changed.
"""

from .activations import log_softmax, logsumexp, softmax
from .losses import cross_entropy, cross_entropy_and_grad
from .statistics import token_statistics

__all__ = ["cross_entropy", "cross_entropy_and_grad", "log_softmax", "logsumexp", "softmax", "token_statistics"]
