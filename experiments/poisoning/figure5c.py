"""Figure 5(c): the benefit and the cost of more lower moves (T) in an untargeted attack with 6% points.

It shows test accuracy after retraining, and wall seconds of one upper iteration, without compilation. ApproxGrad has as
many steps of its linear system as moves.
"""

import functools
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from bilevax import solve
from bilevax.applications import Task
from bilevax.plots import line_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Row, against_moves, show, write_results
from experiments.common.runs import evaluations, readable
from experiments.common.settings import Settings, pick
from experiments.poisoning import protocol
from experiments.poisoning.protocol import SOLVERS, UNTARGETED, Size

TITLE = EXPERIMENTS["figure5c"].title
PERCENT = 6
LABELS = ("Penalty", "ApproxGrad")
MOVES, QUICK_MOVES = (1, 5, 10, 20), (1, 5)
TIMED, STRETCHES = 40, 5


def one(solver: Any, task: Task, labels: Any, size: Size, d: protocol.Draw) -> dict[str, float]:
    """Accuracy after retraining, and the median seconds of an upper iteration over several stretches."""
    key = jax.random.key(0)
    seconds: list[float] = []
    solve(
        solver,
        task.problem,
        *task.start,
        task.batches,
        steps=TIMED * (STRETCHES + 1),
        every=TIMED,
        key=key,
        callbacks=[lambda visit: seconds.append(visit.seconds)],
    )
    found = protocol.attacked(solver, task, labels, size.steps)
    each = np.diff(seconds) / TIMED  # the first stretch, with the compilation, is left out
    return {"reached": protocol.judged(UNTARGETED, d, found.points), "each": float(np.median(each))}


def run_cell(size: Size, moves: tuple[int, ...], seed: int, labels: list[str]) -> dict[str, dict[str, float]]:
    """The figures of one trial, by method and T."""
    d = protocol.draw(UNTARGETED, size, PERCENT, seed)
    task = protocol.task_of(UNTARGETED, d)
    rows: dict[str, dict[str, float]] = {}
    for label in LABELS:
        for count in moves:
            if (name := f"{label}, T = {count}") in labels:
                at = replace(size, lower_steps=count)
                rows[name] = one(SOLVERS[label](at.steps, count), task, d.points.y, at, d)
    return rows


def run(settings: Settings) -> None:
    """Run every missing cell, draw, and write `results.json`."""
    size = protocol.shorter(settings)[UNTARGETED]
    moves = QUICK_MOVES if settings.quick else MOVES
    methods = pick(LABELS, settings.solver)
    labels = [f"{label}, T = {count}" for label in methods for count in moves]
    seeds = list(range(settings.seeds or (1 if settings.quick or settings.medium else 5)))
    began = time.perf_counter()
    trials = [
        kept_cell(settings.out / "cells" / f"{seed}.json", labels, functools.partial(run_cell, size, moves, seed))
        for seed in seeds
    ]
    seconds = time.perf_counter() - began
    kinds = {"test accuracy %": "reached", "seconds of an upper iteration": "each"}
    tables = {
        name: [
            Row((label, str(count)), None, np.array([t[f"{label}, T = {count}"][field] for t in trials]), None)
            for label in methods
            for count in moves
        ]
        for name, field in kinds.items()
    }
    notes = [
        f"Lower accuracy is a stronger attack. K = {size.steps} at each T; {PERCENT}% points on {size.train} samples.",
        "Seconds are the median over stretches of a solve, without compilation.",
    ]
    for name, rows in tables.items():
        show(f"{TITLE}: {name}", ("method", "T"), rows, notes if name.startswith("seconds") else ())
    write_results(
        "figure5c",
        settings,
        seeds,
        seconds,
        {label: readable(SOLVERS[label](1, size.lower_steps)) for label in methods},
        {f"{x}, T = {n}, each step": evaluations(SOLVERS[x](1, n), 1) for x in methods for n in moves},
        tables,
        notes,
    )
    line_panels(against_moves(tables), settings.out / "figure5c.png")
