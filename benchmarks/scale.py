"""Time and memory of a step against the sizes of u and v, with the floor of the machine's memory bandwidth.

    python -m benchmarks.scale [--runs 5] [--largest 100000000] [--rows Penalty,Implicit] [--out DIR]

The losses are very cheap: g = sum_i exp(u_i) sum_k (v_ik - 1)^2 / 2 and f = sum v^2 / 2, v of |u| rows. So the cost of
a step is the bytes that it moves. Each size runs in a separate process. It compiles the stretch that `solve` runs,
prints XLA's report of its memory, and skips the size if that memory is not free. Then it measures the median time of a
step and the peak of resident memory. The floor is the least number of bytes that a step must move, over the rate of a
<- a + s b on large arrays, measured in the same run. Slopes are fitted by least squares in logarithms, from 10^5 on:
smaller states fit in the caches, and a call costs more than their step.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = ("Penalty", "Implicit")
SWEEPS = {  # which size varies, and what the other is
    "v": (tuple(10**k for k in range(3, 9)), 10**2),
    "u": (tuple(10**k for k in range(2, 8)), 10**7),
}
MOVES, SOLVE_STEPS = 1, 2
LARGE = 10**5  # from where slopes are fitted
AT_LEAST, STEPS = 0.1, 10  # seconds and steps of a run; its memory is requested from the system once
CAPACITY = 10_000
WORD = 4
SPARE = 1.2  # of the memory that XLA requests
LIMIT = 900  # seconds for one size


@dataclass(frozen=True)
class Found:
    """Results for one size: seconds of a step per run, bytes by XLA's analysis, and the peak of the process."""

    row: str
    vary: str
    u: int
    v: int
    seconds: list[float]
    temporary: int = 0
    arguments: int = 0
    peak: int = 0
    left_out: str | None = None

    @property
    def size(self) -> int:
        """The size that varies."""
        return self.v if self.vary == "v" else self.u


def words(row: str, u: int, v: int) -> int:
    """Words that a step must move at the least, every pass fused.

    A move of v reads v and Adam's two moments and writes them: 6, and reads nu (Penalty). Then Penalty's direction of u
    reads v and nu. The multipliers, which need the norm of the result of that pass, read v and nu and write nu.
    Implicit's direction reads v for the right-hand side of its system. Each step of conjugate gradients reads p, reads
    x, r and p once more, and writes these three: 7. u is read in each pass; its own move reads and writes it and its
    two moments.
    """
    if row == "Penalty":
        return v * (7 * MOVES + 2 + 3) + u * (MOVES + 2 + 6)
    return v * (6 * MOVES + 1 + 7 * SOLVE_STEPS) + u * (MOVES + 1 + SOLVE_STEPS + 6)


