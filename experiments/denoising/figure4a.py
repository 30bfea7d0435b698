"""Figure 4(a): accuracy against wall time during denoising, MNIST with 25% wrong labels.

Both methods start as in appendix E.2, from a model of the clean set. Three accuracies of the trained model are
measured: on the training labels as given, of which a quarter is wrong, so that 75% is the best value; on the clean set;
and on the test set. The times do not include compilation and the evaluation of accuracies.
"""

import time

import numpy as np
from jaxtyping import PyTree

from bilevax.nn import lenet5, mnist_network, probabilities
from bilevax.plots import Line, LinePanel, line_panels
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, show, write_results
from experiments.common.runs import Look, evaluations, readable, watched_solve
from experiments.common.settings import Settings, pick
from experiments.denoising.protocol import SOLVERS, Plan, draw, samples, task_from
from experiments.denoising.trial import Trial

TITLE = EXPERIMENTS["figure4a"].title
LOOKS = 20
LOOKED_AT = 5000  # training samples for the accuracy at each evaluation
KINDS = ("labels as given", "clean set", "test set")


def plan_of(settings: Settings) -> Plan:
    """The protocol of a size."""
    if settings.quick:
        return Plan(lenet5(), 500, 2000, 15, 10, 5, rate=2e-3, seeds=1)
    if settings.medium:
        return Plan(lenet5(), 1000, None, 4, 2, 5, rate=2e-3, seeds=1)
    return Plan(mnist_network(), 1000, None, 100, 100, 20)


def watch(trial: Trial, v: PyTree, plan: Plan, label: str, seed: int) -> list[Look]:
    """A method's accuracies during the solve, from a model v of the clean set."""
    task = task_from(trial, v, plan)
    x, y = trial.x[:LOOKED_AT], np.asarray(trial.y)[:LOOKED_AT]
    y_clean = np.asarray(trial.y_clean)

    def look(u: PyTree, v: PyTree) -> dict[str, float]:
        given = (probabilities(trial.model, v, x).argmax(1) == y).mean()
        clean = (probabilities(trial.model, v, trial.x_clean).argmax(1) == y_clean).mean()
        return dict(zip(KINDS, (100 * float(given), 100 * float(clean), trial.accuracy(v)), strict=True))

    steps = plan.solve_steps(len(trial.right))
    return watched_solve(SOLVERS[label](plan.lower_steps, steps), task, steps, max(1, steps // LOOKS), seed, look)


def run(settings: Settings) -> None:
    """Run, draw, write `results.json`."""
    labels = pick(tuple(SOLVERS), settings.solver)
    plan = plan_of(settings)
    seeds = list(range(settings.seeds or plan.seeds))
    began = time.perf_counter()
    looks: dict[str, list[list[Look]]] = {label: [] for label in labels}
    reference = []
    for seed in seeds:
        trial = draw(plan, seed)
        v = trial.fit_clean()
        reference.append(trial.accuracy(trial.fit(np.ones(len(trial.right)))))
        for label in labels:
            looks[label].append(watch(trial, v, plan, label, seed))
    seconds = time.perf_counter() - began

    tables = {
        f"accuracy %, {kind}, at the end": [
            Row((label,), None, np.array([trial[-1].seen[kind] for trial in trials]), None)
            for label, trials in looks.items()
        ]
        for kind in KINDS
    }
    tables["seconds of the solve"] = [
        Row((label,), None, np.array([trial[-1].seconds for trial in trials]), None) for label, trials in looks.items()
    ]
    reached = {
        label: [first(looks_of, level) for looks_of, level in zip(trials, reference, strict=True)]
        for label, trials in looks.items()
    }
    tables["seconds until the test accuracy is above Train+Val's"] = [
        Row((label,), None, np.array(found), None) for label, found in reached.items() if np.isfinite(found).all()
    ]
    notes = [
        f"{samples(plan)}, T = {plan.lower_steps}, {plan.solve_passes} passes; accuracy on the labels as given is of "
        f"the first {LOOKED_AT} training samples.",
        f"Train+Val ({np.mean(reference):.2f}% on the test set) is trained for {plan.passes} passes on all labels as "
        "given. A method whose accuracy is never above that has no line in this table.",
    ]
    if settings.quick or settings.medium:
        notes.append("LeNet-5 in place of the network of E.2, which the full size has with T = 20 and 100 passes.")
    for name, rows in tables.items():
        if rows:
            show(f"{TITLE}: {name}", ("method",), rows, notes if name == "seconds of the solve" else ())
    panels = [
        LinePanel(
            kind[0].upper() + kind[1:],
            "seconds, without compilation",
            "accuracy %",
            {
                label: Line(
                    np.mean([[one.seconds for one in trial] for trial in trials], 0),
                    [[one.seen[kind] for one in trial] for trial in trials],
                )
                for label, trials in looks.items()
            },
            {"Train+Val": float(np.mean(reference))} if kind == "test set" else {},
        )
        for kind in KINDS
    ]
    write_results(
        "figure4a",
        settings,
        seeds,
        seconds,
        {label: readable(SOLVERS[label](plan.lower_steps, 1)) for label in labels},
        {f"{label}, each step": evaluations(SOLVERS[label](plan.lower_steps, 1), 1) for label in labels},
        {name: rows for name, rows in tables.items() if rows},
        notes,
        looks={label: [[one._asdict() for one in trial] for trial in trials] for label, trials in looks.items()},
    )
    line_panels(panels, settings.out / "figure4a.png")


def first(looks: list[Look], level: float) -> float:
    """The seconds of the first evaluation with a test accuracy above a level; infinite if there is none."""
    return next((one.seconds for one in looks if one.seen["test set"] > level), np.inf)
