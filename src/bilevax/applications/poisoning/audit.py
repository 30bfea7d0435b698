"""Audit of a training pipeline: the accuracy that a few added samples could cost, by the untargeted attack.

The owner of a model passes its training data. The audit attacks with a small share of added samples, trains the model
again with them, and reports the loss of accuracy and how conspicuous the samples are.
"""

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevax._checks import InputError, listed, require_count
from bilevax.applications._inputs import (
    classes_of,
    on_one_scale,
    places,
    require_alike,
    require_solver,
    require_training,
    samples,
)
from bilevax.applications.poisoning.added_points import untargeted_task, wrongly_labelled
from bilevax.applications.poisoning.points import SOFTMAX_TRAINING, Points, retrained
from bilevax.applications.poisoning.recipes import penalty_solver
from bilevax.applications.poisoning.report import Report
from bilevax.loop.solve import solve
from bilevax.loop.stages import Stages
from bilevax.nn.adapters import as_model
from bilevax.nn.model import Method, Model, initial, logits
from bilevax.nn.networks import softmax_head
from bilevax.nn.training import Training, probabilities
from bilevax.solvers.base import Solver

LEVELS = 4
LARGEST_BUDGET = 0.5
LEAST_GAIN = 0.1  # of the distance from the majority accuracy to 1
FAR_BEHIND = 0.05  # in accuracy
REFERENCE_SAMPLES = 5000  # for logistic regression


def audit(
    X: Shaped[ArrayLike, "n ..."],
    y: Shaped[ArrayLike, " n"],
    X_val: Shaped[ArrayLike, "n_val ..."],
    y_val: Shaped[ArrayLike, " n_val"],
    *,
    model: Any = softmax_head,
    budget: float = 0.05,
    levels: int = LEVELS,
    seeds: int = 5,
    steps: int = 500,
    training: Training = SOFTMAX_TRAINING,
    solver: Callable[[int], Solver] = penalty_solver,
    key: PRNGKeyArray,
    progress: Callable[[str], None] | None = None,
    mesh: Any = None,
    stages: Stages | None = None,
) -> Report:
    """Audit a training pipeline against added samples.

    The attack uses half of the validation samples (stratified by class). Accuracies are measured on the other half,
    which the attack does not see. Each column of a table is scaled by its own least and largest entry; the pixels of
    images (n, h, w, ...) are scaled together. Added samples stay within these ranges. For a table, the model is trained
    on standardised columns.

    Warns (UserWarning) if the model is weak without added samples, so that the audit is not informative: it is hardly
    better than always predicting the most frequent class, or clearly worse than scikit-learn's logistic regression.

    Args:
        X, y: training samples (n, ...) and labels (n,) of one type.
        X_val, y_val: correctly labelled samples of the same kind, at least two of each class.
        model: as for `ImportanceClassifier`; softmax regression by default.
        budget: the largest number of added samples, as a share of the training samples; above 0, at most 0.5.
        levels: the number of shares, evenly spaced up to the budget.
        seeds: the number of repetitions. Each has its own split of the validation samples, its own start of the attack
            and its own initialisation of the model.
        steps: upper steps of each attack.
        training: how the model is trained, before and after each attack.
        solver: a function that maps the number of steps to a solver.
        key: a jax.random key.
        progress: called with a line of text at the start of each attack.
        mesh: passed to `bilevax.solve`.
        stages: saves finished attacks and the attack in progress, so that an interrupted audit can be resumed; used by
            the command.

    Raises:
        InputError: a budget outside (0, 0.5], or of less than one sample; samples or labels that do not fit together; a
            class with fewer than two validation samples; counts that are not positive.

    Example:
        >>> import jax
        >>> from bilevax.applications.poisoning import audit
        >>> from bilevax.data import digits
        >>> d = digits()
        >>> report = audit(
        ...     d.x_train[:200], d.y_train[:200], d.x_test, d.y_test, levels=1, seeds=2, steps=50, key=jax.random.key(0)
        ... )
        >>> lost, _ = report.lost(report.attacked)
        >>> at_random, _ = report.lost(report.flipped)
        >>> bool(lost[0] > at_random[0])
        True
    """
    began = time.perf_counter()
    levels, seeds, steps = (
        require_count("audit", name, n) for name, n in (("levels", levels), ("seeds", seeds), ("steps", steps))
    )
    require_training(training)
    x, labels = samples("X", X, "y", y)
    x_val, labels_val = samples("X_val", X_val, "y_val", y_val)
    require_alike("X", X, x, "X_val", X_val, x_val)
    x, x_val = (a.astype(jnp.result_type(float)) for a in on_one_scale("X", x, "X_val", x_val))
    classes = classes_of("y", labels)
    codes, codes_val = places("y", labels, classes), places("y_val", labels_val, classes)
    counts = _counts(budget, levels, len(x))
    few = [classes[c] for c in range(len(classes)) if (codes_val == c).sum() < 2]
    if few:
        raise InputError(
            f"X_val has fewer than two samples of class {listed(few)}. Half of the samples of a class are for the "
            "attack and half for the accuracies: add some."
        )

    # One range for all pixels, since they have one unit; one for each column of a table.
    axes: Any = None if x.ndim > 2 else 0
    low, high = np.minimum(x.min(axes), x_val.min(axes)), np.maximum(x.max(axes), x_val.max(axes))
    if not np.any(low < high):
        raise InputError(f"All entries of X are {np.ravel(low)[0]:g}: there is nothing to learn from. Check X.")
    scale = np.where(low < high, high - low, 1)
    x, x_val = (x - low) / scale, (x_val - low) / scale
    network = as_model(model, len(classes))
    if x.ndim == 2:
        network = _standardised(network, x)

    require_solver(solver(steps))
    data = _Scaled(x, codes, x_val, codes_val)
    trials = []
    for seed in range(seeds):

        def report_progress(count: int, seed: int = seed) -> None:
            if progress is not None:
                progress(f"{count} of {len(x)} samples added, trial {seed + 1} of {seeds}")

        trials.append(
            _trial(
                data,
                network,
                training,
                solver(steps),
                steps,
                counts,
                jax.random.fold_in(key, seed),
                report_progress,
                mesh,
                stages,
                f"trial-{seed}",
            )
        )
    report = _report(data, classes, low, scale, counts / len(x), trials, began)
    _warn_of_a_weak_model(report)
    return report


