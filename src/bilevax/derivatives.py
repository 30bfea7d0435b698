"""The derivatives of a problem. Only this file, `fixed_points.py` and `solvers/unrolled.py` take derivatives.

`lower(...)` returns g, its gradient in v, and

    second_products(p) = (grad2_uv g . p, grad2_vv g . p) = d/dt grad_(u,v) g(u, v + t p) at t = 0,

from which most solvers compute their directions. `exact` computes the products by one reverse pass through the
gradient, whose evaluation is shared: grad2_uv g . p is the derivative of <grad_v g, p> in u. A forward pass through the
gradient (Pearlmutter 1994) has the same arithmetic and memory; with convolutions, the compiled reverse pass is up to a
fifth faster. `finite_difference` evaluates two more gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax._checks import InputError, first_line
from bilevax.problem import Batch, Problem, identity

SecondProducts = Callable[[PyTree], tuple[PyTree, PyTree]]  # p -> (grad2_uv g . p, grad2_vv g . p)
Curvature = Callable[[Callable[[PyTree, PyTree], Float[Array, ""]], PyTree, PyTree], "Lower"]  # (g, u, v) -> Lower


class Upper(NamedTuple):
    """The upper loss with its gradients; `grad_u` and `grad_v` include the penalty on the constraints, if any."""

    loss: Float[Array, ""]
    constraints: tuple[Float[Array, "..."], ...]
    grad_u: PyTree
    grad_v: PyTree


class Lower(NamedTuple):
    """The lower loss with its gradient in v, and its second products."""

    loss: Float[Array, ""]
    grad_v: PyTree
    second_products: SecondProducts


def upper(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None,
    penalty: Callable[[tuple[Float[Array, "..."], ...]], Float[ArrayLike, ""]] | None = None,
) -> Upper:
    """Return f(u, v) and its gradients; with a penalty, the gradients of f + penalty(h(u, v))."""

    def total(u: PyTree, v: PyTree) -> tuple[Any, tuple[Any, tuple[Any, ...]]]:
        loss = problem.upper(u, v, data, key)
        if penalty is None:
            return loss, (loss, ())
        values = problem.constraint_values(u, v, data)
        return loss + penalty(values), (loss, values)

    (_, (loss, values)), (grad_u, grad_v) = jax.value_and_grad(total, (0, 1), has_aux=True)(u, v)
    return Upper(loss, values, grad_u, grad_v)


def constraint_gradients(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree
) -> tuple[Float[Array, " m"], PyTree, PyTree]:
    """Return all entries of all h as one vector (m,), and its Jacobians in u and v (leading axis m)."""

    def flat(u: PyTree, v: PyTree) -> Any:
        values = problem.constraint_values(u, v, data)
        return jnp.concatenate([jnp.ravel(x) for x in values])

    values = flat(u, v)
    jacobian_u, jacobian_v = jax.jacrev(flat, (0, 1))(u, v)
    return values, jacobian_u, jacobian_v


def exact(g: Callable[[PyTree, PyTree], Float[Array, ""]], u: PyTree, v: PyTree) -> Lower:
    """Return exact products, by a reverse pass through the gradient in v. Each product costs about two gradients."""

    def gradient(u: PyTree, v: PyTree) -> tuple[PyTree, Any]:
        loss, grad_v = jax.value_and_grad(g, 1)(u, v)
        return grad_v, loss

    grad_v, second_products, loss = jax.vjp(gradient, u, v, has_aux=True)
    return Lower(loss, grad_v, second_products)


def finite_difference(g: Callable[[PyTree, PyTree], Float[Array, ""]], u: PyTree, v: PyTree) -> Lower:
    """Return products by a central difference of two gradients, with first derivatives only and the least memory.

    The step is eps^(1/3) (1 + |v|) / |p|, which balances rounding and truncation. The relative error is about
    eps^(2/3): 1e-5 in float32, 1e-10 in float64.
    """

    def second_products(p: PyTree) -> tuple[PyTree, PyTree]:
        size = optax.tree.norm(p)
        eps = jnp.finfo(size.dtype).eps
        t = eps ** (1 / 3) * (1 + optax.tree.norm(v)) / jnp.where(size > 0, size, 1.0)

        def moved(sign: float) -> PyTree:
            return jax.grad(g, (0, 1))(u, jax.tree.map(lambda x, d: x + (sign * t * d).astype(x.dtype), v, p))

        return jax.tree.map(lambda a, b: (a - b) / (2 * t).astype(a.dtype), moved(1.0), moved(-1.0))

    loss, grad_v = jax.value_and_grad(g, 1)(u, v)
    return Lower(loss, grad_v, second_products)


def lower(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None,
    *,
    mu: Float[ArrayLike, ""] = 1e-3,
    curvature: Curvature = exact,
) -> Lower:
    """Return g(u, v), its gradient in v, and `second_products`. Under jit, unused results are not computed."""
    return curvature(lambda u, v: problem.lower(u, v, data, key, mu), u, v)


def lower_rows(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None,
    places: Sequence[int],
    *,
    mu: Float[ArrayLike, ""] = 1e-3,
) -> Lower:
    """As `lower`, for some leaves of v only: `grad_v`, and the argument of `second_products`, are lists of leaves.

    The result of `second_products` is that of `lower` for a p that is zero in the other leaves. The reverse pass ends
    at the first of the leaves, and the forward pass along p starts there, so that the last layers of a network cost
    less than all layers.

    Args:
        problem, u, v, data, key, mu: as for `lower`.
        places: the indices of the leaves.
    """
    leaves, form = jax.tree.flatten(v)
    chosen = [leaves[i] for i in places]

    def loss(u: PyTree, v: PyTree, chosen: list[Any]) -> Any:
        rest = jax.tree.leaves(v)
        for i, x in zip(places, chosen, strict=True):
            rest[i] = x
        return problem.lower(u, jax.tree.unflatten(form, rest), data, key, mu)

    value, rows = jax.value_and_grad(loss, 2)(u, v, chosen)

    def second_products(p: PyTree) -> PyTree:
        def slope(u: PyTree, v: PyTree) -> Any:
            at = [jax.tree.leaves(v)[i] for i in places]
            return jax.jvp(lambda x: loss(u, v, x), (at,), (p,))[1]

        return jax.grad(slope, (0, 1))(u, v)

    return Lower(value, rows, second_products)


def lower_gradient(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray | None, *, mu: Float[ArrayLike, ""] = 1e-3
) -> tuple[Float[Array, ""], PyTree]:
    """Return g(u, v) and its gradient in v, for gradient descent on g."""
    return jax.value_and_grad(problem.lower, 1)(u, v, data, key, mu)


def lower_slopes(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray | None, *, mu: Float[ArrayLike, ""] = 1e-3
) -> tuple[Float[Array, ""], PyTree, PyTree]:
    """Return g(u, v) and its gradients in u and in v, for methods on the value function min over v of g."""
    loss, (grad_u, grad_v) = jax.value_and_grad(problem.lower, (0, 1))(u, v, data, key, mu)
    return loss, grad_u, grad_v


def transposed(function: Callable[[PyTree], PyTree], x: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Return function(x), and the product with the transpose of its derivative at x."""
    if function is identity:
        return x, identity
    value, pull = jax.vjp(function, x)
    return value, lambda d: pull(d)[0]


def require_start(owner: str, problem: Problem, u: PyTree, batch: Batch, test_dependence: bool = False) -> bool:
    """Check that `lower_start` can be differentiated, and return whether it depends on u.

    Args:
        owner: the solver, for the message.
        problem, u, batch: as for `Solver.check`.
        test_dependence: whether to evaluate the derivative; without it the result is False.

    Raises:
        InputError: `lower_start` cannot be differentiated.
    """
    if problem.lower_start is None:
        return False
    start, key = problem.lower_start, jax.random.key(0)

    def slope(u: PyTree, batch: Batch) -> PyTree:
        v, pull_back = jax.vjp(lambda u: start(u, batch, key), u)
        return pull_back(optax.tree.random_like(key, v))[0]

    try:
        found = jax.jit(slope)(u, batch) if test_dependence else jax.eval_shape(slope, u, batch)
    except Exception as error:  # whatever the user's function raises
        raise InputError(
            f"{owner} differentiates through the start of v, and lower_start cannot be differentiated: "
            f"{first_line(error)} To treat the start as a constant, use jax.lax.stop_gradient(u) in lower_start."
        ) from error
    return test_dependence and any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(found))
