"""Figure 5(a): the benefit and the cost of more lower moves (T) in denoising, MNIST, 25% wrong labels.

It shows final test accuracy, how well wrong labels are found, and wall seconds of one upper iteration, without
compilation. ApproxGrad has as many steps of its linear system as moves.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import PyTree

from bilevax.nn import lenet5, mnist_network
from bilevax.plots import line_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, against_moves, show, write_results
from experiments.common.runs import evaluations, readable, watched_solve
from experiments.common.settings import Settings, pick
from experiments.denoising.protocol import SOLVERS, Plan, draw, samples, task_from
from experiments.denoising.trial import Trial, average_precision

TITLE = EXPERIMENTS["figure5a"].title
MOVES = (1, 2, 5, 10, 20)
QUICK_MOVES = (1, 5)
STRETCHES = 5


def plan_of(settings: Settings) -> Plan:
    """The protocol of a size."""
    if settings.quick:
        return Plan(lenet5(), 500, 2000, 15, 5, 1, rate=2e-3, seeds=1)
    if settings.medium:
        return Plan(lenet5(), 1000, 5000, 10, 5, 1, rate=2e-3, seeds=1)
    return Plan(mnist_network(), 1000, None, 100, 100, 1)


def one(trial: Trial, v: PyTree, plan: Plan, label: str, seed: int) -> dict[str, float]:
    """A method's figures at one T, from a model v of the clean set."""
    task = task_from(trial, v, plan)
    steps = plan.solve_steps(len(trial.right))
    ends: list[Any] = []

    def look(u: PyTree, v: PyTree) -> dict[str, float]:
        ends[:] = [trial.accuracy(v), average_precision(trial.right, trial.suspicion(v))]
        return {}

    looks = watched_solve(SOLVERS[label](plan.lower_steps, steps), task, steps, steps // STRETCHES, seed, look)
    seconds = np.diff([0.0, *(x.seconds for x in looks)]) / np.diff([0, *(x.step for x in looks)])
    return {"accuracy": ends[0], "average_precision": ends[1], "seconds": float(np.median(seconds))}


def run(settings: Settings) -> None:
    """Run, draw, write `results.json`."""
    labels = pick(tuple(SOLVERS), settings.solver)
    plan, moves = plan_of(settings), QUICK_MOVES if settings.quick else MOVES
    seeds = list(range(settings.seeds or plan.seeds))
    began = time.perf_counter()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for seed in seeds:
        trial = draw(plan, seed)
        v = trial.fit_clean()
        for label in labels:
            for count in moves:
                figures = one(trial, v, replace(plan, lower_steps=count), label, seed)
                found.setdefault((label, count), []).append(figures)
    seconds = time.perf_counter() - began
    kinds = {
        "test accuracy %": "accuracy",
        "average precision": "average_precision",
        "seconds of an upper iteration": "seconds",
    }
    tables = {
        name: [
            Row(("25%", label, str(count)), None, np.array([trial[field] for trial in trials]), None)
            for (label, count), trials in found.items()
        ]
        for name, field in kinds.items()
    }
    notes = [
        f"{samples(plan)}, {plan.solve_passes} passes at each T, from a model of the clean set; seconds are the median "
        "over the stretches of a solve. More moves take longer at the same number of passes: equal time is figure4a's "
        "comparison.",
    ]
    if settings.quick or settings.medium:
        notes.append("LeNet-5 on a part of MNIST in place of the network of E.2 on the whole, which the full size has.")
    for name, rows in tables.items():
        last = name == "seconds of an upper iteration"
        show(f"{TITLE}: {name}", ("wrong labels", "method", "T"), rows, notes if last else ())
    write_results(
        "figure5a",
        settings,
        seeds,
        seconds,
        {label: readable(SOLVERS[label](plan.lower_steps, 1)) for label in labels},
        {
            f"{label}, T = {count}, each step": evaluations(SOLVERS[label](count, 1), 1)
            for label in labels
            for count in moves
        },
        tables,
        notes,
    )
    line_panels(against_moves(tables), settings.out / "figure5a.png")
