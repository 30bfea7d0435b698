"""Hyperparameters of a differentiable training loss, tuned by gradient (Mehra and Hamm 2021, section 2, eq. 2).

    min over u of  f(v*(u)) = loss on a validation set,   v*(u) = argmin over v of  training loss with hyperparameters u

u is any pytree: `tuning_task` takes the two losses. For classifiers, `classifier_task` and `tune` combine the usual
hyperparameters, each a `Hyperparameter`. Strengths are positive, so u holds their logarithms, within bounds.
`TunedGLM` tunes linear models by cross-validation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped
from numpy.typing import ArrayLike

from bilevax._arrays import check_key
from bilevax._checks import InputError, listed, require_count
from bilevax.applications._inputs import coded_samples, on_one_scale, require_alike, require_classes
from bilevax.applications._settings import require_batch, require_solver
from bilevax.applications.task import Task
from bilevax.applications.tuning.folds import over_folds
from bilevax.applications.tuning.hyperparameters import Hyperparameter
from bilevax.applications.tuning.recipes import implicit_solver, penalty_solver
from bilevax.loop.result import Result
from bilevax.loop.solve import solve
from bilevax.loop.sources import Epochs, Samples, whole
from bilevax.nn.adapters import as_model
from bilevax.nn.model import Model, initial, logits, pixels
from bilevax.nn.statistics import settled
from bilevax.nn.training import cross_entropy, weighted_mean
from bilevax.problem import Problem, identity
from bilevax.search import check_trainer, train_lower
from bilevax.solvers import base


def tuning_task(
    train_loss: Callable[..., Float[Array, ""]],
    validation_loss: Callable[..., Float[Array, ""]],
    u: PyTree,
    v: PyTree,
    train: PyTree,
    validation: PyTree,
    *,
    random_train: bool = False,
    project: Callable[[PyTree], PyTree] = identity,
    batch_size: int | None = None,
    validation_batch_size: int | None = None,
) -> Task:
    """Tuning of any hyperparameters u of a training loss, as a Task.

    Args:
        train_loss: (u, v, samples) -> scalar; `samples` as a source gives them, with `.data` and `.index`.
        validation_loss: (u, v, samples) -> scalar.
        u, v: the start of the hyperparameters and the parameters.
        train, validation: data sets, pytrees whose leaves have a leading axis of samples.
        random_train: whether train_loss is random; it is then called as train_loss(u, v, samples, key=key).
        project: the projection onto the set of allowed u, for example bounds.
        batch_size, validation_batch_size: samples per minibatch; None for all.

    Metrics: train_loss and validation_loss of (u, v) on all samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import solve
        >>> from bilevax.applications.tuning import penalty_solver, tuning_task
        >>> task = tuning_task(
        ...     lambda u, v, s: jnp.mean((v - s.data) ** 2) + jnp.exp(u) * v**2,
        ...     lambda u, v, s: jnp.mean((v - s.data) ** 2),
        ...     jnp.zeros(()), jnp.zeros(()), jnp.array([1.0, 3.0]), jnp.array([1.5, 1.5]),
        ... )
        >>> solver, key = penalty_solver(500), jax.random.key(0)
        >>> result = solve(solver, task.problem, *task.start, task.batches, steps=500, key=key)
        >>> print(jnp.round(jnp.exp(result.u), 2))  # 2 / (1 + e^u) = 1.5
        0.33
    """
    problem = Problem(validation_loss, train_loss, project_upper=project, random_lower=random_train)

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        key = jax.random.key(0)
        return {
            "train_loss": float(problem.lower(u, v, whole(train), key)),
            "validation_loss": float(problem.upper(u, v, whole(validation), key)),
        }

    train, validation = jax.tree.map(jnp.asarray, (train, validation))
    batches = Epochs(validation, train, upper_size=validation_batch_size, lower_size=batch_size)
    return Task(problem, (u, v), batches, metrics)


@dataclass(frozen=True)
class _TrainLoss:
    """The training loss of a model with hyperparameters; samples are (x, y), or (x, y, weight)."""

    model: Model
    hyperparameters: tuple[Hyperparameter, ...]

    def __call__(
        self, u: dict[str, Float[Array, "..."]], v: PyTree, samples: Samples, *, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        x, y, *given = samples.data
        x = jnp.asarray(pixels(x))  # hyperparameters change floats
        model_key, *keys = jax.random.split(key, 1 + len(self.hyperparameters))
        for h, own_key in zip(self.hyperparameters, keys, strict=True):
            if h.inputs is not None:
                x = h.inputs(u[h.name], x, own_key)
        scores = logits(self.model, v, x, model_key)
        targets = jax.nn.one_hot(y, scores.shape[1], dtype=scores.dtype)
        weight = given[0].astype(scores.dtype) if given else jnp.ones(len(y), scores.dtype)
        extra = 0.0
        for h in self.hyperparameters:
            if h.targets is not None:
                targets = h.targets(u[h.name], targets)
            if h.weights is not None:
                weight *= h.weights(u[h.name], y)
            if h.penalty is not None:
                extra += h.penalty(u[h.name], v)
        return weighted_mean(optax.softmax_cross_entropy(scores, targets), weight) + extra


@dataclass(frozen=True)
class _ValidationLoss:
    """The mean cross-entropy of a model; samples are (x, y), or (x, y, weight)."""

    model: Model

    def __call__(self, u: dict[str, Float[Array, "..."]], v: PyTree, samples: Samples) -> Float[Array, ""]:
        x, y, *given = samples.data
        found = cross_entropy(self.model, v, x, y)
        return weighted_mean(found, given[0].astype(found.dtype)) if given else jnp.mean(found)


@dataclass(frozen=True)
class _WithinBounds:
    """The projection of each hyperparameter's array onto its bounds."""

    hyperparameters: tuple[Hyperparameter, ...]

    def __call__(self, u: dict[str, Float[Array, "..."]]) -> dict[str, Float[Array, "..."]]:
        return {h.name: jnp.clip(u[h.name], h.low, h.high) for h in self.hyperparameters}


