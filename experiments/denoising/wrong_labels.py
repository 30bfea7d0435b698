"""How well wrong labels of images are found: `DenoisingClassifier` against confident learning (cleanlab).

Both get the same samples, the same clean set and the same network, trained in the same way. cleanlab ranks a sample by
out-of-sample probabilities, from five models, each trained on four fifths of the samples and the clean set.
`DenoisingClassifier` trains three models through a noise matrix, each on two thirds of all samples.

Importance weights, learned by Penalty, are a row on demand (`--solver Penalty`). It starts from one model of all
samples and learns the weights. It ranks by the cross-entropy of the given label, averaged over the model of the solve
and five models as for cleanlab, trained with the weights. It is not in the default list: it takes two to three times as
long as cleanlab, and models of the clean set alone rank better in many cells.

Settings of `DenoisingClassifier` were chosen on other draws (seed 100) of five cells of Fashion-MNIST and CIFAR-10.

Sources: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021;
Mehra and Hamm, ACML 2021, eq. 3.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import StratifiedKFold

from bilevax import InputError, Penalty
from bilevax.applications.denoising import DenoisingClassifier, denoising_task
from bilevax.data import corrupted, pair_flips, uniform_flips
from bilevax.nn import augmented, cifar10_network, crop_and_flip, lenet5, mnist_network, probabilities, train
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.images import CLASSES, images_of
from experiments.common.runs import evaluations, readable, run_solver
from experiments.common.settings import Settings, pick, pick_data_sets, pick_noise
from experiments.denoising.protocol import Plan, penalty
from experiments.denoising.trial import Trial, average_precision, cross_entropies, learned_weights, roc_area

TITLE = EXPERIMENTS["wrong-labels"].title
FLIPS: dict[str, Callable[..., np.ndarray]] = {"uniform": uniform_flips, "pair": pair_flips}
NOISE = (10, 25, 50)
MANY, FEW = 1000, (50, 200)
FOLDS = 5
CLOSE = 0.002  # a smaller difference of average precisions is not named
OURS, CLEANLAB, BEST, PENALTY = "bilevax", "cleanlab", "cleanlab, best score", "Penalty"
# cleanlab's scores by their names in cleanlab; the first is its default.
SCORES: tuple[dict[str, Any], ...] = (
    {"method": "self_confidence"},
    {"method": "normalized_margin"},
    {"method": "confidence_weighted_entropy"},
    {"method": "self_confidence", "adjust_pred_probs": True},
    {"method": "normalized_margin", "adjust_pred_probs": True},
)
LABELS = ("Val-Only", "Train+Val", CLEANLAB, BEST, OURS)


@dataclass(frozen=True)
class Cell:
    """One draw: a data set, the kind and percentage of wrong labels, and the size of the clean set."""

    name: str
    flips: str
    noise: int
    clean: int


def plans(settings: Settings) -> dict[str, Plan]:
    """The data sets of a size, with their protocols; `clean` is the cell's."""
    if settings.quick:
        return {"mnist": Plan(lenet5(), MANY, 2000, 15, 10, 1, rate=2e-3, seeds=1)}
    if settings.medium:
        plan = Plan(lenet5(), MANY, 10000, 8, 6, 1, rate=2e-3, seeds=1)
        return {"mnist": plan, "fashion_mnist": plan, "cifar10": plan}
    grey = Plan(mnist_network(), MANY, None, 20, 10, 1)
    colour = Plan(augmented(cifar10_network(), crop_and_flip()), MANY, None, 60, 20, 1)
    return {"mnist": grey, "fashion_mnist": grey, "cifar10": colour}


def solver_of(plan: Plan, steps: int) -> Penalty:
    """Table 2's Penalty with more of g in the moves of v: v gives the ranking here, and f alone fits the clean set."""
    return penalty(plan.lower_steps, steps, lam=10.0, u_rate=0.4)


def cells(names: list[str], levels: list[int], quick: bool) -> list[Cell]:
    """Every kind and rate of wrong labels with the larger clean set, and a middle rate with the smaller clean sets."""
    flips = ["uniform"] if quick else list(FLIPS)
    found = [Cell(name, kind, level, MANY) for name in names for kind in flips for level in levels]
    return found + [Cell(name, kind, 25, few) for name in names for kind in flips if 25 in levels for few in FEW]


def ranked(right: np.ndarray, suspicion: np.ndarray, seconds: float) -> dict[str, float]:
    """The figures of a ranking."""
    return {
        "average_precision": average_precision(right, suspicion),
        "area": roc_area(right, suspicion),
        "processor": seconds,
    }


