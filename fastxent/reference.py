"""The oracle: every public loss and activation in plain NumPy, for tests to compare with. It is never a fallback.

Same names, parameters and defaults as the public functions, the same meaning, float64 results. Written for a reader:
whole arrays, no blocks, no threads, memory no concern. Arithmetic is carried in ``np.longdouble`` (64 bits of mantissa
on x86), so that an error seen against this file is the other side's, in float64 too.

It follows one idea. Every loss of a position is a sum over its classes, l = sum_c c_c * (-log p_c), with coefficients
c_c made of the target, the class weights and label smoothing. ``_Terms`` finds the coefficients and says which
positions count; three small functions turn scores into losses and gradients; ``_reduce`` turns losses into the value
and says what one unit of loss at each position adds to it.

Two things matter for digits: the largest logit m is taken out of s = sum exp(z - m), exactly once, so that log1p(s)
keeps the digits of a loss near 0; and the gradient at that class is formed from what the *other* classes carry,
(W - c) - c * s, so that it keeps the digits of 1 - p. (The largest logit by the first index, where several are equal.)

Arguments are not judged here (``_arguments.py`` does that), but a class index out of range raises IndexError.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# Arguments are whatever np.asarray takes; the public functions carry the types.

import numpy as np

_WIDE = np.longdouble


def _wide(values):
    """`values` in the working precision: halves and float32 exactly, integers as float64, like the public functions."""
    return np.asarray(values).astype(np.float64).astype(_WIDE)


def _result(values, out=None):
    """Float64 without negative zeros, written into `out` if there is one."""
    values = np.asarray(values + 0.0, np.float64)
    if out is None:
        return values[()]
    out[...] = values
    return out


def _first_maximum(rows):
    """True at exactly one maximum of each row."""
    if rows.shape[-1] == 0:
        return np.zeros(rows.shape, bool)
    return np.arange(rows.shape[-1]) == rows.argmax(axis=-1)[..., None]


class _Softmax:
    """The common ground of a row: z - m, m, s without one maximum, and p; NaN unless m is finite."""

    def __init__(self, rows, logit_scale=1.0, softcap=None):
        if softcap is None:
            top = rows.max(axis=-1, initial=-np.inf)
            self.top = top * logit_scale
            self.below_top = (rows - top[..., None]) * logit_scale
            self.slope = _WIDE(logit_scale)  # dz/dx
        else:
            cap = _WIDE(softcap)
            inside = rows * logit_scale / cap
            z = np.where(np.isinf(rows), rows, cap * np.tanh(inside))
            self.top = z.max(axis=-1, initial=-np.inf)
            self.below_top = z - self.top[..., None]
            self.slope = logit_scale * np.where(np.isinf(rows), 1, 1 / np.cosh(inside) ** 2)
        self.at_top = _first_maximum(rows)
        exponentials = np.where(self.at_top, 0, np.exp(self.below_top))
        self.s = exponentials.sum(axis=-1)
        self.defined = np.isfinite(self.top)
        self.log1p_s = np.where(self.defined, np.log1p(self.s), np.nan)
        self.p = np.where(self.at_top, 1, exponentials) / (1 + self.s)[..., None]
        self.p[~self.defined] = np.nan

    def log_sum_exp(self):
        """+-inf where every logit is -inf, or one is +inf; NaN stays NaN."""
        return np.where(self.defined, self.top + self.log1p_s, self.top)


def _ahead(values, shift, time=-1):
    """`values` read `shift` steps later in time; 0 (False) where that is past the end."""
    if shift == 0:
        return values
    values = np.moveaxis(values, time, 0)
    later = np.zeros_like(values)
    if shift < len(values):
        later[: len(values) - shift] = values[shift:]
    return np.moveaxis(later, 0, time)


class _Terms:
    """Which positions count, with which weight, and the coefficients c of their -log p_c.

    valid, weight and divisor (what the position adds to the divisor of a mean) have the positions' shape;
    coefficients have one axis more, the classes. All of them are 0 at a position that is not valid.
    """

    def __init__(self, positions, n_classes, targets, axis, class_weight, sample_weight, mask, lengths, ignore_index,
                 shift, label_smoothing):
        targets = np.asarray(targets)
        is_index = targets.dtype.kind in "iu"
        weight = np.broadcast_to(_wide(1.0 if sample_weight is None else sample_weight), positions)
        valid = _counts(positions, mask, lengths) & (weight != 0)
        if is_index and ignore_index is not None and _fits(ignore_index, targets.dtype):
            valid = valid & (targets != ignore_index)

        valid, weight = _ahead(valid, shift), _ahead(weight, shift)
        w = np.ones(n_classes, _WIDE) if class_weight is None else _wide(class_weight)
        if is_index:
            index = _checked(_ahead(targets, shift), valid, n_classes)
            self.at_target = np.arange(n_classes) == index[..., None]
            q = self.at_target.astype(_WIDE)
            of_target = np.where(q != 0, w, 0).sum(axis=-1)  # also for a position without classes
        else:
            q = _ahead(np.moveaxis(_wide(targets), axis, -1), shift, time=-2)
            of_target = np.ones(positions, _WIDE)
        if label_smoothing:
            q = (1 - _WIDE(label_smoothing)) * q + _WIDE(label_smoothing) / max(n_classes, 1)
        self.valid = valid
        self.weight = np.where(valid, weight, 0)
        self.divisor = np.where(valid, weight * of_target, 0)
        self.coefficients = np.where(valid[..., None] & (q != 0) & (w != 0), q * w, 0)


def _counts(positions, mask, lengths):
    """What mask and lengths leave of the positions."""
    valid = np.ones(positions, bool)
    if mask is not None:
        valid &= np.asarray(mask) != 0
    if lengths is not None:
        valid &= np.arange(positions[-1]) < np.asarray(lengths)[..., None]
    return valid


def _fits(number, dtype):
    """Whether an integer type can hold the number: otherwise no value of that type is equal to it."""
    return np.iinfo(dtype).min <= number <= np.iinfo(dtype).max


def _checked(targets, valid, n_classes):
    """The class indices as int64, 0 where not valid."""
    index = np.where(valid, targets, np.zeros((), targets.dtype))
    outside = valid & ((index < 0) | (index >= n_classes))
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise IndexError(f"target {index[where]} at position {where} is outside [0, {n_classes})")
    return index.astype(np.int64)


def _cross_entropy(x, c, z_loss=0.0, logit_scale=1.0, softcap=None):
    """Losses and their gradient from logits, classes last, and what else a caller may ask for."""
    row = _Softmax(x, logit_scale, softcap)
    losses = np.where(c != 0, c * (row.log1p_s[..., None] - row.below_top), 0).sum(axis=-1)
    others = np.where(row.at_top, 0, c).sum(axis=-1)[..., None]
    s = row.s[..., None]
    gradient = np.where(row.at_top, (others - c * s) / (1 + s), c.sum(axis=-1)[..., None] * row.p - c)
    if z_loss:
        log_sum_exp = row.log_sum_exp()
        losses = losses + z_loss * log_sum_exp**2
        gradient = gradient + (2 * z_loss * log_sum_exp)[..., None] * row.p
    losses = np.where(row.defined, losses, np.nan)
    gradient = np.where(row.defined[..., None], gradient * row.slope, np.nan)
    return losses, gradient, row


def _nll(x, c):
    """The same from log-probabilities."""
    return np.where(c != 0, -c * x, 0).sum(axis=-1), -c, None


def _nll_of_probs(x, c):
    """The same from probabilities."""
    return np.where(c != 0, -c * np.log(x), 0).sum(axis=-1), np.where(c != 0, -c / x, 0), None


def _reduce(losses, divisors, reduction, normalizer, empty_value):
    """The value, and for each position the derivative of the value by its loss."""
    if reduction == "none":
        return losses, np.ones_like(losses)
    sequences = (int(np.prod(losses.shape[:-1])), losses.shape[-1]) if losses.ndim > 1 else (losses.size, 1)
    sums = losses.reshape(sequences).sum(axis=1)
    share = np.zeros(sequences, _WIDE)
    if reduction == "sequence_mean":
        of_sequence = divisors.reshape(sequences).sum(axis=1)
        filled = of_sequence != 0
        divisor = filled.sum()
        total = (sums[filled] / of_sequence[filled]).sum()
        share[filled] = (1 / (divisor * of_sequence[filled]))[:, None]
    else:
        by_default = {"sum": 1, "mean": divisors.sum(), "batch_mean": sequences[0]}
        divisor = _WIDE(by_default[reduction] if normalizer is None else normalizer)
        total = sums.sum()
        if divisor != 0:
            share[...] = 1 / divisor
    value = total / divisor if divisor != 0 else empty_value
    return value, share.reshape(losses.shape)


class _Run:
    """One call: `arguments` are those of the public function, by name; lacking ones have their defaults."""

    def __init__(self, formula, scores, arguments, **formula_options):
        get = arguments.get
        self.axis = get("axis")
        with np.errstate(all="ignore"):
            x = np.moveaxis(_wide(scores), self.axis, -1)
            self.terms = terms = _Terms(x.shape[:-1], x.shape[-1], get("targets"), self.axis,
                                        get("class_weight"), get("sample_weight"), get("mask"), get("lengths"),
                                        get("ignore_index"), get("shift"), get("label_smoothing", 0.0))
            losses, gradient, self.row = formula(x, terms.coefficients, **formula_options)
            self.valid = terms.valid
            losses = np.where(terms.valid, terms.weight * losses, 0)
            value, share = _reduce(losses, terms.divisor, get("reduction"), get("normalizer"),
                                   get("empty_value", np.nan))
            counted = terms.valid & (share != 0)
            upstream = 1 if get("upstream") is None else _wide(get("upstream"))
            self.scale = np.where(counted, upstream * share * terms.weight, 0)  # d value / d unweighted loss
            gradient = np.where(counted[..., None], self.scale[..., None] * gradient, 0)
        self._value, self._gradient = value, gradient
        self._out, self._out_grad = get("out"), get("out_grad")

    def loss(self):
        """The value of the reduction; an array of the positions' shape for "none"."""
        return _result(self._value, self._out)

    def gradient(self):
        """The gradient, laid out like the scores."""
        return _result(np.moveaxis(self._gradient, -1, self.axis), self._out_grad)

    def softmax(self, out):
        """The probabilities behind the loss; 0 where not valid."""
        return _result(np.moveaxis(np.where(self.terms.valid[..., None], self.row.p, 0), -1, self.axis), out)

    def saved(self):
        """(m, s) of each position; 0 where not valid."""
        pair = np.stack([self.row.top, self.row.s], axis=-1)
        return _result(np.where(self.terms.valid[..., None], pair, 0))


