"""Added points: their types, their checks, and training with them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, listed, require_count
from bilevax.applications._inputs import floats, integer_samples
from bilevax.loop.sources import Samples
from bilevax.nn.model import Model, initial, logits, measures
from bilevax.nn.training import Training, train

SOFTMAX_TRAINING = Training(steps=2000, rate=2e-2, l2=1e-2)


class Points(NamedTuple):
    """Samples that an attacker adds to the training set, and the labels given to them."""

    x: Float[np.ndarray | Array, "m ..."]
    y: Shaped[np.ndarray | Array, " m"]


class Poisoned(NamedTuple):
    """A lower batch.

    Attributes:
        clean: samples of (x, one-hot y).
        labels: one-hot labels of the added points.
        share: the number of added points over the number of all samples.
    """

    clean: Samples
    labels: Float[Array, "m classes"]
    share: Float[Array, ""]


@dataclass(frozen=True)
class Clip:
    """The projection onto the box low..high, as a value: equal boxes share compiled programs."""

    low: float
    high: float

    def __call__(self, u: PyTree) -> PyTree:
        """Return the nearest point of the box."""
        return optax.projections.projection_box(u, self.low, self.high)


def retrained(
    model: Model,
    training: Training,
    X: Shaped[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    points: Points | None,
    *,
    key: PRNGKeyArray,
    room: int = 0,
) -> PyTree:
    """Return the parameters of a new model trained on clean samples and points, to measure the effect of an attack.

    Args:
        model, training, X, y: as for `untargeted_task`.
        points: the added samples; None for none.
        key: a jax.random key, for the model's initialisation, its dropout and the order of the samples.
        room: the least number of rows for points, filled up by samples of weight 0. Trainings with equal room share a
            compiled program.
    """
    X, y = integer_samples("X", X, "y", y)
    x = floats(X)
    added = 0 if points is None else len(points.y)
    if points is not None:
        x, y = np.concatenate([x, np.asarray(points.x, x.dtype)]), np.concatenate([y, np.asarray(points.y)])
    spare = max(room - added, 0)
    x, y, weight = filled(x, spare), filled(y, spare), filled(np.ones(len(y), x.dtype), spare)
    return train(model, training, jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.asarray(weight), key)


def filled(rows: Shaped[np.ndarray, "n ..."], spare: int) -> Shaped[np.ndarray, "m ..."]:
    """Return an array with `spare` rows of zeros after its own."""
    return np.concatenate([rows, np.zeros((spare, *rows.shape[1:]), rows.dtype)])


def distances(x: Float[ArrayLike, "m ..."], base: Float[ArrayLike, "m ..."]) -> Float[np.ndarray, " m"]:
    """Return the Euclidean distance of each sample from its base sample."""
    apart = np.asarray(x) - np.asarray(base)
    return np.linalg.norm(apart.reshape(len(apart), -1), axis=1)


def trained(
    model: Model,
    training: Training,
    x: Float[ArrayLike, "n ..."],
    one_hot: Float[Array, "n classes"],
    key: PRNGKeyArray,
) -> PyTree:
    """Return the parameters of the model trained on samples with one-hot labels."""
    labels = jnp.argmax(one_hot, 1).astype(jnp.int32)
    return train(model, training, jnp.asarray(x), labels, jnp.ones(len(labels)), key)


def check_samples(name: str, x: np.ndarray, shape: tuple[int, ...], low: float, high: float) -> None:
    """Refuse samples of another shape than those of X, or with entries outside low..high."""
    if x.shape[1:] != shape:
        raise InputError(f"{name} has samples of shape {x.shape[1:]}, and X of {shape}. Give them the same shape.")
    if x.min() < low or x.max() > high:
        raise InputError(
            f"{name} has entries from {x.min():g} to {x.max():g}, outside {low:g}..{high:g}. Scale the samples, or "
            "pass their range as low and high."
        )


def check_budget(count: Any, available: int, what: str = "the training samples") -> None:
    """Refuse more points than there are samples."""
    count = require_count("The attack", "the number of points", count)
    if count > available:
        raise InputError(f"{count} points are more than {what}, of which there are {available}. Add fewer points.")


def check_class_pair(y: Int[np.ndarray, " n"], source: int, target: int) -> None:
    """Refuse a source or target class that y does not have, and a target that equals the source."""
    if source == target:
        raise InputError(f"source and target are both class {source}. Name two different classes.")
    known = np.unique(y)
    for name, label in (("source", source), ("target", target)):
        if label not in known:
            raise InputError(f"{name} is class {label!r}, which y does not have. y has {listed(known)}.")


def logit_count(model: Model, x: Float[ArrayLike, "n ..."], key: PRNGKeyArray) -> int:
    """Return the number of logits of a model.

    Raises:
        InputError: the model does not map two samples to (2, classes); it has batch normalisation.
    """
    two = jnp.asarray(x)[:2]
    params = jax.eval_shape(lambda x: initial(model, key, x), two)
    if measures(model, params, two):
        raise InputError(
            "The model has batch normalisation: the logits of a sample would depend on the added samples of its batch, "
            "in training but not in predictions. Use layer or group normalisation, or hold these layers fixed by "
            "bilevax.nn.freeze."
        )
    shape = jax.eval_shape(lambda params, x: logits(model, params, x), params, two).shape
    if len(shape) != 2:
        raise InputError(f"The model returns shape {shape} for 2 samples, and must return logits (2, classes).")
    return shape[1]


def one_hot_of(name: str, y: Int[ArrayLike, " n"], classes: int) -> Float[Array, "n classes"]:
    """Return one-hot labels.

    Raises:
        InputError: labels outside 0..classes-1.
    """
    y = np.asarray(y)
    if y.min() < 0 or y.max() >= classes:
        wrong = np.unique(y[(y < 0) | (y >= classes)])
        raise InputError(
            f"{name} has labels {listed(wrong)}, and the model has {classes} logits, for labels 0..{classes - 1}. "
            "Widen its last layer, or leave those samples out."
        )
    return jax.nn.one_hot(y, classes, dtype=jnp.result_type(float))
