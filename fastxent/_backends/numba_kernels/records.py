"""From a plan to the record that the kernels read (layout.py): operands, merged axes, family, blocks.

How positions are divided follows from shape, dtype and layout alone: a position's bits and the order of every sum are
then the same for any number of threads. The rules are those of ``src/driver.c``.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

import numpy as np

from ..._options import (
    OP_DIVERGENCE,
    OP_LOG_SOFTMAX_GRAD,
    OP_LOSS_SOFTMAX,
    OP_REDUCE,
    OP_SOFTMAX_GRAD,
    OP_STATISTICS,
    OP_TOP_K,
)
from .layout import (
    BLOCKS,
    BLOCKS_OF_A_SUM,
    CLASS_WEIGHT,
    CLASS_WEIGHT_R,
    CLASS_WEIGHT_SUM,
    CLASSES,
    COLUMNS,
    DIRECT,
    FAMILY,
    FOCAL,
    GAMMA,
    HAS_IGNORE,
    HEADER,
    IGNORE,
    KIND,
    LANES,
    LENGTH,
    LENGTHS,
    LINES,
    LOGIT_SCALE,
    ND,
    NUMBERS,
    OPERATION,
    OUT,
    PARAMETER,
    PARTIAL,
    PIECE,
    PIECES,
    POSITION_LOSS,
    POSITION_WEIGHT,
    POSITIONS,
    PROBS,
    ROWS,
    SAVED,
    SAVED_OUT,
    SCALE,
    SEQUENCE_SCALE,
    SHIFT,
    SMOOTHING,
    SOFTCAP,
    STATISTICS,
    TILE_BYTES,
    TILE_CLASSES,
    TOP_K,
    TRANSFORM,
    UNIFORM_UPSTREAM,
    UNIT,
    WIDTH,
    Z_LOSS,
    Z_SCALE,
    X,
)  # fmt: skip
from .memory import BF16, F32, F64, SIZES
from .rows import ARRAY, UNIFORM

_CODES: dict[Any, tuple[int, bool]] = {}
for _code, _name in enumerate(["f4", "f8", "f2", "-", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]):
    for _order in "<>" if _name != "-" else "":
        _dtype = np.dtype(_order + _name)
        _CODES[_dtype] = _code, not _dtype.isnative
_CODES[np.dtype(bool)] = 8, False

ROWS_FROM = {4: 256, 8: 96}  # classes from which on a row has lanes of its own, by the size of the compute type
ELEMENTS = 1 << 14  # elements of a block
SUM_ELEMENTS = 1 << 14  # and of the blocks that add to one sum, at least
SUMS = 20  # so many bits has the number of sums, at most
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


_POINTER, _OBJECT = ctypes.c_void_p.from_address, object.__basicsize__


def address(array: Any) -> int:
    """Where an array's first element is: NumPy's ABI has the pointer behind the object's head.

    The array's own `ctypes` and `__array_interface__` take a microsecond and two.
    """
    return _POINTER(id(array) + _OBJECT).value or 0


class Record:
    """The record of one call, and what its arrays need to stay alive."""

    __slots__ = (
        "blocks",
        "blocks_of_a_sum",
        "classes",
        "integers",
        "kept",
        "numbers",
        "operands",
        "operation",
        "positions",
        "real",
        "scales",
        "sequences",
        "shape",
        "threads",
    )  # fmt: skip

    def __init__(self, plan: Any) -> None:
        self.operation = operation = plan.operation
        self.threads = plan.num_threads
        self.kept: list[Any] = []
        self.scales: Any = None
        head, numbers = [0] * HEADER, [0.0] * NUMBERS
        head[OPERATION] = operation
        numbers[SCALE] = numbers[LOGIT_SCALE] = numbers[Z_SCALE] = 1.0
        if operation >= OP_DIVERGENCE:
            keep_time = self._open_elements(plan, head, numbers)
        else:
            keep_time = self._open(plan, head, numbers)
        if self.positions and operation > OP_DIVERGENCE and not keep_time:
            self._sort_axes()
        self._merge_axes(keep_time)
        self._choose(head)
        self._divide(head)
        nd = head[ND] = len(self.shape)
        head += self.shape
        absent = (0,) * (4 + nd)
        for operand in self.operands:
            if operand is None:
                head += absent
            else:
                strides = operand.pop()
                head += operand
                head += strides
        self.integers = array("q", head)
        self.numbers = array("d", numbers)

    def _open(self, plan: Any, head: list[int], numbers: list[float]) -> bool:
        x, axis, targets, lengths = plan.logits, plan.axis, plan.targets, plan.lengths
        operation, shape = self.operation, x.shape
        self.shape = [*shape[:axis], *shape[axis + 1 :]]
        self.classes = shape[axis]
        first = _described(x, axis)
        self.real = FLOAT32 if first[2] in (F32, 2, BF16) else FLOAT64
        probs = targets is not None and operation < OP_REDUCE and targets.ndim == x.ndim
        graded = operation in (OP_SOFTMAX_GRAD, OP_LOG_SOFTMAX_GRAD)
        self.operands = [
            first,
            _described(targets, axis if probs or graded else -1),
            _described(plan.mask, -1),
            _described(plan.sample_weight, -1),
            _described(plan.upstream, -1),
            _described(plan.losses, -1),
            _described(plan.output, axis),
            None,
        ]
        head[PROBS] = probs or graded
        if plan.ignore_index is not None:
            head[HAS_IGNORE] = 1
            ignore = plan.ignore_index
            head[IGNORE] = ignore if ignore < 1 << 63 else ignore - (1 << 64)
        self._count(plan, head)
        if lengths is not None:
            head[LENGTHS] = address(lengths)
        head[SHIFT] = plan.shift
        numbers[CLASS_WEIGHT_SUM] = self.classes
        weight = plan.class_weight
        if weight is not None:
            head[CLASS_WEIGHT] = head[CLASS_WEIGHT_R] = address(weight)
            numbers[CLASS_WEIGHT_SUM] = float(weight.sum())
            if self.real is FLOAT32:
                with np.errstate(all="ignore"):
                    weight = weight.astype(FLOAT32)
                self.kept.append(weight)
                head[CLASS_WEIGHT_R] = address(weight)
        numbers[SMOOTHING], numbers[Z_LOSS] = plan.label_smoothing, plan.z_loss
        numbers[SOFTCAP] = plan.softcap
        scale = numbers[LOGIT_SCALE] = plan.logit_scale
        transform = plan.softcap > 0.0 or scale < 1e-30
        head[TRANSFORM] = transform
        z_scale = numbers[Z_SCALE] = 1.0 if transform else scale
        unit = 1.0
        while unit < min(4.0 * plan.z_loss * z_scale, 2.0**100):
            unit *= 2.0
        numbers[UNIT] = unit
        # Saved are max z and the rest. Only where max z is the logits' own maximum, and no coefficient of it is wanted,
        # do they stand for a pass over the row.
        if plan.saved is not None and not probs and (scale == 1.0 or transform):
            head[SAVED] = address(plan.saved)
        if plan.saved_out is not None:
            head[SAVED_OUT] = address(plan.saved_out)
        if operation <= OP_LOSS_SOFTMAX:
            if probs:
                head[KIND] = ARRAY
            elif plan.label_smoothing:
                head[KIND] = UNIFORM if plan.class_weight is None else ARRAY
        if plan.statistics is not None:
            for i, result in enumerate(plan.statistics):
                if result is not None:
                    head[STATISTICS + i] = address(result)
            if operation == OP_TOP_K:
                head[TOP_K] = plan.statistics[0].shape[-1]
        head[UNIFORM_UPSTREAM] = plan.upstream is None and plan.sample_weight is None
        return bool(lengths is not None or plan.shift or plan.per_sequence)

    def _open_elements(self, plan: Any, head: list[int], numbers: list[float]) -> bool:
        x, axis, lengths = plan.input, plan.axis, plan.lengths
        self.shape = [n for d, n in enumerate(x.shape) if d != axis]
        self.classes = x.shape[axis] if axis >= 0 else 1
        first = _described(x, axis)
        self.real = FLOAT32 if first[2] in (F32, 2, BF16) else FLOAT64
        head[PROBS] = 1
        self.operands = [
            first,
            _described(plan.target, axis),
            _described(plan.mask, -1),
            _described(plan.sample_weight, -1),
            _described(plan.upstream, -1),
            _described(plan.losses, -1),
            _described(plan.output, axis),
            _described(plan.positive_weight, -1),
        ]
        self._count(plan, head)
        if lengths is not None:
            head[LENGTHS] = address(lengths)
        numbers[PARAMETER] = plan.parameter
        head[UNIFORM_UPSTREAM] = plan.upstream is None and plan.sample_weight is None
        return bool(lengths is not None or plan.per_sequence)

    def _count(self, plan: Any, head: list[int]) -> None:
        positions = 1
        for n in self.shape:
            positions *= n
        length = plan.sequence_length
        self.positions, self.sequences = positions, positions
        if length != 1:
            self.sequences = positions // length if length else 0
        head[POSITIONS], head[CLASSES], head[LENGTH] = positions, self.classes, length

    def copied(self) -> Record:
        """Make another one of the same numbers."""
        other = object.__new__(Record)
        other.operation, other.threads, other.kept, other.scales = self.operation, self.threads, self.kept, None
        other.blocks, other.blocks_of_a_sum, other.classes = self.blocks, self.blocks_of_a_sum, self.classes
        other.positions, other.sequences, other.real = self.positions, self.sequences, self.real
        other.shape, other.operands = self.shape, self.operands
        other.integers, other.numbers = self.integers[:], self.numbers[:]
        return other

    def focus(self, gamma: float) -> None:
        """Set the exponent of focal loss."""
        self.integers[FOCAL], self.numbers[GAMMA] = 1, gamma
        self.integers[UNIFORM_UPSTREAM] = 0

    def set_scale(self, scale: float, of_sequences: Any) -> None:
        """Set the scale of the gradient, for all and for each sequence."""
        self.numbers[SCALE] = scale
        if of_sequences is not None:
            self.scales = of_sequences
            self.integers[SEQUENCE_SCALE] = address(of_sequences)
            self.integers[UNIFORM_UPSTREAM] = 0

    def keep(self, weights: Any, losses: Any) -> None:
        """Name the arrays for each position's share of the divisor and loss, or none."""
        self.integers[POSITION_WEIGHT] = 0 if weights is None else address(weights)
        self.integers[POSITION_LOSS] = 0 if losses is None else address(losses)

    def place_partial(self, at: int) -> None:
        """Say where the sums are that blocks add to."""
        self.integers[PARTIAL] = at

    # how the positions are walked

    def _sort_axes(self) -> None:
        """Elements have no order of their own: put the axes in the order of the input's memory."""
        strides = self.operands[X][4]
        for d, n in enumerate(self.shape):
            if strides[d] < 0:
                for operand in filter(None, self.operands):
                    operand[0] += operand[4][d] * (n - 1)
                    operand[4][d] = -operand[4][d]
        order = sorted(range(len(self.shape)), key=lambda d: -strides[d])
        self.shape = [self.shape[d] for d in order]
        for operand in filter(None, self.operands):
            operand[4] = [operand[4][d] for d in order]

    def _merge_axes(self, keep_time: bool) -> None:
        """Drop axes of length 1 and merge neighbours that every operand walks as one; time may stay apart."""
        shape, last = self.shape, len(self.shape) - 1
        if last < 0 or (last == 0 and (keep_time or shape[0] != 1)):
            return
        present = [operand for operand in self.operands if operand is not None]
        kept: list[int] = []
        lengths: list[int] = []
        for d, n in enumerate(shape):
            apart = d == last and keep_time
            if n == 1 and not apart:
                continue
            if kept and not apart and all(o[4][kept[-1]] == o[4][d] * n for o in present):
                lengths[-1] *= n
                kept[-1] = d
            else:
                lengths.append(n)
                kept.append(d)
        self.shape = lengths
        for operand in present:
            operand[4] = [operand[4][d] for d in kept]

    def _choose(self, head: list[int]) -> None:
        """The family: by classes, dtype and class stride alone for what concerns a row's bits."""
        x, out, operation = self.operands[X], self.operands[OUT], self.operation
        size, item = self.real.itemsize, SIZES[x[2]]
        plain = x[2] == (F32 if size == 4 else F64) and not x[3] and not head[TRANSFORM]
        head[DIRECT] = plain and x[1] == size
        if operation == OP_TOP_K or (operation >= OP_STATISTICS and head[TRANSFORM]):
            head[FAMILY] = ROWS
        elif self.classes == 1:
            head[FAMILY] = LANES
        elif x[1] in (item, -item):
            head[FAMILY] = ROWS if self.classes >= ROWS_FROM[size] else LANES
        else:
            fits = plain and not head[PROBS] and self.shape and x[4][-1] == size
            fits = fits and (out is None or (out[4][-1] == size and out[2] == x[2]))
            head[FAMILY] = COLUMNS if fits else LANES
        if head[FAMILY] == ROWS and self.classes < 64:
            head[DIRECT] = 0
        tile = TILE_BYTES // (min(self.classes or 1, TILE_CLASSES) * size)
        head[WIDTH] = min(max(tile, 16), 512) // 16 * 16

    def _divide(self, head: list[int]) -> None:
        """Blocks of about as many positions as caches like."""
        row, family = (self.classes or 1) * min(self.real.itemsize, SIZES[self.operands[X][2]]), head[FAMILY]
        line = self.shape[-1] if self.shape else 1
        if self.operation > OP_DIVERGENCE:
            width = ELEMENTS
        elif family == ROWS:
            width = min(max((1 << 16) // row, 1), 512)
        else:
            width = min(max((1 << (18 if family == COLUMNS else 16)) // row, 16), 512) // 16 * 16
        head[PIECE], head[PIECES], head[LINES] = line, 1, 1
        if not self.positions:
            blocks = 0
        elif line > width:
            parts = -(-line // width)
            piece = -(-line // parts)
            if family != ROWS:
                piece = (piece + 15) // 16 * 16
            piece = min(max(piece, 1), width)
            head[PIECE], head[PIECES] = piece, -(-line // piece)
            blocks = self.positions // line * head[PIECES]
        else:
            head[LINES] = width // line
            blocks = -(-(self.positions // line) // head[LINES])
        self.blocks = head[BLOCKS] = blocks
        # Neighbouring blocks add to one sum, and go to one thread.
        elements = self.positions * (self.classes or 1)
        of_a_sum = max(SUM_ELEMENTS, elements >> SUMS) * blocks // elements if elements else 1
        self.blocks_of_a_sum = head[BLOCKS_OF_A_SUM] = max(1, of_a_sum)


def _described(array: Any, axis: int) -> Any:
    """[address, class stride, dtype, swapped, strides of the positions] of an array; None of None."""
    if array is None:
        return None
    code, swapped = _CODES.get(array.dtype) or (BF16, not array.dtype.isnative)
    strides = list(array.strides)
    along = strides.pop(axis) if axis >= 0 else 0
    return [address(array), along, code, swapped, strides]

