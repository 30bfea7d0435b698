"""`diagnostics.report`: numbers known in closed form, curvature, refusals, the table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import derivatives
from bilevax.diagnostics import report

KEEP = optax.sgd(0.0)


# v*(u) = 1 - u; at (u, v): hypergradient 2u - 2v, whatever u + v.
PLANE = bx.Problem(lambda u, v, _: jnp.sum(u**2) + jnp.sum(v**2), lambda u, v, _: jnp.sum((1 - u - v) ** 2))


def saddle(low):
    """g = v1^2 / 2 + low v2^2 / 2 - v . u on a dictionary of v."""
    return bx.Problem(
        lambda u, v, _: jnp.sum(v["a"] ** 2) + jnp.sum(v["b"] ** 2),
        lambda u, v, _: (
            jnp.sum(v["a"] ** 2) / 2 + low * jnp.sum(v["b"] ** 2) / 2 - u @ jnp.concatenate([v["a"], v["b"]])
        ),
    )


def test_numbers_of_a_small_problem():
    found = report(PLANE, np.array([0.75, 0.5]), np.array([0.25, 0.6]))
    assert found.upper_loss == pytest.approx(0.8125 + 0.4225)
    assert found.lower_loss == pytest.approx(0.01)
    assert found.lower_grad_norm == pytest.approx(0.2)
    np.testing.assert_allclose(found.hypergradient, [1.0, -0.2], atol=1e-15)
    assert found.hypergradient_norm == pytest.approx(np.sqrt(1.04))
    assert found.smallest_curvature == pytest.approx(2)
    assert not found.curves_down
    assert found.linear_residual < 1e-15
    assert found.constraint_violation == 0
    assert found.multipliers == ()
    assert found.complementarity == 0
    assert found.stationarity == pytest.approx(np.sqrt(1.04))
    assert found.kkt_residual == pytest.approx(np.sqrt(1.04))
    assert (found.direction, found.direction_error, found.direction_cosine) == (None, None, None)


@pytest.mark.parametrize("dense_limit", [pytest.param(1000, marks=pytest.mark.slow), 0], ids=["dense", "iterative"])
def test_curvature_is_told_by_its_sign(dense_limit):
    u, v = np.zeros(5), {"a": np.zeros(2), "b": np.zeros(3)}
    for low in (-0.5, 0.25):
        found = report(saddle(low), u, v, dense_limit=dense_limit)
        assert found.lower_grad_norm == 0  # which alone would look like an answer
        assert found.smallest_curvature == pytest.approx(low, abs=1e-7)
        assert found.curves_down == (low < 0)
        assert ("curves down" in str(found)) == (low < 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_the_iterative_route_agrees_with_the_dense_one(dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 40)), rng.normal(size=50)
    data = tuple(jnp.asarray(a, dtype) for a in (x, y))
    problem = bx.Problem(
        lambda u, v, data: jnp.mean(jnp.log(jnp.cosh(data[0] @ v["w"] - data[1]))),
        lambda u, v, data: (
            jnp.mean(jnp.exp(u) * jnp.log(jnp.cosh(data[0] @ v["w"] - data[1]))) + 0.1 * jnp.sum(v["w"] ** 2)
        ),
        (bx.Inequality(lambda u, v, _: jnp.stack([jnp.sum(u), v["w"] @ v["w"] - 9])),),
    )
    u = jnp.asarray(rng.normal(size=50) / 5, dtype)
    v = {"w": jnp.asarray(rng.normal(size=40) / 5, dtype)}
    dense, large = (report(problem, u, v, bx.Batch(data, data), dense_limit=n) for n in (1000, 10))
    bound = 1e-8 if dtype == jnp.float64 else 1e-4
    error = np.linalg.norm(dense.hypergradient - large.hypergradient) / dense.hypergradient_norm
    assert large.hypergradient.dtype == dtype
    assert error < bound, f"{error:.1e}"
    assert large.smallest_curvature == pytest.approx(dense.smallest_curvature, rel=1e-4)
    assert large.stationarity == pytest.approx(dense.stationarity, rel=bound)
    assert large.kkt_residual == pytest.approx(dense.kkt_residual, rel=bound)


def test_a_singular_hessian_is_told_by_its_residual():
    problem = bx.Problem(lambda u, v, _: jnp.sum(v), lambda u, v, _: (v[0] - u[0]) ** 2)
    found = report(problem, np.zeros(1), np.zeros(2))
    assert found.smallest_curvature == pytest.approx(0, abs=1e-15)
    assert found.linear_residual == pytest.approx(1)  # (0, 1) is out of the Hessian's reach
    np.testing.assert_allclose(found.hypergradient, [1.0])


@pytest.mark.parametrize(
    ("solver", "error", "cosine"),
    [
        (bx.Alternating(lower_optimizer=KEEP), np.sqrt(0.25 + 1.44) / np.sqrt(1.04), None),
        (bx.Implicit(lower_optimizer=KEEP), 0.0, 1.0),
        (bx.Implicit(lower_optimizer=KEEP, curvature=derivatives.finite_difference), 0.0, 1.0),
    ],
    ids=["alternating", "implicit", "finite difference"],
)
def test_the_direction_of_a_solver_is_compared(solver, error, cosine):
    u, v = np.array([0.75, 0.5]), np.array([0.25, 0.6])
    found = report(PLANE, u, v, solver=solver)
    assert found.direction_error == pytest.approx(error, abs=1e-8)
    if cosine is None:  # alternating descent goes along 2u
        np.testing.assert_allclose(found.direction, 2 * u)
        cosine = (2 * u) @ [1.0, -0.2] / np.linalg.norm(2 * u) / np.sqrt(1.04)
    assert found.direction_cosine == pytest.approx(cosine, abs=1e-8)
    assert "cosine" in str(found)


@pytest.mark.slow
def test_a_given_state_brings_its_multipliers():
    u, v = np.array([0.75]), np.array([0.25])
    solver = bx.Penalty(lower_optimizer=KEEP, gamma=10.0)
    result = bx.solve(solver, PLANE, u, v, steps=3, key=jax.random.key(0))
    memory = result.state.memory._replace(nu=jnp.array([-0.25]))  # -(grad2_vv g)^-1 grad_v f = -0.5 / 2
    state = result.state._replace(memory=memory)
    fresh, carried = report(PLANE, u, v, solver=solver), report(PLANE, u, v, solver=solver, state=state)
    np.testing.assert_allclose(fresh.direction, [1.5])
    np.testing.assert_allclose(carried.direction, [1.0])
    assert carried.direction_error == pytest.approx(0, abs=1e-15)


@pytest.mark.slow
def test_constraints_leave_the_direction_and_drop_the_comparison():
    problem = bx.Problem(PLANE.upper_loss, PLANE.lower_loss, (bx.Inequality(lambda u, v, _: 0.6 - u),))
    found = report(problem, np.array([0.5]), np.array([0.5]), solver=bx.Penalty())
    assert found.direction is not None
    assert found.direction_error is None
    assert found.constraint_violation == pytest.approx(0.1)
    assert found.kkt_residual == pytest.approx(0.1)


def test_a_nearly_active_constraint_costs_its_complementarity_only():
    problem = bx.Problem(PLANE.upper_loss, PLANE.lower_loss, (bx.Inequality(lambda u, v, _: 0.6 - u),))
    found = report(problem, np.array([0.6 + 1e-6]), np.array([0.4 - 1e-6]))
    np.testing.assert_allclose(found.multipliers[0], [0.4], atol=1e-5)
    assert found.stationarity < 1e-9
    assert found.complementarity == pytest.approx(4e-7, rel=1e-3)
    wrong_side = report(problem, np.array([0.3]), np.array([0.7]))
    assert wrong_side.kkt_residual == pytest.approx(0.8)  # |2u - 2v|, with no multiplier below zero


def test_projections_count_as_distances():
    """u >= 0.6 by projection: stationary at the bound though the hypergradient is not zero."""
    problem = bx.Problem(PLANE.upper_loss, PLANE.lower_loss, project_upper=lambda u: jnp.maximum(u, 0.6))
    found = report(problem, np.array([0.6]), np.array([0.4]))
    assert found.hypergradient_norm == pytest.approx(0.4)
    assert found.kkt_residual < 1e-15


@pytest.mark.slow
def test_the_hypergradient_is_shaped_like_u():
    problem = bx.Problem(
        lambda u, v, _: u["a"] ** 2 + jnp.sum(u["b"] * v) ** 2,
        lambda u, v, _: jnp.sum((v - u["b"]) ** 2 * jnp.exp(u["a"])),
    )
    u = {"a": 1.0, "b": np.ones((2, 3))}
    found = report(problem, u, np.ones((2, 3)), solver=bx.Implicit(lower_optimizer=KEEP))
    assert jax.tree.map(jnp.shape, found.hypergradient) == {"a": (), "b": (2, 3)}
    assert jax.tree.map(jnp.shape, found.direction) == {"a": (), "b": (2, 3)}
    # The reduced loss is a^2 + |b|^4.
    np.testing.assert_allclose(found.hypergradient["a"], 2.0)
    np.testing.assert_allclose(found.hypergradient["b"], 4 * 6 * np.ones((2, 3)))


@pytest.mark.slow
def test_fresh_lower_batches_for_each_move_are_read_from_the_first():
    problem = bx.Problem(lambda u, v, _: jnp.sum(v**2), lambda u, v, c: jnp.sum((v - c * u) ** 2))
    batch = bx.Batch(None, bx.PerMove(jnp.arange(1.0, 11.0)))
    found = report(problem, np.ones(1), np.ones(1), batch, bx.Implicit())
    np.testing.assert_allclose(found.hypergradient, [2.0])
    assert found.lower_loss == 0


def test_the_table_is_aligned_and_says_what_the_attributes_say():
    found = report(PLANE, np.array([0.75]), np.array([0.25]), solver=bx.Implicit(lower_optimizer=KEEP))
    lines = str(found).splitlines()
    column = lines[0].index("0.625")
    for line in lines:
        assert line[column - 2 : column] == "  "
        assert line[column] != " "
    assert "|hypergradient|" in str(found)
    assert f"{found.hypergradient_norm:.3e}" in str(found)


U, V = np.ones(2), np.ones(2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: report(PLANE, np.ones(2, int), V), "u has dtype int"),
        (lambda: report(PLANE, U, np.array([1.0, np.nan])), "v holds 1 NaN"),
        (lambda: report(PLANE, U, V, (None, None)), "batch is a tuple"),
        (lambda: report(PLANE, U, V, tolerance=0.0), "tolerance is 0.0"),
        (lambda: report(PLANE, U, V, dense_limit=-1), "dense_limit is -1"),
        (lambda: report(PLANE, U, V, state=3), "state was passed without its solver"),
        (lambda: report(PLANE, U, V, solver=bx.Implicit(), state=3), "state is a int"),
        (
            lambda: report(PLANE, U, V, solver=bx.Implicit(), state=bx.Penalty().init(PLANE, U, V, bx.Batch())),
            "state is not a state of this Implicit",
        ),
        (lambda: report(PLANE, U, V, solver=bx.Vectorized(bx.Penalty())), "Vectorized.*one member"),
        (
            lambda: report(
                bx.Problem(PLANE.upper_loss, PLANE.lower_loss, (bx.Equality(lambda u, v, _: u),)),
                U,
                V,
                solver=bx.Implicit(),
            ),
            "Implicit does not handle upper-level constraints",
        ),
        (
            lambda: report(bx.Problem(lambda u, v, _: jnp.sum(jnp.log(u - 1)), PLANE.lower_loss), U, V),
            "not finite at this",
        ),
        (
            lambda: report(bx.Problem(PLANE.upper_loss, lambda u, v, _: jnp.sum(v**2) + jnp.sum((v - 1) ** 1.5)), U, V),
            "second derivative|Hessian",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, named):
    with pytest.raises(bx.InputError, match=named):
        call()


def test_lanczos_without_an_answer_says_so():
    found = report(bx.Problem(PLANE.upper_loss, PLANE.lower_loss), U, V, dense_limit=0)
    assert found.smallest_curvature == pytest.approx(2)
    text = str(dataclasses.replace(found, smallest_curvature=float("nan")))
    assert "not found" in text


@pytest.mark.slow
def test_an_eigenvalue_of_rounding_does_not_curve_down():
    """H = 2 A'A of rank 2, whose smallest eigenvalue comes out as some 1e-16 of either sign."""
    for seed in range(3):
        a = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5)))
        problem = bx.Problem(lambda u, v, _: jnp.sum(v**2), lambda u, v, _, *, a=a: jnp.sum((a @ v - u) ** 2))
        found = report(problem, jnp.ones(2), jnp.ones(5))
        assert abs(found.smallest_curvature) < 1e-14 * found.largest_curvature
        assert not found.curves_down
        assert "v*(u) is not unique" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("dense_limit", [pytest.param(1000, marks=pytest.mark.slow), 0], ids=["dense", "iterative"])
