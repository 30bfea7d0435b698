"""FBBGLasso: its lower level against proximal descent, its direction against differences, and groups that it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import InputError, solve
from bilevax.penalties import Given, GroupLasso
from experiments.spnbo.group_structure import bregman, coefficients, dual, group_structure, lower_loss, upper_loss

KEY = jax.random.key(0)
TASKS, N, D = 24, 14, 6
OF = np.repeat([0, 1, 2], 2)


def data(seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    used = rng.integers(0, 3, TASKS)
    w = rng.normal(size=(TASKS, D)) * (used[:, None] == OF)
    X, X_val = rng.normal(size=(2, TASKS, N, D))
    y, y_val = (np.einsum("tnd,td->tn", a, w) + noise * rng.normal(size=(TASKS, N)) for a in (X, X_val))
    return X, y, X_val, y_val


def job(**change):
    arguments = {"groups": 3, "strength": 2.0, "ridge": 0.5, "key": KEY, "lower_steps": 60} | change
    return group_structure(*data(), arguments.pop("groups"), **arguments)


def test_its_lower_level_is_the_group_lasso():
    made = job(lower_steps=20_000)
    task, batch = made.task, made.task.batches
    theta = jnp.asarray(np.eye(3)[OF])
    z = jnp.zeros((TASKS, D, 3))
    optimizer = made.solver.lower_optimizer

    def one(carry, _):
        z, state = carry
        updates, state = optimizer.update(jax.grad(lower_loss, 1)(theta, z, batch.lower), state, z)
        return (z + updates, state), None

    (z, _), _ = jax.jit(lambda z: jax.lax.scan(one, (z, optimizer.init(z)), None, length=20_000))(z)
    found = np.asarray(coefficients(theta, z, batch.lower))
    X, y, *_ = data()
    penalty = GroupLasso(Given([[0, 1], [2, 3], [4, 5]]))
    proximal = jax.jit(penalty.proximal)
    zeros = 0
    for t in range(6):
        v, gram = np.zeros(D), X[t].T @ X[t] + 0.5 * np.eye(D)
        rate = 1 / np.linalg.norm(gram, 2)
        for _ in range(400):
            v = np.asarray(proximal(v - rate * (gram @ v - X[t].T @ y[t]), 2.0 * rate))
        np.testing.assert_allclose(found[t], v, atol=0.02)
        zeros += (v == 0).sum()
    assert zeros > 4
    assert float(jnp.linalg.norm(dual(z, 2.0), axis=1).max()) < 2
    assert task.metrics(theta, z)["sharpness"] == 1


def test_descent_with_bregman_is_the_published_iteration():
    made = job()
    theta, _ = made.task.start
    lower = made.task.batches.lower
    z = jax.random.normal(KEY, (TASKS, D, 3))
    moved, _ = bregman().update(jax.grad(lower_loss, 1)(theta, z, lower), optax.EmptyState(), z)
    np.testing.assert_allclose(
        moved, -lower.rate * theta * coefficients(theta, z, lower)[..., None], rtol=1e-9, atol=1e-12
    )


def test_its_direction_is_the_derivative_of_what_was_run():
    made = job(lower_steps=15, upper_rate=1.0)
    task, batch = made.task, made.task.batches
    theta = task.start[0]
    optimizer = made.solver.lower_optimizer

    def end(theta):
        z = jnp.zeros((TASKS, D, 3))
        state = optimizer.init(z)
        for _ in range(15):
            updates, state = optimizer.update(jax.grad(lower_loss, 1)(theta, z, batch.lower), state, z)
            z = z + updates
        return float(upper_loss(theta, z, batch.upper))

    result = solve(made.solver, task.problem, theta, task.start[1], batch, steps=1, key=KEY)
    ways = np.random.default_rng(0).normal(size=(2, D, 3))
    slopes = [(end(theta + 1e-5 * way) - end(theta - 1e-5 * way)) / 2e-5 for way in ways]
    # The solver's norm, and its sign along two ways by a solver whose step is the direction itself.
    plain = solve(
        type(made.solver)(optax.sgd(1e-9), optimizer, 15), task.problem, theta, task.start[1], batch, steps=1, key=KEY
    )
    assert plain.history.upper_grad_norm[0] == pytest.approx(result.history.upper_grad_norm[0])
    bare = type(task.problem)(upper_loss, lower_loss, lower_start=task.problem.lower_start)
    moved = solve(type(made.solver)(optax.sgd(1.0), optimizer, 15), bare, theta, task.start[1], batch, steps=1, key=KEY)
    direction = np.asarray(theta - moved.u)
    np.testing.assert_allclose([(direction * way).sum() for way in ways], slopes, rtol=1e-5)


def test_the_groups_are_found():
    made = job()
    task = made.task
    result = solve(made.solver, task.problem, *task.start, task.batches, steps=60, key=KEY)
    found = np.asarray(result.u).argmax(1)
    assert len(set(found)) == 3
    assert all(found[2 * g] == found[2 * g + 1] for g in range(3))
    np.testing.assert_allclose(result.u.sum(1), 1, rtol=1e-9)
    assert task.metrics(result.u, result.v)["sharpness"] > 0.9
    assert result.history.upper_loss[-1] < 0.95 * result.history.upper_loss[0]


def test_units_of_the_targets_change_nothing_and_nothing_is_compiled_anew(compilations):
    X, y, X_val, y_val = data()

    def found(unit):
        made = group_structure(
            X, y * unit, X_val, y_val * unit, 3, strength=2.0 * unit, ridge=0.5, key=KEY, lower_steps=20
        )
        task = made.task
        result = solve(made.solver, task.problem, *task.start, task.batches, steps=10, key=KEY)
        return result, task.metrics(result.u, result.v)["val_error"]

    first, error = found(1.0)
    assert float(jnp.abs(first.u - 1 / 3).max()) > 0.2
    with compilations() as seen:
        others = {unit: found(unit) for unit in (1e-18, 1e-6, 1e18)}
    assert seen == []
    for unit, (result, other) in others.items():
        np.testing.assert_allclose(result.u, first.u, rtol=1e-6, atol=1e-9)
        assert other == pytest.approx(error * unit**2, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: job(groups=1), "groups is 1"),
        (lambda: job(groups=0), "groups is 0"),
        (lambda: job(strength=0.0), "strength is 0.0"),
        (lambda: job(ridge=0.0), "ridge is 0.0"),
        (lambda: job(strength="a"), "strength is 'a', and must be a number"),
        (lambda: job(strength=np.ones(2)), "strength is an? ndarray"),
        (lambda: job(upper_rate=-1.0), "upper_rate is -1.0"),
        (lambda: job(groups=2.5), "groups is 2.5"),
        (lambda: job(lower_steps=0), "lower_steps is 0"),
        (lambda: job(key=0), "key is 0"),
        (lambda: group_structure(data()[0] * 1j, *data()[1:], 2, strength=1.0, key=KEY), "X holds complex numbers"),
        (lambda: group_structure(*data()[:3], data()[3] * 0, 2, strength=1.0, key=KEY), "the squares of y_val"),
        (lambda: group_structure("a", *data()[1:], 2, strength=1.0, key=KEY), "X holds values that are not numbers"),
        (
            lambda: group_structure(*data()[:3], data()[3][:, :4], 2, strength=1.0, key=KEY),
            r"y_val \(24, 4\)",
        ),
        (
            lambda: group_structure(data()[0] * np.nan, *data()[1:], 2, strength=1.0, key=KEY),
            "X holds 2016 NaN or infinite",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(InputError, match=words):
        call()
