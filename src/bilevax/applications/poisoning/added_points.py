"""Attacks by added training samples with wrong labels, as tasks (Mehra and Hamm 2021, eq. 11).

u are the added samples, and v the parameters of the model that is trained on the clean and the added samples. The
untargeted attack maximises the validation loss of the trained model; the targeted attack makes it assign the samples of
one class to another. For the attack by samples with right labels see `clean_label`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError
from bilevax.applications._inputs import floats, integer_samples
from bilevax.applications._settings import require_training
from bilevax.applications.poisoning.points import (
    SOFTMAX_TRAINING,
    Clip,
    Points,
    Poisoned,
    check_budget,
    check_class_pair,
    check_samples,
    distances,
    filled,
    logit_count,
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
    labels: Float[Array, "m classes"]
    share: Float[Array, ""]

    def check(self) -> None:
        """Raise InputError if sizes do not fit."""
        if isinstance(self.source, Epochs):
            self.source.check()

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """Return the batch of a step."""
        batch = self.source.at(step, key)
        return Batch(batch.upper, Poisoned(batch.lower, self.labels, self.share))


@dataclass(frozen=True)
class _ValidationLoss:
    """The mean cross-entropy on the validation samples, times a sign."""

    model: Model
    sign: float

    def __call__(self, u: Float[Array, "m ..."], v: PyTree, validation: Samples) -> Float[Array, ""]:
        return self.sign * one_hot_cross_entropy(self.model, v, *validation.data)


@dataclass(frozen=True)
class _PoisonedLoss:
    """The mean cross-entropy on clean samples and points together, plus the l2 penalty."""

    model: Model
    l2: float

    def __call__(self, u: Float[Array, "m ..."], v: PyTree, data: Poisoned, *, key: PRNGKeyArray) -> Float[Array, ""]:
        clean = one_hot_cross_entropy(self.model, v, *data.clean.data, key=key)
        added = one_hot_cross_entropy(self.model, v, u, data.labels, key=key)
        return penalised((1 - data.share) * clean + data.share * added, self.l2, v)


def wrongly_labelled(
    X: Shaped[ArrayLike, "n ..."], y: Int[ArrayLike, " n"], count: int, *, key: PRNGKeyArray
) -> Points:
    """Return random samples with random wrong labels: the start of the untargeted attack.

    They are also the baseline of the attack: random label flips.

    Args:
        X, y: samples (n, ...) and integer labels (n,).
        count: number of points, from 1 to n.
        key: a jax.random key.

    Raises:
        InputError: `count` is not in 1..n; y has only one class.

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
        raise InputError(
            f"y has one class only ({classes[0]}), so no label can be wrong. Pass samples of at least two classes."
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = rng.choice(len(y), count, replace=False)
    place = np.searchsorted(classes, y[chosen])
    return Points(floats(X)[chosen], classes[other_labels(place, len(classes), rng)])


def swapped(
    X: Shaped[ArrayLike, "n ..."], y: Int[ArrayLike, " n"], count: int, source: int, target: int, *, key: PRNGKeyArray
) -> Points:
    """Return random samples of two classes, each with the label of the other class: the start of the targeted attack.

    Args:
        X, y: samples (n, ...) and integer labels (n,).
        count: number of points, at most the number of samples of the two classes.
        source: the class whose samples are to be misclassified.
        target: the class that the model is to assign them to.
        key: a jax.random key.

    Raises:
        InputError: `source` equals `target`, or one of them is not in y; `count` is not positive, or larger than the
            number of samples of the two classes.
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
    X: Shaped[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    X_val: Shaped[ArrayLike, "n_val ..."],
    y_val: Int[ArrayLike, " n_val"],
    points: Points,
    *,
    key: PRNGKeyArray,
    training: Training = SOFTMAX_TRAINING,
    low: float = 0.0,
    high: float = 1.0,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    start: PyTree | None = None,
    room: int = 0,
) -> Task:
    """Return the task of the untargeted attack: points that maximise the trained model's validation loss (eq. 11).

    u is points.x (m, ...), projected onto low..high; the labels of the points stay fixed. v are the model's parameters;
    they start from training on the clean samples. f is minus the mean cross-entropy on the validation set. g is the
    mean cross-entropy on clean samples and points together, plus l2/2 times the squared norm of the model's matrices.

    Args:
        model: maps samples to logits (n, classes).
        X, y: training samples (n, ...) and integer labels 0..classes-1 (n,). Images of uint8 are read as 0..1.
        X_val, y_val: validation samples, whose loss is maximised.
        points: the start of the added samples, for example by `wrongly_labelled`.
        key: a jax.random key, for the model's initialisation and its dropout.
        training: how the model is trained for the start of v. Its l2 is also that of the lower loss.
        low, high: the range of the entries of all samples.
        batch_size, val_batch_size: samples of X and of X_val per step; None for all. Every batch has all points.
        start: parameters of a model that is already trained on X.
        room: the least number of rows of u. Rows after those of the points are zero, and have no part in the losses.
            Attacks with equal room share their compiled programs.

    Raises:
        InputError: entries outside low..high; samples of different shapes; more points than samples; labels without a
            logit of the model; `low` is not below `high`.

    Metrics: `val_loss` and `val_accuracy` of v; `moved`, the mean distance (l2) of a point from its start.

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
    return _added_points_task(model, X, y, X_val, y_val, points, -1.0, key, training, (low, high), sizes, start, room)


def targeted_task(
    model: Model,
    X: Shaped[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    X_val: Shaped[ArrayLike, "n_val ..."],
    y_val: Int[ArrayLike, " n_val"],
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
    """Return the task of the targeted attack: points that make the model assign one class to another (eq. 11).

    As `untargeted_task`, but f is the mean cross-entropy of the validation samples of class `source` with the label
    `target`.

    Args:
        source: the class whose samples are to be misclassified.
        target: the class that the model is to assign them to.
        points: the start of the added samples, for example by `swapped`.
        model, X, y, X_val, y_val, key, training, low, high, batch_size, val_batch_size, start: as for
            `untargeted_task`.

    Raises:
        InputError: as for `untargeted_task`; `source` equals `target`, or one of them is not in y; no sample of X_val
            is of class `source`.

    Metrics: as for `untargeted_task`, of the validation samples of class `source` with the label `target`:
    `val_accuracy` is the share that the model assigns to `target`.
    """
    X_val, y_val = integer_samples("X_val", X_val, "y_val", y_val)
    check_class_pair(np.asarray(y), source, target)
    chosen = y_val == source
    if not chosen.any():
        raise InputError(
            f"y_val has no sample of class {source}, which is to be misclassified. Add samples of that class."
        )
    X_val, y_val = X_val[chosen], np.full(chosen.sum(), target)
    sizes = batch_size, val_batch_size
    return _added_points_task(model, X, y, X_val, y_val, points, 1.0, key, training, (low, high), sizes, start)


def _added_points_task(
    model: Model,
    X: Shaped[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    X_val: Shaped[ArrayLike, "n_val ..."],
    y_val: Int[ArrayLike, " n_val"],
    points: Points,
    sign: float,
    key: PRNGKeyArray,
    training: Training,
    limits: tuple[float, float],
    sizes: tuple[int | None, int | None],
    start: PyTree | None,
    room: int = 0,
) -> Task:
    X, y = integer_samples("X", X, "y", y)
    low, high = limits
    if not low < high:
        raise InputError(
            f"low is {low:g} and high is {high:g}: low must be less than high. Pass the least and the largest entry."
        )
    require_training(training)
    base = floats(points.x, "points.x")
    check_budget(len(base), len(y))
    x, x_val = floats(X), floats(X_val)
    for name, samples in (("X", x), ("X_val", x_val), ("points.x", base)):
        check_samples(name, samples, x.shape[1:], low, high)
    classes = logit_count(model, x, key)
    y, y_val, labels = (one_hot_of(n, a, classes) for n, a in (("y", y), ("y_val", y_val), ("points.y", points.y)))
    v = trained(model, training, x, y, key) if start is None else start
    clean, validation = (jnp.asarray(x), y), (jnp.asarray(x_val), y_val)
    source = Epochs(validation, clean, upper_size=sizes[1], lower_size=sizes[0])
    share = jnp.asarray(len(base) / (len(base) + len(x)), x.dtype)
    # The mean over all rows of u of these labels' losses is the mean over the points.
    spare = max(room - len(base), 0)
    labels = jnp.asarray(filled(np.asarray(labels), spare) * ((len(base) + spare) / len(base)))
    upper, lower = _ValidationLoss(model, sign), _PoisonedLoss(model, training.l2)
    problem = Problem(upper, lower, project_upper=Clip(float(low), float(high)), random_lower=True)
    truth = np.asarray(y_val).argmax(1)

    def metrics(u: Float[Array, "m ..."], v: PyTree) -> dict[str, float]:
        p = probabilities(model, v, validation[0])
        return {
            "val_loss": float(one_hot_cross_entropy(model, v, *map(jnp.asarray, validation))),
            "val_accuracy": float((p.argmax(1) == truth).mean()),
            "moved": float(distances(u[: len(base)], base).mean()),
        }

    return Task(problem, (jnp.asarray(filled(base, spare)), v), _WithPoints(source, labels, share), metrics)
