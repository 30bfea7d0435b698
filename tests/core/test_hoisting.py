"""What a loop's body makes of its constants alone is made once, and its value and derivative stay what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from bilevax import Batch, PerMove, Problem, ReverseMode
from bilevax._hoisting import hoist
from bilevax.solvers import unrolled

RNG = np.random.default_rng(0)
A, W, X = (jnp.asarray(RNG.normal(size=shape)) for shape in ((4, 4), (4, 3), (3,)))


def products(fun, *arguments):
    """How many matrix products a function takes."""

    def count(jaxpr):
        inner = [j for e in jaxpr.eqns for j in core.jaxprs_in_params(e.params)]
        return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(map(count, inner))

    return count(jax.make_jaxpr(fun)(*arguments).jaxpr)


@jax.jit
def features(fixed):
    a, w = fixed
    return jax.nn.relu(jnp.exp(a) @ w)  # relu has a derivative of its own, and is jitted


@jax.jit
def nested(fixed, x, t):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), x.shape)
    return {"y": jnp.tanh(features(fixed) @ x) + noise[0] + fixed[0][0, 0], "of fixed": jnp.exp(fixed[0])}


def closed_over(fixed, x, t):
    return features((A, fixed[1])) @ x + jnp.sum(A @ A) + t


def branching(fixed, x, t):
    chosen = jax.lax.cond(fixed[0][0, 0] > 0, lambda a: a @ a, lambda a: a, fixed[0])
    chosen = jax.lax.scan(lambda c, _: (jnp.sin(c @ chosen), c[0]), chosen, None, length=2)[0]
    return jax.lax.fori_loop(0, 2, lambda i, z: chosen @ z, fixed[1] @ x) * t


CASES = [(nested, 1), pytest.param(closed_over, 1, marks=pytest.mark.slow), (branching, 2)]


@pytest.mark.parametrize(("body", "left"), CASES, ids=lambda x: getattr(x, "__name__", None))
def test_value_and_derivative_stay_and_the_products_leave(body, left):
    made, rest = hoist(body, (A, W), X, 3)
    assert products(rest, made, X, 3) == left < products(body, (A, W), X, 3)

    def by_parts(fixed, x):
        made, rest = hoist(body, fixed, x, 3)
        return rest(made, x, 3)

    def whole(fixed, x):
        return body(fixed, x, 3)

    @jax.jit
    def both(fixed, x):
        values = by_parts(fixed, x), whole(fixed, x)
        return values, (jax.jacrev(by_parts, (0, 1))(fixed, x), jax.jacfwd(whole, (0, 1))(fixed, x))

    values, jacobians = both((A, W), X)
    for a, b in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    for a, b in zip(*map(jax.tree.leaves, jacobians), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_elementwise_work_stays_in_the_body():
    """Its results would only take memory: here (4, 4) of one number."""
    (_, _, made), rest = hoist(lambda a, x: jnp.full((4, 4), jnp.exp(a)) @ x, jnp.ones(()), jnp.ones(4))
    assert made == []
    np.testing.assert_allclose(rest(([], [jnp.ones(())], made), jnp.ones(4)), 4 * np.e * np.ones(4))


def losses():
    def lower_loss(u, v, data):
        return jnp.mean((jnp.tanh(data @ u) @ v - 1) ** 2) + 0.1 * jnp.sum(v**2)

    return Problem(lambda u, v, data: jnp.sum((v - 1) ** 2) + jnp.sum(u**2), lower_loss)


def products_of(jaxpr, shape, looped=False):
    """How many matrix products in its loops take or give a matrix of this shape, or its transpose."""
    found = 0
    for e in jaxpr.eqns:
        shapes = {x.aval.shape for x in (*e.invars, *e.outvars)}
        found += looped and e.primitive.name == "dot_general" and not shapes.isdisjoint((shape, shape[::-1]))
        for inner in core.jaxprs_in_params(e.params):
            found += products_of(inner, shape, looped or e.primitive.name == "scan")
    return found


@pytest.mark.parametrize(("each", "looped"), [(False, 0), (True, 2)], ids=["one batch", "a batch each"])
def test_reverse_mode_has_products_of_u_in_its_loops_only_where_each_move_has_its_own_batch(each, looped, monkeypatch):
    monkeypatch.setattr(unrolled, "LARGE", jnp.inf)  # the products are stored, not computed again
    data = jnp.asarray(RNG.normal(size=(7, 5, 4)))
    batch = Batch(None, PerMove(data) if each else data[0])
    solver, problem = ReverseMode(lower_steps=7), losses()
    state = solver.init(problem, W, X, batch)
    traced = jax.make_jaxpr(lambda state: solver.step(problem, state, batch, jax.random.key(0)))(state)
    assert products_of(traced.jaxpr, W.shape) == looped  # forward, and back for u
