"""The largest errors found, of fastxent on every instruction set and of its peers: ``python -m bench.accuracy``.

Prints the tables of docs/accuracy.md. Inputs, exact answers and bounds are those of bench/extremes.py, the same for
everybody; peers get the class axis last, and no input with a logit_scale, which they do not have. An error is counted
in units in the last place (ULP) of the type that fastxent returns, which half types round to once.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call"
from __future__ import annotations

import argparse
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .extremes import DTYPES, FAMILIES, PRECISION, QUANTITIES, Array, Exact, Extreme, answers
from .machine import processor
from .report import table

Answers = dict[str, Any]


# --- the peers: quantities by name, for (positions, classes)


def of_torch(case: Extreme) -> Answers:
    import torch
    from torch.nn import functional

    if case.dtype == "bfloat16":
        x = torch.from_numpy(case.logits.view(np.int16)).view(torch.bfloat16)
    else:
        x = torch.from_numpy(case.logits)
    x, t = x.requires_grad_(), torch.from_numpy(case.targets)
    found: Answers = {}
    if "gradient" in case.quantities:
        functional.cross_entropy(x, t, reduction="sum").backward()
        found["gradient"] = x.grad
    x = x.detach()
    found["loss"] = functional.cross_entropy(x, t, reduction="none")
    found["mean"] = functional.cross_entropy(x, t)
    forms: dict[str, Any] = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}
    found |= {name: form(x, 1) for name, form in forms.items() if name in case.quantities}
    return {name: value.to(torch.float64).numpy() for name, value in found.items()}


def of_scipy(case: Extreme) -> Answers:
    from scipy import special

    if case.dtype in ("float16", "bfloat16"):
        return {}
    x, rows = case.logits, np.arange(len(case.targets))
    found: Answers = {name: getattr(special, name)(x, axis=1) for name in ("softmax", "log_softmax", "logsumexp")}
    found["loss"] = -found["log_softmax"][rows, case.targets]
    found["mean"] = found["loss"].mean(dtype=np.float64)
    found["gradient"] = found["softmax"].copy()
    found["gradient"][rows, case.targets] -= 1
    return found


def of_sklearn(case: Extreme) -> Answers:
    from sklearn._loss.loss import HalfMultinomialLoss

    if case.dtype in ("float16", "bfloat16") or case.logits.shape[1] < 3:
        return {}
    loss = HalfMultinomialLoss(n_classes=case.logits.shape[1])
    losses, gradient = loss.loss_gradient(case.targets.astype(case.logits.dtype), case.logits)
    return {"loss": losses, "gradient": gradient, "mean": losses.mean(dtype=np.float64)}


_JITTED: list[Any] = []


def of_optax(case: Extreme) -> Answers:
    import jax

    if not _JITTED:
        import optax

        jax.config.update("jax_enable_x64", True)  # else float64 is narrowed without a word
        losses = optax.softmax_cross_entropy_with_integer_labels

        def everything(x: Any, t: Any) -> Answers:
            gradient = jax.grad(lambda x: losses(x, t).sum())(x)
            found = {"loss": losses(x, t), "gradient": gradient, "mean": losses(x, t).mean()}
            found |= {"softmax": jax.nn.softmax(x), "log_softmax": jax.nn.log_softmax(x)}
            return found | {"logsumexp": jax.nn.logsumexp(x, axis=-1)}

        _JITTED.append(jax.jit(everything))
    return dict(_JITTED[0](case.logits, case.targets))


PEERS: dict[str, tuple[Callable[[Extreme], Answers], str]] = {
    "torch": (of_torch, "torch"),
    "scipy": (of_scipy, "scipy"),
    "optax": (of_optax, "optax"),
    "sklearn": (of_sklearn, "scikit-learn"),
}


# --- measuring


class Worst:
    """The worst of each (dtype, quantity, contestant): ULP and share of the bound, each with where."""

    def __init__(self) -> None:
        self.ulp: dict[tuple[str, str, str], tuple[float, str]] = {}
        self.share: dict[tuple[str, str, str], tuple[float, str]] = {}
        self.by_family: dict[tuple[str, str], float] = {}  # float32 losses: (family, contestant) -> share

    def add(self, exact: Exact, family: str, contestant: str, layout: str, found: Answers) -> None:
        for quantity in exact.case.quantities:
            if quantity not in found:
                continue
            key = exact.case.dtype, quantity, contestant
            where = exact.case.name + (", class axis first" if layout == "first" else "")
            for kept, errors in zip((self.ulp, self.share), exact.errors(quantity, found[quantity]), strict=True):
                value = float(errors.max())
                if value > kept.get(key, (-1.0, ""))[0]:
                    kept[key] = value, where
            if exact.case.dtype == "float32" and quantity == "loss":
                place, value = (family, contestant), float(exact.errors(quantity, found[quantity])[1].max())
                self.by_family[place] = max(value, self.by_family.get(place, 0.0))


def run(families: list[str], dtypes: list[str], isas: list[str], peers: list[str]) -> Worst:
    from fastxent import _native

    worst, before = Worst(), _native.isa()
    try:
        for dtype in dtypes:
            for family in families:
                print(f"{dtype} {family}", file=sys.stderr)
                for case in FAMILIES[family](dtype):
                    exact = Exact(case)
                    for isa in isas:
                        _native.set_isa(isa)
                        for layout in case.layouts:
                            worst.add(exact, family, isa, layout, answers(case, layout))
                    for name in peers if case.scale == 1 else []:
                        worst.add(exact, family, name, "last", PEERS[name][0](case))
    finally:
        _native.set_isa(before)
    return worst


def functions(dtype: str) -> Iterator[tuple[str, Array, Array]]:
    """The engine's own functions, as far as public ones lay them open: name, errors in u, where."""
    import fastxent

    about, random, n = PRECISION[dtype], np.random.default_rng(10), 100000
    zeros, low = np.zeros(n, np.int64), -np.log(about.tiny)

    def error(got: Array, exact: Array, relative: bool = True) -> Array:
        off = np.abs(got.astype(about.wide) - exact) / about.u
        return np.asarray(off / np.abs(exact) if relative else off, np.float64)

    d = random.uniform(18 if dtype == "float32" else 40, low, n).astype(dtype)
    p = fastxent.softmax(np.stack([np.zeros_like(d), -d], axis=1))[:, 1]
    exact = np.exp(-d.astype(about.wide))
    yield "exp(−d)", error(p, exact), d
    beyond = np.maximum(error(p, exact) - 1, 0) / d
    yield "exp(−d): what grows with d, per unit of d", beyond, d
    d = np.concatenate([random.uniform(0, 3, n // 2), 10 ** random.uniform(-3, 1.7, n // 2)]).astype(dtype)
    x = np.stack([np.zeros_like(d), -d], axis=1)
    loss, saved = fastxent.cross_entropy(x, zeros, reduction="none", return_saved=True)
    yield "log1p(s)", error(loss, np.log1p(saved[:, 1].astype(about.wide))), saved[:, 1]
    x = (10 ** random.uniform(-8, 1.4, n)).astype(dtype)
    _, saved = fastxent.cross_entropy(x[:, None], zeros, softcap=1.0, reduction="none", return_saved=True)
    yield "tanh(x)", error(saved[:, 0], np.tanh(x.astype(about.wide))), x
    pair = np.stack([x, np.full_like(x, -np.inf)], axis=1)
    slope = fastxent.cross_entropy_grad(pair, zeros + 1, softcap=1.0, reduction="none")[:, 0]
    yield "1 − tanh²(x), absolute", error(slope, 1 / np.cosh(x.astype(about.wide)) ** 2, relative=False), x


# --- printing


def number(value: float) -> str:
    if value >= 1e15 or np.isinf(value):
        return "∞"
    return f"{value:.1e}" if value >= 1000 else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def pair(worst: Worst, key: tuple[str, str, str], digits: float) -> str:
    if key not in worst.ulp:
        return "–"
    ulp = worst.ulp[key][0]
    return f"{'all' if ulp >= digits else number(ulp)} · {number(worst.share[key][0])}"


def markdown(worst: Worst, dtypes: list[str], isas: list[str], peers: list[str]) -> str:
    parts = []
    for dtype in dtypes:
        names = [name for name in (*isas, *peers) if any((dtype, q, name) in worst.ulp for q in QUANTITIES)]
        rows = []
        for quantity in QUANTITIES:
            stored = quantity in ("gradient", "softmax", "log_softmax")
            digits = 1 / (PRECISION[dtype].stored if stored else PRECISION[dtype].u)
            rows.append([quantity, *(pair(worst, (dtype, quantity, name), digits) for name in names)])
        parts.append(f"### {dtype}: largest error in ULP · as a multiple of the bound\n\n" + table(["", *names], rows))
    rows = []
    for dtype in dtypes:
        for quantity in QUANTITIES:
            found = [(*worst.share[dtype, quantity, isa], isa) for isa in isas if (dtype, quantity, isa) in worst.share]
            if found:
                share, where, isa = max(found)
                rows.append([dtype, quantity, isa, number(share), where])
    head = ["dtype", "", "instruction set", "share of the bound", "input"]
    parts.append("### Where fastxent comes nearest to its bounds\n\n" + table(head, rows))
    families = list(dict.fromkeys(family for family, _ in worst.by_family))
    names = list(dict.fromkeys(name for _, name in worst.by_family))
    rows = [
        [family, *(number(worst.by_family[family, n]) if (family, n) in worst.by_family else "–" for n in names)]
        for family in families
    ]
    if rows:
        parts.append("### float32 losses by input, as a multiple of the bound\n\n" + table(["", *names], rows))
    return "\n".join(parts)


def function_table(isas: list[str]) -> str:
    from fastxent import _native

    before, found = _native.isa(), {}
    for isa in isas:
        _native.set_isa(isa)
        for dtype in ("float32", "float64"):
            for name, errors, at in functions(dtype):
                k = int(errors.argmax())
                found[dtype, name, isa] = f"{errors[k]:.3f} at {at[k]:.9g}"
    _native.set_isa(before)
    rows = [
        [dtype, name, *(found[dtype, name, isa] for isa in isas)] for dtype, name in dict.fromkeys(k[:2] for k in found)
    ]
    return "### The engine's own functions: largest error found, in u\n\n" + table(["dtype", "", *isas], rows)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench.accuracy", description="The largest errors found, as Markdown.")
    p.add_argument("--only", metavar="INPUTS", help=f"by commas, of: {', '.join(FAMILIES)}")
    p.add_argument("--dtypes", metavar="NAMES", help=f"by commas, of: {', '.join(DTYPES)}")
    p.add_argument("--against", metavar="NAMES", help=f"peers, by commas, of: {', '.join(PEERS)}; or 'none'")
    return p


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(PEERS[name][1])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    from fastxent import _native

    options = parser().parse_args(arguments)
    chosen = []
    for text, known in ((options.only, FAMILIES), (options.dtypes, DTYPES), (options.against, PEERS)):
        names = list(known) if text is None else [n for n in text.split(",") if n != "none"]
        if unknown := [name for name in names if name not in known]:
            print(f"bench.accuracy: unknown {', '.join(unknown)}: choose from {', '.join(known)}", file=sys.stderr)
            return 2
        chosen.append(names)
    families, dtypes, peers = chosen
    peers, isas = [name for name in peers if installed(name)], list(_native.available_isas())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        worst = run(families, dtypes, isas, peers)
        print(markdown(worst, dtypes, isas, peers))
        print(function_table(isas))
    versions = ", ".join(f"{PEERS[name][1]} {importlib.metadata.version(PEERS[name][1])}" for name in peers)
    print(f"Measured on {processor()}, NumPy {np.__version__}" + (f", {versions}." if versions else "."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
