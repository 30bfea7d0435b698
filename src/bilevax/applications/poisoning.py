"""Training-data poisoning, for the audit of one's own pipeline: what could someone who adds a few samples do to it?

u are the added samples, v the model that is trained on them and on all others. The untargeted attack makes the trained
model as bad as it can, the targeted one has samples of one class taken for another (Mehra and Hamm 2021, eq. 11).
The clean-label attack moves samples that keep their right labels, within a bound that keeps them inconspicuous, until
one sample is misclassified (eqs. 5 and 12). Each is a Task, on which every solver runs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevax.applications._inputs import labels as label_each
from bilevax.applications._inputs import numeric, require_training
from bilevax.applications.task import Task
from bilevax.applications.training import Training, penalised, probabilities, train
from bilevax.batches import Epochs, Fixed, Samples, Source
from bilevax.linear_solve import ByOptimizer
from bilevax.models import Model, initial, logits, pixels
from bilevax.problem import Batch, Inequality, InputError, Problem, PyTree, listed, require_count
from bilevax.solvers import Implicit, Penalty, ReverseMode

LOWER_STEPS = 20
SOFTMAX_TRAINING = Training(steps=2000, rate=2e-2, l2=1e-2)


class Points(NamedTuple):
    """Samples that someone adds: `x` (m, ...) and the labels `y` (m,) that they carry."""

    x: Any
    y: Any


class Poisoned(NamedTuple):
    """A lower batch.

    Attributes:
        clean: Samples of (x, one-hot y).
        labels: (m, classes) one-hot, of the added points.
        share: of the added points among all samples.
    """

    clean: Samples
    labels: Any
    share: Any


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

    def at(self, step: Any, key: Any) -> Batch:
        """The batch of a step."""
        batch = self.source.at(step, key)
        return Batch(batch.upper, Poisoned(batch.lower, self.labels, self.share))


class FeatureMap(NamedTuple):
    """A differentiable map `apply(params, x)` from samples (n, ...) to features (n, d), with its parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.applications.poisoning import FeatureMap
        >>> halves = FeatureMap(lambda params, x: params * x.reshape(len(x), -1), jnp.asarray(0.5))
        >>> halves.apply(halves.params, jnp.ones((2, 4, 4))).shape
        (2, 16)
    """

    apply: Callable[[PyTree, Any], Any]
    params: PyTree = ()


class Target(NamedTuple):
    """The upper batch of a clean-label attack.

    Attributes:
        features: (d,) of the sample that is to be misclassified.
        label: (classes,) one-hot, what it is to be taken for.
        base: (m, ...) the samples that the points start from.
        eps: how far a point may be from its base, in units of the distance.
        params: of the feature map.
    """

    features: Any
    label: Any
    base: Any
    eps: Any
    params: PyTree


def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Penalty:
    """Penalty as used here, for so many steps.

    f, the loss of someone else's aim, may fall without bound in v; lam g, ten times gamma, holds v at the trained
    model, and the multipliers, which move at every step, take up the rest: they tend to -(grad2_vv g)^-1 grad_v f at
    a rate of gamma / lam (see `Penalty`).
    """
    return Penalty(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        optax.adam(optax.cosine_decay_schedule(1e-3, steps * lower_steps)),
        lower_steps,
        gamma=1.0,
        lam=10.0,
        nu=1.0,
        step_scale=1.0,
        stage_steps=1,
    )


def clean_label_solver(steps: int, lower_steps: int = 10) -> Penalty:
    """Penalty for `clean_label_task`: its multipliers move at every tenth step, so that u can follow the bound's."""
    return Penalty(
        optax.adam(optax.cosine_decay_schedule(0.01, steps)),
        optax.adam(optax.cosine_decay_schedule(1e-2, steps * lower_steps)),
        lower_steps,
        gamma=1.0,
        lam=30.0,
        nu=1.0,
        step_scale=1.0,
        stage_steps=10,
    )


def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Implicit:
    """ApproxGrad: as many moves of its linear solve as of v, by Adam, going on from step to step."""
    return Implicit(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        optax.adam(optax.cosine_decay_schedule(1e-3, steps * lower_steps)),
        lower_steps,
        ByOptimizer(optax.adam(1e-3), steps=lower_steps),
    )


