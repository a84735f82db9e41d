"""The log loss of decision values, as a function and as a scorer for model selection."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, check_consistent_length, column_or_1d, resample
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import _check_sample_weight

import fastxent

Array = NDArray[Any]

COMPARED_ROWS = 16


def log_loss(
    y_true: ArrayLike,
    raw_scores: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Compute the mean log loss of decision values, in one pass and without clipping.

    .. math:: L = \frac{\sum_i s_i \left( \log \sum_k e^{x_{ik}} - x_{i y_i} \right)}{\sum_i s_i}

    This is ``sklearn.metrics.log_loss`` of the probabilities softmax(x), where these are not so small or so near 1 that
    it clips them. Log-probabilities are decision values as well.

    Parameters
    ----------
    y_true : array_like of shape (n_samples,)
        Labels, of any type that sorts: numbers, strings. Or a label indicator matrix of the shape of `raw_scores`,
        whose rows may be probabilities.
    raw_scores : array_like of shape (n_samples, n_classes), (n_samples,) or (n_samples, 1)
        Decision values x, with classes in the order of the sorted labels. One value a sample is the logit of the larger
        of two labels, as the ``decision_function`` of a binary classifier gives it. -inf removes a class.
    labels : array_like, optional
        All labels, in case `y_true` does not have each of them.
    sample_weight : array_like of shape (n_samples,), optional
        s above; 1 by default. A sample of weight 0 is not looked at.

    Returns
    -------
    float
        Infinity if a label's decision value is -inf.

    Raises
    ------
    ValueError
        As in scikit-learn: if there is one label only, if the labels do not match the columns of `raw_scores`, if
        lengths differ, if every weight is 0, or if `raw_scores` is not finite (-inf beside finite values is allowed).

    See Also
    --------
    neg_log_loss_scorer, fastxent.cross_entropy

    Examples
    --------
    >>> from fastxent.sklearn import log_loss
    >>> round(log_loss(["ham", "spam", "spam"], [-2.0, 3.0, -1.0]), 4)
    0.4963
    >>> round(log_loss([0, 1, 2], [[0, -1e3, -1e3], [-1e3, 0, -1e3], [0, 0, -1e3]]), 4)  # clipped, it were 12.2
    333.5644
    """
    raw = np.asarray(raw_scores)
    if raw.ndim not in (1, 2) or raw.shape[0] == 0:
        raise ValueError(f"raw_scores must have one or two axes and at least one sample; got the shape {raw.shape}")
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    check_consistent_length(raw, y_true, sample_weight)
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, raw)
    if weight is not None and not weight.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    if weight is not None and weight.sum() == 0:
        raise ValueError("Sample weights sum to zero.")
    targets = _targets(y_true, labels, raw)
    options: dict[str, Any] = {"sample_weight": weight}
    if raw.ndim == 1:
        loss = fastxent.binary_cross_entropy_with_logits(raw, targets, **options)
    else:
        loss = fastxent.cross_entropy(raw, targets, ignore_index=None, **options)
    if np.isnan(loss):
        raise ValueError("Input raw_scores contains NaN, infinity or a sample that is -inf throughout.")
    return float(loss)


def _targets(y_true: ArrayLike, labels: ArrayLike | None, raw: Array) -> Array:
    """Targets of fastxent: class indices, class probabilities, or 0 and 1 in the dtype of one logit a sample."""
    y = check_array(y_true, ensure_2d=False, dtype=None, input_name="y_true")
    n_columns = 2 if raw.ndim == 1 else raw.shape[1]
    if y.ndim == 2 and y.shape[1] > 1:
        classes = np.arange(y.shape[1]) if labels is None else np.unique(np.asarray(labels))
    else:
        y = column_or_1d(y)
        own = y_true if np.ndim(y_true) == 1 else y  # a list tells numbers from strings
        classes = unique_labels(own if labels is None else labels)
        unique_labels(y, classes)  # both of numbers, or both of strings
        if len(classes) == 1 and labels is None:
            raise ValueError(
                f"y_true contains only one label ({classes[0]}). Please provide the list of all expected class labels "
                "explicitly through the labels argument."
            )
        if len(classes) == 1:
            raise ValueError(f"The labels array needs to contain at least two labels, got {classes}.")
    if len(classes) != n_columns and labels is None:
        raise ValueError(
            f"y_true and raw_scores contain different number of classes: {len(classes)} vs {n_columns}. Please provide "
            f"the true labels explicitly through the labels argument. Classes found in y_true: {classes}"
        )
    if len(classes) != n_columns or (y.ndim == 2 and y.shape[1] != n_columns):
        raise ValueError(
            f"The number of classes in labels is different from that in raw_scores. Classes found in labels: {classes}"
        )
    if y.ndim == 2:
        indicators: Array = y.astype(np.float64 if raw.dtype.kind in "iu" else np.result_type(raw, np.float32))
        return indicators if raw.ndim == 2 else indicators[:, 1]
    encoder = LabelEncoder()
    encoder.classes_ = classes
    try:
        indices: Array = encoder.transform(y)
    except ValueError as error:
        raise ValueError(f"y_true contains values not belonging to the passed labels {classes}: {error}") from None
    return indices if raw.ndim == 2 else indices.astype(np.float64)


