"""The learning rate and weight decay of a training run by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevax import InputError, solve
from bilevax.applications.tuning import optimizer_solver, optimizer_task

MOVES = 20


def regression(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10)) * np.linspace(0.3, 2, 10)
    return x, x @ np.ones(10) + 0.3 * rng.normal(size=n)


def loss(v, samples):
    x, y = samples.data
    return jnp.mean((y - x @ v) ** 2) / 2


def trained(learning_rate, weight_decay, x, y):
    """The training run by hand."""
    v = np.zeros(10)
    for _ in range(MOVES):
        v = v - learning_rate * (x.T @ (x @ v - y) / len(y) + weight_decay * v)
    return v


@pytest.mark.slow
def test_a_rate_that_diverges_beyond_its_edge_is_found(key):
    """From a small rate up to the edge of stability, where the derivative explodes, and no further."""
    train, validation = regression(0, 60), regression(1, 200)
    task = optimizer_task(loss, loss, np.zeros(10), train, validation, moves=MOVES, learning_rate=1e-3)
    result = solve(optimizer_solver(MOVES), task.problem, *task.start, task.batches, steps=120, key=key)
    found = {name: float(np.exp(value)) for name, value in result.u.items()}

    def validation_loss(learning_rate, weight_decay):
        v = trained(learning_rate, weight_decay, *train)
        return np.mean((validation[1] - validation[0] @ v) ** 2) / 2

    edge = 2 / np.linalg.eigvalsh(train[0].T @ train[0] / 60)[-1]
    assert 0.1 * edge < found["learning_rate"] < edge
    grid = [
        validation_loss(rate, decay) for rate in np.geomspace(1e-3, edge, 30) for decay in np.geomspace(1e-4, 10, 16)
    ]
    ours = validation_loss(found["learning_rate"], found["weight_decay"])
    assert ours < min(grid) + 0.05 * (validation_loss(1e-3, 1e-4) - min(grid))
    assert validation_loss(3 * edge, 1e-4) > 1e3
    after = trained(found["learning_rate"], found["weight_decay"], *train)
    assert np.isfinite(after).all()


@pytest.mark.slow
def test_the_direction_is_the_derivative_of_the_run(key):
    train, validation = regression(0, 30), regression(1, 50)
    task = optimizer_task(loss, loss, np.zeros(10), train, validation, moves=5, learning_rate=0.05, weight_decay=0.1)

    def at_the_end(u):
        v = jnp.zeros(10)
        x, y = map(jnp.asarray, train)
        for _ in range(5):
            v = v - jnp.exp(u[0]) * (x.T @ (x @ v - y) / len(y) + jnp.exp(u[1]) * v)
        x, y = map(jnp.asarray, validation)
        return jnp.mean((y - x @ v) ** 2) / 2

    truth = jax.grad(at_the_end)(jnp.log(jnp.array([0.05, 0.1])))
    result = solve(optimizer_solver(5), task.problem, *task.start, task.batches, steps=1, key=key)
    assert result.history.upper_grad_norm[0] == pytest.approx(float(jnp.linalg.norm(truth)), rel=1e-8)


def test_refusals():
    data = (np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(InputError, match="learning_rate is -1"):
        optimizer_task(loss, loss, np.zeros(1), data, data, moves=3, learning_rate=-1)
    with pytest.raises(InputError, match="moves is 0"):
        optimizer_task(loss, loss, np.zeros(1), data, data, moves=0)
