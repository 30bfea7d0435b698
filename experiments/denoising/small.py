"""Appendix D.1.1: denoising a small MNIST by softmax regression, and how to move a full-length u.

5,000 training samples of which half have a uniformly drawn wrong label, 5,000 clean samples, 10,000 test samples.
Settings were chosen on seeds 100 and 101 (about 40 for Penalty, 5 for ApproxGrad and Meta-Weight-Net, 4 for Ren et al.,
fewer for RMD). The reported seeds start from 0.

How u is moved. u has an entry per sample, and a minibatch gives a gradient to a few of them. The authors' scripts move
a u of the size of a minibatch, refilled for each minibatch, so that Adam's moments mix samples. They rescale all
weights to mean 1/2 after each epoch. A full-length u under plain Adam has separate moments for each sample, but samples
outside the minibatch also move, by momentum. `per_sample` keeps these fixed and counts Adam's steps by the visits of
each sample. The second table compares the three on minibatches of a fifth of the samples, with the same solver and
start.
"""

import functools
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from bilevax import Implicit, LearningToReweight, LookAhead, Penalty, ReverseMode
from bilevax.applications.denoising import denoising_task, meta_weight_task, per_sample, reweighting_task
from bilevax.data import Images, corrupted, mnist
from bilevax.linear_solve import ByOptimizer
from bilevax.nn import Training, softmax_regression
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Published, Row, beside_paper, show, write_results
from experiments.common.images import CLASSES
from experiments.common.runs import evaluations, readable, run_solver
from experiments.common.settings import Settings, pick
from experiments.denoising.trial import Judged, Trial, f1, learned_weights, roc_area, unrolled_from_zero

TITLE = EXPERIMENTS["denoising-small"].title
SEEDS, NOISE = 5, 0.5
SIZE, QUICK_SIZE = 5000, 1000  # of the training set, and of the clean set
TRAINING = Training(steps=200, rate=1e-2, l2=1e-3)
KEPT = 0.9  # D.1.1: the final classifier is trained on the samples with a larger weight, and the clean set
STEPS, PASSES, PER_PASS = 60, 8, 5
LOWER = optax.adam(1e-3)

PENALTY = Penalty(per_sample(optax.adam(0.1)), LOWER, 20, gamma=10.0, lam=0.1, nu=0.0, eps=1e-2, step_scale=1.0)
APPROXGRAD = Implicit(per_sample(optax.adam(0.1)), LOWER, 20, ByOptimizer(optax.adam(1e-3), steps=20))
RMD = ReverseMode(per_sample(optax.adam(0.1)), optax.sgd(0.1, momentum=0.9), 100, segment=10)
META_STEPS, META_BATCH = 1000, 200
REWEIGHT = LearningToReweight(optax.adam(optax.cosine_decay_schedule(3e-3, META_STEPS)))
META_WEIGHT = LookAhead(optax.adam(1e-3), optax.sgd(0.1), rate=0.1)

PAPER = {"Oracle": 91.06, "Val-Only": 90.54, "Train+Val": 86.25, "RMD": 90.09, "Penalty": 90.77}
LABELS = (
    "Oracle",
    "Val-Only",
    "Train+Val",
    "Agreement",
    "RMD",
    "ApproxGrad",
    "Ren et al.",
    "Meta-Weight-Net",
    "Penalty",
)
U_RATE = 0.3
FOOTNOTES: tuple[str, ...] = (
    "Agreement: the start that RMD, ApproxGrad and Penalty share, with no bilevel solve: the samples whose label a "
    "model of the clean set predicts.",
    "F1 is that of the right labels among the samples of weight above 1/2. Published reruns of this protocol: V-PBGD "
    "0.918, G-PBGD 0.905, reverse unrolling 0.896 (Shen and Chen 2023).",
    "RMD, ApproxGrad and Penalty end with a classifier trained on the samples of weight above 0.9 and the clean set; "
    "Ren et al. and Meta-Weight-Net are judged by the model that they train. The paper trains with its own settings.",
    "RMD unrolls 100 moves with momentum from zero, in place of the 4,000 of Franceschi et al.; its weights have no "
    "l1 bound. Its paper's figure is that of Franceschi et al.",
    "Seconds include compilation, and for methods that learn weights also the start; not the final classifier.",
)


