"""How far a correct engine may be from the oracle, from the contract and the roundings that an option adds.

u is 2^-23 for results computed in float32, 2^-52 for float64: twice the largest relative error of one rounding. The
contract bounds what costs most: the loss of a class index to (4 + gap) u, gradient and softmax to (8 + 2 range) u, gap
and range being those between the two largest logits, and the largest and the smallest finite one. What options add:

- coefficients (class weights, probabilities, smoothing): each is a product of at most three rounded factors, and their
  sum W and the sum of the terms are rounded: COEFFICIENT u.
- scale factors (sample weight, upstream, 1 / divisor, and their product): SCALE u.
- softcap: z = cap tanh(x/cap) is right to TANH u |z|, which moves every difference z - m by as much, absolutely; the
  slope 1 - tanh^2 is right to TANH u, absolutely.
- label smoothing with class weights: W p - c, the form of every class but the target, cancels where the most likely
  class is not the target and has nearly all of the weight W itself; elsewhere -(others + c s) / (1 + s) does not.
- z_loss: m + log1p(s) may cancel: absolutely right to u (|m| + (4 + gap) log1p(s)).

Every sum here is one of magnitudes, never of signed terms: a bound says what roundings can do, not what they did.
Storage is rounded once: a result must lie between the roundings of oracle - bound and oracle + bound.
"""

import cases
import numpy as np

from fastxent import reference

COEFFICIENT = 4
SCALE = 3
TANH = 4


