"""MEHA: single-loop descent on the Moreau envelope of the lower level, smooth or not, convex or not."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, fixed_points, schedules
from bilevax._checks import InputError, require_function, require_number
from bilevax.problem import Batch, Problem
from bilevax.schedules import Power, Schedule
from bilevax.solvers import base
from bilevax.solvers._value_function import Counted


@dataclass(frozen=True)
class MEHA:
    """MEHA: descent on f / c + g - (Moreau envelope of g), for g = (smooth part) + r with a proximal map of r.

    With a second point w, which minimises g(u, w) + |w - v|^2 / (2 radius), a step is

        w = prox(w - value_rate (grad_v g(u, w) + (w - v) / radius)),
        u moves along d (grad_u f(u, v) / c + grad_u g(u, v) - grad_u g(u, w)), d = min(1, c),
        v = prox(v - rate d (grad_v f(u, v) / c + grad_v g(u, v) - (v - w) / radius)), at the new u,

    where the gradients in v are those of the smooth part. c must grow without bound, slower than the square root of
    the number of steps. No second derivative, and no inner loop. (In the paper d is 1, and c
    starts at 1 or above it.)

    Args:
        upper_optimizer: any optax optimizer that needs only gradients.
        proximal: (u, v, step) -> v, the proximal map of r; None if the problem has no `regularizer`.
        rate, value_rate: learning rates of v and w, positive.
        radius: of the Moreau envelope, positive. If g is not convex, below 1 over the modulus of its weak convexity.
        weight: c, number, or schedule of the step k; positive.

    A `project_lower` may be given. Cost of a step: 4 gradients of g and 2 of f. Memory: that of u, v, w and the
    optimizer. `lower_grad_norm` is |w - prox(...)| / value_rate before w moves; `extra["gap"]` is g(u, v) - g(u, w).

    Source: Liu, Liu, Yao, Zeng and Zhang, "Moreau envelope for nonconvex bi-level optimization: a single-loop and
    Hessian-free solution strategy", ICML 2024, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import MEHA, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = MEHA(optax.sgd(0.05), rate=0.1, value_rate=0.1)
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=3000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 1), jnp.round(result.v, 1))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    proximal: Callable[[PyTree, PyTree, Any], PyTree] | None = None
    rate: float = 1e-2
    value_rate: float = 1e-2
    radius: float = 2.0
    weight: Schedule | float = Power(1.0, 0.4)

    def __post_init__(self) -> None:
        for name in ("rate", "value_rate", "radius"):
            value = require_number("MEHA", name, getattr(self, name))
            if not value > 0:
                raise InputError(f"MEHA: {name} is {value:g}, and must be positive.")
            object.__setattr__(self, name, value)
        if self.proximal is not None:
            require_function("MEHA", "proximal", self.proximal, "(u, v, step) -> v, or None")
        schedules.require_positive("MEHA", "weight", self.weight)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a regulariser without its proximal map or the reverse, and what no solver can treat."""
        if (problem.regularizer is None) != (self.proximal is None):
            have, lack = ("proximal", "regularizer") if problem.regularizer is None else ("regularizer", "proximal")
            raise InputError(
                f"MEHA: there is a {have} and no {lack}. Give the term r of g twice: as regularizer of the Problem, "
                "for its derivative in u, and as proximal of MEHA, for the moves of v."
            )
        base.check(self, problem, u, v, batch, lower_sets=True)
        if self.proximal is not None:
            fixed_points.require_symmetric("MEHA", "proximal", _Proximal(self.proximal, self.rate), u, v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), w = v."""
        return base.State(u, v, self.upper_optimizer.init(u), (), Counted(v, jnp.zeros((), jnp.int32)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """One move of w, of u and of v."""
        start_key, key = jax.random.split(key)
        u, (w, count) = state.u, state.memory
        v = base.start_of_step(problem, state, batch, start_key)
        w = base.start_of_step(problem, state._replace(v=w), batch, start_key)
        data, smooth = base.lower_data(batch, 0), replace(problem, regularizer=None)
        c = schedules.at(self.weight, count)
        scale = jnp.minimum(1.0, c)

        def prox(u: PyTree, v: PyTree, direction: PyTree, rate: float) -> PyTree:
            moved = jax.tree.map(lambda x, d: (x - rate * d).astype(x.dtype), v, direction)
            near = moved if self.proximal is None else self.proximal(u, moved, rate)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), problem.project_lower(near), v)

        slope = derivatives.lower_gradient(smooth, u, w, data, key)[1]
        pulled = jax.tree.map(lambda d, a, b: d + (a - b) / self.radius, slope, w, v)
        before, w = w, prox(u, w, pulled, self.value_rate)
        f = derivatives.upper(problem, u, v, batch.upper, key)
        tiny = jnp.finfo(jnp.float32).tiny ** 0.5  # the smoothing of r, whose derivative in u alone is used
        loss, at_v, _ = derivatives.lower_slopes(problem, u, v, data, key, mu=tiny)
        least, at_w, _ = derivatives.lower_slopes(problem, u, w, data, key, mu=tiny)
        direction = jax.tree.map(lambda d, a, b: (scale * (d / c + a - b)).astype(d.dtype), f.grad_u, at_v, at_w)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        again = derivatives.upper(problem, moved, v, batch.upper, key).grad_v
        down = derivatives.lower_gradient(smooth, moved, v, data, key)[1]
        along = jax.tree.map(
            lambda d, g, a, b: (scale * (d / c + g - (a - b) / self.radius)).astype(d.dtype), again, down, v, w
        )
        v = prox(moved, v, along, self.rate)
        size = optax.tree.norm(optax.tree.sub(w, before)) / self.value_rate
        info = base.Info(f.loss, loss, optax.tree.norm(direction), size, {"gap": loss - least})
        return base.State(moved, v, upper_opt, (), Counted(w, count + 1)), info


@dataclass(frozen=True)
class _Proximal:
    """The proximal map at a step length; equal for equal maps, so that its check is compiled once."""

    proximal: Callable[[PyTree, PyTree, Any], PyTree]
    step: float

    def __call__(self, u: PyTree, v: PyTree) -> PyTree:
        return self.proximal(u, v, self.step)
