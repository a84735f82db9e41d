"""The integer codes that Python, both backends and the C interface agree on.

They are owned here; ``src/fastxent.h`` has the same numbers, and a test compares the two through ``_native.codes()``.
Plain integers instead of an ``IntEnum``: they are looked up on the way of every call.
"""

from __future__ import annotations

OP_LOSS = 0  # cross-entropy of logits
OP_LOSS_GRAD = 1  # the same and its gradient
OP_GRAD = 2  # the gradient alone, perhaps from saved statistics
OP_LOSS_SOFTMAX = 3
OP_SOFTMAX = 4
OP_LOG_SOFTMAX = 5
OP_LOGSUMEXP = 6
OP_NLL = 7  # the loss of log-probabilities
OP_NLL_GRAD = 8
OP_PROBS = 9  # the loss of probabilities
OP_PROBS_GRAD = 10
OP_REDUCE = 11  # a masked reduction of given losses
OP_SOFTMAX_GRAD = 12
OP_LOG_SOFTMAX_GRAD = 13
OP_STATISTICS = 14  # of each position: log-probability, rank, entropy ...
OP_PARTIALS = 15  # the same of a range of the classes, to be merged
OP_TOP_K = 16
OP_DIVERGENCE = 30  # from here on: calls of an ElementPlan
OP_BINARY_PROBS = 31
OP_BINARY_LOGITS = 32
OP_SQUARED = 33
OP_ABSOLUTE = 34
OP_HUBER = 35
OP_SMOOTH_L1 = 36
OP_SIGMOID = 37
OP_LOG_SIGMOID = 38

REDUCTION_NONE = 0
REDUCTION_SUM = 1
REDUCTION_MEAN = 2
REDUCTION_SEQUENCE_MEAN = 3
REDUCTION_BATCH_MEAN = 4

REDUCTIONS = {
    "none": REDUCTION_NONE,
    "sum": REDUCTION_SUM,
    "mean": REDUCTION_MEAN,
    "sequence_mean": REDUCTION_SEQUENCE_MEAN,
    "batch_mean": REDUCTION_BATCH_MEAN,
}

TILE_SUMS = 0  # of a tile of logits: into its rows' sums
TILE_SCORES = 1  # ... and statistics
TILE_GRADIENT = 2  # a tile's logits written over by their gradient

COEFFICIENTS_NONE = 0
COEFFICIENTS_ONE = 1
COEFFICIENTS_CLASS_WEIGHT = 2
