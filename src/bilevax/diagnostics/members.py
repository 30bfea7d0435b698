"""The best of several solves that started from different points."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, require_count, require_number
from bilevax._programs import compiled
from bilevax.loop.result import Result
from bilevax.problem import Batch, Problem, data_of_loss
from bilevax.solvers import base
from bilevax.solvers.vectorized import Members


class Best(NamedTuple):
    """The member that `best_member` chose.

    Attributes:
        member: its number.
        u, v: its iterates.
        upper_loss: f(u, v).
        upper_losses: f of every member.
        excess: g(u, v) of every member, minus the lowest g at its u that was found. It is not small where v is in the
            wrong valley of g.
    """

    member: int
    u: PyTree
    v: PyTree
    upper_loss: float
    upper_losses: Float[np.ndarray, " members"]
    excess: Float[np.ndarray, " members"]


def best_member(
    problem: Problem,
    result: Result,
    batch: Batch | None = None,
    *,
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2),
    steps: int = 200,
    tolerance: float = 1e-3,
) -> Best:
    """Return the member of a solve by `Vectorized` with the lowest f, among those whose v minimises g at their u.

    If g(u, .) has several local minimisers, each member finds the one of its start. A low f at a v that does not
    minimise g is no solution. So for every member, v descends on g at its u from the v of all members, and the lowest
    value found stands for the minimum.

    Args:
        problem: the problem.
        result: of `solve(Vectorized(solver), ...)`.
        batch: as for that solve, with a leading axis of members; None if the losses take no data.
        lower_optimizer, steps: of these descents.
        tolerance: how far g may be above that value, relative to the larger of 1 and its size.

    Raises:
        InputError: the result has no members; none of them is within the tolerance; the problem has lower constraints.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import Problem, Vectorized, VPBGD, diagnostics, solve
        >>> problem = Problem(  # g has the minimisers 1 and -1, and f prefers -1
        ...     lambda u, v, data: jnp.sum((v + 0.5) ** 2 + (u - v) ** 2),
        ...     lambda u, v, data: 5 * jnp.sum((v**2 - 1) ** 2),
        ... )
        >>> starts = jnp.array([[-2.0], [0.5], [2.0]])
        >>> solver = Vectorized(VPBGD(optax.sgd(0.05), optax.sgd(0.01)))
        >>> result = solve(solver, problem, jnp.zeros((3, 1)), starts, steps=2000, key=jax.random.key(0))
        >>> best = diagnostics.best_member(problem, result, lower_optimizer=optax.sgd(0.01))
        >>> best.member, round(float(best.v[0]), 2), jnp.round(best.upper_losses, 1).tolist()
        (0, -1.0, [0.2, 2.2, 2.2])
    """
    require_count("best_member", "steps", steps)
    require_number("best_member", "tolerance", tolerance)
    if not isinstance(getattr(result.state, "memory", None), Members):
        raise InputError("best_member: the result has no members. Pass that of solve(Vectorized(solver), ...).")
    if problem.lower_constraints:
        raise InputError("best_member: the problem has lower_constraints, which its descents on g would leave.")
    batch = Batch() if batch is None else batch
    upper, own, lowest = _values(problem, lower_optimizer, steps, result.u, result.v, batch)
    excess = np.asarray(own - lowest)
    f = np.asarray(upper)
    good = np.asarray(result.state.memory.alive) & np.isfinite(f)
    good &= excess <= tolerance * np.maximum(1, np.abs(np.asarray(lowest)))
    if not good.any():
        raise InputError(
            f"best_member: no member is finite and has a v with g within {tolerance:g} of the lowest value found at "
            f"its u; the closest is {np.min(excess):.3g} above it. Take more steps or starts, or raise tolerance."
        )
    i = int(np.argmin(np.where(good, f, np.inf)))
    u, v = jax.tree.map(lambda x: x[i], (result.u, result.v))
    return Best(i, u, v, float(f[i]), f, excess)


@compiled("problem", "optimizer", "steps")
def _values(
    problem: Problem, optimizer: optax.GradientTransformation, steps: int, u: PyTree, v: PyTree, batch: Batch
) -> tuple[Float[Array, " members"], Float[Array, " members"], Float[Array, " members"]]:
    """Return f and g of every member, and the lowest g at its u from the v of all members."""
    key = jax.random.key(0)

    def of_member(u: PyTree, own: PyTree, batch: Batch) -> tuple[Any, Any, Any]:
        data = data_of_loss(batch.lower)
        descent = base.Descent(problem, u, optimizer)

        def end(v: PyTree) -> Any:
            def one(carry: Any, t: Any) -> tuple[Any, None]:
                return descent.move(carry, data, jax.random.fold_in(key, t))[0], None

            (v, _), _ = jax.lax.scan(one, (v, optimizer.init(v)), jnp.arange(steps))
            return problem.lower(u, v, data, key)

        ends = jax.vmap(end)(v)
        here = problem.lower(u, own, data, key)
        lowest = jnp.minimum(here, jnp.min(jnp.where(jnp.isfinite(ends), ends, jnp.inf)))
        return problem.upper(u, own, data_of_loss(batch.upper), key), here, lowest

    return jax.vmap(of_member)(u, v, batch)