def reverse_solver(steps: int, lower_steps: int = LOWER_STEPS) -> ReverseMode:
    """Back-gradient descent (Munoz-Gonzalez et al., AISec 2017): the last T moves of training are differentiated."""
    return ReverseMode(optax.adam(optax.cosine_decay_schedule(0.03, steps)), optax.sgd(0.1), lower_steps)


def cross_entropy(model: Model, v: PyTree, x: Any, labels: Any, key: Any = None) -> Any:
    """The mean cross-entropy of one-hot labels (n, classes)."""
    return jnp.mean(optax.softmax_cross_entropy(logits(model, v, x, key), labels))


@functools.cache
def _clip(low: float, high: float) -> Callable[[PyTree], PyTree]:
    return lambda u: jax.tree.map(lambda x: jnp.clip(x, low, high), u)


@functools.cache
def _added_points_problem(model: Model, l2: float, low: float, high: float, sign: float) -> Problem:
    """The one problem object of a model: an equal one is not compiled again."""

    def upper_loss(u: Any, v: PyTree, validation: Samples) -> Any:
        return sign * cross_entropy(model, v, *validation.data)

    def lower_loss(u: Any, v: PyTree, data: Poisoned, key: Any = None) -> Any:
        clean = cross_entropy(model, v, *data.clean.data, key=key)
        added = cross_entropy(model, v, u, data.labels, key=key)
        return penalised((1 - data.share) * clean + data.share * added, l2, v)

    return Problem(upper_loss, lower_loss, project_upper=_clip(low, high))


