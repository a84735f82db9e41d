"""The one generator of inputs: every test file draws from it.

Nothing here is a fixture and nothing here looks at fastxent's results. Everything random comes from a seeded generator,
so that a case is named by its numbers: ``random_case(17)`` is the same today and tomorrow.
"""

import contextlib
import importlib
import importlib.util
import os
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {"float16": np.dtype("f2"), "bfloat16": BFLOAT16, "float32": np.dtype("f4"), "float64": np.dtype("f8")}
INTEGERS = {n: np.dtype(n) for n in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
DTYPES = FLOATS | INTEGERS

CLASS_COUNTS = (1, 2, 3, 5, 16, 17, 31, 32, 33, 50, 63, 64, 65, 100, 127, 128, 129, 1000, 1023, 1025, 2049)


def computed_in(dtype):
    """The type in which logits of this type are computed; the type of per-position results."""
    return np.dtype("f8") if np.dtype(dtype).kind in "iu" or np.dtype(dtype).itemsize == 8 else np.dtype("f4")


def stored_as(dtype):
    """The type of gradients and softmax."""
    return np.dtype("f8") if np.dtype(dtype).kind in "iu" else np.dtype(dtype).newbyteorder("=")


# --- values


def rng(*seed):
    """A generator named by integers."""
    return np.random.default_rng(seed)


def scores(random, shape, dtype, spread=3.0):
    """Normal deviates, or small integers for an integer type."""
    dtype = np.dtype(dtype)
    values = random.normal(scale=spread, size=shape)
    if dtype.kind == "u":
        values = np.abs(values)
    return np.asarray(np.rint(values) if dtype.kind in "iu" else values).astype(dtype)


def class_indices(random, positions, n_classes, dtype=np.int64):
    """Class indices, as many as the type can name."""
    highest = min(n_classes, int(np.iinfo(dtype).max) + 1)
    return np.asarray(random.integers(0, max(highest, 1), size=positions)).astype(dtype)


def class_probabilities(random, shape, axis=-1, dtype=np.float64):
    """Weights that do not sum to 1, a third of them exactly 0."""
    values = random.uniform(size=shape) * (random.uniform(size=shape) > 1 / 3)
    return (values / max(1, shape[axis] / 2)).astype(dtype)


def as_log_probs(logits, axis=-1):
    """Log-probabilities of the same type as the logits."""
    wide = np.asarray(logits).astype(np.float64)
    wide = wide - wide.max(axis=axis, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(axis=axis, keepdims=True))).astype(stored_as(np.asarray(logits).dtype))


def as_probs(logits, axis=-1):
    """Probabilities of the same type as the logits."""
    return np.exp(as_log_probs(logits, axis).astype(np.float64)).astype(stored_as(np.asarray(logits).dtype))


