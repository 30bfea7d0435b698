"""Upper-level constraints: Penalty reaches known KKT points, with and without the paper's explicit slack."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import bilevax as bx
from bilevax import derivatives
from bilevax.diagnostics import report
from bilevax.schedules import Geometric
from bilevax.solvers.penalty import _constraint_term

KEY = jax.random.key(0)
# One set of settings for every problem of this file.
SOLVER = bx.Penalty(
    upper_optimizer=optax.adam(0.02),
    lower_optimizer=optax.adam(0.02),
    lower_steps=10,
    gamma=Geometric(1.0, 1.1, high=20.0),
    eps=Geometric(1.0, 0.9),
    step_scale=Geometric(1.0, 1 / 1.05, low=1e-4),
)
STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Known:
    """A problem, v*(u) in closed form, and its KKT point with the multipliers, worked out by hand."""

    problem: bx.Problem
    answer: Callable[[Any], Any]
    u: tuple[float, ...]
    multipliers: tuple[Any, ...]


def same(u, v, _):
    """g with v*(u) = u."""
    return jnp.sum((v - u) ** 2) / 2


def cubic(u, v, _):
    """g with v*(u) the root of v + v^3 = u."""
    return jnp.sum(v**2 / 2 + v**4 / 4 - u * v)


def cubic_answer(u):
    """Cardano: w - 1/(3w) with w^3 = u/2 + sqrt(u^2/4 + 1/27)."""
    w = np.cbrt(u / 2 + np.sqrt(u**2 / 4 + 1 / 27))
    return w - 1 / (3 * w)


def near(*a):
    """f = |v - a|^2 / 2."""
    return lambda u, v, _: jnp.sum((v - jnp.array(a)) ** 2) / 2


ROOT = 0.6**0.5
KNOWN = {
    # v - a + m (1, 1) = 0 on v1 + v2 = 1.
    "equality": Known(
        bx.Problem(near(2.0, 1.0), same, (bx.Equality(lambda u, v, _: jnp.sum(v) - 1),)),
        lambda u: u,
        (1.0, 0.0),
        (1.0,),
    ),
    # v*(u) = 1 - u: the reduced loss u^2 + (1 - u)^2 has slope 4u - 2 = 1 = m at the bound 0.75.
    "active": Known(
        bx.Problem(
            lambda u, v, _: jnp.sum(u**2 + v**2),
            lambda u, v, _: jnp.sum((1 - u - v) ** 2),
            (bx.Inequality(lambda u, v, _: 0.75 - u),),
        ),
        lambda u: 1 - u,
        (0.75,),
        ((1.0,),),
    ),
    # The free minimum (2, 1) satisfies the constraint.
    "inactive": Known(
        bx.Problem(near(2.0, 1.0), same, (bx.Inequality(lambda u, v, _: jnp.sum(v) - 5),)),
        lambda u: u,
        (2.0, 1.0),
        (0.0,),
    ),
    # Projection of (1.2, 0.8, -1) onto the simplex: max(a - 1/2, 0).
    "several": Known(
        bx.Problem(
            near(1.2, 0.8, -1.0),
            same,
            (bx.Equality(lambda u, v, _: jnp.sum(v) - 1), bx.Inequality(lambda u, v, _: -u)),
        ),
        lambda u: u,
        (0.7, 0.3, 0.0),
        (0.5, (0.0, 0.0, 1.5)),
    ),
    # Outside the curve v1^2 + v2^4 = 1, on it at v = (0.8, sqrt 0.6) with m = 0.2:
    # a = v - m (2 v1, 4 v2^3) = (0.48, 0.52 sqrt 0.6). On the tangent the Lagrangian curves by 0.16 only.
    "outside a curve": Known(
        bx.Problem(near(0.48, 0.52 * ROOT), cubic, (bx.Inequality(lambda u, v, _: 1 - v[0] ** 2 - v[1] ** 4),)),
        cubic_answer,
        (0.8 + 0.8**3, ROOT + ROOT**3),
        (0.2,),
    ),
    # The same curve as an equality, together with a bound on u that is far away.
    "on a curve": Known(
        bx.Problem(
            near(0.48, 0.52 * ROOT),
            cubic,
            (bx.Equality(lambda u, v, _: v[0] ** 2 + v[1] ** 4 - 1), bx.Inequality(lambda u, v, _: jnp.sum(u) - 9)),
        ),
        cubic_answer,
        (0.8 + 0.8**3, ROOT + ROOT**3),
        (-0.2, 0.0),
    ),
}
each = pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)


def start(known):
    return jnp.full(len(known.u), 0.5)


@functools.cache
def solved(name):
    known = KNOWN[name]
    return bx.solve(SOLVER, known.problem, start(known), start(known), steps=STEPS, every=STEPS, key=KEY)


@each
def test_the_points_are_those_of_slsqp(known):
    """An independent route to the table above: sequential quadratic programming on f(u, v*(u))."""
    constraints = [
        {
            "type": "ineq" if isinstance(c, bx.Inequality) else "eq",
            "fun": lambda u, c=c: -np.ravel(c.function(u, known.answer(u), None)),
        }
        for c in known.problem.constraints
    ]
    found = scipy.optimize.minimize(
        lambda u: float(known.problem.upper_loss(u, known.answer(u), None)),
        np.full(len(known.u), 0.5),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    assert found.success, found.message
    np.testing.assert_allclose(found.x, known.u, atol=1e-5)


# The bounds that are inactive in "several" and in "on a curve" end in the same way as that of "inactive".
names = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "inactive" else ()) for n in KNOWN]
)


@names
def test_penalty_reaches_the_known_point(name):
    known, result = KNOWN[name], solved(name)
    u = np.array(known.u)
    print(name, "u off by", np.abs(result.u - u).max(), "v off by", np.abs(result.v - known.answer(u)).max())
    np.testing.assert_allclose(result.u, u, atol=1e-4)
    np.testing.assert_allclose(result.v, known.answer(u), atol=1e-4)
    assert result.history.extra["constraint_violation"][-1] < 1e-4


@names
def test_multipliers_tend_to_the_true_ones(name):
    for found, wanted in zip(solved(name).state.memory.constraint_nu, KNOWN[name].multipliers, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)


@each
def test_kkt_residual_is_zero_at_the_point_and_not_beside_it(known):
    u = np.array(known.u)
    at = report(known.problem, u, known.answer(u))
    assert at.kkt_residual < 1e-9, str(at)
    for found, wanted in zip(at.multipliers, known.multipliers, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    beside = report(known.problem, u + 0.05, known.answer(u + 0.05))
    assert beside.kkt_residual > 0.01, str(beside)
    lower_off = report(known.problem, u, known.answer(u) + 0.05)
    assert lower_off.lower_grad_norm > 0.03
    assert lower_off.kkt_residual >= lower_off.lower_grad_norm


@names
def test_kkt_residual_is_small_where_penalty_ends(name):
    result = solved(name)
    found = report(KNOWN[name].problem, result.u, result.v)
    print(name, "KKT residual", found.kkt_residual)
    assert found.kkt_residual < 1e-3, str(found)


@pytest.mark.parametrize(
    "name",
    ["several", *(pytest.param(n, marks=pytest.mark.slow) for n in ("active", "inactive", "outside a curve"))],
)
def test_the_explicit_slack_gives_the_same_point(name):
    """The paper's form: h + s^2 = 0 with s part of u."""
    known = KNOWN[name]
    v = start(known)
    rows = known.problem.constraints
    slack = [
        jnp.ones(jnp.shape(c.function(v, v, None))) if isinstance(c, bx.Inequality) else jnp.zeros(()) for c in rows
    ]

    def equality(i, c):
        if isinstance(c, bx.Equality):
            return bx.Equality(lambda us, v, _: c.function(us[0], v, None))
        return bx.Equality(lambda us, v, _: c.function(us[0], v, None) + us[1][i] ** 2)

    problem = bx.Problem(
        lambda us, v, _: known.problem.upper_loss(us[0], v, None),
        lambda us, v, _: known.problem.lower_loss(us[0], v, None),
        tuple(equality(i, c) for i, c in enumerate(rows)),
    )
    result = bx.solve(SOLVER, problem, (v, slack), v, steps=STEPS, every=STEPS, key=KEY)
    print(name, "explicit slack off by", np.abs(result.u[0] - np.array(known.u)).max())
    # Its last iterates move within about 1e-4 of the solution, by rounding alone.
    np.testing.assert_allclose(result.u[0], known.u, atol=3e-4)
    np.testing.assert_allclose(result.u[0], solved(name).u, atol=3e-4)


