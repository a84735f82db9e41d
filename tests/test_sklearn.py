"""fastxent.sklearn against scikit-learn: log loss, the scorer, the gradients of the multinomial loss."""

import pickle
import tracemalloc

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")
from sklearn import metrics  # noqa: E402
from sklearn._loss.loss import HalfMultinomialLoss  # noqa: E402
from sklearn.base import ClassifierMixin, clone  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

import fastxent  # noqa: E402
from fastxent.sklearn import log_loss, multinomial_gradient_hessian, neg_log_loss_scorer  # noqa: E402

# --- multinomial_gradient_hessian


def inputs(n=300, k=7, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal((n, k))).astype(dtype), rng.integers(0, k, n), rng.random(n) * 3


def exact(raw, y, weight):
    """Gradient and Hessian in longdouble, without a difference of nearly equal numbers."""
    z = raw.astype(np.longdouble)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    s = np.ones(len(y)) if weight is None else weight
    others = e.sum(axis=1, keepdims=True) - e  # exact enough where one class has nearly all
    p, q = e / e.sum(axis=1, keepdims=True), others / e.sum(axis=1, keepdims=True)
    hit = np.arange(raw.shape[1]) == y[:, None]
    return np.where(hit, -q, p) * s[:, None], p * q * s[:, None]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(300, 7), (5, 2), (9, 1200), (1, 3)], ids=str)
def test_gradient_and_hessian(shape, dtype, order, weighted):
    raw, y, weight = inputs(*shape, dtype)
    raw = np.asarray(raw, order=order)
    weight = weight.astype(dtype) if weighted else None
    before = raw.copy()
    gradient, hessian = multinomial_gradient_hessian(raw, y.astype(dtype), weight)
    theirs = HalfMultinomialLoss(n_classes=shape[1]).gradient_hessian(y.astype(dtype), raw, weight)
    np.testing.assert_array_equal(raw, before)
    unit = np.finfo(dtype).eps
    for found, right, like in zip((gradient, hessian), exact(raw, y, weight), theirs, strict=True):
        assert (found.dtype, found.flags.f_contiguous) == (like.dtype, like.flags.f_contiguous)
        np.testing.assert_allclose(found, like, rtol=0, atol=8 * unit)
        lost = (np.arange(shape[1]) != y[:, None]) & (probabilities(raw) > 0.25)  # 1 - p has few digits there
        error = np.abs(found - right) / np.where(lost & (found is hessian), 0.25, np.abs(right))
        assert error.max() <= 128 * unit


