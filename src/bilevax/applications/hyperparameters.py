"""Hyperparameters of a differentiable training loss, tuned by gradient (Mehra and Hamm 2021, section 2, eq. 2).

    min over u of  f(v*(u)) = loss on a validation set,   v*(u) = argmin over v of  training loss with hyperparameters u

Any pytree u will do: `tuning_task` takes the two losses. For classifiers the usual ones are ready as a `Piece` each,
in any combination: `classifier_task` and `tune`. Strengths are positive, so u holds their logarithms, within bounds.
`TunedLogisticRegression` tunes one L2 strength per feature.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from bilevax.applications._inputs import (
    classes_of,
    coded_samples,
    labels,
    numeric,
    on_one_scale,
    require_alike,
    require_batch,
    require_classes,
    require_solver,
)
from bilevax.applications._pickling import Picklable
from bilevax.applications._units import require_sizes, standard
from bilevax.applications.task import Task
from bilevax.applications.training import cross_entropy, weighted_mean
from bilevax.batches import Epochs, Samples, whole
from bilevax.linear_solve import CG
from bilevax.models import Model, initial, logits, pixels
from bilevax.problem import Batch, InputError, Problem, PyTree, check_key, identity, listed, require_count
from bilevax.search import check_trainer, train_lower
from bilevax.solve import Result, solve
from bilevax.solvers import Implicit, Penalty, base

STRENGTH_RANGE = 5.0  # log strengths of `logistic_task` lie within -5..5, strengths within 0.007..150
WHITENING_FLOOR = 1e-2
# Past some 60 steps of `penalty_solver(0.1)` the validation loss still falls while that of other data rises (means of
# five splits each of breast cancer and digits): dozens of strengths can overfit a validation set of a few hundred.
LOGISTIC_STEPS = 60


@dataclass(frozen=True)
class Piece:
    """One kind of hyperparameter: where it starts, its bounds, and where it enters the training loss.

    Args:
        name: its key in u.
        start: (v, x, classes) -> the array that u holds at first.
        low, high: bounds of every entry of that array.
        natural: that array in the units that a user thinks in.
        inputs: (u, x, key) -> x, a batch of features changed.
        targets: (u, targets) -> targets, both (n, classes).
        weights: (u, y) -> weight of each sample (n,); only their ratios matter.
        penalty: (u, v) -> a scalar that is added to the loss.
    """

    name: str
    start: Callable[[PyTree, Any, int], Any]
    low: float
    high: float
    natural: Callable[[Any], Any] = jnp.exp
    inputs: Callable[[Any, Any, Any], Any] | None = None
    targets: Callable[[Any, Any], Any] | None = None
    weights: Callable[[Any, Any], Any] | None = None
    penalty: Callable[[Any, PyTree], Any] | None = None


def _matrices(v: PyTree) -> list[Any]:
    return [p for p in jax.tree.leaves(v) if jnp.ndim(p) > 1]


def _first_layer(v: PyTree, features: int) -> Any:
    found = [p for p in _matrices(v) if jnp.ndim(p) == 2 and jnp.shape(p)[0] == features]
    if not found:
        raise InputError(
            f"feature_l2: the model has no matrix with one row for each of {features} features; its matrices have "
            f"shapes {listed([jnp.shape(p) for p in _matrices(v)])}. Use layer_l2 for such a model."
        )
    return found[0]


def _feature_start(v: PyTree, x: Any, classes: int) -> Any:
    features = int(np.prod(jnp.shape(x)[1:]))
    _first_layer(v, features)
    return jnp.full(features, -5.0)


def _feature_penalty(u: Any, v: PyTree) -> Any:
    return jnp.sum(jnp.exp(u)[:, None] * _first_layer(v, len(u)) ** 2) / 2


FEATURE_L2 = Piece("feature_l2", _feature_start, -10.0, 2.0, penalty=_feature_penalty)
"""exp(u_j)/2 times the squares of row j of the first layer: one strength per feature."""

LAYER_L2 = Piece(
    "layer_l2",
    lambda v, x, classes: jnp.full(len(_matrices(v)), -6.0),
    -12.0,
    2.0,
    penalty=lambda u, v: sum(jnp.exp(a) * jnp.sum(p**2) / 2 for a, p in zip(u, _matrices(v), strict=True)),
)
"""exp(u_l)/2 times the squares of the l-th matrix of v: one strength per layer."""

CLASS_WEIGHTS = Piece(
    "class_weights", lambda v, x, classes: jnp.zeros(classes), -3.0, 3.0, weights=lambda u, y: jnp.exp(u)[y]
)
"""A sample of class c counts exp(u_c) times."""

LABEL_SMOOTHING = Piece(
    "label_smoothing",
    lambda v, x, classes: jnp.full((), -3.0),
    -8.0,
    3.0,
    natural=jax.nn.sigmoid,
    targets=lambda u, t: (1 - jax.nn.sigmoid(u)) * t + jax.nn.sigmoid(u) / t.shape[1],
)
"""The part sigmoid(u) of each target is spread evenly over the classes (Szegedy et al. 2016)."""

INPUT_NOISE = Piece(
    "input_noise",
    lambda v, x, classes: jnp.full((), -3.0),
    -8.0,
    1.0,
    inputs=lambda u, x, key: x + jnp.exp(u) * jax.random.normal(key, x.shape, x.dtype),
)
"""Gaussian noise of standard deviation exp(u), in the features' units, drawn anew in each move."""


