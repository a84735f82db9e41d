"""A training loop wholly inside Numba: softmax regression whose loss and gradient are `fastxent.numba`'s.

No array of the size of the batch's logits exists, and Python is not asked between the first step and the last. Needs
Numba. Run it with ``python train_in_numba.py [--plot losses.png]``.
"""

import argparse

import numba
import numpy as np

from fastxent.numba import cross_entropy_row_and_grad

CLASSES, FEATURES = 10, 20


@numba.njit(parallel=True)
def gradients(inputs, targets, weights, bias, parts):
    """The mean loss, and in parts[i] the gradients of the i-th share of the examples."""
    shares = len(parts)
    losses = np.zeros(shares)
    for share in numba.prange(shares):
        row = np.empty(CLASSES)
        parts[share] = 0.0
        for n in range(share, len(targets), shares):
            for c in range(CLASSES):
                row[c] = bias[c] + inputs[n] @ weights[c]
            losses[share] += cross_entropy_row_and_grad(row, targets[n], row)
            for c in range(CLASSES):
                parts[share, c, :FEATURES] += row[c] * inputs[n]
                parts[share, c, FEATURES] += row[c]
    return losses.sum() / len(targets)


@numba.njit
def train(inputs, targets, weights, bias, rate, losses):
    """Gradient descent with momentum; one loss a step into `losses`."""
    parts = np.empty((8, CLASSES, FEATURES + 1))
    speed = np.zeros((CLASSES, FEATURES + 1))
    for step in range(len(losses)):
        losses[step] = gradients(inputs, targets, weights, bias, parts)
        speed = 0.9 * speed - rate * parts.sum(axis=0) / len(targets)
        weights += speed[:, :FEATURES]
        bias += speed[:, FEATURES]


def examples_of(random, number):
    """Points around a centre for each class, not all of them on their own side."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, FEATURES))
    targets = random.integers(0, CLASSES, number)
    return centres[targets] + 0.8 * random.normal(size=(number, FEATURES)), targets


def main(arguments=None):
    """Train, show the way down, and return the share of new examples that are told right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="FILE", help="draw the losses into a file")
    options = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    inputs, targets = examples_of(random, 4000)
    weights, bias, losses = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES), np.empty(80)
    train(inputs, targets, weights, bias, 0.1, losses)
    print(f"cross-entropy of {len(targets)} examples of {CLASSES} classes; log {CLASSES} = {np.log(CLASSES):.3f}")
    for step in [0, 1, 2, 5, 10, 20, 40, len(losses) - 1]:
        print(f"  step {step:3}  {losses[step]:.4f}")
    inputs, targets = examples_of(random, 1000)
    accuracy = float(np.mean((inputs @ weights.T + bias).argmax(axis=1) == targets))
    print(f"right about {accuracy:.1%} of {len(targets)} new examples")
    if options.plot:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        plt.plot(losses)
        plt.xlabel("step")
        plt.ylabel("mean cross-entropy")
        plt.savefig(options.plot)
    return accuracy


if __name__ == "__main__":
    main()
