"""Audit of a training pipeline: the accuracy that a few added samples could cost, by the untargeted attack.

The owner of a model passes its training data. The audit attacks with a small share of added samples, trains the model
again with them, and reports the loss of accuracy and how conspicuous the samples are.
"""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray, PyTree, Shaped
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import NearestNeighbors

from bilevax._checks import InputError, listed, require_count
from bilevax.applications._inputs import classes_of, on_one_scale, places, require_alike, samples
from bilevax.applications._settings import require_solver, require_training
from bilevax.applications.poisoning.added_points import untargeted_task, wrongly_labelled
from bilevax.applications.poisoning.estimators import Estimator, estimator_of, is_estimator
from bilevax.applications.poisoning.points import SOFTMAX_TRAINING, Points, retrained
from bilevax.applications.poisoning.recipes import penalty_solver
from bilevax.applications.poisoning.report import Report, Surrogate
from bilevax.applications.poisoning.rows import as_numbers, has_text, rows_of
from bilevax.applications.poisoning.scaled import Scaled, references, standardised
from bilevax.loop.solve import solve
from bilevax.loop.stages import Stages
from bilevax.nn.adapters import as_model
from bilevax.nn.model import Model
from bilevax.nn.networks import softmax_head
from bilevax.nn.training import Training, probabilities
from bilevax.solvers.base import Solver