def _per_sample(x: Any, key: Any) -> Any:
    return jax.random.normal(key, (x.shape[0],) + (1,) * (x.ndim - 1), x.dtype)


BRIGHTNESS = Piece(
    "brightness",
    lambda v, x, classes: jnp.full((), -3.0),
    -8.0,
    1.0,
    inputs=lambda u, x, key: x + jnp.exp(u) * _per_sample(x, key),
)
"""A Gaussian shift of standard deviation exp(u), one for all features of a sample."""


def _contrast(u: Any, x: Any, key: Any) -> Any:
    middle = jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
    return middle + (x - middle) * jnp.exp(jnp.exp(u) * _per_sample(x, key))


CONTRAST = Piece("contrast", lambda v, x, classes: jnp.full((), -3.0), -8.0, 0.0, inputs=_contrast)
"""Each sample's deviations from its mean are stretched by a factor, log-normal with deviation exp(u)."""


def tuning_task(
    train_loss: Callable[..., Any],
    validation_loss: Callable[..., Any],
    u: PyTree,
    v: PyTree,
    train: PyTree,
    validation: PyTree,
    *,
    project: Callable[[PyTree], PyTree] = identity,
    batch_size: int | None = None,
    validation_batch_size: int | None = None,
) -> Task:
    """Tuning of any hyperparameters u of a training loss, as a Task.

    Args:
        train_loss: (u, v, samples[, key]) -> scalar; `samples` as a source gives them, with `.data` and `.index`.
        validation_loss: (u, v, samples) -> scalar.
        u, v: where hyperparameters and parameters start.
        train, validation: data sets, pytrees whose leaves lead with the axis of samples.
        project: onto the set that u lives in, bounds say.
        batch_size, validation_batch_size: samples per minibatch; None for all.

    Metrics: train_loss and validation_loss of (u, v) on all samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import solve
        >>> from bilevax.applications.hyperparameters import penalty_solver, tuning_task
        >>> task = tuning_task(
        ...     lambda u, v, s: jnp.mean((v - s.data) ** 2) + jnp.exp(u) * v**2,
        ...     lambda u, v, s: jnp.mean((v - s.data) ** 2),
        ...     jnp.zeros(()), jnp.zeros(()), jnp.array([1.0, 3.0]), jnp.array([1.5, 1.5]),
        ... )
        >>> result = solve(penalty_solver(), task.problem, *task.start, task.batches, steps=500, key=jax.random.key(0))
        >>> print(jnp.round(jnp.exp(result.u), 2))  # 2 / (1 + e^u) = 1.5
        0.33
    """
    problem = Problem(validation_loss, train_loss, project_upper=project)

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
    """The training loss of a model with pieces; equal for equal ones, so that programs are shared."""

    model: Model
    pieces: tuple[Piece, ...]

    def __call__(self, u: Any, v: PyTree, samples: Samples, key: Any = None) -> Any:
        x, y = samples.data
        x = pixels(x)  # pieces change floats
        model_key, *keys = jax.random.split(jax.random.key(0) if key is None else key, 1 + len(self.pieces))
        for piece, piece_key in zip(self.pieces, keys, strict=True):
            if piece.inputs is not None:
                x = piece.inputs(u[piece.name], x, piece_key)
        scores = logits(self.model, v, x, None if key is None else model_key)
        targets, weight = jax.nn.one_hot(y, scores.shape[1], dtype=scores.dtype), jnp.ones(len(y), scores.dtype)
        extra = 0.0
        for piece in self.pieces:
            if piece.targets is not None:
                targets = piece.targets(u[piece.name], targets)
            if piece.weights is not None:
                weight *= piece.weights(u[piece.name], y)
            if piece.penalty is not None:
                extra += piece.penalty(u[piece.name], v)
        return weighted_mean(optax.softmax_cross_entropy(scores, targets), weight) + extra