def run(settings: Settings) -> None:
    """Run, compare, write `results.json`."""
    labels = pick(LABELS, settings.solver)
    seeds = list(range(settings.seeds or (1 if settings.quick else SEEDS)))
    began = time.perf_counter()
    images, size = mnist(), QUICK_SIZE if settings.quick else SIZE
    asked = labels + (list(moves_of_u(1)) if settings.solver is None else [])
    found = [
        kept_cell(settings.out / "cells" / f"{seed}.json", asked, functools.partial(run_cell, images, seed, size))
        for seed in seeds
    ]
    seconds = time.perf_counter() - began
    footnotes: list[str] = list(FOOTNOTES)
    if settings.quick:
        footnotes.append(f"--quick: {QUICK_SIZE} training and clean samples in place of {SIZE}.")
    tables = tabulate(found, labels, "")
    if settings.solver is None:
        tables |= tabulate(found, list(moves_of_u(1)), "how u is moved: ")
    for name, rows in tables.items():
        show(f"{TITLE}: {name}, {len(seeds)} seeds", ("method",), rows, footnotes if name == "seconds" else ())
    write_results(
        "denoising-small",
        settings,
        seeds,
        seconds,
        {label: readable(solver) for label, (solver, _) in SOLVERS.items() if label in labels},
        {label: evaluations(solver, steps) for label, (solver, steps) in SOLVERS.items() if label in labels},
        tables,
        footnotes,
        training=vars(TRAINING),
    )


SOLVERS: dict[str, tuple[Any, int]] = {
    "RMD": (RMD, STEPS),
    "ApproxGrad": (APPROXGRAD, STEPS),
    "Ren et al.": (REWEIGHT, META_STEPS),
    "Meta-Weight-Net": (META_WEIGHT, META_STEPS),
    "Penalty": (PENALTY, STEPS),
}


def draw(images: Images, seed: int, size: int) -> Trial:
    """One trial of the protocol."""
    data = corrupted(images, clean=size, train=size, noise=NOISE, key=jax.random.key(seed))

    def flat(x: np.ndarray) -> np.ndarray:  # softmax regression takes pixels unchanged
        return x.reshape(len(x), -1).astype(np.float32) / 255

    data = data._replace(x=flat(data.x), x_clean=flat(data.x_clean), x_test=flat(data.x_test))
    return Trial(data, softmax_regression(CLASSES), TRAINING, seed)


def run_cell(images: Images, seed: int, size: int, labels: list[str]) -> dict[str, dict[str, Any]]:
    """The figures of methods, and of the ways to move u, in one trial."""
    trial = draw(images, seed, size)
    return {label: one(trial, label, seed)._asdict() for label in labels}


def one(trial: Trial, label: str, seed: int) -> Judged:
    """A method's figures in one trial, or Penalty's on minibatches with u moved in one of the ways compared."""
    if label in moves_of_u(1):
        return moved(trial, label, seed)
    plain = {"Oracle": trial.right, "Train+Val": np.ones(len(trial.right)), "Val-Only": np.zeros(len(trial.right))}
    if label in plain:
        began = time.perf_counter()
        v = trial.fit(plain[label])
        return Judged(trial.accuracy(v), None, None, time.perf_counter() - began)
    if label == "Ren et al.":
        task = trial.task(reweighting_task, META_BATCH, META_BATCH, l2=TRAINING.l2)
        solved = run_solver(REWEIGHT, task, META_STEPS, seed)
        ranking = -np.asarray(solved.state.memory.mean_weight)
        return Judged(trial.accuracy(solved.v), None, roc_area(trial.right, ranking), solved.seconds)
    if label == "Meta-Weight-Net":
        task = trial.task(meta_weight_task, META_BATCH, META_BATCH, l2=TRAINING.l2)
        solved = run_solver(META_WEIGHT, task, META_STEPS, seed)
        # Its weight is a function of the sample's loss, so it ranks as the loss does.
        area = roc_area(trial.right, trial.suspicion(solved.v))
        return Judged(trial.accuracy(solved.v), None, area, solved.seconds)
    began = time.perf_counter()
    task = trial.task(denoising_task, None, None, training=TRAINING, warm_rounds=0)
    if label == "Agreement":
        kept = np.asarray(task.start[0]) > 0
        seconds = time.perf_counter() - began
        return Judged(trial.accuracy(trial.fit(kept)), f1(trial.right, kept), None, seconds)
    solver, steps = SOLVERS[label]
    solved = run_solver(solver, unrolled_from_zero(task) if label == "RMD" else task, steps, seed)
    return by_weights(trial, solved.u, time.perf_counter() - began)


