"""Implicit differentiation as functions: against closed forms and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from bilevax import Batch, Implicit, Inequality, InputError, Problem, ReverseMode, fixed_points, solve
from bilevax.argmin import Argmin, hypergradient
from bilevax.linear_solve import CG, Direct

RNG = np.random.default_rng(0)
X, X_VAL = RNG.normal(size=(2, 30, 4))
Y, Y_VAL = RNG.normal(size=(2, 30))


def ridge(u, v, data):
    x, y = data
    return jnp.mean((x @ v - y) ** 2) + jnp.sum(jnp.exp(u) * v**2)


def solved(u):
    return jnp.linalg.solve(X.T @ X / 30 + jnp.diag(jnp.exp(u)), X.T @ Y / 30)


def held_out(v):
    return jnp.mean((X_VAL @ v - Y_VAL) ** 2)


@pytest.mark.parametrize("linear_solve", [CG(10), Direct()], ids=["CG", "Direct"])
def test_the_hypergradient_is_the_derivative_of_the_closed_form(linear_solve):
    problem = Problem(lambda u, v, data: held_out(v) + jnp.sum(u**2), ridge)
    u = jnp.asarray(RNG.normal(size=4))
    batch = Batch(lower=(jnp.asarray(X), jnp.asarray(Y)))
    found = jax.jit(lambda u: hypergradient(problem, u, solved(u), batch, linear_solve=linear_solve))(u)
    value, wanted = jax.value_and_grad(lambda u: held_out(solved(u)) + jnp.sum(u**2))(u)
    np.testing.assert_allclose(found.loss, value)
    np.testing.assert_allclose(found.gradient, wanted, rtol=1e-8)
    assert found.residual < 1e-8


def test_an_argmin_inside_of_a_network_has_the_derivative_of_the_closed_form():
    """Features by a layer, ridge regression on them, and a loss of what comes out, all differentiated at once."""
    layer = Argmin(
        lambda u, v, _: jnp.mean((u["x"] @ v - Y) ** 2) + jnp.exp(u["s"]) * jnp.sum(v**2), optax.sgd(0.1), 2000
    )

    def loss(params, fit):
        features = jnp.tanh(X @ params["w"])
        v = fit({"x": features, "s": params["s"]})
        return jnp.mean((jnp.tanh(X_VAL @ params["w"]) @ v - Y_VAL) ** 2)

    def exact(u):
        return jnp.linalg.solve(u["x"].T @ u["x"] / 30 + jnp.exp(u["s"]) * jnp.eye(3), u["x"].T @ Y / 30)

    params = {"w": jnp.asarray(RNG.normal(size=(4, 3))), "s": jnp.asarray(-1.0)}
    found = jax.jit(jax.grad(lambda p: loss(p, lambda u: layer(u, jnp.zeros(3)))))(params)
    wanted = jax.grad(lambda p: loss(p, exact))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_it_maps_over_many_lower_levels_and_takes_data():
    layer = Argmin(ridge, optax.sgd(0.1), 2000, Direct())
    us = jnp.asarray(RNG.normal(size=(3, 4)))

    def loss(u):
        return held_out(layer(u, jnp.zeros(4), (jnp.asarray(X), jnp.asarray(Y))))

    found = jax.vmap(jax.grad(loss))(us)
    np.testing.assert_allclose(found, jax.vmap(jax.grad(lambda u: held_out(solved(u))))(us), rtol=1e-7)


def test_nothing_of_the_descent_is_stored():
    def bytes_at(steps):
        layer = Argmin(ridge, optax.sgd(0.1), steps)
        data = jnp.asarray(X), jnp.asarray(Y)
        gradient = jax.jit(jax.grad(lambda u: held_out(layer(u, jnp.zeros(4), data))))
        return gradient.lower(jnp.zeros(4)).compile().memory_analysis().temp_size_in_bytes

    assert bytes_at(1000) <= 1.1 * bytes_at(10)


def test_refusals():
    with pytest.raises(InputError, match="steps is 0"):
        Argmin(ridge, steps=0)
    with pytest.raises(InputError, match="lower_loss is 3"):
        Argmin(3)
    constrained = Problem(lambda u, v, _: jnp.sum(v), lambda u, v, _: jnp.sum(v * u), (Inequality(lambda u, v, _: v),))
    with pytest.raises(InputError, match="has 1 constraints, which a hypergradient does not"):
        hypergradient(constrained, jnp.ones(2), jnp.ones(2))


# --- sets, singular systems, data -----------------------------------------------------------------------------------

SET_RNG = np.random.default_rng(1)
FACTOR = SET_RNG.normal(size=(8, 5))
SLOPES, TARGET, AT = SET_RNG.normal(size=(5, 3)), SET_RNG.normal(size=5), 1.5 * SET_RNG.normal(size=3)
SETS = {
    "non-negative": (optax.projections.projection_non_negative, {"bounds": [(0, None)] * 5}, 3),
    "box": (lambda v: optax.projections.projection_box(v, -0.1, 0.2), {"bounds": [(-0.1, 0.2)] * 5}, 3),
    "simplex": (
        optax.projections.projection_simplex,
        {"bounds": [(0, None)] * 5, "constraints": {"type": "eq", "fun": lambda v: v.sum() - 1}},
        3,
    ),
    "ball": (
        lambda v: optax.projections.projection_l2_ball(v, 0.3),
        {"constraints": {"type": "ineq", "fun": lambda v: 0.09 - v @ v, "jac": lambda v: -2 * v}},
        5,
    ),
}


def in_a_set(u, v, _):
    quadratic = jnp.sum((jnp.asarray(FACTOR) @ v) ** 2) / 2 - (jnp.asarray(SLOPES) @ u) @ v
    return quadratic + jnp.exp(u[0]) * jnp.sum(v**4)


def outside(u, v, _):
    return jnp.sum(jnp.arange(1, 6) * (v - TARGET) ** 2) + jnp.sum(u**2)


@pytest.mark.parametrize(
    ("project", "stated", "at_bounds"),
    [pytest.param(*x, id=n, marks=pytest.mark.slow if n in ("non-negative", "box") else ()) for n, x in SETS.items()],
)
def test_derivatives_where_bounds_are_active(project, stated, at_bounds):
    """Against central differences of the descent's end, itself against scipy's SLSQP."""
    layer = Argmin(in_a_set, optax.sgd(0.02), 3000, CG(100, 1e-12), project)
    start = jnp.full(5, 0.05)

    def end(u):
        v = layer(u, start)
        return outside(u, v, None), v

    value_and_grad = jax.jit(jax.value_and_grad(end, has_aux=True))
    (_, v), gradient = value_and_grad(jnp.asarray(AT))
    slope = jax.jit(jax.grad(in_a_set, 1))
    peer = scipy.optimize.minimize(
        lambda v: float(in_a_set(AT, v, None)),
        np.full(5, 0.05),
        jac=lambda v: np.asarray(slope(AT, v, None)),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
        **stated,
    )
    np.testing.assert_allclose(v, peer.x, atol=1e-6)
    moved = [value_and_grad(jnp.asarray(AT + sign * h))[0][0] for h in 1e-5 * np.eye(3) for sign in (1, -1)]
    wanted = np.diff(np.reshape(moved, (3, 2))[:, ::-1])[:, 0] / 2e-5
    np.testing.assert_allclose(gradient, wanted, atol=1e-7)
    problem = Problem(outside, in_a_set, project_lower=project)
    found = jax.jit(lambda u, v: hypergradient(problem, u, v))(jnp.asarray(AT), v)
    np.testing.assert_allclose(found.gradient, wanted, rtol=1e-5)
    assert np.sum(np.abs(slope(AT, v, None)) > 1e-2) >= at_bounds


def test_implicit_descends_to_the_answer_beyond_an_active_bound():
    """v*(u) = max(u, 0), f = (u + 2)^2 + (v + 3)^2: from u = 1 to (-2, 0). Free, v = u leads to u = -2.5."""
    problem = Problem(
        lambda u, v, _: jnp.sum((u + 2) ** 2 + (v + 3) ** 2),
        lambda u, v, _: jnp.sum((v - u) ** 2),
        project_lower=optax.projections.projection_non_negative,
    )
    for solver in (Implicit(optax.sgd(0.1), optax.sgd(0.4)), ReverseMode(optax.sgd(0.1), optax.sgd(0.4))):
        result = solve(solver, problem, jnp.ones(1), jnp.ones(1), steps=150, key=jax.random.key(0))
        np.testing.assert_allclose([*result.u, *result.v], [-2, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("project", "reason"),
    [
        (lambda v: 0.9 * v, "moves a point that is already projected"),
        (lambda v: v.at[0].set(v[1]), "derivative that is not symmetric"),
        (lambda v: jax.pure_callback(lambda v: v, v, v), "cannot be differentiated"),
    ],
    ids=["shrinkage", "oblique", "callback"],
)
def test_what_is_no_projection_is_refused(project, reason):
    problem = Problem(outside, in_a_set, project_lower=project)
    for refused in (
        lambda: Implicit().check(problem, jnp.ones(3), jnp.ones(5), Batch()),
        lambda: hypergradient(problem, jnp.ones(3), jnp.ones(5)),
        lambda: Argmin(in_a_set, project=project)(jnp.ones(3), jnp.ones(5)),
    ):
        with pytest.raises(InputError, match=reason):
            refused()


@pytest.mark.slow
def test_a_projection_is_tested_on_points_as_far_apart_as_v_is_long():
    def tested(project, v):
        fixed_points.require_projection("Ours", "project", Problem(outside, in_a_set, project_lower=project), v, v)

    with pytest.raises(InputError, match="moves a point that is already projected"):
        tested(lambda v: jnp.where(v < 500, 0.9 * v, v), jnp.full(20, 1e3))
    for size, far in ((1e-3, 5), (1e3, 1e5)):
        tested(lambda v, far=far: jnp.where(v > far, 0.9 * v, v), jnp.full(20, size))


@pytest.mark.slow
def test_a_softmax_with_an_intercept_has_the_derivative_of_the_pseudo_inverse():
    """A constant added to all logits changes nothing: a null direction of H, to which grad_v f is orthogonal."""
    rng = np.random.default_rng(0)
    x, x_val = rng.normal(size=(2, 20, 3))
    y, y_val = rng.integers(0, 3, (2, 20))

    def logits(v, x):
        return x @ v["w"] + v["b"]

    def lower(u, v, _):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(v, x), y)
        return jnp.mean(losses) + jnp.exp(u[0]) * jnp.sum(v["w"] ** 2)

    def upper(u, v, _):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(v, x_val), y_val))

    fitted = Argmin(lower, optax.sgd(1.0), 3000)
    u, start = jnp.array([-2.0]), {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)}
    value = jax.jit(lambda u: upper(u, fitted(u, start), None))
    wanted = (value(u + 1e-4) - value(u - 1e-4)) / 2e-4
    v = jax.jit(fitted)(u, start)
    for linear_solve in (CG(100), CG(1000, 1e-15), Direct()):
        found = hypergradient(Problem(upper, lower), u, v, linear_solve=linear_solve)
        np.testing.assert_allclose(found.gradient, wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_system_without_a_solution_is_warned_of():
    """H = diag(2, 0) and grad_v f = (2, 2): v*(u) is a line."""
    problem = Problem(lambda u, v, _: jnp.sum((v + 1) ** 2), lambda u, v, _: (v[0] - u[0]) ** 2)
    for linear_solve in (CG(100), Direct()):
        with pytest.warns(
            UserWarning, match="hypergradient: the relative residual .* Hessian of the lower loss is sing"
        ):
            found = hypergradient(problem, jnp.zeros(1), jnp.zeros(2), linear_solve=linear_solve)
        assert found.residual > 1
    layer = Argmin(problem.lower_loss, optax.sgd(0.1), 10)
    with pytest.warns(UserWarning, match="Argmin: the relative residual of the linear system"):
        jax.grad(lambda u: jnp.sum((layer(u, jnp.zeros(2)) + 1) ** 2))(jnp.zeros(1))


def test_argmin_has_a_derivative_in_its_data():
    """Of ridge regression in features and targets, and none in integers among them."""
    layer = Argmin(lambda u, v, data: ridge(u, v, data["floats"]) * data["count"], optax.sgd(0.02), 2000)
    u, floats = jnp.asarray(RNG.normal(size=4)), (jnp.asarray(X), jnp.asarray(Y))

    def exact(floats):
        x, y = floats
        return held_out(jnp.linalg.solve(x.T @ x / 30 + jnp.diag(jnp.exp(u)), x.T @ y / 30))

    found = jax.grad(lambda floats: held_out(layer(u, jnp.zeros(4), {"floats": floats, "count": 3})))(floats)
    for a, b in zip(found, jax.grad(exact)(floats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_calls_outside_of_jit_compile_once():
    traced = []

    def lower(u, v, _):
        traced.append(1)
        return jnp.sum((v - u) ** 2)

    layer = Argmin(lower, optax.sgd(0.1), 5)
    gradient = jax.grad(lambda u: jnp.sum(layer(u, jnp.zeros(2))))
    gradient(jnp.ones(2))
    first = len(traced)
    for _ in range(3):
        gradient(2 * jnp.ones(2))
    assert len(traced) == first


def test_the_smoothing_of_a_regularizer_is_asked_for_and_taken():
    """v = sign(u) max(|u| - 0.1, 0) of (v - u)^2 / 2 + 0.1 |v|: dv/du = 1 where the smoothing is small beside v."""
    problem = Problem(
        lambda u, v, _: jnp.sum(v),
        lambda u, v, _: jnp.sum((v - u) ** 2) / 2,
        regularizer=lambda u, v, mu: 0.1 * jnp.sum(jnp.sqrt(v**2 + mu**2)),
    )
    u, v = jnp.array([0.101]), jnp.array([0.001])
    with pytest.raises(InputError, match="the problem has a regularizer, and mu is missing"):
        hypergradient(problem, u, v)
    with pytest.raises(InputError, match="mu is 0, and must be positive"):
        hypergradient(problem, u, v, mu=0)
    np.testing.assert_allclose(hypergradient(problem, u, v, mu=1e-9).gradient, 1, rtol=1e-6)
    curvature = 1 + 0.1 * 1e-6 / 2e-6**1.5
    np.testing.assert_allclose(hypergradient(problem, u, v, mu=1e-3).gradient, 1 / curvature, rtol=1e-6)