def special_rows(n_classes, dtype=np.float32):
    """(name, row): infinities, NaN, ties, large and constant values in each telling place."""
    rows = {
        "equal": np.zeros(n_classes),
        "equal and large": np.full(n_classes, 3e4),
        "all -inf": np.full(n_classes, -np.inf),
        "all +inf": np.full(n_classes, np.inf),
        "all NaN": np.full(n_classes, np.nan),
    }
    base = np.linspace(-2.0, 2.0, n_classes)
    for place in sorted({0, n_classes // 2, n_classes - 1}):
        for name, value in (("-inf", -np.inf), ("+inf", np.inf), ("NaN", np.nan), ("peak", 60.0), ("pit", -60.0)):
            row = base.copy()
            row[place] = value
            rows[f"{name} at {place}"] = row
        lone = np.full(n_classes, -np.inf)
        lone[place] = 1.0
        rows[f"all -inf but {place}"] = lone
    if n_classes > 2:
        rows["-inf and +inf"] = np.r_[-np.inf, base[1:-1], np.inf]
        rows["-inf and NaN"] = np.r_[-np.inf, base[1:-1], np.nan]
        rows["two peaks"] = np.r_[5.0, base[1:-1], 5.0]
    return [(name, row.astype(dtype)) for name, row in rows.items()]


# --- layouts: the same values elsewhere in memory


def _in_buffer(array, shape, window):
    """`array` copied into a window of a larger buffer, whose rest must never be read as data."""
    buffer = np.full(shape, np.nan).astype(array.dtype) if array.dtype.kind not in "iu" else np.full(
        shape, np.iinfo(array.dtype).max, array.dtype)
    view = buffer[window]
    view[...] = array
    return view


def _every_other(array, axis):
    shape = [2 * n + 1 for n in array.shape]
    return _in_buffer(array, shape, tuple(slice(1, 2 * n + 1, 2) for n in array.shape))


def _every_third_class(array, axis):
    axis %= array.ndim
    shape = [3 * n if i == axis else n for i, n in enumerate(array.shape)]
    return _in_buffer(
        array, shape, tuple(slice(None, None, 3) if i == axis else slice(None) for i in range(array.ndim))
    )


def _padded(array, axis):
    shape = [n + 3 for n in array.shape]
    return _in_buffer(array, shape, tuple(slice(1, n + 1) for n in array.shape))


def _reversed(array, axis):
    backwards = (slice(None, None, -1),) * array.ndim
    return array[backwards].copy()[backwards]


def _reversed_positions(array, axis):
    axis %= array.ndim
    backwards = tuple(slice(None) if i == axis else slice(None, None, -1) for i in range(array.ndim))
    return array[backwards].copy()[backwards]


def _unaligned(array, axis):
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _byte_swapped(array, axis):
    if array.dtype == BFLOAT16:  # the type has no swapped twin
        return array.copy()
    return array.astype(array.dtype.newbyteorder("S"))


def _read_only(array, axis):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _repeated_positions(array, axis):
    """Stride 0 over every axis but the classes."""
    first = array
    for i in range(array.ndim):
        if i != axis % array.ndim:
            first = first.take([0], axis=i)
    return np.broadcast_to(first, array.shape)


def _in_memory_order(place):
    """The class axis first, in the middle or last in memory, the other axes in order."""

    def lay(array, axis):
        axis %= array.ndim
        order = [i for i in range(array.ndim) if i != axis]
        order.insert(min({"first": 0, "middle": 1, "last": len(order)}[place], len(order)), axis)
        return array.transpose(order).copy().transpose(np.argsort(order))

    return lay


LAYOUTS = {
    "C": lambda array, axis: np.array(array, order="C"),
    "F": lambda array, axis: np.array(array, order="F"),
    "classes first": _in_memory_order("first"),
    "classes in the middle": _in_memory_order("middle"),
    "classes last": _in_memory_order("last"),
    "every other": _every_other,
    "every third class": _every_third_class,
    "padded": _padded,
    "reversed": _reversed,
    "reversed positions": _reversed_positions,
    "unaligned": _unaligned,
    "byte-swapped": _byte_swapped,
    "read-only": _read_only,
    "repeated positions": _repeated_positions,
    "repeated classes": lambda array, axis: np.broadcast_to(array.take([0], axis=axis), array.shape),
}


def lay_out(name, array, axis=-1):
    """`array` in another layout and another memory: the same shape and values ("repeated": a part of the values)."""
    array = np.asarray(array)
    plain = not array.ndim or (not array.size and name.startswith("repeated"))
    return array.copy() if plain else LAYOUTS[name](array, axis)


# --- options: each alone, in pairs, in random products

TIME_OPTIONS = ("lengths", "shift 1", "shift all")
LOGIT_OPTIONS = ("label_smoothing", "label_smoothing 1", "z_loss", "logit_scale", "softcap")
OPTIONS = ("class_weight", "class_weight with 0", "sample_weight", "sample_weight with 0", "sample_weight of one axis",
           "mask", "mask of integers", "mask of one axis", "mask nothing", "ignore_index", "ignore_index None",
           "ignore_index of another type", *TIME_OPTIONS, *LOGIT_OPTIONS)
REDUCTIONS = ("none", "sum", "mean", "sequence_mean", "batch_mean", "sum with normalizer", "mean with normalizer")


def option(random, name, positions, n_classes):
    """The keyword arguments that an option's name stands for."""
    last = positions[-1:]
    match name:
        case "class_weight":
            return {"class_weight": random.uniform(0.25, 2.0, n_classes)}
        case "class_weight with 0":
            return {"class_weight": random.integers(0, 3, n_classes).astype(float)}
        case "sample_weight":
            return {"sample_weight": random.uniform(0.1, 2.0, positions).astype(np.float32)}
        case "sample_weight with 0":
            return {"sample_weight": random.integers(0, 3, positions)}
        case "sample_weight of one axis":
            return {"sample_weight": random.uniform(0.1, 2.0, last)}
        case "mask":
            return {"mask": random.uniform(size=positions) < 0.6}
        case "mask of integers":
            return {"mask": random.integers(0, 3, positions).astype(np.int8)}
        case "mask of one axis":
            return {"mask": random.uniform(size=last) < 0.6}
        case "mask nothing":
            return {"mask": np.zeros(positions, bool)}
        case "ignore_index":
            return {"ignore_index": int(random.integers(0, max(n_classes, 1)))}
        case "ignore_index None":
            return {"ignore_index": None}
        case "ignore_index of another type":
            return {"ignore_index": 10**12}
        case "lengths":
            return {"lengths": random.integers(0, positions[-1] + 1, positions[:-1])}
        case "shift 1":
            return {"shift": 1}
        case "shift all":
            return {"shift": positions[-1]}
        case "label_smoothing":
            return {"label_smoothing": 0.125}
        case "label_smoothing 1":
            return {"label_smoothing": 1.0}
        case "z_loss":
            return {"z_loss": 0.015625}
        case "logit_scale":
            return {"logit_scale": 0.75}
        case "softcap":
            return {"softcap": 5.0}
    raise KeyError(name)


def reduction(name):
    """The keyword arguments that a reduction's name stands for."""
    kind, _, rest = name.partition(" with ")
    return {"reduction": kind} | ({"normalizer": 12.5} if rest else {})


def option_names(kind, positions):
    """The options that a function of this kind ("logits", "log_probs", "probs") takes over these positions."""
    return [n for n in OPTIONS if (n not in TIME_OPTIONS or len(positions) > 1)
            and (n not in LOGIT_OPTIONS or kind == "logits")]


@dataclass
class Case:
    """One call's inputs. `options` suit every loss of this kind of scores; the rest of a call is the test's."""

    kind: str
    scores: np.ndarray
    targets: np.ndarray
    axis: int
    options: dict = field(default_factory=dict)
    name: str = ""
    layout: str = "C"

    @property
    def positions(self):
        """The positions' shape."""
        return tuple(np.delete(self.scores.shape, self.axis).tolist())

    def upstream(self, seed=0):
        """Random factors of the positions' shape for reduction "none", else a scalar."""
        random = rng(seed, 77)
        return random.normal(size=self.positions) if self.options.get("reduction") == "none" else random.normal()


SHAPES = [((7,), 0), ((6, 5), -1), ((5, 6), 0), ((3, 4, 17), 2), ((3, 17, 4), 1), ((17, 3, 4), 0), ((2, 3, 33, 5), 2),
          ((2, 3, 5, 64), -1), ((4, 9, 129), -1), ((4, 129, 9), 1), ((70, 2), -1), ((2, 1, 37), 1), ((37, 1), 1),
          ((2, 2, 1025), -1), ((1, 2049, 3), 1)]


def build(random, shape, axis, dtype="float32", kind="logits", target="int64", layout="C", target_layout="C",
          options=(), reduced="mean", spread=3.0):
    """A case from the names of its parts; `target` is an integer type, or a float type for class probabilities."""
    axis %= len(shape)
    positions, n_classes = shape[:axis] + shape[axis + 1:], shape[axis]
    values = scores(random, shape, DTYPES[dtype], spread)
    if kind != "logits":
        values = (as_log_probs if kind == "log_probs" else as_probs)(values, axis)
    if DTYPES[target].kind in "iu":
        targets = class_indices(random, positions, n_classes, DTYPES[target])
        targets = lay_out(target_layout, targets)
    else:
        targets = lay_out(target_layout, class_probabilities(random, shape, axis, DTYPES[target]), axis)
    keywords = reduction(reduced)
    for name in options:
        keywords |= option(random, name, positions, n_classes)
    label = " | ".join(map(str, (kind, shape, axis, dtype, layout, target, target_layout, *options, reduced)))
    return Case(kind, lay_out(layout, values, axis), targets, axis, keywords, label, layout)


def layout_cases(dtype, kind="logits"):
    """Every layout of every shape, without options."""
    for i, (shape, axis) in enumerate(SHAPES):
        for j, layout in enumerate(LAYOUTS):
            yield build(rng(1, i, j), shape, axis, dtype, kind, layout=layout)


def class_count_cases(dtype, kind="logits"):
    """Every number of classes, as last axis and not, for class indices and probabilities."""
    for n in CLASS_COUNTS:
        for target in ("int64", "float64"):
            yield build(rng(2, n), (40 if n < 40 else 5, n), -1, dtype, kind, target)
            yield build(rng(3, n), (2, n, 3), 1, dtype, kind, target)


def target_cases(dtype, kind="logits"):
    """Every type and layout of targets."""
    for i, target in enumerate(DTYPES):
        for j, layout in enumerate(("C", "F", "every other", "reversed", "unaligned", "byte-swapped", "read-only")):
            yield build(rng(4, i, j), (3, 4, 19), -1, dtype, kind, target=target, target_layout=layout)
            yield build(rng(5, i, j), (3, 19, 4), 1, dtype, kind, target=target, target_layout=layout)


def single_option_cases(dtype, kind="logits"):
    """Every option alone, with each reduction, for class indices and class probabilities."""
    for k, (shape, axis) in enumerate((((4, 5, 18), 2), ((4, 18, 5), 1), ((6, 40), 1))):
        for i, name in enumerate((None, *option_names(kind, shape[1:]))):
            for j, reduced in enumerate(REDUCTIONS):
                target = ("int64", "float32")[(i + j + k) % 2]
                options = [name] if name else []
                yield build(rng(6, i, j, k), shape, axis, dtype, kind, target, options=options, reduced=reduced)


def option_pair_cases(dtype, kind="logits"):
    """Every two options together."""
    shape, axis = (4, 5, 18), -1
    names = option_names(kind, shape[:-1])
    for i, first in enumerate(names):
        for j, second in enumerate(names[i + 1:]):
            if first.split()[0] != second.split()[0]:
                target = "int32" if (i + j) % 3 else "float64"
                yield build(rng(7, i, j), shape, axis, dtype, kind, target, options=(first, second),
                            reduced=REDUCTIONS[(i + j) % len(REDUCTIONS)])


def random_case(seed, kind=None, dtype=None):
    """A product of everything, drawn from a seed."""
    random = rng(8, seed)
    kind = kind or random.choice(["logits", "logits", "log_probs", "probs"])
    dtype = dtype or str(random.choice([*FLOATS, *FLOATS, "int8", "uint16", "int64"]))
    n_classes = int(random.choice(CLASS_COUNTS[:-2]))
    ndim = int(random.integers(1, 5))
    limit = 6 if n_classes < 200 else 3
    shape = [int(n) for n in random.integers(1, limit, ndim)]
    axis = int(random.integers(ndim))
    shape[axis] = n_classes
    positions = tuple(shape[:axis] + shape[axis + 1:])
    names = option_names(kind, positions)
    chosen = random.choice(names, size=min(int(random.integers(0, 6)), len(names)), replace=False)
    if DTYPES[dtype].kind in "iu" or random.uniform() < 0.7:
        fitting = [t for t in INTEGERS if np.iinfo(t).max >= n_classes]
        target = str(random.choice(fitting))
    else:
        target = str(random.choice(list(FLOATS)))
    return build(random, tuple(shape), axis, dtype, str(kind), target, str(random.choice(list(LAYOUTS))),
                 str(random.choice(["C", "F", "every other", "reversed", "unaligned", "byte-swapped", "read-only"])),
                 tuple(map(str, chosen)), str(random.choice(REDUCTIONS)), float(random.choice([0.1, 3.0, 20.0])))


# --- engines


def engines():
    """(backend, instruction set) of what the tests run on: all that this machine can run, native among them; only Numba
    where FASTXENT_BACKEND says so.
    """
    found = [("numba", "")] if importlib.util.find_spec("numba") else []
    if os.environ.get("FASTXENT_BACKEND") == "numba":
        return found
    native = importlib.import_module("fastxent._native")
    return [("native", isa) for isa in native.available_isas()] + found


@contextlib.contextmanager
def running_on(backend, isa=""):
    """Run on a backend and, where it has several, an instruction set; assert that it is so, and restore both."""
    fastxent = importlib.import_module("fastxent")
    native = importlib.import_module("fastxent._native") if isa else None
    before = fastxent.get_backend(), isa and native.isa()
    fastxent.set_backend(backend)
    if isa:
        native.set_isa(isa)
    try:
        assert fastxent.get_backend() == backend
        assert not isa or native.isa() == isa
        yield
        assert fastxent.get_backend() == backend
        assert not isa or native.isa() == isa
    finally:
        fastxent.set_backend(before[0])
        if isa:
            native.set_isa(before[1])
