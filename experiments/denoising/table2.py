"""Table 2: test accuracy of classifiers trained on noisy labels, with importance weights learned from a clean set.

Full size follows appendix E.2 in networks, sizes and passes, and is meant for a GPU. `--medium` trains LeNet-5 on all
of MNIST and Fashion-MNIST, `--quick` on a part of MNIST. Every finished cell is kept in `cells/` under the output
directory, and a run that was stopped resumes with the missing cells.

See `experiments.denoising.small` for how a full-length u is moved by minibatches, and why.
"""

import functools
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bilevax.applications.denoising import denoising_task
from bilevax.data import corrupted
from bilevax.nn import augmented, cifar10_network, crop_and_flip, lenet5, mnist_network, svhn_network
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Published, Row, beside_paper, show, write_results
from experiments.common.images import images_of
from experiments.common.runs import evaluations, readable, run_solver
from experiments.common.settings import Settings, pick, pick_data_sets, pick_noise
from experiments.denoising.protocol import SOLVERS, Plan
from experiments.denoising.trial import Trial, average_precision, f1, learned_weights

TITLE = EXPERIMENTS["table2"].title
NOISE = (25, 50)
START = "Start"
LABELS = ("Oracle", "Val-Only", "Train+Val", START, "ApproxGrad", "Penalty")
PRINTED = tuple(label for label in LABELS if label != START)  # the paper's rows, in its order
PAPER = {
    ("mnist", 25): ((99.3, 0.1), (94.6, 0.3), (83.9, 1.3), (98.11, 0.08), (98.89, 0.04)),
    ("mnist", 50): ((99.3, 0.1), (94.6, 0.3), (60.8, 2.5), (97.27, 0.15), (97.51, 0.07)),
    ("cifar10", 25): ((82.9, 1.1), (70.3, 1.8), (79.1, 0.8), (71.59, 0.87), (79.67, 1.01)),
    ("cifar10", 50): ((80.7, 1.2), (70.3, 1.8), (72.2, 1.8), (68.08, 0.83), (79.03, 1.19)),
    ("svhn", 25): ((91.1, 0.5), (70.6, 1.5), (71.6, 1.4), (80.05, 1.37), (88.12, 0.16)),
    ("svhn", 50): ((89.8, 0.6), (70.6, 1.5), (47.9, 1.3), (74.18, 1.05), (85.21, 0.34)),
}


def plans(settings: Settings) -> dict[str, Plan]:
    """The data sets of a size, with their protocols."""
    if settings.quick:
        return {"mnist": Plan(lenet5(), 500, 2000, 25, 10, 1, 15, rate=2e-3, seeds=1)}
    if settings.medium:
        plan = Plan(lenet5(), 1000, None, 8, 2, 1, 4, rate=2e-3, seeds=3)
        return {"mnist": plan, "fashion_mnist": plan}
    return {
        "mnist": Plan(mnist_network(), 1000, None, 100, 90, 20, 10),
        "cifar10": Plan(augmented(cifar10_network(), crop_and_flip()), 10000, None, 200, 180, 20, 20),
        "svhn": Plan(svhn_network(), 1000, None, 100, 90, 20, 10),
    }


@dataclass(frozen=True)
class Constant:
    """The schedule of a constant rate. Equal ones are equal, so that an equal training is not compiled again."""

    rate: float

    def __call__(self, step: Any) -> float:
        """The rate."""
        return self.rate


def run_cell(
    name: str, plan: Plan, noise: int, seed: int, known: dict[str, dict[str, float]], labels: list[str]
) -> dict[str, dict[str, float]]:
    """Accuracy, seconds and, for methods that learn weights, how well wrong labels are found, by row, in one trial.

    Rows that are `known` from another noise rate are copied.
    """
    key = jax.random.key(seed)
    data = corrupted(images_of(name), clean=plan.clean, train=plan.train, noise=noise / 100, key=key)
    samples = len(data.y) + plan.clean
    trial = Trial(data, plan.model, replace(plan.training(plan.passes, samples), rate=Constant(plan.rate)), seed)
    rows = {label: known[label] for label in labels if label in known}

    def record(label: str, v: PyTree, seconds: float, **more: float) -> None:
        rows[label] = {"accuracy": trial.accuracy(v), "seconds": seconds, **more}

    plain = {"Oracle": trial.right, "Train+Val": np.ones(len(trial.right))}
    for label, weight in plain.items():
        if label in labels:
            began = time.perf_counter()
            v = trial.fit(weight)
            record(label, v, time.perf_counter() - began)
    if "Val-Only" in labels and "Val-Only" not in known:
        began = time.perf_counter()
        v = trial.fit_clean()
        record("Val-Only", v, time.perf_counter() - began)
    learning = [label for label in labels if label in SOLVERS]
    if learning or START in labels:
        began = time.perf_counter()
        short = Trial(data, plan.model, plan.training(plan.start_passes, samples), seed)
        v = short.fit(np.ones(len(trial.right)))
        start = short.posterior(v), v
        start_seconds = time.perf_counter() - began

        def judged(label: str, u: PyTree, seconds: float, **more: float) -> None:
            weight = learned_weights(u)
            found = {
                "f1": f1(trial.right, weight > 0.5),
                "average_precision": average_precision(trial.right, -weight),
                "wrong": 100 * float(weight[~trial.right].sum() / weight.sum()),
            }
            began = time.perf_counter()
            v = trial.fit(weight)
            record(label, v, seconds + time.perf_counter() - began, **found, **more)

        if START in labels:
            judged(START, start[0], start_seconds)
        task = short.task(denoising_task, plan.batch, plan.batch, training=short.training, start=start)
        steps = plan.solve_steps(len(data.y))
        for label in learning:
            solved = run_solver(SOLVERS[label](plan.lower_steps, steps), task, steps, seed)
            own = {"own_accuracy": trial.accuracy(solved.v)}
            judged(label, solved.u, start_seconds + solved.seconds, **own)
    return rows


