"""Implicit differentiation as functions: the hypergradient at a point, and an argmin with a derivative.

Both rest on the implicit function theorem: where grad_v g(u, v) = 0 and H = grad2_vv g is invertible, v*(u) moves with
u by -H^-1 grad2_vu g (Bengio 2000; Blondel et al. 2022, arXiv:2105.15183).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevax import oracles
from bilevax._optimizers import check_optimizer, require_optimizer
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, InputError, Problem, PyTree, identity, require_count
from bilevax.solvers import base


class Hypergradient(NamedTuple):
    """f(u, v), d/du f(u, v*(u)) as far as v is v*(u), and the residual of the linear system."""

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
) -> Hypergradient:
    """grad_u f - grad2_uv g q with grad2_vv g q = grad_v f, for loops of your own.

    Args:
        problem: without constraints.
        u, v: the point, pytrees of floating arrays; v should be v*(u), or near it.
        batch: as `solve` hands it to the losses.
        key: for losses that take one.
        linear_solve: one of `bilevax.linear_solve`.

    It may be called under jit and vmap.

    Raises:
        InputError: the problem has constraints, which a hypergradient knows nothing of.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> from bilevax.implicit import hypergradient
        >>> problem = Problem(lambda u, v: jnp.sum((v - 1) ** 2), lambda u, v: jnp.sum((v - u**2) ** 2))
        >>> u = jnp.array([2.0])  # v*(u) = u^2, so f = (u^2 - 1)^2 and its derivative is 4 u (u^2 - 1)
        >>> print(hypergradient(problem, u, u**2).gradient)
        [24.]
    """
    if problem.constraints:
        raise InputError(
            f"hypergradient: the problem has {len(problem.constraints)} constraints. Take Penalty, which treats them."
        )
    batch = Batch() if batch is None else batch
    f = oracles.upper(problem, u, v, batch.upper, key)
    g = oracles.lower(problem, u, v, base.lower_data(batch, 0), key)
    found = linear_solve(g.along, f.grad_v, optax.tree.zeros_like(v))
    return Hypergradient(f.loss, optax.tree.sub(f.grad_u, found.cross), found.residual)


@dataclass(frozen=True)
class Argmin:
    """u -> v*(u) = argmin over v of g(u, v[, data]), a function that `jax.grad` of anything around it goes through.

    A lower level inside of a larger network: `u` is whatever it depends on, the features of the layers before it, say.
    v is found by descent; the derivative is that of the minimiser and not of the descent, so nothing of the descent is
    stored, and it is as good as the descent is near its end.

    Args:
        lower_loss: g(u, v[, data][, key=]) -> floating scalar. Pure.
        optimizer: any optax optimizer of v.
        steps: how many moves it makes.
        linear_solve: one of `bilevax.linear_solve`, for the system of the derivative.
        project: maps v onto the set it lives in, after each move. The derivative knows nothing of it: it is right
            where the minimiser lies inside.

    `argmin(u, start, data, key)` gives v, of the shapes of `start`. Derivatives are taken with respect to u alone:
    what else is to have one belongs in u. It may be called under jit and vmap, and differentiated once, in reverse.

    Raises:
        InputError: steps is no positive integer; lower_loss is no function.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax.implicit import Argmin
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

    def __post_init__(self) -> None:
        require_count("Argmin", "steps", self.steps)
        if not callable(self.lower_loss):
            raise InputError(f"Argmin: lower_loss is {self.lower_loss!r}. Pass a function lower_loss(u, v[, data]).")
        require_optimizer("Argmin", "optimizer", self.optimizer)

    def __call__(self, u: PyTree, start: PyTree, data: PyTree = None, key: Any = None) -> PyTree:
        """The minimiser, from `start`."""
        return _argmin(self, u, start, data, jax.random.key(0) if key is None else key)

    def problem(self) -> Problem:
        """The lower problem; there is nothing at the upper level."""
        return Problem(lambda u, v: jnp.zeros(()), self.lower_loss, project_lower=self.project)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _argmin(argmin: Argmin, u: PyTree, start: PyTree, data: PyTree, key: Any) -> PyTree:
    problem, batch = argmin.problem(), Batch(lower=data)
    direction = base.descend(problem, u, batch)
    loss = jax.eval_shape(direction.problem.lower, u, start, base.lower_data(batch, 0), key)
    objective = direction.objective(start, base.lower_data(batch, 0), key, loss)
    projected = argmin.project is not identity
    check_optimizer("Argmin", "optimizer", argmin.optimizer, "start", start, objective, projected)
    state = argmin.optimizer.init(start)
    return base.lower_moves(direction, argmin.optimizer, state, start, problem, batch, argmin.steps, key)[0]


def _forwards(argmin: Argmin, u: PyTree, start: PyTree, data: PyTree, key: Any) -> tuple[PyTree, Any]:
    v = _argmin(argmin, u, start, data, key)
    return v, (u, v, data, key)


def _backwards(argmin: Argmin, kept: Any, cotangent: PyTree) -> tuple[Any, ...]:
    u, v, data, key = kept
    g = oracles.lower(argmin.problem(), u, v, data, key)
    found = argmin.linear_solve(g.along, cotangent, optax.tree.zeros_like(v))
    return jax.tree.map(jnp.negative, found.cross), None, None, None


_argmin.defvjp(_forwards, _backwards)
