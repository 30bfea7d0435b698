"""The clean-label attack, as a task: points with right labels that make the model misclassify one sample.

u are the points, moved within a bound that keeps them inconspicuous (Mehra and Hamm 2021, eqs. 5 and 12).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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
    Poisoned,
    check_budget,
    check_class_pair,
    check_samples,
    logit_count,
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

    apply: Callable[[PyTree, Float[Array, "n ..."]], Float[Array, "n d"]]
    params: PyTree = ()


class Target(NamedTuple):
    """The upper batch of a clean-label attack.

    Attributes:
        features: features of the sample that is to be misclassified.
        label: one-hot label of the class that the model is to assign to it.
        base: the samples that the points start from.
        eps: the largest distance of a point from its base sample.
        params: parameters of the feature map.
    """

    features: Float[Array, " d"]
    label: Float[Array, " classes"]
    base: Float[Array, "m ..."]
    eps: Float[Array, ""]
    params: PyTree


def euclidean(x: Float[Array, "m ..."], base: Float[Array, "m ..."]) -> Float[Array, " m"]:
    """Return the Euclidean distance of each sample from its base sample; its derivative at distance zero is zero."""
    return jnp.sqrt(jnp.sum(jnp.square(x - base).reshape(len(x), -1), 1) + jnp.finfo(x.dtype).tiny ** 0.5)


@dataclass(frozen=True)
class _Misclassified:
    """The upper loss: the target's cross-entropy with the base's class, plus the weighted feature distance."""

    head: Model
    features: Callable[..., Float[Array, "m d"]]
    collision: float

    def __call__(self, u: Float[Array, "m ..."], v: PyTree, target: Target) -> Float[Array, ""]:
        apart = jnp.sum(jnp.square(self.features(target.params, u) - target.features), 1)
        mistaken = one_hot_cross_entropy(self.head, v, target.features[None], target.label[None])
        return mistaken + self.collision * jnp.mean(apart)


@dataclass(frozen=True)
class _HeadLoss:
    """The lower loss: the mean cross-entropy on the features of clean samples and points, plus the l2 penalty."""

    head: Model
    features: Callable[..., Float[Array, "m d"]]
    l2: float

    def __call__(
        self, u: Float[Array, "m ..."], v: PyTree, data: tuple[Poisoned, PyTree], *, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        poisoned, params = data
        clean = one_hot_cross_entropy(self.head, v, *poisoned.clean.data, key=key)
        added = one_hot_cross_entropy(self.head, v, self.features(params, u), poisoned.labels, key=key)
        return penalised((1 - poisoned.share) * clean + poisoned.share * added, self.l2, v)


@dataclass(frozen=True)
class _Beyond:
    """The constraint: the distance of each point from its base sample minus eps."""

    distance: Callable[[Float[Array, "m ..."], Float[Array, "m ..."]], Float[Array, " m"]]

    def __call__(self, u: Float[Array, "m ..."], v: PyTree, target: Target) -> Float[Array, " m"]:
        return self.distance(u, target.base) - target.eps


def require_radius(eps: float) -> None:
    """Refuse a bound on the distance that is not positive."""
    if not eps > 0:
        raise InputError(f"eps is {eps}, and must be positive, so that the points can move.")


def clean_label_task(
    head: Model,
    features: FeatureMap,
    X: Shaped[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    target: Shaped[ArrayLike, "..."],
    target_class: int,
    base: Shaped[ArrayLike, "m ..."],
    base_class: int,
    *,
    eps: float,
    key: PRNGKeyArray,
    distance: Callable[[Float[Array, "m ..."], Float[Array, "m ..."]], Float[Array, " m"]] | None = euclidean,
    collision: float = 1.0,
    training: Training = SOFTMAX_TRAINING,
    low: float = 0.0,
    high: float = 1.0,
    start: PyTree | None = None,
) -> Task:
    """Return the task of the clean-label attack: points with right labels that make the model misclassify one sample.

    u (m, ...) starts at the base samples and keeps their class; v is a head, trained on the features of the training
    set and of u (eqs. 5 and 12). f is the cross-entropy of the target with the base's class, plus `collision` times the
    mean squared distance of the points' features from the target's. The constraint is distance(u, base) <= eps for each
    point; u is projected onto low..high.

    Args:
        head: maps features (n, d) to logits, such as `softmax_head`.
        features: the map r, which is fixed.
        X, y: training samples (n, ...) and integer labels 0..classes-1 (n,). Images of uint8 are read as 0..1.
        target, target_class: the sample (...) that is to be misclassified, and its class.
        base, base_class: the samples (m, ...) that the points start from, and their class, which the model is to assign
            to the target.
        eps: the largest distance of a point from its base sample; positive.
        key: a jax.random key, for the head's initialisation.
        distance: (x, base) -> (m,), any differentiable function. None makes a task without the constraint, for
            `WithinBall`.
        collision: weight of the feature distance.
        training: how the head is trained for the start of v. Its l2 is also that of the lower loss.
        low, high: the range of the entries of all samples.
        start: parameters of a head that is already trained on X.

    Raises:
        InputError: eps is not positive; target and base have the same class, or a class that y lacks; entries outside
            low..high; samples of different shapes; features that are not (n, d); a head that misclassifies the target
            without any added sample.

    Metrics: `target_probability`, the probability of the base's class for the target; `distance`, the largest distance
    of a point from its base sample; `feature_distance`, the mean distance of the points' features from the target's.
    """
    require_radius(eps)
    X, y = integer_samples("X", X, "y", y)
    check_class_pair(y, target_class, base_class)
    require_training(training)
    x, base = floats(X), floats(base, "base")
    # `floats` needs the axis of samples, by which it distinguishes images from tables.
    aim = floats(np.asarray(target)[None], "target")
    for name, samples in (("X", x), ("base", base), ("target", aim)):
        check_samples(name, samples, x.shape[1:], low, high)
    check_budget(len(base), len(y))
    r = jax.jit(features.apply)
    found = r(features.params, jnp.asarray(x))
    if jnp.ndim(found) != 2 or len(found) != len(x):
        raise InputError(f"features maps {len(x)} samples to {jnp.shape(found)}, and must map them to ({len(x)}, d).")
    target_features = r(features.params, jnp.asarray(aim))[0]
    classes = logit_count(head, found, key)
    one_hot = one_hot_of("y", y, classes)
    v = trained(head, training, found, one_hot, key) if start is None else start
    predicted = int(probabilities(head, v, target_features[None]).argmax())
    if predicted != target_class:
        raise InputError(
            f"The head predicts class {predicted} for the target without any added sample; its class is {target_class}."
            " Choose another target: `well_classified` returns the samples that the head classifies correctly."
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

    def metrics(u: Float[Array, "m ..."], v: PyTree) -> dict[str, float]:
        apart = jnp.linalg.norm(r(features.params, u) - target_features, axis=1)
        far = euclidean if distance is None else distance
        return {
            "target_probability": float(probabilities(head, v, target_features[None])[0, base_class]),
            "distance": float(jnp.max(far(u, bounds.base))),
            "feature_distance": float(jnp.mean(apart)),
        }

    batch = Batch(bounds, (poisoned, features.params))
    return Task(problem, (jnp.asarray(base), v), Fixed(batch), metrics)


def well_classified(
    head: Model, features: FeatureMap, v: PyTree, X: Shaped[ArrayLike, "n ..."], y: Int[ArrayLike, " n"]
) -> Int[np.ndarray, " right"]:
    """Return the indices of the samples that a head v classifies correctly: the possible targets of an attack."""
    X, y = integer_samples("X", X, "y", y)
    p = probabilities(head, v, features.apply(features.params, jnp.asarray(floats(X))))
    return np.flatnonzero(p.argmax(1) == y)
