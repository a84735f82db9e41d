"""Which races make up the report. A suite is a function of the context that yields jobs, run when their turn comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import numpy as np

import fastxent

from .adapters import ADAPTERS, FastxentJax, FastxentTorch, hessian_calls, installed
from .answers import Oracle
from .baselines import Jax, Torch
from .cases import DTYPES, Case, Data, dtype_of, rows_for
from .contest import Context, Entry, Job, Record, contest, entries, finish, large
from .linear_suites import linear, sweep
from .measure import local, race
from .peer import Fastxent, Peer
from .worker import Worker

Suite = Callable[[Context], Iterator[Job]]


def compare_all(
    context: Context, suite: str, case: Case, operations: tuple[str, ...], peers: list[Peer], limits: bool | None
) -> list[Record]:
    """fastxent and some peers on one case, with the limit where the case is larger than the cache, or if wanted."""
    data = case.make()
    able, failed = entries([context.subject, *peers], data)
    records = []
    for operation in operations:
        if any(operation in entry.calls for entry in able):
            wanted = large(data) if limits is None else limits
            records.append(contest(context, suite, case, operation, able, wanted))
            records[-1]["contestants"] |= {name: {"error": error} for name, error in failed.items()}
    return records


def job(
    context: Context,
    suite: str,
    case: Case,
    *operations: str,
    peers: list[Peer] | None = None,
    limits: bool | None = None,
) -> Job:
    """`peers`: those beside the grid if not given."""
    raced = context.aside if peers is None else peers
    return Job(f"{suite}: {case.name}", partial(compare_all, context, suite, case, operations, raced, limits))


def grid(context: Context) -> Iterator[Job]:
    """The table of peers: forward, forward and gradient into a new array, into a given one, in place."""
    for shape in context.plan.grid:
        yield job(context, "grid", Case(shape), "forward", "both", "given", "in_place", peers=context.peers)


def few(context: Context) -> Iterator[Job]:
    """Few classes: lanes along the positions."""
    for classes in context.plan.few:
        case = Case((-(-context.plan.few_elements // classes), classes))
        yield job(context, "few", case, "forward", limits=True)


def sizes(context: Context) -> Iterator[Job]:
    """The share of the limit over classes and types, without peers."""
    for dtype in DTYPES:
        for classes in context.plan.sizes:
            case = Case((rows_for(classes, dtype, context.plan.sizes_bytes), classes), dtype)
            more = ("in_place",) if dtype == "float32" else ()
            yield job(context, "sizes", case, "forward", "given", *more, peers=[], limits=True)


def types(context: Context) -> Iterator[Job]:
    """The other types against the peers that know them."""
    for case in context.plan.types:
        yield job(context, "types", case, "forward", "both")


def options(context: Context) -> Iterator[Job]:
    """Label smoothing, class weights, class probabilities."""
    for shape in context.plan.options:
        yield job(context, "options", Case(shape, label_smoothing=0.1), "forward", "both")
        yield job(context, "options", Case(shape, weighted=True), "forward", "both")
        yield job(context, "options", Case(shape, probabilities=True), "forward", "both")


def sequences(context: Context) -> Iterator[Job]:
    """Padded batches (B, T, C): lengths for us, -100 or a mask for the peers."""
    for shape in context.plan.sequences:
        yield job(context, "sequences", Case(shape, padding="lengths", valid=0.6), "forward", "both")


def activations(context: Context) -> Iterator[Job]:
    for shape in context.plan.activations:
        yield job(context, "activations", Case(shape), "softmax", "log_softmax")


def small(context: Context) -> Iterator[Job]:
    """What a call costs."""
    for shape in context.plan.small:
        yield job(context, "small", Case(shape), "forward", "both", "given", peers=[])


def layout(context: Context) -> Iterator[Job]:
    """The class axis second, and the same data with the class axis last."""

    def run(case: Case) -> list[Record]:
        data = case.make()
        moved = Data(dataclasses.replace(case, shape=(case.shape[0], *case.shape[2:], case.shape[1]), axis=-1))
        moved.logits[...] = np.moveaxis(data.logits, 1, -1)
        moved.targets[...] = data.targets
        able, failed = entries(
            [context.subject, *(peer for peer in context.aside if peer.name in ("torch", "compile", "jax"))], data
        )
        able.append(Entry("last axis", context.subject, Oracle(moved), context.subject.calls(moved)))
        records = [
            contest(context, "layout", case, operation, able, True) for operation in ("forward", "given", "both")
        ]
        for record in records:
            record["contestants"] |= {name: {"error": error} for name, error in failed.items()}
        return records

    for shape in context.plan.layouts:
        case = Case(shape, axis=1)
        yield Job(f"layout: {case.name}", partial(run, case))


def masks(context: Context) -> Iterator[Job]:
    """Time against the fraction of valid positions, beside the same call with all of them."""

    def run(full: Case, padding: str) -> list[Record]:
        able = [Entry("full", context.subject, Oracle(data := full.make()), context.subject.calls(data))]
        for valid in context.plan.fractions:
            data = dataclasses.replace(full, padding=padding, valid=valid).make()
            able.append(Entry(f"{padding} {valid:g}", context.subject, Oracle(data), context.subject.calls(data)))
        records = [contest(context, "masks", full, operation, able) for operation in ("forward", "given")]
        return [record | {"name": f"{full.name} {padding}"} for record in records]

    for shape in context.plan.sequences:
        for padding in ("lengths", "mask"):
            yield Job(f"masks: {Case(shape).name} {padding}", partial(run, Case(shape), padding))


def scoring(context: Context) -> Iterator[Job]:
    """What one pass for all statistics costs beside the loss alone."""

    def run(case: Case) -> list[Record]:
        data, n = case.make(), context.threads
        x, t, axis = data.logits, data.targets, case.axis
        samplers = {
            "cross_entropy": local(lambda: fastxent.cross_entropy(x, t, axis=axis, num_threads=n)),
            "token_statistics": local(lambda: fastxent.token_statistics(x, t, axis=axis, num_threads=n)),
            "top_k_log_probs, k = 5": local(lambda: fastxent.top_k_log_probs(x, 5, axis=axis, num_threads=n)),
            "partials": local(lambda: fastxent.partials(x, t, axis=axis, num_threads=n)),
        }
        record = finish("scoring", case.name, "forward", race(samplers, context.effort))
        return [record | {"case": dataclasses.asdict(case)}]

    for case in context.plan.scoring:
        yield Job(f"scoring: {case.name}", partial(run, case))


def threads(context: Context) -> Iterator[Job]:
    """The same call on 1, 2, 4 ... threads, and what the memory gives to as many."""
    counts = sorted({1 << k for k in range(context.threads.bit_length())} | {context.threads})

    def run(case: Case, operation: str) -> list[Record]:
        data = case.make()
        samplers = {f"fastxent {n}": local(Fastxent(n).calls(data)[operation]) for n in counts}
        if context.bandwidth:
            kind = "read" if operation == "forward" else "copy"
            samplers |= {f"{kind} {n}": local(context.bandwidth.calls(n)[kind]) for n in counts}
        record = finish("threads", case.name, operation, race(samplers, context.effort))
        for label, contestant in record["contestants"].items():
            if context.bandwidth and not label.startswith("fastxent"):
                contestant["bytes"] = context.bandwidth.nbytes[label.split()[0]]
        return [
            record | {"case": dataclasses.asdict(case), "bytes_read": data.bytes_read, "bytes_both": data.bytes_both}
        ]

    for shape in context.plan.threads:
        for operation in ("forward", "given"):
            case = Case(shape)
            yield Job(f"threads: {case.name} {operation}", partial(run, case, operation))


def isa(context: Context) -> Iterator[Job]:
    """Each instruction set forced by FASTXENT_ISA in a child process of its own, against the one chosen by itself."""

    def run(case: Case, operation: str) -> list[Record]:
        answers, samplers = {}, {}
        with ExitStack() as stack:
            for name in ("default", *context.plan.forced):
                worker = stack.enter_context(Worker({} if name == "default" else {"FASTXENT_ISA": name}))
                try:
                    answers[name] = worker.ask(
                        "prepare",
                        case=dataclasses.asdict(case),
                        operation=operation,
                        peer="fastxent",
                        threads=context.subject.threads,
                    )
                    answers[name]["config"] = worker.ask("config")
                except RuntimeError as error:
                    answers[name] = {"error": str(error)}
                else:
                    samplers[name] = worker.sampler()
            return [finish("isa", case.name, operation, race(samplers, context.effort), answers)]

    for case in context.plan.isa:
        for operation in ("forward", "given"):
            yield Job(f"isa: {case.name} {operation}", partial(run, case, operation))


def gemm(context: Context) -> Iterator[Job]:
    """A NumPy matrix product alone, and after each of our calls: do our threads disturb it?

    The call also throws the matrices out of the cache; "after one thread" does so too, without waking a thread.
    """

    def run(case: Case) -> list[Record]:
        data = case.make()
        size = context.plan.gemm_size
        a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
        b, out = a.T.copy(), np.empty_like(a)
        product = partial(np.matmul, a, b, out=out)
        call, lone = (peer.calls(data)["forward"] for peer in (context.subject, Fastxent(1)))
        samplers = {"alone": local(product), "after": local(product, call), "after one thread": local(product, lone)}
        return [finish("gemm", case.name, f"matmul {size}", race(samplers, context.effort))]

    for shape in context.plan.gemm:
        case = Case(shape)
        yield Job(f"gemm: {case.name}", partial(run, case))


def against(
    context: Context, suite: str, adapter: type[Peer], framework: type[Peer], cases: list[Case]
) -> Iterator[Job]:
    """An adapter and its framework on the same arrays: forward, and forward with backward."""

    def run(case: Case) -> list[Record]:
        data = case.make()
        able, failed = entries([adapter(context.threads), framework(context.threads)], data)
        records = [contest(context, suite, case, operation, able) for operation in ("forward", "both")]
        for record in records:
            record["contestants"] |= {name: {"error": error} for name, error in failed.items()}
        return records

    for case in cases:
        yield Job(f"{suite}: {case.name}", partial(run, case))


def torch(context: Context) -> Iterator[Job]:
    """fastxent.torch against torch on the same tensors."""
    if installed("torch"):
        yield from against(context, "torch", FastxentTorch, Torch, context.plan.torch)


def jax(context: Context) -> Iterator[Job]:
    """fastxent.jax against optax, both compiled by JAX."""
    if installed("jax", "optax"):
        yield from against(context, "jax", FastxentJax, Jax, context.plan.jax)


def hessian(context: Context) -> Iterator[Job]:
    """fastxent.sklearn's gradient and Hessian against scikit-learn's: new arrays, and given ones."""

    def run(case: Case) -> list[Record]:
        calls, records = hessian_calls(case.make(), context.threads), []
        for operation in ("both", "given"):
            samplers = {name: local(own[operation]) for name, own in calls.items()}
            records.append(finish("hessian", case.name, operation, race(samplers, context.effort)))
        return [record | {"case": dataclasses.asdict(case)} for record in records]

    for case in context.plan.hessian if installed("sklearn") else []:
        yield Job(f"hessian: {case.name}", partial(run, case))


def memory(context: Context) -> Iterator[Job]:
    """Peak memory beyond the inputs, each call in a child process of its own."""

    def run(case: Case, operation: str, names: list[str]) -> list[Record]:
        found = {}
        for name in names:
            with Worker() as worker:
                try:
                    found[name] = worker.ask(
                        "memory", case=dataclasses.asdict(case), operation=operation, peer=name, threads=context.threads
                    )
                except RuntimeError as error:
                    if "KeyError" not in str(error):  # a peer without this operation
                        found[name] = {"error": str(error)}
        record = {"suite": "memory", "name": case.name, "operation": operation, "contestants": found}
        nbytes = case.positions * case.classes * dtype_of(case.dtype).itemsize
        return [record | {"case": dataclasses.asdict(case), "positions": case.positions, "logits_bytes": nbytes}]

    whole = Case(context.plan.memory)
    for operation in ("forward", "both"):
        adapters = [kind.name for kind in ADAPTERS if installed(kind.distribution)]
        names = ["fastxent", *adapters, *(peer.name for peer in context.aside)]
        yield Job(f"memory: {whole.name} {operation}", partial(run, whole, operation, names))
        for case in context.plan.memory_cases:
            yield Job(f"memory: {case.name} {operation}", partial(run, case, operation, ["fastxent"]))


SUITES: dict[str, Suite] = {
    suite.__name__: suite
    for suite in (
        grid,
        few,
        sizes,
        types,
        options,
        sequences,
        activations,
        small,
        layout,
        masks,
        scoring,
        threads,
        isa,
        gemm,
        torch,
        jax,
        hessian,
        memory,
        linear,
        sweep,
    )
}
WITH_BARS = (
    *("grid", "few", "sizes", "small", "layout", "masks", "scoring", "isa", "gemm"),
    *("torch", "jax", "hessian", "memory", "linear"),
)