def classifier_task(
    model: Model | Any,
    X: ArrayLike,
    y: ArrayLike,
    X_validation: ArrayLike,
    y_validation: ArrayLike,
    hyperparameters: Sequence[Hyperparameter],
    *,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    validation_batch_size: int | None = None,
) -> Task:
    """A classifier's hyperparameters as a Task: u is a dictionary with an array for each hyperparameter.

    The validation loss is the mean cross-entropy, without noise, weights or penalty.

    Args:
        model: maps X to logits (n, classes); a Model, or what `bilevax.nn.as_model` makes one from.
        X, y: features (n, ...) and integer labels (n,), 0..classes-1, to train on.
        X_validation, y_validation: the same, to tune by.
        hyperparameters: with different names.
        key: a jax.random key, for the model's initialisation.
        batch_size, validation_batch_size: samples per minibatch; None for all.

    Raises:
        InputError: no hyperparameters, or two of one name; arrays that are not numbers or not finite; lengths, features
            or classes that do not fit; a model without a matrix for `FEATURE_L2`.

    Example:
        >>> import jax
        >>> from bilevax.applications.tuning import FEATURE_L2, INPUT_NOISE
        >>> from bilevax.applications.tuning import classifier_task
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d = noisy_digits(seed=0, noise=0.0)
        >>> task = classifier_task(
        ...     softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, [FEATURE_L2, INPUT_NOISE], key=jax.random.key(0)
        ... )
        >>> jax.tree.map(lambda x: x.shape, task.start[0])
        {'feature_l2': (64,), 'input_noise': ()}
    """
    hyperparameters = _checked(hyperparameters)
    check_key("classifier_task", key)
    x, codes = coded_samples("X", X, "y", y)
    x_val, val_codes = coded_samples("X_validation", X_validation, "y_validation", y_validation)
    require_alike("X", X, x, "X_validation", X_validation, x_val)
    x, x_val = on_one_scale("X", x, "X_validation", x_val)
    batch_size = require_batch("classifier_task", "batch_size", batch_size, "X", len(x))
    validation_batch_size = require_batch(
        "classifier_task", "validation_batch_size", validation_batch_size, "X_validation", len(x_val)
    )
    x, x_val = jnp.asarray(x), jnp.asarray(x_val)
    model = as_model(model, _labels(codes, val_codes))
    v = initial(model, key, x[:1])
    classes = jax.eval_shape(lambda v, x: logits(model, v, x), v, x[:1]).shape[1]
    require_classes(classes, y=codes, y_validation=val_codes)
    return tuning_task(
        _TrainLoss(model, hyperparameters),
        _ValidationLoss(model),
        {h.name: h.start(v, x, classes) for h in hyperparameters},
        v,
        (x, jnp.asarray(codes)),
        (x_val, jnp.asarray(val_codes)),
        random_train=True,
        project=_WithinBounds(hyperparameters),
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
    )


def _labels(y: ArrayLike, y_validation: ArrayLike) -> int:
    """How many classes labels 0..classes-1 are of."""
    return 1 + int(max(np.max(y), np.max(y_validation)))


def _checked(hyperparameters: Any) -> tuple[Hyperparameter, ...]:
    several = isinstance(hyperparameters, Iterable)
    found = tuple(hyperparameters) if several else (hyperparameters,)
    for one in found:
        if not isinstance(one, Hyperparameter):
            raise InputError(
                f"hyperparameters holds {one!r}. Pass a list of Hyperparameter objects, for example "
                "[FEATURE_L2, INPUT_NOISE]."
            )
    names = [one.name for one in found]
    if not names or len(set(names)) < len(names):
        raise InputError(f"hyperparameters are {listed(names) or 'none'}. Pass at least one, with different names.")
    return found


class Tuned(NamedTuple):
    """The result of `tune`.

    Attributes:
        hyperparameters: in natural units, by name.
        params: the model's parameters, trained from its start with these hyperparameters, with folds on all samples;
            with batch normalisation `bilevax.nn.Settled`.
        validation_loss: at these parameters; with folds the mean over them, each with parameters trained from the start
            without it. Batch normalisation uses the statistics of the validation samples.
        result: of the solve, with its history. With folds, v has a leading axis of folds.
    """

    hyperparameters: dict[str, Shaped[np.ndarray, "..."]]
    params: PyTree
    validation_loss: float
    result: Result


