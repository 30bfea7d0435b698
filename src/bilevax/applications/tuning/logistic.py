"""Logistic regression with one L2 strength per feature, tuned by gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float64, Int, PyTree
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from bilevax._checks import InputError, require_count
from bilevax.applications._inputs import (
    classes_of,
    coded_samples,
    labels,
    numeric,
    require_label_each,
    table,
)
from bilevax.applications.task import Task
from bilevax.applications.tuning.hyperparameters import STRENGTH_RANGE
from bilevax.problem import Batch, Problem

WHITENING_FLOOR = 1e-2
# Past some 60 steps of `penalty_solver` the validation loss still falls while that of other data rises (means of
# five splits each of breast cancer and digits): dozens of strengths can overfit a validation set of a few hundred.
LOGISTIC_STEPS = 60
LOGISTIC_RATE = 0.1  # of v, which is whitened


class _Weighted(NamedTuple):
    """Whitened features, labels, and weights that sum to one; rows of zero weight are padding."""

    x: Float[Array, "n d"]
    y: Int[Array, " n"]
    weight: Float[Array, " n"]


class _LogisticTraining(NamedTuple):
    """Samples, their number, and the whitening R = base I + vectors diag(stretch) vectors'."""

    samples: _Weighted
    number: Float[Array, ""]
    base: Float[Array, ""]
    vectors: Float[Array, "d r"]
    stretch: Float[Array, " r"]

    def coefficients(self, z: Float[Array, "d columns"]) -> Float[Array, "d columns"]:
        """R z: the coefficients of the original features, from coefficients z of the whitened features."""
        return self.base * z + self.vectors @ (self.stretch[:, None] * (self.vectors.T @ z))


def _logistic_loss(v: PyTree[Float[Array, "..."]], data: _Weighted) -> Float[Array, ""]:
    scores = data.x @ v["weight"] + v["bias"]
    if scores.shape[1] == 1:  # for two classes, the difference of their scores
        losses = jax.nn.softplus(jnp.where(data.y == 1, -scores[:, 0], scores[:, 0]))
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, data.y)
    return jnp.sum(data.weight * losses)


def _logistic_validation_loss(
    u: Float[Array, " d"], v: PyTree[Float[Array, "..."]], data: _Weighted
) -> Float[Array, ""]:
    return _logistic_loss(v, data)


def _logistic_training_loss(
    u: Float[Array, " d"], v: PyTree[Float[Array, "..."]], data: _LogisticTraining
) -> Float[Array, ""]:
    penalty = jnp.sum(jnp.exp(u)[:, None] * data.coefficients(v["weight"]) ** 2) / (2 * data.number)
    return _logistic_loss(v, data.samples) + penalty


def _within_range(u: Float[Array, " d"]) -> Float[Array, " d"]:
    return jnp.clip(u, -STRENGTH_RANGE, STRENGTH_RANGE)


LOGISTIC = Problem(_logistic_validation_loss, _logistic_training_loss, project_upper=_within_range)
"""Logistic regression with one L2 strength exp(u_j) per feature, in units of scikit-learn's 1/C."""


def logistic_task(X: ArrayLike, y: ArrayLike, X_validation: ArrayLike, y_validation: ArrayLike, classes: int) -> Task:
    """Logistic regression with one L2 strength per feature, as a Task.

    g = mean cross-entropy + sum_j exp(u_j) |w_j|^2 / (2 n). At the start u = 0: scikit-learn's default C = 1.
    The lower variable is z with w = R z, R = (C + lambda I / 100)^(-1/2), C the covariance of X and lambda its largest
    eigenvalue. The Hessian of g is then near a multiple of the identity at the start, and descent on g and on the
    penalty function (whose condition number is its square) takes tens of updates instead of thousands. The solution
    is the same.

    Args:
        X, y: features (n, d) and labels (n,), 0..classes-1, to train on.
        X_validation, y_validation: the same, to tune by.
        classes: their number.

    Metrics: train_loss, validation_loss.

    Raises:
        InputError: lengths, features or labels that do not fit.

    Example:
        >>> import jax
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.preprocessing import scale
        >>> from bilevax import solve
        >>> from bilevax.applications.tuning import logistic_task, penalty_solver
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> X = scale(X)
        >>> task = logistic_task(X[:300], y[:300], X[300:], y[300:], classes=2)
        >>> solver, key = penalty_solver(50, lower_rate=0.1), jax.random.key(0)
        >>> result = solve(solver, task.problem, *task.start, task.batches, steps=50, key=key)
        >>> bool(result.history.upper_loss[-1] < 0.9 * result.history.upper_loss[5])
        True
    """
    classes = require_count("logistic_task", "classes", classes, 2)
    dtype = jnp.result_type(float)
    x, (_, codes) = table("X", X), coded_samples("X", X, "y", y)
    x_val = table("X_validation", X_validation)
    _, val_codes = coded_samples("X_validation", X_validation, "y_validation", y_validation)
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
    base, vectors, stretch = _whitening(x)

    def whitened(x: Float64[np.ndarray, "n d"], codes: Int[np.ndarray, " n"]) -> _Weighted:
        n, rows = len(x), (0, _padded(len(x)) - len(x))
        z = base * x + ((x @ vectors) * stretch) @ vectors.T
        return _Weighted(
            jnp.asarray(np.pad(z, (rows, (0, 0))), dtype),
            jnp.asarray(np.pad(codes, rows)),
            jnp.asarray(np.pad(np.full(n, 1 / n), rows), dtype),
        )

    train = _LogisticTraining(whitened(x, codes), *(jnp.asarray(a, dtype) for a in (len(x), base, vectors, stretch)))
    validation = whitened(x_val, val_codes)
    columns = 1 if classes == 2 else classes
    v = {"weight": jnp.zeros((x.shape[1], columns), dtype), "bias": jnp.zeros(columns, dtype)}

    def metrics(u: Float[Array, " d"], v: PyTree[Float[Array, "..."]]) -> dict[str, float]:
        return {
            "train_loss": float(_logistic_training_loss(u, v, train)),
            "validation_loss": float(_logistic_loss(v, validation)),
        }

    return Task(LOGISTIC, (jnp.zeros(x.shape[1], dtype), v), Batch(validation, train), metrics)


