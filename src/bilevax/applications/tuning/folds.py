"""Cross-validation of a classifier's hyperparameters: one lower problem for each fold, all under one u.

    min over u of  1/K sum over folds k of f_k(v_k(u)),   v_k(u) = argmin over v of g_k(u, v)

f_k is the validation loss on the samples that fold k holds out, g_k the training loss on the others. The K problems are
one problem whose v has a leading axis of folds. Folds of different sizes are filled with samples of their own that have
the weight zero, so all have one shape and one program.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bilevax._checks import InputError, described
from bilevax.applications.task import Task
from bilevax.applications.tuning.glm.folds import ToSplit, checked_folds
from bilevax.loop.sources import Epochs, Samples, whole
from bilevax.problem import Problem


@dataclass(frozen=True)
class _SumOfFolds:
    """The sum of the training losses, so that the problems of the folds do not touch each other."""

    train_loss: Any

    def __call__(self, u: PyTree, v: PyTree, samples: Samples, *, key: PRNGKeyArray) -> Float[Array, ""]:
        def one(v: PyTree, data: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
            return self.train_loss(u, v, Samples(data, samples.index), key=key)

        keys = jax.random.split(key, len(jax.tree.leaves(v)[0]))
        return jnp.sum(jax.vmap(one, (0, 1, 0))(v, samples.data, keys))


@dataclass(frozen=True)
class _MeanOfFolds:
    """The mean of the validation losses."""

    validation_loss: Any

    def __call__(self, u: PyTree, v: PyTree, samples: Samples) -> Float[Array, ""]:
        def one(v: PyTree, data: PyTree) -> Float[Array, ""]:
            return self.validation_loss(u, v, Samples(data, samples.index))

        return jnp.mean(jax.vmap(one, (0, 1))(v, samples.data))


def over_folds(task: Task, folds: Any, batch_size: int | None) -> Task:
    """A task of `classifier_task` on all samples as the task of its folds; v has a leading axis of folds.

    Args:
        task: all samples are its training samples and its validation samples.
        folds: a number of folds, a splitter of scikit-learn, or pairs of indices.
        batch_size: samples of each fold in a minibatch; None for all.

    Raises:
        InputError: folds that cannot be used, or that train without one of the classes; fewer training samples in a
            fold than in a minibatch.
    """
    source: Any = task.batches
    x, y = source.lower
    if isinstance(folds, float):
        raise InputError(
            f"folds is {described(folds)}, and must be a number of folds, or a splitter. For one validation set pass "
            "X_validation and y_validation."
        )
    labels = np.asarray(y)
    n = len(labels)
    found = checked_folds(folds, ToSplit(np.zeros((n, 1)), labels, None, True, np.arange(n), n), "folds")
    fewest = int(found.train.sum(0).min())
    if batch_size is not None and fewest < batch_size:
        raise InputError(
            f"A fold trains on {fewest} samples, fewer than one batch of {batch_size}. Lower batch_size, or pass None "
            "to use all of them at each step."
        )
    train, held = (_filled(mask, x, y) for mask in (found.train, found.held))
    problem = Problem(
        _MeanOfFolds(task.problem.upper_loss),
        _SumOfFolds(task.problem.lower_loss),
        project_upper=task.problem.project_upper,
        random_lower=True,
    )
    u, v = task.start
    count = found.train.shape[1]
    start = jax.tree.map(lambda p: jnp.broadcast_to(p, (count, *jnp.shape(p))), v)

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        return {"validation_loss": float(problem.upper(u, v, whole(held), jax.random.key(0)))}

    return Task(problem, (u, start), Epochs(held, train, lower_size=batch_size), metrics)


def _filled(mask: Bool[np.ndarray, "n folds"], x: Array, y: Array) -> tuple[Array, Array, Float[Array, "m folds"]]:
    """The samples of each fold with their weights, (m, folds, ...), m being those of the largest fold."""
    places = [np.flatnonzero(column) for column in mask.T]
    m = max(map(len, places))
    rows = np.stack([np.resize(place, m) for place in places], axis=1)
    weight = np.arange(m)[:, None] < [len(place) for place in places]
    dtype = jnp.result_type(float)
    return x[rows], y[rows], jnp.asarray(weight, dtype)
