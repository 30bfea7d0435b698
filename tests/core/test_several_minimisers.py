"""Lower losses with several minimisers: the optimistic solution, where they form a set and where they are isolated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import BVFIM, F2SA, VPBGD, InputError, Penalty, Problem, Vectorized, diagnostics, solve
from bilevax.schedules import Geometric

KEY = jax.random.key(0)

# Rank-deficient least squares: all v with v1 + v2 = u. The best (u, v) for f is v = (11, -1) / 12, u = 5 / 6.
FLAT = Problem(
    lambda u, v, _: (v[0] - 1) ** 2 + v[1] ** 2 + 0.1 * jnp.sum(u**2),
    lambda u, v, _: (v[0] + v[1] - u[0]) ** 2 / 2,
)
# Minimisers 1 and -1, with a wall between them that is steeper than f; f prefers -1, and u = v.
TWO = Problem(
    lambda u, v, _: jnp.sum((v + 0.5) ** 2 + (u - v) ** 2),
    lambda u, v, _: 5 * jnp.sum((v**2 - 1) ** 2) + 0 * jnp.sum(u),
)
UP = optax.adam(optax.cosine_decay_schedule(2e-2, 4000))
SOLVERS = {
    "Penalty": Penalty(UP, optax.adam(2e-2), gamma=Geometric(1.0, 1.1, high=100.0), stage_steps=40),
    "VPBGD": VPBGD(UP, optax.sgd(0.1), lower_steps=5, gamma=Geometric(1.0, 1.003, high=500.0)),
    "F2SA": F2SA(UP, optax.sgd(0.1), 10, 0.005, 1),
    "BVFIM": BVFIM(UP),
}
# With slower lower moves, since g is steep; `lam` keeps Penalty from the maximum of g between the minimisers.
STEEP = {
    "Penalty": Penalty(
        UP, optax.adam(2e-2), gamma=Geometric(1.0, 1.1, high=100.0), lam=Geometric(100.0, 0.9), stage_steps=40
    ),
    "VPBGD": VPBGD(UP, optax.sgd(0.01), lower_steps=5, gamma=Geometric(1.0, 1.003, high=500.0)),
    "F2SA": F2SA(UP, optax.sgd(0.01), 10, 0.05),
    "BVFIM": BVFIM(UP, optax.sgd(0.01)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_of_a_set_of_minimisers_the_best_for_f_is_found(name):
    result = solve(SOLVERS[name], FLAT, jnp.zeros(1), jnp.zeros(2), steps=4000, key=KEY)
    u, v = np.asarray(result.u), np.asarray(result.v)
    if name == "F2SA":  # its v is the copy without f; the other one is the optimistic point
        v = np.asarray(result.state.memory.points[1])
    np.testing.assert_allclose(u, 5 / 6, atol=0.05)
    np.testing.assert_allclose(v, [11 / 12, -1 / 12], atol=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_several_starts_find_the_best_of_isolated_minimisers(name):
    starts = jnp.array([[1.5], [0.5], [-0.5], [-1.5]])
    result = solve(Vectorized(STEEP[name]), TWO, jnp.zeros((4, 1)), starts, steps=4000, key=KEY)
    best = diagnostics.best_member(TWO, result, lower_optimizer=optax.sgd(0.01), tolerance=1e-2)
    np.testing.assert_allclose(best.u, -1, atol=0.05)
    np.testing.assert_allclose(best.upper_loss, 0.25, atol=0.03)
    assert best.member in (2, 3)
    np.testing.assert_allclose(best.upper_losses[0], 2.25, atol=0.1)


def test_a_low_f_in_a_valley_that_is_not_the_lowest_is_not_chosen():
    """g is 1 higher near 1, where f would be zero, than near -1."""
    tilted = Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2 + (u - v) ** 2), lambda u, v, _: jnp.sum(5 * (v**2 - 1) ** 2 + 0.5 * v)
    )
    starts = jnp.array([[1.5], [-1.5]])
    result = solve(Vectorized(STEEP["VPBGD"]), tilted, jnp.zeros((2, 1)), starts, steps=2000, key=KEY)
    best = diagnostics.best_member(tilted, result, lower_optimizer=optax.sgd(0.01), tolerance=1e-2)
    assert best.member == 1
    assert best.upper_losses[0] < 0.1
    np.testing.assert_allclose(best.upper_loss, 4, atol=0.2)
    np.testing.assert_allclose(best.excess[0], 1.0, atol=0.01)
    away = solve(Vectorized(STEEP["VPBGD"]), tilted, jnp.zeros((2, 1)), starts, steps=1, key=KEY)
    with pytest.raises(InputError, match=r"no member is finite and has a v with g within 0.01.*closest is"):
        diagnostics.best_member(tilted, away, lower_optimizer=optax.sgd(0.01), tolerance=1e-2)


@pytest.mark.slow
def test_best_member_takes_data_and_refuses_other_results():
    shifted = Problem(
        lambda u, v, target: jnp.sum((v - target) ** 2), lambda u, v, weight: weight * jnp.sum((v - u) ** 2)
    )
    batch = bx.Batch(jnp.array([[3.0], [1.0]]), jnp.array([1.0, 2.0]))
    u = jnp.zeros((2, 1))
    result = solve(Vectorized(VPBGD(UP, optax.sgd(0.1))), shifted, u, u, batch, steps=10, key=KEY)
    best = diagnostics.best_member(shifted, result, batch, tolerance=1.0)
    assert best.member == 1
    np.testing.assert_allclose(best.upper_losses, [(3 - result.v[0, 0]) ** 2, (1 - result.v[1, 0]) ** 2])
    one = solve(VPBGD(), TWO, jnp.zeros(1), jnp.ones(1), steps=2, key=KEY)
    with pytest.raises(InputError, match="the result has no members"):
        diagnostics.best_member(TWO, one)