def test_gradients_of_other_layouts_and_types():
    raw, y, _ = inputs(40, 6)
    right = multinomial_gradient_hessian(raw, y)
    views = [raw.repeat(2, 0)[::2], raw[::-1][::-1], raw.astype(">f8"), np.asfortranarray(raw)]
    ys = [y.tolist(), y.astype(np.uint8), y.astype(">i2"), y.astype(np.float32)]
    for view, classes in zip(views, ys, strict=True):
        for one, other in zip(multinomial_gradient_hessian(view, classes), right, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13)
    whole = np.rint(raw).astype(np.int8)
    for one, other in zip(
        multinomial_gradient_hessian(whole, y), multinomial_gradient_hessian(whole.astype(float), y), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert [a.shape for a in multinomial_gradient_hessian(np.empty((0, 3)), [])] == [(0, 3), (0, 3)]


def test_gradients_at_the_edges():
    raw = np.array([[0.0, -np.inf, 1.0], [0.0, 800.0, -800.0], [np.nan, 0.0, 0.0]])
    gradient, hessian = multinomial_gradient_hessian(raw, [0, 1, 0])
    assert gradient[0, 1] == hessian[0, 1] == 0
    np.testing.assert_array_equal(np.abs(gradient[1]), 0)
    np.testing.assert_array_equal(hessian[1], 0)
    assert np.isnan(gradient[2]).all()
    assert np.isnan(hessian[2]).all()
    assert np.isfinite(gradient[:2]).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_have_the_same_bits_for_any_number_of_threads(order):
    raw, y, weight = inputs(2500, 999, np.float32)
    raw = np.asarray(raw, order=order)
    before = fastxent.get_num_threads()
    found = []
    try:
        for n in (1, 2, 5):
            fastxent.set_num_threads(n)
            found.append([a.tobytes() for a in multinomial_gradient_hessian(raw, y, weight)])
    finally:
        fastxent.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    part = multinomial_gradient_hessian(raw[100:103], y[100:103], weight[100:103])
    if order == "C":
        whole = multinomial_gradient_hessian(raw, y, weight)
        assert part[1].tobytes() == whole[1][100:103].tobytes()


def test_gradients_need_no_memory_but_their_own():
    raw, y, _ = inputs(4000, 500)
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        multinomial_gradient_hessian(raw, y)
        new = tracemalloc.get_traced_memory()[1]
        given = np.empty_like(raw), np.empty_like(raw)
        start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        out = multinomial_gradient_hessian(raw, y, gradient_out=given[0], hessian_out=given[1])
        more = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    assert out[0] is given[0]
    assert out[1] is given[1]
    spare = fastxent.get_num_threads() * (1 << 16) + (1 << 17)
    assert 2 * raw.nbytes <= new <= 2 * raw.nbytes + spare
    assert more <= spare


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (IndexError, r"y\[1\] is 3, outside \[0, 3\)", {"y": [0, 3]}),
        (IndexError, r"y\[0\] is -1", {"y": [-1, 0]}),
        (IndexError, r"y\[1\] is nan", {"y": [0.0, np.nan]}),
        (ValueError, r"y\[1\] is 0.5, not a whole number", {"y": [0, 0.5]}),
        (ValueError, r"y must have the shape \(2,\); got \(3,\)", {"y": [0, 1, 2]}),
        (TypeError, "y must hold the numbers", {"y": ["a", "b"]}),
        (ValueError, "raw_prediction must have the shape", {"raw_prediction": np.zeros(2)}),
        (TypeError, "must be float32 or float64; got float16", {"raw_prediction": np.zeros((2, 3), np.float16)}),
        (TypeError, "got complex128", {"raw_prediction": np.zeros((2, 3), complex)}),
        (ValueError, "sample_weight must have the shape", {"sample_weight": [1.0]}),
        (TypeError, "sample_weight must hold numbers", {"sample_weight": ["a", "b"]}),
        (ValueError, "gradient_out must be an array of float64", {"gradient_out": np.empty((2, 3), np.float32)}),
        (ValueError, "hessian_out must be an array .* got list", {"hessian_out": [[0.0] * 3] * 2}),
        (ValueError, "hessian_out is read-only", {"hessian_out": np.broadcast_to(0.0, (2, 3))}),
    ],
)
def test_gradient_errors(error, match, change):
    arguments = {"raw_prediction": np.zeros((2, 3)), "y": [0, 1]} | change
    with pytest.raises(error, match=match):
        multinomial_gradient_hessian(**arguments)


def test_gradient_outputs_may_not_overlap():
    raw = np.zeros((2, 3))
    for change in ({"gradient_out": raw}, {"gradient_out": (a := np.empty((2, 3))), "hessian_out": a}):
        with pytest.raises(ValueError, match="must not overlap"):
            multinomial_gradient_hessian(raw, [0, 1], **change)


# --- log_loss


