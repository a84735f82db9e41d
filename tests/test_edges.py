"""Where results go and where calls end: outputs of the caller, bad class indices, one class, none, no positions."""

import cases
import ml_dtypes
import numpy as np
import pytest

import fastxent
from fastxent import reference

on_every_engine = pytest.mark.parametrize("engine", cases.engines(), ids=lambda e: "-".join(filter(None, e)))
every_float = pytest.mark.parametrize("dtype", cases.FLOATS)
same = np.testing.assert_array_equal

BOTH = {
    "logits": fastxent.cross_entropy_and_grad,
    "log_probs": fastxent.nll_loss_and_grad,
    "probs": fastxent.cross_entropy_from_probs_and_grad,
}
FORWARD = {
    "logits": fastxent.cross_entropy,
    "log_probs": fastxent.nll_loss,
    "probs": fastxent.cross_entropy_from_probs,
}
NONE = {"reduction": "none"}


@on_every_engine
@every_float
def test_out_shares_memory(dtype, engine):
    random = cases.rng(100)
    logits, targets = cases.scores(random, (6, 9, 33), cases.FLOATS[dtype]), random.integers(0, 33, (6, 9))
    computed = cases.computed_in(logits.dtype)
    with cases.running_on(*engine):
        loss, gradient = fastxent.cross_entropy_and_grad(logits, targets, **NONE)
        out, out_grad = np.empty((6, 9), computed), np.empty_like(logits)
        got = fastxent.cross_entropy_and_grad(logits, targets, out=out, out_grad=out_grad, **NONE)
        assert got[0] is out and got[1] is out_grad
        same(out, loss)
        same(out_grad, gradient)
        assert fastxent.cross_entropy(logits, targets, out=out, **NONE) is out
        assert fastxent.cross_entropy_grad(logits, targets, out_grad=out_grad, **NONE) is out_grad
        expected = fastxent.softmax(logits)
        _, p = fastxent.cross_entropy_and_softmax(logits, targets, out_softmax=out_grad)
        assert p is out_grad
        same(p, expected)
        in_place = logits.copy()
        assert fastxent.cross_entropy_and_grad(in_place, targets, out_grad=in_place, **NONE)[1] is in_place
        same(in_place, gradient)
        in_place = logits.copy()
        assert fastxent.softmax(in_place, out=in_place) is in_place
        same(in_place, expected)


@on_every_engine
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("wrong", [-1, 7, 2**40])
def test_a_bad_class_index_writes_nothing(wrong, kind, engine):
    case = cases.build(cases.rng(91), (4, 5, 7), -1, "float32", kind)
    targets = case.targets.copy()
    targets[2, 3] = wrong
    for options in (
        {},
        {"mask": targets == targets},
        {"class_weight": np.ones(7)},
        {"lengths": np.full(4, 5)},
        {"shift": 1},
    ):
        in_place, out = case.scores.copy(), np.full((4, 5), 123.0, "f4")
        place = (2, 2) if options.get("shift") else (2, 3)
        with cases.running_on(*engine):
            message = rf"\({place[0]}, {place[1]}\).* {wrong}"
            for reduction in ("none", "sum", "mean", "sequence_mean"):
                with pytest.raises(IndexError, match=message):
                    FORWARD[kind](case.scores, targets, reduction=reduction, **options)
            with pytest.raises(IndexError, match=message):
                FORWARD[kind](case.scores, targets, out=out, **NONE, **options)
            with pytest.raises(IndexError, match=message):
                BOTH[kind](in_place, targets, out=out, out_grad=in_place, **NONE, **options)
            assert (out == 123).all()
            same(in_place, case.scores)
            hidden = np.ones((4, 5), bool)
            hidden[2, 3] = False
            assert np.isfinite(FORWARD[kind](case.scores, targets, **(options | {"mask": hidden})))


@on_every_engine
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_one_class_is_plus_zero(dtype, engine):
    with cases.running_on(*engine):
        for shape, axis in (((5, 1), 1), ((1, 5), 0), ((3, 1, 40), 1), ((1,), 0)):
            logits = cases.scores(cases.rng(92), shape, cases.DTYPES[dtype])
            targets = np.zeros(np.delete(shape, axis), int)
            for options in (
                {},
                {"label_smoothing": 0.3},
                {"class_weight": [2.0]},
                {"logit_scale": 3.0},
                {"softcap": 2.0},
            ):
                loss, gradient = fastxent.cross_entropy_and_grad(logits, targets, axis=axis, **NONE, **options)
                for values in (
                    loss,
                    gradient.astype(float),
                    fastxent.cross_entropy(logits, targets, axis=axis, **options),
                ):
                    same(values, np.zeros_like(values))
                    assert not np.signbit(values).any()
            values = fastxent.log_softmax(logits, axis=axis).astype(float)
            assert not values.any() and not np.signbit(values).any()


