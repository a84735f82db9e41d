"""`python -m bench`: measure, check, report. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import measure
from .bandwidth import open_bandwidth
from .bars import check_all, summary
from .cases import MIB, PLANS
from .compare import compare
from .contest import Context, Record
from .machine import Elsewhere, describe
from .peer import Fastxent, load
from .report import bars, markdown
from .suites import SUITES, WITH_BARS

RESULTS = Path(__file__).with_name("results")
EFFORTS = {"full": measure.FULL, "quick": measure.QUICK, "smoke": measure.SMOKE}
SCHEMA = 1


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m bench", description="Measure fastxent against the machine and its peers."
    )
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer and smaller cases: about two minutes")
    size.add_argument(
        "--smoke", action="store_true", help="tiny cases, a few seconds: does everything run? Figures mean nothing"
    )
    p.add_argument("--against", metavar="NAMES", help="peers, by commas (torch,jax), or 'none'; default: all installed")
    p.add_argument("--only", metavar="SUITES", help=f"suites, by commas, of: {', '.join(SUITES)}")
    p.add_argument("--matching", metavar="TEXT", default="", help="only cases whose name (see --list) contains this")
    p.add_argument("--bars", action="store_true", help="only the suites that have bars, and their table on the screen")
    p.add_argument("--compare", metavar="OLD.json", type=Path, help="add a comparison with an earlier run")
    p.add_argument(
        "--render", metavar="RESULTS.json", type=Path, help="measure nothing: report and plots of an earlier run"
    )
    p.add_argument("--output", metavar="DIR", type=Path, help="where to write; default: bench/results/<full or quick>")
    p.add_argument("--threads", type=int, help="threads for everybody; default: those that fastxent takes")
    p.add_argument("--list", action="store_true", help="list the cases that would run")
    return p


def names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name and name != "none"]


def chosen(options: argparse.Namespace) -> list[str]:
    """The suites to run, in their own order."""
    wanted = names(options.only) or (WITH_BARS if options.bars else list(SUITES))
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown suites {unknown}: choose from {', '.join(SUITES)}")
    return [name for name in SUITES if name in wanted]


def run(options: argparse.Namespace, mode: str, folder: Path) -> dict[str, Any]:
    """Measure; results.json is written after every job, so that an interrupted run keeps what it has."""
    from tqdm import tqdm

    import fastxent

    backend = fastxent.get_backend()
    if backend != os.environ.get("FASTXENT_BACKEND", "native"):
        raise ValueError(f"fastxent in {Path(fastxent.__file__).parent} runs on {backend}: first pip install -e .")
    threads = options.threads or fastxent.get_num_threads()
    subject = Fastxent(options.threads or 0)
    peers, absent = load(names(options.against), threads)
    context = Context(subject, peers, threads, EFFORTS[mode], PLANS[mode])
    jobs = [job for name in chosen(options) for job in SUITES[name](context) if options.matching in job.name]
    if options.list:
        print("\n".join(job.name for job in jobs))
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    context.bandwidth = open_bandwidth((1 if mode == "smoke" else 512) * MIB, threads)
    records: list[Record] = []
    results: dict[str, Any] = {"schema": SCHEMA, "mode": mode, "records": records}
    results["machine"] = describe(subject, peers, absent, threads)
    begin, elsewhere = time.perf_counter(), Elsewhere()
    bar = tqdm(jobs, unit="race", file=sys.stderr, disable=None)
    for job in bar:
        bar.set_postfix_str(job.name[:60])
        made = job.run()
        share = elsewhere.share()
        records += [record | {"elsewhere": share} for record in made]
        results["seconds"] = round(time.perf_counter() - begin, 1)
        save(results, folder)
    return results


def save(results: dict[str, Any], folder: Path) -> None:
    """A record a line: small enough to commit, and a diff of two runs can be read."""
    about = json.dumps(rounded({**results, "records": []}), indent=1)
    lines = ",\n".join(json.dumps(rounded(record)) for record in results["records"])
    partial = folder / "results.json.part"
    partial.write_text(about.replace('"records": []', f'"records": [\n{lines}\n]') + "\n")
    partial.replace(folder / "results.json")


def rounded(value: Any) -> Any:
    """Four digits are more than any timing has, and keep a committed result small."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {results.get('schema')}, this reads {SCHEMA}")
    return results


def render(results: dict[str, Any], folder: Path, old: dict[str, Any] | None) -> str:
    """Write report.md and the plots; the report's text."""
    try:
        from .plots import draw

        results = results | {"plots": draw(results["records"], folder)}
    except ImportError:
        print("matplotlib is not installed: no plots", file=sys.stderr)
    text = markdown(results)
    if old is not None:
        text += "\n" + compare(results, old)
    (folder / "report.md").write_text(text)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    mode = "quick" if options.quick else "smoke" if options.smoke else "full"
    try:
        old = read(options.compare) if options.compare else None
        if options.render:
            folder = options.output or options.render.parent
            folder.mkdir(parents=True, exist_ok=True)
            results = read(options.render)
        else:
            folder = options.output or RESULTS / mode
            results = run(options, mode, folder)
            if not results:
                return 0
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    text = render(results, folder, old)
    checks = check_all(results["records"])
    print(bars(checks) if options.bars else text)
    print(f"report: {folder / 'report.md'}", file=sys.stderr)
    missed = [row["bar"] for row in summary(checks) if row["met"] < row["of"]]
    if missed:
        print(f"bars missed: {len(missed)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