def probabilities(raw):
    return fastxent.softmax(np.asarray(raw, float))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "names",
    [np.arange(4), np.array([-3, 5, 10**12, 2**62]), np.array(["a", "bb", "c", "ddd"]), np.array([-1.0, 0.0, 2.0, 9.0]),
     np.array(["x", "y", "z", "zz"], object)],
    ids=["indices", "integers", "strings", "floats", "objects"],
)  # fmt: skip
def test_log_loss(names, weighted):
    raw, y, weight = inputs(60, 4)
    weight = weight if weighted else None
    right = metrics.log_loss(names[y], probabilities(raw), sample_weight=weight)
    found = log_loss(names[y], raw, sample_weight=weight)
    assert type(found) is float
    assert found == pytest.approx(right, rel=1e-13)
    assert log_loss(names[y].tolist(), raw.tolist(), sample_weight=weight) == pytest.approx(right, rel=1e-13)
    assert log_loss(names[y], raw.astype(np.float32), sample_weight=weight) == pytest.approx(right, rel=1e-5)
    # Some classes missing, labels out of order; log-probabilities; columns of a frame.
    some = np.flatnonzero(y < 2)
    right = metrics.log_loss(names[y[some]], probabilities(raw[some]), labels=names)
    assert log_loss(names[y[some]], raw[some], labels=names[::-1]) == pytest.approx(right, rel=1e-13)
    assert log_loss(names[y[some]], fastxent.log_softmax(raw[some]), labels=names) == pytest.approx(right, rel=1e-13)


@pytest.mark.parametrize("names", [[0, 1], [-1, 1], ["no", "yes"], [False, True]], ids=str)
def test_log_loss_of_two_classes(names):
    names = np.array(names)
    rng = np.random.default_rng(2)
    raw, y, weight = 3 * rng.standard_normal(50), rng.integers(0, 2, 50), rng.random(50)
    p = 1 / (1 + np.exp(-raw))
    for s in (None, weight):
        right = metrics.log_loss(names[y], p, sample_weight=s)
        for values in (raw, raw[:, None], np.stack([np.zeros(50), raw], 1), raw.astype(np.float32)):
            found = log_loss(names[y], values, sample_weight=s)
            assert found == pytest.approx(right, rel=1e-5 if values.dtype == np.float32 else 1e-13)
    assert log_loss(names[[1, 1]], [2.0, 3.0], labels=names) == pytest.approx(np.log1p(np.exp([-2.0, -3.0])).mean())


def test_log_loss_of_an_indicator_matrix():
    raw, y, weight = inputs(30, 4)
    one_hot = np.eye(4, dtype=int)[y]
    assert log_loss(one_hot, raw, sample_weight=weight) == pytest.approx(log_loss(y, raw, sample_weight=weight))
    q = np.random.default_rng(0).dirichlet(np.ones(4), 30)
    assert log_loss(q, raw) == pytest.approx(-(q * fastxent.log_softmax(raw)).sum(1).mean())
    assert log_loss(np.eye(2)[y % 2], raw[:, 0]) == pytest.approx(log_loss(y % 2, raw[:, 0]))


def test_probabilities_keep_their_digits_beside_half_logits():
    raw, q = np.linspace(-1, 1, 18).reshape(6, 3).astype(np.float16), np.full((6, 3), 1 / 3)
    assert log_loss(q, raw) == pytest.approx(log_loss(q, raw.astype(float)), rel=1e-6)


@pytest.mark.parametrize(("weights", "match"), [
    ([1, 1, np.nan], "sample_weight contains NaN"), ([1, np.inf, 1], "sample_weight contains infinity"),
    ([1, -1, 0], "sum to zero"), ([[1], [1], [1]], "1D array"),
])
def test_log_loss_names_bad_weights(weights, match):
    with pytest.raises(ValueError, match=match):
        log_loss([0, 1, 0], np.zeros(3), sample_weight=weights)


def test_log_loss_takes_weights_of_any_type():
    assert log_loss([0, 1, 0], np.arange(3.0), sample_weight=np.array([1, 2, 3], object)) == pytest.approx(
        log_loss([0, 1, 0], np.arange(3.0), sample_weight=[1.0, 2.0, 3.0]))