def test_the_term_of_an_inequality_is_the_slack_minimised_out():
    """min over s of gamma/2 (h + s^2)^2 + m (h + s^2), by brute force, and its derivative in h."""
    problem = bx.Problem(lambda u, v, _: jnp.sum(u), same, (bx.Inequality(lambda u, v, _: u),))
    s2 = np.linspace(0, 30, 3_000_001)
    for gamma in (0.5, 3.0):
        for m in (0.0, 1.3):
            for h in (-2.0, -0.1, 0.0, 0.7):
                found, slope = jax.value_and_grad(
                    lambda h, m=m, gamma=gamma: _constraint_term(problem, (h,), (jnp.array(m),), gamma)
                )(jnp.array(h))
                least = np.min(gamma / 2 * (h + s2) ** 2 + m * (h + s2))
                assert found == pytest.approx(least, abs=1e-8)
                assert slope == pytest.approx(max(0.0, gamma * h + m), abs=1e-12)


def test_the_term_of_an_equality_is_half_of_gamma_times_its_square_and_its_multiplier():
    problem = bx.Problem(lambda u, v, _: jnp.sum(u), same, (bx.Equality(lambda u, v, _: u),))
    h, m = jnp.array([0.7, -2.0]), jnp.array([1.3, 0.4])
    found, slope = jax.value_and_grad(lambda h: _constraint_term(problem, (h,), (m,), 3.0))(h)
    assert float(found) == pytest.approx(1.5 * (0.49 + 4) + 0.91 - 0.8, rel=1e-12)
    np.testing.assert_allclose(slope, 3 * h + m, rtol=1e-12)


def test_constraint_gradients_are_the_differences_of_the_constraints():
    known = KNOWN["several"]
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=3), rng.normal(size=3)
    problem = bx.Problem(
        known.problem.upper_loss,
        same,
        (bx.Equality(lambda u, v, _: jnp.sin(u @ v)), bx.Inequality(lambda u, v, _: jnp.outer(u, v[:2] ** 2))),
    )
    values, *jacobians = derivatives.constraint_gradients(problem, u, v, None)
    assert values.shape == (7,)

    def flat(u, v):
        return np.concatenate([np.ravel(x) for x in problem.constraint_values(u, v, None)])

    np.testing.assert_allclose(values, flat(u, v))
    t = 1e-6
    for i in range(3):
        unit = t * np.eye(3)[i]
        for jacobian, up, down in (
            (jacobians[0], flat(u + unit, v), flat(u - unit, v)),
            (jacobians[1], flat(u, v + unit), flat(u, v - unit)),
        ):
            np.testing.assert_allclose(jacobian[:, i], (up - down) / (2 * t), atol=1e-8)
