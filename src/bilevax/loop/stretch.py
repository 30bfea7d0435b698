"""The compiled loop: some steps of a solver in one call."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bilevax._programs import compiled
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers.base import Info, Solver


class Carry(NamedTuple):
    """What goes from step to step: the state, and whether all of it has been finite so far."""

    state: Any
    alive: Any


@compiled("solver", "problem")
def one_step(solver: Solver, problem: Problem, state: Any, batch: Batch, key: Any) -> tuple[Any, Info]:
    """One step. Under jit, so that asking for its shapes and compiling it in a loop trace it but once."""
    return solver.step(problem, state, batch, key)


@compiled("solver", "problem", "capacity", "shardings", donate=("carry",))
def stretch(
    solver: Solver,
    problem: Problem,
    capacity: int,
    carry: Carry,
    source: Source,
    key: Any,
    first: Any,
    count: Any,
    shardings: tuple[NamedSharding, ...] | None = None,
) -> tuple[Carry, Info, Any]:
    """Steps first, ..., first + count - 1 (count <= capacity), their Info, and how many were finite.

    `count` is an argument, so the last, shorter stretch needs no program of its own. `shardings`, where the solve has
    a layout, are those of the state's arrays: without them XLA might choose others, and the next stretch would compile
    again.
    """
    batch_key, step_key = jax.random.split(key)

    def one(i: Any, state: Any) -> tuple[Any, Info]:
        step = first + i
        batch = source.at(step, batch_key)
        return one_step(solver, problem, state, batch, jax.random.fold_in(step_key, step))

    shapes = jax.eval_shape(one, 0, carry.state)[1]
    told = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), shapes)

    def body(loop: Any) -> Any:
        i, carry, told = loop
        state, info = one(i, carry.state)
        alive = base.still_alive(state, info)
        if not hasattr(state, "alive"):  # members of a Vectorized are held back one by one, by itself
            state = jax.tree.map(lambda new, old: jnp.where(alive, new, old), state, carry.state)
        if shardings is not None:
            state = jax.lax.with_sharding_constraint(state, jax.tree.unflatten(jax.tree.structure(state), shardings))
        told = jax.tree.map(lambda all, x: jax.lax.dynamic_update_index_in_dim(all, x, i, 0), told, info)
        return i + alive, Carry(state, alive), told

    def more(loop: Any) -> Any:
        i, carry, _ = loop
        return (i < count) & carry.alive

    taken, carry, told = jax.lax.while_loop(more, body, (jnp.zeros((), jnp.int32), carry, told))
    if shardings is not None:
        whole = NamedSharding(shardings[0].mesh, PartitionSpec())
        told, taken, alive = jax.lax.with_sharding_constraint((told, taken, carry.alive), whole)
        carry = carry._replace(alive=alive)
    return carry, told, taken
