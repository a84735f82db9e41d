"""The oracle of the benchmarks: whatever is timed must also be right.

Float64 NumPy by blocks, because fastxent/reference.py (extended precision, whole arrays) would take minutes for a
case of 200 MB; a test holds the two together. The loss is checked over all positions, arrays over slices of the first
axis, evenly spread. Errors are absolute for arrays, the gradient multiplied by the divisor of the mean so that its
entries are of order one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .cases import Data

BLOCK = 1 << 20
SAMPLE = 1 << 21  # elements of an array that are compared


class Oracle:
    def __init__(self, data: Data) -> None:
        self.data = data
        case = data.case
        self.axis = case.axis % len(case.shape)
        self.weight = np.ones(case.classes) if data.class_weight is None else data.class_weight
        per_slice = max(1, case.classes * case.positions // max(case.shape[0], 1))
        self.step = max(1, BLOCK // per_slice)
        count = min(case.shape[0], max(1, SAMPLE // per_slice))
        self.sample = np.unique(np.linspace(0, case.shape[0] - 1, count).astype(int))

    @cached_property
    def divisor(self) -> float:
        if self.data.case.probabilities:
            return float(self.data.valid.sum())
        return float(self.weight[self.data.targets[self.data.valid]].sum())

    @cached_property
    def loss(self) -> float:
        total = 0.0
        for start in range(0, self.data.case.shape[0], self.step):
            coefficients, log_p = self._terms(slice(start, start + self.step))
            total -= float(np.sum(coefficients * log_p))
        return total / self.divisor

    def gradient(self) -> np.ndarray[Any, Any]:
        """Of the sum, for the slices `sample` of the first axis."""
        coefficients, log_p = self._terms(self.sample)
        total = coefficients.sum(axis=self.axis, keepdims=True)
        return np.asarray(total * np.exp(log_p) - coefficients)

    def activation(self, operation: str) -> np.ndarray[Any, Any]:
        log_p = self._log_softmax(self.sample)
        return np.asarray(np.exp(log_p) if operation == "softmax" else log_p)

    def _log_softmax(self, part: Any) -> np.ndarray[Any, Any]:
        z: np.ndarray[Any, Any] = self.data.logits[part].astype(np.float64)
        z -= z.max(axis=self.axis, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=self.axis, keepdims=True))
        return z

    def _terms(self, part: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The coefficients c of -log p, 0 at invalid positions, and log p."""
        case, targets = self.data.case, self.data.targets[part]
        log_p = self._log_softmax(part)
        if case.probabilities:
            q = targets.astype(np.float64)
        else:
            q = np.zeros(log_p.shape)
            np.put_along_axis(q, np.expand_dims(np.maximum(targets, 0), self.axis), 1.0, self.axis)
        q *= 1 - case.label_smoothing
        q += case.label_smoothing / case.classes
        q *= np.expand_dims(self.weight, [a for a in range(q.ndim) if a != self.axis])
        q *= np.expand_dims(self.data.valid[part], self.axis)
        return q, log_p

    def errors(self, operation: str, loss: float | None, array: Any) -> dict[str, float]:
        """Relative error of the loss, largest absolute error of the array, and whether both are in bounds."""
        found: dict[str, float] = {}
        if loss is not None:
            found["loss"] = loss
            found["loss_error"] = abs(loss - self.loss) / max(abs(self.loss), 1e-30)
        if array is not None:
            got = np.asarray(array).reshape(self.data.case.shape)[self.sample].astype(np.float64)
            if operation in ("softmax", "log_softmax"):
                error = np.abs(got - self.activation(operation))
            else:
                error = np.abs(got * self.divisor - self.gradient())
            found["array_error"] = float(error.max(initial=0.0))
        return found

    def bounds(self, operation: str) -> tuple[float, float]:
        """What we ask of ourselves: coarse, as a wrong answer is far off. The library's own tests are strict."""
        dtype, largest = self.data.case.dtype, 40.0 if operation == "log_softmax" else 2.0
        if dtype == "float64":
            return 1e-12, 1e-12 * largest
        unit = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        underflow = (
            2.0**-24 * self.divisor if dtype == "float16" and operation not in ("softmax", "log_softmax") else 0.0
        )
        return 1e-5, 10 * 1e-6 * largest + unit * largest + underflow