@dataclass(frozen=True)
class _ValidationLoss:
    """The mean cross-entropy of a model."""

    model: Model

    def __call__(self, u: Any, v: PyTree, samples: Samples) -> Any:
        return jnp.mean(cross_entropy(self.model, v, *samples.data))


@dataclass(frozen=True)
class _WithinBounds:
    """The projection of each piece's array onto its bounds."""

    pieces: tuple[Piece, ...]

    def __call__(self, u: Any) -> Any:
        return {piece.name: jnp.clip(u[piece.name], piece.low, piece.high) for piece in self.pieces}


def classifier_task(
    model: Model,
    X: Any,
    y: Any,
    X_validation: Any,
    y_validation: Any,
    pieces: Sequence[Piece],
    *,
    key: Any,
    batch_size: int | None = None,
    validation_batch_size: int | None = None,
) -> Task:
    """A classifier's hyperparameters as a Task: u is a dictionary with an array for each piece.

    The validation loss is the mean cross-entropy, without noise, weights or penalty.

    Args:
        model: maps X to logits (n, classes).
        X, y: features (n, ...) and integer labels (n,), 0..classes-1, to train on.
        X_validation, y_validation: the same, to tune by.
        pieces: which hyperparameters; all differ in name.
        key: a jax.random key, for the model's initialisation.
        batch_size, validation_batch_size: samples per minibatch; None for all.

    Raises:
        InputError: no pieces, or two of one name; arrays that are not numbers or not finite; lengths, features or
            classes that do not fit; a model without a matrix for `FEATURE_L2`.

    Example:
        >>> import jax
        >>> from bilevax.applications.hyperparameters import FEATURE_L2, INPUT_NOISE, classifier_task
        >>> from bilevax.datasets import noisy_digits
        >>> from bilevax.models import softmax_regression
        >>> d = noisy_digits(seed=0, noise=0.0)
        >>> task = classifier_task(
        ...     softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, [FEATURE_L2, INPUT_NOISE], key=jax.random.key(0)
        ... )
        >>> jax.tree.map(lambda x: x.shape, task.start[0])
        {'feature_l2': (64,), 'input_noise': ()}
    """
    pieces = _checked_pieces(pieces)
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
    v = initial(model, key, x[:1])
    classes = jax.eval_shape(lambda v, x: logits(model, v, x), v, x[:1]).shape[1]
    require_classes(classes, y=codes, y_validation=val_codes)
    return tuning_task(
        _TrainLoss(model, pieces),
        _ValidationLoss(model),
        {piece.name: piece.start(v, x, classes) for piece in pieces},
        v,
        (x, jnp.asarray(codes)),
        (x_val, jnp.asarray(val_codes)),
        project=_WithinBounds(pieces),
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
    )