def _counts(budget: float, levels: int, n: int) -> Int[np.ndarray, " k"]:
    """Return the numbers of added samples, without repetitions."""
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.number):
        raise InputError(f"budget is {budget!r}, and must be a number, above 0 and at most {LARGEST_BUDGET:g}.")
    if not 0 < budget <= LARGEST_BUDGET:
        raise InputError(
            f"budget is {budget:g}, and must be above 0 and at most {LARGEST_BUDGET:g}: the largest share of added "
            "samples."
        )
    if budget * n < 1:
        raise InputError(f"budget is {budget:g} of {n} samples, which is less than one sample. Raise it.")
    return np.unique([max(1, round(budget * n * level / levels)) for level in range(1, levels + 1)])


@dataclass(frozen=True)
class _Standardised:
    """A model of standardised columns. Means and deviations are tuples, so that equal models compare equal."""

    model: Model
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def init(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> PyTree:
        return initial(self.model, key, x)

    def apply(
        self, params: PyTree, x: Float[Array, "n d"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "n classes"]:
        scaled = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.deviation, x.dtype)
        return logits(self.model, params, scaled, key)


def _standardised(model: Model, x: Float[np.ndarray, "n d"]) -> Model:
    deviation = x.std(0)
    network = _Standardised(model, tuple(x.mean(0).tolist()), tuple(np.where(deviation > 0, deviation, 1).tolist()))
    return model._replace(init=Method(network, "init"), apply=Method(network, "apply"))


def _warn_of_a_weak_model(report: Report) -> None:
    clean = float(report.clean.mean())
    found = f"Without added samples the model has an accuracy of {clean:.1%} on the held-out samples"
    if clean - report.majority < LEAST_GAIN * (1 - report.majority):
        what = f", hardly more than the {report.majority:.1%} of always predicting the most frequent class. "
    elif clean < report.logistic - FAR_BEHIND:
        what = f"; scikit-learn's logistic regression has {report.logistic:.1%}. "
    else:
        return
    warnings.warn(
        found + what + "The audit of a weak model is not informative: check the features, train it longer or with "
        "less l2 (`training`), or audit the model that you use (`model`).",
        stacklevel=3,
    )


def _references(data: "_Scaled") -> tuple[float, float]:
    """Return the accuracies of the most frequent class, and of logistic regression on at most 5,000 samples."""
    x, x_val = (a.reshape(len(a), -1) for a in (data.x, data.x_val))
    some = np.random.default_rng(0).permutation(len(x))[:REFERENCE_SAMPLES]
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic.fit(x[some], data.y[some])
    return float((data.y_val == np.bincount(data.y).argmax()).mean()), float(logistic.score(x_val, data.y_val))


class _Scaled(NamedTuple):
    """Samples with entries in 0..1, and labels as indices of the classes."""

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"]
    x_val: Float[np.ndarray, "n_val ..."]
    y_val: Int[np.ndarray, " n_val"]


class _Trial(NamedTuple):
    """The results of one seed.

    Attributes:
        clean: accuracy without points.
        flipped, attacked: accuracy for each number of points, with random wrong labels and with the attack's points.
        first, found: the points at the start and at the end of the attack with the largest number of points.
    """

    clean: float
    flipped: list[float]
    attacked: list[float]
    first: Points
    found: Points


def _trial(
    data: _Scaled,
    model: Model,
    training: Training,
    solver: Solver,
    steps: int,
    counts: Int[np.ndarray, " k"],
    key: PRNGKeyArray,
    progress: Callable[[int], None],
    mesh: Any,
    stages: Stages | None,
    name: str,
) -> _Trial:
    split_key, model_key, points_key = jax.random.split(key, 3)
    x, y, x_val, y_val = data
    halves = StratifiedShuffleSplit(1, test_size=0.5, random_state=int(jax.random.bits(split_key, (), np.uint32) >> 1))
    seen, unseen = next(halves.split(x_val, y_val))

    def accuracy(v: PyTree) -> float:
        return float((probabilities(model, v, x_val[unseen]).argmax(1) == y_val[unseen]).mean())

    def stage(part: str, compute: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return compute(None) if stages is None else stages.of(f"{name}-{part}", compute)

    @functools.cache
    def start() -> PyTree:
        return retrained(model, training, x, y, None, key=model_key)

    clean = stage("clean", lambda keep: {"accuracy": accuracy(start())})["accuracy"]
    # Smaller sets are subsets of the largest one, so that only the size differs.
    drawn = wrongly_labelled(x, y, int(counts[-1]), key=points_key)
    first, found, flipped, attacked = drawn, drawn, [], []
    for count in counts:
        progress(count)
        first = Points(drawn.x[:count], drawn.y[:count])

        def attack(keep: Any, first: Points = first) -> dict[str, Any]:
            task = untargeted_task(
                model, x, y, x_val[seen], y_val[seen], first, key=model_key, training=training, start=start()
            )
            callbacks = () if keep is None else (keep,)
            u = solve(
                solver,
                task.problem,
                *task.start,
                task.batches,
                steps=steps,
                key=model_key,
                callbacks=callbacks,
                resume=keep,
                mesh=mesh,
            ).u
            found = Points(np.asarray(u), first.y)
            both = [accuracy(retrained(model, training, x, y, points, key=model_key)) for points in (first, found)]
            return {"x": found.x, "flipped": both[0], "attacked": both[1]}

        done = stage(str(count), attack)
        found = Points(done["x"], first.y)
        flipped.append(done["flipped"])
        attacked.append(done["attacked"])
    return _Trial(clean, flipped, attacked, first, found)


def _report(
    data: _Scaled,
    classes: Shaped[np.ndarray, " classes"],
    low: Float[np.ndarray, "*d"],
    scale: Float[np.ndarray, "*d"],
    fractions: Float[np.ndarray, " k"],
    trials: list[_Trial],
    began: float,
) -> Report:
    """Return the report of the trials, in the units of X."""
    _, _, _, first, found = trials[0]
    unit = float(scale) if data.x.ndim > 2 else 1.0
    flat, points, base = (x.reshape(len(x), -1) for x in (data.x, found.x, first.x))
    neighbours = NearestNeighbors(n_neighbors=2).fit(flat)
    moved = np.abs(points - base)
    origin = neighbours.kneighbors(base, 1, return_distance=False)[:, 0]
    return Report(
        fractions,
        np.array([trial.clean for trial in trials]),
        np.array([trial.flipped for trial in trials]).T,
        np.array([trial.attacked for trial in trials]).T,
        Points(low + scale * found.x, classes[found.y]),
        low + scale * first.x,
        classes[data.y[origin]],
        unit * np.linalg.norm(moved, axis=1),
        unit * moved.max(1),
        unit * neighbours.kneighbors(points, 1)[0][:, 0],
        unit * float(np.median(neighbours.kneighbors(flat)[0][:, 1])),
        *_references(data),
        len(data.y_val) - len(data.y_val) // 2,
        time.perf_counter() - began,
    )