def _padded(n: int) -> int:
    """A number of rows, up to an eighth above n, so that data of similar sizes share their programs."""
    step = 1 << max(n.bit_length() - 4, 0)
    return n + -n % step


def _whitening(
    x: Float64[np.ndarray, "n d"],
) -> tuple[np.float64, Float64[np.ndarray, "d r"], Float64[np.ndarray, " r"]]:
    """base, vectors and stretch of the whitening; see `_LogisticTraining`."""
    values, vectors = _principal(x)
    largest = values.max(initial=0.0)
    floor = WHITENING_FLOOR * largest if largest > 0 else 1.0
    base = 1 / np.sqrt(floor)
    stretch = 1 / np.sqrt(values + floor) - base
    # As many directions as the padded samples could have, so that the number of samples changes no shape.
    more = min(_padded(len(x)), x.shape[1]) - len(values)
    return base, np.pad(vectors, ((0, 0), (0, more))), np.pad(stretch, (0, more))


def _principal(x: Float64[np.ndarray, "n d"]) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, "d r"]]:
    """Eigenvalues and eigenvectors of x'x / n, r = min(n, d), without a matrix larger than x."""
    if len(x) < x.shape[1]:
        _, sizes, rows = np.linalg.svd(x, full_matrices=False)
        return sizes**2 / len(x), rows.T
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    return np.maximum(values, 0), vectors


def fit_logistic(strength: ArrayLike, X: ArrayLike, y: ArrayLike) -> LogisticRegression:
    """Logistic regression with one L2 strength per feature, fully trained by scikit-learn.

    Features are divided by the root of their strength, which makes the penalty uniform with C = 1; `coef_` belongs
    to the original features.

    Args:
        strength: (d,), positive, in units of 1/C.
        X, y: features (n, d) and labels (n,).

    Raises:
        InputError: not one positive strength for each feature; arrays that are not numbers or not finite; one class.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.tuning import fit_logistic
        >>> X, y = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.5], [3.0, 0.5]]), np.array([0, 0, 1, 1])
        >>> bool(abs(fit_logistic(np.array([1.0, 1e6]), X, y).coef_[0, 1]) < 1e-4)
        True
    """
    strengths, x, given = numeric("strength", strength).astype(np.float64), table("X", X), labels("y", y)
    if strengths.shape != x.shape[1:]:
        raise InputError(
            f"strength has shape {strengths.shape} and X {x.shape}. One strength for each column of X is needed."
        )
    require_label_each("X", x, "y", given)
    if wrong := int((~(strengths > 0)).sum()):
        raise InputError(
            f"strength has {wrong} of {strengths.size} entries that are not positive. "
            "With a small one, for example 1e-6, a feature is hardly penalised."
        )
    classes = classes_of("y", given)
    scale = 1 / np.sqrt(strengths)
    middle = x.mean(axis=0)
    x = (x - middle) * scale
    rows = np.eye(0)
    if len(x) < x.shape[1]:
        # The coefficients lie in the span of the n samples, where the Hessian is n x n.
        left, sizes, rows = np.linalg.svd(x, full_matrices=False)
        x = left * sizes
    # A factorisation of the Hessian takes (d * classes)^3 operations: fast for one column of coefficients, slow for
    # ten.
    newton = "newton-cholesky" if len(classes) == 2 else "newton-cg"
    model = LogisticRegression(solver=newton, max_iter=200, tol=1e-8).fit(x, given)
    model.coef_ = (model.coef_ @ rows if rows.size else model.coef_) * scale
    model.n_features_in_ = len(scale)
    model.intercept_ = model.intercept_ - model.coef_ @ middle
    return model