def _checked_pieces(pieces: Any) -> tuple[Piece, ...]:
    pieces = (pieces,) if isinstance(pieces, Piece) else tuple(pieces) if isinstance(pieces, Iterable) else (pieces,)
    for piece in pieces:
        if not isinstance(piece, Piece):
            raise InputError(
                f"pieces holds {piece!r}. Pass a list of Piece objects, such as [FEATURE_L2, INPUT_NOISE]."
            )
    names = [piece.name for piece in pieces]
    if not names or len(set(names)) < len(names):
        raise InputError(f"pieces are {listed(names) or 'none'}. Pass at least one, no two of the same name.")
    return pieces


# The rate of u rises over the first steps: v starts far from v*(u), so that the first directions of u mean little, and
# at the full rate they lead astray.
_UPPER = optax.adam(optax.linear_schedule(0.01, 0.2, 20), b2=0.99)


@functools.cache
def penalty_solver(lower_rate: float = 1e-2) -> Penalty:
    """Penalty with settings that suit tuning; the same object at each call.

    lam / gamma is a damping: where v minimises the penalty function, p = -(H + lam/gamma)^-1 grad_v f.
    It is for training losses without noise. The mean of |grad_v g|^2 over minibatches or augmentations is that of the
    mean gradient plus their variance, which Penalty then makes small, too: it would switch augmentation off.
    """
    return Penalty(
        upper_optimizer=_UPPER,
        lower_optimizer=optax.adam(lower_rate),
        lower_steps=10,
        gamma=100.0,
        lam=10.0,
        nu=0.0,
        eps=1e-2,
        step_scale=1.0,
    )


@functools.cache
def implicit_solver(lower_rate: float = 1e-2) -> Implicit:
    """Implicit with damped conjugate gradients, for training losses with noise; the same object at each call.

    Without damping, a direction in which g is flat (any, in a minibatch smaller than the model) ends CG at once.
    """
    return Implicit(_UPPER, optax.adam(lower_rate), lower_steps=10, linear_solve=CG(steps=10, damping=0.01))


class Tuned(NamedTuple):
    """What `tune` returns.

    Attributes:
        hyperparameters: by the piece's name, in natural units.
        params: the model's parameters, trained from its start with them.
        validation_loss: of those parameters.
        result: of the solve, with its history.
    """

    hyperparameters: dict[str, np.ndarray]
    params: PyTree
    validation_loss: float
    result: Result


