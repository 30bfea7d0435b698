"""Methods on the value function: F2SA, VPBGD, BOME, MEHA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.penalties import L1
from bilevax.schedules import Power
from tests.core.solvers import BATCH, LOWER, PROBLEM, START, UPPER

KEY = jax.random.key(0)
A = jnp.diag(jnp.array([1.0, 2.0, 3.0])) + 0.3
U = jnp.array([0.3, -0.5, 0.8])


def curved_upper(u, v, _):
    return jnp.sum(jnp.cosh(v - 1)) + 0.1 * u @ u + 0.1 * (u @ v) ** 2


def curved_lower(u, v, _):
    return 0.5 * (v - jnp.sin(u)) @ A @ (v - jnp.sin(u)) + 0.1 * jnp.sum(v**4) + 0.1 * u @ v


CURVED = bx.Problem(curved_upper, curved_lower)


@jax.jit
def exact(u):
    """The hypergradient, with v by Newton's method and the dense Hessian."""

    def newton(_, v):
        return v - jnp.linalg.solve(jax.hessian(curved_lower, 1)(u, v, None), jax.grad(curved_lower, 1)(u, v, None))

    v = jax.lax.fori_loop(0, 30, newton, jnp.zeros(3))
    hessian = jax.hessian(curved_lower, 1)(u, v, None)
    cross = jax.jacobian(jax.grad(curved_lower, 1), 0)(u, v, None)
    q = jnp.linalg.solve(hessian, jax.grad(curved_upper, 1)(u, v, None))
    return jax.grad(curved_upper, 0)(u, v, None) - cross.T @ q, v


def direction(solver, problem=CURVED, u=U, v=None, batch=None):
    """The direction of u in the first step, and the state after it."""
    batch = bx.Batch() if batch is None else batch
    state = solver.init(problem, u, jnp.zeros(3) if v is None else v, batch)
    after, info = jax.jit(lambda s: solver.step(problem, s, batch, KEY))(state)
    return u - after.u, after, info


@pytest.mark.parametrize(
    "order", [pytest.param(1, marks=pytest.mark.slow), 2, 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_the_error_of_f2sa_falls_with_its_order(order):
    wanted, v = exact(U)
    nus = (0.08, 0.04, 0.02)
    found = [direction(bx.F2SA(optax.sgd(1.0), optax.sgd(0.2), 400, nu, order)) for nu in nus]
    errors = [float(jnp.linalg.norm(d - wanted)) for d, _, _ in found]
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    np.testing.assert_allclose(slopes, order, atol=0.15)
    at_zero = [float(jnp.linalg.norm(after.v - v)) for _, after, _ in found]
    # v is exact where a copy has no f; else its error falls with the order, too.
    assert at_zero[-1] < 1e-10 if order in (1, 3) else at_zero[-1] < 2.0**-order * at_zero[-2] * 1.2
    assert all(float(info.extra["decrease"]) > 0 for _, _, info in found)


def test_two_copies_do_better_by_the_central_difference():
    """At equal numbers of gradients, order 2 is nearer than order 1."""
    wanted, _ = exact(U)
    one, two = (direction(bx.F2SA(optax.sgd(1.0), optax.sgd(0.2), 50, 0.05, order))[0] for order in (1, 2))
    assert jnp.linalg.norm(two - wanted) < 0.1 * jnp.linalg.norm(one - wanted)


def test_f2sa_refuses_a_nu_without_a_minimum():
    with pytest.raises(bx.InputError, match=r"g - 30 f has no minimum: .* curvature .* or use order=1"):
        bx.solve(bx.F2SA(nu=30.0), PROBLEM, *START, BATCH, steps=1, key=KEY)
    bx.solve(bx.F2SA(nu=30.0, order=1), PROBLEM, *START, BATCH, steps=1, key=KEY)
    small = bx.F2SA(nu=0.2)  # f curves by 2, g by 1 to 3
    bx.solve(small, PROBLEM, *START, BATCH, steps=1, key=KEY)


def test_the_limit_of_nu_is_found():
    """g - nu f curves by (1, 3) - nu (2, 0.1): the limit is nu = 1/2, in the direction where g is flattest."""
    problem = bx.Problem(
        lambda u, v, _: jnp.array([1.0, 0.05]) @ v**2 + u @ u, lambda u, v, _: jnp.array([0.5, 1.5]) @ (v - u) ** 2
    )
    u = jnp.ones(2)
    bx.F2SA(nu=0.49).check(problem, u, u, bx.Batch())
    with pytest.raises(bx.InputError, match="has no minimum"):
        bx.F2SA(nu=0.51).check(problem, u, u, bx.Batch())
    bx.F2SA(nu=0.24, order=4).check(problem, u, u, bx.Batch())
    with pytest.raises(bx.InputError, match="has no minimum"):
        bx.F2SA(nu=0.26, order=4).check(problem, u, u, bx.Batch())


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        (lambda u, v, _: jnp.sum((v - 2) ** 2), lambda u, v, _: (v[0] - u[0]) ** 2),
        (lambda u, v, _: jnp.sum((v - 2) ** 2), lambda u, v, _: (v[0] + 3 * v[1] - v[2] - u[0]) ** 2),
        (lambda u, v, _: v[2] - v[0], lambda u, v, _: (v[0] - u[0]) ** 2),  # f is linear where g is flat
        (lambda u, v, _: jax.nn.softplus(v[2]), lambda u, v, _: (v[0] - u[0]) ** 2),
    ],
)
def test_f2sa_of_order_two_refuses_a_flat_g_below_which_f_has_no_bound(upper, lower):
    problem = bx.Problem(upper, lower)
    with pytest.raises(bx.InputError, match=r"has no minimum: .* on which g is flat and f grows. Use order=1"):
        bx.F2SA().check(problem, jnp.ones(1), jnp.zeros(3), bx.Batch())
    bx.F2SA(order=1).check(problem, jnp.ones(1), jnp.zeros(3), bx.Batch())


