"""The oracle of the losses of single elements, of kl_div and of focal loss: plain NumPy, for tests. Never a fallback.

Same names, parameters and defaults as the public functions, float64 results, arithmetic in ``np.longdouble``; see
`fastxent.reference`, whose rules hold here. Arguments are not judged, but a probability outside [0, 1] is a ValueError.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import numpy as np

from .reference import _WIDE, _counts, _reduce, _result, _Run, _Softmax, _wide


class _Elements:
    """One call: what each loss and slope is, and what `arguments`, by the public function's names, make of them."""

    def __init__(self, arguments, positions):
        self.arguments = get = arguments.get
        self.positions = positions
        weight = np.broadcast_to(_wide(1.0 if get("sample_weight") is None else get("sample_weight")), positions)
        self.valid = _counts(positions, get("mask"), get("lengths")) & (weight != 0)
        self.weight = np.where(self.valid, weight, 0)

    def finish(self, losses, slopes=None, axis=None):
        """The value; with `slopes`, which may have a class axis more, also the gradient."""
        get = self.arguments
        with np.errstate(all="ignore"):
            losses = np.where(self.valid, self.weight * losses, 0)
            value, share = _reduce(losses, self.weight, get("reduction"), get("normalizer"), get("empty_value"))
            value = _result(value, get("out"))
            if slopes is None:
                return value
            upstream = 1 if get("upstream") is None else _wide(get("upstream"))
            scale = np.where(self.valid & (share != 0), upstream * share * self.weight, 0)
            if axis is not None:
                scale, slopes = scale[..., None], np.moveaxis(slopes, axis, -1)
            slopes = np.where(scale != 0, scale * slopes, 0)
        slopes = slopes if axis is None else np.moveaxis(slopes, -1, axis)
        return value, _result(slopes, get("out_grad"))


def _elements(formula, x, y, arguments, with_grad=False):
    """`formula` makes losses and slopes of wide x and y."""
    x, y = _wide(x), _wide(y)
    run = _Elements(arguments, x.shape)
    with np.errstate(all="ignore"):
        losses, slopes = formula(x, y, run)
    return run.finish(losses, slopes if with_grad else None)


def _times(share, value):
    """0 for a share of 0, whatever the value is."""
    return np.where(share == 0, 0, share * value)


def _binary(p, y, run):
    if (run.valid & ((p < 0) | (p > 1))).any():
        raise ValueError("probs must be from 0 to 1")
    losses = -y * np.maximum(np.log(p), -100) - (1 - y) * np.maximum(np.log1p(-p), -100)
    return losses, (p - y) / np.maximum((1 - p) * p, _WIDE(1e-12))


def _binary_of_logits(pos_weight):
    def formula(x, y, run):
        on = y if pos_weight is None else y * np.broadcast_to(_wide(pos_weight), x.shape)
        losses = _times(on, np.logaddexp(0, -x)) + _times(1 - y, np.logaddexp(0, x))
        return np.where(np.isnan(x), x, losses), (1 - y) * _sigmoid(x) - on * _sigmoid(-x)

    return formula


def _squared(x, y, run):
    return (x - y) ** 2, 2 * (x - y)


def _absolute(x, y, run):
    return np.abs(x - y), np.sign(x - y)


def _huber(delta):
    def formula(x, y, run):
        d, width = x - y, _WIDE(delta)
        near = np.abs(d) < width
        return np.where(near, d * d / 2, width * (np.abs(d) - width / 2)), np.where(near, d, width * np.sign(d))

    return formula


def _smooth_l1(beta):
    def formula(x, y, run):
        d, width = x - y, _WIDE(beta)
        near = np.abs(d) < width
        return np.where(near, d * d / 2 / width, np.abs(d) - width / 2), np.where(near, d / width, np.sign(d))

    return formula


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def binary_cross_entropy(probs, targets, *, sample_weight=None, mask=None, lengths=None, reduction="mean",
                         normalizer=None, empty_value=float("nan"), out=None, num_threads=None):
    """-y log p - (1 - y) log(1 - p), the logarithms at least -100."""
    return _elements(_binary, probs, targets, locals())