@on_every_engine
@every_float
def test_equal_logits_are_the_logarithm_of_their_number(dtype, engine):
    u = 2.0**-52 if dtype == "float64" else 2.0**-23
    with cases.running_on(*engine):
        for n in cases.CLASS_COUNTS:
            for value in (0.0, -3.0, 6e4, -6e4):
                logits = np.full((3, n), value).astype(cases.FLOATS[dtype])
                for x, axis in ((logits, 1), (logits.T.copy(), 0)):
                    losses = fastxent.cross_entropy(x, np.zeros(3, int), axis=axis, **NONE)
                    np.testing.assert_allclose(losses, np.log(n), rtol=4 * u)


@on_every_engine
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", 1e37), ("float32", 3e38), ("float64", 1e280), ("float64", 1e300)]
)
def test_the_largest_scales(dtype, scale, engine):
    """Differences times the scale are 0 or without end to an exponential; equal logits stay equal."""
    with cases.running_on(*engine):
        for n in (3, 30, 400):
            rows = np.tile(np.arange(n, dtype=dtype) % 3 / 4, (9, 1))
            equals = np.count_nonzero(rows[0] == 0.5)
            for axis, logits in ((1, rows), (0, rows.T.copy())):
                loss = fastxent.cross_entropy(logits, np.full(9, 2), axis=axis, logit_scale=scale, **NONE)
                np.testing.assert_allclose(loss, np.log(equals), rtol=1e-6, atol=0)


@on_every_engine
def test_a_subclass_as_an_output(engine):
    """np.matrix keeps two axes whatever is taken of it."""
    with cases.running_on(*engine):
        for axis, shape in ((1, (3, 1)), (0, (1, 4))):
            memory = np.full(64, 7.0)
            out = memory[8 : 8 + max(shape)].reshape(shape).view(np.matrix)
            assert fastxent.logsumexp(np.zeros((3, 4)), axis=axis, keepdims=True, out=out) is out
            same(np.asarray(out), fastxent.logsumexp(np.zeros((3, 4)), axis=axis, keepdims=True))
            assert (memory[:8] == 7).all() and (memory[8 + max(shape) :] == 7).all()
        out = np.full((3, 4), 5.0).view(np.matrix)
        arguments = np.zeros((3, 4)), np.full((3, 4), 0.25)
        options = {"mask": [1, 0, 1], "reduction": "sequence_mean"}
        fastxent.kl_div_and_grad(*arguments, out_grad=out, **options)
        same(np.asarray(out), fastxent.kl_div_and_grad(*arguments, **options)[1])


