"""The demo's two language models: counted trigrams, and a small network trained by gradient descent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint8]
Lengths = NDArray[np.int64]
Floats = NDArray[np.float32]


class Trigrams:
    """p(symbol | the two before it), interpolated with shorter contexts by the rule of Witten and Bell.

    p_n(c | h) = (count(h c) + kinds(h) · p_{n-1}(c | h')) / (count(h) + kinds(h)), where kinds(h) is the number of
    different symbols seen after h, h' is h without its first symbol, and p_0 is uniform.
    """

    def __init__(self, tokens: Tokens, lengths: Lengths, n_symbols: int) -> None:
        followed = np.arange(tokens.shape[1]) < lengths[:, None] - 1
        before, last = _contexts(tokens, 2)[followed].astype(np.intp).T
        following = tokens[:, 1:][followed[:, :-1]]
        cells = (before * n_symbols + last) * n_symbols + following
        trigrams = np.bincount(cells, minlength=n_symbols**3).reshape(3 * (n_symbols,))
        probs = np.full(n_symbols, 1 / n_symbols)
        for counts in (trigrams.sum((0, 1)), trigrams.sum(0), trigrams):
            total = counts.sum(-1, keepdims=True)
            kinds = np.count_nonzero(counts, axis=-1, keepdims=True)
            probs = np.where(total > 0, (counts + kinds * probs) / np.maximum(total + kinds, 1), probs)
        self.log_probs = np.log(probs).astype(np.float32)

    def logits(self, tokens: Tokens) -> Floats:
        """At each time, float32 logits of the next symbol: (sentences, time, symbols)."""
        before, last = np.moveaxis(_contexts(tokens, 2), -1, 0)
        logits: Floats = self.log_probs[before, last]
        return logits


class Network:
    """logits = tanh([E[c_{t-5}], …, E[c_t]] · W + b) · V + a: one hidden layer over the last six symbols."""

    CONTEXT, WIDTH, HIDDEN = 6, 12, 128

    def __init__(self, n_symbols: int, rng: np.random.Generator) -> None:
        def normal(rows: int, columns: int, scale: float) -> Floats:
            return (scale * rng.standard_normal((rows, columns))).astype(np.float32)

        inputs = self.CONTEXT * self.WIDTH
        self.n_symbols = n_symbols
        self.embedding = normal(n_symbols, self.WIDTH, 0.3)
        self.weight, self.bias = normal(inputs, self.HIDDEN, inputs**-0.5), np.zeros(self.HIDDEN, np.float32)
        self.out_weight, self.out_bias = np.zeros((self.HIDDEN, n_symbols), np.float32), np.zeros(n_symbols, np.float32)
        self.parameters = [self.embedding, self.weight, self.bias, self.out_weight, self.out_bias]
        self.velocities = [np.zeros_like(parameter) for parameter in self.parameters]

    def logits(self, tokens: Tokens) -> Floats:
        """At each time, float32 logits of the next symbol: (sentences, time, symbols). Keeps what `descend` needs."""
        self.contexts = _contexts(tokens, self.CONTEXT)
        self.inputs = self.embedding[self.contexts].reshape(tokens.size, -1)
        self.hidden = np.tanh(self.inputs @ self.weight + self.bias)
        logits: Floats = (self.hidden @ self.out_weight + self.out_bias).reshape(*tokens.shape, self.n_symbols)
        return logits

    def descend(self, logits_grad: Floats, rate: float, momentum: float = 0.9) -> None:
        """One step of gradient descent with momentum, from the gradient for what `logits` returned last."""
        grad = logits_grad.reshape(-1, self.n_symbols)
        hidden_grad = (grad @ self.out_weight.T) * (1 - self.hidden**2)
        inputs_grad = (hidden_grad @ self.weight.T).reshape(-1, self.WIDTH)
        symbols = self.contexts.reshape(-1)
        embedding_grad = [np.bincount(symbols, column, self.n_symbols) for column in inputs_grad.T]
        grads = [np.transpose(embedding_grad), self.inputs.T @ hidden_grad, hidden_grad.sum(0)]
        grads += [self.hidden.T @ grad, grad.sum(0)]
        for parameter, velocity, parameter_grad in zip(self.parameters, self.velocities, grads, strict=True):
            velocity *= momentum
            velocity += parameter_grad
            parameter -= rate * velocity


def _contexts(tokens: Tokens, width: int) -> Tokens:
    """The last `width` symbols up to and including each time, oldest first: (sentences, time, width)."""
    padded = np.pad(tokens, ((0, 0), (width - 1, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
