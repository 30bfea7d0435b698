"""The derivatives of a problem, and the only file of the library that takes them.

`lower(...)` gives g, its gradient in v, and

    along(p) = (grad2_uv g . p, grad2_vv g . p) = d/dt grad_(u,v) g(u, v + t p) at t = 0,

from which every first-order method of the library is made (DESIGN: the one idea). `exact` takes it by
going back through the gradient, whose evaluation it shares: grad2_uv g . p is the derivative of <grad_v g, p> in u.
Forward over that gradient (Pearlmutter 1994) has the same arithmetic and memory; compiled code of the backward form
takes up to a fifth less time where there are convolutions. `finite_difference` takes two more gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevax.problem import Problem, PyTree

Along = Callable[[PyTree], tuple[PyTree, PyTree]]
Curvature = Callable[[Callable[[PyTree, PyTree], Any], PyTree, PyTree], "Lower"]  # g(u, v), u, v -> it


class Upper(NamedTuple):
    """f with its gradients; `grad_u` and `grad_v` include the penalty on the constraints, if any."""

    loss: Any
    constraints: tuple[Any, ...]
    grad_u: PyTree
    grad_v: PyTree


class Lower(NamedTuple):
    """g with its gradient in v, and `along`."""

    loss: Any
    grad_v: PyTree
    along: Along


def upper(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: Any,
    penalty: Callable[[tuple[Any, ...]], Any] | None = None,
) -> Upper:
    """f(u, v) and its gradients; those of f + penalty(h(u, v)) where a penalty is given."""

    def total(u: PyTree, v: PyTree) -> tuple[Any, tuple[Any, tuple[Any, ...]]]:
        loss = problem.upper(u, v, data, key)
        if penalty is None:
            return loss, (loss, ())
        values = problem.constraint_values(u, v, data)
        return loss + penalty(values), (loss, values)

    (_, (loss, values)), (grad_u, grad_v) = jax.value_and_grad(total, (0, 1), has_aux=True)(u, v)
    return Upper(loss, values, grad_u, grad_v)


def constraint_gradients(problem: Problem, u: PyTree, v: PyTree, data: PyTree) -> tuple[Any, PyTree, PyTree]:
    """All entries of all h as one vector (m,), and its Jacobians in u and v (leading axis m)."""

    def flat(u: PyTree, v: PyTree) -> Any:
        values = problem.constraint_values(u, v, data)
        return jnp.concatenate([jnp.ravel(x) for x in values])

    values = flat(u, v)
    jacobian_u, jacobian_v = jax.jacrev(flat, (0, 1))(u, v)
    return values, jacobian_u, jacobian_v


def exact(g: Callable[[PyTree, PyTree], Any], u: PyTree, v: PyTree) -> Lower:
    """`along` by a reverse pass through the gradient in v: with it, two gradients' work, and two for each direction."""

    def gradient(u: PyTree, v: PyTree) -> tuple[PyTree, Any]:
        loss, grad_v = jax.value_and_grad(g, 1)(u, v)
        return grad_v, loss

    grad_v, along, loss = jax.vjp(gradient, u, v, has_aux=True)
    return Lower(loss, grad_v, along)


def finite_difference(g: Callable[[PyTree, PyTree], Any], u: PyTree, v: PyTree) -> Lower:
    """`along` by the central difference of two gradients: first-order only, and least memory.

    The step is eps^(1/3) (1 + |v|) / |p|, which balances rounding against truncation, so the
    result is good to about eps^(2/3): 1e-5 relative in float32, 1e-10 in float64.
    """

    def along(p: PyTree) -> tuple[PyTree, PyTree]:
        size = optax.tree.norm(p)
        eps = jnp.finfo(size.dtype).eps
        t = eps ** (1 / 3) * (1 + optax.tree.norm(v)) / jnp.where(size > 0, size, 1.0)

        def moved(sign: float) -> PyTree:
            return jax.grad(g, (0, 1))(u, jax.tree.map(lambda x, d: x + (sign * t * d).astype(x.dtype), v, p))

        return jax.tree.map(lambda a, b: (a - b) / (2 * t).astype(a.dtype), moved(1.0), moved(-1.0))

    loss, grad_v = jax.value_and_grad(g, 1)(u, v)
    return Lower(loss, grad_v, along)


def lower(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: Any,
    *,
    mu: Any = 1e-3,
    curvature: Curvature = exact,
) -> Lower:
    """g(u, v), its gradient in v, and `along`; what the caller does not use is not computed."""
    return curvature(lambda u, v: problem.lower(u, v, data, key, mu), u, v)


def lower_rows(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, places: Sequence[int], *, mu: Any = 1e-3
) -> Lower:
    """As `lower`, of the rows of some leaves of v alone: `grad_v`, and the p that `along` takes, are lists of theirs.

    Only these rows are differentiated: backwards no further than to the first of the leaves, and along p from there
    on, so the last layers' rows cost less than all of them; for p zero elsewhere `along` is that of `lower`.
    """
    leaves, form = jax.tree.flatten(v)
    chosen = [leaves[i] for i in places]

    def loss(u: PyTree, v: PyTree, chosen: list[Any]) -> Any:
        rest = jax.tree.leaves(v)
        for i, x in zip(places, chosen, strict=True):
            rest[i] = x
        return problem.lower(u, jax.tree.unflatten(form, rest), data, key, mu)

    value, rows = jax.value_and_grad(loss, 2)(u, v, chosen)

    def along(p: PyTree) -> PyTree:
        def slope(u: PyTree, v: PyTree) -> Any:
            at = [jax.tree.leaves(v)[i] for i in places]
            return jax.jvp(lambda x: loss(u, v, x), (at,), (p,))[1]

        return jax.grad(slope, (0, 1))(u, v)

    return Lower(value, rows, along)


def lower_gradient(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, *, mu: Any = 1e-3
) -> tuple[Any, PyTree]:
    """g(u, v) and its gradient in v alone: what a plain descent of g needs."""
    return jax.value_and_grad(problem.lower, 1)(u, v, data, key, mu)


def lower_slopes(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, *, mu: Any = 1e-3
) -> tuple[Any, PyTree, PyTree]:
    """g(u, v) and its gradients in u and in v: what methods on the value function min over v of g need."""
    loss, (grad_u, grad_v) = jax.value_and_grad(problem.lower, (0, 1))(u, v, data, key, mu)
    return loss, grad_u, grad_v
