"""SAMA: the derivative of the lower optimizer's own update in place of the inverse Hessian."""

from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import settle_counts
from bilevax._optimizers import away_from_zero, update
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class SAMA:
    """SAMA: u moves along grad_u f - grad2_uv g (P grad_v f), with P minus the derivative of the lower update.

    The lower optimizer moves v by a function of grad_v g, and of its state. P is minus the derivative of that function
    in the gradient: the learning rate for gradient descent, and one number for each entry for Adam. It stands for the
    inverse Hessian, so that neither a linear solve nor a second derivative is needed: the product with grad2_uv g is a
    difference of two gradients in u. The direction is that of one look-ahead step of the lower optimizer itself. In
    general its limit is not a solution, as for `LookAhead`.

    Args:
        upper_optimizer: any optax optimizer without a line search.
        lower_optimizer: any optax optimizer that needs only gradients and can be differentiated.
        lower_steps: T, moves of v per move of u.
        curvature: `derivatives.finite_difference`, as published, or `derivatives.exact`.

    P is computed by differentiating the optimizer, bias corrections included. (The published closed form is that of
    Adam; for gradient descent the authors' code leaves out the learning rate.) A `project_lower` is refused. Cost of a
    step: T + 1 gradients of g, two more in u, one of f. Memory: that of u, v and the optimizers.

    Source: Choe et al., "Making scalable meta learning practical", NeurIPS 2023.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import SAMA, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = SAMA(optax.sgd(1.0), optax.sgd(0.1))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=100, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_steps: int = 10
    curvature: derivatives.Curvature = derivatives.finite_difference

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, upper=base.Known.VALUE)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times along grad_v g, and move u once."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        u = state.u
        v = base.start_of_step(problem, state, batch, start_key)
        descent = base.Descent(problem, u, self.lower_optimizer)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        g = derivatives.lower(problem, u, v, data, upper_key, curvature=self.curvature)

        def next_update(gradient: PyTree) -> PyTree:
            return update(self.lower_optimizer, gradient, lower_opt, v)[0]

        along = derivatives.transposed(next_update, away_from_zero(g.grad_v))[1](f.grad_v)
        direction = optax.tree.add(f.grad_u, g.second_products(along)[0])
        moved, upper_opt = base.move_upper(self, problem, state, direction, base.Objective(f.loss))
        info = base.Info(f.loss, g.loss, optax.tree.norm(direction), optax.tree.norm(g.grad_v), {})
        return base.State(moved, v, upper_opt, lower_opt), info
