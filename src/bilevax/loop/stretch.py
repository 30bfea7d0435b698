"""The compiled loop: several steps of a solver in one call."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.loop.rows import Rows, empty_rows, joined, unpacked, written
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem
from bilevax.solvers import base
from bilevax.solvers.base import Info, Solver, State

# XLA runs a loop body on CPUs without its scheduler, at a third of the time, if no array in it has more bytes.
SMALL = 512
LEAST = 8  # steps of a block


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

    def kept(state: State) -> State:
        if not shardings:
            return state
        return jax.lax.with_sharding_constraint(state, jax.tree.unflatten(jax.tree.structure(state), shardings))

    shapes = jax.eval_shape(one, 0, carry.state)[1]
    # A single step keeps the state before it by a choice between the two: a copy for a replay would cost more.
    if capacity == 1 or base.own_keep_finite(solver) is not None:

        def chosen(i: Int[ArrayLike, ""], carry: Carry) -> tuple[Carry, Info]:
            after, info = one(i, carry.state)
            after, alive = base.keep_finite(solver, carry.state, after, info)
            return Carry(kept(after), alive), info

        taken, carry, infos = _steps(chosen, carry, shapes, capacity, count)
    else:

        def tested(i: Int[ArrayLike, ""], carry: Carry) -> tuple[Carry, Info]:
            after, info = one(i, carry.state)
            return Carry(kept(after), base.is_finite(after, info)), info

        taken, carry, infos = _replayed(tested, carry, shapes, capacity, count)
    if shardings:
        whole = NamedSharding(shardings[0].mesh, PartitionSpec())
        infos, taken, alive = jax.lax.with_sharding_constraint((infos, taken, carry.alive), whole)
        carry = carry._replace(alive=alive)
    return carry, infos, taken


Step = Callable[[Any, Carry], tuple[Carry, Info]]  # (number of the step, carry) -> the carry after it, its Info
Looped = tuple[Int[Array, ""], Carry, Any]  # the number of finite steps, the carry after them, and their Info


def _replayed(step: Step, carry: Carry, shapes: Info, capacity: int, count: Int[ArrayLike, ""]) -> Looped:
    """Take steps, and after one that is not finite take those before it once more, from the start.

    So the loop over steps updates the state in place, where a choice between the states before and after a step needs
    three more passes over the state. A replay gives the same as before: a step is a function of its number and the
    state. If it is not, since a loss calls impure code, the replay may end earlier, and is followed by a shorter one.
    """

    def attempt(loop: Any) -> Any:
        limit, _, alive, _, _ = loop
        taken, after, infos = _steps(step, Carry(carry.state, jnp.asarray(True)), shapes, capacity, limit)
        return taken, after.alive, alive & after.alive, after.state, infos

    infos = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), shapes)
    limit = jnp.where(carry.alive, count, 0).astype(jnp.int32)
    start = limit, jnp.asarray(False), carry.alive, carry.state, infos
    taken, _, alive, state, infos = jax.lax.while_loop(lambda loop: ~loop[1], attempt, start)
    return taken, Carry(state, alive), infos


def _steps(step: Step, carry: Carry, shapes: Info, capacity: int, count: Int[ArrayLike, ""]) -> Looped:
    """Take steps until one is not finite; of a small state in blocks, whose Info is written in one piece."""
    block = min(capacity, SMALL // max(x.nbytes for x in empty_rows(1, shapes)))
    if block < LEAST or max(x.nbytes for x in jax.tree.leaves(carry.state)) > SMALL:
        taken, carry, rows = _until(step, 0, carry, empty_rows(capacity, shapes), count)
        return taken, carry, unpacked(rows, shapes, capacity)

    def several(loop: Any) -> Any:
        first, carry, rows = loop
        some = empty_rows(block, shapes)
        taken, carry, some = _until(step, first, carry, some, jnp.minimum(block, count - first))
        return first + taken, carry, joined(rows, some, first)

    start = jnp.zeros((), jnp.int32), carry, empty_rows(capacity + block, shapes)
    taken, carry, rows = jax.lax.while_loop(lambda loop: (loop[0] < count) & loop[1].alive, several, start)
    return taken, carry, unpacked(rows, shapes, capacity)


def _until(step: Step, first: Int[ArrayLike, ""], carry: Carry, rows: Rows, count: Int[ArrayLike, ""]) -> Looped:
    """Take steps from `first` on until one is not finite, at most `count`; rows of the Info in place of the Info."""

    def one(loop: Any) -> Any:
        i, carry, rows = loop
        carry, info = step(first + i, carry)
        return i + carry.alive, carry, written(rows, info, i)

    start = jnp.zeros((), jnp.int32), carry, rows
    return jax.lax.while_loop(lambda loop: (loop[0] < count) & loop[1].alive, one, start)


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
