"""Many to one: the chapter of Python's documentation that a sentence comes from.

An embedding, a recurrent network and its last step, in plain NumPy; `fastxent.cross_entropy_and_grad` gives the loss
and where the gradient starts. The text is what ``help()`` prints: every Python carries it.

    python classify_sequences.py [--plot losses.png]
"""

import argparse
import re
from pydoc_data import topics

import numpy as np

import fastxent

CHAPTERS = ("debugger", "formatstrings", "compound", "specialnames")
LONGEST = 20  # words of a sentence


def sentences():
    """(words, chapter) of each sentence of five words or more, without repetitions."""
    seen = {}
    for label, chapter in enumerate(CHAPTERS):
        for sentence in re.split(r"(?<=[.:;])\s+", topics.topics[chapter]):
            words = re.findall(r"[a-z_]+|[%{}()\[\]=@*#]", sentence.lower())[:LONGEST]
            if len(words) >= 5:
                seen[tuple(words)] = label
    return list(seen.items())


def as_arrays(examples, number):
    """Words as numbers (0 pads, 1 is any other word), lengths, labels."""
    words_bt = np.zeros((len(examples), LONGEST), int)
    for row, (words, _) in zip(words_bt, examples, strict=True):
        row[: len(words)] = [number.get(word, 1) for word in words]
    return words_bt, np.array([len(words) for words, _ in examples]), np.array([label for _, label in examples])


def make_parameters(random, n_words, width):
    """Embedding, input, recurrent and output weights."""
    return {
        "embed": random.normal(size=(n_words, width)) * 0.3,
        "inward": random.normal(size=(width, width)) / np.sqrt(width),
        "again": np.linalg.qr(random.normal(size=(width, width)))[0],  # keeps what the steps carry at its size
        "bias": np.zeros(width),
        "out": random.normal(size=(width, len(CHAPTERS))) * 0.1,
    }


def forward(p, words_bt, lengths):
    """The states after each step (from the first, which is 0), and the logits of the last one."""
    states = [np.zeros((len(words_bt), p["bias"].size))]
    for t in range(words_bt.shape[1]):
        state = np.tanh(p["embed"][words_bt[:, t]] @ p["inward"] + states[-1] @ p["again"] + p["bias"])
        states.append(np.where((t < lengths)[:, None], state, states[-1]))  # past its end a sentence stays as it was
    return states, states[-1] @ p["out"]


def backward(p, words_bt, lengths, states, d_logits):
    """The gradient by every parameter, from the gradient by the logits: backpropagation through time."""
    grads = {name: np.zeros_like(value) for name, value in p.items()}
    grads["out"] = states[-1].T @ d_logits
    d_state = d_logits @ p["out"].T
    for t in reversed(range(words_bt.shape[1])):
        inside = (t < lengths)[:, None]
        d_sum = np.where(inside, d_state * (1 - states[t + 1] ** 2), 0)
        embedded = p["embed"][words_bt[:, t]]
        grads["inward"] += embedded.T @ d_sum
        grads["again"] += states[t].T @ d_sum
        grads["bias"] += d_sum.sum(axis=0)
        np.add.at(grads["embed"], words_bt[:, t], d_sum @ p["inward"].T)
        d_state = np.where(inside, d_sum @ p["again"].T, d_state)
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
    """Train; returns the share of right answers among sentences that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", metavar="F.png", help="draw the losses into a file (needs matplotlib)")
    options = parser.parse_args(arguments)

    random = np.random.default_rng(0)
    examples = sentences()
    random.shuffle(examples)
    held_out, examples = examples[: len(examples) // 5], examples[len(examples) // 5 :]
    counts = {}
    for words, _ in examples:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    number = {word: i for i, word in enumerate((w for w, n in counts.items() if n > 1), start=2)}
    words_bt, lengths, labels = as_arrays(examples, number)
    test_words_bt, test_lengths, test_labels = as_arrays(held_out, number)
    print(f"{len(labels)} sentences to learn, {len(test_labels)} held out; {len(number)} words; {', '.join(CHAPTERS)}")

    parameters = make_parameters(random, len(number) + 2, width=48)
    optimizer, losses, accuracy = Adam(parameters, rate=0.002), [], 0.0
    for epoch in range(10):
        order = random.permutation(len(labels))
        for batch in np.array_split(order, len(order) // 32):
            states, logits = forward(parameters, words_bt[batch], lengths[batch])
            loss, d_logits = fastxent.cross_entropy_and_grad(logits, labels[batch], label_smoothing=0.1)
            grads = backward(parameters, words_bt[batch], lengths[batch], states, d_logits)
            _, (grads_of_penalty,) = fastxent.l2_penalty_and_grad(parameters["embed"], strength=1e-4)
            grads["embed"] += grads_of_penalty
            optimizer.step(parameters, grads)
            losses.append(float(loss))
        _, logits = forward(parameters, test_words_bt, test_lengths)
        accuracy = float((logits.argmax(axis=1) == test_labels).mean())
        test_loss = fastxent.cross_entropy(logits, test_labels)
        recent = np.mean(losses[-20:])
        print(f"epoch {epoch + 1:2}: loss {recent:.3f}, held out {test_loss:.3f}, accuracy {accuracy:.1%}", flush=True)
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
    axes.set(xlabel="step", ylabel="cross-entropy (nats)", title="Which chapter is this sentence from?")
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