class NegLogLossScorer:
    """The scorer behind `neg_log_loss_scorer`: ``scorer(estimator, X, y)`` is minus the log loss.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    >>> from sklearn.model_selection import cross_val_score
    >>> from fastxent.sklearn import neg_log_loss_scorer
    >>> scores = cross_val_score(LinearDiscriminantAnalysis(), *load_iris(return_X_y=True), scoring=neg_log_loss_scorer)
    >>> scores.round(4)
    array([-0.0074, -0.0117, -0.1391, -0.0539, -0.0034])
    """

    def __init__(self) -> None:
        self._weight_request: bool | str | None = None

    def __call__(self, estimator: Any, X: Any, y_true: Any, sample_weight: Any = None) -> float:
        """Score a classifier."""
        labels = getattr(estimator, "classes_", None)
        raw = classifier_logits(estimator, X)
        return -log_loss(y_true, raw, labels=labels, sample_weight=sample_weight)

    def __repr__(self) -> str:
        return "fastxent.sklearn.neg_log_loss_scorer"

    def set_score_request(self, *, sample_weight: bool | str | None) -> NegLogLossScorer:
        """Return a scorer that asks for `sample_weight` where scikit-learn's metadata routing is on."""
        scorer = copy.copy(self)
        scorer._weight_request = sample_weight
        return scorer

    def get_metadata_routing(self) -> Any:
        """Tell scikit-learn's metadata routing what this scorer asks for."""
        request = MetadataRequest(owner=self)
        request.score.add_request(param="sample_weight", alias=self._weight_request)
        return request

    def _accept_sample_weight(self) -> bool:  # without metadata routing, GridSearchCV asks so
        return True


def classifier_logits(estimator: Any, X: Any) -> Array:
    """Return decision values whose softmax (or sigmoid) are the classifier's probabilities."""
    decides = hasattr(estimator, "decision_function")
    likely = next((name for name in ("predict_log_proba", "predict_proba") if hasattr(estimator, name)), None)
    if decides and (likely is None or _agree(estimator, X)):
        return np.asarray(estimator.decision_function(X))
    if likely is None:
        raise AttributeError(
            f"{type(estimator).__name__} has none of the following attributes: decision_function, predict_log_proba, "
            "predict_proba."
        )
    with np.errstate(divide="ignore"):  # the logarithm of a probability of 0
        values = np.asarray(getattr(estimator, likely)(X))
        return values if likely == "predict_log_proba" else np.log(values)


def _agree(estimator: Any, X: Any) -> bool:
    """Whether the decision values of some samples are the logits of their probabilities: not in one-vs-rest, say."""
    if not hasattr(estimator, "predict_proba"):
        return True
    n_samples = X.shape[0] if hasattr(X, "shape") else len(X)
    some = resample(X, replace=False, n_samples=min(n_samples, COMPARED_ROWS), random_state=0)
    decisions, probabilities = (np.asarray(f(some)) for f in (estimator.decision_function, estimator.predict_proba))
    if decisions.ndim == 1:
        decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
    if decisions.shape != probabilities.shape:
        return False
    return np.allclose(fastxent.softmax(decisions), probabilities, rtol=1e-3, atol=1e-6)


neg_log_loss_scorer = NegLogLossScorer()
