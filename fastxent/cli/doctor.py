"""Look at this machine and this installation: what is used, how fast it is, and whether its answers are right.

Something to paste into a bug report. It takes a few seconds and 256 MB of memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import fastxent

from . import _output
from ._checks import Check, run_checks
from ._options import whole
from ._speed import measure

HELP = "configuration, threads, bandwidth and a self-check, for a bug report"
EXAMPLES = """\
examples:
  fastxent doctor
  fastxent doctor --format json -o doctor.json

exit code: 0, or 1 if an answer is wrong or nothing can be computed at all
"""

OPTIONAL = ("ml_dtypes", "tqdm", "zarr", "matplotlib", "threadpoolctl", "scipy", "scikit-learn", "torch", "jax", "dask")
VARIABLES = ("FASTXENT_", "OMP_", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "KMP_", "GOMP_")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastxent doctor``."""
    parser.add_argument("--format", choices=("table", "json"), default="table", help="table (the default) or json")
    parser.add_argument("-o", "--output", metavar="F", help="write to F instead of standard output")
    parser.add_argument(
        "--mb", type=whole, default=256, metavar="N",
        help="measure the bandwidth on N MB, more than the caches hold (default 256); 0 leaves it out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run ``fastxent doctor``: 1 if a check fails."""
    checks = run_checks()
    found = {
        "config": fastxent.show_config("dict"),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "packages": _packages(),
        "thread_pools": _thread_pools(),
        "speed": measure(arguments.mb * 10**6) if arguments.mb else [],
        "checks": [check._asdict() for check in checks],
    }
    with _output.opened(arguments.output) as out:
        _output.write(out, _output.to_json(found) + "\n" if arguments.format == "json" else _text(found, checks))
    wrong = [check.name for check in checks if not check.right]
    if wrong:
        print(f"fastxent doctor: wrong answers: {', '.join(wrong)}: please report this", file=sys.stderr)
    return 1 if wrong else 0


def _packages() -> dict[str, str]:
    """Versions of what is optional, where it is installed."""
    import importlib.metadata

    found = {}
    for name in OPTIONAL:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _thread_pools() -> list[dict[str, Any]] | None:
    """The thread pools of libraries that this process has loaded (NumPy's BLAS); None without threadpoolctl."""
    try:
        import threadpoolctl
    except ImportError:
        return None
    keys = ("user_api", "internal_api", "prefix", "version", "num_threads", "threading_layer", "architecture")
    return [{key: pool[key] for key in keys if key in pool} for pool in threadpoolctl.threadpool_info()]


def _text(found: dict[str, Any], checks: list[Check]) -> str:
    sections = {
        "Configuration": [(k, ", ".join(v) if isinstance(v, list) else str(v)) for k, v in found["config"].items()],
        "Environment": list(found["environment"].items()) or [("none of", ", ".join(VARIABLES))],
        "Optional packages": list(found["packages"].items()) or [("none", "")],
        "Thread pools in this process": _pool_lines(found["thread_pools"]),
    }
    if found["speed"]:
        sections["Speed (the best of a few runs in turn)"] = [_speed_line(row) for row in found["speed"]]
    sections["Self-check against fastxent.reference"] = [
        (check.name, f"{'right' if check.right else 'WRONG':6} {check.remark}") for check in checks
    ]
    width = max(len(name) for rows in sections.values() for name, _ in rows)
    parts = []
    for title, rows in sections.items():
        parts.append(title + "\n" + "".join(f"  {name:<{width}}  {value}".rstrip() + "\n" for name, value in rows))
    return "\n".join(parts)


def _speed_line(row: dict[str, Any]) -> tuple[str, str]:
    share = f"  {row['share']:4.0%} of the plain read" if row["share"] else ""
    return row["what"], f"{row['gb_per_s']:7.1f} GB/s{share}"


def _pool_lines(pools: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    own = ("fastxent", f"{fastxent.get_num_threads()} threads, from the first large call on; asleep between calls")
    if pools is None:
        return [own, ("others", "needs threadpoolctl: pip install 'fastxent[cli]'")]
    lines = [own]
    for pool in pools:
        rest = (f"{key} {pool[key]}" for key in ("version", "threading_layer", "architecture") if pool.get(key))
        lines.append((str(pool.get("internal_api")), f"{pool.get('num_threads')} threads, {', '.join(rest)}"))
    return lines
