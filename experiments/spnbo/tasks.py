"""Networks with non-smooth, sparse regularisers: the three applications of SPNBO (section 5.1), as Tasks.

| task | u | lower loss | regulariser |
|---|---|---|---|
| `sparse_reweighting_task` | log weights, strengths | mean_i exp(u_i) CE_i | l1 and group lasso by layer |
| `sparse_poisoning_task` | added samples | mean cross-entropy | strength times the sum of abs(w)^p |
| `sparse_fewshot_task` | a shared representation | cross-entropies of tasks | the same, of the tasks' heads |

Solvers without a schedule of the smoothing use mu = 1e-3. Source: "Efficient bi-level optimization for non-smooth
optimization", ICLR 2022 submission, which is called the text below.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._arrays import check_key
from bilevax.applications._inputs import coded_samples, on_one_scale, require_alike, require_classes
from bilevax.applications._settings import require_batch
from bilevax.applications.denoising.importance import per_sample
from bilevax.applications.fewshot.episodes import Adapt, Episode, Scores, class_means
from bilevax.applications.fewshot.recipes import ADAPT_STEPS, HEAD_RATE
from bilevax.applications.fewshot.tasks import (
    SCALE,
    FewShot,
    cross_entropies,
    descended,
    features_of,
    functions_of,
    metrics_of,
    sources,
    start_of,
    unit,
)
from bilevax.applications.poisoning.added_points import untargeted_task
from bilevax.applications.poisoning.points import SOFTMAX_TRAINING, Points, retrained
from bilevax.applications.task import Task
from bilevax.loop.sources import Epochs, Samples
from bilevax.nn.model import Model, initial, logits
from bilevax.nn.representations import Representation
from bilevax.nn.training import Training, cross_entropy, probabilities
from bilevax.penalties.base import zero_share
from bilevax.penalties.group import ByLeaf, GroupLasso, removed_share
from bilevax.penalties.separable import L1, Lp
from bilevax.problem import Batch, Problem
from experiments.spnbo.checks import positive

LOG_RANGE = 10.0  # bound on the size of log weights and log strengths, as in the text
ZERO = 1e-3  # with smoothing, an entry at zero has a size of about mu


def log_adam(rate: float) -> optax.GradientTransformation:
    """Adam for the u of `sparse_reweighting_task`, with separate moments for each sample's weight."""
    parts: dict[Any, Any] = {"sample": per_sample(optax.adam(rate)), "strength": optax.adam(rate)}
    return optax.partition(parts, {"sample": "sample", "single": "strength", "group": "strength"})


@dataclass(frozen=True)
class _ValidationLoss:
    """The upper loss of `sparse_reweighting_task`; losses of equal models are equal, and compiled once."""

    model: Model

    def __call__(self, u: PyTree, v: PyTree, validation: Samples) -> Any:
        return jnp.mean(cross_entropy(self.model, v, *validation.data))


@dataclass(frozen=True)
class _ReweightedLoss:
    """The lower loss of `sparse_reweighting_task`."""

    model: Model

    def __call__(self, u: PyTree, v: PyTree, train: Samples, *, key: PRNGKeyArray) -> Any:
        losses = cross_entropy(self.model, v, *train.data, key=key)
        return jnp.mean(jnp.exp(u["sample"][train.index]) * losses)


def _sparse_group_lasso(u: PyTree, v: PyTree, mu: Any) -> Any:
    return jnp.exp(u["single"]) * L1()(v, mu) + jnp.exp(u["group"]) * GroupLasso(ByLeaf())(v, mu)


def _within_log_range(u: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.clip(x, -LOG_RANGE, LOG_RANGE), u)


@dataclass(frozen=True)
class _Scaled:
    """A penalty times a fixed strength, as a regularizer."""

    penalty: Lp
    strength: float

    def __call__(self, u: PyTree, v: PyTree, mu: Any) -> Any:
        return self.strength * self.penalty(v, mu)


