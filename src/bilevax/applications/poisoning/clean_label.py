"""Points with right labels that get one target misclassified."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    Poisoned,
    all_classes,
    check_budget,
    check_class_pair,
    check_samples,
    one_hot_of,
    trained,
)
from bilevax.applications.task import Task
from bilevax.loop.sources import Fixed, Samples
from bilevax.nn.model import Model
from bilevax.nn.training import Training, one_hot_cross_entropy, penalised, probabilities
from bilevax.problem import Batch, Inequality, Problem


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


def euclidean(x: Any, base: Any) -> Any:
    """The Euclidean distance (m,) of each sample from its base; its derivative is zero where they meet."""
    return jnp.sqrt(jnp.sum(jnp.square(x - base).reshape(len(x), -1), 1) + jnp.finfo(x.dtype).tiny ** 0.5)


@dataclass(frozen=True)
class _Misclassified:
    """The upper loss: the target's cross-entropy with the base's class, plus the features' distance from its own."""

    head: Model
    features: Callable[..., Any]
    collision: float

    def __call__(self, u: Any, v: PyTree, target: Target) -> Any:
        apart = jnp.sum(jnp.square(self.features(target.params, u) - target.features), 1)
        mistaken = one_hot_cross_entropy(self.head, v, target.features[None], target.label[None])
        return mistaken + self.collision * jnp.mean(apart)


@dataclass(frozen=True)
class _HeadLoss:
    """The lower loss: the mean cross-entropy on the features of clean samples and points together, penalised."""

    head: Model
    features: Callable[..., Any]
    l2: float

    def __call__(self, u: Any, v: PyTree, data: tuple[Poisoned, PyTree], *, key: PRNGKeyArray) -> Any:
        poisoned, params = data
        clean = one_hot_cross_entropy(self.head, v, *poisoned.clean.data, key=key)
        added = one_hot_cross_entropy(self.head, v, self.features(params, u), poisoned.labels, key=key)
        return penalised((1 - poisoned.share) * clean + poisoned.share * added, self.l2, v)


@dataclass(frozen=True)
class _Beyond:
    """The constraint: how much further a point is from its base than it may be, (m,)."""

    distance: Callable[[Any, Any], Any]

    def __call__(self, u: Any, v: PyTree, target: Target) -> Any:
        return self.distance(u, target.base) - target.eps


def clean_label_task(
    head: Model,
    features: FeatureMap,
    X: ArrayLike,
    y: ArrayLike,
    target: ArrayLike,
    target_class: int,
    base: ArrayLike,
    base_class: int,
    *,
    eps: float,
    key: PRNGKeyArray,
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
    X, y = integer_samples("X", X, "y", y)
    check_class_pair(y, target_class, base_class)
    require_training(training)
    x, base = floats(X), floats(base, "base")
    # With the axis of samples, by which images differ from tables.
    aim = floats(np.asarray(target)[None], "target")
    for name, samples in (("X", x), ("base", base), ("target", aim)):
        check_samples(name, samples, x.shape[1:], low, high)
    check_budget(len(base), len(y))
    r = jax.jit(features.apply)
    found = r(features.params, jnp.asarray(x))
    if jnp.ndim(found) != 2 or len(found) != len(x):
        raise InputError(f"features maps {len(x)} samples to {jnp.shape(found)}, and must map them to ({len(x)}, d).")
    target_features = r(features.params, jnp.asarray(aim))[0]
    classes = all_classes(head, found, key)
    one_hot = one_hot_of("y", y, classes)
    v = trained(head, training, found, one_hot, key) if start is None else start
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
    problem = Problem(
        _Misclassified(head, features.apply, float(collision)),
        _HeadLoss(head, features.apply, training.l2),
        () if distance is None else (Inequality(_Beyond(distance)),),
        Clip(float(low), float(high)),
        random_lower=True,
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
    """The indices of the samples that a head v classifies rightly: possible targets of a clean-label attack."""
    X, y = integer_samples("X", X, "y", y)
    p = probabilities(head, v, features.apply(features.params, jnp.asarray(floats(X))))
    return np.flatnonzero(p.argmax(1) == y)
