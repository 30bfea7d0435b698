"""Appendix D.1.2: CIFAR-10 with 36% wrong labels, a wide residual network and T = 1, against methods by look-ahead.

The setting of Ren et al. (2018): 44,000 training samples whose labels are uniformly wrong at a rate of 36%, 1,000
clean ones, WRN-28-10. Penalty has T = 1 there, because more moves of so large a network were too expensive.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
import optax

from bilevax import LearningToReweight, LookAhead
from bilevax.applications.denoising import denoising_task, meta_weight_task, reweighting_task
from bilevax.data import corrupted
from bilevax.nn import Model, Training, augmented, crop_and_flip, wide_resnet
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Published, Row, beside_paper, show, write_results
from experiments.common.images import images_of
from experiments.common.runs import evaluations, readable, run_solver
from experiments.common.settings import Settings, pick
from experiments.denoising.protocol import penalty
from experiments.denoising.trial import Trial, f1, learned_weights

TITLE = EXPERIMENTS["wrn"].title
NOISE, L2 = 0.36, 5e-4
PAPER = {
    "Ren et al.": Published(86.92),
    "Meta-Weight-Net": Published(89.27),
    "Penalty": Published(87.41, 0.26),
}
LABELS = ("Oracle", "Train+Val", *PAPER)


@dataclass(frozen=True)
class Size:
    """The protocol at some size.

    Args:
        model: the network.
        clean, train: the number of samples set aside, and of the other samples.
        batch: of noisy and of clean samples.
        passes: through the data, of each method; Penalty uses half of them for its start and half for the solve.
        seeds: how many trials.
        test: how many of the test samples; None for all.
    """

    model: Model
    clean: int
    train: int
    batch: int
    passes: int
    seeds: int = 5
    test: int | None = None


def size_of(settings: Settings) -> Size:
    """WRN-28-10 with augmentation at full size; narrow and shallow networks without it at smaller sizes."""
    if settings.quick:
        return Size(wide_resnet(depth=10, width=1), 200, 500, 25, 2, 1, test=2000)
    if settings.medium:
        return Size(wide_resnet(depth=10, width=1), 1000, 5000, 100, 6, 1)
    return Size(augmented(wide_resnet(), crop_and_flip()), 1000, 44000, 100, 120)


def momentum(steps: int, rate: float) -> optax.GradientTransformation:
    """Descent with momentum and a cosine schedule to zero, as usual for wide residual networks."""
    return optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)


def reweight(steps: int) -> LearningToReweight:
    """Ren et al.: descent with momentum, at their rate."""
    return LearningToReweight(momentum(steps, 0.1))


def meta_weight(steps: int) -> LookAhead:
    """Meta-Weight-Net: V by Adam, the network by descent with momentum, its rate also that of the look-ahead."""
    return LookAhead(optax.adam(1e-3), momentum(steps, 0.1), rate=0.1)


META: dict[str, tuple[Callable[[int], Any], Callable[..., Any]]] = {
    "Ren et al.": (reweight, reweighting_task),
    "Meta-Weight-Net": (meta_weight, meta_weight_task),
}


def run_cell(size: Size, seed: int, labels: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy and seconds of each method in one trial."""
    data = corrupted(images_of("cifar10"), clean=size.clean, train=size.train, noise=NOISE, key=jax.random.key(seed))
    data = data._replace(x_test=data.x_test[: size.test], y_test=data.y_test[: size.test])
    per_pass = -(-size.train // size.batch)
    steps = size.passes * per_pass
    trial = Trial(data, size.model, Training(steps=steps, rate=1e-3, batch_size=size.batch, l2=L2), seed)
    rows: dict[str, dict[str, float]] = {}
    for label in labels:
        began = time.perf_counter()
        found = {}
        if label in META:
            make, task_of = META[label]
            task = trial.task(task_of, size.batch, size.batch, l2=L2)
            v = run_solver(make(steps), task, steps, seed).v
        elif label == "Penalty":
            half = steps // 2
            short = Trial(data, size.model, Training(steps=half, rate=1e-3, batch_size=size.batch, l2=L2), seed)
            start = short.fit(np.ones(size.train))
            u = short.posterior(start)
            task = short.task(denoising_task, size.batch, size.batch, training=short.training, start=(u, start))
            solved = run_solver(penalty_of(steps - half), task, steps - half, seed)
            v = solved.v
            found["f1"] = f1(trial.right, learned_weights(solved.u) > 0.5)
        else:
            v = trial.fit(trial.right if label == "Oracle" else np.ones(size.train))
        seconds = time.perf_counter() - began
        rows[label] = {"accuracy": trial.accuracy(v), "seconds": seconds, **found}
    return rows


def penalty_of(steps: int) -> Any:
    """Table 2's Penalty, with T = 1."""
    return penalty(1, steps)


def run(settings: Settings) -> None:
    """Run every missing trial, compare, and write `results.json`."""
    labels = pick(LABELS, settings.solver)
    size = size_of(settings)
    seeds = list(range(settings.seeds or size.seeds))
    began = time.perf_counter()
    found = [
        kept_cell(settings.out / "cells" / f"{seed}.json", labels, functools.partial(run_cell, size, seed))
        for seed in seeds
    ]
    seconds = time.perf_counter() - began

    def rows_of(field: str) -> list[Row]:
        rows = []
        for label in labels:
            if field in found[0][label]:
                paper = PAPER.get(label) if field == "accuracy" else None
                rows.append(beside_paper((label,), paper, [trial[label][field] for trial in found]))
        return rows

    kinds = (("test accuracy %", "accuracy"), ("F1 of the cleaner", "f1"), ("seconds", "seconds"))
    tables = {kind: rows for kind, field in kinds if (rows := rows_of(field))}
    notes = [
        f"{size.train} training and {size.clean} clean samples, minibatches of {size.batch}, {size.passes} passes; "
        "Penalty takes half of them for Train+Val's model, its start, and half for itself.",
        "Group normalisation replaces batch normalisation, since a lower variable has no running statistics. "
        "Weights are (tanh u + 1) / 2 over their sum in the minibatch, where the paper normalises u itself.",
        "The copy of CIFAR-10 may be JPEG re-encoded: then compare with the Oracle of the same run. The figures of Ren "
        "et al. and of Meta-Weight-Net are those that the paper cites.",
    ]
    if size.test is not None:
        notes.append(
            f"Accuracy is on the first {size.test} test samples, since the network is slow on all of them. After so "
            "few steps it is near chance for every row, and shows only that the code runs; F1 is more informative."
        )
    if settings.quick or settings.medium:
        notes.append(
            "WRN-10-1 on a part of the data without augmentation, in place of WRN-28-10 on the whole: the paper's "
            "figures cannot be reached at this size."
        )
    for name, rows in tables.items():
        show(f"{TITLE}: {name}", ("method",), rows, notes if name == "seconds" else ())
    solvers = {label: make(1) for label, (make, _) in META.items()} | {"Penalty": penalty_of(1)}
    write_results(
        "wrn",
        settings,
        seeds,
        seconds,
        {label: readable(solver) for label, solver in solvers.items()},
        {f"{label}, each step": evaluations(solver, 1) for label, solver in solvers.items()},
        tables,
        notes,
        size={k: x for k, x in asdict(size).items() if k != "model"},
    )