def tune(
    model: Model,
    X: Any,
    y: Any,
    X_validation: Any,
    y_validation: Any,
    pieces: Sequence[Piece],
    *,
    key: Any,
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

    Args:
        model, X, y, X_validation, y_validation, pieces, key, batch_size: as for `classifier_task`.
        solver: any solver, of which `steps` are taken. Unless told, `penalty_solver()`, or `implicit_solver()` where
            minibatches or a piece that changes inputs make the training loss random (see the former on why).
        train_steps, train_optimizer: of the training at the end.
        callbacks, resume, mesh: passed to `bilevax.solve`.

    Raises:
        InputError: as for `classifier_task`.
        SolveError: a value was not finite in mid-run.

    Example:
        >>> import jax
        >>> from bilevax.applications.hyperparameters import LAYER_L2, tune
        >>> from bilevax.datasets import noisy_digits
        >>> from bilevax.models import softmax_regression
        >>> d = noisy_digits(seed=0, noise=0.0, train=200)
        >>> tuned = tune(
        ...     softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, [LAYER_L2], key=jax.random.key(0), steps=20
        ... )
        >>> tuned.hyperparameters["layer_l2"].shape, tuned.validation_loss < 0.5
        ((1,), True)
    """
    train_steps = require_count("tune", "train_steps", train_steps)
    check_key("tune", key)
    if solver is not None:
        require_solver(solver)
    pieces = _checked_pieces(pieces)
    start_key, solve_key, train_key = jax.random.split(key, 3)
    task = classifier_task(model, X, y, X_validation, y_validation, pieces, key=start_key, batch_size=batch_size)
    source: Any = task.batches
    check_trainer("tune", "train_optimizer", train_optimizer, task.problem, *task.start, source.at(0, train_key))
    if solver is None:
        random = batch_size is not None or any(piece.inputs is not None for piece in pieces)
        solver = implicit_solver() if random else penalty_solver()
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
    v, loss, _, _ = train_lower(
        task.problem, train_optimizer, train_steps, result.u, task.start[1], task.batches, train_key
    )
    natural = {piece.name: np.asarray(piece.natural(result.u[piece.name])) for piece in pieces}
    return Tuned(natural, v, float(loss), result)


class _Weighted(NamedTuple):
    """Whitened features (n, d), labels (n,), and weights (n,) that sum to one; rows without weight are padding."""

    x: Any
    y: Any
    weight: Any


class _LogisticTraining(NamedTuple):
    """Samples, their number, and the whitening R = base I + vectors diag(stretch) vectors', (d, r) and (r,)."""

    samples: _Weighted
    count: Any
    base: Any
    vectors: Any
    stretch: Any

    def coefficients(self, z: Any) -> Any:
        """R z: those of the features as they came, for z of the whitened ones, (d, columns)."""
        return self.base * z + self.vectors @ (self.stretch[:, None] * (self.vectors.T @ z))


def _logistic_loss(v: PyTree, data: _Weighted) -> Any:
    scores = data.x @ v["weight"] + v["bias"]
    if scores.shape[1] == 1:  # two classes need but the difference of their scores
        losses = jax.nn.softplus(jnp.where(data.y == 1, -scores[:, 0], scores[:, 0]))
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, data.y)
    return jnp.sum(data.weight * losses)


def _logistic_validation_loss(u: Any, v: PyTree, data: _Weighted) -> Any:
    return _logistic_loss(v, data)


def _logistic_training_loss(u: Any, v: PyTree, data: _LogisticTraining) -> Any:
    penalty = jnp.sum(jnp.exp(u)[:, None] * data.coefficients(v["weight"]) ** 2) / (2 * data.count)
    return _logistic_loss(v, data.samples) + penalty


def _within_range(u: Any) -> Any:
    return jnp.clip(u, -STRENGTH_RANGE, STRENGTH_RANGE)


LOGISTIC = Problem(
    _logistic_validation_loss,
    _logistic_training_loss,
    project_upper=_within_range,
)
"""Logistic regression with one L2 strength exp(u_j) per feature, in units of scikit-learn's 1/C."""