def sparse_reweighting_task(
    model: Model,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    *,
    key: PRNGKeyArray,
    single: float = 1e-4,
    group: float = 1e-4,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
) -> Task:
    """Return the task of weights for all training samples and the strengths of a sparse group lasso.

    u = {"sample": (n,), "single": (), "group": ()} are logarithms, within -10..10; v are the model's parameters, whose
    arrays are the groups. f is the validation loss.

    Args:
        model: maps X to logits (n, classes).
        X, y: samples (n, ...) and integer labels 0..classes-1 (n,).
        X_val, y_val: the same, for validation.
        key: a jax.random key, for the model's initialisation and its dropout.
        single, group: the strengths at the start, positive.
        batch_size, val_batch_size: samples per lower and upper minibatch; None for all. With minibatches use `log_adam`
            for u.

    Metrics: `val_loss` and `val_accuracy` of v; `zeros` and `removed` of `sparsity`.

    Raises:
        InputError: a strength is not positive; arrays that are not numbers or not finite; lengths, features, classes or
            sizes of minibatches that do not fit.

    Example:
        >>> import jax, optax
        >>> from bilevax import SPNBO, solve
        >>> from experiments.spnbo.tasks import log_adam, sparse_reweighting_task
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import mlp
        >>> from bilevax.solvers.spnbo import Layers
        >>> d = noisy_digits(seed=0, train=200, clean=100)
        >>> key = jax.random.key(0)
        >>> task = sparse_reweighting_task(mlp(10), d.X, d.y, d.X_clean, d.y_clean, key=key, batch_size=50)
        >>> solver = SPNBO(log_adam(0.1), optax.adam(1e-3), 2, Layers(1))
        >>> result = solve(solver, task.problem, *task.start, task.batches, steps=5, key=key)
        >>> sorted(task.metrics(result.u, result.v))
        ['removed', 'val_accuracy', 'val_loss', 'zeros']
    """
    owner = "sparse_reweighting_task"
    single, group = positive(owner, "single", single), positive(owner, "group", group)
    check_key("sparse_reweighting_task", key)
    x, codes = coded_samples("X", X, "y", y)
    x_val, val_codes = coded_samples("X_val", X_val, "y_val", y_val)
    require_alike("X", X, x, "X_val", X_val, x_val)
    x, x_val = on_one_scale("X", x, "X_val", x_val)
    batch_size = require_batch(owner, "batch_size", batch_size, "X", len(x))
    val_batch_size = require_batch(owner, "val_batch_size", val_batch_size, "X_val", len(x_val))
    train, validation = ((jnp.asarray(a), jnp.asarray(b)) for a, b in ((x, codes), (x_val, val_codes)))
    v = initial(model, key, train[0][:1])
    require_classes(jax.eval_shape(lambda v: logits(model, v, train[0][:1]), v).shape[1], y=codes, y_val=val_codes)
    u = {
        "sample": jnp.zeros(len(train[1])),
        "single": jnp.log(jnp.asarray(single, float)),
        "group": jnp.log(jnp.asarray(group, float)),
    }

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        p, truth = probabilities(model, v, validation[0]), np.asarray(validation[1])
        of_truth = np.maximum(p[np.arange(len(truth)), truth], np.finfo(p.dtype).tiny)
        return {
            "val_loss": float(-np.log(of_truth).mean()),
            "val_accuracy": float((p.argmax(1) == truth).mean()),
            **sparsity(v),
        }

    source = Epochs(validation, train, upper_size=val_batch_size, lower_size=batch_size)
    problem = Problem(
        _ValidationLoss(model),
        _ReweightedLoss(model),
        project_upper=_within_log_range,
        regularizer=_sparse_group_lasso,
        random_lower=True,
    )
    return Task(problem, (u, v), source, metrics)


def sparsity(v: PyTree) -> dict[str, float]:
    """Return the share of entries with absolute value below 1e-3, and of arrays whose root mean square is below it."""
    scaled = jax.tree.map(lambda x: x / x.size**0.5, v)
    return {"zeros": zero_share(v, ZERO), "removed": removed_share(ByLeaf(), scaled, ZERO)}


