"""Lower levels with constraints: BLOCC and BiCGAFFA against closed forms, and who refuses them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import BLOCC, Batch, BiCGAFFA, Equality, Inequality, InputError, Problem, diagnostics, solve
from bilevax.argmin import hypergradient
from bilevax.schedules import Power
from tests.core.solvers import KINDS

KEY = jax.random.key(0)


def upper_loss(u, v, _):
    return jnp.sum((v - 1) ** 2) + 0.1 * jnp.sum(u**2)


# v*(u) = min(u, 1 - u), so that the constraint is active from u = 0.5 on.
HALF = Problem(
    upper_loss,
    lambda u, v, _: jnp.sum((v - u) ** 2),
    lower_constraints=(Inequality(lambda u, v, _: u + v - 1),),
)
# v*(u) = (u / 2, u / 2).
SUM = Problem(
    upper_loss, lambda u, v, _: jnp.sum(v**2), lower_constraints=(Equality(lambda u, v, _: jnp.sum(v) - u[0]),)
)
STILL = BLOCC(optax.sgd(0.0), optax.sgd(0.15), 20, 5, gamma=200.0)
HANDLE = ("BLOCC", "BiCGAFFA")
AT_POINTS = pytest.mark.parametrize(
    ("problem", "u", "v", "slope"),
    [
        (HALF, 0.3, [0.3], 2 * (0.3 - 1) + 0.06),
        (HALF, 0.8, [0.2], -2 * (0.2 - 1) + 0.16),
        (SUM, 0.4, [0.2, 0.2], 2 * (0.2 - 1) + 0.08),
    ],
    ids=["inactive", "active", "equality"],
)


@AT_POINTS
def test_the_direction_is_the_hypergradient_of_the_constrained_solution(problem, u, v, slope):
    result = solve(STILL, problem, jnp.array([u]), jnp.zeros(len(v)), steps=40, key=KEY)
    np.testing.assert_allclose(result.v, v, atol=1e-5)
    np.testing.assert_allclose(result.history.upper_grad_norm[-1], abs(slope), rtol=2e-2)
    assert result.history.extra["violation"][-1] < 1e-5


@AT_POINTS
def test_the_slope_of_the_gap_is_the_hypergradient_over_the_weight(problem, u, v, slope):
    solver = BiCGAFFA(optax.sgd(0.0), 0.1, 0.1, 0.1, weight=1000.0)
    result = solve(solver, problem, jnp.array([u]), jnp.zeros(len(v)), steps=3000, key=KEY)
    np.testing.assert_allclose(result.v, v, atol=2e-3)
    np.testing.assert_allclose(1000 * result.history.upper_grad_norm[-1], abs(slope), rtol=5e-3)
    assert result.history.extra["violation"][-1] < 2e-3


@pytest.mark.parametrize(("problem", "n", "u"), [(SUM, 2, 2 / 1.2), (HALF, 1, 0.5)], ids=["equality", "kink"])
def test_the_gap_function_method_finds_the_solution(problem, n, u):
    """For the equality 2 (u / 2 - 1)^2 + 0.1 u^2; for the inequality the kink of v*(u)."""
    solver = BiCGAFFA(optax.sgd(0.1), 0.1, 0.1, 0.1, weight=Power(1.0, 0.49))
    result = solve(solver, problem, jnp.zeros(1), jnp.zeros(n), steps=12_000, key=KEY)
    np.testing.assert_allclose(result.u, u, rtol=6e-3)
    assert result.history.extra["violation"][-1] < 1e-2


@pytest.mark.slow
def test_blocc_finds_the_solution():
    """min (u / 2 - 1)^2 2 + 0.1 u^2: u = 2 / 1.2."""
    solver = BLOCC(optax.sgd(0.2), optax.sgd(0.15), 10, 5, gamma=200.0)
    result = solve(solver, SUM, jnp.zeros(1), jnp.zeros(2), steps=150, key=KEY)
    np.testing.assert_allclose(result.u, 2 / 1.2, rtol=5e-3)


EMPTY = dataclasses.replace(
    HALF, lower_constraints=(Inequality(lambda u, v, _: v + 1), Inequality(lambda u, v, _: 1 - v))
)
FLAT = dataclasses.replace(HALF, lower_constraints=(Inequality(lambda u, v, _: (v - 1) ** 2),))  # no inner point


@pytest.mark.parametrize("problem", [EMPTY, FLAT], ids=["empty", "no inner point"])
@pytest.mark.parametrize("solver", [STILL, BiCGAFFA(optax.sgd(0.0), 0.1, 0.1, 0.1)], ids=HANDLE)
def test_a_lower_set_that_is_empty_or_has_no_inner_point_is_reported_and_stays_finite(problem, solver):
    name, u, v = type(solver).__name__, jnp.array([0.3]), jnp.zeros(1)
    steps = 80 if name == "BLOCC" else 2000
    told = "the multipliers of the lower constraints grow steadily"
    if problem is EMPTY and name == "BiCGAFFA":
        told = "the largest violation of the lower constraints is 1.05, and does not fall"
    with pytest.warns(UserWarning, match=f"^{name}: {told}.*no inner point"):
        result = solve(solver, problem, u, v, steps=steps, key=KEY)
    extra = result.history.extra
    assert np.isfinite(extra["multiplier_norm"]).all()
    assert problem is FLAT or extra["violation"][-1] > 0.9


@pytest.mark.slow
def test_a_multiplier_at_its_bound_and_a_member_are_named():
    bounded = BiCGAFFA(optax.sgd(0.0), 0.1, 0.1, 0.1, bound=0.25)
    with pytest.warns(UserWarning, match="a multiplier of the lower constraints is at its bound, 0.25"):
        result = solve(bounded, HALF, jnp.array([0.8]), jnp.zeros(1), steps=400, key=KEY)
    assert result.history.extra["multiplier_norm"].max() == 0.25
    negative = dataclasses.replace(SUM, lower_constraints=(Equality(lambda u, v, _: u[0] - jnp.sum(v)),))
    with pytest.warns(UserWarning, match="at its bound"):
        result = solve(bounded, negative, jnp.array([0.8]), jnp.zeros(2), steps=400, key=KEY)
    np.testing.assert_allclose(result.state.memory[0][1][0], 0.25)
    with pytest.warns(UserWarning, match="Member 1: BiCGAFFA: a multiplier"):
        solve(bx.Vectorized(bounded), HALF, jnp.array([[0.3], [0.8]]), jnp.zeros((2, 1)), steps=400, key=KEY)


@pytest.mark.parametrize("name", ["F2SA", "VPBGD", "BVFIM", "BOME", "MEHA", "BLOCC", "BiCGAFFA"])
def test_a_map_that_is_no_projection_is_refused(name):
    halved = Problem(upper_loss, SUM.lower_loss, project_lower=lambda v: 0.5 * v)
    with pytest.raises(InputError, match=f"^{name}: project_lower moves a point that is already projected.*compares g"):
        getattr(bx, name)().check(halved, jnp.ones(1), jnp.ones(2), Batch())


@pytest.mark.slow
def test_blocc_takes_an_optimizer_that_searches_along_lines():
    search = optax.scale_by_backtracking_linesearch(20)
    lower = optax.chain(optax.scale_by_lbfgs(), optax.scale(-1.0), search)
    solver = BLOCC(optax.sgd(0.2), lower, 5, 5, gamma=200.0)
    result = solve(solver, SUM, jnp.zeros(1), jnp.zeros(2), steps=60, key=KEY)
    np.testing.assert_allclose(result.u, 2 / 1.2, rtol=5e-3)


@pytest.mark.parametrize("name", [n for n in KINDS if n not in HANDLE])
def test_every_other_solver_refuses_lower_constraints(name):
    case = KINDS[name]
    lower = (Inequality(lambda u, v, data: jnp.zeros(())),)
    problem = dataclasses.replace(case.problem, lower_constraints=lower)
    with pytest.raises(InputError, match=rf"{name} does not handle lower_constraints.*Use BLOCC or BiCGAFFA"):
        case.solver.check(problem, *case.start, case.batch)


@pytest.mark.usefixtures("annotations_unchecked")
def test_refusals():
    u = v = jnp.zeros(1)
    with pytest.raises(InputError, match="hypergradient: the problem has lower_constraints"):
        hypergradient(HALF, u, v)
    with pytest.raises(InputError, match="report: the problem has lower_constraints"):
        diagnostics.report(HALF, u, v)
    with pytest.raises(InputError, match="BLOCC: gamma is 0"):
        BLOCC(gamma=0)
    for name in ("rate", "value_rate", "multiplier_rate", "radius", "penalty", "bound"):
        with pytest.raises(InputError, match=f"BiCGAFFA: {name} is -1, and must be positive"):
            BiCGAFFA(**{name: -1})
    with pytest.raises(InputError, match="BiCGAFFA: weight is 0"):
        BiCGAFFA(weight=0.0)
    with pytest.raises(InputError, match="BLOCC does not handle upper-level constraints"):
        BLOCC().check(dataclasses.replace(HALF, constraints=HALF.lower_constraints), u, v, Batch())
    with pytest.raises(InputError, match="lower_constraints holds"):
        Problem(upper_loss, upper_loss, lower_constraints=(lambda u, v, _: v,))
    with pytest.raises(InputError, match=r"lower_constraints\[0\] returns bool"):
        bx.BLOCC().check(
            dataclasses.replace(HALF, lower_constraints=(Inequality(lambda u, v, _: v > 0),)), u, v, Batch()
        )
