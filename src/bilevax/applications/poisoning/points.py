"""Added points: their checks, and training on them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._checks import InputError, listed, require_count
from bilevax.applications._inputs import floats, integer_samples
from bilevax.loop.sources import Samples
from bilevax.nn.model import Model, initial, logits
from bilevax.nn.training import Training, train

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


@dataclass(frozen=True)
class Clip:
    """The projection onto the box low..high."""

    low: float
    high: float

    def __call__(self, u: PyTree) -> PyTree:
        """The nearest point of the box."""
        return jax.tree.map(lambda x: jnp.clip(x, self.low, self.high), u)


def retrained(model: Model, training: Training, X: Any, y: Any, points: Points | None, *, key: PRNGKeyArray) -> PyTree:
    """Parameters of a model trained from its start on clean samples and points: which shows what an attack does.

    Args:
        model, training, X, y: as for `untargeted_task`.
        points: the samples that are added; None for none.
        key: a jax.random key.
    """
    X, y = integer_samples("X", X, "y", y)
    x = floats(X)
    if points is not None:
        x, y = np.concatenate([x, np.asarray(points.x, x.dtype)]), np.concatenate([y, np.asarray(points.y)])
    return train(model, training, jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.ones(len(y)), key)


def distances(x: Any, base: Any) -> np.ndarray:
    """The Euclidean distance (m,) of each sample from its base."""
    return np.linalg.norm((np.asarray(x) - np.asarray(base)).reshape(len(x), -1), axis=1)


def trained(model: Model, training: Training, x: Any, one_hot: Any, key: PRNGKeyArray) -> PyTree:
    """The model trained on samples and one-hot labels (n, k)."""
    labels = jnp.argmax(one_hot, 1).astype(jnp.int32)
    return train(model, training, jnp.asarray(x), labels, jnp.ones(len(labels)), key)


def check_samples(name: str, x: np.ndarray, shape: tuple[int, ...], low: float, high: float) -> None:
    """Refuse samples of another shape than X, or outside of the range."""
    if x.shape[1:] != shape:
        raise InputError(f"{name} has samples of shape {x.shape[1:]}, and X of {shape}. They must be alike.")
    if x.min() < low or x.max() > high:
        raise InputError(
            f"{name} has entries from {x.min():g} to {x.max():g}, outside {low:g}..{high:g}. Scale the samples, or "
            "pass their range as low and high."
        )


def check_budget(count: Any, available: int, what: str = "the training samples") -> None:
    """Refuse more points than there are samples."""
    count = require_count("The attack", "the number of points", count)
    if count > available:
        raise InputError(
            f"{count} points are more than {what}, of which there are {available}. An attack adds a few: lower it."
        )


def check_class_pair(y: np.ndarray, source: int, target: int) -> None:
    """Refuse a source or target class that y does not have, and equal ones."""
    if source == target:
        raise InputError(f"source and target are both class {source}. Name two different classes.")
    known = np.unique(y)
    for name, label in (("source", source), ("target", target)):
        if label not in known:
            raise InputError(f"{name} is class {label!r}, which y does not have. y has {listed(known)}.")


def all_classes(model: Model, x: np.ndarray, key: PRNGKeyArray) -> int:
    """How many logits a model gives."""
    shape = jax.eval_shape(lambda x: logits(model, initial(model, key, x), x), jnp.asarray(x[:2])).shape
    if len(shape) != 2:
        raise InputError(f"The model gives an output of shape {shape} for 2 samples, and must give (2, classes).")
    return shape[1]


def one_hot_of(name: str, y: Any, classes: int) -> Any:
    """One-hot labels (n, classes); refuses labels outside 0..classes-1."""
    y = np.asarray(y)
    if y.min() < 0 or y.max() >= classes:
        wrong = np.unique(y[(y < 0) | (y >= classes)])
        raise InputError(f"{name} has labels {listed(wrong)}, and the model gives {classes} logits: 0..{classes - 1}.")
    return jax.nn.one_hot(y, classes, dtype=jnp.result_type(float))
