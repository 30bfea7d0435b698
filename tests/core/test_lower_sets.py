"""What each solver makes of a v that lives in a set, and of a start of v that depends on u."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax import (
    Batch,
    ForwardMode,
    InputError,
    LookAhead,
    Problem,
    ReverseMode,
    SparseHO,
    derivatives,
    fixed_points,
    solve,
)
from tests.core.solvers import KINDS

KEY = jax.random.key(0)
NON_NEGATIVE = optax.projections.projection_non_negative


def moved(solver, problem, u, v, batch=None):
    """How one step of descent by 1 moves u."""
    u = jax.tree.map(jnp.asarray, u)
    result = solve(solver, problem, u, v, batch, steps=1, key=KEY)
    return jax.tree.map(lambda a, b: np.asarray(a - b), u, result.u)


# v*(u) = max(u, 0) and f = (u + 2)^2 + (v + 3)^2: the answer is u = -2.
SET = Problem(
    lambda u, v, _: jnp.sum((u + 2) ** 2 + (v + 3) ** 2),
    lambda u, v, _: jnp.sum((v - u) ** 2),
    project_lower=NON_NEGATIVE,
)


def refusal(solver, *arguments):
    """The message with which `check` refuses a problem, or None."""
    try:
        solver.check(*arguments)
    except InputError as error:
        return str(error)
    return None


# The solvers that are right at the bounds of a set; the others refuse one.
TREAT_SETS = {"Alternating", "Implicit", "ReverseMode", "ForwardMode", "BVFIM", "LookAhead", "SparseHO"}
TREAT_SETS |= {"F2SA", "VPBGD", "BOME", "MEHA", "PZOBO", "BLOCC", "BiCGAFFA"}


@pytest.mark.parametrize("name", KINDS)
def test_every_solver_refuses_a_set_or_is_right_at_its_bounds(name):
    """v*(u) does not change with u where its bound is active, so that entry of u moves along grad_u f alone."""
    case = KINDS[name]
    own = dataclasses.replace(case.problem, project_lower=NON_NEGATIVE)
    problem = dataclasses.replace(SET, regularizer=lambda u, v, mu: jnp.zeros(()))
    changes = {"upper_optimizer": optax.sgd(1.0), "lower_steps": 5, "gamma": 1.0, "weight": 1.0}
    changes |= {"directions": 20_000}
    changes["proximal"] = lambda u, v, step: v
    if name == "MEHA":  # takes a regulariser and its proximal map, or neither
        problem, changes["proximal"] = SET, None
    solver = dataclasses.replace(case.solver, **{k: x for k, x in changes.items() if hasattr(case.solver, k)})
    u, v = jnp.array([0.5, -0.5]), jnp.array([0.5, 0.0])
    refused = refusal(solver, own, *case.start, case.batch) or refusal(solver, problem, u, v, Batch())
    assert (refused is None) == (name in TREAT_SETS), refused
    if refused:
        assert re.search(rf"{name}\b.* project_lower", refused)
        return
    after, _ = jax.jit(lambda u, v: solver.step(problem, solver.init(problem, u, v, Batch()), Batch(), KEY))(u, v)
    wrong = f"{name} moves u in a wrong direction at an active bound: call base.check without lower_sets=True"
    within = 0.1 if name == "PZOBO" else 1e-6  # a mean of random directions
    np.testing.assert_allclose((u - after.u)[1], 2 * (-0.5 + 2), rtol=within, err_msg=wrong)


def test_the_value_function_method_is_right_in_a_set():
    solver = bx.BVFIM(optax.adam(optax.cosine_decay_schedule(2e-2, 800)))
    result = solve(solver, SET, jnp.ones(1), jnp.ones(1), steps=800, key=KEY)
    assert abs(float(result.u[0]) + 2) < 0.15  # free, v = u leads to -2.5


@pytest.mark.parametrize("u", [0.5, -0.5])
def test_look_ahead_goes_through_the_projection(u):
    """v_hat = max(v - .1 (2 (v - u)), 0) from v = 0.01, in closed form."""
    found = moved(LookAhead(optax.sgd(1.0), optax.sgd(0.1), rate=0.1), SET, jnp.full(1, u), jnp.full(1, 0.01))
    ahead = 0.01 - 0.2 * (0.01 - u)
    wanted = 2 * (u + 2) + (2 * (ahead + 3) * 0.2 if ahead > 0 else 0)
    np.testing.assert_allclose(found, [wanted], rtol=1e-10)


# --- starts ---------------------------------------------------------------------------------------------------------

MOVES, RATE = 4, 0.1
STARTED = Problem(
    lambda u, v, _: jnp.sum((v - 1) ** 2),
    lambda u, v, a: jnp.sum(a * (v - 0.2 * u**2) ** 2),
    lower_start=lambda u, batch, key: jnp.sin(u),
)


def adapted(u, moves):
    v = jnp.sin(u)
    for _ in range(moves):
        v -= RATE * 2 * jnp.array([1.0, 3.0]) * (v - 0.2 * u**2)
    return jnp.sum((v - 1) ** 2)


@pytest.mark.parametrize(
    ("solver", "moves"),
    [
        (ReverseMode(optax.sgd(1.0), optax.sgd(RATE), MOVES), MOVES),
        (ReverseMode(optax.sgd(1.0), optax.sgd(RATE), MOVES, segment=2), MOVES),
        (ForwardMode(optax.sgd(1.0), optax.sgd(RATE), MOVES), MOVES),
        (LookAhead(optax.sgd(1.0), optax.sgd(RATE), RATE), 1),
    ],
    ids=["reverse", "segments", "forward", "look-ahead"],
)
def test_the_derivative_goes_through_a_start_that_depends_on_u(solver, moves):
    u = jnp.array([0.3, -0.8])
    wanted = [(adapted(u + h, moves) - adapted(u - h, moves)) / 2e-6 for h in 1e-6 * np.eye(2)]
    found = moved(solver, STARTED, u, jnp.zeros(2), Batch(lower=jnp.array([1.0, 3.0])))
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


@pytest.mark.parametrize("mode", [ReverseMode, ForwardMode])
def test_unrolled_moves_are_differentiated_through_the_projection(mode):
    """v_5 of max(v - 0.2 (v - u), 0): the first entry stays inside, the second ends at its bound."""
    u, v = np.array([0.5, -0.5]), np.array([0.2, 0.3])
    found = moved(mode(optax.sgd(1.0), optax.sgd(0.1), 5), SET, u, jnp.asarray(v))
    end = np.array([0.5 - 0.3 * 0.8**5, 0.0])
    np.testing.assert_allclose(found, 2 * (u + 2) + 2 * (end + 3) * np.array([1 - 0.8**5, 0.0]), rtol=1e-9)


def test_a_start_whose_derivative_would_be_lost_is_refused():
    batch = Batch(lower=jnp.array([1.0, 3.0]))
    with pytest.raises(InputError, match=r"lower_start depends on u, and with last=1 of 4 lower_steps"):
        ReverseMode(lower_steps=4, last=1).check(STARTED, jnp.ones(2), jnp.ones(2), batch)
    for start in (lambda u, batch, key: jax.lax.stop_gradient(u), lambda u, batch, key: jax.random.normal(key, (2,))):
        kept = Problem(STARTED.upper_loss, STARTED.lower_loss, lower_start=start)
        ReverseMode(lower_steps=4, last=1).check(kept, jnp.ones(2), jnp.ones(2), batch)
    called = Problem(
        STARTED.upper_loss, STARTED.lower_loss, lower_start=lambda u, b, k: jax.pure_callback(np.sin, u, u)
    )
    for solver in (ReverseMode(), ForwardMode(), LookAhead()):
        with pytest.raises(InputError, match="lower_start cannot be differentiated"):
            solver.check(called, jnp.ones(2), jnp.ones(2), batch)


@pytest.mark.parametrize("mode", [ReverseMode, ForwardMode])
def test_adam_below_has_a_derivative_where_a_gradient_is_exactly_zero(mode):
    """The second entry of v has no part in g. The first against differences; NaN without the detour in both."""
    problem = Problem(lambda u, v, _: jnp.sum((v - 1) ** 2), lambda u, v, _: (v[0] - u[0] ** 2) ** 2)

    def loss(u):
        v, state = jnp.zeros(2), optax.adam(0.1).init(jnp.zeros(2))
        for _ in range(2):
            slope = jax.grad(lambda v: (v[0] - u**2) ** 2)(v)
            updates, state = optax.adam(0.1).update(slope, state, v)
            v += updates
        return float(jnp.sum((v - 1) ** 2))

    found = moved(mode(optax.sgd(1.0), optax.adam(0.1), 2), problem, jnp.array([0.7]), jnp.zeros(2))
    np.testing.assert_allclose(found, [(loss(0.7 + 1e-4) - loss(0.7 - 1e-4)) / 2e-4], rtol=1e-4)


# --- proximal maps --------------------------------------------------------------------------------------------------


def quadratic(u, v, data):
    matrix, target = data
    return v @ matrix @ v / 2 - target @ v


ROOT = np.random.default_rng(0).normal(size=(8, 4))
MATRIX, AIM = jnp.asarray(ROOT.T @ ROOT / 8 + np.eye(4) / 2), jnp.array([3.0, -1.0, 0.4, 0.2])


def checked_by_differences(proximal, upper, u, regularizer, atol=1e-6):
    rate = 1 / float(np.linalg.norm(MATRIX, 2))
    problem = Problem(upper, quadratic, regularizer=regularizer)
    batch = Batch(lower=(MATRIX, AIM))

    @jax.jit
    def minimiser(u):
        def one(_, v):
            return proximal(u, v - rate * (MATRIX @ v - AIM), rate)

        return jax.lax.fori_loop(0, 500, one, jnp.ones(4))

    def loss(u):
        return float(upper(u, minimiser(u), None))

    u = jnp.asarray(u)
    solver = SparseHO(optax.sgd(1.0), proximal, rate, 50)
    found = moved(solver, problem, u, minimiser(u), batch)
    steps = 1e-5 * np.eye(len(u))
    np.testing.assert_allclose(found, [(loss(u + h) - loss(u - h)) / 2e-5 for h in steps], atol=atol)
    return minimiser(u)


def upper(u, v, _):
    return jnp.sum((v - jnp.array([1.0, 0.5, -1.0, 2.0])) ** 2)


def test_a_box_that_moves_with_u():
    """[0, exp(u)], as in the dual of a support vector machine."""
    v = checked_by_differences(
        lambda u, v, step: jnp.clip(v, 0, jnp.exp(u[0])), upper, [-0.7], lambda u, v, mu: jnp.zeros(())
    )
    assert np.sum(v == 0) >= 1
    assert np.sum(v == jnp.exp(-0.7)) >= 1


@pytest.mark.slow
def test_a_group_lasso_with_a_group_that_is_exactly_zero():
    """The proximal map of a norm is not a projector; the derivative of a norm at zero is NaN, and its group is dead."""

    def proximal(u, v, step):
        norms = jnp.sqrt(jnp.sum(v.reshape(2, 2) ** 2, 1))
        kept = jnp.maximum(1 - step * jnp.exp(u) / jnp.where(norms > 0, norms, 1), 0)
        return (v.reshape(2, 2) * kept[:, None]).ravel()

    v = checked_by_differences(proximal, upper, [-0.5, 1.5], lambda u, v, mu: jnp.sum(jnp.exp(u)))
    np.testing.assert_array_equal(v != 0, [True, True, False, False])
    dead = Problem(
        lambda u, v, _: jnp.sum((v[:2] - 1) ** 2),
        lambda u, v, _: jnp.sum((v[:2] - 2) ** 2) / 2,
        regularizer=lambda u, v, mu: jnp.sum(u),
    )
    found = moved(SparseHO(optax.sgd(1.0), proximal, 1.0, 5), dead, jnp.array([0.1, 0.1]), jnp.array([1.0, 1, 0, 0]))
    norm = np.sqrt(8.0)  # v = (2, 2) (1 - exp(u) / norm)
    wanted = 2 * 2 * (2 * (1 - np.exp(0.1) / norm) - 1) * -2 * np.exp(0.1) / norm
    np.testing.assert_allclose(found, [wanted, 0], rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-7, *(pytest.param(x, marks=pytest.mark.slow) for x in (1.0, 1e-5, 1e-12))])
def test_coefficients_of_any_size_have_the_same_direction(unit):
    """f / unit^2 of a lasso whose targets are in the unit does not depend on it."""
    problem = Problem(
        lambda u, v, data: jnp.sum((v / data[2] - jnp.array([1.0, 0.5, -1.0, 2.0])) ** 2),
        lambda u, v, data: quadratic(u, v, data[:2]),
        regularizer=lambda u, v, mu: jnp.sum(jnp.exp(u[0]) * jnp.abs(v)),
    )

    def proximal(u, v, step):
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step * jnp.exp(u[0]), 0)

    data = (MATRIX, unit * AIM, jnp.asarray(unit))
    u = jnp.array([np.log(0.3 * unit)])
    found = moved(SparseHO(optax.sgd(1.0), proximal, 0.3, 400), problem, u, jnp.zeros(4), Batch(data, data))
    v = SUPPORTED  # of unit 1, from the optimality conditions on its support
    on = v != 0
    slope = np.linalg.solve(np.asarray(MATRIX)[np.ix_(on, on)], -0.3 * np.sign(v[on]))
    wanted = 2 * (v - np.array([1.0, 0.5, -1.0, 2.0]))[on] @ slope
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)


def _supported():
    v = np.zeros(4)
    for _ in range(3000):
        z = v - 0.3 * (np.asarray(MATRIX) @ v - np.asarray(AIM))
        v = np.sign(z) * np.maximum(np.abs(z) - 0.09, 0)
    return v


SUPPORTED = _supported()


@pytest.mark.slow
def test_what_is_no_proximal_map_is_refused():
    problem = Problem(upper, quadratic, regularizer=lambda u, v, mu: jnp.sum(v))
    batch = Batch(lower=(MATRIX, AIM))
    for proximal, reason in (
        (lambda u, v, step: v.at[0].set(v[1]), "is not symmetric"),
        (lambda u, v, step: jax.pure_callback(lambda v: v, v, v), "cannot be differentiated"),
    ):
        with pytest.raises(InputError, match=f"SparseHO: proximal .*{reason}"):
            SparseHO(optax.sgd(1.0), proximal).check(problem, jnp.zeros(1), jnp.ones(4), batch)
    # Relative to the size of the derivative, which may be zero.
    fixed_points.require_symmetric("Ours", "proximal", lambda u, v: 0 * v, jnp.zeros(1), jnp.ones(4))
    with pytest.raises(InputError, match="is not symmetric"):
        fixed_points.require_symmetric(
            "Ours", "proximal", lambda u, v: 1e-6 * v.at[0].set(v[1]), jnp.zeros(1), jnp.ones(4)
        )


@pytest.mark.parametrize("unit", [1.0, 1e25, 1e-25])
def test_the_step_of_a_fixed_point_by_default_is_a_cauchy_step_of_any_unit(unit):
    """Of float32, whose squares of 1e25 overflow; every entry of the gradient is negative."""
    h, v = jnp.array([[2.0, 0.5], [0.5, 1.0]], jnp.float32), jnp.array([-1.0, -2.0], jnp.float32)
    slope = h @ v
    for loss, step in (
        (lambda u, v: unit * v @ h @ v / 2, slope @ slope / (slope @ h @ slope)),
        (lambda u, v: unit * v @ slope, jnp.linalg.norm(v) / jnp.linalg.norm(slope)),  # no curvature
    ):
        g = derivatives.exact(loss, v, v)
        found = fixed_points.fixed_point(lambda u, v: v, v, v, g, v, fixed_points.step_length(g, v))
        np.testing.assert_allclose(found.moved, v - step * slope, rtol=1e-5)


def test_a_derivative_that_is_not_finite_is_hidden_only_where_a_zero_stays_zero():
    v, offset = jnp.array([-0.5, 0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, 1.0, 0.0])
    g = derivatives.exact(lambda u, v: jnp.sum(0 * v), offset, v)  # v does not move before the map
    found = fixed_points.fixed_point(lambda u, v: u + jnp.sqrt((v * (v + 0.5)) ** 2), offset, v, g, jnp.ones(4), 1.0)
    np.testing.assert_allclose(found.b, [jnp.nan, 0, jnp.nan, 2.5], rtol=1e-9)
