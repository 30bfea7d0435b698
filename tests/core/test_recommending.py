"""`recommend`: what it says of five kinds of problems, and where its solvers end without a setting touched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import Batch, Inequality, InputError, Minibatches, Problem, recommend, solve
from bilevax.argmin import hypergradient
from bilevax.recommending import _bounds
from tests.core.solvers import BATCH, PROBLEM, SPARSE, START, solution

KEY = jax.random.key(0)
FLAT = jnp.zeros(2), jnp.ones(2)
RIDGE = Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: jnp.sum((v - 1) ** 2) + jnp.exp(u) @ v**2)


def shown(found):
    return {row.solver: row for row in found.rows}


def test_every_reason_is_the_solvers_own_refusal():
    problem = Problem(PROBLEM.upper_loss, PROBLEM.lower_loss, constraints=(Inequality(lambda u, v, _: u[0]),))
    found = recommend(problem, *START, BATCH)
    rows = shown(found)
    assert isinstance(found.solver, bx.Penalty)
    assert [row.solver for row in found.rows if row.fits] == ["Penalty"]
    with pytest.raises(InputError) as error:
        bx.Implicit().check(problem, *START, BATCH)
    assert rows["Implicit"].reason == str(error.value)
    assert rows["SABA"].reason.startswith("SABA: batch.upper is")
    assert "Penalty" in str(found)
    listed = {x.__name__ for x in vars(bx.solvers).values() if isinstance(x, type) and hasattr(x, "step")}
    assert listed - {"Vectorized", "Solver", "GradientMatching"} == set(rows)


@pytest.mark.slow
def test_curvature_decides_on_methods_that_need_a_strongly_convex_g():
    flat = Problem(lambda u, v, _: jnp.sum(v**2), lambda u, v, _: (v[0] - u[0]) ** 2 - 0.1 * v[1] ** 2 + v[1] ** 4)
    found = recommend(flat, jnp.ones(1), jnp.zeros(2))
    np.testing.assert_allclose((found.smallest_curvature, found.largest_curvature), (-0.2, 2), rtol=1e-6)
    assert shown(found)["SOBA"].reason == ("SOBA assumes a strongly convex g, whose smallest curvature here is -0.2.")
    assert not shown(found)["F2SA"].fits
    assert shown(found)["VPBGD"].fits


def test_the_quadratic_without_a_setting_touched():
    found = recommend(PROBLEM, *START, BATCH, steps=500)
    assert found.bounds == ""
    result = solve(found.solver, PROBLEM, *START, BATCH, steps=500, key=KEY)
    np.testing.assert_allclose(result.u, solution(), atol=1e-3)


@pytest.mark.slow
def test_strengths_as_exponentials_without_a_setting_touched():
    """As u moves, the curvature of g grows by more than the rates at the start would bear: they gave a NaN."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    sign = np.sign(x @ [3.0, -2, 1, 0, 0, 0] + rng.normal(size=300))
    data = jnp.asarray(x), jnp.asarray(sign)
    upper, lower = (tuple(a[part] for a in data) for part in (slice(150, None), slice(150)))

    def loss(v, b):
        return jnp.mean(jax.nn.softplus(-b.data[1] * (b.data[0] @ v)))

    problem = Problem(
        lambda u, v, b: loss(v, b) + 1e-3 * jnp.sum(u**2), lambda u, v, b: loss(v, b) + jnp.exp(u) @ v**2 / 2
    )
    start = jnp.full(6, -3.0), jnp.zeros(6)
    exact = Batch(bx.whole(upper), bx.whole(lower))
    for source, least in ((exact, 0.005), (Minibatches(upper, lower, 30, 30), 0.015)):  # 0.047 at the start
        found = recommend(problem, *start, source, steps=400)
        result = solve(found.solver, problem, *start, source, steps=400, key=KEY, every=400)
        v = jnp.zeros(6)
        for _ in range(20):  # Newton
            slope = jax.grad(problem.lower_loss, 1)(result.u, v, exact.lower)
            v -= jnp.linalg.solve(jax.hessian(problem.lower_loss, 1)(result.u, v, exact.lower), slope)
        there = hypergradient(problem, result.u, v, exact).gradient
        assert jnp.linalg.norm(there) < least, type(found.solver)


