"""x"""
import math
from typing import Any
import jax.numpy as jnp
from . import _arguments, _losses
from ._handler import Options

def cross_entropy(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, mask=None, lengths=None,
    ignore_index=-100, shift=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0, softcap=None, reduction="mean",
    normalizer=None, empty_value=math.nan, num_threads=None, inplace_backward=False):
    return _loss("cross_entropy", "logits", logits, targets, axis, class_weight, sample_weight, mask, lengths, normalizer,
        label_smoothing=label_smoothing, z_loss=z_loss, logit_scale=logit_scale, softcap=softcap, ignore_index=ignore_index, shift=shift,
        reduction=reduction, empty_value=empty_value, num_threads=num_threads, inplace=inplace_backward)

def _loss(name, what, x, targets, axis, class_weight, sample_weight, mask, lengths, normalizer, **given):
    x = _arguments.scores(x, what)
    axis = _arguments.class_axis(axis, x.ndim, what)
    arrays = _arguments.arrays(x, axis, targets, class_weight, sample_weight, mask, lengths)
    positions = x.shape[:axis] + x.shape[axis + 1 :]
    options = _arguments.options(x, arrays.targets, axis, positions, normalizer=normalizer, **given)
    value = _losses.loss_of(name, options, x, arrays)
    return value
nll_loss=log_softmax=logsumexp=softmax=None