def out_of_sample(trial: Trial, weight: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities (n, classes) of each sample by a model trained, by weights, on other folds and on the clean set."""
    given = np.asarray(trial.y)
    found = np.empty((len(given), CLASSES))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for rest, held in folds.split(np.zeros(len(given)), given):
        x = jnp.concatenate([trial.x[rest], trial.x_clean])
        y = jnp.concatenate([trial.y[rest], trial.y_clean])
        by = jnp.concatenate([jnp.asarray(weight, jnp.float32)[rest], jnp.ones(len(trial.y_clean))])
        v = train(trial.model, trial.training, x, y, by, trial.key)
        found[held] = probabilities(trial.model, v, trial.x[held])
    return found / found.sum(1, keepdims=True)


def quality(given: np.ndarray, p: np.ndarray, **score: Any) -> np.ndarray:
    """Cleanlab's score (n,) of given labels, lower is more suspect, from probabilities (n, classes).

    Raises:
        InputError: cleanlab is not installed.
    """
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise InputError(
            "wrong-labels needs cleanlab, which is not installed. Install it by pip install 'bilevax[experiments]', or "
            f"compare without it: --solver {PENALTY}."
        ) from error
    return get_label_quality_scores(given, p, **score)


def run_cell(cell: Cell, plan: Plan, seed: int, labels: list[str]) -> dict[str, dict[str, float]]:
    """The figures of each method in one draw."""
    key = jax.random.key(seed)
    data = corrupted(
        images_of(cell.name),
        clean=cell.clean,
        train=plan.train,
        noise=cell.noise / 100,
        key=key,
        flips=FLIPS[cell.flips],
    )
    trial = Trial(data, plan.model, plan.training(plan.passes, len(data.y) + cell.clean), seed)
    rows: dict[str, dict[str, float]] = {}
    if OURS in labels:
        began = time.process_time()
        classifier = DenoisingClassifier(plan.model, trial.training, random_state=seed)
        classifier.fit(data.x, data.y, data.x_clean, data.y_clean)
        rows[OURS] = ranked(trial.right, classifier.probability_wrong_, time.process_time() - began)
        rows[OURS]["accuracy"] = 100 * float((classifier.predict(data.x_test) == data.y_test).mean())
    if "Val-Only" in labels:
        began = time.process_time()
        v = trial.fit_clean()
        rows["Val-Only"] = ranked(trial.right, trial.suspicion(v), time.process_time() - began)
    if CLEANLAB in labels or BEST in labels:
        began = time.process_time()
        p, given = out_of_sample(trial, np.ones(len(trial.right)), seed), np.asarray(trial.y)
        rankings = [-quality(given, p, **score) for score in SCORES]
        seconds = time.process_time() - began
        scored = [ranked(trial.right, ranking, seconds) for ranking in rankings]
        rows[CLEANLAB] = scored[0]
        rows[BEST] = max(scored, key=lambda row: row["average_precision"])
    if "Train+Val" in labels or PENALTY in labels:
        began = time.process_time()
        start = trial.fit(np.ones(len(trial.right)))
        seconds = time.process_time() - began
        rows["Train+Val"] = ranked(trial.right, trial.suspicion(start), seconds)
        if PENALTY in labels:
            u = trial.posterior(start)
            clean_batch = min(plan.batch, cell.clean)
            task = trial.task(denoising_task, plan.batch, clean_batch, training=trial.training, start=(u, start))
            steps = plan.solve_steps(len(data.y))
            solved = run_solver(solver_of(plan, steps), task, steps, seed)
            own = trial.suspicion(solved.v)
            p = out_of_sample(trial, learned_weights(solved.u), seed)
            suspicion = own + cross_entropies(p, np.asarray(trial.y))
            rows[PENALTY] = ranked(trial.right, suspicion, time.process_time() - began)
    run = time.time()
    return {label: row | {"run": run} for label, row in rows.items() if label in labels}


def run(settings: Settings) -> None:
    """Run every missing cell, compare, and write `results.json`."""
    labels = [PENALTY] if settings.solver == PENALTY else pick(LABELS, settings.solver)
    all_plans = plans(settings)
    names = pick_data_sets(list(all_plans), settings.dataset)
    levels = pick_noise((25,) if settings.quick else NOISE, settings.noise)
    count = settings.seeds or max(all_plans[name].seeds for name in names)
    began = time.perf_counter()
    found: dict[Cell, list[dict[str, Any]]] = {}
    for seed in range(count):
        for cell in cells(names, levels, settings.quick):
            path = settings.out / "cells" / f"{cell.name}-{cell.flips}-{cell.noise}-{cell.clean}-{seed}.json"
            plan = replace(all_plans[cell.name], clean=cell.clean)
            run_missing = functools.partial(run_cell, cell, plan, seed)
            found.setdefault(cell, []).append(kept_cell(path, labels, run_missing))
    seconds = time.perf_counter() - began
    kinds = (("average precision", "average_precision"), ("ROC area", "area"))
    tables = {
        kind: [
            Row((cell.name, described(cell), label), None, np.array([trial[label][field] for trial in trials]), None)
            for cell, trials in found.items()
            for label in labels
        ]
        for kind, field in kinds
    }
    if ratios := against_cleanlab(found):
        tables["processor seconds of bilevax for one of cleanlab, in the same run"] = ratios
    notes = footnotes(settings, all_plans[names[0]], found)
    for kind, rows in tables.items():
        show(f"{TITLE}: {kind}", ("data", "wrong labels", "method"), rows, notes if kind == list(tables)[-1] else ())
    write_results(
        "wrong-labels",
        settings,
        list(range(count)),
        seconds,
        {PENALTY: readable(solver_of(all_plans[names[0]], 1))} if PENALTY in labels else {},
        {f"{name}, {PENALTY}, each step": evaluations(solver_of(all_plans[name], 1), 1) for name in names}
        if PENALTY in labels
        else {},
        tables,
        notes,
    )


def described(cell: Cell) -> str:
    """A cell as the text of a table's line."""
    return f"{cell.flips} {cell.noise}%, {cell.clean} clean"


def against_cleanlab(found: Mapping[Cell, list[dict[str, Any]]]) -> list[Row]:
    """The ratio of our processor seconds to cleanlab's, for the cells in which one run measured both."""
    ratios = {
        cell: [
            trial[OURS]["processor"] / trial[CLEANLAB]["processor"]
            for trial in trials
            if all("processor" in trial.get(label, {}) for label in (OURS, CLEANLAB))
            and trial[OURS]["run"] == trial[CLEANLAB]["run"]
        ]
        for cell, trials in found.items()
    }
    return [Row((cell.name, described(cell), OURS), None, np.array(r), None) for cell, r in ratios.items() if r]


def ahead(found: Mapping[Cell, list[dict[str, Any]]], label: str) -> list[str]:
    """The cells in which a ranking's average precision is above ours by more than `CLOSE`."""

    def mean(trials: list[dict[str, Any]], label: str) -> float:
        return float(np.mean([trial[label]["average_precision"] for trial in trials]))

    return [
        f"{cell.name} {described(cell)} ({mean(trials, label):.4f} against {mean(trials, OURS):.4f})"
        for cell, trials in found.items()
        if label in trials[0] and OURS in trials[0] and mean(trials, label) > mean(trials, OURS) + CLOSE
    ]


def footnotes(settings: Settings, plan: Plan, found: Mapping[Cell, list[dict[str, Any]]]) -> list[str]:
    """What was compared, and the cells in which another method is ahead."""
    size = "the whole data set" if plan.train is None else f"{plan.train} samples"
    notes = [
        f"All rankings are of the training samples ({size}); every model is trained for {plan.passes} passes by "
        f"Adam at {plan.rate:g}, falling by a cosine.",
        f"cleanlab: {FOLDS} folds, the clean set in each model's training data; its default score, self-confidence. "
        f"'Best score' is the best of {len(SCORES)} of its scores on each cell, chosen by the true labels, which users "
        "do not have.",
        "Val-Only and Train+Val rank by the cross-entropy of the given label under their model; bilevax by "
        "`DenoisingClassifier.probability_wrong_`, with the clean set as trusted samples.",
    ]
    if settings.solver == PENALTY:
        notes.append(
            f"{PENALTY} takes {plan.solve_passes} passes more, with T = {plan.lower_steps}, from "
            "Train+Val's model. It ranks by the sum of the cross-entropies under the solve's own model and under "
            f"{FOLDS} models as cleanlab's, trained by the learned weights."
        )
    for label in LABELS:
        cells_ahead = ahead(found, label)
        if cells_ahead:
            notes.append(f"{label} is ahead by more than {CLOSE:g} in average precision on {', '.join(cells_ahead)}.")
    return notes
