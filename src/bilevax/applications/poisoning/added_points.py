"""Training-data poisoning, for the audit of one's own pipeline: what could someone who adds a few samples do to it?

u are the added samples, v the model that is trained on them and on all others. The untargeted attack makes the trained
model as bad as it can, the targeted one has samples of one class taken for another (Mehra and Hamm 2021, eq. 11).
The clean-label attack moves samples that keep their right labels, within a bound that keeps them inconspicuous, until
one sample is misclassified (eqs. 5 and 12). Each is a Task, on which every solver runs.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from bilevax._checks import InputError
from bilevax.applications._inputs import floats, integer_samples, require_training
from bilevax.applications.poisoning.points import (
    SOFTMAX_TRAINING,
    Clip,
    Points,
    Poisoned,
    all_classes,
    check_budget,
    check_class_pair,
    check_samples,
    distances,
    one_hot_of,
    trained,
)
from bilevax.applications.task import Task
from bilevax.data.corruption import other_labels
from bilevax.loop.sources import Epochs, Samples, Source
from bilevax.nn.model import Model
from bilevax.nn.training import Training, one_hot_cross_entropy, penalised, probabilities
from bilevax.problem import Batch, Problem


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _WithPoints:
    """A source whose lower batches are `Poisoned`."""

    source: Source
    labels: Any
    share: Any

    def check(self) -> None:
        """Raise InputError where sizes do not fit."""
        if isinstance(self.source, Epochs):
            self.source.check()

    def at(self, step: Any, key: PRNGKeyArray) -> Batch:
        """The batch of a step."""
        batch = self.source.at(step, key)
        return Batch(batch.upper, Poisoned(batch.lower, self.labels, self.share))


@dataclass(frozen=True)
class _ValidationLoss:
    """The mean cross-entropy on the validation samples, times a sign. Equal losses share their programs."""

    model: Model
    sign: float

    def __call__(self, u: Any, v: PyTree, validation: Samples) -> Any:
        return self.sign * one_hot_cross_entropy(self.model, v, *validation.data)


@dataclass(frozen=True)
class _PoisonedLoss:
    """The mean cross-entropy on clean samples and points together, penalised."""

    model: Model
    l2: float

    def __call__(self, u: Any, v: PyTree, data: Poisoned, *, key: PRNGKeyArray) -> Any:
        clean = one_hot_cross_entropy(self.model, v, *data.clean.data, key=key)
        added = one_hot_cross_entropy(self.model, v, u, data.labels, key=key)
        return penalised((1 - data.share) * clean + data.share * added, self.l2, v)


def wrongly_labelled(X: Any, y: Any, count: int, *, key: PRNGKeyArray) -> Points:
    """Random samples with random wrong labels: where the untargeted attack starts, and label flipping itself.

    Args:
        X, y: samples (n, ...) and integer labels (n,).
        count: how many to add; from 1 to n.
        key: a jax.random key.

    Raises:
        InputError: the count is none of these; there is one class only.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.applications.poisoning import wrongly_labelled
        >>> points = wrongly_labelled(np.zeros((6, 2)), np.array([0, 1, 2, 0, 1, 2]), 3, key=jax.random.key(0))
        >>> points.x.shape, points.y.shape
        ((3, 2), (3,))
    """
    X, y = integer_samples("X", X, "y", y)
    check_budget(count, len(y))
    classes = np.unique(y)
    if len(classes) < 2:
        raise InputError(f"y has one class only ({classes[0]}), so no label can be wrong. Two are needed.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = rng.choice(len(y), count, replace=False)
    place = np.searchsorted(classes, y[chosen])
    return Points(floats(X)[chosen], classes[other_labels(place, len(classes), rng)])


def swapped(X: Any, y: Any, count: int, source: int, target: int, *, key: PRNGKeyArray) -> Points:
    """Random samples of two classes, each labelled as the other: where the targeted attack starts.

    Args:
        X, y: samples (n, ...) and integer labels (n,).
        count: how many to add; at most as many as the two classes have.
        source, target: the class that is to be misclassified, and the one it is to be taken for.
        key: a jax.random key.

    Raises:
        InputError: the two are one class or not in y; the count is not positive, or above what they have.
    """
    X, y = integer_samples("X", X, "y", y)
    check_class_pair(y, source, target)
    pool = np.flatnonzero((y == source) | (y == target))
    check_budget(count, len(pool), f"the samples of classes {source} and {target}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = rng.choice(pool, count, replace=False)
    return Points(floats(X)[chosen], np.where(y[chosen] == source, target, source))


def untargeted_task(
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike,
    y_val: ArrayLike,
    points: Points,
    *,
    key: PRNGKeyArray,
    training: Training = SOFTMAX_TRAINING,
    low: float = 0.0,
    high: float = 1.0,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    start: PyTree | None = None,
) -> Task:
    """Points that, added to the training set, make the trained model worst on a validation set (eq. 11).

    u is points.x (m, ...), within low..high by projection; their labels stay. v is the model's parameters, from
    training on the clean samples. f is minus the mean cross-entropy on the validation set; g the mean cross-entropy on
    clean samples and points together, plus l2/2 times the squared norm of the model's matrices.

    Args:
        model: maps samples to logits (n, classes).
        X, y: training samples (n, ...) and integer labels 0..classes-1 (n,). Images of uint8 are read as 0..1.
        X_val, y_val: the samples on which the model is to fail.
        points: where the added samples start, say by `wrongly_labelled`.
        key: a jax.random key, for the model's initialisation and its dropout.
        training: how the model is trained at the start; its l2 is that of the lower loss, too.
        low, high: the range of the samples' entries.
        batch_size, val_batch_size: samples of X and of X_val per step; None for all. The points are in each batch.
        start: parameters of a model trained on X already.

    Raises:
        InputError: samples out of range or not alike; more points than samples; labels that the model has no logit
            for; a range that is none.

    Metrics: val_loss and val_accuracy of v; moved, the mean distance (l2) of a point from where it started.

    Example:
        >>> import jax
        >>> from bilevax import solve
        >>> from bilevax.applications.poisoning import penalty_solver, untargeted_task, wrongly_labelled
        >>> from bilevax.data import digits
        >>> from bilevax.nn import softmax_head
        >>> d, key = digits(), jax.random.key(0)
        >>> X, y, X_val, y_val = d.x_train[:200], d.y_train[:200], d.x_train[200:400], d.y_train[200:400]
        >>> points = wrongly_labelled(X, y, 6, key=key)
        >>> task = untargeted_task(softmax_head(10), X, y, X_val, y_val, points, key=key)
        >>> result = solve(penalty_solver(steps=5), task.problem, *task.start, task.batches, steps=5, key=key)
        >>> result.u.shape == points.x.shape
        True
    """
    X_val, y_val = integer_samples("X_val", X_val, "y_val", y_val)
    sizes = batch_size, val_batch_size
    return _added_points_task(model, X, y, X_val, y_val, points, -1.0, key, training, (low, high), sizes, start)


def targeted_task(
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike,
    y_val: ArrayLike,
    points: Points,
    source: int,
    target: int,
    *,
    key: PRNGKeyArray,
    training: Training = SOFTMAX_TRAINING,
    low: float = 0.0,
    high: float = 1.0,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    start: PyTree | None = None,
) -> Task:
    """Points that, added to the training set, have the trained model take one class for another (eq. 11).

    As `untargeted_task`, but f is the mean cross-entropy of the validation samples of class `source` labelled `target`.

    Args:
        source, target: the class that is to be misclassified, and the one it is to be taken for.
        points: where the added samples start, say by `swapped`.
        model, X, y, X_val, y_val, key, training, low, high, batch_size, val_batch_size, start: as for
            `untargeted_task`.

    Raises:
        InputError: as for `untargeted_task`; source and target are one class, or not in y; no sample of X_val is of
            class `source`.

    Metrics: as for `untargeted_task`, of the samples of class `source` labelled `target`: val_accuracy is the share
    that is taken for `target`.
    """
    X_val, y_val = integer_samples("X_val", X_val, "y_val", y_val)
    check_class_pair(np.asarray(y), source, target)
    chosen = y_val == source
    if not chosen.any():
        raise InputError(f"y_val has no sample of class {source}, which is the one to be misclassified. Add some.")
    X_val, y_val = X_val[chosen], np.full(chosen.sum(), target)
    sizes = batch_size, val_batch_size
    return _added_points_task(model, X, y, X_val, y_val, points, 1.0, key, training, (low, high), sizes, start)


def _added_points_task(
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike,
    y_val: ArrayLike,
    points: Points,
    sign: float,
    key: PRNGKeyArray,
    training: Training,
    limits: tuple[float, float],
    sizes: tuple[int | None, int | None],
    start: PyTree | None,
) -> Task:
    X, y = integer_samples("X", X, "y", y)
    low, high = limits
    if not low < high:
        raise InputError(f"low is {low:g} and high {high:g}: no range. Pass the least and the largest entry.")
    require_training(training)
    base = floats(points.x, "points.x")
    check_budget(len(base), len(y))
    x, x_val = floats(X), floats(X_val)
    for name, samples in (("X", x), ("X_val", x_val), ("points.x", base)):
        check_samples(name, samples, x.shape[1:], low, high)
    classes = all_classes(model, x, key)
    y, y_val, labels = (one_hot_of(n, a, classes) for n, a in (("y", y), ("y_val", y_val), ("points.y", points.y)))
    v = trained(model, training, x, y, key) if start is None else start
    clean, validation = (jnp.asarray(x), y), (jnp.asarray(x_val), y_val)
    source = Epochs(validation, clean, upper_size=sizes[1], lower_size=sizes[0])
    share = jnp.asarray(len(base) / (len(base) + len(x)), x.dtype)
    upper, lower = _ValidationLoss(model, sign), _PoisonedLoss(model, training.l2)
    problem = Problem(upper, lower, project_upper=Clip(float(low), float(high)), random_lower=True)
    truth = np.asarray(y_val).argmax(1)

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        p = probabilities(model, v, validation[0])
        return {
            "val_loss": float(one_hot_cross_entropy(model, v, *map(jnp.asarray, validation))),
            "val_accuracy": float((p.argmax(1) == truth).mean()),
            "moved": float(distances(u, base).mean()),
        }

    return Task(problem, (jnp.asarray(base), v), _WithPoints(source, labels, share), metrics)
