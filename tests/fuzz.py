"""Seeded differential fuzzing: random products of options, layouts, dtypes and values, every engine against the oracle.

    python tests/fuzz.py                                   1e5 cases on every engine of this machine, over night
    python tests/fuzz.py --cases 2000 --first 500000       others
    python tests/fuzz.py --engines native-avx2 numba --seconds 300

The folder of a script is where Python looks first, so what is imported is tests/ and the package installed, also in the
repository's root; ``python -P`` would leave tests/ out.

A case is named by its number and is the same tomorrow; the number on a failure's line is all that is needed to see it
again (``--first N --cases 1``). test_fuzz.py runs some in every test run. What it judges by are the checkers of the
test files, with their bounds; what is new here is the width of the draw.
"""

import argparse
import contextlib
import sys
import time
import traceback
import warnings

import cases
import element_cases
import linear_cases
import numpy as np
import test_divergence
import test_elementwise
import test_parity
import test_statistics

import fastxent
from fastxent import reference, reference_scoring

SPECIAL = (-np.inf, -np.inf, -np.inf, np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-40, 1e-310, 88.8, -87.4, 104.0, 709.0, 6e4,
           -6e4)
TARGET_LAYOUTS = ("C", "F", "every other", "reversed", "unaligned", "byte-swapped", "read-only")


def pick(random, values):
    """One of `values`, as it is."""
    return values[int(random.integers(len(values)))]


def class_count(random):
    """Around the sizes of vectors, tiles and blocks, and anything else."""
    kind = random.uniform()
    if kind < 0.4:
        return int(random.integers(1, 40))
    if kind < 0.8:
        return max(1, int(pick(random, (16, 32, 48, 64, 96, 128, 192, 256, 512))) + int(random.integers(-2, 3)))
    return int(pick(random, (95, 97, 255, 257, 700, 1000, 1023, 1024, 1025, 1090, 2047, 2049, 3001)))