def wrongly_labelled(X: Any, y: Any, count: int, *, key: Any) -> Points:
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
    X, y = _data("X", X, "y", y)
    _check_budget(count, len(y))
    classes = np.unique(y)
    if len(classes) < 2:
        raise InputError(f"y has one class only ({classes[0]}), so no label can be wrong. Two are needed.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = rng.choice(len(y), count, replace=False)
    place = np.searchsorted(classes, y[chosen])
    wrong = (place + rng.integers(1, len(classes), count)) % len(classes)
    return Points(_floats(X)[chosen], classes[wrong])


def swapped(X: Any, y: Any, count: int, source: int, target: int, *, key: Any) -> Points:
    """Random samples of two classes, each labelled as the other: where the targeted attack starts.

    Args:
        X, y: samples (n, ...) and integer labels (n,).
        count: how many to add; at most as many as the two classes have.
        source, target: the class that is to be misclassified, and the one it is to be taken for.
        key: a jax.random key.

    Raises:
        InputError: the two are one class or not in y; the count is not positive, or above what they have.
    """
    X, y = _data("X", X, "y", y)
    _check_classes(y, source, target)
    pool = np.flatnonzero((y == source) | (y == target))
    _check_budget(count, len(pool), f"the samples of classes {source} and {target}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = rng.choice(pool, count, replace=False)
    return Points(_floats(X)[chosen], np.where(y[chosen] == source, target, source))


def untargeted_task(
    model: Model,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    points: Points,
    *,
    key: Any,
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
        >>> from bilevax.datasets import digits
        >>> from bilevax.models import softmax_head
        >>> d, key = digits(), jax.random.key(0)
        >>> X, y, X_val, y_val = d.x_train[:200], d.y_train[:200], d.x_train[200:400], d.y_train[200:400]
        >>> points = wrongly_labelled(X, y, 6, key=key)
        >>> task = untargeted_task(softmax_head(10), X, y, X_val, y_val, points, key=key)
        >>> result = solve(penalty_solver(steps=5), task.problem, *task.start, task.batches, steps=5, key=key)
        >>> result.u.shape == points.x.shape
        True
    """
    X_val, y_val = _data("X_val", X_val, "y_val", y_val)
    sizes = batch_size, val_batch_size
    return _added_points_task(model, X, y, X_val, y_val, points, -1.0, key, training, (low, high), sizes, start)


def targeted_task(
    model: Model,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    points: Points,
    source: int,
    target: int,
    *,
    key: Any,
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
    X_val, y_val = _data("X_val", X_val, "y_val", y_val)
    _check_classes(np.asarray(y), source, target)
    chosen = y_val == source
    if not chosen.any():
        raise InputError(f"y_val has no sample of class {source}, which is the one to be misclassified. Add some.")
    X_val, y_val = X_val[chosen], np.full(chosen.sum(), target)
    sizes = batch_size, val_batch_size
    return _added_points_task(model, X, y, X_val, y_val, points, 1.0, key, training, (low, high), sizes, start)


def _added_points_task(
    model: Model,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    points: Points,
    sign: float,
    key: Any,
    training: Training,
    limits: tuple[float, float],
    sizes: tuple[int | None, int | None],
    start: PyTree | None,
) -> Task:
    X, y = _data("X", X, "y", y)
    low, high = limits
    if not low < high:
        raise InputError(f"low is {low:g} and high {high:g}: no range. Pass the least and the largest entry.")
    require_training(training)
    base = _floats(points.x, "points.x")
    _check_budget(len(base), len(y))
    x, x_val = _floats(X), _floats(X_val)
    for name, samples in (("X", x), ("X_val", x_val), ("points.x", base)):
        _check_samples(name, samples, x.shape[1:], low, high)
    classes = _classes(model, x, key)
    y, y_val, labels = (_one_hot(n, a, classes) for n, a in (("y", y), ("y_val", y_val), ("points.y", points.y)))
    v = _trained(model, training, x, y, key) if start is None else start
    clean, validation = (jnp.asarray(x), y), (jnp.asarray(x_val), y_val)
    source = Epochs(validation, clean, upper_size=sizes[1], lower_size=sizes[0])
    share = jnp.asarray(len(base) / (len(base) + len(x)), x.dtype)
    problem = _added_points_problem(model, training.l2, float(low), float(high), sign)
    truth = np.asarray(y_val).argmax(1)

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        p = probabilities(model, v, validation[0])
        return {
            "val_loss": float(cross_entropy(model, v, *validation)),
            "val_accuracy": float((p.argmax(1) == truth).mean()),
            "moved": float(distances(u, base).mean()),
        }

    return Task(problem, (jnp.asarray(base), v), _WithPoints(source, labels, share), metrics)


def euclidean(x: Any, base: Any) -> Any:
    """The Euclidean distance (m,) of each sample from its base; its derivative is zero where they meet."""
    return jnp.sqrt(jnp.sum(jnp.square(x - base).reshape(len(x), -1), 1) + jnp.finfo(x.dtype).tiny ** 0.5)


@functools.cache
def _clean_label_problem(
    head: Model,
    features: Callable[..., Any],
    l2: float,
    low: float,
    high: float,
    collision: float,
    distance: Callable[[Any, Any], Any] | None,
) -> Problem:
    def upper_loss(u: Any, v: PyTree, target: Target) -> Any:
        apart = jnp.sum(jnp.square(features(target.params, u) - target.features), 1)
        mistaken = cross_entropy(head, v, target.features[None], target.label[None])
        return mistaken + collision * jnp.mean(apart)

    def lower_loss(u: Any, v: PyTree, data: tuple[Poisoned, PyTree], key: Any = None) -> Any:
        poisoned, params = data
        clean = cross_entropy(head, v, *poisoned.clean.data, key=key)
        added = cross_entropy(head, v, features(params, u), poisoned.labels, key=key)
        return penalised((1 - poisoned.share) * clean + poisoned.share * added, l2, v)

    if distance is None:
        return Problem(upper_loss, lower_loss, project_upper=_clip(low, high))

    def beyond(u: Any, v: PyTree, target: Target) -> Any:
        return distance(u, target.base) - target.eps

    return Problem(upper_loss, lower_loss, (Inequality(beyond),), _clip(low, high))


def clean_label_task(
    head: Model,
    features: FeatureMap,
    X: Any,
    y: Any,
    target: Any,
    target_class: int,
    base: Any,
    base_class: int,
    *,
    eps: float,
    key: Any,
    distance: Callable[[Any, Any], Any] | None = euclidean,
    collision: float = 1.0,
    training: Training = SOFTMAX_TRAINING,
    low: float = 0.0,
    high: float = 1.0,
    start: PyTree | None = None,
) -> Task:
    """Points with their right labels that, added to the training set, have one sample misclassified (eqs. 5 and 12).

    u (m, ...) starts at the base samples and keeps their class; v is a head, trained on the features of the training
    set and of u. f is the cross-entropy of the target taken for the base's class plus `collision` times the mean
    squared distance of the points' features from the target's; the constraint is distance(u, base) <= eps for each
    point, and low..high is held by projection.

    Args:
        head: maps features (n, d) to logits, such as `softmax_head`.
        features: the map r, held fixed.
        X, y: training samples (n, ...) and integer labels 0..classes-1 (n,). Images of uint8 are read as 0..1.
        target, target_class: the sample (...) that is to be misclassified, and its class.
        base, base_class: the samples (m, ...) that the points start from, and their class: what the target is to be
            taken for.
        eps: how far a point may be from its base; positive.
        key: a jax.random key, for the head's initialisation.
        distance: (x, base) -> (m,), any differentiable function; None leaves the constraint out, for solvers that
            keep it in another way.
        collision: weight of the feature distance.
        training: how the head is trained at the start; its l2 is that of the lower loss, too.
        low, high: the range of the samples' entries.
        start: parameters of a head trained on X already.

    Raises:
        InputError: eps is not positive; target and base are of one class, or of one that y lacks; samples out of range
            or not alike; features that are not (n, d); a head that takes the target for another class already.

    Metrics: target_probability, that of the base's class for the target; distance, the largest of a point from its
    base; feature_distance, the mean of the points' features from the target's.
    """
    if not eps > 0:
        raise InputError(f"eps is {eps}, and must be positive: with none, no point may move.")
    X, y = _data("X", X, "y", y)
    _check_classes(y, target_class, base_class)
    require_training(training)
    x, base = _floats(X), _floats(base, "base")
    target = _floats(np.asarray(target)[None], "target")[
        0
    ]  # with the axis of samples, as what tells images from tables
    for name, samples in (("X", x), ("base", base), ("target", target[None])):
        _check_samples(name, samples, x.shape[1:], low, high)
    _check_budget(len(base), len(y))
    r = jax.jit(features.apply)
    found = r(features.params, jnp.asarray(x))
    if jnp.ndim(found) != 2 or len(found) != len(x):
        raise InputError(f"features maps {len(x)} samples to {jnp.shape(found)}, and must map them to ({len(x)}, d).")
    target_features = r(features.params, jnp.asarray(target)[None])[0]
    classes = _classes(head, found, key)
    one_hot = _one_hot("y", y, classes)
    v = _trained(head, training, found, one_hot, key) if start is None else start
    taken = int(probabilities(head, v, target_features[None]).argmax())
    if taken != target_class:
        raise InputError(
            f"The target is taken for class {taken} already, without any added sample; its class is {target_class}. "
            "Choose another target: `well_classified` lists those that the model gets right."
        )
    label = jax.nn.one_hot(base_class, classes, dtype=found.dtype)
    m = len(base)
    poisoned = Poisoned(
        Samples((found, one_hot), jnp.arange(len(x))),
        jnp.tile(label, (m, 1)),
        jnp.asarray(m / (m + len(x)), found.dtype),
    )
    bounds = Target(target_features, label, jnp.asarray(base), jnp.asarray(eps, found.dtype), features.params)
    problem = _clean_label_problem(
        head, features.apply, training.l2, float(low), float(high), float(collision), distance
    )

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        apart = jnp.linalg.norm(r(features.params, u) - target_features, axis=1)
        far = euclidean if distance is None else distance
        return {
            "target_probability": float(probabilities(head, v, target_features[None])[0, base_class]),
            "distance": float(jnp.max(far(u, bounds.base))),
            "feature_distance": float(jnp.mean(apart)),
        }

    batch = Batch(bounds, (poisoned, features.params))
    return Task(problem, (jnp.asarray(base), v), Fixed(batch), metrics)


def well_classified(head: Model, features: FeatureMap, v: PyTree, X: Any, y: Any) -> np.ndarray:
    """The indices of the samples that a head v takes for their own class: what a clean-label attack can aim at."""
    X, y = _data("X", X, "y", y)
    p = probabilities(head, v, features.apply(features.params, jnp.asarray(_floats(X))))
    return np.flatnonzero(p.argmax(1) == y)


def retrained(model: Model, training: Training, X: Any, y: Any, points: Points | None, *, key: Any) -> PyTree:
    """Parameters of a model trained from its start on clean samples and points: how an attack is judged.

    Args:
        model, training, X, y: as for `untargeted_task`.
        points: the samples that are added; None for none.
        key: a jax.random key.
    """
    X, y = _data("X", X, "y", y)
    x = _floats(X)
    if points is not None:
        x, y = np.concatenate([x, np.asarray(points.x, x.dtype)]), np.concatenate([y, np.asarray(points.y)])
    return train(model, training, jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.ones(len(y)), key)


def distances(x: Any, base: Any) -> np.ndarray:
    """The Euclidean distance (m,) of each sample from its base."""
    return np.linalg.norm((np.asarray(x) - np.asarray(base)).reshape(len(x), -1), axis=1)


def _trained(model: Model, training: Training, x: Any, one_hot: Any, key: Any) -> PyTree:
    labels = jnp.argmax(one_hot, 1).astype(jnp.int32)
    return train(model, training, jnp.asarray(x), labels, jnp.ones(len(labels)), key)


def _data(x_name: str, X: Any, y_name: str, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, found = numeric(x_name, X), label_each(y_name, y)
    if not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"{y_name} has shape {found.shape} and dtype {found.dtype}, and must have one integer label per sample: "
            "(n,) of 0..classes-1."
        )
    if x.ndim < 2 or len(x) != len(found) or 0 in x.shape:
        raise InputError(
            f"{x_name} has shape {x.shape} and {y_name} {len(found)} labels. One row per sample, and one label each, "
            "are needed."
        )
    return x, found


def _floats(x: Any, name: str = "X") -> np.ndarray:
    """Samples as floats of JAX's default precision; images of bytes as 0..1."""
    dtype = jnp.result_type(float)
    return np.asarray(pixels(numeric(name, x), dtype)).astype(dtype)


def _check_samples(name: str, x: np.ndarray, shape: tuple[int, ...], low: float, high: float) -> None:
    if x.shape[1:] != shape:
        raise InputError(f"{name} has samples of shape {x.shape[1:]}, and X of {shape}. They must be alike.")
    if x.min() < low or x.max() > high:
        raise InputError(
            f"{name} has entries from {x.min():g} to {x.max():g}, outside {low:g}..{high:g}. Scale the samples, or "
            "pass their range as low and high."
        )


def _check_budget(count: Any, available: int, what: str = "the training samples") -> None:
    count = require_count("The attack", "the number of points", count)
    if count > available:
        raise InputError(
            f"{count} points are more than {what}, of which there are {available}. An attack adds a few: lower it."
        )


def _check_classes(y: np.ndarray, source: int, target: int) -> None:
    if source == target:
        raise InputError(f"source and target are both class {source}. Name two different classes.")
    known = np.unique(y)
    for name, label in (("source", source), ("target", target)):
        if label not in known:
            raise InputError(f"{name} is class {label!r}, which y does not have. y has {listed(known)}.")


def _classes(model: Model, x: np.ndarray, key: Any) -> int:
    """How many logits a model gives."""
    shape = jax.eval_shape(lambda x: logits(model, initial(model, key, x), x), jnp.asarray(x[:2])).shape
    if len(shape) != 2:
        raise InputError(f"The model gives an output of shape {shape} for 2 samples, and must give (2, classes).")
    return shape[1]


def _one_hot(name: str, y: Any, classes: int) -> Any:
    y = np.asarray(y)
    if y.min() < 0 or y.max() >= classes:
        wrong = np.unique(y[(y < 0) | (y >= classes)])
        raise InputError(f"{name} has labels {listed(wrong)}, and the model gives {classes} logits: 0..{classes - 1}.")
    return jax.nn.one_hot(y, classes, dtype=jnp.result_type(float))
