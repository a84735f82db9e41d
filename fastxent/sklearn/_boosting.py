"""Multi-class objectives and metrics for XGBoost and LightGBM.

Both libraries call an objective in two ways: ``train`` with the raw scores and their data set, the scikit-learn
estimators with labels, raw scores and weights. What comes second tells which: a data set has ``get_label``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastxent

from ._gradients import class_indices, decision_values, fill, weights

Array = NDArray[Any]

XGBOOST_FLOOR = 1e-16  # of its own softmax's Hessian: a leaf whose Hessians are all 0 has no value


class _Batch(NamedTuple):
    raw: Array  # (n_samples, n_classes)
    classes: Array
    weight: Array | None
    by_train: bool  # called by train(), with a data set


class _Callback:
    """What objective and metric have in common: reading the arguments of either way to be called."""

    def __init__(self, num_class: int) -> None:
        if isinstance(num_class, bool) or not isinstance(num_class, int | np.integer):
            raise TypeError(f"num_class must be an integer; got {num_class!r}")
        if num_class < 2:
            raise ValueError(f"num_class must be at least 2; got {num_class}")
        self.num_class = int(num_class)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_class})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.num_class))

    def _batch(self, y_true: Any, y_pred: Any, sample_weight: Any) -> _Batch:
        by_train = hasattr(y_pred, "get_label")
        if by_train:
            y_true, y_pred, sample_weight = y_pred.get_label(), y_true, y_pred.get_weight()
        raw = np.asarray(y_pred)
        if raw.ndim == 1 and raw.size == self.num_class * np.size(y_true):
            raw = self._unflattened(raw)
        if raw.ndim != 2 or raw.shape[1] != self.num_class:
            raise ValueError(f"raw scores of shape {raw.shape} do not fit num_class={self.num_class}")
        raw = decision_values(raw, "raw scores")
        weight = None if sample_weight is None or np.size(sample_weight) == 0 else weights(sample_weight, raw)
        return _Batch(raw, class_indices(y_true, *raw.shape), weight, by_train)

    def _unflattened(self, raw: Array) -> Array:
        """Raw scores of older versions, which have one axis: here as XGBoost lays them, sample by sample."""
        return raw.reshape(-1, self.num_class)

    def _loss(self, batch: _Batch) -> float:
        return float(
            fastxent.cross_entropy(batch.raw, batch.classes, sample_weight=batch.weight, ignore_index=None)
        )


class _Objective(_Callback):
    """An objective: gradient and Hessian of the loss for every sample and class."""

    metric: Any

    def _gradient_hessian(self, batch: _Batch, factor: float, floor: float) -> tuple[Array, Array]:
        dtype = batch.raw.dtype.newbyteorder("=")
        gradient, hessian = (np.empty_like(batch.raw, dtype=dtype) for _ in range(2))
        fill(batch.raw, batch.classes, batch.weight, gradient, hessian, factor, floor)
        return gradient, hessian


class XGBoostMetric(_Callback):
    """The mean log loss of raw scores, in the forms that XGBoost asks for."""

    def __init__(self, num_class: int) -> None:
        super().__init__(num_class)
        self.__name__ = "log_loss"  # XGBoost's estimators call a metric by it

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        batch = self._batch(y_true, y_pred, sample_weight)
        return (self.__name__, self._loss(batch)) if batch.by_train else self._loss(batch)


class XGBoostObjective(_Objective):
    """What `xgboost_objective` returns."""

    def __init__(self, num_class: int) -> None:
        super().__init__(num_class)
        self.metric = XGBoostMetric(num_class)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        batch = self._batch(y_true, y_pred, sample_weight)
        return self._gradient_hessian(batch, 2.0, XGBOOST_FLOOR)


class LightGBMMetric(_Callback):
    """The mean log loss of raw scores, in the form that LightGBM asks for."""

    def __call__(self, y_true: Any, y_pred: Any, weight: Any = None) -> tuple[str, float, bool]:
        return "log_loss", self._loss(self._batch(y_true, y_pred, weight)), False

    def _unflattened(self, raw: Array) -> Array:
        return raw.reshape(self.num_class, -1).T  # class by class


class LightGBMObjective(_Objective):
    """What `lightgbm_objective` returns."""

    def __init__(self, num_class: int) -> None:
        super().__init__(num_class)
        self.metric = LightGBMMetric(num_class)

    def __call__(self, y_true: Any, y_pred: Any, weight: Any = None) -> tuple[Array, Array]:
        batch = self._batch(y_true, y_pred, weight)
        gradient, hessian = self._gradient_hessian(batch, self.num_class / (self.num_class - 1), 0.0)
        if np.ndim(y_true if batch.by_train else y_pred) == 1:
            return gradient.ravel(order="F"), hessian.ravel(order="F")
        return gradient, hessian

    _unflattened = LightGBMMetric._unflattened


def xgboost_objective(num_class: int) -> XGBoostObjective:
    r"""Make the multinomial objective of XGBoost, computed by fastxent.

    Its gradient and Hessian are those of XGBoost's own ``multi:softprob``,

    .. math:: g_{ik} = s_i (p_{ik} - [y_i = k]), \qquad h_{ik} = \max(2 s_i p_{ik} (1 - p_{ik}), 10^{-16})

    Parameters
    ----------
    num_class : int
        How many classes there are, at least 2; with ``train``, the parameter ``num_class`` is needed as well.

    Returns
    -------
    callable
        For ``xgboost.train(..., obj=)``, and for ``XGBClassifier(objective=)`` with three or more classes. Its
        attribute ``metric`` is the mean log loss, for ``custom_metric=`` and ``eval_metric=``. The metric takes raw
        scores, which XGBoost passes on only with an objective of one's own, like this one. Weights of the data set
        count in both. They can be pickled, copied and compared.

    Raises
    ------
    TypeError, ValueError
        If `num_class` is not an integer, or below 2.

    Notes
    -----
    Leave ``objective="multi:softprob"`` among the parameters of ``xgboost.train``: no gradients come from it then, but
    it says that the booster predicts the probabilities of each class. The estimator does so by itself.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.sklearn import xgboost_objective
    >>> objective = xgboost_objective(3)
    >>> gradient, hessian = objective(np.array([1]), np.log([[1.0, 1.0, 2.0]]))
    >>> gradient, hessian
    (array([[ 0.25, -0.75,  0.5 ]]), array([[0.375, 0.375, 0.5  ]]))
    >>> round(objective.metric(np.array([1]), np.log([[1.0, 1.0, 2.0]])), 4)
    1.3863
    """
    return XGBoostObjective(num_class)


def lightgbm_objective(num_class: int) -> LightGBMObjective:
    r"""Make the multinomial objective of LightGBM, computed by fastxent.

    Its gradient and Hessian are those of LightGBM's own ``multiclass``, for K classes

    .. math:: g_{ik} = s_i (p_{ik} - [y_i = k]), \qquad h_{ik} = \tfrac{K}{K - 1} s_i p_{ik} (1 - p_{ik})

    Parameters
    ----------
    num_class : int
        K, at least 2; with ``train``, the parameter ``num_class`` is needed as well.

    Returns
    -------
    callable
        For ``params["objective"]`` of ``lightgbm.train``, and for ``LGBMClassifier(objective=)`` with three or more
        classes. Its attribute ``metric`` is the mean log loss, for ``feval=`` and ``eval_metric=``. The metric takes
        raw scores, which LightGBM passes on only with an objective of one's own, like this one. Weights of the data
        set count in both. They can be pickled, copied and compared.

    Raises
    ------
    TypeError, ValueError
        If `num_class` is not an integer, or below 2.

    Notes
    -----
    A model trained with an objective of one's own predicts raw scores; ``fastxent.softmax`` of them are the
    probabilities. It also starts at 0, where LightGBM's own starts at the frequencies of the classes; pass their
    logarithms as ``init_score`` to do the same.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.sklearn import lightgbm_objective
    >>> objective = lightgbm_objective(3)
    >>> gradient, hessian = objective(np.array([1]), np.log([[1.0, 1.0, 2.0]]))
    >>> gradient, hessian
    (array([[ 0.25, -0.75,  0.5 ]]), array([[0.28125, 0.28125, 0.375  ]]))
    >>> name, value, higher_is_better = objective.metric(np.array([1]), np.log([[1.0, 1.0, 2.0]]))
    >>> name, round(value, 4), higher_is_better
    ('log_loss', 1.3863, False)
    """
    return LightGBMObjective(num_class)