def binary_cross_entropy_and_grad(probs, targets, *, sample_weight=None, mask=None, lengths=None, reduction="mean",
                                  normalizer=None, empty_value=float("nan"), out=None, num_threads=None,
                                  upstream=None, out_grad=None):
    """The same and its gradient."""
    return _elements(_binary, probs, targets, locals(), True)


def binary_cross_entropy_with_logits(logits, targets, *, pos_weight=None, sample_weight=None, mask=None, lengths=None,
                                     reduction="mean", normalizer=None, empty_value=float("nan"), out=None,
                                     num_threads=None):
    """-w y log sigmoid(x) - (1 - y) log sigmoid(-x)."""
    return _elements(_binary_of_logits(pos_weight), logits, targets, locals())


def binary_cross_entropy_with_logits_and_grad(logits, targets, *, pos_weight=None, sample_weight=None, mask=None,
                                              lengths=None, reduction="mean", normalizer=None,
                                              empty_value=float("nan"), out=None, num_threads=None, upstream=None,
                                              out_grad=None):
    """The same and its gradient."""
    return _elements(_binary_of_logits(pos_weight), logits, targets, locals(), True)


def mse_loss(input, target, *, sample_weight=None, mask=None, lengths=None, reduction="mean", normalizer=None,
             empty_value=float("nan"), out=None, num_threads=None):
    """(x - y)**2."""
    return _elements(_squared, input, target, locals())


def mse_loss_and_grad(input, target, *, sample_weight=None, mask=None, lengths=None, reduction="mean", normalizer=None,
                      empty_value=float("nan"), out=None, num_threads=None, upstream=None, out_grad=None):
    """The same and its gradient."""
    return _elements(_squared, input, target, locals(), True)


def l1_loss(input, target, *, sample_weight=None, mask=None, lengths=None, reduction="mean", normalizer=None,
            empty_value=float("nan"), out=None, num_threads=None):
    """|x - y|."""
    return _elements(_absolute, input, target, locals())


def l1_loss_and_grad(input, target, *, sample_weight=None, mask=None, lengths=None, reduction="mean", normalizer=None,
                     empty_value=float("nan"), out=None, num_threads=None, upstream=None, out_grad=None):
    """The same and its gradient."""
    return _elements(_absolute, input, target, locals(), True)


def huber_loss(input, target, *, delta=1.0, sample_weight=None, mask=None, lengths=None, reduction="mean",
               normalizer=None, empty_value=float("nan"), out=None, num_threads=None):
    """d**2 / 2 where |d| < delta, else delta (|d| - delta / 2)."""
    return _elements(_huber(delta), input, target, locals())


def huber_loss_and_grad(input, target, *, delta=1.0, sample_weight=None, mask=None, lengths=None, reduction="mean",
                        normalizer=None, empty_value=float("nan"), out=None, num_threads=None, upstream=None,
                        out_grad=None):
    """The same and its gradient."""
    return _elements(_huber(delta), input, target, locals(), True)


def smooth_l1_loss(input, target, *, beta=1.0, sample_weight=None, mask=None, lengths=None, reduction="mean",
                   normalizer=None, empty_value=float("nan"), out=None, num_threads=None):
    """d**2 / (2 beta) where |d| < beta, else |d| - beta / 2."""
    return _elements(_smooth_l1(beta), input, target, locals())


def smooth_l1_loss_and_grad(input, target, *, beta=1.0, sample_weight=None, mask=None, lengths=None, reduction="mean",
                            normalizer=None, empty_value=float("nan"), out=None, num_threads=None, upstream=None,
                            out_grad=None):
    """The same and its gradient."""
    return _elements(_smooth_l1(beta), input, target, locals(), True)


def l2_penalty(*arrays, strength, num_threads=None):
    """The sum of squares of all arrays, times `strength`."""
    with np.errstate(all="ignore"):
        return np.float64(_WIDE(strength) * sum((_wide(a) ** 2).sum() for a in arrays))


def l2_penalty_and_grad(*arrays, strength, num_threads=None):
    """The same and its gradients."""
    return l2_penalty(*arrays, strength=strength), tuple(_result(2 * _WIDE(strength) * _wide(a)) for a in arrays)


def sigmoid(x, *, out=None, num_threads=None):
    """1 / (1 + exp(-x))."""
    with np.errstate(all="ignore"):
        return _result(_sigmoid(_wide(x)), out)