def by_weights(trial: Trial, u: PyTree, seconds: float) -> Judged:
    """The figures of learned weights u."""
    weight = learned_weights(u)
    accuracy = trial.accuracy(trial.fit(weight > KEPT))
    return Judged(accuracy, f1(trial.right, weight > 0.5), roc_area(trial.right, -weight), seconds)


def as_the_authors(rate: float, size: int, per_pass: int) -> optax.GradientTransformation:
    """Moves of u as in the authors' scripts: one Adam state of a minibatch's size, shared by all minibatches.

    After each pass the weights are rescaled to mean 1/2 and clipped to 1e-5..1 - 1e-5.

    Args:
        rate: Adam's.
        size: samples in a minibatch, which is the number of non-zero entries of a gradient.
        per_pass: minibatches in a pass through the data.
    """
    adam = optax.adam(rate)

    def init(params: PyTree) -> Any:
        return adam.init(jnp.zeros(size)), jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: PyTree = None) -> tuple[Any, Any]:
        adam_state, count = state
        places = jnp.nonzero(updates, size=size, fill_value=updates.size)[0]
        moved, adam_state = adam.update(updates.at[places].get(mode="fill", fill_value=0.0), adam_state)
        step = jnp.zeros_like(updates).at[places].set(moved, mode="drop")
        weight = (jnp.tanh(params + step) + 1) / 2
        weight = jnp.clip(weight * (0.5 / jnp.mean(weight)), 1e-5, 1 - 1e-5)
        count += 1
        return jnp.where(count % per_pass == 0, jnp.arctanh(2 * weight - 1) - params, step), (adam_state, count)

    return optax.GradientTransformation(init, update)


def moves_of_u(size: int) -> dict[str, optax.GradientTransformation]:
    """The optimizers of u that the second table compares."""
    return {
        "the authors' way": as_the_authors(U_RATE, size, PER_PASS),
        "Adam on all of u": optax.adam(U_RATE),
        "Adam per sample": per_sample(optax.adam(U_RATE)),
    }


def moved(trial: Trial, label: str, seed: int) -> Judged:
    """The figures of Penalty on minibatches, with u moved by the method of the label."""
    size = len(trial.right) // PER_PASS
    task = trial.task(denoising_task, size, None, training=TRAINING, warm_rounds=0)
    solver = replace(PENALTY, upper_optimizer=moves_of_u(size)[label])
    solved = run_solver(solver, task, PASSES * PER_PASS, seed)
    return by_weights(trial, solved.u, solved.seconds)


def tabulate(found: list[dict[str, dict[str, Any]]], labels: list[str], prefix: str) -> dict[str, list[Row]]:
    """A table of rows for each kind of figure."""
    tables: dict[str, list[Row]] = {}
    kinds = (("test accuracy %", "accuracy"), ("F1 of the cleaner", "f1"), ("ROC area", "area"), ("seconds", "seconds"))
    for name, field in kinds:
        rows = []
        for label in labels:
            values = [trial[label][field] for trial in found]
            if None not in values:
                paper = Published(PAPER[label]) if field == "accuracy" and label in PAPER else None
                rows.append(beside_paper((label,), paper, values))
        if rows:
            tables[prefix + name] = rows
    return tables