def run(settings: Settings) -> None:
    """Run every missing cell, compare, and write `results.json`."""
    labels = list(PRINTED if settings.solver is None else pick(LABELS, settings.solver))
    all_plans = plans(settings)
    names = pick_data_sets(list(all_plans), settings.dataset)
    levels = pick_noise(NOISE, settings.noise)
    count = max(settings.seeds or all_plans[name].seeds for name in names)
    began = time.perf_counter()
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in range(count):
        for name in names:
            known: dict[str, Any] = {}
            for noise in levels:
                path = settings.out / "cells" / f"{name}-{noise}-{seed}.json"
                run_missing = functools.partial(run_cell, name, all_plans[name], noise, seed, known)
                cell = kept_cell(path, labels, run_missing)
                known = {label: cell[label] for label in labels if label == "Val-Only"}  # the same at every noise rate
                found.setdefault((name, noise), []).append(cell)
    seconds = time.perf_counter() - began
    tables = {
        kind: [
            row
            for (name, noise), trials in found.items()
            for label in labels
            if field in trials[0][label]
            for row in [compared(name, noise, label, field, [trial[label][field] for trial in trials])]
        ]
        for kind, field in (
            ("test accuracy %", "accuracy"),
            ("test accuracy % of the solve's own v", "own_accuracy"),
            ("F1 of the cleaner", "f1"),
            ("average precision of wrong labels found, ranked by weight", "average_precision"),
            ("share of the weight on wrong labels, %", "wrong"),
            ("seconds", "seconds"),
        )
    }
    notes = footnotes(settings, all_plans[names[0]])
    for kind, rows in tables.items():
        if rows:
            show(f"{TITLE}: {kind}", ("data", "wrong labels", "method"), rows, notes if kind == "seconds" else ())
    write_results(
        "table2",
        settings,
        list(range(count)),
        seconds,
        {label: readable(make(all_plans[names[0]].lower_steps, 1)) for label, make in SOLVERS.items()},
        {
            f"{name}, {label}, each step": evaluations(make(all_plans[name].lower_steps, 1), 1)
            for name in names
            for label, make in SOLVERS.items()
        },
        {kind: rows for kind, rows in tables.items() if rows},
        notes,
        plans={name: {k: v for k, v in asdict(all_plans[name]).items() if k != "model"} for name in names},
    )


def compared(name: str, noise: int, label: str, field: str, ours: list[float]) -> Row:
    """A row of the table; the paper's accuracies are of its networks at full size only."""
    printed = field == "accuracy" and (name, noise) in PAPER and label in PRINTED
    paper = Published(*PAPER[name, noise][PRINTED.index(label)]) if printed else None
    return beside_paper((name, f"{noise}%", label), paper, ours)


def footnotes(settings: Settings, plan: Plan) -> list[str]:
    """Differences between our protocol and the paper's."""
    notes = [
        f"The models of all rows are trained in the same way: {plan.passes} passes by Adam at a fixed rate of "
        f"{plan.rate:g}, as in E.2, on the training samples with the weights of the row and on the clean samples; only "
        f"the weights differ. ApproxGrad and Penalty begin with {plan.start_passes} passes on all labels as given, at "
        "a decaying rate; each weight starts at the probability that the label is right (in the paper at 0.6 or 0.4, "
        f"by the predictions of a model of the clean set). They move the weights for {plan.solve_passes} passes with "
        f"T = {plan.lower_steps}; --solver {START} shows the row without these moves. The paper reports the model that "
        "the solve trains: that is a separate table here.",
        "Settings were chosen on seed 101 of MNIST at 25% and Fashion-MNIST at 25 and 50%, about 30 of Penalty, 6 of "
        "ApproxGrad. The start and the rates of u and v are the same for both.",
        "Seconds are those of a cell in which other rows may have been compiled before; the start is included.",
    ]
    if settings.quick or settings.medium:
        size = "the whole data set" if plan.train is None else f"{plan.train} samples"
        notes.append(
            f"{'--quick' if settings.quick else '--medium'}: LeNet-5 on {size} with {plan.clean} clean samples. "
            "The paper's figures are of larger networks, trained for 100 passes, after which Train+Val has fitted the "
            "wrong labels; ours has begun to. At a rate that falls to zero LeNet-5 fits fewer of them, and Train+Val "
            "comes out above ApproxGrad and Penalty on Fashion-MNIST at 25%."
        )
    else:
        notes.append("CIFAR-10 may come JPEG re-encoded, SVHN as a subset: then compare with the Oracle beside it.")
    return notes
