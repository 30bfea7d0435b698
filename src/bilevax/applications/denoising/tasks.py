"""Importance learning (Mehra and Hamm 2021, eq. 3 and appendix E.2) and related methods, as Tasks for any solver.

Each sample i of a training set whose labels are in doubt has a weight. A model trained by these weights should
have a small loss on a few samples whose labels are known to be right. The tasks differ in u:

| task | u | weight of sample i | lower loss on a batch |
|---|---|---|---|
| `denoising_task` (Mehra and Hamm) | (n,) | (tanh u_i + 1) / 2 | sum_i w_i CE_i / sum_i w_i |
| `reweighting_task` (Ren et al. 2018) | (n,) | u_i | mean_i w_i CE_i |
| `meta_weight_task` (Shu et al. 2019) | a small network V | V(CE_i) | sum_i w_i CE_i / sum_i w_i |

each plus l2/2 |matrices of v|^2; the upper loss is the mean cross-entropy on the clean set. Images of uint8 stay bytes
in memory, and reach every model as floats in 0..1 (`bilevax.nn.model.pixels`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped
from numpy.typing import ArrayLike

from bilevax.applications.denoising.importance import from_agreement, weights
from bilevax.applications.task import Task
from bilevax.loop.sources import Epochs, Samples
from bilevax.nn.model import Model, initial, params_of
from bilevax.nn.statistics import settled
from bilevax.nn.training import Training, cross_entropy, penalised, probabilities, train, weighted_mean
from bilevax.problem import Problem

WARM_ROUNDS = 2
META_WIDTH = 100


@dataclass(frozen=True)
class _CleanLoss:
    """The mean cross-entropy on the clean samples."""

    model: Model

    def __call__(self, u: PyTree, v: PyTree, clean: Samples) -> Float[Array, ""]:
        return jnp.mean(cross_entropy(self.model, v, *clean.data))


@dataclass(frozen=True)
class _ImportanceLoss:
    """The lower loss of `denoising_task`."""

    model: Model
    l2: float

    def __call__(self, u: Float[Array, " n"], v: PyTree, noisy: Samples, *, key: PRNGKeyArray) -> Float[Array, ""]:
        losses = cross_entropy(self.model, v, *noisy.data, key=key)
        return penalised(weighted_mean(losses, weights(u[noisy.index])), self.l2, v)


@dataclass(frozen=True)
class _ReweightedLoss:
    """The lower loss of `reweighting_task`."""

    model: Model
    l2: float

    def __call__(self, u: Float[Array, " n"], v: PyTree, noisy: Samples, *, key: PRNGKeyArray) -> Float[Array, ""]:
        losses = cross_entropy(self.model, v, *noisy.data, key=key)
        return penalised(jnp.mean(u[noisy.index] * losses), self.l2, v)


@dataclass(frozen=True)
class _MetaWeightLoss:
    """The lower loss of `meta_weight_task`."""

    model: Model
    l2: float

    def __call__(
        self, u: PyTree[Float[Array, "..."]], v: PyTree, noisy: Samples, *, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        losses = cross_entropy(self.model, v, *noisy.data, key=key)
        # V sees the loss as a feature; v does not learn through it (Shu et al. 2019, eq. 5).
        return penalised(weighted_mean(losses, meta_weights(u, jax.lax.stop_gradient(losses))), self.l2, v)


def meta_weights(u: PyTree[Float[Array, "..."]], losses: Float[Array, " n"]) -> Float[Array, " n"]:
    """V(loss; u) in 0..1 for each sample: one hidden layer of ReLU, then a sigmoid (Shu et al. 2019)."""
    hidden = jax.nn.relu(losses[:, None] * u["into"] + u["bias"])
    return jax.nn.sigmoid(hidden @ u["out"] + u["level"])


class _Data:
    """The arrays of a task on the device, and the batches, training and metrics that all tasks share."""

    def __init__(self, X: ArrayLike, y: ArrayLike, X_clean: ArrayLike, y_clean: ArrayLike):
        self.x, self.x_clean = _array(X), _array(X_clean)
        self.y, self.y_clean = jnp.asarray(y, jnp.int32), jnp.asarray(y_clean, jnp.int32)

    def batches(self, batch_size: int | None, clean_batch_size: int | None) -> Epochs:
        clean, noisy = (self.x_clean, self.y_clean), (self.x, self.y)
        return Epochs(clean, noisy, upper_size=clean_batch_size, lower_size=batch_size)

    def train(self, model: Model, training: Training, trusted: Bool[np.ndarray, " n"], key: PRNGKeyArray) -> PyTree:
        """Parameters trained on the clean samples and the trusted samples in doubt."""
        x, y = jnp.concatenate([self.x, self.x_clean]), jnp.concatenate([self.y, self.y_clean])
        weight = jnp.concatenate([jnp.asarray(trusted, float), jnp.ones(len(self.y_clean))])
        return train(model, training, x, y, weight, key)

    def on_clean(self, model: Model, v: PyTree) -> dict[str, float]:
        """Cross-entropy and accuracy on the clean set."""
        v = settled(model, v, self.x, key=jax.random.key(0))
        p, truth = probabilities(model, v, self.x_clean), np.asarray(self.y_clean)
        of_truth = p[np.arange(len(truth)), truth]
        return {
            "clean_loss": float(-np.log(np.maximum(of_truth, np.finfo(p.dtype).tiny)).mean()),
            "clean_accuracy": float((p.argmax(1) == truth).mean()),
        }


def _array(x: ArrayLike) -> Shaped[Array, "n ..."]:
    """Floats; images of bytes stay bytes, which take a quarter of the memory: `nn.model.logits` scales them."""
    images = getattr(x, "dtype", None) == np.uint8 and np.ndim(x) > 2
    return jnp.asarray(x) if images else jnp.asarray(x, jnp.result_type(float))


def denoising_task(
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_clean: ArrayLike,
    y_clean: ArrayLike,
    *,
    key: PRNGKeyArray,
    training: Training = Training(),
    warm_rounds: int = WARM_ROUNDS,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
    start: tuple[Float[Array, " n"], PyTree] | None = None,
) -> Task:
    """Importance learning as a Task. u is (n,), one entry per sample of X; v the model's parameters.

    The start: a model is trained on the clean set, then `warm_rounds` more times on the clean set together with the
    samples whose given label the previous model predicts. v starts from the last model, and u at weight 0.6 where that
    model predicts the given label, else at 0.4. The paper's text starts u from the predicted probability of the given
    label instead. The probabilities of a small network are near 0 or 1, where tanh is flat, so the weight of a hard
    sample that starts at 0.02 hardly rises: on digits with 40% wrong labels, without the two retrainings, the precision
    of the suspects ended at 0.48 from probabilities and at 0.93 from agreement.

    The clean samples enter only the upper loss, as in the paper. A lower level that trained on them as well would fit
    them for any weights, and give the upper level a weaker signal: in the same trial, precision was 0.92 instead of
    0.93. The l2 term is not in the paper's (3).

    Args:
        model: maps X to logits (n, classes).
        X, y: features (n, ...) and integer labels 0..classes-1 (n,), in doubt.
        X_clean, y_clean: the same with right labels.
        key: a jax.random key, for the model's initialisation and its dropout.
        training: how the models of the start are trained; the lower loss has the same l2.
        warm_rounds: retrainings at the start; 0 is the authors' start, by a model of the clean set alone.
        batch_size, clean_batch_size: samples per lower and upper minibatch; None for all. With minibatches, wrap the
            optimizer of u by `per_sample`.
        start: (u, v) to start from instead; nothing is trained then.

    Metrics: clean_loss and clean_accuracy of v; suspects, the number of weights below 1/2; mean_weight.

    Example:
        >>> import jax
        >>> from bilevax import solve
        >>> from bilevax.applications.denoising import denoising_task, penalty_solver
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> task = denoising_task(softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=jax.random.key(0))
        >>> result = solve(
        ...     penalty_solver(5), task.problem, *task.start, task.batches, steps=5, key=jax.random.key(0)
        ... )
        >>> sorted(task.metrics(result.u, result.v))
        ['clean_accuracy', 'clean_loss', 'mean_weight', 'suspects']
    """
    data = _Data(X, y, X_clean, y_clean)
    start = _agreement_start(model, data, training, warm_rounds, key) if start is None else start

    def metrics(u: Float[Array, " n"], v: PyTree) -> dict[str, float]:
        w = np.asarray(weights(u))
        return data.on_clean(model, v) | {"suspects": float((w < 0.5).sum()), "mean_weight": float(w.mean())}

    problem = Problem(_CleanLoss(model), _ImportanceLoss(model, training.l2), random_lower=True)
    return Task(problem, start, data.batches(batch_size, clean_batch_size), metrics)


def _agreement_start(
    model: Model, data: _Data, training: Training, rounds: int, key: PRNGKeyArray
) -> tuple[Float[Array, " n"], PyTree]:
    def trained(trusted: Bool[np.ndarray, " n"]) -> tuple[PyTree, Bool[np.ndarray, " n"]]:
        v = data.train(model, training, trusted, key)
        return v, probabilities(model, v, data.x).argmax(1) == np.asarray(data.y)

    v, trusted = trained(np.zeros(len(data.y), bool))
    for _ in range(rounds):
        v, trusted = trained(trusted)
    return from_agreement(trusted), params_of(v)


def reweighting_task(
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_clean: ArrayLike,
    y_clean: ArrayLike,
    *,
    key: PRNGKeyArray,
    l2: float = 0.0,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
) -> Task:
    """Importance learning whose u are the weights themselves, for `LearningToReweight`.

    u is (n,), starting at 1; v the model's parameters, starting at the model's own initialisation.

    Args:
        model, X, y, X_clean, y_clean, batch_size, clean_batch_size: as for `denoising_task`.
        key: a jax.random key, for the model's initialisation.
        l2: weight of half the squared norm of the model's matrices in the lower loss.

    Metrics: clean_loss and clean_accuracy of v; mean_weight.

    Source: Ren et al., "Learning to reweight examples for robust deep learning", ICML 2018.

    Example:
        >>> import jax, optax
        >>> from bilevax import LearningToReweight, solve
        >>> from bilevax.applications.denoising import reweighting_task
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> model, key = softmax_regression(10), jax.random.key(0)
        >>> task = reweighting_task(model, d.X, d.y, d.X_clean, d.y_clean, key=key, batch_size=50)
        >>> result = solve(
        ...     LearningToReweight(optax.sgd(0.1)), task.problem, *task.start, task.batches, steps=5, key=key
        ... )
        >>> result.state.memory.mean_weight.shape
        (200,)
    """
    data = _Data(X, y, X_clean, y_clean)
    start = jnp.ones(len(data.y)), initial(model, key, data.x[:1])

    def metrics(u: Float[Array, " n"], v: PyTree) -> dict[str, float]:
        return data.on_clean(model, v) | {"mean_weight": float(u.mean())}

    problem = Problem(_CleanLoss(model), _ReweightedLoss(model, l2), random_lower=True)
    return Task(problem, start, data.batches(batch_size, clean_batch_size), metrics)


def meta_weight_task(
    model: Model,
    X: ArrayLike,
    y: ArrayLike,
    X_clean: ArrayLike,
    y_clean: ArrayLike,
    *,
    key: PRNGKeyArray,
    l2: float = 0.0,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
) -> Task:
    """Meta-Weight-Net as a Task: u is a small network V from a sample's loss to its weight; v the model's parameters.

    The paper uses `LookAhead`; any solver without finite differences can be used. As in the paper, the weights are
    normalised over the batch.

    Args:
        model, X, y, X_clean, y_clean, batch_size, clean_batch_size: as for `denoising_task`.
        key: a jax.random key, for the initialisation of V and of the model.
        l2: weight of half the squared norm of the model's matrices in the lower loss.

    Metrics: clean_loss and clean_accuracy of v.

    Source: Shu et al., "Meta-Weight-Net: learning an explicit mapping for sample weighting", NeurIPS 2019.

    Example:
        >>> import jax, optax
        >>> from bilevax import LookAhead, solve
        >>> from bilevax.applications.denoising import meta_weight_task
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> model, key = softmax_regression(10), jax.random.key(0)
        >>> task = meta_weight_task(model, d.X, d.y, d.X_clean, d.y_clean, key=key, batch_size=50)
        >>> solver = LookAhead(optax.adam(1e-3), optax.sgd(0.1), rate=0.1)
        >>> result = solve(solver, task.problem, *task.start, task.batches, steps=5, key=key)
        >>> result.u["out"].shape
        (100,)
    """
    data = _Data(X, y, X_clean, y_clean)
    *keys, model_key = jax.random.split(key, 5)

    def uniform(key: PRNGKeyArray, shape: tuple[int, ...], bound: float) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    # PyTorch's initialisation of linear layers, as in the published code: with a steeper V all weights may start at 1.
    u = {
        "into": uniform(keys[0], (META_WIDTH,), 1.0),
        "bias": uniform(keys[1], (META_WIDTH,), 1.0),
        "out": uniform(keys[2], (META_WIDTH,), META_WIDTH**-0.5),
        "level": uniform(keys[3], (), META_WIDTH**-0.5),
    }
    start = u, initial(model, model_key, data.x[:1])

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        return data.on_clean(model, v)

    problem = Problem(_CleanLoss(model), _MetaWeightLoss(model, l2), random_lower=True)
    return Task(problem, start, data.batches(batch_size, clean_batch_size), metrics)
