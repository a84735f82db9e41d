"""An evaluation over any number of batches, in constant memory: add batches, merge evaluators, read the numbers.

An `Evaluator` keeps counts and float64 sums (`Totals`), never samples. A batch is scored by one pass of
`token_statistics` (`ScoredBatch`) and becomes totals of its own; totals are added, whether they come from a batch,
another process or a file. Counts add up to the same in any order; sums are added in the order of the calls, and another
order changes their last digits at most.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._scoring_arguments import evaluator_options, same_setting, state_argument, statistics_plan
from ._totals import Counting, Totals
from ._totals import ScoredBatch as ScoredBatch
from .statistics import TokenStatistics, run_statistics

Array = NDArray[Any]
_VERSION = 1
_LARGEST = math.log(sys.float_info.max)  # whose exponential is finite


@dataclass(frozen=True)
class Evaluation:
    """What `Evaluator.compute` returns. Losses and entropy are in nats; means over nothing are NaN."""

    nll: float  # mean loss of a valid position
    nll_stderr: float  # standard error of that mean, positions taken as independent
    perplexity: float
    bits_per_token: float
    bits_per_byte: float | None
    accuracy: float
    top_k_accuracy: dict[int, float]
    entropy: float
    ece: float  # expected calibration error
    sequence_nll: float  # mean of the sequences' own means
    n_tokens: int
    n_masked: int
    n_sequences: int

    def to_dict(self) -> dict[str, Any]:
        """The same as a dictionary."""
        return {**vars(self), "top_k_accuracy": dict(self.top_k_accuracy)}


class Evaluator:
    r"""Perplexity, accuracy, calibration and more over any number of batches, in constant memory.

    .. math::
        \mathrm{nll} = -\frac{1}{n} \sum_i \log p_i(t_i), \qquad
        \mathrm{ece} = \sum_b \frac{n_b}{n} \left| \mathrm{accuracy}_b - \mathrm{confidence}_b \right|

    over all n valid positions, and over bins b of positions by the probability of their most likely class.

    Parameters
    ----------
    top_k : sequence of int, default (1, 5)
        For each k, how often the target is among the k most likely classes (of equal ones the smaller index).
    ignore_index, shift, axis, logit_scale, softcap, num_threads
        As for `token_statistics`.
    token_bytes : array_like of int, optional
        Of shape (C,): how many bytes of text each class stands for, for `bits_per_byte`.
    calibration_bins : int, default 15
        How many bins [a, b) of equal width from 0 to 1; the last has its end too.

    Returns
    -------
    Evaluator
        With nothing counted yet.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value.

    Examples
    --------
    >>> import numpy as np
    >>> import fastxent
    >>> evaluator = fastxent.Evaluator(top_k=(1, 2))
    >>> evaluator.update(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), [1, 1])
    >>> evaluator.update(np.log([[0.5, 0.25, 0.25]]), [-100])
    >>> found = evaluator.compute()
    >>> found.n_tokens, found.n_masked, found.accuracy, found.top_k_accuracy
    (2, 1, 0.5, {1: 0.5, 2: 1.0})
    >>> round(found.perplexity, 6)  # (0.25 * 0.8) ** (-1 / 2)
    2.236068

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"
       (2015), section 3.2: expected calibration error.
    """

    def __init__(
        self,
        *,
        top_k: tuple[int, ...] = (1, 5),
        ignore_index: int | None = -100,
        shift: int = 0,
        token_bytes: ArrayLike | None = None,
        calibration_bins: int = 15,
        axis: int = -1,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        num_threads: int | None = None,
    ) -> None:
        others = (ignore_index, shift, logit_scale, softcap, num_threads)
        depths, sizes, bins = evaluator_options(top_k, token_bytes, calibration_bins, axis, others)
        self._counting = Counting(depths, np.linspace(0, 1, bins + 1)[1:-1], sizes)
        self._ignore_index, self._shift, self._axis = ignore_index, shift, axis
        self._logit_scale, self._softcap, self._num_threads = logit_scale, softcap, num_threads
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._totals = self._counting.nothing()

    def update(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
    ) -> None:
        """Add a batch: NumPy arrays, CPU tensors, anything that `token_statistics` takes.

        Each sequence counts as one for `sequence_nll` and `n_sequences`, so a sequence has to be in one batch; all
        other numbers do not mind where a batch ends. If this raises an error, nothing has been added.

        Parameters
        ----------
        logits, targets, mask, lengths
            As for `token_statistics`.
        """
        self.update_and_statistics(logits, targets, mask=mask, lengths=lengths)

    def update_and_statistics(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
    ) -> TokenStatistics:
        """Add a batch, as `update` does, and return the `token_statistics` of it: one pass over the logits for both.

        Parameters
        ----------
        logits, targets, mask, lengths
            As for `token_statistics`.

        Returns
        -------
        TokenStatistics
            As from `token_statistics` with the evaluator's options.

        Examples
        --------
        >>> import numpy as np
        >>> import fastxent
        >>> evaluator = fastxent.Evaluator()
        >>> evaluator.update_and_statistics(np.log([[0.5, 0.25, 0.25]]), [0]).rank, evaluator.compute().n_tokens
        (array([0]), 1)
        """
        batch = self.score(logits, targets, mask=mask, lengths=lengths)
        self.add(batch)
        return batch.statistics

    def score(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
    ) -> ScoredBatch:
        """Score a batch without counting it: the pass over the logits that `update` makes, for `add` to count.

        Several threads may do this at once, and the logits may change afterwards: a buffer may be read over. The
        targets are kept as they are.

        Parameters
        ----------
        logits, targets, mask, lengths
            As for `token_statistics`.

        Returns
        -------
        ScoredBatch
            Its `statistics` are those of `token_statistics`; `part` and `joined` cut and join batches.

        Examples
        --------
        >>> import numpy as np
        >>> import fastxent
        >>> evaluator = fastxent.Evaluator()
        >>> pieces = [evaluator.score(np.log([[0.5, 0.25, 0.25]]), [c]) for c in (0, 2)]
        >>> evaluator.add(pieces[0].joined(pieces))
        >>> evaluator.compute().accuracy
        0.5
        """
        plan = statistics_plan(
            logits, targets, self._axis, mask, lengths, self._ignore_index, self._shift, self._logit_scale,
            self._softcap, self._num_threads, with_top=True,
        )
        ahead = np.roll(plan.targets, -plan.shift, axis=-1) if plan.shift else plan.targets
        return ScoredBatch((*run_statistics(plan), ahead), plan.sequence_length, plan.logits.shape[plan.axis])

    def add(self, batch: ScoredBatch) -> None:
        """Count a batch that `score` of an evaluator of the same options returned."""
        self._totals = self._totals.plus(self._counting.of_batch(batch))

    def merge(self, other: Evaluator) -> None:
        """Add what another evaluator of the same options has counted.

        Only what says where targets are may differ: `ignore_index`, `shift`, `axis`.
        """
        if not isinstance(other, Evaluator):
            raise TypeError(f"other must be an Evaluator, got an object of type {type(other).__name__}")
        for (name, mine), theirs in zip(self._settings().items(), other._settings().values(), strict=True):
            same_setting(name, mine, theirs)
        self._totals = self._totals.plus(other._totals)

    def compute(self) -> Evaluation:
        """The numbers of all batches so far."""
        return self._numbers(self._totals)

    def each(self, batch: ScoredBatch) -> Iterator[Evaluation]:
        """The numbers of each entry of the first axis of a batch, as if it were a sequence and all there is.

        Nothing is counted. For many short sequences this takes much less time than an evaluator for each.

        Parameters
        ----------
        batch : ScoredBatch
            What `score` of an evaluator of the same options returned.

        Returns
        -------
        iterator of Evaluation
            One for each sequence, in order; it computes as it goes.

        Examples
        --------
        >>> import numpy as np
        >>> import fastxent
        >>> evaluator = fastxent.Evaluator()
        >>> batch = evaluator.score(np.log([[[0.5, 0.25, 0.25]] * 2, [[0.2, 0.2, 0.6]] * 2]), [[0, 1], [2, -100]])
        >>> [(found.n_tokens, found.accuracy) for found in evaluator.each(batch)]
        [(2, 0.5), (1, 1.0)]
        """
        return map(self._numbers, self._counting.of_each(batch))

    def _numbers(self, t: Totals) -> Evaluation:
        nll = _ratio(t.nll, t.tokens)
        bits = nll / math.log(2)
        spread = _ratio(t.nll_m2, t.tokens - 1)
        bins = zip(t.bin_correct, t.bin_confidence, strict=True)
        return Evaluation(
            nll=nll,
            nll_stderr=math.sqrt(_ratio(spread, t.tokens)),
            perplexity=math.exp(nll) if not nll > _LARGEST else math.inf,
            bits_per_token=bits,
            bits_per_byte=None if self._counting.token_bytes is None else _ratio(t.nll / math.log(2), t.bytes),
            accuracy=_ratio(t.correct, t.tokens),
            top_k_accuracy={k: _ratio(n, t.tokens) for k, n in zip(self._counting.top_k, t.top_k, strict=True)},
            entropy=_ratio(t.entropy, t.tokens),
            ece=_ratio(sum(abs(correct - confidence) for correct, confidence in bins), t.tokens),
            sequence_nll=_ratio(t.sequence_nll, t.sequences),
            n_tokens=t.tokens,
            n_masked=t.masked,
            n_sequences=t.sequences,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that has been counted, in the types of JSON; infinities and NaN, which it lacks, as text."""
        return {"version": _VERSION, "settings": self._settings(), "totals": self._totals.to_plain()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, in an evaluator of the same options."""
        state = state_argument(state, _VERSION)
        for name, mine in self._settings().items():
            same_setting(name, mine, state["settings"].get(name))
        try:
            self._totals = self._counting.nothing().from_plain(state["totals"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"state is not what state_dict returned: {type(error).__name__}: {error}") from error

    def _settings(self) -> dict[str, Any]:
        """What two evaluators must have in common for their counts to mean the same."""
        return {
            "top_k": list(self._counting.top_k),
            "calibration_bins": self._counting.bins,
            "token_bytes": self._counting.token_bytes is not None,
            "logit_scale": float(self._logit_scale),
            "softcap": None if self._softcap is None else float(self._softcap),
        }


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan
