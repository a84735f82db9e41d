"""results.json made readable: Markdown tables with their machine, the bars first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .bars import Check, bandwidth, best_peer, check_all, of, seconds, share, summary
from .contest import LIMITS, Record
from .linear import heads
from .measure import Estimate, median, ratio

MIB = 1 << 20
AGAINST = {
    "grid": "The grid",
    "few": "Few classes",
    "types": "Other types",
    "options": "Options",
    "sequences": "Padded sequences (60 % valid)",
    "layout": "The class axis second",
    "activations": "Activations",
}
OPERATIONS = {
    "both": "loss and a new gradient array",
    "given": "loss and gradient into a given array",
    "in_place": "loss and gradient in place",
}


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def milliseconds(laps: list[float]) -> str:
    if not laps:
        return "–"
    value = 1e3 * median(laps).value
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def number(value: Estimate | None, unit: str = "") -> str:
    if value is None or math.isnan(value.value):
        return "–"
    return f"{value.value:.2f}{unit} [{value.low:.2f}, {value.high:.2f}]"


def markdown(results: dict[str, Any]) -> str:
    records: list[Record] = results["records"]
    parts = [
        f"# fastxent benchmarks ({results['mode']} run)\n",
        "Made by `python -m bench`; how it is measured: docs/performance.md. Times are medians of interleaved rounds,",
        "brackets hold 95 % of the medians of resampled rounds. Read and copy bandwidth ran in the same races.\n",
        machine(results["machine"]),
        limits(records),
        bars(check_all(records)),
        *(against(records, suite, title) for suite, title in AGAINST.items()),
        sizes(records),
        small(records),
        masks(records),
        scoring(records),
        scaling(records),
        instruction_sets(records),
        products(records),
        adapter(records, "torch"),
        adapter(records, "jax"),
        hessian(records),
        memory(records),
        linear(records),
        answers(records, results["machine"]["versions"]),
        fallen(records),
        plots(results.get("plots", [])),
    ]
    return "\n".join(part for part in parts if part)


def machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rows = [
        ["processor", f"{about['processor']}, {about['cores']} cores, {about['system']}"],
        ["caches of a core", ", ".join(f"{k} {v}" for k, v in about["caches"].items()) or "unknown"],
        ["huge pages", about["huge_pages"]],
        ["threads", str(about["threads"])],
        ["backend", f"{about['backend']}, instruction set {about['config'].get('instruction_set', 'unknown')}"],
        ["Python", about["python"]],
        ["versions", versions],
        ["measured", about["time"]],
    ]
    rows += [["absent", f"{name}: {why}"] for name, why in about["absent"].items()]
    return "## Machine\n\n" + table(["what", "value"], rows)


def limits(records: list[Record]) -> str:
    rows = []
    for kind in LIMITS:
        found = [b / 1e9 for record in records if not math.isnan(b := bandwidth(record, kind))]
        if found:
            middle = median(found)
            rows.append([kind, f"{middle.value:.1f}", f"{min(found):.1f}", f"{max(found):.1f}", str(len(found))])
    if not rows:
        return "## Bandwidth\n\nNot measured: no large case ran, or there is no C compiler.\n" + quiet(records)
    head = ["what", "median", "lowest", "highest", "races"]
    return "## Bandwidth, GB/s (of races)\n\n" + table(head, rows) + quiet(records)


def quiet(records: list[Record]) -> str:
    """What other processes took while we measured: more than a few percent, and no figure here is worth much."""
    found = [100 * record["elsewhere"] for record in records if record.get("elsewhere") is not None]
    if not found:
        return ""
    middle, most = median(found).value, max(found)
    warning = " **The machine was not quiet: do not trust these figures.**" if middle > 3 or most > 20 else ""
    return f"\nOther processes took {middle:.1f} % of the machine's time (at most {most:.0f} % in a race).{warning}\n"


def bars(checks: list[Check]) -> str:
    if not checks:
        return ""
    rows = []
    for row in summary(checks):
        worst: Check = row["worst"]
        sign = "≥" if worst.at_least else "≤"
        verdict = "met" if row["met"] == row["of"] else f"**{row['met']} of {row['of']}**"
        bound = f"{sign} {worst.bound:.2f}{worst.unit}"
        rows.append([row["bar"], verdict, number(worst.value, worst.unit), bound, worst.case])
    text = "## Bars\n\n" + table(["bar", "met", "worst measured", "bound", "at"], rows)
    missed = [check for check in checks if not check.met]
    if missed:
        details = [[c.bar, c.case, number(c.value, c.unit), f"{c.bound:.2f}"] for c in missed]
        text += "\nEvery case below its bar:\n\n" + table(["bar", "case", "measured", "bound"], details)
    return text


def against(records: list[Record], suite: str, title: str) -> str:
    """Milliseconds of every contestant, the best peer's ratio, and the share of the measured limit."""
    own = list(of(records, suite))
    parts = []
    for operation in dict.fromkeys(record["operation"] for record in own):
        chosen = [record for record in own if record["operation"] == operation]
        names = [n for n in dict.fromkeys(n for r in chosen for n in r["contestants"]) if n not in LIMITS]
        rows = []
        for record in chosen:
            best = best_peer(record)
            part = share(record, capped=False)
            row = [record["name"], *(milliseconds(seconds(record, name)) for name in names)]
            row.append(f"{number(best[1], 'x')} {best[0]}" if best else "–")
            rows.append([*row, f"{part.value:.2f}" if part else "–"])
        head = ["case", *names, "best peer / fastxent", "share of limit"]
        parts.append(f"### {title}: {OPERATIONS.get(operation, operation)}, ms\n\n" + table(head, rows))
    return "\n".join(parts)


