"""The objectives and metrics for XGBoost and LightGBM: beside the built-in ones, on real data."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss as loss_of_rows
from sklearn.model_selection import train_test_split

import fastxent
from fastxent.sklearn import lightgbm_objective, xgboost_objective

ROUNDS = 12
OBJECTIVES = [xgboost_objective, lightgbm_objective]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    return x, x_test, y, y_test, np.random.default_rng(0).uniform(0.2, 2.0, len(y))


def log_loss(y, probabilities):
    """scikit-learn's, of rows of float32 that do not sum to one in float64."""
    p = probabilities.astype(float)
    return loss_of_rows(y, p / p.sum(axis=1, keepdims=True))


def batch(n=40, k=5, dtype=np.float64):
    rng = np.random.default_rng(3)
    return (4 * rng.standard_normal((n, k))).astype(dtype), rng.integers(0, k, n), rng.random(n) + 0.1


class DataSet:
    """What objectives need of a DMatrix or a Dataset."""

    def __init__(self, y, weight):
        self.y, self.weight = y, weight

    def get_label(self):
        return self.y.astype(np.float32)

    def get_weight(self):
        return self.weight


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("make", OBJECTIVES)
def test_formulas_and_both_ways_to_be_called(make, weighted):
    raw, y, weight = batch()
    p, s = fastxent.softmax(raw), (weight if weighted else np.ones(40))[:, None]
    gradient = s * (p - np.eye(5)[y])
    hessian = s * p * (1 - p) * (2.0 if make is xgboost_objective else 5 / 4)
    if make is xgboost_objective:
        hessian = np.maximum(hessian, 1e-16)
    mean = fastxent.cross_entropy(raw, y, sample_weight=weight if weighted else None)
    objective = make(5)
    by_train = (raw, DataSet(y, weight if weighted else None))
    for arguments in (by_train, (y, raw, weight) if weighted else (y, raw), (y, raw, weight if weighted else None)):
        found = objective(*arguments)
        np.testing.assert_allclose(found[0], gradient, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found[1], hessian, rtol=1e-11, atol=1e-15)
        metric = objective.metric(*arguments)
        assert (metric if np.ndim(metric) == 0 else metric[1]) == pytest.approx(mean)
    name, value, *rest = objective.metric(*by_train)
    assert (name, value) == ("log_loss", pytest.approx(mean))
    assert rest == ([] if make is xgboost_objective else [False])


@pytest.mark.parametrize("make", OBJECTIVES)
def test_flat_raw_scores_of_older_versions(make):
    raw, y, weight = batch()
    order = "C" if make is xgboost_objective else "F"  # LightGBM's lie class by class
    found, right = make(5)(raw.ravel(order=order), DataSet(y, weight)), make(5)(raw, DataSet(y, weight))
    for one, other in zip(found, right, strict=True):
        one = one.reshape(raw.shape, order=order) if one.ndim == 1 else one
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert make is xgboost_objective or found[0].ndim == 1


@pytest.mark.parametrize("make", OBJECTIVES)
def test_objectives_are_plain_values(make):
    objective = make(4)
    assert pickle.loads(pickle.dumps(objective)) == objective == make(np.int64(4))
    assert objective != make(5)
    assert hash(objective) == hash(make(4))
    assert "4" in repr(objective)
    with pytest.raises(TypeError, match="num_class must be an integer; got 2"):
        make(2.5)
    with pytest.raises(ValueError, match="num_class must be at least 2; got 1"):
        make(1)
    for raw in (np.zeros((3, 5)), np.zeros(3)):
        with pytest.raises(ValueError, match="do not fit"):
            objective([0, 1, 2], raw)
    with pytest.raises(IndexError, match=r"y\[2\] is 4"):
        objective([0, 1, 4], np.zeros((3, 4)))


def test_xgboost_train(digits):
    """The same trees as multi:softprob: the same predictions up to rounding, and so the same log loss."""
    xgboost = pytest.importorskip("xgboost")
    x, x_test, y, y_test, weight = digits
    train, test = xgboost.DMatrix(x, y, weight=weight, nthread=1), xgboost.DMatrix(x_test, y_test, nthread=1)
    options = {"max_depth": 4, "num_class": 10, "nthread": 1, "base_score": 0.5, "objective": "multi:softprob"}
    record, objective = {}, xgboost_objective(10)
    theirs = xgboost.train(options, train, ROUNDS)
    ours = xgboost.train(
        options, train, ROUNDS, obj=objective, custom_metric=objective.metric, evals=[(test, "test")],
        evals_result=record, verbose_eval=False,
    )  # fmt: skip
    np.testing.assert_allclose(ours.predict(test), theirs.predict(test), atol=2e-5)
    right = log_loss(y_test, theirs.predict(test))
    assert log_loss(y_test, ours.predict(test)) == pytest.approx(right, rel=0.01)
    assert record["test"]["log_loss"][-1] == pytest.approx(right, rel=0.01)
    assert record["test"]["log_loss"][-1] == pytest.approx(record["test"]["mlogloss"][-1], rel=1e-4)
    raw = ours.predict(test, output_margin=True)
    np.testing.assert_allclose(fastxent.softmax(raw), theirs.predict(test), atol=2e-5)


