"""Plain training of a classifier by sample weights."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevax._checks import InputError, PyTree, require_count
from bilevax._optimizers import require_schedule
from bilevax.loop.sources import Epochs
from bilevax.nn.model import Model, initial, logits
from bilevax.problem import Problem
from bilevax.solvers import base

PREDICTED_AT_ONCE = 2000


@dataclass(frozen=True)
class Training:
    """How a classifier is trained, by Adam.

    Args:
        steps: moves of the parameters.
        rate: Adam's: a number falls to zero by a cosine over the steps, an optax schedule is followed as it is.
        batch_size: samples per move, drawn without replacement in each pass; None for all at each move.
        l2: weight of half the squared norm of the model's matrices.

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


def require_finite(name: str, x: np.ndarray) -> None:
    """Refuse samples with entries that are not finite."""
    bad = int(x.size - np.isfinite(x).sum())
    if bad:
        raise InputError(f"{name} holds {bad} NaN or infinite values of {x.size}. Fill them, or leave those rows out.")


def cross_entropy(model: Model, v: PyTree, x: Any, y: Any, key: Any = None) -> Any:
    """The cross-entropy of each sample, (n,); with a key as in training (dropout)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(model, v, x, key), y)


def one_hot_cross_entropy(model: Model, v: PyTree, x: Any, targets: Any, key: Any = None) -> Any:
    """The mean cross-entropy of targets (n, classes), one-hot or soft."""
    return jnp.mean(optax.softmax_cross_entropy(logits(model, v, x, key), targets))


def penalised(loss: Any, l2: float, v: PyTree) -> Any:
    """A loss plus l2/2 times the squared norm of the matrices of v; biases and scales are left alone."""
    return loss + l2 / 2 * sum(jnp.sum(p**2) for p in jax.tree.leaves(v) if jnp.ndim(p) > 1)


def weighted_mean(losses: Any, weight: Any) -> Any:
    """The mean of losses (n,) by weights (n,)."""
    # A minibatch may hold weightless samples alone: 0 / 0.
    return jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny ** 0.5)


@dataclass(frozen=True)
class _WeightedLoss:
    """The training loss of a model by sample weights."""

    model: Model
    l2: float

    def __call__(self, u: Any, v: PyTree, samples: Any, *, key: Any) -> Any:
        x, y, weight = samples.data
        return penalised(weighted_mean(cross_entropy(self.model, v, x, y, key), weight), self.l2, v)


def _nothing(u: Any, v: PyTree, data: Any) -> Any:
    """There is no upper level."""
    return jnp.sum(u)


@functools.partial(jax.jit, static_argnames=("model", "training"))
def train(model: Model, training: Training, x: Any, y: Any, weight: Any, key: Any) -> PyTree:
    """The parameters of a model trained from its start on samples by their weights.

    Args:
        model: maps x to logits (n, classes).
        training: how.
        x: features or images (n, ...).
        y: integer labels (n,), 0..classes-1.
        weight: (n,) of floats, zero or positive.
        key: a jax.random key, for the start, the order of the samples and dropout.
    """
    init_key, train_key = jax.random.split(key)
    order_key = jax.random.fold_in(train_key, training.steps)
    v, u = initial(model, init_key, x[:1]), jnp.zeros(1)
    rate = training.rate if callable(training.rate) else optax.cosine_decay_schedule(training.rate, training.steps)
    optimizer = optax.adam(rate)
    descent = base.Descent(Problem(_nothing, _WeightedLoss(model, training.l2), random_lower=True), u, optimizer)
    # None where a batch would hold everything: the same samples without a gather.
    size = training.batch_size if training.batch_size is not None and training.batch_size < len(x) else None
    source = Epochs(jnp.zeros(1), (x, y, weight), lower_size=size)

    def one(carry: Any, step: Any) -> tuple[Any, None]:
        batch = source.at(step, order_key)
        return descent.move(carry, batch.lower, jax.random.fold_in(train_key, step))[0], None

    return jax.lax.scan(one, (v, optimizer.init(v)), jnp.arange(training.steps))[0][0]


@functools.partial(jax.jit, static_argnames=("model",))
def _probabilities(model: Model, v: PyTree, x: Any) -> Any:
    return jax.nn.softmax(logits(model, v, x))


def probabilities(model: Model, v: PyTree, x: Any) -> np.ndarray:
    """The probability of each class, (n, classes), a few thousand samples at a time."""
    return _in_parts(_probabilities, model, v, x)


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(model: Model, v: PyTree, x: Any) -> Any:
    return logits(model, v, x)


def improbable(model: Model, v: PyTree, x: Any, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability (n,) that each sample's label is another than y (n,), and the most likely label (n,).

    In float64, and as the sum over the other labels: of single precision, where a network is sure, all but a few would
    be 0 or 1, and could not be ranked.
    """
    found = _in_parts(_logits, model, v, x).astype(np.float64)
    odds = np.exp(found - found.max(1, keepdims=True))
    own = np.arange(found.shape[1]) == np.asarray(y)[:, None]
    return np.where(own, 0, odds).sum(1) / odds.sum(1), found.argmax(1)


def _in_parts(function: Any, model: Model, v: PyTree, x: Any) -> np.ndarray:
    starts = range(0, len(x), PREDICTED_AT_ONCE)
    return np.concatenate([np.asarray(function(model, v, x[i : i + PREDICTED_AT_ONCE])) for i in starts])