def cross_entropy(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None, lengths=None,
                  ignore_index=-100, shift=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=None,
                  reduction="mean", normalizer=None, empty_value=float("nan"), return_saved=False, out=None,
                  num_threads=None):
    """Cross-entropy of logits."""
    run = _Run(_cross_entropy, logits, locals(), z_loss=z_loss, logit_scale=logit_scale, softcap=softcap)
    return (run.loss(), run.saved()) if return_saved else run.loss()


def cross_entropy_and_grad(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None,
                           lengths=None, ignore_index=-100, shift=0, label_smoothing=0.0, z_loss=0.0,
                           logit_scale=1.0, softcap=None, reduction="mean", normalizer=None,
                           empty_value=float("nan"), out=None, num_threads=None, upstream=None, out_grad=None):
    """Cross-entropy of logits and its gradient."""
    run = _Run(_cross_entropy, logits, locals(), z_loss=z_loss, logit_scale=logit_scale, softcap=softcap)
    return run.loss(), run.gradient()


def cross_entropy_grad(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None, lengths=None,
                       ignore_index=-100, shift=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=None,
                       reduction="mean", normalizer=None, num_threads=None, upstream=None, saved=None,
                       out_grad=None):
    """The gradient of the cross-entropy. `saved` spares the public function a pass and changes no value: unused."""
    run = _Run(_cross_entropy, logits, locals(), z_loss=z_loss, logit_scale=logit_scale, softcap=softcap)
    return run.gradient()


