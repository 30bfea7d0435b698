"""Hyperparameters of a classifier."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bilevax._checks import InputError, listed


@dataclass(frozen=True)
class Hyperparameter:
    """One kind of hyperparameter: where it starts, its bounds, and where it enters the training loss.

    Args:
        name: its key in u.
        start: (v, x, classes) -> the array that u holds at first.
        low, high: bounds of every entry of that array.
        natural: from that array to natural units, for example from a logarithm to a strength.
        inputs: (u, x, key) -> x, a changed batch of features.
        targets: (u, targets) -> targets, both (n, classes).
        weights: (u, y) -> weight of each sample (n,); only their ratios matter.
        penalty: (u, v) -> a scalar that is added to the loss.
    """

    name: str
    start: Callable[[PyTree, Float[Array, "n ..."], int], Float[Array, "..."]]
    low: float
    high: float
    natural: Callable[[Float[Array, "..."]], Float[Array, "..."]] = jnp.exp
    inputs: Callable[[Float[Array, "..."], Float[Array, "n ..."], PRNGKeyArray], Float[Array, "n ..."]] | None = None
    targets: Callable[[Float[Array, "..."], Float[Array, "n classes"]], Float[Array, "n classes"]] | None = None
    weights: Callable[[Float[Array, "..."], Int[Array, " n"]], Float[Array, " n"]] | None = None
    penalty: Callable[[Float[Array, "..."], PyTree], Float[Array, ""] | float] | None = None


def _matrices(v: PyTree) -> list[Float[Array, "..."]]:
    return [p for p in jax.tree.leaves(v) if jnp.ndim(p) > 1]


def _first_layer(v: PyTree, features: int) -> Float[Array, "features width"]:
    found = [p for p in _matrices(v) if jnp.ndim(p) == 2 and jnp.shape(p)[0] == features]
    if not found:
        raise InputError(
            f"feature_l2: the model has no matrix with one row for each of {features} features; its matrices have "
            f"shapes {listed([jnp.shape(p) for p in _matrices(v)])}. Use layer_l2 for such a model."
        )
    return found[0]


def _feature_start(v: PyTree, x: Float[Array, "n ..."], classes: int) -> Float[Array, " features"]:
    features = int(np.prod(jnp.shape(x)[1:]))
    _first_layer(v, features)
    return jnp.full(features, -5.0)


def _feature_penalty(u: Float[Array, " features"], v: PyTree) -> Float[Array, ""]:
    return jnp.sum(jnp.exp(u)[:, None] * _first_layer(v, len(u)) ** 2) / 2


FEATURE_L2 = Hyperparameter("feature_l2", _feature_start, -10.0, 2.0, penalty=_feature_penalty)
"""exp(u_j)/2 times the squares of row j of the first layer: one strength per feature."""
LAYER_L2 = Hyperparameter(
    "layer_l2",
    lambda v, x, classes: jnp.full(len(_matrices(v)), -6.0),
    -12.0,
    2.0,
    penalty=lambda u, v: sum(jnp.exp(a) * jnp.sum(p**2) / 2 for a, p in zip(u, _matrices(v), strict=True)),
)
"""exp(u_l)/2 times the squares of the l-th matrix of v: one strength per layer."""
CLASS_WEIGHTS = Hyperparameter(
    "class_weights", lambda v, x, classes: jnp.zeros(classes), -3.0, 3.0, weights=lambda u, y: jnp.exp(u)[y]
)
"""A sample of class c counts exp(u_c) times."""
LABEL_SMOOTHING = Hyperparameter(
    "label_smoothing",
    lambda v, x, classes: jnp.full((), -3.0),
    -8.0,
    3.0,
    natural=jax.nn.sigmoid,
    targets=lambda u, t: (1 - jax.nn.sigmoid(u)) * t + jax.nn.sigmoid(u) / t.shape[1],
)
"""The part sigmoid(u) of each target is spread evenly over the classes (Szegedy et al. 2016)."""
INPUT_NOISE = Hyperparameter(
    "input_noise",
    lambda v, x, classes: jnp.full((), -3.0),
    -8.0,
    1.0,
    inputs=lambda u, x, key: x + jnp.exp(u) * jax.random.normal(key, x.shape, x.dtype),
)
"""Gaussian noise of standard deviation exp(u), in the units of the features, drawn again in each update of v."""


def _one_per_sample(x: Float[Array, "n ..."], key: PRNGKeyArray) -> Float[Array, "n ..."]:
    return jax.random.normal(key, (x.shape[0],) + (1,) * (x.ndim - 1), x.dtype)


BRIGHTNESS = Hyperparameter(
    "brightness",
    lambda v, x, classes: jnp.full((), -3.0),
    -8.0,
    1.0,
    inputs=lambda u, x, key: x + jnp.exp(u) * _one_per_sample(x, key),
)
"""A Gaussian shift of standard deviation exp(u), one for all features of a sample."""


def _contrast(u: Float[Array, ""], x: Float[Array, "n ..."], key: PRNGKeyArray) -> Float[Array, "n ..."]:
    middle = jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
    return middle + (x - middle) * jnp.exp(jnp.exp(u) * _one_per_sample(x, key))


CONTRAST = Hyperparameter("contrast", lambda v, x, classes: jnp.full((), -3.0), -8.0, 0.0, inputs=_contrast)
"""The deviations of each sample from its mean are multiplied by a log-normal factor, of log deviation exp(u)."""