def sizes(records: list[Record]) -> str:
    own = list(of(records, "sizes"))
    columns = list(dict.fromkeys((r["case"]["dtype"], r["operation"]) for r in own))
    classes = sorted({r["case"]["shape"][-1] for r in own})
    if not own:
        return ""
    found = {(r["case"]["shape"][-1], r["case"]["dtype"], r["operation"]): share(r, capped=False) for r in own}
    rows = []
    for count in classes:
        cells = [found.get((count, *column)) for column in columns]
        rows.append([str(count), *(f"{cell.value:.2f}" if cell else "–" for cell in cells)])
    head = ["classes", *(" ".join(column) for column in columns)]
    return "## Share of the measured bandwidth (read for forward, copy for gradients)\n\n" + table(head, rows)


def small(records: list[Record]) -> str:
    rows = [
        [record["name"], record["operation"], number(median(laps).times(1e6))]
        for record in of(records, "small")
        if (laps := seconds(record, "fastxent"))
    ]
    return "## Small calls, microseconds\n\n" + table(["case", "operation", "time"], rows) if rows else ""


def masks(records: list[Record]) -> str:
    rows = []
    for record in of(records, "masks"):
        for name, contestant in record["contestants"].items():
            if name != "full" and contestant.get("seconds"):
                value = ratio(contestant["seconds"], seconds(record, "full"))
                rows.append([record["name"], record["operation"], f"{contestant['valid']:.2f}", number(value)])
    head = ["case", "operation", "fraction valid", "time / all valid"]
    return "## Masks and lengths\n\n" + table(head, rows) if rows else ""


def scoring(records: list[Record]) -> str:
    rows = []
    for record in of(records, "scoring"):
        loss = seconds(record, "cross_entropy")
        others = [name for name in record["contestants"] if name != "cross_entropy"]
        rows.append([record["name"], milliseconds(loss), *(number(ratio(seconds(record, n), loss)) for n in others)])
        head = ["case", "cross_entropy, ms", *(f"{name} / cross_entropy" for name in others)]
    return "## Scoring in one pass\n\n" + table(head, rows) if rows else ""


def scaling(records: list[Record]) -> str:
    own = list(of(records, "threads"))
    names = list(dict.fromkeys(name for record in own for name in record["contestants"]))
    rows = []
    for record in own:
        row = [record["name"], record["operation"]]
        for name in names:
            laps, moved = seconds(record, name), record["contestants"].get(name, {}).get("bytes")
            moved = moved or record["bytes_read" if record["operation"] == "forward" else "bytes_both"]
            row.append(f"{moved / median(laps).value / 1e9:.1f}" if laps else "–")
        rows.append(row)
    return "## Threads, GB/s\n\n" + table(["case", "operation", *names], rows) if rows else ""


def instruction_sets(records: list[Record]) -> str:
    rows = []
    for record in of(records, "isa"):
        default = record["contestants"].get("default", {})
        chosen = default.get("config", {}).get("instruction_set", "?")
        for name, contestant in record["contestants"].items():
            if name != "default" and contestant.get("seconds") and default.get("seconds"):
                speed = ratio(default["seconds"], contestant["seconds"])
                times = milliseconds(default["seconds"]), milliseconds(contestant["seconds"])
                rows.append([record["name"], record["operation"], f"{name} / {chosen}", *times, number(speed)])
    head = ["case", "operation", "forced / chosen", "chosen, ms", "forced, ms", "speed of forced"]
    return "## Instruction sets\n\n" + table(head, rows) if rows else ""


def products(records: list[Record]) -> str:
    rows = []
    for record in of(records, "gemm"):
        alone = seconds(record, "alone")
        for name in ("after", "after one thread"):
            if alone and (laps := seconds(record, name)):
                rows.append(
                    [record["name"], record["operation"], name, milliseconds(alone), number(ratio(laps, alone))]
                )
    head = ["call between", "product", "product runs", "alone, ms", "time / alone"]
    return "## A foreign matrix product between two calls\n\n" + table(head, rows) if rows else ""


