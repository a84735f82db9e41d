"""The record that the kernels read: where its numbers stand. `numba_engine.py` fills it, ordinary Numba code reads it.

Integers (addresses, counts, flags) and float64 have an array each. After the header stand the shape of the positions,
and then the operands: data, class stride, dtype, swapped, and a stride for each axis of positions, in bytes.
"""

from __future__ import annotations

(
    OPERATION, POSITIONS, CLASSES, ND, PROBS, HAS_IGNORE, IGNORE, LENGTH, SHIFT, LENGTHS, CLASS_WEIGHT, CLASS_WEIGHT_R,
    SEQUENCE_SCALE, FOCAL, SAVED, SAVED_OUT, POSITION_WEIGHT, POSITION_LOSS, TOP_K, PIECE, PIECES, LINES,
    BLOCKS, PARTIAL, FAMILY, TRANSFORM, KIND, UNIFORM_UPSTREAM, DIRECT, WIDTH,
    BLOCKS_OF_A_SUM,
) = range(31)  # fmt: skip
STATISTICS = 32  # the addresses of up to six results
HEADER = 40
SMOOTHING, Z_LOSS, LOGIT_SCALE, SOFTCAP, SCALE, CLASS_WEIGHT_SUM, GAMMA, PARAMETER, Z_SCALE, UNIT = range(10)
NUMBERS = 10

# Operands. DATA is 0 for one that is absent.
X, Y, MASK, WEIGHT, UPSTREAM, LOSSES, OUT, POSITIVE = range(8)
OPERANDS = 8
DATA, CLASS_STRIDE, DTYPE, SWAPPED, STRIDES = range(5)

ROWS, LANES, COLUMNS = range(3)  # families: see blocks.py

# A worker's integers: the run of positions it is at, and the valid ones.
FIRST, COUNT, VALID, CLOSED = range(4)
BASE, STEP = 8, 16  # of each operand
TARGET = 64
MAX_WIDTH = 512  # positions of a run
INDEX = TARGET + MAX_WIDTH
INTEGERS = INDEX + MAX_WIDTH + 8
# A worker's float64.
SAMPLE, SLOPES = 0, MAX_WIDTH
ARGMAX, RANK = 2 * MAX_WIDTH, 3 * MAX_WIDTH
DOUBLES = 4 * MAX_WIDTH

# A worker's memory for values of the compute type, by offset in bytes.
BLOCK = 1024  # classes that a row kernel takes at once
TILE_CLASSES = 256  # and classes of a tile
_BUFFER = 8 * (BLOCK + 256)
FETCHED, BENT, COEFFICIENTS, MADE, SECOND = (i * _BUFFER for i in range(5))
TILE_BYTES = 1 << 16
TILE, TARGET_TILE, SLOPE_TILE = (5 * _BUFFER + i * TILE_BYTES for i in range(3))
LANE_BYTES = 8 * (MAX_WIDTH + 32)
(
    MAX, REST, GAP, DOT, MASS, TOP, SAMPLE_R, UPSTREAM_R, FACTOR, SPREAD, VALUE, LOSS, EQUAL, TOTAL, LOST, DOT_LOST,
    MASS_LOST,
) = (5 * _BUFFER + 3 * TILE_BYTES + i * LANE_BYTES for i in range(17))  # fmt: skip
SCRATCH = 5 * _BUFFER + 3 * TILE_BYTES + 17 * LANE_BYTES
