"""PZOBO: the derivative of v*(u) by differences of the lower moves at random points near u."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError, require_number, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class PZOBO:
    """PZOBO: partial zeroth-order bilevel optimization, for a g that has no derivative in u.

    The T moves of v are repeated from the same start at u + radius d_j, for Q random vectors d_j of standard normal
    entries, and

        u moves along grad_u f + mean over j of <grad_v f, (v_T(u + radius d_j) - v_T(u)) / radius> d_j.

    The mean is an unbiased estimate, to O(radius), of the derivative that `ReverseMode` computes. Its variance is about
    (|u| + 1) / Q times its square: many entries of u need many directions, or short steps. g is differentiated in v
    only, so u may enter it through callbacks or rounding; f is differentiated in u and v.

    Args:
        upper_optimizer: any optax optimizer that needs only gradients.
        lower_optimizer: any optax optimizer.
        lower_steps: T, moves of v per move of u.
        directions: Q.
        radius: positive. Rounding errors grow as 1 / radius, and the bias as radius.

    A `project_lower` may be given, and may depend on u; also a `lower_start`. Cost of a step: (Q + 1) T gradients of g
    in v and one of f. Memory: that of u and, Q + 1 times, of v and its optimizer.

    Source: Sow, Ji and Liang, "On the convergence theory for Hessian-free bilevel algorithms", NeurIPS 2022.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import PZOBO, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = PZOBO(optax.sgd(0.02), optax.sgd(0.2))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=300, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 2), jnp.round(result.v, 2))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_steps: int = 10
    directions: int = 10
    radius: float = 1e-2

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps", "directions")
        radius = require_number("PZOBO", "radius", self.radius)
        if not radius > 0:
            raise InputError(f"PZOBO: radius is {radius:g}, and must be positive.")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, lower=base.Known.FUNCTION, moving_sets=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times at u and at Q points near it, and move u once."""
        start_key, lower_key, upper_key, draw_key = jax.random.split(key, 4)
        u = state.u

        def moved(u: PyTree) -> tuple[PyTree, ...]:
            v = base.start_of_step(problem, state._replace(u=u), batch, start_key)
            descent = base.Descent(problem, u, self.lower_optimizer)
            return descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)

        v, lower_opt, (loss, slope) = moved(u)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)

        def along(key: PRNGKeyArray) -> PyTree:
            d = optax.tree.random_like(key, u)
            near = moved(jax.tree.map(lambda x, d: (x + self.radius * d).astype(x.dtype), u, d))[0]
            change = optax.tree.vdot(f.grad_v, optax.tree.sub(near, v)) / self.radius
            return jax.tree.map(lambda d: (change * d).astype(d.dtype), d)

        estimates = jax.vmap(along)(jax.random.split(draw_key, self.directions))
        direction = optax.tree.add(f.grad_u, jax.tree.map(lambda x: jnp.mean(x, 0), estimates))
        after, upper_opt = base.move_upper(self, problem, state, direction)
        info = base.Info(f.loss, loss, optax.tree.norm(direction), slope, {})
        return base.State(after, v, upper_opt, lower_opt), info
