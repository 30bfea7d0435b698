"""The problems of the race, with the exact gradient of their value function F(u) = f(u, v*(u)).

They follow the description of benchopt/benchmark_bilevel; none of its code or data is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevax import Problem
from experiments.common.images import images_of

SEED = 32
D_V, D_U = 100, 10
RIDGE = 0.2  # of hyper-cleaning, times |v|^2
FEATURES = 22  # of the logistic regression, as many as ijcnn1 has


@dataclass(frozen=True, eq=False)
class Field:
    """A problem of the race.

    Attributes:
        problem: its losses take the samples of `upper` and `lower`, and their index.
        upper, lower: data sets, tuples of arrays.
        start: (u, v).
        measure: (u, v) -> the figure that the race is about; lower is better.
        figure: what it is.
    """

    problem: Problem
    upper: Any
    lower: Any
    start: tuple[Any, Any]
    measure: Callable[[Any, Any], float]
    figure: str


def quadratics(n: int) -> Field:
    """N quadratic functions at each level, in 100 variables below and 10 above.

    g_i = (a_i'v - b_i'u - y_i)^2 / 2 + 0.05 |v|^2 and f_i = (a_i'v - y_i)^2 / 2 + 0.05 |u|^2, with other a and y. The
    entries of a have the standard deviations 1 to 0.3. v*(u) and F are known in closed form.
    """
    rng = np.random.default_rng(SEED)
    sizes = np.linspace(1, 0.3, D_V)
    truth, mix = rng.normal(size=D_V), rng.normal(size=(D_V, D_U)) / D_U**0.5

    def samples(extra: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a = rng.normal(size=(n, D_V)) * sizes
        b = a @ mix + rng.normal(size=(n, D_U)) / 2
        return a, b, a @ truth + extra * rng.normal(size=n)

    lower, upper = samples(1.0), samples(0.5)

    def lower_loss(u: Any, v: Any, batch: Any) -> Any:
        a, b, y = batch.data
        return jnp.mean((a @ v - b @ u - y) ** 2) / 2 + 0.05 * jnp.sum(v**2)

    def upper_loss(u: Any, v: Any, batch: Any) -> Any:
        a, _, y = batch.data
        return jnp.mean((a @ v - y) ** 2) / 2 + 0.05 * jnp.sum(u**2)

    a, b, y = lower
    inverse = np.linalg.inv(a.T @ a / n + 0.1 * np.eye(D_V))
    slope, offset = inverse @ (a.T @ b) / n, inverse @ (a.T @ y) / n
    c, _, z = upper
    h, w = c.T @ c / n, c.T @ z / n

    def measure(u: Any, v: Any) -> float:
        u = np.asarray(u)
        return float(np.sum((slope.T @ (h @ (slope @ u + offset) - w) + 0.1 * u) ** 2))

    start = np.ones(D_U), np.zeros(D_V)
    return Field(Problem(upper_loss, lower_loss), upper, lower, start, measure, "squared gradient norm of F")


def logistic(n: int) -> Field:
    """Logistic regression with a strength exp(u_i) for each of 22 features, half of the samples at each level.

    The data: MNIST, digits below 5 against the others, in 22 principal components scaled to unit variance. (The
    benchmark has ijcnn1, with 22 features and 49,990 samples.)
    """
    images = images_of("mnist")
    x = images.x_train[: 2 * n].reshape(2 * n, -1).astype(float)
    x -= x.mean(0)
    x = x @ np.linalg.eigh(x.T @ x)[1][:, -FEATURES:]
    x /= x.std(0)
    sign = np.where(images.y_train[: 2 * n] < 5, 1.0, -1.0)
    lower, upper = (x[:n], sign[:n]), (x[n:], sign[n:])

    def loss(v: Any, data: Any) -> Any:
        return jnp.mean(jax.nn.softplus(-data[1] * (data[0] @ v)))

    def lower_loss(u: Any, v: Any, batch: Any) -> Any:
        return loss(v, batch.data) + jnp.sum(jnp.exp(u) * v**2) / 2

    def measure(u: Any, v: Any) -> float:
        """Newton for v*(u), then the linear system, in dense matrices."""
        u, v = np.asarray(u), np.zeros(FEATURES)
        for _ in range(30):
            slope, hessian = derivatives(v, *lower)
            move = np.linalg.solve(hessian + np.diag(np.exp(u)), slope + np.exp(u) * v)
            v = v - move
            if np.abs(move).max() < 1e-13:
                break
        hessian = derivatives(v, *lower)[1] + np.diag(np.exp(u))
        q = np.linalg.solve(hessian, derivatives(v, *upper)[0])
        return float(np.sum((np.exp(u) * v * q) ** 2))

    def derivatives(v: np.ndarray, x: np.ndarray, sign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(sign * (x @ v)))
        return -x.T @ (p * sign) / len(x), (x.T * (p * (1 - p))) @ x / len(x)

    rng = np.random.default_rng(SEED)
    start = np.log(rng.uniform(size=FEATURES)), rng.normal(size=FEATURES)
    problem = Problem(lambda u, v, batch: loss(v, batch.data), lower_loss)
    return Field(problem, upper, lower, start, measure, "squared gradient norm of F")


def cleaning(wrong: int, n: int, draw: int = SEED) -> Field:
    """Softmax regression with a weight for each of n samples of MNIST, `wrong` % of whose labels are random."""
    images = images_of("mnist")
    rng = np.random.default_rng(draw)
    order, clean = rng.permutation(len(images.x_train)), 5000
    x = images.x_train.reshape(len(order), -1)[order[: n + clean]].astype(np.float32)
    y = images.y_train[order[: n + clean]].astype(np.int32)
    mean, scale = x[:n].mean(0), np.maximum(x[:n].std(0), 1e-6)
    x = np.where(scale > 1e-6, (x - mean) / np.maximum(scale, 1), 0).astype(np.float32)
    given = np.where(rng.uniform(size=n) < wrong / 100, rng.integers(0, 10, n), y[:n]).astype(np.int32)
    lower, upper = (x[:n], given), (x[n:], y[n:])
    test = images.x_test.reshape(len(images.x_test), -1).astype(np.float32)
    test = np.where(scale > 1e-6, (test - mean) / np.maximum(scale, 1), 0).astype(np.float32)

    def losses(v: Any, data: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(data[0] @ v, data[1])

    def lower_loss(u: Any, v: Any, batch: Any) -> Any:
        return jnp.mean(jax.nn.sigmoid(u[batch.index]) * losses(v, batch.data)) + RIDGE * jnp.sum(v**2)

    def measure(u: Any, v: Any) -> float:
        return float(np.mean(np.argmax(test @ np.asarray(v), 1) != images.y_test))

    start = np.zeros(n, np.float32), np.zeros((x.shape[1], 10), np.float32)
    problem = Problem(lambda u, v, batch: jnp.mean(losses(v, batch.data)), lower_loss)
    return Field(problem, upper, lower, start, measure, "test error")