def log_sigmoid(x, *, out=None, num_threads=None):
    """-log(1 + exp(-x))."""
    with np.errstate(all="ignore"):
        return _result(-np.logaddexp(0, -_wide(x)), out)


def tanh(x, *, out=None, num_threads=None):
    """tanh(x)."""
    return _result(np.tanh(_wide(x)), out)


def _divergence(logits, target_logits, axis, arguments, with_grad=False):
    """A sum of terms that are not negative, as in the kernels: a plain sum loses half of the digits near 0."""
    with np.errstate(all="ignore"):
        of_q, of_p = (_Softmax(np.moveaxis(_wide(x), axis, -1)) for x in (logits, target_logits))
        p, q = of_p.p, of_q.p
        d = (of_p.below_top - of_q.below_top) - (of_p.log1p_s - of_q.log1p_s)[..., None]
        terms = np.where(np.abs(d) < 1, p * (d + np.expm1(-d)), q + p * (d - 1))
        losses = np.where(np.isneginf(of_p.below_top), q, terms).sum(axis=-1)
        losses = np.where(of_p.defined & of_q.defined, losses, np.nan)
        slopes = np.where(np.abs(d) < 1, p * np.expm1(-d), q - p)
        slopes = np.where(np.isneginf(of_p.below_top), q, slopes)
        slopes = np.where(np.isnan(losses)[..., None], np.nan, slopes)
    run = _Elements(arguments, losses.shape)
    return run.finish(losses, np.moveaxis(slopes, -1, axis) if with_grad else None, axis)


def kl_div(logits, target_logits, *, axis=-1, sample_weight=None, mask=None, lengths=None, reduction="mean",
           normalizer=None, empty_value=float("nan"), out=None, num_threads=None):
    """The sum of p (log p - log q), q = softmax(logits), p = softmax(target_logits)."""
    return _divergence(logits, target_logits, axis, locals())


def kl_div_and_grad(logits, target_logits, *, axis=-1, sample_weight=None, mask=None, lengths=None, reduction="mean",
                    normalizer=None, empty_value=float("nan"), out=None, num_threads=None, upstream=None,
                    out_grad=None):
    """The same and its gradient."""
    return _divergence(logits, target_logits, axis, locals(), True)


class _Focal:
    """Cross-entropy of classes of weight alpha, times (1 - p_t)**gamma; 1 - p_t from the other classes."""

    def __init__(self, gamma, alpha):
        self.gamma, self.alpha = gamma, alpha

    def __call__(self, x, c):
        row = _Softmax(x)
        at = c != 0
        p = np.where(at, row.p, 0).sum(axis=-1)
        rest = np.where(at, 0, row.p).sum(axis=-1)
        loss = np.where(at, row.log1p_s[..., None] - row.below_top, 0).sum(axis=-1)
        alpha = (at * np.broadcast_to(_wide(1.0 if self.alpha is None else self.alpha), c.shape)).sum(axis=-1)
        power = rest**self.gamma if self.gamma else np.ones_like(rest)
        ratio = np.where((p == 0) | (rest == 0), 0, p * loss / rest)
        slope = alpha * power * (1 + self.gamma * ratio)
        slopes = slope[..., None] * np.where(at, -rest[..., None], row.p)
        losses = np.where(alpha * power == 0, 0, alpha * power * loss)
        return (np.where(row.defined, losses, np.nan), np.where(row.defined[..., None], slopes, np.nan), row)


def focal_loss(logits, targets, *, gamma=2.0, alpha=None, axis=-1, sample_weight=None, mask=None, lengths=None,
               ignore_index=-100, shift=0, reduction="mean", normalizer=None, empty_value=float("nan"), out=None,
               num_threads=None):
    """-alpha_t (1 - p_t)**gamma log p_t."""
    return _Run(_Focal(gamma, alpha), logits, locals()).loss()


def focal_loss_and_grad(logits, targets, *, gamma=2.0, alpha=None, axis=-1, sample_weight=None, mask=None, lengths=None,
                        ignore_index=-100, shift=0, reduction="mean", normalizer=None, empty_value=float("nan"),
                        out=None, num_threads=None, upstream=None, out_grad=None):
    """The same and its gradient."""
    run = _Run(_Focal(gamma, alpha), logits, locals())
    return run.loss(), run.gradient()
