"""SAMA, PZOBO and the linear solve Nystrom, each against an independent route."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import PZOBO, SAMA, Batch, Implicit, InputError, LookAhead, Problem, ReverseMode, solve
from bilevax.linear_solve import Direct, Nystrom

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(6, 4))
H, CROSS = ROOT.T @ ROOT / 6 + 0.2 * np.eye(4), RNG.normal(size=(3, 4))
AIM = RNG.normal(size=4)
PROBLEM = Problem(
    lambda u, v, _: jnp.sum((v - AIM) ** 2) + jnp.sum(u**2),
    lambda u, v, _: v @ jnp.asarray(H) @ v / 2 - u @ jnp.asarray(CROSS) @ v,
)
U, V = jnp.asarray(RNG.normal(size=3)), jnp.asarray(RNG.normal(size=4))


def moved(solver, problem=PROBLEM, u=U, v=V, **more):
    result = solve(solver, problem, u, v, steps=1, key=KEY, **more)
    return np.asarray(u - result.u), result


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.adam(0.05), optax.sgd(0.1, momentum=0.9)], ids=["sgd", "adam", "momentum"]
)
def test_sama_has_the_derivative_of_the_lower_optimizer(optimizer):
    """By differences of the optimizer's update in each entry of the gradient, and H, CROSS in closed form."""
    found, result = moved(SAMA(optax.sgd(1.0), optimizer, 4))
    v, state = result.v, result.state.lower_opt
    slope = jnp.asarray(H) @ v - U @ jnp.asarray(CROSS)

    def after(gradient):
        return np.asarray(optimizer.update(gradient, state, v)[0])

    steps = 1e-6 * np.eye(4)
    p = -np.array([(after(slope + d) - after(slope - d))[i] / 2e-6 for i, d in enumerate(steps)])
    wanted = 2 * U + CROSS @ (p * 2 * (v - AIM))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_sama_with_descent_is_a_look_ahead_at_the_old_v():
    """With a linear f the two gradients of f agree."""
    linear = Problem(lambda u, v, _: jnp.asarray(AIM) @ v, PROBLEM.lower_loss)
    one = moved(SAMA(optax.sgd(1.0), optax.sgd(0.1), 1), linear)[0]
    v = V - 0.1 * (jnp.asarray(H) @ V - U @ jnp.asarray(CROSS))
    other = moved(LookAhead(optax.sgd(1.0), optax.sgd(0.1), 0.1), linear, v=v)[0]
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_sama_is_finite_where_adam_has_seen_no_gradient():
    problem = Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: (v[0] - u[0] ** 2) ** 2)
    found, _ = moved(SAMA(optax.sgd(1.0), optax.adam(0.1), 2), problem, jnp.array([0.7]), jnp.zeros(2))
    assert np.isfinite(found).all()


def test_pzobo_estimates_the_derivative_of_the_moves_without_that_of_g_in_u():
    """Of 40,000 directions the relative error is about sqrt(|u| / 40,000). g calls NumPy for its part of u."""
    wanted, _ = moved(ReverseMode(optax.sgd(1.0), optax.sgd(0.2), 6))

    def called(u, v, _):
        part = jax.pure_callback(
            lambda u: u @ CROSS, jax.ShapeDtypeStruct((4,), v.dtype), u, vmap_method="broadcast_all"
        )
        return v @ jnp.asarray(H) @ v / 2 - part @ v

    problem = Problem(PROBLEM.upper_loss, called)
    found, _ = moved(PZOBO(optax.sgd(1.0), optax.sgd(0.2), 6, 40_000), problem)
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted - 2 * np.asarray(U))


@pytest.mark.slow
def test_nystrom_with_all_columns_inverts_and_with_few_is_the_formula():
    b = jnp.asarray(AIM)

    def products(q):
        return jnp.asarray(CROSS) @ q, jnp.asarray(H) @ q

    full = Nystrom(4, 1e-8)(products, b, jnp.zeros(4))
    np.testing.assert_allclose(full.q, np.linalg.solve(H, AIM), rtol=1e-6)
    np.testing.assert_allclose(full.cross, CROSS @ np.linalg.solve(H, AIM), rtol=1e-6)
    solver = Nystrom(2, 0.3)
    found, memory = solver.continued(products, b, solver.memory(b))
    places = np.asarray(memory.places)
    assert len(set(places)) == 2
    columns = H[places]
    low = columns.T @ np.linalg.pinv(columns[:, places]) @ columns
    np.testing.assert_allclose(found.q, np.linalg.solve(low + 0.3 * np.eye(4), AIM), rtol=1e-9)
    residual = np.linalg.norm((H + 0.3 * np.eye(4)) @ found.q - AIM)
    np.testing.assert_allclose(found.residual, residual, rtol=1e-9)


def test_nystrom_keeps_its_columns_for_some_steps():
    """The products of a step in which they are kept are those of the residual alone."""
    solver, products = Nystrom(2, 0.3, reuse=3), []

    def counted(q):
        jax.debug.callback(lambda: products.append(1))
        return jnp.asarray(CROSS) @ q, jnp.asarray(H) @ q

    memory, places, counts = solver.memory(jnp.asarray(AIM)), [], []
    for _ in range(4):
        products.clear()
        _, memory = solver.continued(counted, jnp.asarray(AIM), memory)
        jax.effects_barrier()
        places.append(tuple(np.asarray(memory.places)))
        counts.append(len(products))
    assert places[0] == places[1] == places[2]
    assert counts[1] == counts[2] == 1
    assert counts[0] == counts[3] > 1


def test_a_singular_hessian_gives_a_finite_answer():
    h = np.diag([2.0, 0.0, 0.0, 1.0])
    found = Nystrom(3, 0.1)(lambda q: (q, jnp.asarray(h) @ q), jnp.asarray(AIM), jnp.zeros(4))
    assert np.isfinite(found.q).all()
    assert found.residual <= np.linalg.norm(AIM)


def test_implicit_with_nystrom_follows_that_with_a_direct_solve():
    solves = [
        solve(Implicit(optax.sgd(0.1), optax.sgd(0.3), 20, s), PROBLEM, U, V, steps=60, key=KEY)
        for s in (Direct(), Nystrom(4, 1e-7, 7))
    ]
    np.testing.assert_allclose(solves[1].u, solves[0].u, atol=1e-5)


@pytest.mark.usefixtures("annotations_unchecked")
def test_refusals():
    with pytest.raises(InputError, match="Nystrom: damping is 0"):
        Nystrom(damping=0.0)
    with pytest.raises(InputError, match="Nystrom: rank is 5, and v has 4 entries"):
        Implicit(linear_solve=Nystrom(5)).init(PROBLEM, U, V, Batch())
    with pytest.raises(InputError, match="PZOBO: radius is 0"):
        PZOBO(radius=0)
    bounded = Problem(PROBLEM.upper_loss, PROBLEM.lower_loss, project_lower=lambda v: jnp.maximum(v, 0))
    with pytest.raises(InputError, match=r"SAMA.* project_lower"):
        SAMA().check(bounded, U, V, Batch())
    with pytest.raises(InputError, match="SAMA: lower_optimizer"):
        SAMA(lower_optimizer=optax.lbfgs()).check(PROBLEM, U, V, Batch())
