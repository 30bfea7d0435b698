"""How much a few added samples could hurt a training pipeline: an audit by the untargeted attack.

The owner of a model passes what it is trained on. The audit acts as someone who can add a small share of samples,
trains the model again with them, and reports the accuracy lost and how visible the samples are.
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
LEAST_GAIN = 0.1  # of what the most frequent class leaves to be gained
FAR_BEHIND = 0.05  # in accuracy
REFERENCE_SAMPLES = 5000


def audit(
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    *,
    model: Any = softmax_head,
    budget: float = 0.05,
    levels: int = LEVELS,
    seeds: int = 5,
    steps: int = 500,
    training: Training = SOFTMAX_TRAINING,
    solver: Callable[[int], Solver] = penalty_solver,
    key: Any,
    progress: Callable[[str], None] | None = None,
    mesh: Any = None,
    stages: Stages | None = None,
) -> Report:
    """Audit a training pipeline against added samples.

    Half of the validation samples, with as many of each class, drive the attack; accuracies are measured on the other
    half, which it does not see. Each column of a table is scaled by its own least and largest entry, all pixels of
    images (n, h, w, ...) together; added samples stay within these ranges. Of a table, the model is trained on
    standardised columns, as one would train it.

    Warns (UserWarning) where the model is weak without any added sample, and the audit says little: hardly better than
    naming the most frequent class, or clearly behind scikit-learn's logistic regression.

    Args:
        X, y: training samples (n, ...) and labels (n,) of any one type.
        X_val, y_val: right samples of the same kind; at least two of each class.
        model: as for `DenoisingClassifier`; softmax regression by default.
        budget: the largest share of added samples, of the training samples; above 0, at most 0.5.
        levels: how many shares, evenly up to the budget.
        seeds: how many repetitions, each with another split, other samples to start the attack from, and another start
            of the model.
        steps: of the attack.
        training: how the model is trained, at the start and after each attack.
        solver: from a number of steps to any solver of bilevax.
        key: a jax.random key.
        progress: called with a line of text as each attack begins.
        mesh: passed to `bilevax.solve`.
        stages: keeps finished attacks and saves the one in progress, so that an interrupted audit can be resumed;
            used by the command.

    Raises:
        InputError: a budget outside (0, 0.5], or of less than one sample; samples or labels that do not fit; a class
            with fewer than two validation samples; counts that are not positive.

    Example:
        >>> import jax
        >>> from bilevax.applications.poisoning import audit
        >>> from bilevax.data import digits
        >>> d = digits()
        >>> report = audit(
        ...     d.x_train[:200], d.y_train[:200], d.x_test, d.y_test, levels=1, seeds=2, steps=50, key=jax.random.key(0)
        ... )
        >>> lost, _ = report.lost(report.attacked)
        >>> careless, _ = report.lost(report.flipped)
        >>> bool(lost[0] > careless[0])
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
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.number):
        raise InputError(f"budget is {budget!r}, and must be a number, above 0 and at most {LARGEST_BUDGET:g}.")
    if not 0 < budget <= LARGEST_BUDGET:
        raise InputError(
            f"budget is {budget:g}, and must be above 0 and at most {LARGEST_BUDGET:g}: the largest share of samples "
            "that someone could add."
        )
    if budget * len(x) < 1:
        raise InputError(f"budget is {budget:g} of {len(x)} samples, less than one. Raise it.")
    few = [classes[c] for c in range(len(classes)) if (codes_val == c).sum() < 2]
    if few:
        raise InputError(f"X_val has fewer than two samples of class {listed(few)}. Half of them measure: add some.")
    counts = np.unique([max(1, round(budget * len(x) * level / levels)) for level in range(1, levels + 1)])

    # One range for all pixels, whose differences mean the same everywhere; of a table one for each column.
    axes: Any = None if x.ndim > 2 else 0
    low, high = np.minimum(x.min(axes), x_val.min(axes)), np.maximum(x.max(axes), x_val.max(axes))
    if not np.any(low < high):
        raise InputError(f"All entries of X are {np.ravel(low)[0]:g}: there is nothing to learn from. Check them.")
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


@dataclass(frozen=True)
class _Standardised:
    """A model of columns that are first standardised, by means and deviations (d,) that are kept as numbers."""

    model: Model
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def _scaled(self, x: Any) -> Any:
        return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.deviation, x.dtype)

    def init(self, key: Any, x: Any) -> Any:
        return initial(self.model, key, x)

    def apply(self, params: Any, x: Any, key: Any = None) -> Any:
        return logits(self.model, params, self._scaled(x), key)


def _standardised(model: Model, x: np.ndarray) -> Model:
    deviation = x.std(0)
    network = _Standardised(model, tuple(x.mean(0).tolist()), tuple(np.where(deviation > 0, deviation, 1).tolist()))
    return Model(Method(network, "init"), Method(network, "apply"))


def _warn_of_a_weak_model(report: Report) -> None:
    clean = float(report.clean.mean())
    found = f"Without added samples the model is right on {clean:.1%} of the held-out samples, "
    if clean - report.majority < LEAST_GAIN * (1 - report.majority):
        what = f"hardly more than the {report.majority:.1%} of always naming the most frequent class. "
    elif clean < report.logistic - FAR_BEHIND:
        what = f"and scikit-learn's logistic regression on {report.logistic:.1%}. "
    else:
        return
    warnings.warn(
        found + what + "An audit of a weak model says little: check the features, train it longer or with less l2 "
        "(`training`), or audit the model that you use (`model`).",
        stacklevel=3,
    )


def _references(data: "_Scaled") -> tuple[float, float]:
    """The accuracy of the most frequent class, and of logistic regression on some of the samples."""
    x, x_val = (a.reshape(len(a), -1) for a in (data.x, data.x_val))
    some = np.random.default_rng(0).permutation(len(x))[:REFERENCE_SAMPLES]
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic.fit(x[some], data.y[some])
    return float((data.y_val == np.bincount(data.y).argmax()).mean()), float(logistic.score(x_val, data.y_val))


class _Scaled(NamedTuple):
    """Samples with entries in 0..1, and labels as places in the classes."""

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray


class _Trial(NamedTuple):
    """One draw: accuracy without points and (k,) by their number; of the most points, where they started and ended."""

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
    counts: np.ndarray,
    key: Any,
    progress: Callable[[int], None],
    mesh: Any,
    stages: Stages | None,
    name: str,
) -> _Trial:
    split_key, model_key, points_key = jax.random.split(key, 3)
    x, y, x_val, y_val = data
    halves = StratifiedShuffleSplit(1, test_size=0.5, random_state=int(jax.random.bits(split_key, (), np.uint32) >> 1))
    seen, unseen = next(halves.split(x_val, y_val))

    def accuracy(v: Any) -> float:
        return float((probabilities(model, v, x_val[unseen]).argmax(1) == y_val[unseen]).mean())

    def stage(part: str, compute: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return compute(None) if stages is None else stages.of(f"{name}-{part}", compute)

    @functools.cache
    def start() -> Any:
        return retrained(model, training, x, y, None, key=model_key)

    clean = stage("clean", lambda keep: {"accuracy": accuracy(start())})["accuracy"]
    # Smaller sets are parts of the largest one, so that they differ by their size alone.
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
    classes: np.ndarray,
    low: np.ndarray,
    scale: np.ndarray,
    fractions: np.ndarray,
    trials: list[_Trial],
    began: float,
) -> Report:
    """The report of the trials, in the units of X."""
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
