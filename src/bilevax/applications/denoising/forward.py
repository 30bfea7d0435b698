"""Training of a network through the noise matrix of its labels (forward correction).

Source: Patrini et al., "Making deep neural networks robust to label noise: a loss correction approach", CVPR 2017. With
trusted samples among the others: Hendrycks et al., "Using trusted data to train deep networks on labels corrupted by
severe noise", NeurIPS 2018.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.loop.sources import Epochs
from bilevax.nn.model import Model, Settled, initial, logits, params_of
from bilevax.nn.statistics import settled
from bilevax.nn.training import Training, penalised

LEAST_PROBABILITY = 1e-4  # of a given label in the start of the noise matrix
NOISE_SPEED = 10.0  # the learning rate of the noise matrix's logits, relative to that of the network


class Labelled(NamedTuple):
    """Samples with labels, on the device.

    Attributes:
        x: features or images.
        labels: 0..classes-1.
        right: whose label is the true one; the others come from the noise matrix.
    """

    x: Shaped[Array, "n ..."]
    labels: Int[Array, " n"]
    right: Bool[Array, " n"]


class Through(NamedTuple):
    """The result of `train_through`.

    Attributes:
        params: of the network, which predicts the true class; with batch normalisation `Settled`.
        noise: the noise matrix.
    """

    params: PyTree | Settled
    noise: Float[np.ndarray, "classes classes"]


def train_through(
    model: Model,
    training: Training,
    samples: Labelled,
    rows: Int[np.ndarray, " m"],
    noise: Float[np.ndarray, "classes classes"],
    key: PRNGKeyArray,
    *,
    learned: bool = True,
    share: float = 1.0,
    start: PyTree | None = None,
) -> Through:
    """Train a network q(true class | x) on labels that a noise matrix T has changed.

    The loss of a sample is -log q[label] if its label is right, else -log (q T)[label], averaged over a batch, plus the
    penalty of `training`. T may be learned with the network: right labels, with the others, identify it.

    All calls with the same shapes are one compiled program, whatever the other arguments.

    Args:
        model: maps x to logits (n, classes).
        training: settings; its batches are drawn from `rows`.
        samples: all samples.
        rows: the samples to train on, of which some may be repeated.
        noise: T, or where it starts; entries below `LEAST_PROBABILITY` are raised to it.
        key: for the initial parameters, the order of the samples and dropout.
        learned: whether T is learned.
        share: the part of `training.steps` that is taken, with a learning rate that falls as fast as in all of them.
        start: parameters to start from; None for initial ones.

    Raises:
        InputError: the parameters are not finite after the training.
    """
    init_key, train_key = jax.random.split(key)
    v = initial(model, init_key, samples.x[:1]) if start is None else params_of(start)
    dtype = jnp.result_type(float)
    odds = jnp.asarray(np.log(np.maximum(noise, LEAST_PROBABILITY)), dtype) / NOISE_SPEED
    steps = math.ceil(share * training.steps)
    at = jnp.asarray(rows)
    v, odds = _trained(model, training, (v, odds), samples, at, steps, jnp.asarray(learned, dtype), train_key)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((v, odds))):
        raise InputError(
            f"The training of the network diverged: its parameters are not finite after {steps} steps. Pass a "
            f"Training with a smaller rate than {training.rate!r}, or scale X to values near 1."
        )
    if model.moments is not None:
        size = len(rows) if training.batch_size is None else training.batch_size
        v = settled(model, v, samples.x[at], key=jax.random.fold_in(key, steps), batch_size=size)
    return Through(v, np.asarray(jax.nn.softmax(NOISE_SPEED * odds), np.float64))


@compiled("model", "training")
def _trained(
    model: Model,
    training: Training,
    start: tuple[PyTree, Float[Array, "classes classes"]],
    samples: Labelled,
    rows: Int[Array, " m"],
    steps: Int[Array, ""],
    learned: Float[Array, ""],
    key: PRNGKeyArray,
) -> tuple[PyTree, Float[Array, "classes classes"]]:
    order_key = jax.random.fold_in(key, training.steps)
    rate = training.rate if callable(training.rate) else optax.cosine_decay_schedule(training.rate, training.steps)
    adam = optax.scale_by_adam()
    size = training.batch_size if training.batch_size is not None and training.batch_size < len(rows) else None
    source = Epochs(jnp.zeros(1), rows, lower_size=size)

    def loss(variables: Any, at: Int[Array, " b"], key: PRNGKeyArray) -> Float[Array, ""]:
        v, odds = variables
        log_q = jax.nn.log_softmax(logits(model, v, samples.x[at], key))
        log_noise = jax.nn.log_softmax(NOISE_SPEED * odds)
        label = samples.labels[at]
        own = jnp.take_along_axis(log_q, label[:, None], axis=1)[:, 0]
        given = jax.nn.logsumexp(log_q + log_noise[:, label].T, axis=1)
        return penalised(-jnp.mean(jnp.where(samples.right[at], own, given)), training.l2, v)

    def one(step: Any, carry: Any) -> Any:
        variables, state = carry
        at = source.at(step, order_key).lower.data
        grads = jax.grad(loss)(variables, at, jax.random.fold_in(key, step))
        moves: Any
        moves, state = adam.update(grads, state)
        length = -jnp.asarray(rate(step * training.steps / steps))
        moves = jax.tree.map(lambda m: length * m, moves[0]), learned * length * moves[1]
        return optax.apply_updates(variables, moves), state

    return jax.lax.fori_loop(0, steps, one, (start, adam.init(start)))[0]