def sparse_poisoning_task(
    model: Model,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    points: Points,
    *,
    key: PRNGKeyArray,
    p: float = 0.6,
    strength: float = 1e-5,
    training: Training = SOFTMAX_TRAINING,
    start: PyTree | None = None,
    **more: Any,
) -> Task:
    """Return the task of the untargeted attack on an l_p-regularised model.

    It is `untargeted_task` with strength times the sum of |w|^p in the lower loss, instead of its l2.

    Args:
        model, X, y, X_val, y_val, points, key, training, start, more: as for `untargeted_task`; training's l2 is
            for the start only.
        p: the exponent, in (0, 1].
        strength: positive. In the text it is 1, but the number of parameters is not given.

    Raises:
        InputError: p is not in (0, 1], or strength is not positive; as for `untargeted_task`.

    Metrics: those of `untargeted_task`, and `zeros` and `removed` of `sparsity`.
    """
    penalty = _penalty("sparse_poisoning_task", p, strength)
    v = retrained(model, training, X, y, None, key=key) if start is None else start
    training = dataclasses.replace(training, l2=0.0)
    task = untargeted_task(model, X, y, X_val, y_val, points, key=key, training=training, start=v, **more)

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        return task.metrics(u, v) | sparsity(v)

    return task._replace(problem=dataclasses.replace(task.problem, regularizer=penalty), metrics=metrics)


@dataclass(frozen=True)
class _Heads:
    """The functions of `sparse_fewshot_task` for tasks of `way` classes; equal ones are compiled once."""

    representation: Representation
    way: int
    penalty: _Scaled

    def scores(self, u: PyTree, v: Any, samples: Episode) -> Any:
        return unit(features_of(self.representation, u, samples)) @ jnp.swapaxes(v, 1, 2)

    def upper_loss(self, u: PyTree, v: Any, queries: Episode) -> Any:
        return jnp.mean(cross_entropies(self.scores(u, v, queries), queries.y))

    def lower_loss(self, u: PyTree, v: Any, samples: Episode) -> Any:
        return jnp.sum(cross_entropies(self.scores(u, v, samples), samples.y))

    def start(self, u: PyTree, batch: Batch, key: PRNGKeyArray | None) -> Any:
        # The start is treated as a constant: methods that differentiate the moves do not differentiate it.
        found = class_means(unit(features_of(self.representation, u, batch.lower)), batch.lower.y, self.way)
        return SCALE * jax.lax.stop_gradient(unit(found))

    def problem(self) -> Problem:
        return dataclasses.replace(functions_of(self)[0], regularizer=self.penalty)

    def adapt(self, u: PyTree, samples: Episode) -> Any:
        v = self.start(u, Batch(None, samples), None)
        return descended(self.problem(), u, v, samples, HEAD_RATE, ADAPT_STEPS)


def sparse_fewshot_task(
    representation: Representation,
    images: Any,
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    tasks: int = 30,
    p: float = 0.6,
    strength: float = 1e-4,
) -> FewShot:
    """Return the task of a representation with heads that are linear in features of length one, and sparse.

    The regulariser is strength times the sum of |w|^p. It is similar to `fewshot_task`, whose cosine heads have no
    scale that a penalty could act on.

    Args:
        representation, images, way, shot, key, queries, tasks: as for `fewshot_task`.
        p: the exponent, in (0, 1].
        strength: positive.

    Raises:
        InputError: p is not in (0, 1], or strength is not positive; as for `fewshot_task`.

    Metrics: as for `fewshot_task`; `zeros`, the share of the heads' entries with absolute value below 1e-3.
    """
    penalty = _penalty("sparse_fewshot_task", p, strength)
    source = sources(images, way, shot, queries, tasks)
    start = start_of(representation, source, key)

    def metrics(u: PyTree, v: Any) -> dict[str, float]:
        return accuracy(u, v) | {"zeros": zero_share(v, ZERO)}

    def use(way: int) -> tuple[Adapt, Scores]:
        return functions_of(_Heads(representation, way, penalty))[1:]

    problem = _Heads(representation, way, penalty).problem()
    accuracy = metrics_of(*use(way), source)
    return FewShot(Task(problem, start, source, metrics), use, representation.statistics)


def _penalty(owner: str, p: float, strength: float) -> _Scaled:
    return _Scaled(Lp(positive(owner, "p", p)), positive(owner, "strength", strength))
