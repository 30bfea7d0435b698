"""The compiled loop: some steps of a solver in one call."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bilevax._checks import InputError, PyTree
from bilevax._programs import compiled
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers.base import Info, Solver


class Carry(NamedTuple):
    """What goes from step to step: the state, and whether all of it has been finite so far (a boolean scalar)."""

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
    shardings: tuple[NamedSharding, ...] = (),
) -> tuple[Carry, Info, Any]:
    """Steps first, ..., first + count - 1 (count <= capacity), their Info, and how many were finite.

    Args:
        solver, problem: what takes the steps, and on what.
        capacity: steps for which there is room; the leading axis of Info.
        carry: the state to start from; its arrays are donated.
        source: where the batches come from.
        key: the key of the whole solve.
        first, count: the steps. They are traced, so the last, shorter stretch needs no program of its own.
        shardings: on a mesh those of the state's arrays: without them XLA might choose others, and the next stretch
            would compile again. Empty on one device.
    """
    batch_key, step_key = jax.random.split(key)

    def one(i: Any, state: Any) -> tuple[Any, Info]:
        step = first + i
        batch = source.at(step, batch_key)
        return one_step(solver, problem, state, batch, jax.random.fold_in(step_key, step))

    shapes = jax.eval_shape(one, 0, carry.state)[1]
    infos = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), shapes)

    def body(loop: Any) -> Any:
        i, carry, infos = loop
        state, info = one(i, carry.state)
        state, alive = base.keep_finite(solver, carry.state, state, info)
        if shardings:
            state = jax.lax.with_sharding_constraint(state, jax.tree.unflatten(jax.tree.structure(state), shardings))
        infos = jax.tree.map(lambda all, x: jax.lax.dynamic_update_index_in_dim(all, x, i, 0), infos, info)
        return i + alive, Carry(state, alive), infos

    def more(loop: Any) -> Any:
        i, carry, _ = loop
        return (i < count) & carry.alive

    taken, carry, infos = jax.lax.while_loop(more, body, (jnp.zeros((), jnp.int32), carry, infos))
    if shardings:
        whole = NamedSharding(shardings[0].mesh, PartitionSpec())
        infos, taken, alive = jax.lax.with_sharding_constraint((infos, taken, carry.alive), whole)
        carry = carry._replace(alive=alive)
    return carry, infos, taken


class Program(NamedTuple):
    """`stretch` for one solve, with what stays the same from call to call.

    `empty` is the Info of no steps, on the host.
    """

    solver: Solver
    problem: Problem
    key: Any
    shardings: tuple[NamedSharding, ...]
    empty: Info

    def __call__(self, capacity: int, carry: Carry, source: Any, first: int, count: int) -> tuple[Carry, Info, Any]:
        """Steps first, ..., first + count - 1: see `stretch`."""
        return stretch(self.solver, self.problem, capacity, carry, source, self.key, first, count, self.shardings)


def initial_state(solver: Solver, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> Any:
    """The solver's state at (u, v), in strong types: with weak ones the second stretch would compile again.

    Every array is a copy, since a stretch donates the state: an optimizer's `init` may return an array of the caller's,
    such as a learning rate or a key, and may return one array twice (L-BFGS).
    """

    def own(x: Any) -> Any:
        return jnp.array(jax.lax.convert_element_type(x, jnp.result_type(x)), copy=True)

    return jax.tree.map(own, solver.init(problem, u, v, batch))


def info_of_step(solver: Solver, problem: Problem, state: Any, batch: Batch) -> Info:
    """The shapes of a step's Info.

    Raises:
        InputError: the step cannot be traced.
    """
    try:
        return jax.eval_shape(functools.partial(one_step, solver, problem), state, batch, jax.random.key(0))[1]
    except InputError:
        raise
    except Exception as error:  # of the optimizers, or of a loss whose derivatives JAX cannot take
        text = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{type(solver).__name__} cannot take a step on this problem ({type(error).__name__}: {text}). The losses "
            "can be evaluated, so their derivatives or the optimizers' updates fail."
        ) from error