@pytest.mark.parametrize(
    "more",
    [lambda v: v**4, lambda v: 0.25 * v**2],
    ids=["flat at zero alone", "barely above"],
)
def test_f2sa_takes_a_g_that_rises_in_the_end(more):
    problem = bx.Problem(lambda u, v, _: jnp.sum((v - 2) ** 2), lambda u, v, _: (v[0] - u[0]) ** 2 + more(v[1]))
    bx.F2SA(nu=0.2).check(problem, jnp.ones(1), jnp.zeros(2), bx.Batch())


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bx.F2SA(order=5), "order is 5, and must be one of 1, 2, 3 and 4"),
        (lambda: bx.F2SA(nu=0.0), "nu is 0 at stage 0"),
        (lambda: bx.VPBGD(gamma=lambda k: 1.0 - 0.1 * k), "gamma is"),
        (lambda: bx.VPBGD(gamma=lambda k: 9.0 - 0.1 * k), "gamma decreases"),
        (lambda: bx.BOME(eta=0.0), "eta is 0, and must be positive"),
        (lambda: bx.MEHA(radius=-1.0), "radius is -1, and must be positive"),
        (lambda: bx.MEHA(rate=0.0), "rate is 0, and must be positive"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(bx.InputError, match=message):
        make()


def test_vpbgd_descends_on_the_penalty_function():
    """With v and w at their minimisers, the direction of u is the derivative of min (f / gamma + g) - min g."""
    gamma = 50.0
    solver = bx.VPBGD(optax.sgd(1.0), optax.sgd(0.05), optax.sgd(0.2), lower_steps=3000, gamma=gamma)
    found = direction(solver)[0]

    @jax.jit
    def minimum(u, weight):
        def loss(v):
            return weight * curved_upper(u, v, None) + curved_lower(u, v, None)

        def newton(_, v):
            return v - jnp.linalg.solve(jax.hessian(loss)(v), jax.grad(loss)(v))

        return loss(jax.lax.fori_loop(0, 30, newton, jnp.zeros(3)))

    def value(u):
        return float(minimum(u, 1 / gamma) - minimum(u, 0.0))

    wanted = [(value(U + h) - value(U - h)) / 2e-5 for h in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


FLAT = bx.Problem(  # any v with v[0] = u minimises g
    lambda u, v, _: jnp.sum((v - jnp.array([1.0, 2.0])) ** 2) + 0.1 * u**2, lambda u, v, _: (v[0] - u) ** 2
)
TWO = bx.Problem(  # v = 1 and v = -1 minimise g for every u, and f prefers the one of the sign of -u
    lambda u, v, _: (v + u) ** 2 + 0.1 * (u - 2) ** 2, lambda u, v, _: (v**2 - 1) ** 2
)


@pytest.mark.parametrize(
    "solver",
    [
        bx.VPBGD(UPPER, optax.sgd(5e-2), lower_steps=5),
        bx.F2SA(optax.sgd(2e-2), optax.sgd(0.2), 20, 0.05, order=1),
        bx.Penalty(UPPER, optax.adam(2e-2)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_of_a_flat_lower_level_the_best_minimiser_is_found(solver):
    """v[1] is free: the optimistic solution takes v[1] = 2, and u = v[0] = 1 / 1.1."""
    result = bx.solve(solver, FLAT, jnp.zeros(()), jnp.zeros(2), steps=4000, key=KEY)
    copy = result.state.memory.points[-1] if isinstance(solver, bx.F2SA) else result.v  # the one that f attracts
    np.testing.assert_allclose(result.u, 1 / 1.1, atol=2e-2)
    np.testing.assert_allclose(copy, [1 / 1.1, 2.0], atol=5e-2)


def test_a_start_in_each_basin_finds_the_better_of_two_isolated_minimisers():
    """The minimiser next to the start is kept; a Vectorized multi-start finds the better one."""
    starts = jnp.full(2, 2.0), jnp.array([0.8, -0.8])
    solver = bx.Vectorized(bx.VPBGD(optax.sgd(0.2), optax.sgd(2e-2), lower_steps=5, gamma=20.0))
    result = bx.solve(solver, TWO, *starts, steps=2000, key=KEY)
    losses = jax.vmap(TWO.upper, (0, 0, None, None))(result.u, result.v, None, None)
    np.testing.assert_allclose(result.v, [1, -1], atol=1e-2)
    assert int(jnp.argmin(losses)) == 1
    np.testing.assert_allclose(result.u[1], (1 + 0.2) / 1.1, atol=1e-2)  # of (u - 1)^2 + 0.1 (u - 2)^2


def test_bome_takes_the_least_multiplier_that_closes_the_gap():
    solver = bx.BOME(optax.sgd(1.0), optax.sgd(1.0), optax.sgd(0.2), 200, eta=0.5)
    v = jnp.array([0.5, -1.0, 0.4])
    du, after, info = direction(solver, v=v)
    _, w = exact(U)
    gap_u = jax.grad(curved_lower, 0)(U, v, None) - jax.grad(curved_lower, 0)(U, w, None)
    gap_v = jax.grad(curved_lower, 1)(U, v, None)
    f_u, f_v = jax.grad(curved_upper, (0, 1))(U, v, None)
    size = gap_u @ gap_u + gap_v @ gap_v
    multiplier = max(0.0, 0.5 - (f_u @ gap_u + f_v @ gap_v) / size)
    np.testing.assert_allclose(info.extra["multiplier"], multiplier, rtol=1e-8)
    np.testing.assert_allclose(du, f_u + multiplier * gap_u, rtol=1e-7)
    np.testing.assert_allclose(v - after.v, f_v + multiplier * gap_v, rtol=1e-7)
    fall = du @ gap_u + (v - after.v) @ gap_v
    assert fall >= 0.5 * size * (1 - 1e-9)


def test_meha_chooses_the_strength_of_a_lasso():
    """f is least at a v with an exact zero, which the proximal map gives: strength 1 makes (1, 0, 0) of (2, .5, -1)."""
    problem = bx.Problem(
        lambda u, v, _: jnp.sum((v - jnp.array([1.0, 0.0, 0.0])) ** 2),
        lambda u, v, _: jnp.sum((v - jnp.array([2.0, 0.5, -1.0])) ** 2) / 2,
        regularizer=lambda u, v, mu: jnp.exp(u[0]) * L1()(v, mu),
    )

    def proximal(u, v, step):
        return L1().proximal(v, step * jnp.exp(u[0]))

    solver = bx.MEHA(optax.sgd(0.05), proximal, 0.1, 0.1, weight=Power(5.0, 0.3))
    result = bx.solve(solver, problem, jnp.full(1, -2.0), jnp.ones(3), steps=4000, key=KEY)
    np.testing.assert_allclose(jnp.exp(result.u), 1.0, atol=0.05)
    np.testing.assert_allclose(result.v, [1, 0, 0], atol=0.05)
    assert float(result.v[1]) == 0.0
    for field in ({"regularizer": None}, {}):
        lacking = dataclasses.replace(solver, proximal=None) if not field else solver
        with pytest.raises(bx.InputError, match="Give the term r of g twice"):
            lacking.check(dataclasses.replace(problem, **field), jnp.zeros(1), jnp.ones(3), bx.Batch())


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        bx.F2SA(optax.sgd(2e-2), LOWER, 20),
        bx.VPBGD(UPPER, LOWER, lower_steps=5),
        bx.MEHA(UPPER, None, 5e-2, 5e-2, weight=Power(3.0, 0.49)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_on_the_boundary_of_a_lower_set(solver):
    """v is in [0, 1]^2: v[0] = u[0] is inside, v[1] = 1 for u[1] = 3 does not move with u."""
    problem = bx.Problem(
        lambda u, v, _: jnp.sum((v - jnp.array([0.5, 2.0])) ** 2) + 0.05 * jnp.sum((u - 3) ** 2),
        lambda u, v, _: jnp.sum((v - u) ** 2),
        project_lower=lambda v: jnp.clip(v, 0, 1),
    )
    result = bx.solve(solver, problem, jnp.array([0.2, 2.5]), jnp.full(2, 0.5), steps=3000, key=KEY)
    np.testing.assert_allclose(result.u, [(0.5 + 0.15) / 1.05, 3.0], atol=2e-2)
    np.testing.assert_allclose(result.v, [(0.5 + 0.15) / 1.05, 1.0], atol=2e-2)