@on_every_engine
@pytest.mark.parametrize("n", [1, 300, 50_000])
def test_an_infinite_loss_among_many_is_infinite(n, engine):
    logits, targets = np.zeros((n, 30)), np.zeros(n, int)
    logits[n // 3, 0] = -np.inf
    values = logits[:, 0] * -1.0
    with cases.running_on(*engine):
        for reduction in ("sum", "mean", "sequence_mean", "batch_mean"):
            assert fastxent.cross_entropy(logits, targets, reduction=reduction) == np.inf
            assert fastxent.cross_entropy_and_grad(logits, targets, reduction=reduction)[0] == np.inf
            assert fastxent.sequence_reduce(values, reduction=reduction) == np.inf
        assert fastxent.mse_loss(values, np.zeros(n)) == np.inf
        values[n // 2] = np.nan
        assert np.isnan(fastxent.mse_loss(values, np.zeros(n)))


@on_every_engine
def test_no_positions_and_no_classes(engine):
    with cases.running_on(*engine):
        for dtype in cases.DTYPES.values():
            for shape in ((0, 3), (0, 4, 3), (2, 0, 3), (0, 0)):
                empty, targets = np.ones(shape, dtype), np.ones(shape[:-1], int)
                loss, gradient = fastxent.cross_entropy_and_grad(empty, targets, **NONE)
                assert loss.shape == shape[:-1] and gradient.shape == shape
                assert fastxent.cross_entropy(empty, targets, reduction="sum") == 0
                assert np.isnan(fastxent.cross_entropy(empty, targets))
                for reduction in ("mean", "sequence_mean"):
                    assert fastxent.cross_entropy(empty, targets, reduction=reduction, empty_value=3.0) == 3.0
            with pytest.raises(ValueError, match="class"):
                fastxent.cross_entropy(np.ones((2, 0), dtype), np.ones(2, int))


def test_more_than_two_to_the_32_elements():
    """By zero strides: one row in memory, 66 000 times."""
    row = np.linspace(-5, 5, 66_000, dtype=np.float32)
    logits = np.broadcast_to(row, (66_000, row.size))
    assert logits.size > 2**32
    targets = np.broadcast_to(np.int64(row.size - 1), 66_000)
    one = fastxent.cross_entropy(row, row.size - 1)
    np.testing.assert_allclose(fastxent.cross_entropy(logits, targets), one, rtol=1e-15)
    np.testing.assert_allclose(fastxent.cross_entropy(logits, targets, reduction="sum"), 66_000 * one, rtol=1e-14)


@on_every_engine
@pytest.mark.parametrize("shape", [(30000,), (4000, 3), (1, 5000)])
def test_many_equal_weights_do_not_drift(shape, engine):
    """0.1 is not exact: added plainly thousands of times, its sum and every gradient's scale are off by dozens of u."""
    n, u = int(np.prod(shape)), 2.0**-52
    for weight in (np.full(shape, 0.1), np.full(shape[-1:], 0.1)):
        with cases.running_on(*engine):
            _, gradient = fastxent.cross_entropy_and_grad(
                np.zeros((*shape, 2)), np.zeros(shape, int), sample_weight=weight
            )
            np.testing.assert_allclose(gradient[..., 0], -0.5 / n, rtol=4 * u)
            _, gradient = fastxent.mse_loss_and_grad(np.ones(shape), np.zeros(shape), sample_weight=weight)
            np.testing.assert_allclose(gradient, 2 / n, rtol=4 * u)
            _, gradient = fastxent.kl_div_and_grad(
                np.zeros((*shape, 2)), np.broadcast_to([0.0, -np.inf], (*shape, 2)), sample_weight=weight
            )
            np.testing.assert_allclose(gradient[..., 0], -0.5 / n, rtol=4 * u)


@on_every_engine
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 300])
def test_z_loss_of_the_largest_logits(n, dtype, engine):
    """2 z_loss logsumexp, or its square, may be beyond the compute type where gradient and loss are not."""
    info, u = ml_dtypes.finfo(cases.FLOATS[dtype]), 2.0 ** -(52 if dtype == "float64" else 23)
    largest, kind, positions = float(info.max), cases.FLOATS[dtype], 1000 if n < 17 else 100
    stored = 2.0**-7 if dtype == "bfloat16" else 0.0
    oracle = [reference] if dtype != "float64" or np.finfo(np.longdouble).max > largest else []
    weight = np.full(positions, 0.25)
    with cases.running_on(*engine):
        for z_loss, scale in ((0.75, 1.0), (1.0, 1.0), (100.0, 1.0), (0.01, 16.0)):
            expected = np.full((positions, n), 2 * z_loss * scale * scale / positions / n * largest)
            x = np.full((positions, n), largest).astype(kind)
            for targets in (np.arange(positions) % n, np.full((positions, n), 1 / n)):
                for options in ({}, {"label_smoothing": 0.25}, {"sample_weight": weight}):
                    for module in (fastxent, *oracle):
                        found = module.cross_entropy_grad(x, targets, z_loss=z_loss, logit_scale=scale, **options)
                        np.testing.assert_allclose(found.astype(float), expected, rtol=16 * u + stored)
            columns = fastxent.cross_entropy_grad(
                np.ascontiguousarray(x.T), np.arange(positions) % n, axis=0, z_loss=z_loss, logit_scale=scale
            )
            np.testing.assert_allclose(columns.T.astype(float), expected, rtol=16 * u + stored)
        x = np.full((40, n), 2.0 ** (info.maxexp // 2 + 10)).astype(kind)
        for module in (fastxent, *oracle):
            found = module.cross_entropy(x, np.zeros(40, int), z_loss=2.0**-40, reduction="none")
            np.testing.assert_allclose(found.astype(float), 2.0 ** (2 * (info.maxexp // 2) - 20), rtol=8 * u)


@on_every_engine
@every_float
def test_softcap_without_an_effect(dtype, engine):
    """Of a cap that leaves every logit as it is, up to those that the compute type cannot hold."""
    x, u = cases.scores(cases.rng(94), (9, 20), cases.FLOATS[dtype]), 2.0**-52 if dtype == "float64" else 2.0**-23
    targets = np.arange(9)
    with cases.running_on(*engine):
        for softcap, scale in ((1e30, 1.0), (3e38, 1.0), (3e38, 1e-3), (1e39, 1.0), (1e39, 16.0), (1.7e308, 2.0)):
            options, rtol = {"logit_scale": scale}, 64 * u * (1 + 4 * scale)  # what moves z moves a small p as much
            loss, gradient = fastxent.cross_entropy_and_grad(x, targets, softcap=softcap, **NONE, **options)
            expected = reference.cross_entropy_and_grad(x, targets, **NONE, **options)
            np.testing.assert_allclose(loss, expected[0].astype(float), rtol=rtol)
            atol = rtol * scale + (2.0**-8 * scale if dtype in ("float16", "bfloat16") else 0)
            np.testing.assert_allclose(gradient.astype(float), expected[1].astype(float), rtol=0, atol=atol)
            got = fastxent.token_statistics(x, targets, softcap=softcap, **options).log_prob
            np.testing.assert_allclose(got, -expected[0].astype(float), rtol=rtol)
            best = fastxent.top_k_log_probs(x, 3, softcap=softcap, **options).values
            np.testing.assert_allclose(best, fastxent.top_k_log_probs(x, 3, **options).values, rtol=rtol)
