"""Implicit differentiation as functions: the hypergradient at a point, and a differentiable argmin.

Both use the implicit function theorem: if grad_v g(u, v) = 0 and H = grad2_vv g is invertible, the derivative of v*(u)
is -H^-1 grad2_vu g (Bengio 2000; Blondel et al. 2022, arXiv:2105.15183). If v is restricted to a set, v*(u) is the
fixed point of a projected descent, and `derivatives.fixed_point` has its derivative.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import (
    InputError,
    check_key,
    check_variable,
    described,
    require_arrays,
    require_function,
    settle_counts,
)
from bilevax._optimizers import check_optimizer, require_optimizer
from bilevax._programs import Compiled, compiled
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, Problem, identity, require_loss
from bilevax.solvers import base

SOLVED = 1e-3  # of |b|: a larger residual gives a warning


class Hypergradient(NamedTuple):
    """A hypergradient; do not use it if the residual is not small compared with |grad_v f|.

    Attributes:
        loss: f(u, v).
        gradient: d/du f(u, v*(u)), for v = v*(u).
        residual: |H q - grad_v f|, the residual of the linear system.
    """

    loss: Float[Array, ""]
    gradient: PyTree
    residual: Float[Array, ""]


def hypergradient(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch | None = None,
    *,
    key: PRNGKeyArray | None = None,
    linear_solve: LinearSolve = CG(100),
    mu: float | Float[Array, ""] | None = None,
) -> Hypergradient:
    """Return grad_u f - grad2_uv g q with grad2_vv g q = grad_v f, for training loops of your own.

    Args:
        problem: a problem without constraints. If it has a `project_lower`, the system is that of the fixed point of a
            projected descent, which is also right on the boundary of the set.
        u, v: the point, pytrees of floating arrays; v should be v*(u), or near it.
        batch: the data of the losses, as for `solve`.
        key: a jax.random key, for random losses.
        linear_solve: one of `bilevax.linear_solve`.
        mu: the smoothing parameter of the problem's regularizer, the same as in the training of v. Solvers without a
            schedule for mu use 1e-3. Required if the problem has a regularizer.

    Warns if the residual is above a thousandth of |grad_v f|: the linear solve stopped early, or the Hessian is
    singular and the system has no solution. The function can be called under jit and vmap, where it cannot warn: check
    the `residual` of the result.

    Raises:
        InputError: the problem has constraints; it has a regularizer and mu is missing; mu is not positive;
            project_lower is not an orthogonal projection.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> from bilevax.argmin import hypergradient
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - u**2) ** 2))
        >>> u = jnp.array([2.0])  # v*(u) = u^2, so f = (u^2 - 1)^2 and its derivative is 4 u (u^2 - 1)
        >>> print(hypergradient(problem, u, u**2).gradient)
        [24.]
    """
    if not isinstance(problem, Problem):
        raise InputError(f"hypergradient: problem is {described(problem)}, and must be a bilevax.Problem.")
    check_variable("u", u)
    check_variable("v", v)
    if batch is not None and not isinstance(batch, Batch):
        raise InputError(
            f"hypergradient: batch is {described(batch)}, and must be a bilevax.Batch(upper=..., lower=...)."
        )
    require_arrays("batch", batch)
    if key is not None:
        check_key("hypergradient", key)
    require_function("hypergradient", "linear_solve", linear_solve, "such as bilevax.linear_solve.CG(100)")
    if problem.constraints:
        raise InputError(
            f"hypergradient: the problem has {len(problem.constraints)} constraints, which a hypergradient does not "
            "handle. Use Penalty."
        )
    if problem.regularizer is not None and mu is None:
        raise InputError(
            "hypergradient: the problem has a regularizer, and mu is missing. Pass the mu with which v was trained: "
            "1e-3 for most solvers. For a v that minimises with the non-smooth regularizer itself, use SparseHO or "
            "diagnostics.nonsmooth_stationarity."
        )
    if mu is None:
        mu = 1.0
    elif not isinstance(mu, Tracer) and not mu > 0:
        raise InputError(f"hypergradient: mu is {mu!r}, and must be positive.")
    u, v = jax.tree.map(jnp.asarray, (u, v))
    derivatives.require_projection("hypergradient", "project_lower", problem.project_lower, v)
    batch = Batch() if batch is None else batch
    f = derivatives.upper(problem, u, v, batch.upper, key)
    g = derivatives.lower(problem, u, v, base.lower_data(batch, 0), key, mu=mu)
    second_products, b = derivatives.on_set(problem, u, v, g, f.grad_v)
    found = linear_solve(second_products, b, optax.tree.zeros_like(v))
    _warn_unsolved("hypergradient", found.residual, optax.tree.norm(b))
    return Hypergradient(f.loss, optax.tree.sub(f.grad_u, found.cross), found.residual)


def _warn_unsolved(owner: str, residual: Float[Array, "..."], size: Float[Array, "..."]) -> None:
    """Warn if a residual is not small compared with the size of its right-hand side; under jit nothing is tested."""
    if isinstance(residual, Tracer) or bool(jnp.all(residual <= SOLVED * size)):
        return
    share = float(jnp.max(residual / jnp.where(size > 0, size, 1)))
    warnings.warn(
        f"{owner}: the relative residual of the linear system is {share:.1e}, so the derivative may be wrong. Either "
        "the linear solve stopped early: give it more steps, or use Direct() or GMRES(). Or the Hessian of the lower "
        "loss is singular, so that v*(u) is not unique and has no derivative: add a regulariser to the lower loss, or "
        "damping to the linear solve.",
        stacklevel=3,
    )


@dataclass(frozen=True)
class Argmin:
    """The function u -> v*(u) = argmin over v of g(u, v, data), which `jax.grad` can differentiate.

    It can be a layer of a larger network: `u` is any input that g depends on, for example the features of the layers
    before it. v is computed by an optimizer. The derivative is that of the minimiser, not of the iterations, so no
    iterates are stored; it is accurate if v is near the minimiser.

    Args:
        lower_loss: g(u, v, data) -> floating scalar. Pure.
        optimizer: any optax optimizer for v.
        steps: number of updates of v.
        linear_solve: one of `bilevax.linear_solve`, for the system of the derivative.
        project: the orthogonal projection onto the set of v, applied after each update. If the set is not a box, use
            gradient descent (`optax.sgd`): the limit of projected Adam depends on its scaling of the gradient.
        random_lower: whether g is random; it is then called as g(u, v, data, key=key).

    `argmin(u, start, data, key)` returns v, of the shapes of `start`. It has derivatives in u and in data, also on the
    boundary of the set; its derivative in `start` is zero, as for the minimiser. Calls of one Argmin with equal shapes
    are compiled once. It can be called under jit and vmap, and differentiated once, in reverse mode. The derivative
    warns if the residual of its linear system is large. Under jit it cannot warn: check the `residual` of a
    `hypergradient`.

    Raises:
        InputError: steps is not a positive integer; lower_loss cannot be called in this way; project is not a function,
            or not an orthogonal projection.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax.argmin import Argmin
        >>> ridge = Argmin(
        ...     lambda u, v, y: jnp.mean((u["x"] @ v - y) ** 2) + jnp.exp(u["strength"]) * jnp.sum(v**2),
        ...     optax.sgd(0.1), steps=300,
        ... )
        >>> x, y = jax.random.normal(jax.random.key(0), (20, 3)), jnp.arange(20.0) / 20
        >>> def size(strength):
        ...     return jnp.sum(ridge({"x": x, "strength": strength}, jnp.zeros(3), y) ** 2)
        >>> bool(jax.grad(size)(0.0) < 0)  # a stronger penalty, smaller coefficients
        True
    """

    lower_loss: Callable[..., Any]
    optimizer: optax.GradientTransformation = optax.adam(1e-2)
    steps: int = 200
    linear_solve: LinearSolve = CG(100)
    project: Callable[[PyTree], PyTree] = identity
    random_lower: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        settle_counts(self, "steps")
        require_loss("Argmin", "lower_loss", self.lower_loss, self.random_lower, "random_lower")
        require_function("Argmin", "project", self.project, "v -> v")
        require_function("Argmin", "linear_solve", self.linear_solve, "such as bilevax.linear_solve.CG(100)")
        require_optimizer("Argmin", "optimizer", self.optimizer)

    def __call__(self, u: PyTree, start: PyTree, data: PyTree = None, key: PRNGKeyArray | None = None) -> PyTree:
        """Return the minimiser; the optimizer starts from `start`."""
        require_arrays("u", u)
        check_variable("start", start)
        require_arrays("data", data)
        if key is not None:
            check_key("Argmin", key)
        u, start, data = jax.tree.map(jnp.asarray, (u, start, data))
        derivatives.require_projection("Argmin", "project", self.project, start)
        return _argmin(self, u, start, data, jax.random.key(0) if key is None else key)

    def problem(self) -> Problem:
        """Return the problem of the lower loss, with an upper loss of zero."""
        return Problem(_nothing, self.lower_loss, project_lower=self.project, random_lower=self.random_lower)


def _nothing(u: PyTree, v: PyTree, data: None) -> Any:
    return jnp.zeros(())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _argmin(argmin: Argmin, u: PyTree, start: PyTree, data: PyTree, key: Any) -> PyTree:
    return _run(_descended, argmin, u, start, data, key)


def _forwards(argmin: Argmin, u: PyTree, start: PyTree, data: PyTree, key: Any) -> tuple[PyTree, Any]:
    v = _argmin(argmin, u, start, data, key)
    return v, (u, v, data, key)


def _backwards(argmin: Argmin, kept: Any, cotangent: PyTree) -> tuple[Any, ...]:
    of_u, of_data, residual, size = _run(_pulled_back, argmin, *kept, cotangent)
    _warn_unsolved("Argmin", residual, size)
    return of_u, None, of_data, None


_argmin.defvjp(_forwards, _backwards)


def _run(function: Compiled, argmin: Argmin, *args: Any) -> Any:
    """Call a function that is compiled once for equal Argmins; not compiled if the Argmin cannot be hashed."""
    try:
        hash(argmin)
    except TypeError:
        return function.function(argmin, *args)
    return function(argmin, *args)


@compiled("argmin")
def _descended(argmin: Argmin, u: PyTree, start: PyTree, data: PyTree, key: Any) -> PyTree:
    """Return v after all updates."""
    problem, batch = argmin.problem(), Batch(lower=data)
    descent = base.Descent(problem, u, argmin.optimizer)
    loss = jax.eval_shape(problem.lower, u, start, base.lower_data(batch, 0), key)
    objective = descent.objective(start, base.lower_data(batch, 0), key, loss)
    projected = argmin.project is not identity
    check_optimizer("Argmin", "optimizer", argmin.optimizer, "start", start, objective, projected)
    return descent.moves(start, argmin.optimizer.init(start), batch, argmin.steps, key)[0]


@compiled("argmin")
def _pulled_back(argmin: Argmin, u: PyTree, v: PyTree, data: PyTree, key: Any, cotangent: PyTree) -> tuple[Any, ...]:
    """Return derivatives in u and in the floating leaves of data, the residual of their system, and the norm of b."""
    leaves, form = jax.tree.flatten((u, data))
    moving = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def joined(floating: list[Any]) -> tuple[PyTree, PyTree]:
        values = iter(floating)
        return jax.tree.unflatten(form, [next(values) if m else x for x, m in zip(leaves, moving, strict=True)])

    def lower_loss(floating: list[Any], v: PyTree, _: None) -> Any:
        u, data = joined(floating)
        return argmin.problem().lower(u, v, data, key)

    floating = [x for x, m in zip(leaves, moving, strict=True) if m]
    problem = Problem(_nothing, lower_loss, project_lower=argmin.project)
    g = derivatives.lower(problem, floating, v, None, key)
    second_products, b = derivatives.on_set(problem, floating, v, g, cotangent)
    found = argmin.linear_solve(second_products, b, optax.tree.zeros_like(v))
    cross = iter(found.cross)
    found_leaves = [-next(cross) if m else None for m in moving]
    of_u, of_data = jax.tree.unflatten(form, found_leaves)
    return of_u, of_data, found.residual, optax.tree.norm(b)
