"""Softmax, cross-entropy and gradient descent on three classes, each number beside the formula that it comes from.

Run it with ``python from_scratch.py [--plot losses.png]``.
"""

import argparse

import numpy as np

import fastxent


def show(formula, value):
    """One line: a formula, and what it is here."""
    print(f"  {formula:<54} {np.array2string(np.asarray(value), precision=4, suppress_small=True)}")


def one_position():
    """Every quantity of a single row of logits, by hand and by the library."""
    logits, target = np.array([2.0, 1.0, -1.0]), 1
    print("One position: three classes, the second one is right")
    show("logits  x", logits)
    exponentials = np.exp(logits - logits.max())
    p = exponentials / exponentials.sum()
    show("softmax  p_c = exp(x_c) / sum_k exp(x_k)", p)
    show("  fastxent.softmax(x)", fastxent.softmax(logits))
    show("log-softmax  log p_c = x_c - log sum_k exp(x_k)", np.log(p))
    log_p = fastxent.log_softmax(logits)
    show("  fastxent.log_softmax(x)", log_p)
    show("negative log-likelihood  -log p_t", -np.log(p[target]))
    show("  fastxent.nll_loss(log p, t)", fastxent.nll_loss(log_p, target))
    loss, grad = fastxent.cross_entropy_and_grad(logits, target)
    show("  fastxent.cross_entropy(x, t): both steps in one", loss)
    show("gradient by the logits  p_c - [c = t]", p - fastxent.one_hot(target, 3))
    show("  fastxent.cross_entropy_and_grad(x, t)[1]", grad)
    show("a step against it  x - g", logits - grad)
    show("  loss after the step", fastxent.cross_entropy(logits - grad, target))


def flowers(random):
    """Two numbers for each of 150 points around three centres, and which centre it was."""
    labels = np.repeat(np.arange(3), 50)
    centres = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    return centres[labels] + random.normal(size=(150, 2)), labels


def main(arguments=None):
    """Print it all; returns the share of points that the trained weights tell rightly."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", metavar="F.png", help="draw the losses into a file (needs matplotlib)")
    options = parser.parse_args(arguments)

    one_position()
    points, labels = flowers(np.random.default_rng(0))
    weights, bias, strength, rate = np.zeros((2, 3)), np.zeros(3), 0.01, 0.5
    losses = []
    print("\nGradient descent on 150 points of two numbers, three classes")
    print("  x = a W + b;   l = mean(-log p_t) + s sum W^2;   dl/dx = (p - [c = t]) / n")
    print("  dl/dW = a' dl/dx + 2 s W;   W <- W - r dl/dW;   the same for b, without s")
    for step in range(101):
        logits = points @ weights + bias
        data_loss, d_logits = fastxent.cross_entropy_and_grad(logits, labels)
        penalty, (d_weights,) = fastxent.l2_penalty_and_grad(weights, strength=strength)
        losses.append(float(data_loss + penalty))
        if step % 20 == 0:
            right = (logits.argmax(axis=1) == labels).mean()
            print(f"  step {step:3}: l = {data_loss:.4f} + {penalty:.4f} = {losses[-1]:.4f}, right {right:.1%}")
        weights -= rate * (points.T @ d_logits + d_weights)
        bias -= rate * d_logits.sum(axis=0)
    print("  without knowing anything l is log 3 =", np.log(3).round(4))
    if options.plot:
        plot(losses, options.plot)
    return float(((points @ weights + bias).argmax(axis=1) == labels).mean())


def plot(losses, path):
    """The loss of each step, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.plot(losses)
    axes.set(xlabel="step", ylabel="cross-entropy + penalty (nats)", title="Gradient descent on three classes")
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
