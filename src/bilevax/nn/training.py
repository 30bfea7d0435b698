"""Training of a classifier with sample weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, require_count
from bilevax._optimizers import require_schedule
from bilevax._programs import compiled
from bilevax.loop.sources import Epochs
from bilevax.nn.model import Model, Settled, initial, logits, refused_statistics, require_settled
from bilevax.nn.statistics import settled
from bilevax.problem import Problem
from bilevax.solvers import base

PREDICTED_AT_ONCE = 2000


@dataclass(frozen=True)
class Training:
    """How a classifier is trained, by Adam.

    Args:
        steps: number of steps.
        rate: learning rate: a number decays to zero by a cosine over the steps; or an optax schedule.
        batch_size: samples per step, drawn without replacement in each pass over the data; None for all samples.
        l2: weight of half the squared norm of the matrices among the parameters.

    Raises:
        InputError: steps or batch_size is not a positive integer, rate is not positive, l2 is negative.

    Example:
        >>> from bilevax.nn import Training
        >>> Training(steps=300, batch_size=200).steps
        300
    """

    steps: int = 200
    rate: float | optax.Schedule = 1e-2
    batch_size: int | None = None
    l2: float = 3e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", require_count("Training", "steps", self.steps))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", require_count("Training", "batch_size", self.batch_size))
        if not callable(self.rate) and not (_is_real(self.rate) and 0 < self.rate < math.inf):
            raise InputError(f"Training: rate is {self.rate!r}, and must be positive, or an optax schedule.")
        if callable(self.rate):
            require_schedule("Training", "rate", self.rate)
        if not (_is_real(self.l2) and 0 <= self.l2 < math.inf):
            raise InputError(f"Training: l2 is {self.l2!r}, and must be zero or positive.")


def _is_real(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def require_finite(name: str, x: Shaped[np.ndarray, "..."]) -> None:
    """Refuse samples with entries that are not finite."""
    bad = int(x.size - np.isfinite(x).sum())
    if bad:
        raise InputError(f"{name} holds {bad} NaN or infinite values of {x.size}. Fill them, or leave those rows out.")


def cross_entropy(
    model: Model, v: PyTree, x: Shaped[Array, "n ..."], y: Integer[Array, " n"], key: PRNGKeyArray | None = None
) -> Float[Array, " n"]:
    """The cross-entropy of each sample; with a key as in training (dropout).

    With batch normalisation it is that of the batch, with and without a key: it is a loss, not a prediction.
    """
    if isinstance(v, Settled):
        raise refused_statistics()
    return optax.softmax_cross_entropy_with_integer_labels(logits(model, v, x, key), y)


def _losses(
    model: Model, v: PyTree, x: Shaped[Array, "n ..."], y: Shaped[Array, "n ..."], key: PRNGKeyArray | None
) -> Float[Array, " n"]:
    """The cross-entropy of each sample with labels (n,) or soft labels (n, classes)."""
    if y.ndim == 1:
        return cross_entropy(model, v, x, y, key)
    return optax.softmax_cross_entropy(logits(model, v, x, key), y)


def one_hot_cross_entropy(
    model: Model,
    v: PyTree,
    x: Shaped[Array, "n ..."],
    targets: Float[Array, "n classes"],
    key: PRNGKeyArray | None = None,
) -> Float[Array, ""]:
    """The mean cross-entropy with one-hot or soft targets; batch normalisation as in `cross_entropy`."""
    if isinstance(v, Settled):
        raise refused_statistics()
    return jnp.mean(optax.softmax_cross_entropy(logits(model, v, x, key), targets))


def penalised(loss: Float[Array, ""], l2: float, v: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    """A loss plus l2/2 times the squared norm of the matrices of v; biases and scales are not penalised."""
    return loss + l2 / 2 * sum(jnp.sum(p**2) for p in jax.tree.leaves(v) if jnp.ndim(p) > 1)


def weighted_mean(losses: Float[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, ""]:
    """The weighted mean of losses."""
    # All weights of a minibatch may be zero.
    return jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny ** 0.5)


@dataclass(frozen=True)
class _WeightedLoss:
    """The training loss of a model with sample weights."""

    model: Model
    l2: float

    def __call__(self, u: Any, v: PyTree, samples: Any, *, key: Any) -> Any:
        x, y, weight = samples.data
        return penalised(weighted_mean(_losses(self.model, v, x, y, key), weight), self.l2, v)


def _nothing(u: Float[Array, "1"], v: PyTree, data: Any) -> Float[Array, ""]:
    """The upper loss of a problem without an upper level."""
    return jnp.sum(u)


def train(
    model: Model,
    training: Training,
    x: Shaped[np.ndarray | Array, "n ..."],
    y: Integer[np.ndarray | Array, " n"] | Float[Array, "n classes"],
    weight: Float[np.ndarray | Array, " n"],
    key: PRNGKeyArray,
) -> PyTree | Settled:
    """The parameters of a model trained on weighted samples from its initial parameters.

    A module that came with weights starts from these. With batch normalisation the result is `Settled`: every step
    normalises by its batch, and the running statistics are measured at the end (see `settled`).

    Args:
        model: maps x to logits (n, classes).
        training: settings.
        x: features or images.
        y: labels 0..classes-1, or soft labels, the probability of each class.
        weight: zero or positive.
        key: for the initial parameters, the order of the samples and dropout.
    """
    # Given weights are arguments: as constants they would be part of the program.
    start = None if model.given is None else initial(model, key, x[:1])
    params = _trained(model, training, start, x, y, weight, key)
    if model.moments is None:
        return params
    size = len(x) if training.batch_size is None else training.batch_size
    return settled(model, params, x, key=jax.random.fold_in(key, training.steps), batch_size=size)


@compiled("model", "training")
def _trained(
    model: Model,
    training: Training,
    start: PyTree,
    x: Shaped[np.ndarray | Array, "n ..."],
    y: Shaped[np.ndarray | Array, "n ..."],
    weight: Float[np.ndarray | Array, " n"],
    key: PRNGKeyArray,
) -> PyTree:
    init_key, train_key = jax.random.split(key)
    order_key = jax.random.fold_in(train_key, training.steps)
    v, u = initial(model, init_key, x[:1]) if start is None else start, jnp.zeros(1)
    rate = training.rate if callable(training.rate) else optax.cosine_decay_schedule(training.rate, training.steps)
    optimizer = optax.adam(rate)
    descent = base.Descent(Problem(_nothing, _WeightedLoss(model, training.l2), random_lower=True), u, optimizer)
    # None where a batch would hold all samples, which needs no gather.
    size = training.batch_size if training.batch_size is not None and training.batch_size < len(x) else None
    source = Epochs(jnp.zeros(1), (x, y, weight), lower_size=size)

    def one(carry: Any, step: Any) -> tuple[Any, None]:
        batch = source.at(step, order_key)
        return descent.move(carry, batch.lower, jax.random.fold_in(train_key, step))[0], None

    return jax.lax.scan(one, (v, optimizer.init(v)), jnp.arange(training.steps))[0][0]


@compiled("model")
def _probabilities(model: Model, v: PyTree, x: Shaped[Array, "n ..."]) -> Float[Array, "n classes"]:
    return jax.nn.softmax(logits(model, v, x))


def probabilities(model: Model, v: PyTree, x: Shaped[np.ndarray | Array, "n ..."]) -> Float[np.ndarray, "n classes"]:
    """The probability of each class, computed for a few thousand samples at a time.

    Raises:
        InputError: the model has batch normalisation, and v has no running statistics: see `settled`.
    """
    require_settled("probabilities", model, v, x[:2])
    return _in_parts(_probabilities, model, v, x)


@compiled("model")
def _logits(model: Model, v: PyTree, x: Shaped[Array, "n ..."]) -> Float[Array, "n classes"]:
    return logits(model, v, x)


def improbable(
    model: Model, v: PyTree, x: Shaped[np.ndarray | Array, "n ..."], y: Integer[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The probability that the label of each sample is not y, and the most likely label.

    It is the sum over the other labels in float64. In single precision, nearly all values of a confident network would
    be 0 or 1, and could not be ranked. Raises as `probabilities`.
    """
    require_settled("improbable", model, v, x[:2])
    found = _in_parts(_logits, model, v, x).astype(np.float64)
    odds = np.exp(found - found.max(1, keepdims=True))
    own = np.arange(found.shape[1]) == np.asarray(y)[:, None]
    return np.where(own, 0, odds).sum(1) / odds.sum(1), found.argmax(1)


def _in_parts(
    function: Callable[..., Array], model: Model, v: PyTree, x: Shaped[np.ndarray | Array, "n ..."]
) -> Float[np.ndarray, "n classes"]:
    starts = range(0, len(x), PREDICTED_AT_ONCE)
    return np.concatenate([np.asarray(function(model, v, x[i : i + PREDICTED_AT_ONCE])) for i in starts])