def test_the_hypergradient_at_an_active_bound(dense_limit):
    """v*(u) = max(u, 0): of f = sum (v + 3)^2 + u the derivative is 2 (u + 3) + 1 where u > 0, and 1 elsewhere."""
    problem = bx.Problem(
        lambda u, v, _: jnp.sum((v + 3) ** 2) + jnp.sum(u),
        lambda u, v, _: jnp.sum((v - u) ** 2),
        project_lower=optax.projections.projection_non_negative,
    )
    u = jnp.array([1.0, -1.0, 0.5, -0.2, 2.0])
    found = report(problem, u, jnp.maximum(u, 0), dense_limit=dense_limit)
    np.testing.assert_allclose(found.hypergradient, np.where(u > 0, 2 * (u + 3), 0) + 1, rtol=1e-9)
    assert found.smallest_curvature == pytest.approx(2)
    assert found.linear_residual < 1e-9


def test_the_smoothing_of_the_regularizer_is_the_one_asked_for():
    problem = bx.Problem(
        lambda u, v, _: jnp.sum(v),
        lambda u, v, _: jnp.sum((v - u) ** 2) / 2,
        regularizer=lambda u, v, mu: 0.1 * jnp.sum(jnp.sqrt(v**2 + mu**2)),
    )
    for mu in (1e-2, 1e-3):
        found = report(problem, jnp.array([0.1 / np.sqrt(2) + mu]), jnp.array([mu]), mu=mu)
        assert found.lower_grad_norm < 1e-15
        assert found.smallest_curvature == pytest.approx(1 + 0.1 / (mu * 2**1.5))
    with pytest.raises(bx.InputError, match="mu is 0, and must be positive"):
        report(problem, jnp.ones(1), jnp.ones(1), mu=0)
