"""Implicit differentiation as functions: the hypergradient at a point, and an argmin with a derivative.

Both rest on the implicit function theorem: where grad_v g(u, v) = 0 and H = grad2_vv g is invertible, v*(u) moves with
u by -H^-1 grad2_vu g (Bengio 2000; Blondel et al. 2022, arXiv:2105.15183). Where v lives in a set, v*(u) is the fixed
point of a projected descent, and moves with u as `derivatives.fixed_point` has it.
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
from jaxtyping import PyTree

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

SOLVED = 1e-3  # of |b|: a residual above it is warned of


class Hypergradient(NamedTuple):
    """f(u, v), d/du f(u, v*(u)) as far as v is v*(u), and the residual |H q - grad_v f| of the linear system.

    Where the residual is not small beside |grad_v f|, the gradient is not to be trusted.
    """

    loss: Any
    gradient: PyTree
    residual: Any


def hypergradient(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch | None = None,
    *,
    key: Any = None,
    linear_solve: LinearSolve = CG(100),
    mu: Any = None,
) -> Hypergradient:
    """grad_u f - grad2_uv g q with grad2_vv g q = grad_v f, for loops of your own.

    Args:
        problem: without constraints. Where it has a `project_lower`, the system is that of the fixed point of a
            projected descent, which is right on the boundary of the set, too.
        u, v: the point, pytrees of floating arrays; v should be v*(u), or near it.
        batch: as `solve` hands it to the losses.
        key: for random losses.
        linear_solve: one of `bilevax.linear_solve`.
        mu: how far the problem's regularizer is smoothed, which it must have been when v was found. Solvers without
            a schedule for mu have 1e-3. Needed where the problem has a regularizer.

    Where the residual is above a thousandth of |grad_v f| it warns: the linear solve has stopped early, or the Hessian
    is singular and the system has no solution. It may be called under jit and vmap, where it cannot warn: check the
    `residual` that it returns.

    Raises:
        InputError: the problem has constraints, which a hypergradient cannot treat; it has a regularizer and mu is
            missing, or mu is not positive; project_lower is not an orthogonal projection.

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
            f"hypergradient: the problem has {len(problem.constraints)} constraints. Use Penalty, which treats them."
        )
    if problem.regularizer is not None and mu is None:
        raise InputError(
            "hypergradient: the problem has a regularizer, and mu is missing. Pass the mu at which v minimises the "
            "lower level: 1e-3 for most solvers. For a v of the non-smooth regularizer itself use SparseHO or "
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


def _warn_unsolved(owner: str, residual: Any, size: Any) -> None:
    if isinstance(residual, Tracer) or bool(jnp.all(residual <= SOLVED * size)):
        return
    share = float(jnp.max(residual / jnp.where(size > 0, size, 1)))
    warnings.warn(
        f"{owner}: the linear system of the derivative is solved to a relative residual of {share:.1e} only, so the "
        "derivative may be far off. Either the linear solve has stopped early: give it more steps, or take Direct() or "
        "GMRES(). Or the Hessian of the lower loss is singular, v*(u) is not unique, and there is no derivative: add a "
        "regularisation to the lower loss, or a damping to the linear solve.",
        stacklevel=3,
    )


@dataclass(frozen=True)
class Argmin:
    """u -> v*(u) = argmin over v of g(u, v, data), a function that `jax.grad` of anything around it goes through.

    A lower level inside of a larger network: `u` is whatever it depends on, the features of the layers before it, say.
    v is found by descent; the derivative is that of the minimiser and not of the descent, so nothing of the descent is
    stored, and it is as good as the descent is near its end.

    Args:
        lower_loss: g(u, v, data) -> floating scalar. Pure.
        optimizer: any optax optimizer of v.
        steps: how many moves it makes.
        linear_solve: one of `bilevax.linear_solve`, for the system of the derivative.
        project: the orthogonal projection onto the set that v lives in, after each move. Where that is not a box, take
            plain descent (`optax.sgd`): the ends of projected Adam depend on its scales.
        random_lower: whether g is random; it is then called as g(u, v, data, key=key).

    `argmin(u, start, data, key)` gives v, of the shapes of `start`. Its derivatives are those with respect to u and
    data, on the boundary of the set, too; with respect to `start` it is zero, as it is for the minimiser. Calls of one
    Argmin with equal shapes are compiled once. It may be called under jit and vmap, and differentiated once, in
    reverse. Where the linear system is solved badly the derivative warns; under jit it cannot: there look at the
    `residual` of a `hypergradient`.

    Raises:
        InputError: steps is not a positive integer; lower_loss cannot be called in this way; project is not a
            function, or not an orthogonal projection.

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

    def __call__(self, u: PyTree, start: PyTree, data: PyTree = None, key: Any = None) -> PyTree:
        """The minimiser, from `start`."""
        require_arrays("u", u)
        check_variable("start", start)
        require_arrays("data", data)
        if key is not None:
            check_key("Argmin", key)
        u, start, data = jax.tree.map(jnp.asarray, (u, start, data))
        derivatives.require_projection("Argmin", "project", self.project, start)
        return _argmin(self, u, start, data, jax.random.key(0) if key is None else key)

    def problem(self) -> Problem:
        """The lower problem; there is nothing at the upper level."""
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
    """The function, compiled once for equal Argmins; as it is where the Argmin cannot be hashed."""
    try:
        hash(argmin)
    except TypeError:
        return function.function(argmin, *args)
    return function(argmin, *args)


@compiled("argmin")
def _descended(argmin: Argmin, u: PyTree, start: PyTree, data: PyTree, key: Any) -> PyTree:
    """The end of the descent."""
    problem, batch = argmin.problem(), Batch(lower=data)
    descent = base.Descent(problem, u, argmin.optimizer)
    loss = jax.eval_shape(problem.lower, u, start, base.lower_data(batch, 0), key)
    objective = descent.objective(start, base.lower_data(batch, 0), key, loss)
    projected = argmin.project is not identity
    check_optimizer("Argmin", "optimizer", argmin.optimizer, "start", start, objective, projected)
    return descent.moves(start, argmin.optimizer.init(start), batch, argmin.steps, key)[0]


@compiled("argmin")
def _pulled_back(argmin: Argmin, u: PyTree, v: PyTree, data: PyTree, key: Any, cotangent: PyTree) -> tuple[Any, ...]:
    """The derivatives in u and in the floating leaves of data, the residual of their system, and the size of its b."""
    leaves, form = jax.tree.flatten((u, data))
    moving = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def joined(floating: list[Any]) -> tuple[PyTree, PyTree]:
        given = iter(floating)
        return jax.tree.unflatten(form, [next(given) if m else x for x, m in zip(leaves, moving, strict=True)])

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