def test_log_loss_does_not_clip():
    assert log_loss([0, 1], [[0.0, 1e4], [0.0, 1e4]]) == 5000.0
    assert log_loss([0, 1], [1e4, 1e4]) == 5000.0
    assert log_loss([0, 1], [[100.0, 0.0], [0.0, 100.0]]) == pytest.approx(np.exp(-100.0), rel=1e-12)
    assert log_loss([0, 1], [-100.0, 100.0]) == pytest.approx(np.exp(-100.0), rel=1e-12)
    assert log_loss([0, 1], [[0.0, 0.0], [0.0, -np.inf]]) == np.inf
    assert log_loss([0, 1], [[0.0, -np.inf], [0.0, 0.0]]) == pytest.approx(np.log(2) / 2)
    assert log_loss([0, 1, 0], [[1.0, 0.0], [0.0, 1.0], [np.nan, 0.0]], sample_weight=[1, 1, 0]) < 0.4


@pytest.mark.parametrize(
    ("y", "shape", "options"),
    [
        ([0, 0], (2, 2), {}),
        ([0, 1], (2, 3), {}),
        ([0, 1, 2], (3,), {}),
        ([0, 1], (2, 3), {"labels": [0, 1]}),
        ([0, 1], (2, 2), {"labels": [0]}),
        ([0, 5], (2, 3), {"labels": [0, 1, 2]}),
        ([0, 1, 1], (2, 2), {}),
        ([0, 1], (2, 2), {"sample_weight": [1.0]}),
        ([0, 1], (2, 2), {"sample_weight": [0.0, 0.0]}),
        ([], (0, 2), {"labels": [0, 1]}),
        ([0, 1], (2, 2, 2), {}),
        ([[1, 0, 0], [0, 1, 0]], (2, 2), {}),
        (["a", 1], (2, 2), {}),
        ([0.25, 0.75], (2, 2), {}),
        ([0, 1], (2, 2), {"labels": ["0", "1"]}),
    ],
)
def test_log_loss_refuses_what_scikit_learn_refuses(y, shape, options):
    with pytest.raises((ValueError, ZeroDivisionError)):  # older versions: zero weights divide by zero
        metrics.log_loss(y, np.full(shape, 1 / shape[-1]), **options)
    with pytest.raises(ValueError, match=r"label|classes|samples|weight|shape|inconsistent|sample"):
        log_loss(y, np.zeros(shape), **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_log_loss_refuses_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="contains NaN, infinity"):
        log_loss([0, 1], [[0.0, bad], [0.0, 0.0]])
    with pytest.raises(ValueError, match="contains NaN, infinity"):
        log_loss([0, 1], [[0.0, 1.0], [-np.inf, -np.inf]])
    with pytest.raises(TypeError, match="complex"):
        log_loss([0, 1], np.zeros((2, 2), complex))
    with pytest.raises(ValueError, match="y_true contains NaN"):
        log_loss([0.0, np.nan], np.zeros((2, 2)))


# --- neg_log_loss_scorer


def iris(classes=3):
    x, y = load_iris(return_X_y=True)
    x = x + np.random.default_rng(0).normal(size=x.shape)  # so that no probability comes near 0
    names = np.array(["setosa", "versicolor", "virginica"])
    return x[y < classes], names[y[y < classes]]


