"""Gradient and diagonal Hessian of the multinomial loss, in one pass over the decision values.

Rows are taken in blocks that stay in a core's cache: fastxent writes the gradient g of a block, and the Hessian
follows from it: p(1 - p) = g(1 - g) where g = p. At the target, where g = p - 1 has no digits left of a small p, it
follows from the loss, which is -log p. The blocks are handed out to threads here, not inside fastxent, so that the
arithmetic on them is shared as well; it takes every value of a row alone, and so gives the same bits for any number
of threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fastxent

Array = NDArray[Any]

BLOCK_BYTES = 1 << 18  # decision values, gradient and Hessian of a block share the second-level cache
COLUMN_ROWS = 256  # where a class is contiguous, a block has at least so many rows: runs of memory, not single lines
THREADED_BYTES = 1 << 22  # less is done before threads have started


def multinomial_gradient_hessian(
    raw_prediction: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    gradient_out: Array | None = None,
    hessian_out: Array | None = None,
) -> tuple[Array, Array]:
    r"""Compute the gradient of the multinomial log loss by the decision values, and the diagonal of its Hessian.

    .. math:: g_{ik} = s_i \, (p_{ik} - [y_i = k]), \qquad h_{ik} = s_i \, p_{ik} (1 - p_{ik})

    with :math:`p_i` the softmax of row i. These are the results of scikit-learn's ``HalfMultinomialLoss``.

    Parameters
    ----------
    raw_prediction : array_like of float32 or float64, shape (n_samples, n_classes)
        Decision values, of any strides. Integers are taken as float64. They are not changed.
    y : array_like of shape (n_samples,)
        The classes: integers from 0 to n_classes - 1, in floats if you like, as scikit-learn has them.
    sample_weight : array_like of shape (n_samples,), optional
        s above; 1 by default.
    gradient_out, hessian_out : ndarray, optional
        Arrays for the results, of the shape and dtype of `raw_prediction`, that overlap nothing.

    Returns
    -------
    gradient, hessian : ndarray of shape (n_samples, n_classes)
        In the dtype and, if new, in the memory order of `raw_prediction`.

    Raises
    ------
    IndexError
        If a class is outside 0 ... n_classes - 1.
    TypeError
        If `raw_prediction` is of another dtype.
    ValueError
        If a shape does not fit, a class is not a whole number, or a given output cannot hold the result.

    References
    ----------
    J. Friedman, T. Hastie, R. Tibshirani, "Additive logistic regression: a statistical view of boosting", Annals of
    Statistics 28 (2000), 337-407.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.sklearn import multinomial_gradient_hessian
    >>> gradient, hessian = multinomial_gradient_hessian(np.log([[1.0, 1.0, 2.0], [8.0, 1.0, 1.0]]), [2, 1])
    >>> gradient.round(2)
    array([[ 0.25,  0.25, -0.5 ],
           [ 0.8 , -0.9 ,  0.1 ]])
    >>> hessian.round(4)
    array([[0.1875, 0.1875, 0.25  ],
           [0.16  , 0.09  , 0.09  ]])
    """
    raw = decision_values(raw_prediction, "raw_prediction")
    classes = class_indices(y, *raw.shape)
    weight = None if sample_weight is None else weights(sample_weight, raw)
    gradient = output(gradient_out, raw, "gradient_out")
    hessian = output(hessian_out, raw, "hessian_out")
    if np.may_share_memory(gradient, hessian) or any(np.may_share_memory(a, raw) for a in (gradient, hessian)):
        raise ValueError("raw_prediction, gradient_out and hessian_out must not overlap")
    fill(raw, classes, weight, gradient, hessian)
    return gradient, hessian


def fill(
    raw: Array,
    classes: Array,
    weight: Array | None,
    gradient: Array,
    hessian: Array,
    factor: float = 1.0,
    floor: float = 0.0,
) -> None:
    """Write the gradient, and `factor` times the Hessian but at least `floor`: the arguments have been checked."""
    n, k = raw.shape
    if raw.size == 0:
        return
    row_major = raw.strides[1] <= raw.strides[0]
    rows = min(n, max(BLOCK_BYTES // (gradient.itemsize * k), 1 if row_major else COLUMN_ROWS))
    starts = iter(range(0, n, rows))

    def work() -> None:
        losses = np.empty(rows, gradient.dtype)
        for start in starts:  # threads share it: each block is taken once
            block = slice(start, min(start + rows, n))
            g, h = gradient[block], hessian[block]
            x, t, loss = raw[block], classes[block], losses[: len(g)]
            fastxent.cross_entropy_and_grad(
                x, t, reduction="none", ignore_index=None, out=loss, out_grad=g, num_threads=1
            )
            np.subtract(1, g, out=h)
            np.multiply(h, g, out=h)
            np.negative(loss, out=loss)
            h[np.arange(len(g)), t] = np.exp(loss) * -np.expm1(loss)
            if weight is not None:
                np.multiply(g, weight[block, None], out=g)
                np.multiply(h, weight[block, None], out=h)
            if factor != 1.0:
                np.multiply(h, factor, out=h)
            if floor:
                np.maximum(h, floor, out=h)

    threads = min(fastxent.get_num_threads(), -(-n // rows))
    if threads == 1 or gradient.nbytes < THREADED_BYTES:
        work()
        return
    with ThreadPoolExecutor(threads - 1, "fastxent.sklearn") as pool:
        helpers = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for helper in helpers:
            helper.result()


def decision_values(values: ArrayLike, name: str) -> Array:
    """Decision values as an array of float32 or float64."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{name} must have the shape (n_samples, n_classes); got {array.shape}")
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise TypeError(f"{name} must be float32 or float64; got {array.dtype}")
    return array


def class_indices(y: ArrayLike, n_samples: int, n_classes: int) -> Array:
    """Classes as integers, each of them in range."""
    array = np.asarray(y)
    if array.shape != (n_samples,):
        raise ValueError(f"y must have the shape ({n_samples},); got {array.shape}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"y must hold the numbers of the classes; got {array.dtype}")
    if array.size == 0:
        return array.astype(np.int64)
    bad = ~((array >= 0) & (array < n_classes))
    if bad.any():
        at = int(np.argmax(bad))
        raise IndexError(f"y[{at}] is {array[at]}, outside [0, {n_classes})")
    classes = array.astype(np.int64, copy=False)
    if array.dtype.kind == "f" and (classes != array).any():
        at = int(np.argmax(classes != array))
        raise ValueError(f"y[{at}] is {array[at]}, not a whole number")
    return classes


def weights(sample_weight: ArrayLike, raw: Array) -> Array:
    """Weights of the samples, in the dtype of the decision values."""
    array = np.asarray(sample_weight)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight must hold numbers; got {array.dtype}")
    if array.shape != raw.shape[:1]:
        raise ValueError(f"sample_weight must have the shape {raw.shape[:1]}; got {array.shape}")
    return array.astype(raw.dtype.newbyteorder("="), copy=False)


def output(given: Array | None, raw: Array, name: str) -> Array:
    """The array given for a result, or a new one."""
    dtype = raw.dtype.newbyteorder("=")
    if given is None:
        return np.empty_like(raw, dtype=dtype, subok=False)
    if not isinstance(given, np.ndarray) or given.shape != raw.shape or given.dtype != dtype:
        found = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ValueError(f"{name} must be an array of {dtype} and shape {raw.shape}; got {found}")
    if not given.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return given
