"""GradientMatching: its direction is the derivative of one minus the cosine of the two gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import Batch, GradientMatching, Problem

AIM = jnp.array([1.0, -0.5, 2.0])
U, V = jnp.array([0.3, -0.7, 0.4]), jnp.array([0.5, 0.2, -0.1])


def loss(u, v, data):
    return jnp.sin(u) @ v + (u @ v) ** 2


def step(solver, upper_loss):
    problem = Problem(upper_loss, loss)
    with jax.disable_jit():
        state, info = solver.step(problem, solver.init(problem, U, V, Batch()), Batch(), jax.random.key(0))
    return state.u, info


def test_u_moves_by_the_value_and_the_derivative_of_one_minus_the_cosine():
    def cosine(u):
        a, b = AIM, jax.grad(loss, 1)(u, V, None)
        return a @ b / jnp.sqrt((a @ a) * (b @ b))

    alignment, slope = jax.value_and_grad(cosine)(U)
    # A Polyak step is the value of the objective over the square of its gradient.
    u, info = step(GradientMatching(optax.polyak_sgd(1e9)), lambda u, v, data: AIM @ v)
    np.testing.assert_allclose(u, U + (1 - alignment) * slope / (slope @ slope), rtol=1e-9)
    assert float(info.extra["alignment"]) == pytest.approx(float(alignment), rel=1e-9)
    assert float(info.upper_grad_norm) == pytest.approx(float(jnp.linalg.norm(slope)), rel=1e-9)


def test_u_stays_where_a_gradient_is_zero():
    u, info = step(GradientMatching(optax.sgd(1.0)), lambda u, v, data: 0.0 * v[0])
    np.testing.assert_array_equal(u, U)
    assert float(info.extra["alignment"]) == 0