LEVELS = 4
LARGEST_BUDGET = 0.5
LEAST_GAIN = 0.1  # of the distance from the majority accuracy to 1
FAR_BEHIND = 0.05  # in accuracy


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
    images (n, h, w, ...) are scaled together. Added samples stay within these ranges. For a table, a network is trained
    on standardised columns. Columns of text of a data frame are one-hot encoded; an added sample has one of the values
    of X in each of them.

    The attack needs the gradient of the model's training. A classifier of scikit-learn, such as a forest, has none: the
    attack is then on a surrogate, a network that is trained on the same samples, and `report.surrogate` names it. All
    accuracies of the report are of the given model, trained again with the samples that were found. An attack through a
    surrogate is weaker than one on the model itself would be; where it harms the model less than the random samples
    that it starts from (measured on the half that the attack uses), these are what the attacker adds.

    Warns (UserWarning) if the model is weak without added samples, so that the audit is not informative: it is hardly
    better than always predicting the most frequent class, or clearly worse than scikit-learn's logistic regression.

    Args:
        X, y: training samples (n, ...) and labels (n,) of one type.
        X_val, y_val: correctly labelled samples of the same kind, at least two of each class.
        model: as for `ImportanceClassifier`, softmax regression by default; or a classifier with `fit` and `predict`,
            as those of scikit-learn. It gets samples in the units of X: a data frame if X is one, images flattened. One
            that cannot be fitted to columns of text gets the one-hot encoded table. Where its `random_state` is None,
            it is one seed in each trial.
        budget: the largest number of added samples, as a share of the training samples; above 0, at most 0.5.
        levels: the number of shares, evenly spaced up to the budget.
        seeds: the number of repetitions. Each has its own split of the validation samples, its own start of the attack
            and its own initialisation of the model.
        steps: upper steps of each attack.
        training: how a network is trained, before and after each attack; also a surrogate.
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
    rows, frames = rows_of(X), (X, X_val)
    if has_text(X):
        X, X_val, rows = as_numbers(X, y, X_val, y_val)
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
    victim, surrogate = None, None
    if is_estimator(model):
        flat = x.reshape(len(x), -1), x_val.reshape(len(x_val), -1)
        victim = estimator_of(model, flat, frames, classes[codes], classes[codes_val], rows)
        surrogate, model = victim.surrogate()
    name = _name_of(model) if victim is None else victim.name
    x, x_val = (x - low) / scale, (x_val - low) / scale
    network = as_model(model, len(classes))
    if x.ndim == 2:
        network = standardised(network, x)

    require_solver(solver(steps))
    data = Scaled(x, codes, x_val, codes_val, classes, low, scale, rows)
    trials = []
    for seed in range(seeds):

        def report_progress(count: int, seed: int = seed) -> None:
            if progress is not None:
                progress(f"{count} of {len(x)} samples added, trial {seed + 1} of {seeds}")

        trials.append(
            _trial(
                data,
                network,
                victim,
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
    report = _report(data, name, surrogate, counts / len(x), trials, began)
    _warn_of_a_weak_model(report)
    return report


def _name_of(model: Any) -> str:
    """A model in a report: the name of a function or of a class."""
    name = getattr(model, "__name__", type(model).__name__)
    return "a function" if name in ("<lambda>", "Model", "tuple") else name


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


def _warn_of_a_weak_model(report: Report) -> None:
    clean = float(report.clean.mean())
    if report.surrogate is not None and report.surrogate.accuracy < clean - FAR_BEHIND:
        warnings.warn(
            f"The surrogate, {report.surrogate.name}, has an accuracy of {report.surrogate.accuracy:.1%}, and "
            f"{report.model} of {clean:.1%}: the attack may be far weaker than one on {report.model} itself.",
            stacklevel=3,
        )
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


class _Trial(NamedTuple):
    """The results of one seed.

    Attributes:
        clean: accuracy without points.
        surrogate: the same of the surrogate; NaN without one.
        flipped, attacked: accuracy for each number of points, with random wrong labels and with the attack's points.
        first, found: the points at the start and at the end of the attack with the largest number of points.
    """

    clean: float
    surrogate: float
    flipped: list[float]
    attacked: list[float]
    first: Points
    found: Points


def _trial(
    data: Scaled,
    model: Model,
    victim: Estimator | None,
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
    x, y, x_val, y_val = data[:4]
    halves = StratifiedShuffleSplit(1, test_size=0.5, random_state=int(jax.random.bits(split_key, (), np.uint32) >> 1))
    seen, unseen = next(halves.split(x_val, y_val))
    room = int(counts[-1])  # of all attacks, so that they share their programs

    def accuracy(v: PyTree) -> float:
        return float((probabilities(model, v, x_val[unseen]).argmax(1) == y_val[unseen]).mean())

    def stage(part: str, compute: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return compute(None) if stages is None else stages.of(f"{name}-{part}", compute)

    @functools.cache
    def start() -> PyTree:
        return retrained(model, training, x, y, None, key=model_key, room=room)

    def after(points: Points) -> float:
        """The accuracy of the user's model after training with the points."""
        if victim is None:
            return accuracy(retrained(model, training, x, y, points, key=model_key, room=room))
        return victim.accuracy(data.in_units(points), unseen, seed)

    def harm(points: Points) -> float:
        """The share of errors of the user's classifier on the samples that the attack uses."""
        assert victim is not None
        return 1 - victim.accuracy(data.in_units(points), seen, seed)

    def clean(keep: Any) -> dict[str, float]:
        own = accuracy(start())
        return {"own": own} if victim is None else {"own": victim.accuracy(None, unseen, seed), "surrogate": own}

    seed = int(jax.random.bits(model_key, (), np.uint32))
    without = stage("clean", clean)
    # Smaller sets are subsets of the largest one, so that only the size differs.
    drawn = wrongly_labelled(x, y, int(counts[-1]), key=points_key)
    first, found, flipped, attacked = drawn, drawn, [], []
    for count in counts:
        progress(count)
        first = Points(drawn.x[:count], drawn.y[:count])

        def attack(keep: Any, first: Points = first) -> dict[str, Any]:
            task = untargeted_task(
                model,
                x,
                y,
                x_val[seen],
                y_val[seen],
                first,
                key=model_key,
                training=training,
                start=start(),
                room=room,
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
            found = Points(data.valid(np.asarray(u)[: len(first.y)]), first.y)
            # Through a surrogate the points may harm the user's model less than those that they started from.
            if victim is not None and harm(first) > harm(found):
                found = first
            return {"x": found.x, "flipped": after(first), "attacked": after(found)}

        done = stage(str(count), attack)
        found = Points(done["x"], first.y)
        flipped.append(done["flipped"])
        attacked.append(done["attacked"])
    return _Trial(without["own"], without.get("surrogate", np.nan), flipped, attacked, first, found)


def _report(
    data: Scaled,
    name: str,
    surrogate: str | None,
    fractions: Float[np.ndarray, " k"],
    trials: list[_Trial],
    began: float,
) -> Report:
    """Return the report of the trials, in the units of X."""
    first, found = trials[0].first, trials[0].found
    unit = float(data.scale) if data.x.ndim > 2 else 1.0
    flat, points, base = (x.reshape(len(x), -1) for x in (data.x, found.x, first.x))
    neighbours = NearestNeighbors(n_neighbors=2).fit(flat)
    moved = np.abs(points - base)
    origin = neighbours.kneighbors(base, 1, return_distance=False)[:, 0]
    tried = None if surrogate is None else Surrogate(surrogate, float(np.mean([trial.surrogate for trial in trials])))
    return Report(
        name,
        tried,
        fractions,
        np.array([trial.clean for trial in trials]),
        np.array([trial.flipped for trial in trials]).T,
        np.array([trial.attacked for trial in trials]).T,
        data.in_units(found),
        data.in_units(first).x,
        data.classes[data.y[origin]],
        unit * np.linalg.norm(moved, axis=1),
        unit * moved.max(1),
        unit * neighbours.kneighbors(points, 1)[0][:, 0],
        unit * float(np.median(neighbours.kneighbors(flat)[0][:, 1])),
        *references(data),
        len(data.y_val) - len(data.y_val) // 2,
        time.perf_counter() - began,
    )