def test_xgboost_estimator(digits):
    xgboost = pytest.importorskip("xgboost")
    x, x_test, y, y_test, weight = digits
    objective = xgboost_objective(10)
    options = {"n_estimators": ROUNDS, "max_depth": 4, "n_jobs": 1}
    theirs = xgboost.XGBClassifier(**options).fit(x, y, sample_weight=weight)
    model = clone(xgboost.XGBClassifier(objective=objective, eval_metric=objective.metric, **options))
    model.fit(x, y, sample_weight=weight, eval_set=[(x_test, y_test)], verbose=False)
    right = log_loss(y_test, theirs.predict_proba(x_test))
    found = log_loss(y_test, model.predict_proba(x_test))
    assert found == pytest.approx(right, rel=0.01)
    assert model.evals_result()["validation_0"]["log_loss"][-1] == pytest.approx(found, rel=1e-4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x_test), model.predict(x_test))


def test_lightgbm_train(digits):
    lightgbm = pytest.importorskip("lightgbm")
    x, x_test, y, y_test, weight = digits
    options = {"num_leaves": 15, "num_class": 10, "num_threads": 1, "verbose": -1, "deterministic": True}
    record, objective = {}, lightgbm_objective(10)
    train, test = (lightgbm.Dataset(*pair, free_raw_data=False) for pair in ((x, y, None, weight), (x_test, y_test)))
    theirs = lightgbm.train(options | {"objective": "multiclass", "boost_from_average": False}, train, ROUNDS)
    ours = lightgbm.train(
        options | {"objective": objective}, train, ROUNDS, valid_sets=[test.set_reference(train)],
        feval=objective.metric, callbacks=[lightgbm.record_evaluation(record)],
    )  # fmt: skip
    np.testing.assert_allclose(fastxent.softmax(ours.predict(x_test)), theirs.predict(x_test), atol=1e-5)
    right = log_loss(y_test, theirs.predict(x_test))
    assert fastxent.cross_entropy(ours.predict(x_test), y_test) == pytest.approx(right, rel=0.01)
    assert record["valid_0"]["log_loss"][-1] == pytest.approx(right, rel=0.01)


def test_lightgbm_from_its_own_start(digits):
    """What the built-in objective starts from can be given: the logarithms of the (weighted) frequencies."""
    lightgbm = pytest.importorskip("lightgbm")
    x, x_test, y, _, weight = digits
    options = {"num_leaves": 15, "num_class": 10, "num_threads": 1, "verbose": -1, "deterministic": True}
    start = np.log(np.bincount(y, weight) / weight.sum())
    data = lightgbm.Dataset(x, y, weight=weight, init_score=np.tile(start, (len(y), 1)))
    ours = lightgbm.train(options | {"objective": lightgbm_objective(10)}, data, ROUNDS)
    data = lightgbm.Dataset(x, y, weight=weight)
    theirs = lightgbm.train(options | {"objective": "multiclass"}, data, ROUNDS)
    np.testing.assert_allclose(fastxent.softmax(ours.predict(x_test) + start), theirs.predict(x_test), atol=1e-5)


def test_lightgbm_estimator(digits):
    lightgbm = pytest.importorskip("lightgbm")
    x, x_test, y, y_test, weight = digits
    objective = lightgbm_objective(10)
    options = {"n_estimators": ROUNDS, "num_leaves": 15, "n_jobs": 1, "verbose": -1}
    theirs = lightgbm.LGBMClassifier(boost_from_average=False, **options).fit(x, y, sample_weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # eval_set has another name in the newest versions
        warnings.simplefilter("ignore", DeprecationWarning)
        model = clone(lightgbm.LGBMClassifier(objective=objective, **options))
        model.fit(x, y, sample_weight=weight, eval_set=[(x_test, y_test)], eval_metric=objective.metric)
    right = log_loss(y_test, theirs.predict_proba(x_test))
    assert fastxent.cross_entropy(model.predict(x_test, raw_score=True), y_test) == pytest.approx(right, rel=0.01)
    assert model.evals_result_["valid_0"]["log_loss"][-1] == pytest.approx(right, rel=0.01)