def shape_of(random, n_classes, least=1):
    """A shape with a class axis somewhere, at most some ten thousand elements, and now and then an empty axis."""
    ndim = int(random.integers(least, 6))
    room = max(2, 16_000 // n_classes)
    shape = []
    for _ in range(ndim - 1):
        most = max(1, min(room, int(pick(random, (1, 2, 3, 5, 20, 70)))))
        shape.append(int(random.integers(1, most + 1)))
        room = max(1, room // shape[-1])
    if shape and random.uniform() < 0.02:
        shape[int(random.integers(len(shape)))] = 0
    axis = int(random.integers(ndim))
    shape.insert(axis, n_classes)
    return tuple(shape), axis


def spoiled(random, values):
    """A few elements, or every element of a few rows, replaced by what is rare."""
    if values.dtype.kind in "iu" or not values.size:
        return values
    with np.errstate(over="ignore"):
        values = values.copy()
        if random.uniform() < 0.5:
            where = random.uniform(size=values.shape) < pick(random, (0.01, 0.1, 0.6))
            values[where] = pick(random, SPECIAL)
        else:
            where = random.uniform(size=values.shape) < 0.02
            values[where] = random.choice(SPECIAL, size=int(where.sum())).astype(values.dtype)
        if random.uniform() < 0.2:
            values = np.rint(values.astype(float)).astype(values.dtype)  # ties
    return values


def logits_case(random, kind=None):
    """A `cases.Case` with wider values, shapes and products of options than `cases.random_case` draws."""
    kind = kind or pick(random, ("logits", "logits", "logits", "log_probs", "probs"))
    dtype = pick(random, (*cases.FLOATS, *cases.FLOATS, "int8", "uint8", "int16", "uint64"))
    n_classes = class_count(random)
    shape, axis = shape_of(random, n_classes)
    positions = shape[:axis] + shape[axis + 1:]
    names = cases.option_names(kind, positions)
    if not positions:
        names = [n for n in names if not n.endswith("of one axis")]
    chosen = random.choice(names, size=int(random.integers(0, 8)), replace=False)
    if random.uniform() < 0.7:
        target = pick(random, [t for t in cases.INTEGERS if np.iinfo(t).max >= n_classes])
    else:
        target = pick(random, list(cases.FLOATS))
    case = cases.build(random, shape, axis, dtype, kind, target, pick(random, list(cases.LAYOUTS)),
                       pick(random, TARGET_LAYOUTS), tuple(map(str, chosen)), pick(random, cases.REDUCTIONS),
                       pick(random, (0.1, 3.0, 20.0)))
    if kind == "logits" and random.uniform() < 0.3:
        native = spoiled(random, case.scores.astype(case.scores.dtype.newbyteorder("=")))
        case.scores = cases.lay_out(case.layout, native, case.axis)
        case.name += " | spoiled"
    for name, values in (("logit_scale", (1e-3, 0.5, 2.0, 17.0)), ("softcap", (0.5, 30.0)), ("z_loss", (1e-4, 1.0)),
                         ("label_smoothing", (0.01, 0.9))):
        if name in case.options and random.uniform() < 0.5:
            case.options[name] = pick(random, values)
            case.name += f" | {name}={case.options[name]}"
    return case


# --- families: each draws a case and returns what judges an engine by it


def losses(random):
    item = test_parity.Expected(logits_case(random))
    return lambda: test_parity.check(item)


def statistics(random):
    case = logits_case(random, "logits")
    if case.targets.dtype.kind not in "iu":
        case.targets = cases.class_indices(random, case.positions, case.scores.shape[case.axis])
    return lambda: test_statistics.check_case(case)


def top(random):
    case = logits_case(random, "logits")
    k = int(random.integers(1, min(40, case.scores.shape[case.axis]) + 1))
    options = {"axis": case.axis} | {n: v for n, v in case.options.items() if n in ("logit_scale", "softcap")}
    values, indices = reference_scoring.top_k_log_probs(case.scores, k, **options)
    errors = test_statistics.Errors(case.scores, **options)
    gap = np.expand_dims(errors.gap, case.axis) if errors.gap.ndim == values.ndim - 1 else errors.gap
    moved = np.broadcast_to(errors.moved, errors.gap.shape)
    error = (4 + gap + 3) * errors.u * np.abs(np.where(np.isfinite(values), values, 0)) + 2 * errors.tiny
    error = error + np.expand_dims(moved, case.axis)

    def check():
        got, places = fastxent.top_k_log_probs(case.scores, k, **options)
        np.testing.assert_array_equal(places, indices, case.name)
        test_parity.assert_within(got, values, error, f"{case.name} | top {k}")

    return check


def activations(random):
    case = logits_case(random, "logits")
    x, axis = case.scores, case.axis
    u, tiny = (2.0**-23, 1e-30) if cases.computed_in(x.dtype) == np.float32 else (2.0**-52, 1e-300)
    with np.errstate(all="ignore"):
        row = reference._Softmax(np.moveaxis(reference._wide(x), axis, -1))
        below = np.where(np.isfinite(row.below_top), -row.below_top, 0)
        gap = np.where(row.at_top | ~np.isfinite(row.below_top), np.inf, -row.below_top).min(axis=-1, initial=np.inf)
        gap = np.where(np.isfinite(gap), gap, 0)
        steps = (8 + 2 * below.max(axis=-1, initial=0))[..., None] * u
        of_log = (4 + gap) * u * row.log1p_s
        errors = {
            "softmax": np.moveaxis(steps * row.p + tiny, -1, axis),
            "log_softmax": np.moveaxis(of_log[..., None] + u * below + tiny, -1, axis),
            "logsumexp": of_log + u * np.abs(row.top) + tiny,
        }
    answers = {name: getattr(reference, name)(x, axis=axis) for name in errors}

    def check():
        for name, error in errors.items():
            got = getattr(fastxent, name)(x, axis=axis)
            test_parity.assert_within(got, answers[name], error, f"{name} {case.name}")

    return check


def divergence(random):
    case = logits_case(random, "logits")
    x = case.scores
    y = cases.scores(random, x.shape, x.dtype.newbyteorder("="), pick(random, (0.01, 3.0, 20.0)))
    y = cases.lay_out(pick(random, list(cases.LAYOUTS)), y, case.axis)
    keywords = {"empty_value": 1.0} | {n: v for n, v in case.options.items() if n in (
        "reduction", "normalizer", "mask", "lengths", "sample_weight")}
    return lambda: test_divergence.check_divergence(x, y, case.axis, keywords, 0, case.name)


def elements(random):
    name = pick(random, list(test_elementwise.LOSSES))
    shape, _ = shape_of(random, class_count(random))
    dtype = pick(random, (*cases.FLOATS, *cases.FLOATS, "int8", "uint64"))
    x, y = test_elementwise.inputs(name, random, shape, dtype, pick(random, test_elementwise.TARGETS))
    x, y = (cases.lay_out(pick(random, list(cases.LAYOUTS)), a) for a in (x, y))
    own = pick(random, list(test_elementwise.own_options(name, random, shape)))
    keywords = pick(random, list(element_cases.options(int(random.integers(1000)), shape)))
    return lambda: test_elementwise.check(name, x, y, own, {"empty_value": 0.0} | keywords, 3)


def linear(random):
    positions = tuple(int(n) for n in random.integers(1, 7, int(random.integers(1, 4))))
    seed, features, n_classes = int(random.integers(10**6)), int(random.integers(1, 20)), class_count(random) % 1200 + 1
    dtype, bias = pick(random, list(cases.FLOATS)), bool(random.integers(2))
    head = linear_cases.Head(seed, positions, features, n_classes, dtype, bias)
    options = cases.reduction(pick(random, cases.REDUCTIONS))
    names = [n for n in cases.OPTIONS if n not in cases.TIME_OPTIONS or len(positions) > 1]
    for name in random.choice(names, size=int(random.integers(0, 4)), replace=False):
        if {name, *options} >= {"z_loss", "softcap"}:
            continue  # their roundings together are more than the checker allows for
        options |= cases.option(random, str(name), positions, head.classes)
    limit = pick(random, linear_cases.LIMITS)
    label = f"linear {positions} {head.hidden.shape} {head.weight.shape} {head.dtype} {options} {limit}"
    return lambda: head.check(options, label=label, max_bytes=limit)


FAMILIES = (losses,) * 9 + (statistics, statistics, top, activations, activations, divergence, divergence, elements,
                            elements, linear)


def judge(number, engines):
    """Run case `number` on these engines; returns the failures, each as (engine, family, error)."""
    random = cases.rng(2026, number)
    family = pick(random, FAMILIES)
    failures = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, where the oracle meets infinities
            check = family(random)
    except Exception as error:
        return [("oracle", family.__name__, error)]
    for engine in engines:
        try:
            with cases.running_on(*engine):
                check()
        except Exception as error:
            failures.append(("-".join(filter(None, engine)), family.__name__, error))
    return failures


def main():
    names = {"-".join(filter(None, engine)): engine for engine in cases.engines()}
    parser = argparse.ArgumentParser(description="Differential fuzzing of every engine against the oracle.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--engines", nargs="+", choices=names, default=list(names))
    parser.add_argument("--seconds", type=float, default=np.inf, help="stop after so many")
    parser.add_argument("--traceback", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    engines = [names[name] for name in arguments.engines]
    began, failed, number = time.monotonic(), 0, arguments.first
    with contextlib.suppress(KeyboardInterrupt):  # it says how far it came
        while number < arguments.first + arguments.cases and time.monotonic() - began < arguments.seconds:
            for engine, family, error in judge(number, engines):
                failed += 1
                print(f"{number} {engine} {family}: {type(error).__name__}: {str(error)[:600]}", flush=True)
                if arguments.traceback:
                    traceback.print_exception(error)
            number += 1
    print(f"cases {arguments.first} to {number - 1} on {', '.join(arguments.engines)}: {failed} failures, "
          f"{time.monotonic() - began:.0f} s")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
