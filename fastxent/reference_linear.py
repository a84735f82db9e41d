"""The oracle of the linear losses: all logits at once, in plain NumPy, for tests to compare with.

As `reference.py`, which it rests on: the same names, parameters and defaults as the public functions, float64 results.
What only says how the work is done (`gradient_filter`, `max_bytes`, `progress`) changes no value here.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import numpy as np

from . import reference, reference_scoring
from .reference import _wide


def _logits(hidden, weight, bias):
    """Of each position, rounded once to float64; an invalid operand's infinities are no reason to warn."""
    with np.errstate(all="ignore"):
        logits = _wide(hidden) @ _wide(weight).T
        return np.asarray(logits if bias is None else logits + _wide(bias), np.float64)


def linear_cross_entropy(hidden, weight, targets, *, bias=None, class_weight=None, sample_weight=None, mask=None,
                         lengths=None, ignore_index=-100, shift=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0,
                         softcap=None, reduction="mean", normalizer=None, empty_value=float("nan"), out=None,
                         num_threads=None, gradient_filter=0.0, max_bytes=256 << 20, progress=None):
    """Cross-entropy of a linear layer's logits."""
    return reference.cross_entropy(
        _logits(hidden, weight, bias), targets, class_weight=class_weight, sample_weight=sample_weight, mask=mask,
        lengths=lengths, ignore_index=ignore_index, shift=shift, label_smoothing=label_smoothing, z_loss=z_loss,
        logit_scale=logit_scale, softcap=softcap, reduction=reduction, normalizer=normalizer, empty_value=empty_value,
        out=out)


def linear_cross_entropy_and_grad(hidden, weight, targets, *, bias=None, class_weight=None, sample_weight=None,
                                  mask=None, lengths=None, ignore_index=-100, shift=0, label_smoothing=0.0,
                                  z_loss=0.0, logit_scale=1.0, softcap=None, reduction="mean", normalizer=None,
                                  empty_value=float("nan"), out=None, num_threads=None, gradient_filter=0.0,
                                  max_bytes=256 << 20, progress=None, upstream=None, out_hidden_grad=None,
                                  out_weight_grad=None, out_bias_grad=None, accumulate=False):
    """Cross-entropy of a linear layer's logits, and its gradients by hidden states, weight and bias."""
    loss, g = reference.cross_entropy_and_grad(
        _logits(hidden, weight, bias), targets, class_weight=class_weight, sample_weight=sample_weight, mask=mask,
        lengths=lengths, ignore_index=ignore_index, shift=shift, label_smoothing=label_smoothing, z_loss=z_loss,
        logit_scale=logit_scale, softcap=softcap, reduction=reduction, normalizer=normalizer, empty_value=empty_value,
        out=out, upstream=upstream)
    with np.errstate(all="ignore"):
        rows, states = _wide(g).reshape(-1, g.shape[-1]), _wide(hidden).reshape(-1, np.shape(hidden)[-1])
        counted = (rows != 0).any(axis=-1)  # what adds nothing may hold anything
        grads = ((_wide(g) @ _wide(weight)), rows[counted].T @ states[counted], rows[counted].sum(axis=0))
    outs = (out_hidden_grad, out_weight_grad, out_bias_grad)
    placed = [_put(value, out, accumulate) for value, out in zip(grads, outs, strict=True)]
    return loss, (placed[0], placed[1], None if bias is None else placed[2])


def _put(value, out, accumulate):
    value = np.asarray(value, np.float64)
    if out is None:
        return value
    out[...] = out + value if accumulate else value
    return out


def linear_token_statistics(hidden, weight, targets, *, bias=None, mask=None, lengths=None, ignore_index=-100, shift=0,
                            logit_scale=1.0, softcap=None, num_threads=None, max_bytes=256 << 20, progress=None):
    """Statistics of the targets among a linear layer's logits."""
    return reference_scoring.token_statistics(
        _logits(hidden, weight, bias), targets, mask=mask, lengths=lengths, ignore_index=ignore_index, shift=shift,
        logit_scale=logit_scale, softcap=softcap)
