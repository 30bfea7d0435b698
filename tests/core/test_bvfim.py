"""BVFIM: its direction is the derivative of the barrier's minimum; it finds solutions without convexity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from bilevax import BVFIM, Batch, InputError, Problem, solve
from bilevax.schedules import Geometric

KEY = jax.random.key(0)
SOLVER = BVFIM(optax.adam(optax.cosine_decay_schedule(1e-2, 6000)))
A = np.array([[2.0, 0.3], [0.3, 1.0]])


def upper_loss(u, v, _):
    return jnp.sum((v - jnp.array([1.0, -1.0])) ** 2) + 0.1 * jnp.sum(u**2)


def lower_loss(u, v, _):
    return 0.5 * (v - u) @ A @ (v - u) + 0.1 * jnp.sum(jnp.cos(v))


@pytest.mark.slow
def test_the_direction_is_the_derivative_of_the_barriers_minimum():
    slack, damping, barrier = 0.05, 0.02, 0.3

    def minimised(u):
        f, g = (
            lambda v, loss=loss: float(loss(jnp.asarray(u), jnp.asarray(v), None)) for loss in (upper_loss, lower_loss)
        )
        found = minimize(lambda z: g(z) + damping / 2 * z @ z, u, method="BFGS", options={"gtol": 1e-10})
        value = found.fun + slack

        def inside(v):
            gap = value - g(v)
            return np.inf if gap <= 0 else f(v) + damping / 2 * v @ v - barrier * np.log(gap)

        start = minimize(
            inside, found.x, method="Nelder-Mead", options={"xatol": 1e-11, "fatol": 1e-14, "maxiter": 4000}
        )
        return start.fun

    u = np.array([0.4, 0.2])
    wanted = [(minimised(u + h) - minimised(u - h)) / 2e-4 for h in 1e-4 * np.eye(2)]
    solver = BVFIM(optax.sgd(1.0), optax.sgd(2e-2), 5000, slack, damping, barrier)
    problem = Problem(upper_loss, lower_loss)
    result = solve(solver, problem, jnp.asarray(u), jnp.asarray(u), steps=1, key=KEY)
    np.testing.assert_allclose(u - result.u, wanted, rtol=1e-3, atol=1e-4)
    assert 0 < float(result.history.extra["gap"][0]) < slack + 1


def test_it_finds_the_solution_of_a_quadratic_problem():
    problem = Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2) + 0.5 * jnp.sum(u**2), lambda u, v, _: jnp.sum((v - 2 * u) ** 2)
    )
    result = solve(SOLVER, problem, jnp.zeros(2), jnp.zeros(2), steps=6000, key=KEY)
    np.testing.assert_allclose(result.u, 4 / 9, atol=5e-3)  # of (2 u - 1)^2 + u^2 / 2
    np.testing.assert_allclose(result.v, 8 / 9, atol=1e-2)


def test_of_many_minimisers_it_takes_the_one_best_for_f():
    problem = Problem(
        lambda u, v, _: (v[0] - 2) ** 2 + (v[1] - 1) ** 2 + (u[0] - 1) ** 2, lambda u, v, _: (v[0] - u[0]) ** 2
    )
    result = solve(SOLVER, problem, jnp.zeros(1), jnp.array([0.0, -1.0]), steps=6000, key=KEY)
    np.testing.assert_allclose(result.v[1], 1.0, atol=1e-2)
    np.testing.assert_allclose(result.u, 1.5, atol=1e-2)


def test_a_lower_level_of_many_valleys():
    """min (x - 2)^2 + (y - 4)^2 where y minimises sin(x + y): x + y = 3 pi / 2 + 2 pi k, nearest to 6 at 3 pi / 2."""
    problem = Problem(lambda x, y, _: jnp.sum((x - 2) ** 2 + (y - 4) ** 2), lambda x, y, _: jnp.sum(jnp.sin(x + y)))
    result = solve(SOLVER, problem, jnp.full(1, 1.0), jnp.full(1, 3.0), steps=6000, key=KEY)
    short = (6 - 3 * np.pi / 2) / 2
    np.testing.assert_allclose(result.u, 2 - short, atol=1e-2)
    np.testing.assert_allclose(result.v, 4 - short, atol=1e-2)


def test_refusals():
    with pytest.raises(InputError, match="slack is 0 at stage 0"):
        BVFIM(slack=0.0)
    with pytest.raises(InputError, match="lower_steps"):
        BVFIM(lower_steps=0)
    assert BVFIM(barrier=Geometric(1.0, 0.9)).barrier(1) == pytest.approx(0.9)


def test_outside_of_the_barrier_its_slope_is_that_at_a_hundredth_of_the_slack():
    slack, damping, barrier, rate = 0.02, 0.1, 0.02, 0.9
    aim, u, start = np.array([3.0, -2.0]), np.array([0.4, 0.2]), np.array([0.5, 0.1])

    def push(v):  # grad_v g + damping v, of g = |v - u|^2 / 2
        return v - u + damping * v

    z = start - rate * push(start)
    value = (z - u) @ (z - u) / 2 + damping / 2 * z @ z + slack
    weight = barrier / (value - (start - u) @ (start - u) / 2)
    v = start - rate * (start - aim + weight * (start - u) + damping * start) / (1 + weight)
    gap = value - (v - u) @ (v - u) / 2
    assert gap < 0
    direction = 0.2 * u + barrier / (0.01 * slack) * ((u - v) - (u - z))

    problem = Problem(
        lambda u, v, _: jnp.sum((v - aim) ** 2) / 2 + 0.1 * jnp.sum(u**2), lambda u, v, _: jnp.sum((v - u) ** 2) / 2
    )
    solver = BVFIM(optax.sgd(1e-3), optax.sgd(rate), 1, slack, damping, barrier)
    with jax.disable_jit():
        state = solver.init(problem, jnp.asarray(u), jnp.asarray(start), Batch())
        state, info = solver.step(problem, state, Batch(), KEY)
    np.testing.assert_allclose(state.v, v, rtol=1e-9)
    np.testing.assert_allclose(state.u, u - 1e-3 * direction, rtol=1e-9)
    assert float(info.extra["gap"]) == pytest.approx(gap, rel=1e-9)