CLASSIFIERS = {
    "logistic": LogisticRegression(max_iter=1000),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "discriminant": LinearDiscriminantAnalysis(),
    "one against the rest": SGDClassifier(loss="log_loss", alpha=1.0, random_state=0),
    "log-probabilities": GaussianNB(),
    "network": MLPClassifier((4,), max_iter=20, random_state=0, early_stopping=True),
    "neighbours": KNeighborsClassifier(150),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_are_scikit_learns_own(name, classes):
    x, y = iris(classes)
    model = clone(CLASSIFIERS[name])
    if name == "neighbours":
        model.set_params(n_neighbors=len(y))
    model.fit(x, y)
    theirs = metrics.get_scorer("neg_log_loss")
    weight = np.random.default_rng(1).random(len(y))
    assert neg_log_loss_scorer(model, x, y) == pytest.approx(theirs(model, x, y), rel=1e-9)
    score = neg_log_loss_scorer(model, x, y, sample_weight=weight)
    assert score == pytest.approx(theirs(model, x, y, sample_weight=weight), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_classifier_of_margins_only_is_scored_by_them(classes):
    x, y = iris(classes)
    model = LinearSVC().fit(x, y)
    assert neg_log_loss_scorer(model, x, y) == -log_loss(y, model.decision_function(x))


def test_a_probability_of_zero_is_not_clipped():
    x, y = iris()
    model = DecisionTreeClassifier(max_depth=3, random_state=0).fit(x[::2], y[::2])
    assert neg_log_loss_scorer(model, x[1::2], y[1::2]) == -np.inf


def test_decision_values_tell_what_probabilities_have_lost():
    """Far from the border the probabilities are 0 and 1, and scikit-learn clips: its score stops growing."""
    x, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
    model = LogisticRegression().fit(x, y)
    model.coef_[:] = 1000.0
    model.intercept_[:] = 0.0
    assert neg_log_loss_scorer(model, x, 1 - y) == -1000.0
    assert metrics.get_scorer("neg_log_loss")(model, x, 1 - y) > -50


def test_scorer_in_model_selection():
    x, y = iris()
    model = make_pipeline(StandardScaler(), LogisticRegression())
    right = cross_val_score(model, x, y, scoring="neg_log_loss", cv=3)
    np.testing.assert_allclose(cross_val_score(model, x, y, scoring=neg_log_loss_scorer, cv=3), right, rtol=1e-9)
    both = cross_validate(model, x, y, scoring={"ours": neg_log_loss_scorer, "theirs": "neg_log_loss"}, cv=3)
    np.testing.assert_allclose(both["test_ours"], both["test_theirs"], rtol=1e-9)
    searches = [
        GridSearchCV(model, {"logisticregression__C": [0.01, 1.0, 100.0]}, scoring=scoring, cv=3).fit(x, y)
        for scoring in (neg_log_loss_scorer, pickle.loads(pickle.dumps(neg_log_loss_scorer)), "neg_log_loss")
    ]
    assert len({search.best_params_["logisticregression__C"] for search in searches}) == 1
    assert clone(searches[0]).scoring is not None
    assert searches[0].score(x, y) == pytest.approx(searches[2].score(x, y))


def test_a_fold_may_lack_a_class():
    x, y = iris()
    model = LogisticRegression(max_iter=1000).fit(x, y)
    some = y != "virginica"
    with pytest.raises(ValueError, match="number of classes"):
        metrics.get_scorer("neg_log_loss")(model, x[some], y[some])
    right = -metrics.log_loss(y[some], model.predict_proba(x[some]), labels=model.classes_)
    assert neg_log_loss_scorer(model, x[some], y[some]) == pytest.approx(right)
    with pytest.raises(ValueError, match="not belonging to the passed labels"):
        neg_log_loss_scorer(model, x, np.where(some, y, "rosa"))


def test_scorer_takes_part_in_metadata_routing():
    x, y = iris()
    weight = np.random.default_rng(1).random(len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        params = {"sample_weight": weight}
        model = LogisticRegression(max_iter=1000).set_fit_request(sample_weight=True)
        found = [
            cross_validate(model, x, y, scoring=scorer.set_score_request(sample_weight=True), params=params)
            for scorer in (neg_log_loss_scorer, metrics.get_scorer("neg_log_loss"))
        ]
        unweighted = neg_log_loss_scorer.set_score_request(sample_weight=False)
        other = cross_validate(model, x, y, scoring=unweighted, params=params)
    np.testing.assert_allclose(found[0]["test_score"], found[1]["test_score"], rtol=1e-9)
    assert not np.allclose(found[0]["test_score"], other["test_score"])


def test_what_is_no_classifier_is_refused():
    class Silent(ClassifierMixin):
        classes_ = np.array([0, 1])

    for model in (LinearRegression(), Silent()):
        with pytest.raises(AttributeError, match="none of the following attributes: decision_function"):
            neg_log_loss_scorer(model, [[0.0], [1.0]], [0, 1])
