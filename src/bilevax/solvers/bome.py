"""BOME: first-order bilevel descent whose multiplier comes from a dynamic barrier."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError, require_number, settle_counts
from bilevax._optimizers import check_optimizer
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class BOME:
    """BOME: (u, v) moves along grad f + lambda grad q, with q(u, v) = g(u, v) - g(u, w).

    w is v after T moves along grad_v g(u, .), and constant for the derivative of q. The multiplier is the least that
    makes q fall at the rate `eta` |grad q|^2:

        lambda = max(0, eta - <grad f, grad q> / |grad q|^2).

    There is nothing to schedule. The ratio needs whole data: from minibatches it is biased.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need only gradients; the lower one moves v.
        value_optimizer: an optax optimizer that moves w; its state starts anew in each step.
        lower_steps: T, moves of w per move of (u, v).
        eta: positive. Published: 0.5, from the grid 0.1, 0.5, 0.9.

    Near the solution grad q vanishes, and lambda |grad q| tends to the size of grad f: the iterates then jump by about
    a learning rate, so learning rates should decrease. A `project_lower` may be given.

    Cost of a step: T + 2 gradients of g and one of f. Memory: that of u, v, w and the optimizers.
    `lower_grad_norm` is |grad_v g| at v; `extra["gap"]` is q, `extra["multiplier"]` is lambda.

    Source: Liu, Ye, Wright, Stone and Liu, "BOME! Bilevel optimization made easy: a simple first-order approach",
    NeurIPS 2022, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import BOME, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> rate = optax.cosine_decay_schedule(0.02, 1000)
        >>> solver = BOME(optax.sgd(rate), optax.sgd(rate), optax.sgd(0.1))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=1000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 2), jnp.round(result.v, 2))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    value_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    lower_steps: int = 10
    eta: float = 0.5

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        eta = require_number("BOME", "eta", self.eta)
        if not eta > 0:
            raise InputError(f"BOME: eta is {eta:g}, and must be positive.")
        object.__setattr__(self, "eta", eta)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, lower_sets=True)
        check_optimizer("BOME", "value_optimizer", self.value_optimizer, "v", v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of w from v, then one of u and of v."""
        start_key, w_key, upper_key = jax.random.split(key, 3)
        u = state.u
        v = base.start_of_step(problem, state, batch, start_key)
        down = base.Descent(problem, u, self.value_optimizer)
        w, _, _ = down.moves(v, self.value_optimizer.init(v), batch, self.lower_steps, w_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)
        loss, at_v, slope = derivatives.lower_slopes(problem, u, v, data, upper_key)
        least, at_w, _ = derivatives.lower_slopes(problem, u, w, data, upper_key)
        gap_u = optax.tree.sub(at_v, at_w)
        size = optax.tree.norm((gap_u, slope), squared=True)
        along = optax.tree.vdot((f.grad_u, f.grad_v), (gap_u, slope))
        multiplier = jnp.where(size > 0, jnp.maximum(self.eta - along / jnp.where(size > 0, size, 1), 0), 0)
        direction, down_v = (
            jax.tree.map(lambda a, b: (a + multiplier * b).astype(a.dtype), of_f, of_q)
            for of_f, of_q in ((f.grad_u, gap_u), (f.grad_v, slope))
        )
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        v, lower_opt = base.move(self.lower_optimizer, state.lower_opt, v, down_v, problem.project_lower)
        extra = {"gap": loss - least, "multiplier": multiplier}
        info = base.Info(f.loss, loss, optax.tree.norm(direction), optax.tree.norm(slope), extra)
        return base.State(moved, v, upper_opt, lower_opt), info
