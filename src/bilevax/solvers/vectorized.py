"""A solver for many problems at once, on a leading axis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from bilevax._arrays import check_finite, check_variable, require_arrays
from bilevax._checks import InputError
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


class Members(NamedTuple):
    """The stacked memories of the members.

    Attributes:
        memory: the memory of the members' solver, stacked.
        alive: False for a member with an iterate or loss that was not finite.
    """

    memory: PyTree
    alive: Bool[Array, " members"]


@dataclass(frozen=True)
class Vectorized:
    """Many problems of one shape at once (seeds, trials, grids): `solver` under vmap.

    Every leaf of u, v and the batches has a leading axis of members (`Stacked` samples one batch for each member). If
    an iterate or loss of a member is not finite, the member keeps its last finite state, its Info is NaN from then on,
    and the other members continue; the solve ends when no member is left.

    Args:
        solver: the solver of one member.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Alternating, Problem, Vectorized, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((u - v) ** 2), lambda u, v, data: jnp.sum((v - 1) ** 2))
        >>> starts = jnp.array([[0.0], [5.0]])
        >>> result = solve(
        ...     Vectorized(Alternating()), problem, starts, starts, steps=2000, key=jax.random.key(0)
        ... )
        >>> print(jnp.round(result.u.ravel(), 2))
        [1. 1.]
    """

    solver: base.Solver

    def __post_init__(self) -> None:
        base.require_solver("Vectorized", self.solver)

    @property
    def uses_whole(self) -> bool:
        """Whether the solver of the members takes minibatches with the whole data beside them."""
        return getattr(self.solver, "uses_whole", False)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse leading axes that differ, and a first member that `solver` does not handle."""
        check_variable("u", u)
        check_variable("v", v)
        require_arrays("batch", batch)
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves((u, v, batch))}
        if len(sizes) != 1 or () in sizes:
            found = [*sorted(s[0] for s in sizes if s), *(["none"] if () in sizes else [])]
            raise InputError(
                f"Vectorized: the leaves of u, v and the batch have leading axes [{', '.join(map(str, found))}]. "
                "All must have the same leading axis of members; add it with jnp.stack or jnp.broadcast_to."
            )
        check_finite("batch", batch)
        u, v, batch = jax.tree.map(lambda x: x[0], (u, v, batch))
        base.check_moves(self.solver, batch)
        self.solver.check(problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the states of the members at (u, v)."""
        members = jax.vmap(lambda u, v, batch: self.solver.init(problem, u, v, batch))(u, v, batch)
        alive = jnp.ones(jax.tree.leaves(u)[0].shape[0], bool)
        return members._replace(memory=Members(members.memory, alive))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Take one step of every member, with its own key."""

        def one(state: base.State, batch: Batch, key: PRNGKeyArray) -> tuple[base.State, base.Info]:
            member, alive = _member(state), state.memory.alive
            moved, info = self.solver.step(problem, member, batch, key)
            alive &= base.is_finite(moved, info)
            member = optax.tree.where(alive, moved, member)
            info = jax.tree.map(
                lambda x: jnp.where(alive, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, info
            )
            return member._replace(memory=Members(member.memory, alive)), info

        keys = jax.random.split(key, state.memory.alive.shape[0])
        return jax.vmap(one)(state, batch, keys)

    def keep_finite(self, before: base.State, after: base.State, info: base.Info) -> tuple[base.State, Any]:
        """Return `after`, in which every failed member is at its last finite state, and whether a member is left."""
        return after, jnp.any(after.memory.alive)

    def caution(self, state: base.State, info: base.Info) -> str | None:
        """Return the sentence of the first member that has one."""
        of_member = getattr(self.solver, "caution", None)
        if of_member is None:
            return None
        for i in np.flatnonzero(state.memory.alive):
            own, its = jax.tree.map(lambda x, i=i: x[i], _member(state)), jax.tree.map(lambda x, i=i: x[:, i], info)
            text = of_member(own, its)
            if text is not None:
                return f"Member {i}: {text}"
        return None

    def over_members(self, function: Callable[..., Any], state: base.State, batch: Batch, *rest: Any) -> Any:
        """Return function(member's state, member's batch, *rest) for all members, stacked."""
        return jax.vmap(function, in_axes=(0, 0, *(None for _ in rest)))(_member(state), batch, *rest)


def _member(state: base.State) -> base.State:
    """Return the state of a member, or the stacked states of all members, in the form of their solver."""
    return state._replace(memory=state.memory.memory)