@pytest.mark.slow
def test_bounds_of_u_that_keep_the_curvature_are_named():
    """exp(u) grows a hundredfold at u = 4.6; u may move by 50 in 1000 steps, and half of that is tried first."""
    found = recommend(RIDGE, *FLAT, steps=1000)
    assert "more than 100-fold where u moves by 50" in found.bounds
    assert "jnp.clip(u, start - 3.1, start + 3.1)" in str(found)
    assert _bounds(dataclasses.replace(RIDGE, project_upper=lambda u: jnp.clip(u, -4, 4)), *FLAT, Batch(), 50.0) == ""


@pytest.mark.slow
def test_a_feature_without_use_needs_bounds_of_its_strength():
    """Its best strength is infinite. Without the bounds that are named, u goes on to 85, where v is far from v*(u)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    sign = np.sign(x @ [3.0, -2, 1, 0, 0, 0] + rng.normal(size=300))
    batch = Batch((jnp.asarray(x[150:]), jnp.asarray(sign[150:])), (jnp.asarray(x[:150]), jnp.asarray(sign[:150])))

    def loss(v, data):
        return jnp.mean(jax.nn.softplus(-data[1] * (data[0] @ v)))

    free = Problem(lambda u, v, d: loss(v, d), lambda u, v, d: loss(v, d) + jnp.exp(u) @ v**2 / 2)
    start = jnp.full(6, -3.0), jnp.zeros(6)
    found = recommend(free, *start, batch, steps=2000)
    radius = float(found.bounds.split("about ")[1].split()[0])
    assert 4 < radius < 7
    problem = dataclasses.replace(free, project_upper=lambda u: jnp.clip(u, -3 - radius, -3 + radius))
    found = recommend(problem, *start, batch, steps=2000)
    assert found.bounds == ""
    result = solve(found.solver, problem, *start, batch, steps=2000, key=KEY, every=2000)
    assert jnp.linalg.norm(jax.grad(problem.lower_loss, 1)(result.u, result.v, batch.lower)) < 1e-3
    assert problem.upper_loss(result.u, result.v, batch.upper) < 0.21


@pytest.mark.slow
def test_hyper_cleaning_from_minibatches_without_a_setting_touched():
    """Digits, half of the labels wrong. The trusted images alone give an error of 0.20, all labels 0.25."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = x[np.random.default_rng(0).permutation(len(x))] / 16 - 0.3, y[np.random.default_rng(0).permutation(len(x))]
    rng, n = np.random.default_rng(1), 1000
    given = np.where(rng.uniform(size=n) < 0.5, rng.integers(0, 10, n), y[:n])
    x = x.astype(np.float32)

    def losses(v, data):
        return optax.softmax_cross_entropy_with_integer_labels(data[0] @ v, data[1])

    problem = Problem(
        lambda u, v, b: jnp.mean(losses(v, b.data)),
        lambda u, v, b: jnp.mean(jax.nn.sigmoid(u[b.index]) * losses(v, b.data)) + 1e-3 * jnp.sum(v**2),
    )
    source = Minibatches((x[n : n + 200], y[n : n + 200]), (x[:n], given), 50, 50)
    start = jnp.zeros(n, jnp.float32), jnp.zeros((64, 10), jnp.float32)
    errors = {}
    for name, solver in (
        ("recommended", recommend(problem, *start, source, steps=1000).solver),
        ("plain", bx.Alternating(optax.sgd(0.0), optax.sgd(0.3))),
    ):
        v = solve(solver, problem, *start, source, steps=1000, key=KEY, every=1000).v
        errors[name] = np.mean(np.argmax(x[n + 200 :] @ v, 1) != y[n + 200 :])
    assert errors["recommended"] < 0.1 < errors["plain"]


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(bx.Penalty(), marks=pytest.mark.slow),
        pytest.param(bx.Implicit(), marks=pytest.mark.slow),
        bx.Vectorized(bx.Penalty()),
    ],
)
def test_defaults_for_whole_data_are_warned_of_on_minibatches(solver):
    problem = Problem(lambda u, v, b: jnp.mean((v - b.data) ** 2), lambda u, v, b: jnp.mean((v - u - b.data) ** 2))
    data, start = jnp.arange(8.0), (jnp.zeros(()), jnp.zeros(()))
    if isinstance(solver, bx.Vectorized):
        start = jax.tree.map(lambda x: x[None], start)
        sources = [bx.Stacked(Minibatches(data[None], data[None], size, size)) for size in (4, None)]
    else:
        sources = [Minibatches(data, data, size, size) for size in (4, None)]
    with pytest.warns(UserWarning, match=r"has its default lower_optimizer, .* Use bilevax.recommend"):
        solve(solver, problem, *start, sources[0], steps=500, key=KEY)
    solve(solver, problem, *start, sources[1], steps=500, key=KEY)  # whole data, and a trial
    solve(solver, problem, *start, sources[0], steps=499, key=KEY)


