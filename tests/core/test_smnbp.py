"""SMNBP: the points of scipy's SLSQP on the smoothed problem, and those of the problem with corners as mu falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from sklearn.linear_model import Lasso

from bilevax import SMNBP, Batch, Equality, InputError, Penalty, Problem, solve
from bilevax.diagnostics import nonsmooth_stationarity
from bilevax.linear_solve import CG, Direct
from bilevax.penalties import L1, ElasticNet, Given, GroupLasso
from bilevax.solvers import smnbp

KEY = jax.random.key(0)
D = 20
RNG = np.random.default_rng(3)
TRUE = np.repeat([1.5, 0.0, -1.0, 0.2], 5)
X, X_VAL = RNG.normal(size=(2, 60, D))
Y, Y_VAL = X @ TRUE + 1.5 * RNG.normal(size=60), X_VAL @ TRUE + 1.5 * RNG.normal(size=60)
BATCH = Batch((jnp.asarray(X_VAL), jnp.asarray(Y_VAL)), (jnp.asarray(X), jnp.asarray(Y)))
START = jnp.full(1, -3.0), jnp.zeros(D)


def error(u, v, data):
    return 0.5 * jnp.mean((data[0] @ v - data[1]) ** 2)


def problem_of(penalty, **more):
    return Problem(error, error, regularizer=lambda u, v, mu: jnp.exp(u[0]) * penalty(v, mu), **more)


@pytest.mark.parametrize(
    "linear_solve", [pytest.param(Direct(), marks=pytest.mark.slow), CG(100, 1e-8)], ids=["direct", "cg"]
)
def test_at_a_fixed_mu_it_ends_where_slsqp_does(linear_solve):
    mu, problem = 0.05, problem_of(L1())
    result = solve(SMNBP(linear_solve=linear_solve, mu=mu), problem, *START, BATCH, steps=60, key=KEY)

    def split(z):
        return jnp.asarray(z[:1]), jnp.asarray(z[1:])

    f = jax.jit(jax.value_and_grad(lambda z: problem.upper(*split(z), BATCH.upper, None)))

    def c(z):
        return jax.grad(lambda v: problem.lower(z[:1], v, BATCH.lower, None, mu))(z[1:])

    found = scipy.optimize.minimize(
        lambda z: [np.asarray(part, float) for part in f(z)],
        np.concatenate(START),
        jac=True,
        method="SLSQP",
        constraints={"type": "eq", "fun": jax.jit(c), "jac": jax.jit(jax.jacobian(c))},
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert found.success
    np.testing.assert_allclose(np.concatenate([result.u, result.v]), found.x, atol=2e-6)
    assert result.history.upper_grad_norm[-1] < 1e-7
    assert result.history.lower_grad_norm[-1] < 1e-7
    assert result.history.extra["linear_residual"][-1] < 1e-5


GROUPS = GroupLasso(Given([range(i, i + 5) for i in range(0, D, 5)]))


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [L1(), GROUPS, ElasticNet(0.5)], ids=["l1", "group", "elastic net"])
def test_the_limit_is_stationary_for_the_problem_with_corners(penalty):
    problem = problem_of(penalty)
    result = solve(SMNBP(linear_solve=Direct()), problem, *START, BATCH, steps=150, key=KEY)
    found = nonsmooth_stationarity(
        problem,
        result.u,
        result.v,
        BATCH,
        proximal=lambda u, v, step: penalty.proximal(v, step * float(jnp.exp(u[0]))),
        rate=0.1 / float(np.linalg.norm(X.T @ X / 60, 2)),
    )
    assert result.history.extra["mu"][-1] < 1e-5
    assert found.lower < 1e-3
    assert found.upper < 1e-3


@pytest.mark.slow
def test_the_strength_of_a_lasso_is_that_of_a_grid_of_a_thousand():
    grid = np.linspace(np.log(1e-3), np.log(2.0), 1000)

    def held_out(a):
        v = Lasso(np.exp(a), fit_intercept=False, tol=1e-10, max_iter=100_000).fit(X, Y).coef_
        return float(error(None, v, (X_VAL, Y_VAL)))

    best = grid[int(np.argmin([held_out(a) for a in grid]))]
    result = solve(SMNBP(), problem_of(L1()), *START, BATCH, steps=150, key=KEY)
    assert abs(float(result.u[0]) - best) <= grid[1] - grid[0]


def test_a_strength_that_would_be_negative_ends_at_zero():
    """Here the lower level is right as it is, and any shrinkage is too much."""
    problem = Problem(
        lambda u, v, _: jnp.sum((v - 2.0) ** 2),
        lambda u, v, _: jnp.sum((v - 1.0) ** 2) / 2,
        regularizer=lambda u, v, mu: u[0] * L1()(v, mu),
        project_upper=lambda u: jnp.maximum(u, 0.0),
    )
    result = solve(SMNBP(), problem, jnp.full(1, 0.5), jnp.ones(2), steps=60, key=KEY)
    assert float(result.u[0]) == 0
    np.testing.assert_allclose(result.v, 1, atol=1e-6)
    assert int(result.state.memory.stage) > 10


@pytest.mark.slow
def test_a_stage_ends_by_its_tolerance_alone():
    """A tolerance that any step meets for five stages, then one that none meets."""
    solver = SMNBP(eps=lambda stage: jnp.where(stage < 5, 1e9, 1e-30))
    stages = solve(solver, problem_of(L1()), *START, BATCH, steps=20, key=KEY).history.extra["stage"]
    np.testing.assert_array_equal(stages, np.minimum(np.arange(20), 5))


@pytest.mark.slow
def test_it_descends_by_any_optimizer_of_u():
    result = solve(SMNBP(optax.adam(0.3), mu=0.1), problem_of(L1()), *START, BATCH, steps=60, key=KEY)
    assert result.history.upper_loss[-1] < result.history.upper_loss[0]
    assert result.history.lower_grad_norm[-1] < 1e-2 * result.history.lower_grad_norm[0]


def test_an_optimizer_whose_state_holds_an_array_twice_works_in_any_solver():
    """L-BFGS makes its memories of one array of zeros, and what is donated must not be donated twice."""
    solver = Penalty(optax.chain(optax.scale_by_lbfgs(3), optax.scale(-0.01)))
    problem = Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - u) ** 2))
    result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=10, key=KEY)
    assert np.isfinite(result.u).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SMNBP(mu=-1.0), "mu is -1 at stage 0, and must be positive"),
        (lambda: SMNBP(eps=0.0), "eps is 0 at stage 0"),
        (lambda: SMNBP(halvings=0), "halvings is 0"),
        (
            lambda: SMNBP().check(problem_of(L1(), constraints=(Equality(lambda u, v, _: u),)), *START, BATCH),
            "SMNBP does not handle upper-level constraints",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("rate", [0.1, 2.0, 3.0])
def test_a_step_is_the_first_halving_that_lowers_the_exact_penalty_enough(rate, monkeypatch):
    """Against dense derivatives. By 0.7 of its slope, in place of 1e-4, so that the condition decides."""
    monkeypatch.setattr(smnbp, "SUFFICIENT", 0.7)
    aim, u, v = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.3]), jnp.array([-0.4, 0.8])

    def f(u, v, data):
        return 0.5 * jnp.sum((v - aim) ** 2) + 0.05 * jnp.sum(u**4)

    def g(u, v, data):
        return jnp.sum(v**2 + 0.2 * v**4 - jnp.sin(u) * v)

    def c(u, v):
        return jax.grad(g, 1)(u, v, None)

    @jax.jit
    def by_hand(rate):
        f_u, f_v = jax.grad(f, (0, 1))(u, v, None)
        c_u, h = jax.jacobian(c, (0, 1))(u, v)
        q = jnp.linalg.solve(h, f_v)
        reduced = f_u - c_u.T @ q
        d_u = -rate * reduced
        d_v = -jnp.linalg.solve(h, c(u + d_u, v))
        weight = 2 * jnp.linalg.norm(q) + 1e-3
        slope = reduced @ d_u - q @ c(u, v) - weight * jnp.linalg.norm(c(u, v))

        def merit(t):
            point = u + t * d_u, v + t * d_v
            return f(*point, None) + weight * jnp.linalg.norm(c(*point))

        halvings = 0.5 ** jnp.arange(11)
        return reduced, d_u, d_v, q, slope, merit(0.0), jax.vmap(merit)(halvings)

    reduced, d_u, d_v, q, slope, before, merits = by_hand(rate)
    enough = [
        t for t, after in zip(0.5 ** np.arange(11), merits, strict=True) if after <= before + 0.7 * t * min(slope, 0)
    ]
    t = max([*enough, 0.5**10])
    solver, problem = SMNBP(optax.sgd(rate, momentum=0.9), Direct()), Problem(f, g)
    state = solver.init(problem, u, v, Batch())
    # With the momentum of moves uphill the step would lead uphill, so the optimizer starts anew.
    state = state._replace(upper_opt=jax.tree.map(lambda x: -1.2 * reduced, state.upper_opt))
    state, info = jax.jit(lambda state: solver.step(problem, state, Batch(), KEY))(state)
    assert float(info.extra["step"]) == t
    np.testing.assert_allclose(state.u, u + t * d_u, rtol=1e-9)
    np.testing.assert_allclose(state.v, v + t * d_v, rtol=1e-9)
    np.testing.assert_allclose(state.memory.q, q, rtol=1e-9)
    assert bool(state.memory.stuck) == (t == 0.5**10)