def logistic_task(X: Any, y: Any, X_validation: Any, y_validation: Any, classes: int) -> Task:
    """Logistic regression with one L2 strength per feature, as a Task.

    g = mean cross-entropy + sum_j exp(u_j) |w_j|^2 / (2 n). At the start u = 0: scikit-learn's default C = 1.
    The lower variable is z with w = R z, R = (C + C's largest eigenvalue / 100)^(-1/2), C the covariance of X: so
    g's Hessian is near a multiple of the identity at first, and descent on g and on the penalty function (whose
    condition number is its square) takes tens of moves instead of thousands. The problem is the same one.

    Args:
        X, y: features (n, d) and labels (n,), 0..classes-1, to train on.
        X_validation, y_validation: the same, to tune by.
        classes: how many.

    Metrics: train_loss, validation_loss.

    Raises:
        InputError: lengths, features or labels that do not fit.

    Example:
        >>> import jax
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.preprocessing import scale
        >>> from bilevax import solve
        >>> from bilevax.applications.hyperparameters import logistic_task, penalty_solver
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> X = scale(X)
        >>> task = logistic_task(X[:300], y[:300], X[300:], y[300:], classes=2)
        >>> result = solve(
        ...     penalty_solver(0.1), task.problem, *task.start, task.batches, steps=50, key=jax.random.key(0)
        ... )
        >>> bool(result.history.upper_loss[-1] < 0.9 * result.history.upper_loss[5])
        True
    """
    classes = require_count("logistic_task", "classes", classes, 2)
    dtype = jnp.result_type(float)
    (x, codes), (x_val, val_codes) = (
        _rows("X", X, "y", y),
        _rows("X_validation", X_validation, "y_validation", y_validation),
    )
    if x_val.shape[1:] != x.shape[1:]:
        raise InputError(
            f"X has shape {x.shape} and X_validation {x_val.shape}. Both must be (samples, features), with the same "
            "features."
        )
    highest = int(max(codes.max(), val_codes.max()))
    if highest >= classes:
        raise InputError(f"There is a label {highest}, and classes is {classes}. Labels are 0..classes-1.")
    middle = x.mean(axis=0)
    x, x_val = x - middle, x_val - middle
    values, vectors = _principal(x)
    largest = values.max(initial=0.0)
    floor = WHITENING_FLOOR * largest if largest > 0 else 1.0
    plain = 1 / np.sqrt(floor)
    stretch = 1 / np.sqrt(values + floor) - plain
    # As many directions as the padded samples could have, so that their number changes no shape.
    directions = min(_padded(len(x)), x.shape[1])
    more = directions - len(values)
    vectors, stretch = np.pad(vectors, ((0, 0), (0, more))), np.pad(stretch, (0, more))

    def whitened(x: np.ndarray, codes: np.ndarray) -> _Weighted:
        n, rows = len(x), (0, _padded(len(x)) - len(x))
        z = plain * x + ((x @ vectors) * stretch) @ vectors.T
        return _Weighted(
            jnp.asarray(np.pad(z, (rows, (0, 0))), dtype),
            jnp.asarray(np.pad(codes, rows)),
            jnp.asarray(np.pad(np.full(n, 1 / n), rows), dtype),
        )

    train = _LogisticTraining(whitened(x, codes), *(jnp.asarray(a, dtype) for a in (len(x), plain, vectors, stretch)))
    validation = whitened(x_val, val_codes)
    columns = 1 if classes == 2 else classes
    v = {"weight": jnp.zeros((x.shape[1], columns), dtype), "bias": jnp.zeros(columns, dtype)}

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        return {
            "train_loss": float(_logistic_training_loss(u, v, train)),
            "validation_loss": float(_logistic_loss(v, validation)),
        }

    return Task(LOGISTIC, (jnp.zeros(x.shape[1], dtype), v), Batch(validation, train), metrics)