@pytest.mark.slow
def test_four_more_problems_without_a_setting_touched():
    rng = np.random.default_rng(0)
    bounded = Problem(
        lambda u, v, _: jnp.sum((u + 2) ** 2 + (v + 3) ** 2),
        lambda u, v, _: jnp.sum((v - u) ** 2),
        project_lower=optax.projections.projection_non_negative,
    )
    found = recommend(bounded, jnp.ones(1), jnp.ones(1))
    result = solve(found.solver, bounded, jnp.ones(1), jnp.ones(1), steps=1000, key=KEY)
    np.testing.assert_allclose([*result.u, *result.v], [-2, 0], atol=1e-3)

    batch = Batch(jnp.array([1.0, 0.0, -0.5]), jnp.ones(3))  # the strength that minimises 2 (1 - s)^2 - ..., by a grid
    start = jnp.full(1, -2.0), jnp.ones(3)
    found = recommend(SPARSE, *start, batch, steps=3000)
    result = solve(found.solver, SPARSE, *start, batch, steps=3000, key=KEY)
    grid = np.linspace(0.01, 1.5, 2000)
    ends = np.sign([2.0, 0.5, -1.0]) * np.maximum(np.abs([2.0, 0.5, -1.0]) - grid[:, None], 0)
    losses = np.sum((ends - np.asarray(batch.upper)) ** 2, 1) + 0.01 * np.log(grid) ** 2
    assert abs(float(jnp.exp(result.u[0])) - grid[losses.argmin()]) < 0.02

    constrained = Problem(
        lambda u, v, _: jnp.sum((v - 1) ** 2),
        lambda u, v, _: jnp.sum((v - 2 * u) ** 2),
        constraints=(Inequality(lambda u, v, _: v - 0.6),),
    )
    start = jnp.zeros(1), jnp.zeros(1)
    found = recommend(constrained, *start, steps=2000)
    result = solve(found.solver, constrained, *start, steps=2000, key=KEY)
    np.testing.assert_allclose([*result.u, *result.v], [0.3, 0.6], atol=1e-2)

    # Weights of samples in minibatches: half of the lower targets are wrong, and have to lose their weights.
    x = rng.normal(size=(200, 5))
    y = x @ np.arange(1.0, 6.0)
    given = np.where(np.arange(100) < 50, y[:100], 20 * rng.normal(size=100))
    weighted = Problem(
        lambda u, v, b: jnp.mean((b.data[0] @ v - b.data[1]) ** 2),
        lambda u, v, b: jnp.mean(jax.nn.sigmoid(u[b.index]) * (b.data[0] @ v - b.data[1]) ** 2) + 1e-3 * jnp.sum(v**2),
    )
    source = Minibatches((x[100:], y[100:]), (x[:100], given), upper_size=20, lower_size=20)
    start = jnp.zeros(100), jnp.zeros(5)
    found = recommend(weighted, *start, source)
    result = solve(found.solver, weighted, *start, source, steps=1000, key=KEY)
    error = np.mean((x[100:] @ result.v - y[100:]) ** 2)
    plain = np.mean((x[100:] @ np.linalg.lstsq(x[:100], given, rcond=None)[0] - y[100:]) ** 2)
    assert error < plain / 5


@pytest.mark.usefixtures("annotations_unchecked")
def test_refusals():
    with pytest.raises(InputError, match="problem is 3"):
        recommend(3, *START)
    with pytest.raises(InputError, match="steps"):
        recommend(PROBLEM, *START, BATCH, steps=0)
    with pytest.raises(InputError, match="lower_loss does not depend on v"):
        recommend(Problem(PROBLEM.upper_loss, lambda u, v, _: jnp.sum(u)), *START, BATCH)