def cross_entropy_and_softmax(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None,
                              lengths=None, ignore_index=-100, shift=0, label_smoothing=0.0, z_loss=0.0,
                              logit_scale=1.0, softcap=None, reduction="mean", normalizer=None,
                              empty_value=float("nan"), out=None, num_threads=None, out_softmax=None):
    """Cross-entropy of logits and the softmax of what they are after `logit_scale` and `softcap`."""
    run = _Run(_cross_entropy, logits, locals(), z_loss=z_loss, logit_scale=logit_scale, softcap=softcap)
    return run.loss(), run.softmax(out_softmax)


def cross_entropy_from_probs(probs, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None,
                             lengths=None, ignore_index=-100, shift=0, reduction="mean", normalizer=None,
                             empty_value=float("nan"), out=None, num_threads=None):
    """Cross-entropy of probabilities."""
    return _Run(_nll_of_probs, probs, locals()).loss()


def cross_entropy_from_probs_and_grad(probs, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None,
                                      lengths=None, ignore_index=-100, shift=0, reduction="mean", normalizer=None,
                                      empty_value=float("nan"), out=None, num_threads=None, upstream=None,
                                      out_grad=None):
    """Cross-entropy of probabilities and its gradient by them."""
    run = _Run(_nll_of_probs, probs, locals())
    return run.loss(), run.gradient()


