"""SPNBO: sampled rows are unbiased and cheaper, stages end by the three conditions, and corners are found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Lasso

from bilevax import SPNBO, Batch, InputError, Penalty, Problem, derivatives, solve
from bilevax.diagnostics import nonsmooth_stationarity
from bilevax.nn import mlp
from bilevax.penalties import L1, Given, GroupLasso, Lp, Oscar, removed_share, zero_share
from bilevax.schedules import Geometric
from bilevax.solvers.spnbo import AllRows, Constraint, Layers, layers_of

KEY = jax.random.key(0)
NET = mlp(3, (4, 6))
U = jnp.array([0.3, -0.7])


@jax.jit
def start():
    """In one program, since every worker makes it as it collects."""
    x = jax.random.normal(jax.random.key(1), (12, 5))
    v = NET.init(jax.random.key(2), x)
    v = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), v)
    return x, v, jax.tree.map(lambda x: 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), v)


X, V, ALPHA = start()


def lower_loss(u, v, x):
    return jnp.mean(jnp.tanh(NET.apply(v, x)) ** 2) * jnp.exp(u[0]) + jnp.mean(NET.apply(v, x) * u[1])


def upper_loss(u, v, x):
    return jnp.mean((NET.apply(v, x) - 1) ** 2) + jnp.sum(u**2)


PROBLEM = Problem(upper_loss, lower_loss, regularizer=lambda u, v, mu: jnp.exp(u[1]) * L1()(v, mu))
CONSTRAINT = Constraint(PROBLEM, U, V, X, KEY, 0.1, 2.0, ALPHA)


@pytest.mark.parametrize(
    "places", [[1, 2], *(pytest.param(x, marks=pytest.mark.slow) for x in ([0], [3], [2, 3, 4, 5]))]
)
def test_the_rows_of_some_leaves_are_the_full_products_of_a_p_that_is_zero_elsewhere(places):
    leaves, form = jax.tree.flatten(V)
    rng = np.random.default_rng(0)
    p = [jnp.asarray(rng.normal(size=leaves[i].shape)) for i in places]
    alone = [jnp.asarray(np.zeros(x.shape)) for x in leaves]
    for i, x in zip(places, p, strict=True):
        alone[i] = x

    @jax.jit
    def values(u, v, p, alone):
        full = derivatives.lower(PROBLEM, u, v, X, KEY, mu=0.1)
        part = derivatives.lower_rows(PROBLEM, u, v, X, KEY, places, mu=0.1)
        slopes = [jax.tree.leaves(full.grad_v)[i] for i in places]
        return (part.loss, part.grad_v, part.second_products(p)), (full.loss, slopes, full.second_products(alone))

    found, wanted = values(U, V, p, jax.tree.unflatten(form, alone))
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_layers_are_the_leaves_under_one_name():
    assert layers_of(V) == [[0, 1], [2, 3], [4, 5]]
    assert layers_of({"a": {"b": 1.0, "c": 2.0}, "d": 3.0, "e": 4.0}) == [[0, 1], [2], [3]]
    assert layers_of(jnp.zeros(3)) == [[0]]


@functools.partial(jax.jit, static_argnums=0)
def second_products(rows):
    return rows.second_products(CONSTRAINT, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [Layers(), Layers(2)])
def test_the_mean_over_ten_thousand_draws_is_the_full_direction(rows):
    draws = jax.jit(jax.vmap(lambda key: rows.second_products(CONSTRAINT, key)))(
        jax.random.split(jax.random.key(3), 10_000)
    )
    full = second_products(AllRows())
    total = wide = 0
    for found, wanted in zip(*map(jax.tree.leaves, (draws, full)), strict=True):
        mean, error = found.mean(0), found.std(0, ddof=1) / 100
        total += wanted.size
        wide += int((jnp.abs(mean - wanted) > 3 * error + 1e-12).sum())
    # Of so many coordinates 0.27% lie outside of three standard errors by chance.
    assert total > 60
    assert wide <= 0.03 * total


def test_all_layers_are_all_rows():
    for a, b in zip(*map(jax.tree.leaves, map(second_products, (Layers(3), AllRows()))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_the_last_layers_rows_cost_less_than_all():
    net = mlp(10, (256, 256))
    x = jnp.zeros((64, 400))
    v = net.init(KEY, x)
    problem = Problem(lambda u, v, _: jnp.sum(u), lambda u, v, x: jnp.mean(net.apply(v, x) ** 2) * jnp.sum(u))

    def cost(places):
        def products(u, v, x):
            g = derivatives.lower_rows(problem, u, v, x, None, places)
            return g.second_products(g.grad_v)

        return jax.jit(products).lower(jnp.ones(1), v, x).compile().cost_analysis()["flops"]

    full, middle, last = (cost(range(first, 6)) for first in (0, 2, 4))
    assert last < 0.75 * full
    assert last < middle < full


@pytest.mark.slow
def test_with_all_rows_and_no_corner_a_step_is_that_of_penalty():
    problem = Problem(upper_loss, lower_loss)
    sgd = optax.sgd(1e-2)
    ours = SPNBO(sgd, sgd, 3, beta=0.7, step_scale=1.0, test_every=1, eps_1=1e9, eps_2=1e9, eps_3=1e9)
    theirs = Penalty(sgd, sgd, 3, gamma=0.7, eps=1e9, nu=1.0, step_scale=1.0)
    batch = Batch(X, X)
    results = [solve(s, problem, U, V, batch, steps=4, every=1, key=KEY) for s in (ours, theirs)]
    for a, b in zip(*(jax.tree.leaves((r.u, r.v)) for r in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    for a, b in zip(
        jax.tree.leaves(results[0].state.memory.alpha), jax.tree.leaves(results[1].state.memory.nu), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    assert int(results[0].state.memory.stage) == 4
    # What is tested at the end of a stage is of the augmented Lagrangian, too.
    for name in ("upper_loss", "lower_loss", "upper_grad_norm", "lower_grad_norm"):
        np.testing.assert_allclose(*(getattr(r.history, name) for r in results), rtol=1e-10)
    np.testing.assert_allclose(*(r.history.extra["stationarity"] for r in results), rtol=1e-10)
    last = solve(ours, problem, U, V, batch, steps=3, every=1, key=KEY).state.memory.alpha
    squares = [optax.tree.norm(alpha, squared=True) for alpha in (results[0].state.memory.alpha, last)]
    # alpha moves by beta c: |alpha + beta c|^2 = |alpha|^2 + 2 beta Psi.
    assert float(results[0].state.memory.found[1]) == pytest.approx(float(squares[0] - squares[1]) / 1.4, rel=1e-9)


SMALL = Problem(
    lambda u, v, _: jnp.sum((v - 1) ** 2) + jnp.sum(u**2),
    lambda u, v, _: jnp.sum((v - u) ** 2),
    regularizer=lambda u, v, mu: jnp.exp(u[1]) * L1()(v, mu),
)


@pytest.mark.parametrize("tight", ["eps_1", "eps_2", "eps_3"])
def test_each_of_the_three_conditions_holds_a_stage_back(tight):
    loose = dict.fromkeys(("eps_1", "eps_2", "eps_3"), 1e9)
    solver = SPNBO(optax.sgd(1e-3), optax.sgd(1e-3), 2, test_every=2, **{**loose, tight: 1e-9})
    state = solve(solver, SMALL, U, jnp.array([0.5, -0.2]), steps=6, key=KEY).state
    assert int(state.memory.stage) == 0
    assert all((a == 0).all() for a in jax.tree.leaves(state.memory.alpha))


def test_stages_end_where_all_three_conditions_hold():
    loose = dict.fromkeys(("eps_1", "eps_2", "eps_3"), 1e9)
    solver = SPNBO(optax.sgd(1e-3), optax.sgd(1e-3), 2, test_every=2, **loose)
    assert int(solve(solver, SMALL, U, jnp.array([0.5, -0.2]), steps=6, key=KEY).state.memory.stage) == 3


@pytest.mark.parametrize(("first", "tested"), [(1.0, False), (jnp.inf, True)])
def test_the_first_step_tests_whatever_the_interval(first, tested):
    """The first entry of what was found is infinite until a test was made; the others may be zero then."""
    solver, batch = SPNBO(test_every=100), Batch()
    state = solver.init(SMALL, U, jnp.array([0.5, -0.2]), batch)
    before = jnp.array([first, 0.0, 0.0, 0.0])
    state = state._replace(memory=state.memory._replace(found=before))
    after = jax.jit(lambda state: solver.step(SMALL, state, batch, KEY))(state)[0].memory.found
    assert np.isfinite(after).all()
    assert (after != before).all() if tested else (after == before).all()


SOLVER = SPNBO(
    optax.adam(0.1, b2=0.99),
    mu=Geometric(0.3, 0.75),
    beta=Geometric(1.0, 1.1),
    step_scale=Geometric(1.0, 0.75),
    stage_steps=250,
)
D = 30
FIVE = np.where(np.arange(D) < 5, 2.0, 0.0) * np.random.default_rng(0).normal(size=D)


def error(v, data):
    return 0.5 * jnp.mean((data[0] @ v - data[1]) ** 2)


def regression(true, seed, noise=1.0, rows=100):
    """A batch of a linear model's samples: a validation and a training half."""
    rng = np.random.default_rng(seed)
    lower, upper = ((x, x @ true + noise * rng.normal(size=rows)) for x in rng.normal(size=(2, rows, len(true))))
    return jax.tree.map(jnp.asarray, Batch(upper, lower))