class Bounds:
    """The oracle's answer to a case, and the error allowed in each part of it."""

    def __init__(self, case, upstream=None):
        formulas = {
            "logits": reference._cross_entropy,
            "log_probs": reference._nll,
            "probs": reference._nll_of_probs,
        }
        names = ("z_loss", "logit_scale", "softcap")
        options = {k: v for k, v in case.options.items() if k in names}
        defaults = {"axis": case.axis, "targets": case.targets, "ignore_index": -100, "shift": 0, "upstream": upstream}
        run = reference._Run(
            formulas[case.kind], case.scores, defaults | {"reduction": "mean"} | case.options, **options
        )
        self.case, self.run = case, run
        self.stored = cases.stored_as(case.scores.dtype)
        self.single = cases.computed_in(case.scores.dtype) == np.float32
        self.u = 2.0**-23 if self.single else 2.0**-52
        self.tiny = 1e-30 if self.single else 1e-300  # below this, digits may be lost
        with np.errstate(all="ignore"):
            (self._of_logits if case.kind == "logits" else self._of_logs)(**options)
        self.loss_error = np.where(run.terms.valid, self.loss_error * np.abs(run.terms.weight), 0)

    def _of_logits(self, z_loss=0.0, logit_scale=1.0, softcap=None):
        row, c = self.run.row, np.abs(self.run.terms.coefficients)
        u, s = self.u, row.s
        below = np.where(np.isfinite(row.below_top), -row.below_top, 0)
        reach = below.max(axis=-1, initial=0)
        gap = np.where(row.at_top | ~np.isfinite(row.below_top), np.inf, -row.below_top).min(axis=-1, initial=np.inf)
        gap = np.where(np.isfinite(gap), gap, 0)
        sizes = np.where(c != 0, c * (row.log1p_s[..., None] + below), 0).sum(axis=-1)
        total, others = c.sum(axis=-1), np.where(row.at_top, 0, c).sum(axis=-1)
        plain_targets = self.case.targets.dtype.kind in "iu"
        plain = plain_targets and not {"class_weight", "label_smoothing"} & set(self.case.options)
        extra = 0 if plain else COEFFICIENT
        smallest = 2.0**-126 if self.single else 2.0**-1022
        loss_error = (4 + gap + extra + SCALE) * u * sizes + total * c.shape[-1] * smallest
        share = (others[..., None] + c * s[..., None]) / (1 + s)[..., None]
        accurate = row.at_top
        if plain_targets and {"class_weight", "label_smoothing"} <= set(self.case.options):
            accurate = accurate & self.run.terms.at_target
        magnitude = np.where(accurate, share, total[..., None] * row.p + c)
        steps = (8 + 2 * reach + extra + SCALE)[..., None] * u
        error = steps * magnitude + self.tiny * (total[..., None] + 1)
        moved = 2 * TANH * u * (np.abs(row.top) + reach) if softcap is not None else np.zeros_like(s)
        loss_error = loss_error + moved * (others + total * s / (1 + s))
        error = error + moved[..., None] * magnitude
        if z_loss:
            size = np.abs(row.top) + row.log1p_s
            shift = u * (np.abs(row.top) + (4 + gap) * row.log1p_s) + moved
            loss_error = loss_error + z_loss * (2 * size * shift + 4 * u * size**2)
            error = error + 2 * z_loss * row.p * (size[..., None] * (steps + 4 * u) + shift[..., None])
            magnitude = magnitude + 2 * z_loss * row.p * size[..., None]
        slope_error = TANH * u * logit_scale if softcap is not None else 0.0
        self.loss_error, self.gradient_error = loss_error, error * row.slope + slope_error * magnitude
        self.softmax_error = (steps + moved[..., None]) * row.p + self.tiny
        top_error = 4 * u * np.abs(row.top) + moved
        self.saved_error = np.stack([top_error, ((4 + reach) * u + moved) * s + c.shape[-1] * smallest], axis=-1)

    def _of_logs(self):
        x = np.moveaxis(reference._wide(self.case.scores), self.case.axis, -1)
        c = np.abs(self.run.terms.coefficients)
        log, slope = (x, 1) if self.case.kind == "log_probs" else (np.log(x), np.where(c != 0, 1 / np.abs(x), 0))
        sizes = np.where(c != 0, c * np.abs(log), 0).sum(axis=-1)
        steps = 4 + COEFFICIENT + SCALE + np.sqrt(x.shape[-1]) / 8  # the last: of a float64 sum of the classes
        self.loss_error = steps * self.u * sizes + self.tiny
        self.gradient_error = (2 + COEFFICIENT + SCALE) * self.u * c * slope + self.tiny

    # what a caller compares with

    def losses(self):
        """Value and error of what was returned: positions, or the reduced value."""
        value = np.asarray(self.run.loss())
        reduction = self.case.options.get("reduction", "mean")
        if reduction == "none":
            return value, self.loss_error
        normalizer = self.case.options.get("normalizer")
        _, share = reference._reduce(self.loss_error, self.run.terms.divisor, reduction, normalizer, 0.0)
        with np.errstate(all="ignore"):
            errors = np.where(share != 0, self.loss_error * np.abs(share), 0)
        return value, errors.sum() + 2.0**-50 * np.abs(value)

    def gradient(self):
        """Value and error of the gradient."""
        with np.errstate(all="ignore"):
            error = np.where(self.run.scale[..., None] != 0, self.gradient_error * np.abs(self.run.scale)[..., None], 0)
        error = error + np.where(self.run.scale[..., None] != 0, 2.0**-126 if self.single else 2.0**-1022, 0)
        return self.run.gradient(), np.moveaxis(error, -1, self.case.axis)

    def softmax(self):
        """Value and error of the softmax beside a loss."""
        error = np.where(self.run.terms.valid[..., None], self.softmax_error, 0)
        return self.run.softmax(None), np.moveaxis(error, -1, self.case.axis)


def assert_within(got, expected, error, label=""):
    """Equal infinities, NaN where NaN, and else between the roundings to `got`'s type of expected -+ error."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{label}: shape {got.shape}, not {expected.shape}"
    with np.errstate(all="ignore"):
        error = np.asarray(error, np.float64) * (1 + 1e-9)
        plain = np.isfinite(expected)
        error = np.where(plain, error, 0)
        low = (expected - error).astype(got.dtype).astype(np.float64)
        high = (expected + error).astype(got.dtype).astype(np.float64)
        wide = got.astype(np.float64)
        fine = np.where(np.isnan(expected), np.isnan(wide), (low <= wide) & (wide <= high))
    if not fine.all():
        where = tuple(int(i) for i in np.argwhere(~np.atleast_1d(fine))[0])
        pick = [np.atleast_1d(a)[where] for a in (wide, expected, np.broadcast_to(error, got.shape))]
        off = abs(pick[0] - pick[1]) / pick[2] if pick[2] else np.inf
        raise AssertionError(
            f"{label}: {(~fine).sum()} of {fine.size} too far; at {where} {pick[0]!r}, expected {pick[1]!r} "
            f"within {pick[2]:.3g}: {off:.3g} times the bound"
        )
