"""SPNBO: sampled rows are unbiased and cheaper, stages end by the three conditions, and corners are found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Lasso

from bilevax import SPNBO, Batch, InputError, Penalty, Problem, oracles, solve
from bilevax.models import mlp
from bilevax.schedules import Geometric
from bilevax.smoothing import L1
from bilevax.solvers.spnbo import AllRows, Constraint, Coordinates, Layers

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (12, 5))
NET = mlp(3, (4, 6))
U = jnp.array([0.3, -0.7])
V = NET.init(jax.random.key(2), X)
V = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), V)
ALPHA = jax.tree.map(lambda x: 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), V)


def lower_loss(u, v, x):
    return jnp.mean(jnp.tanh(NET.apply(v, x)) ** 2) * jnp.exp(u[0]) + jnp.mean(NET.apply(v, x) * u[1])


def upper_loss(u, v, x):
    return jnp.mean((NET.apply(v, x) - 1) ** 2) + jnp.sum(u**2)


PROBLEM = Problem(upper_loss, lower_loss, regularizer=lambda u, v, mu: jnp.exp(u[1]) * L1()(v, mu))
CONSTRAINT = Constraint(PROBLEM, U, V, X, KEY, 0.1, 2.0, ALPHA)


def test_the_rows_of_a_leaf_are_the_full_products_of_a_p_that_is_zero_elsewhere():
    full = oracles.lower(PROBLEM, U, V, X, KEY, mu=0.1)
    leaves, form = jax.tree.flatten(V)
    for i, leaf in list(enumerate(leaves))[::2]:
        part = oracles.lower_rows(PROBLEM, U, V, X, KEY, i, mu=0.1)
        np.testing.assert_allclose(part.grad_v, jax.tree.leaves(full.grad_v)[i], rtol=1e-12)
        assert float(part.loss) == pytest.approx(float(full.loss))
        p = jax.random.normal(jax.random.key(i), leaf.shape)
        alone = jax.tree.unflatten(form, [p if j == i else jnp.zeros_like(x) for j, x in enumerate(leaves)])
        for a, b in zip(*map(jax.tree.leaves, (part.along(p), full.along(alone))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [Layers(), Coordinates(5), Coordinates(1)])
def test_the_mean_over_ten_thousand_draws_is_the_full_direction(rows):
    draws = jax.jit(jax.vmap(lambda key: rows.along(CONSTRAINT, key)))(jax.random.split(jax.random.key(3), 10_000))
    full = AllRows().along(CONSTRAINT, KEY)
    total = wide = 0
    for found, wanted in zip(*map(jax.tree.leaves, (draws, full)), strict=True):
        mean, error = found.mean(0), found.std(0, ddof=1) / 100
        total += wanted.size
        wide += int((jnp.abs(mean - wanted) > 3 * error + 1e-12).sum())
    # Of so many coordinates 0.27% lie outside of three standard errors by chance.
    assert total > 60
    assert wide <= 0.03 * total


def test_the_last_layers_rows_cost_less_than_all():
    v = mlp(10, (256, 256)).init(KEY, jnp.zeros((1, 400)))
    x = jnp.zeros((64, 400))
    net = mlp(10, (256, 256))
    problem = Problem(lambda u, v: jnp.sum(u), lambda u, v, x: jnp.mean(net.apply(v, x) ** 2) * jnp.sum(u))
    last = len(jax.tree.leaves(v)) - 1

    def cost(make):
        compiled = jax.jit(make).lower(jnp.ones(1), v, x).compile()
        return compiled.cost_analysis()["flops"]

    def full(u, v, x):
        g = oracles.lower(problem, u, v, x, None)
        return g.along(g.grad_v)[0], g.along(g.grad_v)[1]

    def part(u, v, x):
        g = oracles.lower_rows(problem, u, v, x, None, last)
        return g.along(g.grad_v)

    assert cost(part) < 0.75 * cost(full)


def test_with_all_rows_and_no_corner_a_step_is_that_of_penalty():
    problem = Problem(upper_loss, lower_loss)
    sgd = optax.sgd(1e-2)
    ours = SPNBO(sgd, sgd, 3, beta=0.7, step_scale=1.0, test_every=1, eps_1=1e9, eps_2=1e9, eps_3=1e9)
    theirs = Penalty(sgd, sgd, 3, gamma=0.7, eps=1e9, nu=1.0, step_scale=1.0)
    batch = Batch(X, X)
    results = [solve(s, problem, U, V, batch, steps=4, key=KEY) for s in (ours, theirs)]
    for a, b in zip(*(jax.tree.leaves((r.u, r.v)) for r in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(results[0].state.alpha), jax.tree.leaves(results[1].state.nu), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    assert int(results[0].state.stage) == 4


@pytest.mark.parametrize("tight", ["eps_1", "eps_2", "eps_3"])
def test_each_of_the_three_conditions_holds_a_stage_back(tight):
    loose = dict.fromkeys(("eps_1", "eps_2", "eps_3"), 1e9)
    solver = SPNBO(optax.sgd(1e-3), optax.sgd(1e-3), 2, test_every=2, **{**loose, tight: 1e-9})
    state = solve(solver, PROBLEM, U, V, Batch(X, X), steps=6, key=KEY).state
    assert int(state.stage) == 0
    assert all((a == 0).all() for a in jax.tree.leaves(state.alpha))


def test_stages_end_where_all_three_conditions_hold():
    loose = dict.fromkeys(("eps_1", "eps_2", "eps_3"), 1e9)
    solver = SPNBO(optax.sgd(1e-3), optax.sgd(1e-3), 2, test_every=2, **loose)
    assert int(solve(solver, PROBLEM, U, V, Batch(X, X), steps=6, key=KEY).state.stage) == 3


def test_the_strength_of_a_lasso_is_that_of_a_fine_grid():
    rng = np.random.default_rng(0)
    true = np.zeros(30)
    true[:5] = 2 * rng.normal(size=5)
    (x, y), (x_val, y_val) = ((a, a @ true + rng.normal(size=100)) for a in rng.normal(size=(2, 100, 30)))

    def error(v, data):
        return 0.5 * jnp.mean((data[0] @ v - data[1]) ** 2)

    grid = np.linspace(-5, 1, 300)
    losses = [error(Lasso(np.exp(a), fit_intercept=False, tol=1e-10).fit(x, y).coef_, (x_val, y_val)) for a in grid]
    best = grid[int(np.argmin(losses))]
    problem = Problem(
        lambda u, v, data: error(v, data),
        lambda u, v, data: error(v, data),
        regularizer=lambda u, v, mu: jnp.exp(u[0]) * L1()(v, mu),
    )
    solver = SPNBO(mu=Geometric(0.3, 0.75), beta=Geometric(1.0, 1.2), step_scale=Geometric(1.0, 0.75), stage_steps=300)
    batch = Batch((jnp.asarray(x_val), jnp.asarray(y_val)), (jnp.asarray(x), jnp.asarray(y)))
    result = solve(solver, problem, jnp.full(1, -3.0), jnp.zeros(30), batch, steps=6000, key=KEY)
    assert abs(float(result.u[0]) - best) < 0.08
    exact = Lasso(np.exp(float(result.u[0])), fit_intercept=False, tol=1e-10).fit(x, y).coef_
    np.testing.assert_allclose(result.v, exact, atol=0.02)
    assert error(exact, (x_val, y_val)) < min(losses) + 1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SPNBO(mu=0.0), "mu is 0 at stage 0, and must be positive"),
        (lambda: SPNBO(beta=Geometric(1.0, 0.5)), "beta decreases"),
        (lambda: SPNBO(test_every=0), "test_every is 0"),
        (lambda: Coordinates(0), "count is 0"),
        (lambda: SPNBO(rows=Coordinates(10_000)).check(PROBLEM, U, V, Batch(X, X)), "asks for 10000 rows, and v has"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(InputError, match=words):
        make()