def regularised(penalty):
    return Problem(
        lambda u, v, data: error(v, data),
        lambda u, v, data: error(v, data),
        regularizer=lambda u, v, mu: jnp.exp(u[0]) * penalty(v, mu),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights",
    [pytest.param(np.ones(D), marks=pytest.mark.slow), np.random.default_rng(5).uniform(0.5, 2.0, D)],
    ids=["equal", "given"],
)
def test_the_strength_of_a_lasso_is_that_of_a_grid_of_a_thousand(weights):
    batch = regression(FIVE, 1)
    (x, y), held_out = batch.lower, batch.upper

    def exact(strength):
        lasso = Lasso(np.exp(strength), fit_intercept=False, tol=1e-10, max_iter=100_000)
        return lasso.fit(x / weights, np.asarray(y)).coef_ / weights

    grid = np.linspace(np.log(1e-3), np.log(2.0), 1000)
    losses = [float(error(exact(a), held_out)) for a in grid]
    problem = regularised(lambda v, mu: jnp.sum(weights * jnp.sqrt(v**2 + mu**2)))
    result = solve(SOLVER, problem, jnp.full(1, -3.0), jnp.zeros(D), batch, steps=11_000, key=KEY)
    assert abs(float(result.u[0]) - grid[int(np.argmin(losses))]) <= grid[1] - grid[0]
    np.testing.assert_allclose(result.v, exact(float(result.u[0])), atol=1e-3)


