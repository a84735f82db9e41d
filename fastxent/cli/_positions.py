"""Which positions count and what their targets are, block by block, by the rules of `cross_entropy`.

Targets and masks of the positions' shape are read along with the logits, `shift` ahead; what is smaller is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._faults import FileFault, UsageFault
from .formats import Array, Source


class Counted(NamedTuple):
    """Of the rows of a block: the target of each, and whether it counts. `all_valid`: none is left out."""

    targets: Array
    valid: Array
    all_valid: bool


class Positions:
    """Targets (or none: then all of them are class 0), a mask and lengths for logits of `shape`."""

    def __init__(
        self, shape: tuple[int, ...], targets: Source | None, mask: Source | None = None,
        lengths: Source | None = None, ignore_index: int | None = -100, shift: int = 0,
    ) -> None:
        self.positions, self.classes = shape[:-1], shape[-1]
        self.count = math.prod(self.positions)
        self.ignore_index, self.targets = ignore_index, targets
        if (shift or lengths is not None) and len(self.positions) < 2:
            option = "--shift" if shift else "--lengths"
            raise UsageFault(f"{option} needs logits with a batch axis and a time axis before the classes, not {shape}")
        self.steps = self.positions[-1] if len(self.positions) > 1 else 1
        self.shift = min(shift, self.steps)
        self.sequences = math.prod(self.positions[:-1]) if len(self.positions) > 1 else self.count
        if targets is not None:
            self._check_targets(targets)
        self.mask, self.small_mask = (None, None) if mask is None else self._judged_mask(mask)
        self.lengths = None if lengths is None else self._checked_lengths(lengths)

    def block(self, start: int, stop: int) -> Counted:
        """What goes with rows `start` to `stop`. FileFault where a target that counts is no class."""
        n = stop - start
        valid = np.ones(n, bool)
        if self.shift:
            valid &= np.arange(start, stop) % self.steps < self.steps - self.shift
        if self.lengths is not None:
            place = np.arange(start, stop)
            valid &= place % self.steps + self.shift < self.lengths[place // self.steps]
        ahead, end = min(start + self.shift, self.count), min(stop + self.shift, self.count)
        inside = slice(0, end - ahead)
        if self.mask is not None:
            valid[inside] &= _read(self.mask, ahead, end) != 0
        elif self.small_mask is not None:
            valid[inside] &= self.small_mask.flat[ahead:end] != 0
        if self.targets is None:
            targets = np.zeros(n, np.int64)
        else:
            found = _read(self.targets, ahead, end)
            targets = found if end - ahead == n else np.concatenate([found, np.zeros(n - found.size, found.dtype)])
            if self.ignore_index is not None:
                valid &= targets != self.ignore_index
            self._check_classes(self.targets, targets, valid, start)
        return Counted(targets, valid, bool(valid.all()))

    def _check_targets(self, targets: Source) -> None:
        if targets.dtype.kind not in "iu" or targets.stored in ("bool", "bfloat16"):
            raise FileFault(targets.name, f"{targets.describe()}: targets are class indices, integers")
        if targets.shape != self.positions:
            raise FileFault(
                targets.name,
                f"{targets.describe()} does not fit the logits: targets have the logits' shape without the classes, "
                f"{self.positions}",
            )

    def _check_classes(self, source: Source, targets: Array, valid: Array, start: int) -> None:
        wrong = (targets >= self.classes) & valid
        if targets.dtype.kind == "i":
            wrong |= (targets < 0) & valid
        if wrong.any():
            row = int(wrong.argmax())
            place = tuple(int(i) for i in np.unravel_index(start + row + self.shift, self.positions))
            raise FileFault(source.name, f"the target at {place} is {targets[row]}, outside [0, {self.classes})")

    def _judged_mask(self, mask: Source) -> tuple[Source | None, Array | None]:
        """The mask to be read along with the logits, or a small one that is broadcast to them."""
        if mask.dtype.kind not in "iu" or mask.stored == "bfloat16":
            raise FileFault(mask.name, f"{mask.describe()}: a mask is of booleans or integers")
        if mask.shape == self.positions:
            return mask, None
        try:
            if np.broadcast_shapes(mask.shape, self.positions) != self.positions:
                raise ValueError
        except ValueError:
            raise FileFault(
                mask.name, f"{mask.describe()} does not fit the logits' positions, of shape {self.positions}"
            ) from None
        return None, np.broadcast_to(mask.whole(), self.positions)

    def _checked_lengths(self, lengths: Source) -> Array:
        if lengths.dtype.kind not in "iu" or lengths.stored in ("bool", "bfloat16"):
            raise FileFault(lengths.name, f"{lengths.describe()}: lengths are integers")
        if lengths.shape != self.positions[:-1]:
            raise FileFault(
                lengths.name, f"{lengths.describe()} does not fit: one for each sequence, {self.positions[:-1]}"
            )
        found = lengths.whole().reshape(-1)
        if found.size and (int(found.min()) < 0 or int(found.max()) > self.steps):
            worst = int(found.min()) if int(found.min()) < 0 else int(found.max())
            raise FileFault(lengths.name, f"has the length {worst}, outside 0 to {self.steps}")
        return found.astype(np.int64)


def _read(source: Source, start: int, stop: int) -> Array:
    return source.read(start, stop, np.empty((stop - start) * source.dtype.itemsize, np.uint8))
