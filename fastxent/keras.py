"""fastxent for Keras 3, on its torch, jax and numpy backends: `CrossEntropyLoss`.

The loss of each position is computed by fastxent in the way of the backend (fastxent.torch, fastxent.jax, or fastxent
itself); masks, sample weights and the reduction are left to Keras, so that they mean what they mean in its own losses.
There is no form for TensorFlow: without building against it there is only ``tf.numpy_function``, which is slow and is
not saved with a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask  # the way to the mask of tensors without attributes

__all__ = ["CrossEntropyLoss"]

NEVER = -(2**31)  # as an ignored class: Keras has none unless it is given


def _losses_torch(logits: Any, targets: Any, axis: int, mask: Any, options: dict[str, Any]) -> Any:
    from fastxent.torch import cross_entropy

    if logits.ndim > 2:
        logits = logits.movedim(axis, 1)
        targets = targets.movedim(axis, 1) if targets.ndim == logits.ndim else targets
    elif axis == 0 and logits.ndim == 2:
        logits, targets = logits.T, targets.T if targets.ndim == 2 else targets
    return cross_entropy(logits, targets, ignore_index=NEVER, reduction="none", mask=mask, **options)


def _losses_jax(logits: Any, targets: Any, axis: int, mask: Any, options: dict[str, Any]) -> Any:
    from fastxent.jax import cross_entropy

    return cross_entropy(logits, targets, axis=axis, ignore_index=None, reduction="none", mask=mask, **options)


def _losses_numpy(logits: Any, targets: Any, axis: int, mask: Any, options: dict[str, Any]) -> Any:
    from fastxent import cross_entropy

    return cross_entropy(logits, targets, axis=axis, ignore_index=None, reduction="none", mask=mask, **options)


_BACKENDS: dict[str, Callable[..., Any]] = {"torch": _losses_torch, "jax": _losses_jax, "numpy": _losses_numpy}


class _Reduction(keras.losses.Loss):
    """Keras' own treatment of losses that have been computed: mask, sample weights, reduction."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