def _rows(x_name: str, X: Any, y_name: str, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """A table in double precision, and its labels 0, 1, ..."""
    x, codes = coded_samples(x_name, X, y_name, y)
    if x.ndim != 2:
        raise InputError(f"{x_name} has shape {x.shape}, and must be (samples, features).")
    x = numeric(x_name, X).astype(np.float64)
    require_sizes(x_name, x)
    return x, codes


def _padded(n: int) -> int:
    """A number of rows, up to an eighth above n, that data of about one size share: so they share programs."""
    step = 1 << max(n.bit_length() - 4, 0)
    return n + -n % step


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and eigenvectors (d, r) of x'x / n, r = min(n, d); no larger matrix than x is formed."""
    if len(x) < x.shape[1]:
        _, sizes, rows = np.linalg.svd(x, full_matrices=False)
        return sizes**2 / len(x), rows.T
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    return np.maximum(values, 0), vectors


def fit_logistic(strength: Any, X: Any, y: Any) -> LogisticRegression:
    """Logistic regression with one L2 strength per feature, solved to the end by scikit-learn.

    With features divided by the root of their strength the penalty is uniform, so C = 1 serves;
    `coef_` is of the features as they came.

    Args:
        strength: (d,), positive, in units of 1/C.
        X, y: features (n, d) and labels (n,).

    Raises:
        InputError: not one positive strength for each feature; arrays that are not numbers or not finite; one class.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.hyperparameters import fit_logistic
        >>> X, y = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.5], [3.0, 0.5]]), np.array([0, 0, 1, 1])
        >>> bool(abs(fit_logistic(np.array([1.0, 1e6]), X, y).coef_[0, 1]) < 1e-4)
        True
    """
    strength, x, y = (
        numeric("strength", strength).astype(np.float64),
        numeric("X", X).astype(np.float64),
        labels("y", y),
    )
    if x.ndim != 2 or strength.shape != x.shape[1:]:
        raise InputError(
            f"strength has shape {strength.shape} and X {x.shape}. One strength for each column of X is needed."
        )
    if len(x) != len(y):
        raise InputError(f"X has {len(x)} samples and y {len(y)} labels. One label each is needed.")
    if wrong := int((~(strength > 0)).sum()):
        raise InputError(
            f"strength has {wrong} of {strength.size} entries that are not positive. "
            "A small one, 1e-6 say, leaves a feature all but free."
        )
    require_sizes("X", x)
    classes = classes_of("y", y)
    scale = 1 / np.sqrt(strength)
    middle = x.mean(axis=0)
    x = (x - middle) * scale
    rows = np.eye(0)
    if len(x) < x.shape[1]:
        # The coefficients lie in the span of the samples, where a Hessian is no larger than their number.
        left, sizes, rows = np.linalg.svd(x, full_matrices=False)
        x = left * sizes
    # A factorisation of the Hessian takes (d * classes)^3: fine for one column of coefficients, slow for ten.
    newton = "newton-cholesky" if len(classes) == 2 else "newton-cg"
    model = LogisticRegression(solver=newton, max_iter=200, tol=1e-8).fit(x, y)
    model.coef_ = (model.coef_ @ rows if rows.size else model.coef_) * scale
    model.n_features_in_ = len(scale)
    model.intercept_ = model.intercept_ - model.coef_ @ middle
    return model


def set_aside(codes: np.ndarray, part: float, random_state: np.random.RandomState) -> np.ndarray:
    """Which samples (n,) to set aside: a part of each class, at least one and not all, whatever its size.

    scikit-learn's stratified split keeps the shares too, but may put a small class on one side alone.

    Args:
        codes: labels (n,), 0..classes-1, two or more samples of each.
        part: between 0 and 1.
        random_state: draws them.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.hyperparameters import set_aside
        >>> codes = np.array([0] * 8 + [1] * 2)
        >>> codes[set_aside(codes, 0.25, np.random.RandomState(0))]
        array([0, 0, 1])
    """
    aside = np.zeros(len(codes), bool)
    for code, size in enumerate(np.bincount(codes)):
        n = int(np.clip(round(part * size), 1, size - 1))
        aside[random_state.permutation(np.flatnonzero(codes == code))[:n]] = True
    return aside


class TunedLogisticRegression(ClassifierMixin, Picklable, BaseEstimator):
    """Logistic regression with one L2 strength per feature, tuned by gradient on a validation set.

    The strengths are tuned by `logistic_task`; the coefficients are then fitted to all data with them
    (`fit_logistic`). The units of the features change nothing but those of `coef_` and `alpha_`: inside, features are
    divided by their standard deviations, and the strengths start alike.

    Args:
        validation_fraction: the part of fit's data that is set aside to tune by, stratified by class.
        steps: of the solver.
        solver: any solver of bilevax; None for `penalty_solver(0.1)`.
        random_state: an integer, a NumPy RandomState or None; says which samples are set aside.
        callbacks, resume: passed to `bilevax.solve`.

    Attributes:
        coef_: (1, d) for two classes, else (classes, d).
        intercept_: (1,) or (classes,).
        alpha_: (d,) the tuned strengths, in units of scikit-learn's 1/C, of the features as they came.
        classes_: the labels, sorted.
        n_iter_: steps taken.
        history_: the solve's, an entry per step.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.preprocessing import StandardScaler
        >>> from bilevax.applications.hyperparameters import TunedLogisticRegression
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = TunedLogisticRegression(steps=50).fit(StandardScaler().fit_transform(X), y)
        >>> model.alpha_.shape, bool(model.alpha_.max() > 2 * model.alpha_.min())
        ((30,), True)
    """

    def __init__(
        self,
        validation_fraction: float = 0.25,
        steps: int = LOGISTIC_STEPS,
        solver: base.Solver | None = None,
        random_state: Any = 0,
        callbacks: Sequence[Any] = (),
        resume: Any = None,
    ):
        self.validation_fraction = validation_fraction
        self.steps = steps
        self.solver = solver
        self.random_state = random_state
        self.callbacks = callbacks
        self.resume = resume

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> Self:
        """Tune and train on X (n, d) with labels y (n,); by X_val and y_val where given, else by a part of X.

        Raises:
            InputError: classes too small for a stratified split; validation labels that y lacks.
            ValueError: as scikit-learn's validation has it, for features that are not finite numbers, say.
        """
        steps = require_count(type(self).__name__, "steps", self.steps)
        if self.solver is not None:
            require_solver(self.solver)
        X, y = validate_data(self, X, y, dtype=np.float64)
        require_sizes("X", X)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"y has one class only ({listed(self.classes_)}). At least two are needed to learn from: "
                "check the labels, or add samples of the other classes."
            )
        if (X_val is None) != (y_val is None):
            raise InputError("X_val and y_val go together: pass both, or neither.")
        if X_val is None:
            x, x_val, labels, val_labels = self._split(X, codes)
            all_x, all_labels = X, codes
        else:
            x, labels = X, codes
            x_val, known = validate_data(self, X_val, y_val, dtype=np.float64, reset=False)
            require_sizes("X_val", np.asarray(x_val))
            unknown = sorted(set(np.asarray(known).tolist()) - set(self.classes_.tolist()), key=repr)
            if unknown:
                raise InputError(
                    f"y_val has labels that y lacks: {listed(unknown)}. y has {listed(self.classes_)}. "
                    "Spell them alike, or leave those samples out."
                )
            val_labels = np.searchsorted(self.classes_, known)
            all_x, all_labels = np.concatenate([x, x_val]), np.concatenate([labels, val_labels])
        unit = standard(X, np.arange(X.shape[1]))[1]
        task = logistic_task(x / unit, labels, x_val / unit, val_labels, len(self.classes_))
        solver = penalty_solver(0.1) if self.solver is None else self.solver
        result = solve(
            solver,
            task.problem,
            *task.start,
            task.batches,
            steps=steps,
            key=jax.random.key(0),
            callbacks=self.callbacks,
            resume=self.resume,
        )
        self.alpha_ = np.exp(np.asarray(result.u, np.float64)) * unit**2
        self.n_iter_ = result.steps
        self.history_ = result.history
        fitted = fit_logistic(self.alpha_, all_x, all_labels)
        self.coef_, self.intercept_ = fitted.coef_, fitted.intercept_
        return self

    def _split(self, X: np.ndarray, codes: np.ndarray) -> Any:
        part = self.validation_fraction
        if isinstance(part, bool) or not isinstance(part, float | int | np.number) or not 0 < part < 1:
            raise InputError(f"validation_fraction is {part!r}, and must be a number between 0 and 1.")
        sizes = np.bincount(codes)
        if sizes.min() < 2:
            few = [f"{c}: {n}" for c, n in zip(self.classes_.tolist(), sizes, strict=True) if n < 2]
            raise InputError(
                f"y has classes with fewer than two samples ({listed(few, quote=False)}), so a validation set cannot "
                "be set aside. Add samples of those, leave them out, or pass X_val and y_val."
            )
        aside = set_aside(codes, float(part), check_random_state(self.random_state))
        return X[~aside], X[aside], codes[~aside], codes[aside]

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n, classes), or (n,) for two classes: the log-odds of `classes_[1]`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, classes), in the order of `classes_`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most likely label of each sample, (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