# At a strength where an entry just enters or leaves, the hypergradient jumps, and no residual of it vanishes: these
# have their optimum elsewhere.
TWO_GROUPS = np.where(np.isin(np.arange(D) // 5, [0, 2]), 1.0, 0.0) * np.random.default_rng(0).normal(size=D)
TIED = np.repeat([2.0, -1.0, 0.0], [8, 6, D - 14])
KINDS = {
    "group": (GroupLasso(Given([range(i, i + 5) for i in range(0, D, 5)])), TWO_GROUPS, 2, 2.0, 80),
    "l_0.6": (Lp(0.6), FIVE, 2, 1.0, 100),
    "oscar": (Oscar(1.0, 0.1), TIED, 1, 1.0, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "l_0.6", "oscar"])
def test_the_limit_is_stationary_for_the_problem_with_corners(kind):
    penalty, true, seed, noise, rows = KINDS[kind]
    problem, batch = regularised(penalty), regression(true, seed, noise, rows)
    x = np.asarray(batch.lower[0])
    rate = (1e-3 if kind == "l_0.6" else 0.1) / float(np.linalg.norm(x.T @ x / len(x), 2))

    def look(u, v):
        def proximal(u, v, step):
            return penalty.proximal(v, step * float(jnp.exp(u[0])))

        return nonsmooth_stationarity(problem, u, v, batch, proximal=proximal, rate=rate)

    start = jnp.full(1, -3.0), jnp.zeros(D)
    result = solve(SOLVER, problem, *start, batch, steps=11_000, key=KEY)
    before, found = look(*start), look(result.u, result.v)
    assert max(before.lower, before.upper) > 0.05
    assert found.lower < 1e-3
    assert found.upper < 1e-3
    assert zero_share(found.v) >= 0.1
    if kind == "group":
        assert removed_share(penalty.groups, found.v) >= 0.3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SPNBO(mu=0.0), "mu is 0 at stage 0, and must be positive"),
        (lambda: SPNBO(beta=Geometric(1.0, 0.5)), "beta decreases"),
        (lambda: SPNBO(test_every=0), "test_every is 0"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(InputError, match=words):
        make()