def adapter(records: list[Record], framework: str) -> str:
    """An adapter beside its framework, in microseconds: the small cases count as well."""
    rows = []
    for record in of(records, framework):
        ours, theirs = (seconds(record, name) for name in (f"fastxent.{framework}", framework))
        if ours and theirs:
            times = [f"{median(laps).times(1e6).value:.1f}" for laps in (ours, theirs)]
            rows.append([record["name"], OPERATIONS.get(record["operation"], record["operation"]), *times,
                         number(ratio(theirs, ours), "x")])
    head = ["case", "operation", f"fastxent.{framework}", framework, f"{framework} / fastxent.{framework}"]
    return f"## fastxent.{framework} against {framework}, microseconds\n\n" + table(head, rows) if rows else ""


def hessian(records: list[Record]) -> str:
    rows = []
    for record in of(records, "hessian"):
        ours, theirs = (seconds(record, name) for name in ("fastxent.sklearn", "sklearn"))
        if ours and theirs:
            arrays = "new arrays" if record["operation"] == "both" else "given arrays"
            times = [milliseconds(ours), milliseconds(theirs)]
            rows.append([record["name"], arrays, *times, number(ratio(theirs, ours), "x")])
    head = ["case", "results in", "fastxent.sklearn, ms", "scikit-learn, ms", "scikit-learn / fastxent.sklearn"]
    return "## Gradient and Hessian of the multinomial loss\n\n" + table(head, rows) if rows else ""


def memory(records: list[Record]) -> str:
    own = list(of(records, "memory"))
    names = list(dict.fromkeys(name for record in own for name in record["contestants"]))
    rows = []
    for record in own:
        row = [record["name"], record["operation"], f"{record['logits_bytes'] / MIB:.0f}"]
        for name in names:
            extra = record["contestants"].get(name, {}).get("extra_bytes")
            row.append("–" if extra is None else f"{extra / MIB:.1f}")
        rows.append(row)
    head = ["case", "operation", "logits", *names]
    return "## Peak memory beyond the inputs, MiB (a new gradient included)\n\n" + table(head, rows) if rows else ""


def linear(records: list[Record]) -> str:
    """Time and peak memory of every contestant, and ours against the products alone and the best peer."""
    parts, own = [], heads(records)
    names = list(dict.fromkeys(n for r in own for n in r["contestants"]))
    for operation in dict.fromkeys(record["operation"] for record in own):
        rows = []
        for record in (r for r in own if r["operation"] == operation):
            ours, best = seconds(record, "fastxent"), best_peer(record)
            row = [record["name"]]
            for name in names:
                extra = record["contestants"].get(name, {}).get("extra_bytes")
                size = "" if extra is None else f" ({extra / MIB:.0f})"
                row.append(milliseconds(seconds(record, name)) + size)
            floor = seconds(record, "product")
            row.append(number(ratio(ours, floor), "x") if ours and floor else "–")
            rows.append([*row, f"{number(best[1], 'x')} {best[0]}" if best else "–"])
        what = "loss" if operation == "forward" else "loss and new gradients"
        head = ["case", *names, "fastxent / product", "best peer / fastxent"]
        parts.append(f"### Linear cross-entropy: {what}, ms (MiB beyond the inputs)\n\n" + table(head, rows))
    return "\n".join(parts)


def answers(records: list[Record], names: Iterable[str]) -> str:
    """The worst error of each library of `names` and type, and every answer out of bounds; other labels are ours."""
    worst: dict[tuple[str, str], dict[str, float]] = {}
    wrong = []
    for record in records:
        for name, contestant in record["contestants"].items():
            if "right" not in contestant:
                continue
            dtype = record["case"]["dtype"]
            known = name in names or record["suite"] in ("linear", "sweep")
            own = worst.setdefault((name if known else "fastxent", dtype), {})
            for key in ("loss_error", "array_error"):
                if key in contestant:
                    own[key] = max(own.get(key, 0.0), contestant[key])
            if not contestant["right"]:
                errors = (f"{contestant.get(key, 0.0):.1e}" for key in ("loss_error", "array_error"))
                wrong.append([record["suite"], record["name"], record["operation"], name, *errors])
    if not worst:
        return ""
    cells = [
        [name, dtype, *(f"{own[key]:.1e}" if key in own else "–" for key in ("loss_error", "array_error"))]
        for (name, dtype), own in worst.items()
    ]
    about = "Against float64: relative error of the loss, largest error of an array (gradients times the positions)."
    text = f"## Answers checked\n\n{about}\n\n" + table(["who", "type", "loss", "array"], cells)
    if wrong:
        head = ["suite", "case", "operation", "who", "loss", "array"]
        text += "\nLess exact than asked of fastxent:\n\n" + table(head, wrong)
    return text


def fallen(records: list[Record]) -> str:
    rows = [
        [
            record["suite"],
            record["name"],
            record["operation"],
            name,
            contestant["error"].replace("|", "/").replace("\n", " "),
        ]
        for record in records
        for name, contestant in record["contestants"].items()
        if contestant.get("error")
    ]
    return "## Fell out\n\n" + table(["suite", "case", "operation", "who", "why"], rows) if rows else ""


def plots(names: list[str]) -> str:
    return (
        "## Plots\n\n" + "\n".join(f"![{name.removesuffix('.png')}]({name})" for name in names) + "\n" if names else ""
    )