def tune(
    model: Model | Any,
    X: ArrayLike,
    y: ArrayLike,
    X_validation: ArrayLike | None = None,
    y_validation: ArrayLike | None = None,
    hyperparameters: Sequence[Hyperparameter] = (),
    *,
    key: PRNGKeyArray,
    folds: Any = None,
    solver: base.Solver | None = None,
    steps: int = 200,
    batch_size: int | None = None,
    train_steps: int = 500,
    train_optimizer: optax.GradientTransformation = optax.adam(1e-2),
    callbacks: Sequence[Any] = (),
    resume: Any = None,
    mesh: Any = None,
) -> Tuned:
    """Tune a classifier's hyperparameters by gradient, then train it with them from its start.

    The upper loss is that of the validation samples. With `folds` instead, it is the mean over the folds of the loss of
    a model that is trained without the fold; all are trained together, and at the end one model on all samples.

    Args:
        model, X, y, X_validation, y_validation, hyperparameters, key, batch_size: as for `classifier_task`.
        folds: a number of folds, a splitter of scikit-learn, or pairs of indices. A number keeps the proportions of
            the classes and does not shuffle, as in scikit-learn. Each fold has a copy of its samples.
        solver: any solver. None for `penalty_solver(steps)`, or for `implicit_solver(steps)` if minibatches or a
            hyperparameter that changes inputs make the training loss random (see `penalty_solver`).
        steps: of the solver.
        train_steps, train_optimizer: of the training at the end.
        callbacks, resume, mesh: passed to `bilevax.solve`.

    Raises:
        InputError: as for `classifier_task`; validation samples and folds, or neither; folds that cannot be used, for
            example because one trains without a class.
        SolveError: a value was not finite during the solve.

    Example:
        >>> import jax
        >>> from bilevax.applications.tuning import LAYER_L2
        >>> from bilevax.applications.tuning import tune
        >>> from bilevax.data import noisy_digits
        >>> from bilevax.nn import softmax_regression
        >>> d, model = noisy_digits(seed=0, noise=0.0, train=200), softmax_regression(10)
        >>> settings = {"hyperparameters": [LAYER_L2], "key": jax.random.key(0), "steps": 20}
        >>> tuned = tune(model, d.X, d.y, d.X_clean, d.y_clean, **settings)
        >>> tuned.hyperparameters["layer_l2"].shape, tuned.validation_loss < 0.5
        ((1,), True)
        >>> tune(model, d.X, d.y, folds=4, **settings).validation_loss < 0.5
        True
    """
    train_steps = require_count("tune", "train_steps", train_steps)
    check_key("tune", key)
    if solver is not None:
        require_solver(solver)
    hyperparameters = _checked(hyperparameters)
    held = _upper_samples(X, y, X_validation, y_validation, folds)
    start_key, solve_key, train_key = jax.random.split(key, 3)
    whole_task = classifier_task(model, X, y, *held, hyperparameters, key=start_key, batch_size=batch_size)
    task = whole_task if folds is None else over_folds(whole_task, folds, batch_size)
    source: Any = task.batches
    check_trainer("tune", "train_optimizer", train_optimizer, task.problem, *task.start, source.at(0, train_key))
    if solver is None:
        random = batch_size is not None or any(h.inputs is not None for h in hyperparameters)
        solver = implicit_solver(steps) if random else penalty_solver(steps)
    result = solve(
        solver,
        task.problem,
        *task.start,
        task.batches,
        steps=steps,
        key=solve_key,
        callbacks=callbacks,
        resume=resume,
        mesh=mesh,
    )

    def trained(task: Task) -> tuple[PyTree, float]:
        v, loss, _, _ = train_lower(
            task.problem, train_optimizer, train_steps, result.u, task.start[1], task.batches, train_key
        )
        return v, float(loss)

    v, loss = trained(task)
    if folds is not None:
        v, _ = trained(whole_task)
    natural = {h.name: np.asarray(h.natural(result.u[h.name])) for h in hyperparameters}
    samples: Any = whole_task.batches
    params = settled(as_model(model, _labels(y, held[1])), v, samples.lower[0], key=train_key, batch_size=batch_size)
    return Tuned(natural, params, loss, result)


def _upper_samples(
    X: ArrayLike, y: ArrayLike, X_validation: ArrayLike | None, y_validation: ArrayLike | None, folds: Any
) -> tuple[ArrayLike, ArrayLike]:
    """The validation samples; with folds all samples. Exactly one of the two is needed."""
    if folds is not None:
        if X_validation is not None or y_validation is not None:
            raise InputError("tune: folds and validation samples are both given. Pass one of them.")
        return X, y
    if X_validation is not None and y_validation is not None:
        return X_validation, y_validation
    none = X_validation is None and y_validation is None
    missing = "X_validation and y_validation are" if none else "one of X_validation and y_validation is"
    raise InputError(f"tune: {missing} missing. Pass both, or a number of folds, for example folds=5.")
