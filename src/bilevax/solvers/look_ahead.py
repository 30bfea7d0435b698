"""Hypergradients through one look-ahead step: Meta-Weight-Net, second-order DARTS."""

import math
from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, fixed_points
from bilevax._checks import InputError, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class LookAhead:
    """Look-ahead: u moves along the derivative of f(u, v - rate grad_v g(u, v)); then v moves along grad_v g.

    With v_hat = v - rate grad_v g(u, v) the derivative is grad_u f(u, v_hat) + second_products(p)[0] with
    p = -rate grad_v f(u, v_hat): one step of gradient descent replaces v*(u). This is the update of Meta-Weight-Net
    (Shu et al., NeurIPS 2019, eqs. 3-9 and Algorithm 1) and of DARTS (Liu et al., ICLR 2019, eq. 7). Even at v = v*(u)
    it is the hypergradient only if rate times the identity is near (grad2_vv g)^-1, so in general its limit is not a
    solution of the bilevel problem.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; the upper one without a line search.
        rate: learning rate of the look-ahead step, positive. Published: that of the lower optimizer.
        lower_steps: T, moves of v per move of u, at the new u. They start from v, not from v_hat. Published: 1.
        curvature: `derivatives.exact` or `derivatives.finite_difference` (DARTS, eq. 8). Finite differences ignore
            `stop_gradient`: a loss with weights that depend on v but are constants for the derivative, as in
            Meta-Weight-Net, needs `exact`.

    With a `project_lower`, v_hat is projected, and the derivative includes that of the projection; with a `lower_start`
    that depends on u, it includes that of the start. The look-ahead step and the moves use the same lower batch; of a
    `PerMove`, the look-ahead step uses the first.

    Cost of a step: T + 1 gradients of g, one reverse pass through one of them, one gradient of f. Memory: that
    of u, v and the optimizers. `upper_loss` is at v_hat.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import LookAhead, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum((v - 1) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - 2 * u) ** 2),
        ... )
        >>> solver = LookAhead(optax.sgd(0.1), optax.sgd(0.1), rate=0.1)
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=500, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    rate: float = 1e-2
    lower_steps: int = 1
    curvature: derivatives.Curvature = derivatives.exact

    def __post_init__(self) -> None:
        if not isinstance(self.rate, int | float) or not 0 < self.rate < math.inf:
            raise InputError(f"LookAhead: rate is {self.rate!r}, and must be a positive number.")
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, base.Known.VALUE, base.Known.FUNCTION, moving_sets=True)
        derivatives.require_start("LookAhead", problem, u, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Take a look-ahead step, move u once, and move v T times along grad_v g at the new u."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)

        def start(u: PyTree) -> PyTree:
            return base.start_of_step(problem, state._replace(u=u), batch, start_key)

        v, to_u = (state.v, None) if problem.lower_start is None else derivatives.transposed(start, state.u)
        data = base.lower_data(batch, 0)
        g = derivatives.lower(problem, state.u, v, data, upper_key, curvature=self.curvature)
        ahead = jax.tree.map(lambda x, d: (x - self.rate * d).astype(x.dtype), v, g.grad_v)
        ahead, unprojected = fixed_points.transposed_set(problem, state.u, ahead)
        f = derivatives.upper(problem, state.u, ahead, batch.upper, upper_key)
        of_set, slope = unprojected(f.grad_v)
        along_u, along_v = g.second_products(jax.tree.map(lambda d: (-self.rate * d).astype(d.dtype), slope))
        direction = optax.tree.add(optax.tree.add(f.grad_u, of_set), along_u)
        if to_u is not None:
            direction = optax.tree.add(direction, to_u(optax.tree.add(slope, along_v)))
        u, upper_opt = base.move_upper(self, problem, state, direction, base.Objective(f.loss))
        descent = base.Descent(problem, u, self.lower_optimizer)
        v, lower_opt, (lower_loss, lower_norm) = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        info = base.Info(f.loss, lower_loss, optax.tree.norm(direction), lower_norm, {})
        return base.State(u, v, upper_opt, lower_opt), info
