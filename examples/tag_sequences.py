"""A label at each step: what a character of Python source is part of, given those up to it.

Lines of real source are (batch, time) arrays of characters, padded to the longest; `lengths` keeps the padding out of
the loss, its gradient and the accuracy. Labels come from the module ``tokenize``. The recurrent network is plain NumPy;
`fastxent.cross_entropy_and_grad` takes its logits (batch, time, classes) as they are.

    python tag_sequences.py [--plot losses.png]
"""

import argparse
import inspect
import io
import keyword
import textwrap
import tokenize

import numpy as np

import fastxent

KINDS = ("space", "name", "keyword", "number", "string", "operator", "comment")
MODULES = (argparse, inspect, textwrap)
LONGEST = 60  # characters of a line


def kind_of(token):
    """The place in KINDS of a token, or None for one that stands for no character."""
    if token.type == tokenize.NAME:
        return KINDS.index("keyword" if keyword.iskeyword(token.string) else "name")
    return {tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.OP: 5, tokenize.COMMENT: 6}.get(token.type)


def tagged_lines():
    """(line, kind of each character) of every line that no token leaves; indentation is taken off."""
    found = []
    for module in MODULES:
        source = inspect.getsource(module)
        lines = source.splitlines()
        kinds = [[0] * len(line) for line in lines]
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            (row, start), (last_row, end), kind = token.start, token.end, kind_of(token)
            if last_row > row:
                for inner in range(row, last_row + 1):  # a token of several lines: none of them can be told by itself
                    kinds[inner - 1] = None
            elif kind is not None and kinds[row - 1] is not None:
                kinds[row - 1][start:end] = [kind] * (end - start)
        for line, tags in zip(lines, kinds, strict=True):
            indent = len(line) - len(line.lstrip())
            if tags is not None and line.strip():
                found.append((line[indent:][:LONGEST], tags[indent:][:LONGEST]))
    return found


def as_arrays(examples):
    """Characters (ASCII; 1 is any other, 0 pads), their kinds, and the lengths of the lines."""
    chars_bt, kinds_bt = np.zeros((len(examples), LONGEST), int), np.zeros((len(examples), LONGEST), int)
    lengths = np.array([len(line) for line, _ in examples])
    for b, (line, kinds) in enumerate(examples):
        chars_bt[b, : len(line)] = [ord(char) if ord(char) < 128 else 1 for char in line]
        kinds_bt[b, : len(line)] = kinds
    return chars_bt, kinds_bt, lengths


def make_parameters(random, width):
    """Input (one row a character), recurrent and output weights."""
    return {
        "inward": random.normal(size=(128, width)) * 0.3,
        "again": np.linalg.qr(random.normal(size=(width, width)))[0] * 0.9,
        "bias": np.zeros(width),
        "out": random.normal(size=(width, len(KINDS))) * 0.1,
    }


def forward(p, chars_bt):
    """States (time + 1, batch, width), from 0, and logits (batch, time, kinds)."""
    states = np.zeros((chars_bt.shape[1] + 1, len(chars_bt), p["bias"].size))
    for t in range(chars_bt.shape[1]):
        states[t + 1] = np.tanh(p["inward"][chars_bt[:, t]] + states[t] @ p["again"] + p["bias"])
    return states, (states[1:] @ p["out"]).swapaxes(0, 1)


def backward(p, chars_bt, states, d_logits_btc):
    """The gradient by every parameter. At padded steps the gradient by the logits is 0: no mask is needed here."""
    grads = {name: np.zeros_like(value) for name, value in p.items()}
    d_logits_tbc = d_logits_btc.swapaxes(0, 1)
    grads["out"] = np.tensordot(states[1:], d_logits_tbc, ((0, 1), (0, 1)))
    d_states = d_logits_tbc @ p["out"].T
    d_state = np.zeros_like(states[0])
    for t in reversed(range(chars_bt.shape[1])):
        d_sum = (d_state + d_states[t]) * (1 - states[t + 1] ** 2)
        np.add.at(grads["inward"], chars_bt[:, t], d_sum)
        grads["again"] += states[t].T @ d_sum
        grads["bias"] += d_sum.sum(axis=0)
        d_state = d_sum @ p["again"].T
    return grads


class Adam:
    """Kingma, Ba, "Adam: A Method for Stochastic Optimization" (2015)."""

    def __init__(self, parameters, rate):
        self.rate, self.steps = rate, 0
        self.mean = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.square = {name: np.zeros_like(value) for name, value in parameters.items()}

    def step(self, parameters, grads):
        self.steps += 1
        for name, grad in grads.items():
            self.mean[name] += 0.1 * (grad - self.mean[name])
            self.square[name] += 0.001 * (grad**2 - self.square[name])
            mean, square = self.mean[name] / (1 - 0.9**self.steps), self.square[name] / (1 - 0.999**self.steps)
            parameters[name] -= self.rate * mean / (np.sqrt(square) + 1e-8)


def main(arguments=None):
    """Train; returns the share of characters told rightly in lines that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", metavar="F.png", help="draw the losses into a file (needs matplotlib)")
    options = parser.parse_args(arguments)

    random = np.random.default_rng(0)
    examples = tagged_lines()
    random.shuffle(examples)
    chars_bt, kinds_bt, lengths = as_arrays(examples[400:])
    test_chars_bt, test_kinds_bt, test_lengths = as_arrays(examples[:400])
    inside = fastxent.lengths_to_mask(test_lengths, LONGEST)
    print(f"{len(lengths)} lines of {', '.join(m.__name__ for m in MODULES)} to learn, {len(test_lengths)} held out; "
          f"{1 - lengths.mean() / LONGEST:.0%} padding")

    parameters = make_parameters(random, width=64)
    optimizer, losses, accuracy = Adam(parameters, rate=0.004), [], 0.0
    for epoch in range(6):
        order = random.permutation(len(lengths))
        for batch in np.array_split(order, len(order) // 32):
            states, logits_btc = forward(parameters, chars_bt[batch])
            loss, d_logits_btc = fastxent.cross_entropy_and_grad(logits_btc, kinds_bt[batch], lengths=lengths[batch])
            optimizer.step(parameters, backward(parameters, chars_bt[batch], states, d_logits_btc))
            losses.append(float(loss))
        _, logits_btc = forward(parameters, test_chars_bt)
        accuracy = float((logits_btc.argmax(axis=2) == test_kinds_bt)[inside].mean())
        test_loss = fastxent.cross_entropy(logits_btc, test_kinds_bt, lengths=test_lengths)
        recent = np.mean(losses[-20:])
        print(f"epoch {epoch + 1}: loss {recent:.3f}, held out {test_loss:.3f}, accuracy {accuracy:.1%}", flush=True)
    line = "if n == 2: return 'two'  # done"
    (told,) = forward(parameters, as_arrays([(line, [0] * len(line))])[0])[1].argmax(axis=2)
    print(line, "".join(KINDS[kind][0] for kind in told[: len(line)]), sep="\n")
    if options.plot:
        plot(losses, options.plot)
    return accuracy


def plot(losses, path):
    """The loss of each step, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.plot(losses, linewidth=0.8)
    axes.set(xlabel="step", ylabel="cross-entropy (nats per character)", title="What is this character part of?")
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
