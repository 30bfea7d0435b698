"""BLOCC: first-order bilevel descent for lower levels with constraints, by multipliers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError, require_number, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers._multipliers import caution, lagrangian_of, pulled_lagrangian_of, raised, violation


class Saddle(NamedTuple):
    """A point of the lower level, and its multipliers, one array for each constraint."""

    v: PyTree
    multipliers: tuple[Array, ...]


@dataclass(frozen=True)
class BLOCC:
    """BLOCC: u moves along the difference of two Lagrangians, at their own saddle points.

    Let v_g minimise g(u, v) subject to the lower constraints c(u, v), and v_f minimise g + f / gamma subject to them,
    with multipliers m_g and m_f. Then

        u moves along grad_u f(u, v_f) + gamma [grad_u (g + m_f c)(u, v_f) - grad_u (g + m_g c)(u, v_g)],

    which is the gradient of F(u) = f(u, v*(u)) to O(1 / gamma). No second derivative is needed. Each point moves by
    `rounds` times `lower_steps` moves down its augmented Lagrangian, each round followed by one update of the
    multipliers, m + penalty c (at least zero for an inequality). For these moves the Lagrangian is divided by 1 + |m|,
    since its curvature grows with m. The published method has plain Lagrangians, and dual steps of their own.

    Args:
        upper_optimizer: any optax optimizer that needs only gradients.
        lower_optimizer: any optax optimizer. It starts afresh in each round, whose function is another. For few
            unknowns and whole data one that searches along lines needs no learning rate: `optax.chain(
            optax.scale_by_lbfgs(), optax.scale(-1.0), optax.scale_by_backtracking_linesearch(20))`, with 5
            `lower_steps`. (`optax.lbfgs()` itself accepts small increases, which gamma magnifies.)
        lower_steps: moves of v in a round.
        rounds: updates of the multipliers per move of u.
        gamma: positive; large for a small error, but rounding grows with it.
        penalty: of the augmented Lagrangians, positive. The curvature of g grows by it times the squared slope of c, so
            learning rates fall with it.

    g must be strongly convex and c convex in v, and the multipliers bounded (Slater's condition). Where this fails,
    `solve` warns: `extra["multiplier_norm"]` grows without bound. `extra["violation"]` is the largest of any entry of c
    at v. v is v_g. A `project_lower` may be given. Cost of a step: 2 `rounds` (`lower_steps` + 1) gradients of g
    and c, half as many of f. Memory: that of u, and twice of v and c.

    Source: Jiang, Xiao, Tenorio, Real-Rojas, Marques and Chen, "A primal-dual-assisted penalty approach to bilevel
    optimization with coupled constraints", NeurIPS 2024, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import BLOCC, Inequality, Problem, solve
        >>> problem = Problem(  # v*(u) = min(u, 1 - u)
        ...     lambda u, v, data: jnp.sum((v - 1) ** 2 + 0.1 * u**2),
        ...     lambda u, v, data: jnp.sum((v - u) ** 2),
        ...     lower_constraints=(Inequality(lambda u, v, data: u + v - 1),),
        ... )
        >>> solver = BLOCC(optax.sgd(0.02), optax.sgd(0.2))
        >>> result = solve(solver, problem, jnp.zeros(1), jnp.zeros(1), steps=300, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 1), jnp.round(result.v, 1))
        [0.5] [0.5]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    lower_steps: int = 10
    rounds: int = 5
    gamma: float = 50.0
    penalty: float = 1.0

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps", "rounds")
        for name in ("gamma", "penalty"):
            value = require_number("BLOCC", name, getattr(self, name))
            if not value > 0:
                raise InputError(f"BLOCC: {name} is {value:g}, and must be positive.")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse upper constraints, and what no solver can treat."""
        known = base.Known.FUNCTION
        base.check(self, problem, u, v, batch, lower=known, lower_sets=True, lower_constraints=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with multipliers zero."""
        values = problem.lower_constraint_values(u, v, base.lower_data(batch, 0))
        zero = tuple(jnp.zeros_like(x) for x in values)
        start = Saddle(v, zero)
        return base.State(u, v, self.upper_optimizer.init(u), (), (start, start))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move both points and their multipliers, and u once."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        u, data = state.u, base.lower_data(batch, self.lower_steps - 1)

        def moved(start: Saddle, weight: float) -> Saddle:
            def one(carry: Saddle, t: Any) -> tuple[Saddle, None]:
                lagrangian = pulled_lagrangian_of(problem, self.penalty, carry.multipliers, weight, batch.upper)
                descent = base.Descent(lagrangian, u, self.lower_optimizer)
                key = jax.random.fold_in(lower_key, t)
                opt = self.lower_optimizer.init(carry.v)
                v, _, _ = descent.moves(carry.v, opt, batch, self.lower_steps, key)
                return Saddle(v, raised(problem, self.penalty, u, v, data, carry.multipliers)), None

            return jax.lax.scan(one, start, jnp.arange(self.rounds))[0]

        own, pulled = state.memory
        if problem.lower_start is not None:
            v = base.start_of_step(problem, state, batch, start_key)
            own, pulled = own._replace(v=v), pulled._replace(v=v)
        own, pulled = moved(own, 0.0), moved(pulled, 1 / self.gamma)
        f = derivatives.upper(problem, u, pulled.v, batch.upper, upper_key)
        at_f, at_g = (
            derivatives.lower_slopes(lagrangian_of(problem, self.penalty, x.multipliers), u, x.v, data, upper_key)[1]
            for x in (pulled, own)
        )
        direction = jax.tree.map(lambda d, a, b: (d + self.gamma * (a - b)).astype(d.dtype), f.grad_u, at_f, at_g)
        after, upper_opt = base.move_upper(self, problem, state, direction)
        loss = derivatives.upper(problem, u, own.v, batch.upper, upper_key).loss
        g, slope = derivatives.lower_gradient(problem, u, own.v, data, upper_key)
        extra = {"violation": violation(problem, u, own.v, data), "multiplier_norm": optax.tree.norm(own.multipliers)}
        info = base.Info(loss, g, optax.tree.norm(direction), optax.tree.norm(slope), extra)
        return base.State(after, own.v, upper_opt, (), (own, pulled)), info

    def caution(self, state: base.State, info: base.Info) -> str | None:
        """Return a sentence if the multipliers grow to the end, as they do where the lower set is empty."""
        return caution("BLOCC", info)