@keras.saving.register_keras_serializable(package="fastxent")
class CrossEntropyLoss(keras.losses.Loss):
    r"""Cross-entropy of logits and class indices or class probabilities, computed by fastxent.

    .. math:: \ell = -\sum_c q_c \log \mathrm{softmax}(z)_c + \lambda \left( \log \sum_c e^{z_c} \right)^2

    with q of 1 - `label_smoothing` at the target's class (or the target times that), plus `label_smoothing` / C at
    each of the C classes; z the logits, or softcap * tanh(logits / softcap); and lambda the `z_loss`.

    It takes the place of ``keras.losses.SparseCategoricalCrossentropy(from_logits=True)`` and of
    ``CategoricalCrossentropy(from_logits=True)``. Targets without a class axis, or with one of length 1, are class
    indices; targets of the logits' shape are class probabilities, one-hot ones included. Masks (from ``Masking`` or
    ``Embedding(mask_zero=True)``), sample weights and reductions follow Keras' rules; but what a mask or `ignore_class`
    leaves out is not looked at, so that NaN there does no harm.

    Parameters
    ----------
    from_logits : bool, default True
        Must be true: the model's last layer has no softmax.
    label_smoothing : float, default 0.0
        From 0 to 1.
    ignore_class : int, optional
        Positions with this class index do not count, in the divisor either.
    z_loss : float, default 0.0
        Lambda above.
    softcap : float, optional
        Above 0; None for no cap.
    axis : int, default -1
        The class axis of the logits.
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None}
        As in every loss of Keras.
    name : str, default "cross_entropy_loss"
        The name of the loss.
    dtype : str or keras.DTypePolicy, optional
        What the loss is computed in: ``keras.config.floatx()`` by default. Class indices keep their integers.

    Raises
    ------
    RuntimeError
        If Keras runs on another backend than torch, jax or numpy.
    ValueError
        If `from_logits` is false, or a number is out of its range.

    See Also
    --------
    fastxent.cross_entropy, fastxent.torch.cross_entropy, fastxent.jax.cross_entropy

    References
    ----------
    C. Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016): label smoothing.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.keras import CrossEntropyLoss
    >>> logits = np.array([[[2, 0, -1], [0, 1, 0]], [[1, 0, 0], [9, 9, 9]]], "float32")
    >>> loss = CrossEntropyLoss(ignore_class=-1)
    >>> round(float(loss(np.array([[0, 1], [2, -1]]), logits)), 4)
    0.7576
    >>> CrossEntropyLoss.from_config(loss.get_config()).ignore_class
    -1
    """

    def __init__(
        self,
        from_logits: bool = True,
        label_smoothing: float = 0.0,
        ignore_class: int | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cross_entropy_loss",
        dtype: Any = None,
    ) -> None:
        if not from_logits:
            raise ValueError(
                "from_logits must be True: give CrossEntropyLoss the logits, from a last layer without a softmax"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1; got {label_smoothing!r}")
        if not 0 <= z_loss < math.inf:
            raise ValueError(f"z_loss must be finite and at least 0; got {z_loss!r}")
        if softcap is not None and not 0 < softcap < math.inf:
            raise ValueError(f"softcap must be None, or finite and above 0; got {softcap!r}")
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ValueError(f"axis must be an integer; got {axis!r}")
        backend = keras.config.backend()
        if backend not in _BACKENDS:
            raise RuntimeError(
                f"fastxent.keras works on Keras' backends {', '.join(_BACKENDS)}, not on {backend}; the environment "
                "variable KERAS_BACKEND chooses"
            )
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.ignore_class = ignore_class
        self.z_loss = z_loss
        self.softcap = softcap
        self.axis = axis
        self._given_dtype = None if dtype is None else self.dtype
        self._reduce = _Reduction(name=name, reduction=reduction, dtype=dtype)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Compute the loss of a batch, weighted and reduced as `keras.losses.Loss` does."""
        # Keras casts targets to the loss's dtype before `call`, where a half type has no room for large indices.
        mask = get_keras_mask(y_pred)
        losses = self._losses(y_true, y_pred, mask)
        return self._reduce(losses, losses, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Compute the loss of each position; those of `ignore_class` are 0."""
        return self._losses(y_true, y_pred, None)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        config: dict[str, Any] = super().get_config()
        names = ("from_logits", "label_smoothing", "ignore_class", "z_loss", "softcap", "axis")
        config |= {name: getattr(self, name) for name in names}
        return config if self._given_dtype is None else config | {"dtype": self._given_dtype}

    def _losses(self, y_true: Any, y_pred: Any, mask: Any) -> Any:
        """The losses of all positions, with the mask that Keras is to apply."""
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        targets, axis = self._targets(ops.convert_to_tensor(y_true), logits)
        indices = len(targets.shape) < len(logits.shape)
        if mask is not None:
            mask = ops.cast(mask, "bool")
        if self.ignore_class is not None and indices:
            counts = ops.not_equal(targets, self.ignore_class)
            mask = counts if mask is None else ops.logical_and(mask, counts)
        positions = tuple(logits.shape[:axis]) + tuple(logits.shape[axis + 1 :])
        # A mask of another shape is left to Keras, which knows some more ways to make shapes fit.
        known = mask if mask is not None and tuple(mask.shape) == positions else None
        options: dict[str, Any] = {
            name: value
            for name in ("label_smoothing", "z_loss", "softcap")
            if (value := getattr(self, name))
        }  # fmt: skip
        losses = _BACKENDS[keras.config.backend()](logits, targets, axis, known, options)
        if mask is not None:
            set_keras_mask(losses, mask)
        return losses

    def _targets(self, targets: Any, logits: Any) -> tuple[Any, int]:
        """Targets as integers without a class axis, or as probabilities; and the class axis."""
        rank, shape = len(logits.shape), tuple(targets.shape)
        if not -rank <= self.axis < rank:
            raise ValueError(f"axis {self.axis} is out of bounds for logits of shape {tuple(logits.shape)}")
        axis = self.axis % rank
        if len(shape) == rank and shape[axis] == 1:
            targets = ops.squeeze(targets, axis)
        elif len(shape) == rank and shape == tuple(logits.shape):
            return ops.cast(targets, self.dtype), axis
        if tuple(targets.shape) != tuple(logits.shape[:axis]) + tuple(logits.shape[axis + 1 :]):
            raise ValueError(
                "y_true must hold class indices, of the shape of y_pred without its class axis (or with one of length "
                f"1 there), or class probabilities, of its whole shape; got the shapes {shape} and "
                f"{tuple(logits.shape)}"
            )
        if not keras.backend.is_int_dtype(targets.dtype):
            targets = ops.cast(targets, "int32")
        return targets, axis
