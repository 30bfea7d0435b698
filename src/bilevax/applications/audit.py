"""How much could a few added samples hurt a training pipeline? An audit by the untargeted attack of `poisoning`.

The owner of a model hands over what it is trained on; the audit plays someone who can add a small share of samples,
trains the model anew on what they would add, and reports the accuracy lost and how visible the samples are.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import NearestNeighbors

from bilevax._stages import Stages
from bilevax.applications.poisoning import (
    SOFTMAX_TRAINING,
    Points,
    penalty_solver,
    retrained,
    untargeted_task,
    wrongly_labelled,
)
from bilevax.applications.training import Training, probabilities, require_finite
from bilevax.models import Model, as_model, softmax_head
from bilevax.problem import InputError, listed, require_count
from bilevax.solve import solve
from bilevax.solvers.base import Solver

LEVELS = 4
LARGEST_BUDGET = 0.5
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        fractions: (k,) added samples over training samples.
        clean: (s,) test accuracy of the model without added samples, by seed.
        flipped: (k, s) with as many random samples of wrong labels: what carelessness would cost.
        attacked: (k, s) with the samples that the attack found.
        points: those of the largest fraction and the first seed, in the units of X, with labels as in y.
        base: (m, ...) the samples of X that they started from.
        base_labels: (m,) these samples' own labels.
        l2, l_inf: (m,) how far each point is from its base, in the units of X.
        nearest: (m,) the distance (l2) of each point from the nearest sample of X.
        usual_nearest: the median distance of a sample of X from its nearest other one; points much further out than
            this are easy to filter.
        held_out: how many samples the accuracies are measured on; the attack has not seen them.
        seconds: wall time.

    Example: see `audit`.
    """

    fractions: np.ndarray
    clean: np.ndarray
    flipped: np.ndarray
    attacked: np.ndarray
    points: Points
    base: np.ndarray
    base_labels: np.ndarray
    l2: np.ndarray
    l_inf: np.ndarray
    nearest: np.ndarray
    usual_nearest: float
    held_out: int
    seconds: float

    def lost(self, accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy lost against the clean model, (k,), and half the width of its 95% confidence interval, (k,).

        The mean over the seeds, and Student's t; with one seed the width is NaN.
        """
        lost = self.clean[None] - accuracies
        count = lost.shape[1]
        if count < 2:
            return lost.mean(1), np.full(len(lost), np.nan)
        width = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * lost.std(1, ddof=1) / np.sqrt(count)
        return lost.mean(1), width


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
    half, which it does not see. Features are scaled together to 0..1, and added samples stay within X's range.

    Args:
        X, y: training samples (n, ...) and labels (n,) of any one type.
        X_val, y_val: right samples of the same kind; at least two of each class.
        model: as for `DenoisingClassifier`; softmax regression by default.
        budget: the largest share of added samples, of the training samples; above 0, at most 0.5.
        levels: how many shares, evenly up to the budget.
        seeds: how many times all is drawn anew: the split, the samples that the attack starts from, the model's start.
        steps: of the attack.
        training: how the model is trained, at the start and after each attack.
        solver: from a number of steps to any solver of bilevax.
        key: a jax.random key.
        progress: called with a line of text as each attack begins.
        mesh: handed to `bilevax.solve`.
        stages: keeps finished attacks and saves the one in progress, so that an interrupted audit can be resumed;
            used by the command.

    Raises:
        InputError: a budget outside (0, 0.5], or of less than one sample; samples or labels that do not fit; a class
            with fewer than two validation samples; counts that are not positive.

    Example:
        >>> import jax
        >>> from bilevax.applications.audit import audit
        >>> from bilevax.datasets import digits
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
    for name, count in (("levels", levels), ("seeds", seeds), ("steps", steps)):
        require_count("audit", name, count)
    x, codes, classes = _samples("X", X, "y", y)
    x_val, codes_val, _ = _samples("X_val", X_val, "y_val", y_val, classes)
    if x.shape[1:] != x_val.shape[1:]:
        raise InputError(f"X has samples of shape {x.shape[1:]}, and X_val of {x_val.shape[1:]}. They must be alike.")
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

    low, high = float(min(x.min(), x_val.min())), float(max(x.max(), x_val.max()))
    if not low < high:
        raise InputError(f"All entries of X are {low:g}: there is nothing to learn from. Check the samples.")
    x, x_val = (x - low) / (high - low), (x_val - low) / (high - low)
    network = as_model(model, len(classes))

    samples = _Scaled(x, codes, x_val, codes_val)
    trials = []
    for seed in range(seeds):

        def told(count: int, seed: int = seed) -> None:
            if progress is not None:
                progress(f"{count} of {len(x)} samples added, trial {seed + 1} of {seeds}")

        trials.append(
            _trial(
                samples,
                network,
                training,
                solver(steps),
                steps,
                counts,
                jax.random.fold_in(key, seed),
                told,
                mesh,
                stages,
                f"trial-{seed}",
            )
        )
    return _report(samples, classes, low, high, counts / len(x), trials, time.perf_counter() - began)


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
    samples: _Scaled,
    model: Model,
    training: Training,
    solver: Solver,
    steps: int,
    counts: np.ndarray,
    key: Any,
    told: Callable[[int], None],
    mesh: Any,
    stages: Stages | None,
    name: str,
) -> _Trial:
    split_key, model_key, points_key = jax.random.split(key, 3)
    x, y, x_val, y_val = samples
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
        told(count)
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
    samples: _Scaled,
    classes: np.ndarray,
    low: float,
    high: float,
    fractions: np.ndarray,
    trials: list[_Trial],
    seconds: float,
) -> Report:
    """What the trials say, in the units of X."""
    scale, (_, _, _, first, found) = high - low, trials[0]
    flat, points, base = (x.reshape(len(x), -1) for x in (samples.x, found.x, first.x))
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
        classes[samples.y[origin]],
        scale * np.linalg.norm(moved, axis=1),
        scale * moved.max(1),
        scale * neighbours.kneighbors(points, 1)[0][:, 0],
        scale * float(np.median(neighbours.kneighbors(flat)[0][:, 1])),
        len(samples.y_val) - len(samples.y_val) // 2,
        seconds,
    )


def _samples(
    x_name: str, X: Any, y_name: str, y: Any, classes: Sequence[Any] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples as floats, their labels as places in the sorted classes, and the classes."""
    labels = np.asarray(y)
    try:
        x = np.asarray(X, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{x_name} holds values that are no numbers ({str(error).rstrip('.')}). Encode them as numbers first."
        ) from error
    if x.ndim < 2 or 0 in x.shape or labels.shape != x.shape[:1]:
        raise InputError(
            f"{x_name} has shape {x.shape} and {y_name} {labels.shape}. One row per sample and one label each are "
            "needed."
        )
    require_finite(x_name, x)
    known = np.unique(labels) if classes is None else np.asarray(classes)
    unknown = np.setdiff1d(labels, known)
    if len(unknown):
        raise InputError(
            f"{y_name} has labels that y lacks: {listed(unknown)}. y has {listed(known)}. Spell them alike."
        )
    if len(known) < 2:
        raise InputError(f"{y_name} has one class only ({listed(known)}). Two are needed to tell right from wrong.")
    return x, np.searchsorted(known, labels), known
