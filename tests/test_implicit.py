"""Implicit differentiation as functions: against closed forms and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevax import Batch, Inequality, InputError, Problem
from bilevax.implicit import Argmin, hypergradient
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
    layer = Argmin(lambda u, v: jnp.mean((u["x"] @ v - Y) ** 2) + jnp.exp(u["s"]) * jnp.sum(v**2), optax.sgd(0.1), 2000)

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
    constrained = Problem(lambda u, v: jnp.sum(v), lambda u, v: jnp.sum(v * u), (Inequality(lambda u, v: v),))
    with pytest.raises(InputError, match=r"has 1 constraints\. Take Penalty"):
        hypergradient(constrained, jnp.ones(2), jnp.ones(2))
