"""The values and second derivatives at (u, v), and the linear system of the hypergradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bilevax import derivatives, fixed_points
from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.linear_solve import LinearSolve
from bilevax.problem import Problem
from bilevax.solvers import base

PRODUCTS_AT_ONCE = 16


def require_finite(name: str, tree: PyTree) -> None:
    """Raise InputError where an array of the tree is not finite."""
    if not base.all_finite(jax.tree.map(jnp.asarray, tree)):
        raise InputError(
            f"{name} is not finite at this (u, v). Look for a log, a square root or a norm at zero, "
            "or pass an earlier iterate."
        )


@compiled("problem")
def values(
    problem: Problem, u: PyTree, v: PyTree, upper_data: PyTree, data: PyTree, key: PRNGKeyArray, mu: Any
) -> tuple[
    derivatives.Upper, Float[Array, ""], PyTree, Float[Array, " m"], Float[Array, "m n_u"], Float[Array, "m n_v"]
]:
    """The loss f with its gradients, g, grad_v g, the entries of the constraints, and their Jacobians in u and v."""
    f = derivatives.upper(problem, u, v, upper_data, key, lambda h: 0.0)
    g_loss, grad_g = derivatives.lower_gradient(problem, u, v, data, key, mu=mu)
    if not problem.constraints:
        flat_u, flat_v = ravel_pytree(u)[0], ravel_pytree(v)[0]
        empty = jnp.zeros((0,), flat_v.dtype)
        return f, g_loss, grad_g, empty, empty.reshape(0, flat_u.size), empty.reshape(0, flat_v.size)
    entries, jacobian_u, jacobian_v = derivatives.constraint_gradients(problem, u, v, upper_data)
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])
    return f, g_loss, grad_g, entries, flat(jacobian_u), flat(jacobian_v)


@compiled("problem")
def products(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray, rows: Float[Array, "k n_v"], mu: Any
) -> tuple[Float[Array, "k n_u"], Float[Array, "k n_v"]]:
    """`second_products` of each row, on the set of v."""
    g, unravel = derivatives.lower(problem, u, v, data, key, mu=mu), ravel_pytree(v)[1]
    products_on_set = fixed_points.on_set(problem, u, v, g, v).second_products

    def second_products(row: Any) -> tuple[Any, Any]:
        along_u, along_v = products_on_set(unravel(row))
        return ravel_pytree(along_u)[0], ravel_pytree(along_v)[0]

    return jax.lax.map(second_products, rows, batch_size=PRODUCTS_AT_ONCE)


@compiled("problem")
def pulled_back(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray, rows: Float[Array, "k n_v"], mu: Any
) -> tuple[Float[Array, "k n_u"], Float[Array, "k n_v"]]:
    """The direct parts and the right-hand sides of the systems on the set of v, from gradients in v."""
    g, unravel = derivatives.lower(problem, u, v, data, key, mu=mu), ravel_pytree(v)[1]

    def one(row: Any) -> tuple[Any, Any]:
        found = fixed_points.on_set(problem, u, v, g, unravel(row))
        return ravel_pytree(found.direct)[0], ravel_pytree(found.b)[0]

    return jax.lax.map(one, rows)


@compiled("problem")
def degenerate(problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray, mu: Any) -> Bool[Array, ""]:
    """Whether an active bound of the set of v has a multiplier of zero."""
    return fixed_points.degenerate(problem, u, v, derivatives.lower(problem, u, v, data, key, mu=mu))


@compiled("problem")
def hessian(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray, mu: Any
) -> Float[Array, "n_v n_v"]:
    """The matrix of the system: grad2_vv g, or 1 minus the Jacobian of the projected step."""
    flat, _ = ravel_pytree(v)
    return products(problem, u, v, data, key, jnp.eye(flat.size, dtype=flat.dtype), mu)[1]


@compiled("problem", "solve")
def iterate(
    problem: Problem,
    solve: LinearSolve,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray,
    rows: Float[Array, "k n_v"],
    mu: Any,
) -> Float[Array, "k n_v"]:
    """The solution of the system for each row, by products alone."""
    g, unravel = derivatives.lower(problem, u, v, data, key, mu=mu), ravel_pytree(v)[1]
    second_products = fixed_points.on_set(problem, u, v, g, v).second_products
    zero = optax.tree.zeros_like(v)
    return jax.lax.map(lambda b: ravel_pytree(solve(second_products, unravel(b), zero).q)[0], rows)


def extremes(hessian: Float[np.ndarray, "n n"]) -> tuple[float, float]:
    """The smallest and the largest eigenvalue."""
    values = np.linalg.eigvalsh(hessian.astype(float))
    return float(values[0]), float(values[-1])


def dense(hessian: Float[np.ndarray, "n n"], rows: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
    """The inverse of the matrix times each row; the pseudo-inverse where the matrix is singular."""
    values, vectors = np.linalg.eigh(hessian.astype(float))
    size = np.abs(values).max()
    kept = np.abs(values) > size * len(values) * np.finfo(hessian.dtype).eps
    inverse = np.divide(1, values, out=np.zeros_like(values), where=kept)
    return (rows @ vectors * inverse) @ vectors.T


def extreme_eigenvalues(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: PRNGKeyArray, n: int, dtype: DTypeLike, mu: Any
) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of grad2_vv g by Lanczos iterations; NaN where they do not converge."""

    def product(x: np.ndarray) -> np.ndarray:
        row = jnp.asarray(x.reshape(1, n), dtype)
        return np.asarray(products(problem, u, v, data, key, row, mu)[1][0], float)

    linear: Any = scipy.sparse.linalg.LinearOperator
    operator = linear((n, n), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=n)
    try:
        found = scipy.sparse.linalg.eigsh(
            operator, k=2, which="BE", v0=start, tol=float(jnp.finfo(dtype).eps) ** 0.5, return_eigenvectors=False
        )
    except scipy.sparse.linalg.ArpackError:  # no convergence (or a zero Hessian)
        return float("nan"), float("nan")
    return float(min(found)), float(max(found))
