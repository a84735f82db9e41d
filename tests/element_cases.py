"""Options and errors for losses of which each element, or each row of two arrays, is a position."""

import itertools

import cases
import numpy as np

from fastxent import reference

OPTIONS = ("sample_weight", "sample_weight with 0", "sample_weight of one axis", "mask", "mask of integers",
           "mask of one axis", "mask nothing", "lengths")


def options(seed, positions):
    """Every option alone and in pairs, each with a reduction; without options, every reduction."""
    random = cases.rng(90, seed)
    names = [n for n in OPTIONS if n != "lengths" or len(positions) > 1]
    for reduced in cases.REDUCTIONS:
        yield cases.reduction(reduced)
    pairs = [p for p in itertools.combinations(names, 2) if p[0].split()[0] != p[1].split()[0]]
    for i, chosen in enumerate([(n,) for n in names] * 2 + pairs):
        found = cases.reduction(cases.REDUCTIONS[(i + seed) % len(cases.REDUCTIONS)])
        for name in chosen:
            found |= cases.option(random, name, positions, 1)
        yield found


def upstream(seed, positions, keywords):
    """Factors of the positions' shape for "none", else a number."""
    random = cases.rng(91, seed)
    return random.normal(size=positions) if keywords["reduction"] == "none" else float(random.normal())


def errors_of_value(errors, keywords):
    """What errors of the unweighted losses may add up to in the value."""
    positions = errors.shape
    weight = np.broadcast_to(np.asarray(keywords.get("sample_weight", 1.0), float), positions)
    valid = reference._counts(positions, keywords.get("mask"), keywords.get("lengths")) & (weight != 0)
    with np.errstate(invalid="ignore"):
        errors = np.where(valid, np.abs(weight) * errors, 0)
    if keywords["reduction"] == "none":
        return errors
    _, share = reference._reduce(errors, np.where(valid, weight, 0), keywords["reduction"], keywords.get("normalizer"),
                                 0.0)
    return float((errors * np.abs(share)).sum())


def errors_of_sums(value, positions):
    """What adding up may do to a value: plain float64 sums within a block, which for equal addends round one way."""
    return (4 + np.prod(positions) / 8) * 2.0**-52 * np.abs(value)


def unit(dtype):
    """The distance of 1 to the next number of the type that results are computed in."""
    return 2.0**-52 if cases.computed_in(dtype) == np.float64 else 2.0**-23


def smallest(dtype):
    """The smallest normal number of that type."""
    return 2.0**-1022 if cases.computed_in(dtype) == np.float64 else 2.0**-126