def measure(row: str, vary: str, u_size: int, v_size: int, runs: int) -> Found:
    """One size, in this process."""
    import jax
    import jax.numpy as jnp
    import optax

    import bilevax as bx
    from benchmarks.peers.worker import forget_peak, resident
    from bilevax import linear_solve
    from bilevax.loop.sources import Fixed
    from bilevax.loop.stretch import (
        Carry,
        initial_state,
        stretch,  # the compiled call itself
    )

    problem = bx.Problem(
        lambda u, v, data: jnp.sum(v**2) / 2, lambda u, v, data: jnp.sum(jnp.exp(u) * jnp.sum((v - 1) ** 2, axis=1)) / 2
    )
    adam = optax.adam(1e-3)
    solver: Any = (
        bx.Penalty(adam, adam, MOVES, lam=1.0)
        if row == "Penalty"
        else bx.Implicit(adam, adam, MOVES, linear_solve.CG(SOLVE_STEPS))
    )
    u_shape, v_shape = (u_size,), (u_size, v_size // u_size)
    key, source = jax.random.key(0), Fixed(bx.Batch())

    def start() -> Any:
        u, v = jnp.zeros(u_shape), jnp.zeros(v_shape)
        return Carry(initial_state(solver, problem, u, v, bx.Batch()), jnp.asarray(True))

    lowered = stretch.lower(solver, problem, CAPACITY, jax.eval_shape(start), source, key, 0, 1)
    compiled = lowered.compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None, "this backend reports nothing about its memory"
    temporary, arguments = analysis.temp_size_in_bytes, analysis.argument_size_in_bytes
    needed = SPARE * (temporary + 2 * arguments)
    free = available()
    if needed > free:
        why = f"{needed / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} are free"
        return Found(row, vary, u_size, v_size, [], temporary, arguments, left_out=why)
    forget_peak()
    before = resident("VmRSS")
    carry = jax.block_until_ready(start())
    done = 0

    def steps(count: int) -> float:
        nonlocal carry, done
        began = time.perf_counter()
        carry, _, taken = compiled(carry=carry, source=source, key=key, first=done, count=count)
        taken.block_until_ready()
        done += count
        return (time.perf_counter() - began) / count

    steps(1)
    count = min(CAPACITY, max(STEPS, math.ceil(AT_LEAST / steps(1))))
    seconds = [steps(count) for _ in range(runs)]
    return Found(row, vary, u_size, v_size, seconds, temporary, arguments, resident("VmHWM") - before)


def available() -> float:
    """Bytes of memory that are free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return 1024.0 * int(kilobytes)


def bandwidth(runs: int) -> float:
    """Bytes per second of a <- a + s b on arrays of 256 MiB, the best of some runs."""
    import jax
    import jax.numpy as jnp

    size, passes = 2**26, 4
    add = jax.jit(lambda a, b: jax.lax.fori_loop(0, passes, lambda i, a: a + 1e-6 * i * b, a), donate_argnums=0)
    a, b = jnp.zeros(size), jnp.ones(size)
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        a = add(a, b).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return passes * 3 * WORD * size / min(seconds[1:])


def slope(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    """The exponent k of values ~ size^k by least squares in logarithms, of sizes from `LARGE` on.

    Example:
        >>> from benchmarks.scale import slope
        >>> slope([10, 10**5, 10**6, 10**7], [9.0, 2.0, 20.0, 200.0])
        1.0
    """
    pairs = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if x >= LARGE and y > 0]
    if len(pairs) < 2:
        return None
    x, y = zip(*pairs, strict=True)
    return round(statistics.linear_regression(x, y).slope, 9)


def in_a_process(row: str, vary: str, u: int, v: int, runs: int) -> Found:
    """One size, in a separate process; an error is reported in place of its numbers."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", json.dumps([row, vary, u, v, runs])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return Found(row, vary, u, v, [], left_out=f"no answer within {LIMIT} s")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return Found(row, vary, u, v, [], left_out=f"the process ended with {done.returncode}: {said[-1][:200]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def print_sweep(row: str, vary: str, found: Sequence[Found], rate: float) -> None:
    """A table of one sweep, with the slopes of its columns."""
    other = "u" if vary == "v" else "v"
    print(f"\n{row}, |{other}| = {SWEEPS[vary][1]:.0e}")
    columns = (f"|{vary}|", "ms a step", "(range)", "floor, ms", "/ floor", "temporaries", "arguments", "peak, MiB")
    print("".join(f"{head:>{w}}" for head, w in zip(columns, (8, 11, 20, 11, 9, 13, 11, 11), strict=True)))
    measured = [each for each in found if each.left_out is None]
    for each in found:
        if each.left_out is not None:
            print(f"{each.size:>8.0e}  left out: {each.left_out}")
            continue
        middle, floor = statistics.median(each.seconds), WORD * words(row, each.u, each.v) / rate
        spread = f"({1e3 * min(each.seconds):.3g}..{1e3 * max(each.seconds):.3g})"
        print(
            f"{each.size:>8.0e}{1e3 * middle:>11.4g}{spread:>20}{1e3 * floor:>11.3g}{middle / floor:>9.2f}"
            f"{each.temporary / 2**20:>13.1f}{each.arguments / 2**20:>11.1f}{each.peak / 2**20:>11.1f}"
        )
    sizes = [each.size for each in measured]
    columns = {
        "time": [statistics.median(each.seconds) for each in measured],
        "temporaries and arguments": [float(each.temporary + each.arguments) for each in measured],
        "peak": [float(each.peak) for each in measured],
    }
    slopes = {name: slope(sizes, values) for name, values in columns.items()}
    print("slopes: " + ", ".join(f"{name} {'-' if k is None else f'{k:.2f}'}" for name, k in slopes.items()))


def draw(found: Sequence[Found], rate: float, path: Path) -> None:
    """Time and memory against both sizes, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measures: dict[str, Callable[[Found], float]] = {
        "ms a step": lambda each: 1e3 * statistics.median(each.seconds),
        "peak memory, MiB": lambda each: each.peak / 2**20,
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for line, vary in zip(axes, SWEEPS, strict=True):
        for axis, (name, value) in zip(line, measures.items(), strict=True):
            for row in ROWS:
                some = [e for e in found if e.row == row and e.vary == vary and e.left_out is None]
                if not some:
                    continue
                sizes = [e.size for e in some]
                k = slope(sizes, [value(e) for e in some])
                label = row if k is None else f"{row}, slope {k:.2f}"
                (drawn,) = axis.loglog(sizes, [value(e) for e in some], "o-", label=label)
                if name.startswith("ms"):
                    floor = [1e3 * WORD * words(row, e.u, e.v) / rate for e in some]
                    axis.loglog(sizes, floor, ":", color=drawn.get_color(), label=f"{row}: bytes / bandwidth")
            other = "u" if vary == "v" else "v"
            axis.set(xlabel=f"entries of {vary} (|{other}| = {SWEEPS[vary][1]:.0e})", ylabel=name)
            axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Print the tables, write scale.json and scale.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each size")
    parser.add_argument("--largest", type=float, default=1e8, help="entries of u or v at most")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--out", type=Path, default=Path("out/scale"), help="folder of the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        row, vary, u, v, runs = json.loads(arguments.one)
        print(json.dumps(vars(measure(row, vary, u, v, runs))))
        return
    rows = arguments.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"--rows has {', '.join(sorted(unknown))}, and there are {', '.join(ROWS)}.")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    rate = bandwidth(arguments.runs)
    print(
        f"jax {jax.__version__}, {arguments.threads} threads, float32, T = {MOVES}, {SOLVE_STEPS} steps of conjugate "
        f"gradients; {arguments.runs} runs; bandwidth {rate / 1e9:.1f} GB/s."
    )
    found: list[Found] = []
    for row in rows:
        for vary, (sizes, other) in SWEEPS.items():
            some = []
            for size in (n for n in sizes if max(n, other) <= arguments.largest):
                u, v = (other, size) if vary == "v" else (size, other)
                some.append(in_a_process(row, vary, u, v, arguments.runs))
            print_sweep(row, vary, some, rate)
            found += some
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"bandwidth": rate, "runs": arguments.runs, "found": [vars(each) for each in found]}
    (arguments.out / "scale.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(found, rate, arguments.out / "scale.png")


if __name__ == "__main__":
    main()
