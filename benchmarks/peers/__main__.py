"""The same bilevel work in bilevax and in other libraries: time, memory against T, seconds to a stated accuracy.

    python -m benchmarks.peers [--work NAMES] [--rows PATTERNS] [--runs 5] [--readme] [--check] [--out FILE]

Each competitor is a separate process with its threads pinned; all competitors of a work run in turn. docs/peers.md
describes what is compared, with which settings, and how to read the tables. PyTorch's libraries and JAXopt are
installed in separate environments, in --environments, when they are first needed: about 6 GB.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import works
from benchmarks.peers.competitors import COMPETITORS, FLOOR, Competitor, chosen, reference
from benchmarks.peers.environments import default_folder
from benchmarks.peers.report import as_json, summary, table, whole
from benchmarks.peers.run import Field, Options, apart, measure, say

QUICK_MOVES, CHECK_MOVES = (1, 2), 10  # settings are tuned for 10


def machine() -> str:
    """The machine, in words."""
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        models = [line.split(":")[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def arrays_of(work: works.Work) -> works.Arrays:
    """The arrays of a work, with v trained first if the work says so."""
    from benchmarks.peers import jax_problems

    return jax_problems.warmed(work.name, work.arrays(), work.warm)


def check(work: works.Work, rows: list[Competitor], options: Options) -> bool:
    """Print how far each direction is from bilevax's of the same method, at the same point; whether all agree."""
    peers = [row for row in rows if not row.key.startswith("bilevax:") and row.method != FLOOR and row.has(work.name)]
    ours = [reference(method) for method in dict.fromkeys(row.method for row in peers)]
    good = True
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"
        np.savez(file, **arrays_of(work))  # type: ignore[arg-type]
        running = Field(work, file, [*ours, *peers], options)
        try:
            found = running.directions(CHECK_MOVES, Path(folder))
        finally:
            running.end()
    for row in peers:
        failed = next((f for key in (row.key, f"bilevax:{row.method}") if (f := running.rows[key].failed)), None)
        if failed is not None:
            print(f"{work.name:<10} {row.key:<28} failed: {failed}", flush=True)
            continue
        distance = apart(found[row.key], found[f"bilevax:{row.method}"])
        near = distance <= row.tolerance
        good = good and near
        verdict = "agrees" if near else "DEPARTS"
        print(f"{work.name:<10} {row.key:<28} {distance:9.2e}  {verdict} (to {row.tolerance:g})", flush=True)
    return good


def main() -> None:
    """Parse the options, then measure, check or tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=",".join(works.WORKS), help=f"some of {','.join(works.WORKS)}")
    parser.add_argument("--rows", default="*", help="keys such as bilevax:penalty, or patterns such as torch*")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each row at each T")
    parser.add_argument("--moves", default="1,10,50", help="the T's")
    parser.add_argument("--threads", type=int, default=2, help="cores, for each process")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one answer of a competitor")
    parser.add_argument("--environments", type=Path, default=default_folder(), help="where other libraries are kept")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    parser.add_argument("--readme", action="store_true", help="only README's table: T of 10, three runs, no targets")
    parser.add_argument("--quick", action="store_true", help="a smoke run: T of 1 and 2, two runs, no targets")
    parser.add_argument("--check", action="store_true", help="no times: compare directions with those of bilevax")
    parser.add_argument("--tune", action="store_true", help="no times: tune the settings of --rows; see tuning.py")
    parser.add_argument("--read", type=Path, help="no times: the tables of a file that --out wrote, and their summary")
    parser.add_argument("--list", action="store_true", help="the rows' keys")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{row.key:<28} {row.name}" for row in COMPETITORS))
        return
    if given.read is not None:
        print(whole(json.loads(given.read.read_text())), end="")
        return
    if given.runs < 1 or given.threads < 1:
        parser.error("--runs and --threads must be at least 1.")
    unknown = [name for name in given.work.split(",") if name not in works.WORKS]
    rows = chosen(given.rows)
    if unknown or not rows:
        parser.error(f"there is no work {unknown[0]!r}." if unknown else f"no row fits {given.rows!r}; see --list.")
    # Before jax is imported, by the starts of the works and by the judge.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    asked = [works.WORKS[name] for name in given.work.split(",")]
    moves = tuple(sorted({int(x) for x in given.moves.split(",")}))
    reach = None if given.quick or 10 not in moves else 10
    options = Options(given.environments, given.threads, given.runs, moves, limit=given.limit, reach=reach)
    if given.readme:
        options = Options(given.environments, given.threads, 3, (CHECK_MOVES,), limit=given.limit, reach=None)
    if given.quick:
        options = Options(given.environments, given.threads, 2, QUICK_MOVES, 0.0, given.limit, None)
    if given.check:
        near = [check(work, rows, options) for work in asked]
        sys.exit(0 if all(near) else 1)
    if given.tune:
        from benchmarks.peers import tuning

        tuning.tune(asked, tuple(dict.fromkeys(row.method for row in rows if row.method != FLOOR)))
        return
    run(asked, rows, options, given.out)


def run(asked: list[works.Work], rows: list[Competitor], options: Options, out: Path | None) -> None:
    """Measure, print and write."""
    from benchmarks.peers import jax_problems

    began, found = time.time(), {}
    print(f"{machine()}; {options.threads} threads, {options.runs} interleaved runs, float32.\n", flush=True)
    versions: dict[str, str] = {}
    for work in asked:
        arrays = arrays_of(work)
        judge = None if options.reach is None else jax_problems.judge(work.name, arrays)
        measured = measure(work, arrays, judge, rows, options)
        found[work.name] = work, measured
        for row in measured:
            versions |= row.versions
        print(table(work, measured, options.moves, options.reach) + "\n", flush=True)
        if out is not None:
            more: dict[str, Any] = {"machine": machine(), "threads": options.threads, "runs": options.runs}
            more |= {"command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]), "versions": versions}
            more |= {"moves": options.moves, "reach": options.reach, "seconds": time.time() - began}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(as_json(found, **more), indent=1) + "\n")
    print(summary({name: rows for name, (_, rows) in found.items()}, options.reach or options.moves[-1]) + "\n")
    print(", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    say(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
