"""Implicit differentiation as functions: the hypergradient at a point, and a differentiable argmin.

Both use the implicit function theorem: if grad_v g(u, v) = 0 and H = grad2_vv g is invertible, the derivative of v*(u)
is -H^-1 grad2_vu g (Bengio 2000; Blondel et al. 2022, arXiv:2105.15183). If v is restricted to a set, v*(u) is the
fixed point of a projected descent, and of a proximal descent if the lower loss has a non-smooth term;
`fixed_points.on_set` has its derivative.
"""

import dataclasses
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

from bilevax import derivatives, fixed_points
from bilevax._arrays import check_key, check_variable, require_arrays
from bilevax._checks import InputError, described, require_function, settle_counts
from bilevax._optimizers import check_optimizer, learning_rate, require_optimizer
from bilevax._programs import Compiled, compiled
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, Problem, depends_on_u, identity, require_loss, require_lower_projection
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
    proximal: fixed_points.Proximal | None = None,
) -> Hypergradient:
    """Return grad_u f - grad2_uv g q with grad2_vv g q = grad_v f, for training loops of your own.

    Args:
        problem: a problem without constraints. If it has a `project_lower`, the system is that of the fixed point of a
            projected descent, which is also right on the boundary of the set, and includes how the set moves with u.
        u, v: the point, pytrees of floating arrays; v should be v*(u), or near it.
        batch: the data of the losses, as for `solve`.
        key: a jax.random key, for random losses.
        linear_solve: one of `bilevax.linear_solve`.
        mu: the smoothing parameter of the problem's regularizer, the same as in the training of v. Solvers without a
            schedule for mu use 1e-3. Required if the problem has a regularizer, unless `proximal` is given.
        proximal: (u, v, step) -> v, the proximal map of a non-smooth term of the lower level: v minimises lower_loss
            plus this term, which may depend on u. It replaces the regularizer of the problem.

    Warns if the residual is above a thousandth of |grad_v f|: the linear solve stopped early, or the Hessian is
    singular and the system has no solution. Warns if an active bound of the set, or a zero that the proximal map makes,
    has a multiplier of zero: v*(u) then has different derivatives on the two sides. The function can be called under
    jit and vmap, where it cannot warn: check the `residual` of the result, and `degenerate` of `diagnostics.report`.

    Raises:
        InputError: the problem has constraints; it has a regularizer and mu is missing; mu is not positive;
            project_lower is not an orthogonal projection; proximal is not a proximal map; both are given.

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
    if problem.lower_constraints:
        raise InputError(
            "hypergradient: the problem has lower_constraints, which are not supported. Use BLOCC or BiCGAFFA."
        )
    if proximal is not None:
        require_function("hypergradient", "proximal", proximal, "(u, v, step) -> v")
        problem = dataclasses.replace(problem, regularizer=None)
    if problem.regularizer is not None and mu is None:
        raise InputError(
            "hypergradient: the problem has a regularizer, and mu is missing. Pass the mu with which v was trained: "
            "1e-3 for most solvers. For a v that minimises with the non-smooth regularizer itself, pass its proximal "
            "map, proximal=."
        )
    if mu is None:
        mu = 1.0
    elif not isinstance(mu, Tracer) and not mu > 0:
        raise InputError(f"hypergradient: mu is {mu!r}, and must be positive.")
    u, v = jax.tree.map(jnp.asarray, (u, v))
    _require_map("hypergradient", "project_lower", problem, proximal, u, v)
    batch = Batch() if batch is None else batch
    f = derivatives.upper(problem, u, v, batch.upper, key)
    g = derivatives.lower(problem, u, v, base.lower_data(batch, 0), key, mu=mu)
    system = fixed_points.on_set(problem, u, v, g, f.grad_v, proximal)
    found = linear_solve(system.second_products, system.b, optax.tree.zeros_like(v))
    _warn_unsolved("hypergradient", found.residual, optax.tree.norm(system.b))
    if not isinstance(found.residual, Tracer):
        _warn_degenerate("hypergradient", fixed_points.degenerate(problem, u, v, g, proximal))
    gradient = optax.tree.sub(optax.tree.add(f.grad_u, system.direct), found.cross)
    return Hypergradient(f.loss, gradient, found.residual)


def _require_map(
    owner: str, name: str, problem: Problem, proximal: fixed_points.Proximal | None, u: PyTree, v: PyTree
) -> None:
    """Refuse what is not an orthogonal projection or not a proximal map, and both at once."""
    if proximal is None:
        fixed_points.require_projection(owner, name, problem, u, v)
        return
    if problem.project_lower is not identity:
        raise InputError(
            f"{owner}: both {name} and proximal are given. Pass the proximal map of the term on the set, as proximal "
            "alone: for a term of each entry and a box it is the proximal map of the term, followed by the projection."
        )
    fixed_points.require_symmetric(owner, "proximal", _Unit(proximal), u, v)


@dataclass(frozen=True)
class _Unit:
    """A proximal map at the step length 1; equal for equal maps, so that its check is compiled once."""

    proximal: fixed_points.Proximal

    def __call__(self, u: PyTree, v: PyTree) -> PyTree:
        return self.proximal(u, v, 1.0)


def _warn_degenerate(owner: str, degenerate: Any) -> None:
    """Warn of a kink of v*(u); under jit nothing is tested."""
    if isinstance(degenerate, Tracer) or not bool(jnp.any(degenerate)):
        return
    warnings.warn(
        f"{owner}: an active bound of v, or an entry at a kink of the proximal map, has a multiplier of zero. v*(u) "
        "has different derivatives on the two sides of this u, and the result is one of them, or between them.",
        stacklevel=3,
    )


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
        project: the orthogonal projection onto the set of v, applied after each update: v -> v, or (u, v) -> v for a
            set that depends on u. If the set is not a box, use gradient descent (`optax.sgd`): the limit of projected
            Adam depends on its scaling of the gradient.
        proximal: (u, v, step) -> v, the proximal map of a non-smooth term that is added to lower_loss, such as
            `lambda u, v, step: L1().proximal(v, step * jnp.exp(u))`; None without one. v then moves by proximal
            descent, and the optimizer must be `optax.sgd(rate)`, with a rate of at most 1 over the Lipschitz constant
            of the gradient of lower_loss.
        random_lower: whether g is random; it is then called as g(u, v, data, key=key).

    `argmin(u, start, data, key)` returns v, of the shapes of `start`. It has derivatives in u and in data, also on the
    boundary of the set; its derivative in `start` is zero, as for the minimiser. Calls of one Argmin with equal shapes
    are compiled once. It can be called under jit and vmap, and differentiated once, in reverse mode. The derivative
    warns if the residual of its linear system is large. Under jit it cannot warn: check the `residual` of a
    `hypergradient`.

    Raises:
        InputError: steps is not a positive integer; lower_loss cannot be called in this way; project is not a function,
            or not an orthogonal projection; proximal is not a proximal map; both are given; with proximal, the
            optimizer is not gradient descent with a constant rate.

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
    project: Callable[..., PyTree] = identity
    proximal: fixed_points.Proximal | None = None
    random_lower: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        settle_counts(self, "steps")
        require_loss("Argmin", "lower_loss", self.lower_loss, self.random_lower, "random_lower")
        require_lower_projection("Argmin", "project", self.project)
        require_function("Argmin", "linear_solve", self.linear_solve, "such as bilevax.linear_solve.CG(100)")
        require_optimizer("Argmin", "optimizer", self.optimizer)
        if self.proximal is not None:
            require_function("Argmin", "proximal", self.proximal, "(u, v, step) -> v, or None")
            if learning_rate(self.optimizer) is None:
                raise InputError(
                    "Argmin: with proximal, v moves by proximal descent, and the optimizer must be gradient descent "
                    "with a constant rate. Pass optax.sgd(rate)."
                )

    def __call__(self, u: PyTree, start: PyTree, data: PyTree = None, key: PRNGKeyArray | None = None) -> PyTree:
        """Return the minimiser; the optimizer starts from `start`."""
        require_arrays("u", u)
        check_variable("start", start)
        require_arrays("data", data)
        if key is not None:
            check_key("Argmin", key)
        u, start, data = jax.tree.map(jnp.asarray, (u, start, data))
        _require_map("Argmin", "project", self.problem(), self.proximal, u, start)
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
    of_u, of_data, residual, size, kink = _run(_pulled_back, argmin, *kept, cotangent)
    _warn_unsolved("Argmin", residual, size)
    _warn_degenerate("Argmin", kink)
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
    problem, batch, proximal = argmin.problem(), Batch(lower=data), argmin.proximal
    if proximal is not None:
        rate = learning_rate(argmin.optimizer)
        problem = dataclasses.replace(problem, project_lower=lambda u, v: optax.tree.cast_like(proximal(u, v, rate), v))
    descent = base.Descent(problem, u, argmin.optimizer)
    loss = jax.eval_shape(problem.lower, u, start, base.lower_data(batch, 0), key)
    objective = descent.objective(start, base.lower_data(batch, 0), key, loss)
    projected = argmin.project is not identity
    check_optimizer("Argmin", "optimizer", argmin.optimizer, "start", start, objective, projected)
    return descent.moves(start, argmin.optimizer.init(start), batch, argmin.steps, key)[0]


@compiled("argmin")
def _pulled_back(argmin: Argmin, u: PyTree, v: PyTree, data: PyTree, key: Any, cotangent: PyTree) -> tuple[Any, ...]:
    """Return derivatives in u and in the floating leaves of data, the residual and b of their system, and any kink."""
    leaves, form = jax.tree.flatten((u, data))
    moving = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def joined(floating: list[Any]) -> tuple[PyTree, PyTree]:
        values = iter(floating)
        return jax.tree.unflatten(form, [next(values) if m else x for x, m in zip(leaves, moving, strict=True)])

    def lower_loss(floating: list[Any], v: PyTree, _: None) -> Any:
        u, data = joined(floating)
        return argmin.problem().lower(u, v, data, key)

    floating = [x for x, m in zip(leaves, moving, strict=True) if m]

    def project(floating: list[Any], v: PyTree) -> PyTree:
        return argmin.project(joined(floating)[0], v)

    def proximal(floating: list[Any], v: PyTree, step: Any) -> PyTree:
        assert argmin.proximal is not None
        return argmin.proximal(joined(floating)[0], v, step)

    problem = Problem(_nothing, lower_loss, project_lower=project if depends_on_u(argmin.project) else argmin.project)
    near = None if argmin.proximal is None else proximal
    g = derivatives.lower(problem, floating, v, None, key)
    system = fixed_points.on_set(problem, floating, v, g, cotangent, near)
    found = argmin.linear_solve(system.second_products, system.b, optax.tree.zeros_like(v))
    through = iter(optax.tree.sub(system.direct, found.cross))
    of_u, of_data = jax.tree.unflatten(form, [next(through) if m else None for m in moving])
    kink = fixed_points.degenerate(problem, floating, v, g, near)
    return of_u, of_data, found.residual, optax.tree.norm(system.b), kink
