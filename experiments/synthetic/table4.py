"""Table 4: wall-clock time of 10,000 upper iterations."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from bilevax import Batch, solve
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Published, Row, show, write_results
from experiments.common.settings import Settings, pick
from experiments.synthetic.problems import Trials, draw, problem_for
from experiments.synthetic.protocol import LOWER_STEPS, METHODS, OWN, console_seconds, spent

TITLE = EXPERIMENTS["table4"].title
STEPS = 10_000
REPEATS, QUICK_REPEATS = 10, 3
# Table 4 of the paper: (mean, s.d.) for T = 1, 5, 10.
PAPER = {
    (1, "GD"): ((7.4, 0.3), (14.3, 0.1), (23.2, 0.1)),
    (1, "RMD"): ((15.0, 0.1), (51.4, 0.3), (95.4, 0.2)),
    (1, "ApproxGrad"): ((17.4, 0.2), (39.3, 2.3), (60.9, 0.3)),
    (1, "Penalty"): ((17.2, 0.1), (34.3, 0.3), (57.0, 1.0)),
    (2, "GD"): ((7.7, 0.1), (17.3, 0.1), (22.4, 2.6)),
    (2, "RMD"): ((18.5, 0.1), (62.7, 0.1), (115.0, 0.4)),
    (2, "ApproxGrad"): ((17.2, 0.3), (37.9, 0.1), (64.2, 0.3)),
    (2, "Penalty"): ((17.4, 0.2), (35.0, 0.2), (52.7, 1.4)),
    (3, "GD"): ((8.2, 0.2), (17.4, 0.1), (28.7, 0.6)),
    (3, "RMD"): ((18.8, 0.1), (72.4, 0.1), (125.0, 9.3)),
    (3, "ApproxGrad"): ((19.8, 0.1), (47.1, 0.4), (80.6, 0.3)),
    (3, "Penalty"): ((19.1, 0.1), (38.6, 0.4), (62.7, 0.1)),
    (4, "GD"): ((7.9, 0.1), (16.9, 0.2), (28.3, 0.2)),
    (4, "RMD"): ((19.5, 0.1), (72.8, 0.5), (138.0, 0.2)),
    (4, "ApproxGrad"): ((20.4, 0.0), (48.4, 0.6), (81.2, 1.6)),
    (4, "Penalty"): ((19.6, 0.1), (40.2, 0.1), (58.0, 4.3)),
}
FOOTNOTES = (
    "Other hardware (the paper: Intel Core i9-7920X, two TITAN RTX, TensorFlow), so the ratio to the paper's "
    "seconds says nothing about a method, and agreement is not tested. Compare the methods of one column.",
    "One compiled call for all iterations, compiled beforehand. The s.d. is over runs; the median is in results.json.",
    "Examples 1 and 2, and 3 and 4, are one program with a weight as data, so each carries the terms of both.",
    "With our settings of figures 1 and 2; rates and schedules do not change what a step costs.",
)


def run(settings: Settings) -> None:
    """Time every method on every example, print the comparison, write `results.json`."""
    methods = pick(METHODS, settings.solver)
    repeats = settings.seeds or (QUICK_REPEATS if settings.quick or settings.medium else REPEATS)
    started = time.perf_counter()
    cases = [(method, T, example) for method in methods for T in LOWER_STEPS for example in (1, 2, 3, 4)]
    solvers = {(method, T): OWN.solver(method, T, STEPS) for method in methods for T in LOWER_STEPS}
    found = {
        (example, method, T): timed(runner(solvers[method, T], example), repeats)
        for method, T, example in tqdm(cases, unit="case")
    }
    seconds = time.perf_counter() - started
    rows = [
        Row((f"example {example}", method, str(T)), published(example, method, i), found[example, method, T], None)
        for example in (1, 2, 3, 4)
        for method in methods
        for i, T in enumerate(LOWER_STEPS)
    ]
    show(f"{TITLE}, {repeats} runs", ("problem", "method", "T"), rows, FOOTNOTES, "s")
    console_seconds(seconds)
    write_results(
        "table4",
        settings,
        [0],
        seconds,
        {OWN.name: asdict(OWN)},
        {f"{method}, {T}": spent(method, T, 1, STEPS) for method in methods for T in LOWER_STEPS},
        {OWN.name: rows},
        FOOTNOTES,
        upper_iterations=STEPS,
        runs=repeats,
        median_seconds={", ".join(row.where): float(np.median(row.ours)) for row in rows},
    )


def published(example: int, method: str, i: int) -> Published | None:
    """The paper's time, for the methods that it timed."""
    return Published(*PAPER[example, method][i]) if (example, method) in PAPER else None


def runner(solver: Any, example: int) -> Callable[[], None]:
    """One solve of the example's first trial, in one compiled call."""
    trial: Trials = jax.tree.map(lambda x: x[0], draw(example, [0]))

    def once() -> None:
        batch = Batch(trial.data, trial.data)
        problem, key = problem_for(solver), jax.random.key(0)
        result = solve(solver, problem, trial.u, trial.v, batch, steps=STEPS, key=key, every=STEPS)
        jax.block_until_ready((result.u, result.v))

    return once


def timed(call: Callable[[], None], repeats: int) -> np.ndarray:
    """Seconds of each of several calls (repeats,), after a call that compiles."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return np.asarray(times)
