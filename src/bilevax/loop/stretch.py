"""The compiled loop: several steps of a solver in one call."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers.base import Info, Solver, State


class Carry(NamedTuple):
    """The carry of the loop: the state, and whether all steps so far were finite."""

    state: State
    alive: Bool[Array, ""]


@compiled("solver", "problem")
def one_step(solver: Solver, problem: Problem, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Info]:
    """One step, under jit: it is traced once for its shapes and for the loop together."""
    return solver.step(problem, state, batch, key)


@compiled("solver", "problem", "capacity", "shardings", donate=("carry",))
def stretch(
    solver: Solver,
    problem: Problem,
    capacity: int,
    carry: Carry,
    source: Source,
    key: PRNGKeyArray,
    first: Int[ArrayLike, ""],
    count: Int[ArrayLike, ""],
    shardings: tuple[NamedSharding, ...] = (),
) -> tuple[Carry, Info, Int[Array, ""]]:
    """Steps first, ..., first + count - 1 (count <= capacity), their Info, and how many were finite.

    Args:
        solver, problem: the solver and its problem.
        capacity: the leading axis of Info.
        carry: the carry before the first step; its arrays are donated.
        source: the batches.
        key: the key of the whole solve.
        first, count: the steps. They are traced, so a shorter last stretch needs no program of its own.
        shardings: the shardings of the state's arrays on a mesh; empty on one device. Without them XLA might choose
            others, and the next stretch would compile again.
    """
    batch_key, step_key = jax.random.split(key)

    def one(i: Int[ArrayLike, ""], state: State) -> tuple[State, Info]:
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
    """`stretch` with the arguments that are the same in every call of a solve.

    Attributes:
        empty: the Info of no steps, on the host.
    """

    solver: Solver
    problem: Problem
    key: PRNGKeyArray
    shardings: tuple[NamedSharding, ...]
    empty: Info

    def __call__(
        self, capacity: int, carry: Carry, source: Source, first: int, count: int
    ) -> tuple[Carry, Info, Int[Array, ""]]:
        """Steps first, ..., first + count - 1; see `stretch`."""
        return stretch(self.solver, self.problem, capacity, carry, source, self.key, first, count, self.shardings)


def initial_state(
    solver: Solver, problem: Problem, u: PyTree[Float[Array, "..."]], v: PyTree[Float[Array, "..."]], batch: Batch
) -> State:
    """The solver's state at (u, v), without weak types: with weak types the second stretch would compile again.

    Every array is a copy, since a stretch donates the state: an optimizer's `init` may return an array of the caller,
    such as a learning rate or a key, and may return one array twice (L-BFGS).
    """

    def own(x: Any) -> Array:
        return jnp.array(jax.lax.convert_element_type(x, jnp.result_type(x)), copy=True)

    return jax.tree.map(own, solver.init(problem, u, v, batch))


def info_of_step(solver: Solver, problem: Problem, state: State, batch: Batch) -> Info:
    """The shapes of a step's Info.

    Raises:
        InputError: the step cannot be traced.
    """
    try:
        return jax.eval_shape(functools.partial(one_step, solver, problem), state, batch, jax.random.key(0))[1]
    except InputError:
        raise
    except Exception as error:  # from an optimizer, or from a loss that JAX cannot differentiate
        text = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{type(solver).__name__} cannot take a step on this problem ({type(error).__name__}: {text}). The losses "
            "can be evaluated, so their derivatives or the optimizers' updates fail."
        ) from error
