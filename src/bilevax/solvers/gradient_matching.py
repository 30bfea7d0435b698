"""Gradient matching: u moves until a gradient step on g is, to first order, a gradient step on f."""

from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class GradientMatching:
    """Gradient matching of Geiping et al. (ICLR 2021, "Witches' brew", eq. 3), at a trained model v.

    u minimises 1 - cos(grad_v f, grad_v g(u)): if the two gradients have the same direction, a training step on g
    decreases f. v does not move, so g should be the loss only of the samples that u changes; the gradient on a whole
    training set is about zero at a trained model. With a = grad_v f and b = grad_v g, u moves along
    second_products(p)[0], where

        p = -(a - <a, b> b / |b|^2) / (|a| |b|)

    is the derivative of the objective in b. Only the gradient of f in v is used.

    Args:
        upper_optimizer: any optax optimizer; the paper uses Adam on the sign of the gradient.
        curvature: `derivatives.exact` or `derivatives.finite_difference`.

    Cost of a step: one gradient of f, one of g and a reverse pass through the latter. `extra["alignment"]` is
    the cosine at u before the move.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import GradientMatching, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: v @ jnp.array([1.0, 0.0]),
        ...     lower_loss=lambda u, v, data: u @ v,
        ... )
        >>> start = jnp.array([1.0, 1.0]), jnp.zeros(2)
        >>> result = solve(GradientMatching(optax.adam(0.1)), problem, *start, steps=200, key=jax.random.key(0))
        >>> print(jnp.round(result.history.extra["alignment"][-1], 2))
        1.0
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    curvature: derivatives.Curvature = derivatives.exact

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a `project_lower`, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, upper=base.Known.VALUE)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), without an optimizer for v."""
        return base.State(u, v, self.upper_optimizer.init(u), ())

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move u once."""
        f = derivatives.upper(problem, state.u, state.v, batch.upper, key)
        data = base.lower_data(batch, 0)
        g = derivatives.lower(problem, state.u, state.v, data, key, curvature=self.curvature)
        tiny = jnp.finfo(jnp.result_type(g.loss)).tiny ** 0.5
        size_f = jnp.maximum(optax.tree.norm(f.grad_v), tiny)
        size_g = jnp.maximum(optax.tree.norm(g.grad_v), tiny)
        along_f, along_g = optax.tree.scale(1 / size_f, f.grad_v), optax.tree.scale(1 / size_g, g.grad_v)
        alignment = optax.tree.vdot(along_f, along_g)
        p = optax.tree.scale(-1 / size_g, optax.tree.sub(along_f, optax.tree.scale(alignment, along_g)))
        p = optax.tree.cast_like(p, g.grad_v)
        direction = g.second_products(p)[0]
        objective = base.Objective(1 - alignment)
        u, upper_opt = base.move_upper(self, problem, state, direction, objective)
        extra = {"alignment": jnp.asarray(alignment)}
        info = base.Info(f.loss, g.loss, optax.tree.norm(direction), optax.tree.norm(g.grad_v), extra)
        return base.State(u, state.v, upper_opt, ()), info