def nll_loss(log_probs, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None, lengths=None,
             ignore_index=-100, shift=0, reduction="mean", normalizer=None, empty_value=float("nan"), out=None,
             num_threads=None):
    """Negative log-likelihood of log-probabilities."""
    return _Run(_nll, log_probs, locals()).loss()


def nll_loss_and_grad(log_probs, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None, lengths=None,
                      ignore_index=-100, shift=0, reduction="mean", normalizer=None, empty_value=float("nan"),
                      out=None, num_threads=None, upstream=None, out_grad=None):
    """Negative log-likelihood of log-probabilities and its gradient by them."""
    run = _Run(_nll, log_probs, locals())
    return run.loss(), run.gradient()


def softmax(x, *, axis=-1, out=None, num_threads=None):
    """Softmax: exp(x) / sum exp(x) along `axis`."""
    with np.errstate(all="ignore"):
        row = _Softmax(np.moveaxis(_wide(x), axis, -1))
    return _result(np.moveaxis(row.p, -1, axis), out)


def log_softmax(x, *, axis=-1, out=None, num_threads=None):
    """The logarithm of softmax: x - log sum exp(x) along `axis`."""
    with np.errstate(all="ignore"):
        row = _Softmax(np.moveaxis(_wide(x), axis, -1))
        values = row.below_top - row.log1p_s[..., None]
    return _result(np.moveaxis(values, -1, axis), out)


def logsumexp(x, *, axis=-1, keepdims=False, out=None, num_threads=None):
    """The logarithm of the sum of exp(x) along `axis`; -inf without classes."""
    with np.errstate(all="ignore"):
        values = _Softmax(np.moveaxis(_wide(x), axis, -1)).log_sum_exp()
    return _result(np.expand_dims(values, axis) if keepdims else values, out)


def softmax_grad(y, upstream, *, axis=-1, out=None, num_threads=None):
    """The gradient by x of sum(upstream * softmax(x)), from y = softmax(x)."""
    with np.errstate(all="ignore"):
        y, upstream = _wide(y), _wide(upstream)
        return _result(y * (upstream - (y * upstream).sum(axis=axis, keepdims=True)), out)


def log_softmax_grad(y, upstream, *, axis=-1, out=None, num_threads=None):
    """The gradient by x of sum(upstream * log_softmax(x)), from y = log_softmax(x)."""
    with np.errstate(all="ignore"):
        upstream = _wide(upstream)
        return _result(upstream - np.exp(_wide(y)) * upstream.sum(axis=axis, keepdims=True), out)


def one_hot(targets, num_classes, *, dtype=np.float32):
    """1 at each target's class on a new last axis, 0 elsewhere."""
    targets = np.asarray(targets)
    index = _checked(targets, np.ones(targets.shape, bool), num_classes)
    return (np.arange(num_classes) == index[..., None]).astype(dtype)


def lengths_to_mask(lengths, max_length=None):
    """True at the first `lengths` steps of a new last axis."""
    lengths = np.asarray(lengths)
    if max_length is None:
        max_length = int(lengths.max(initial=0))
    return np.arange(max_length) < lengths[..., None]


def sequence_reduce(losses, *, mask=None, lengths=None, weight=None, reduction="mean", normalizer=None,
                    empty_value=float("nan")):
    """The reductions alone, of losses (..., time)."""
    losses = _wide(losses)
    weight = np.broadcast_to(_wide(1.0 if weight is None else weight), losses.shape)
    valid = _counts(losses.shape, mask, lengths) & (weight != 0)
    with np.errstate(all="ignore"):
        value, _ = _reduce(np.where(valid, losses * weight, 0), np.where(valid, weight, 0), reduction, normalizer,
                           empty_value)
    return _result(value)
