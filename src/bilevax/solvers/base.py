"""The interface of a solver, and what solvers share: the state, the checks, the moves of v and of u.

A solver is a frozen dataclass of settings with three methods: `check` refuses problems that it does not handle, `init`
makes the initial state, and `step` takes one step: `lower_steps` moves of v, then one move of u.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax import derivatives, fixed_points
from bilevax._checks import InputError, described
from bilevax._optimizers import Objective, check_optimizer, update
from bilevax.problem import Batch, PartAndWhole, PerMove, Problem, identity

COMPARES = "It compares g at points that move by projected descent, which needs"  # why a projection has to be one


class State(NamedTuple):
    """The state of a solver, which one step passes to the next.

    Attributes:
        u, v: the iterates.
        upper_opt, lower_opt: the states of their optimizers; empty if a solver has no such optimizer.
        memory: further state of the method, such as multipliers and the stage: any pytree of arrays.
    """

    u: PyTree[Float[Array, "..."]]
    v: PyTree[Float[Array, "..."]]
    upper_opt: optax.OptState
    lower_opt: optax.OptState
    memory: PyTree = ()


class Info(NamedTuple):
    """Scalars of one step; in a history, arrays with an entry for each step. No step depends on them.

    Losses and gradients are those that the step computes anyway, so they may be at a (u, v) before its last move.

    Attributes:
        upper_loss: f(u, v).
        lower_loss: g(u, v).
        upper_grad_norm: the norm of the direction along which u moved.
        lower_grad_norm: |grad_v g(u, v)|. A method with two lower variables records it at the one that minimises g:
            `BVFIM` at z, since its v does not minimise g. `SparseHO` records |v - prox(u, v - rate grad_v g)| / rate.
        extra: further scalars of the method, by name.
    """

    upper_loss: Float[Array | np.ndarray, "*steps"]
    lower_loss: Float[Array | np.ndarray, "*steps"]
    upper_grad_norm: Float[Array | np.ndarray, "*steps"]
    lower_grad_norm: Float[Array | np.ndarray, "*steps"]
    extra: Mapping[str, Shaped[Array | np.ndarray, "*steps"]]


@runtime_checkable
class Solver(Protocol):
    """The interface of a solver. `init` and `step` are pure.

    A solver may also have a method `caution(state, info)`, called at the end of a solve with the last state and the
    history. If it returns a sentence, the solve warns with it: it says why the result may not be a solution.
    """

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Raise InputError for a problem that this solver does not handle."""
        ...

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> State:
        """Return the state at (u, v). Only the shapes of `batch` are used."""
        ...

    def step(self, problem: Problem, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Info]:
        """Return the state after one step, and its Info."""
        ...


def require_solver(owner: str, solver: Any) -> None:
    """Refuse an object that is not a solver: a class in place of an instance, or an object without the three methods.

    Raises:
        InputError: it is a class, or a method is missing.
    """
    if isinstance(solver, type):
        raise InputError(
            f"{owner}: solver is {described(solver)}. Pass an instance of it: {solver.__name__}(), with its settings."
        )
    missing = [name for name in ("check", "init", "step") if not callable(getattr(solver, name, None))]
    if missing:
        raise InputError(
            f"{owner}: solver is {described(solver)}, which has no {' and no '.join(missing)}. Pass one of "
            "bilevax.solvers, such as Penalty()."
        )


def check_moves(solver: Any, batch: Batch) -> None:
    """Refuse a PerMove without exactly one lower batch for each of the solver's lower moves.

    A solver that also uses one for each product with the Hessian has a property `lower_batches`, their number. A
    PartAndWhole is refused, unless the solver has `uses_whole`.
    """
    if not getattr(solver, "uses_whole", False) and any(isinstance(x, PartAndWhole) for x in batch):
        raise InputError(
            f"{type(solver).__name__} takes minibatches alone, and these have the whole data beside them. Pass the "
            "source itself, without bilevax.WithWhole around it."
        )
    moves = getattr(solver, "lower_batches", getattr(solver, "lower_steps", None))
    if not isinstance(batch.lower, PerMove) or moves is None:
        return
    for path, x in jax.tree_util.tree_leaves_with_path(batch.lower.data):
        found = jnp.shape(x)[:1]
        if found != (moves,):
            raise InputError(
                f"batch.lower is a PerMove whose leaf{jax.tree_util.keystr(path)} has "
                f"{f'a leading axis of {found[0]}' if found else 'no axis'}, and {type(solver).__name__} takes {moves} "
                f"lower batches in a step. Pass one for each: per_move={moves}."
            )


def refuse_constraints(solver: Any, problem: Problem) -> None:
    """Refuse a problem with constraints, for a solver that does not handle them."""
    if problem.constraints:
        name, n = type(solver).__name__, len(problem.constraints)
        raise InputError(
            f"{name} does not handle upper-level constraints, and this problem has {n}. Use Penalty, or state the "
            "constraint as a projection (project_upper) if it is on u only."
        )


def refuse_lower_constraints(solver: Any, problem: Problem) -> None:
    """Refuse a problem with lower constraints, for a solver that does not handle them."""
    if problem.lower_constraints:
        name, n = type(solver).__name__, len(problem.lower_constraints)
        raise InputError(
            f"{name} does not handle lower_constraints, and this problem has {n}. Use BLOCC or BiCGAFFA; or, if "
            "they form a set that has a projection, state it as project_lower, and use Implicit."
        )


def refuse_lower_sets(solver: Any, problem: Problem) -> None:
    """Refuse a problem with a `project_lower`, for a solver that would be wrong at the boundary of the set."""
    if problem.project_lower is not identity:
        name = type(solver).__name__
        raise InputError(
            f"{name} assumes grad_v g = 0 at the lower solution, and this problem has a project_lower, so that this "
            "fails on the boundary of the set. Use Implicit or ReverseMode; or leave project_lower out if the lower "
            "solutions are inside the set."
        )


def refuse_moving_sets(solver: Any, problem: Problem) -> None:
    """Refuse a `project_lower` that depends on u, for a solver that compares g at points of one set."""
    if problem.set_moves:
        name = type(solver).__name__
        raise InputError(
            f"{name} compares values of g at points of one set, and this project_lower depends on u, so that the set "
            "moves with u. Use Implicit or ReverseMode."
        )


class Known(enum.Enum):
    """What a solver passes to an optimizer besides the gradient."""

    NOTHING = "nothing: the direction is not a gradient, or it is one of a function that changes with the stage"
    VALUE = "the value of the loss"
    FUNCTION = "the value of the loss, and the loss as a function of the variable"


def check_optimizers(
    solver: Any,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch,
    upper: Known = Known.NOTHING,
    lower: Known = Known.NOTHING,
) -> None:
    """Refuse an optimizer of the solver that cannot move u or v; see `check_optimizer`.

    Args:
        solver, problem, u, v, batch: as for `Solver.check`.
        upper: what the solver passes to `upper_optimizer` about f.
        lower: what the solver passes to `lower_optimizer` about g.
    """
    key = jax.random.key(0)

    def f(u: PyTree) -> Any:
        return problem.upper(u, v, batch.upper, key)

    def g(v: PyTree) -> Any:
        return problem.lower(u, v, lower_data(batch, 0), key)

    sides = (
        ("upper_optimizer", "u", u, f, upper, problem.project_upper),
        ("lower_optimizer", "v", v, g, lower, problem.project_lower),
    )
    for name, variable, x, loss, known, project in sides:
        if not hasattr(solver, name):
            continue
        objective = None if known is Known.NOTHING else Objective(jax.eval_shape(loss, x))
        if objective is not None and known is Known.FUNCTION:
            objective = objective._replace(function=loss, gradient=lambda x: x)
        owner, projected = type(solver).__name__, project is not identity
        check_optimizer(owner, name, getattr(solver, name), variable, x, objective, projected)


def check(
    solver: Any,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch,
    upper: Known = Known.NOTHING,
    lower: Known = Known.NOTHING,
    *,
    constraints: bool = False,
    lower_sets: bool = False,
    moving_sets: bool = False,
    lower_constraints: bool = False,
) -> None:
    """Check a problem, as most solvers need it.

    Args:
        solver, problem, u, v, batch: as for `Solver.check`.
        upper, lower: as for `check_optimizers`.
        constraints: whether the solver handles upper-level constraints.
        lower_sets: whether the solver handles a problem with a `project_lower`.
        moving_sets: whether also one that depends on u.
        lower_constraints: whether the solver handles `lower_constraints`.

    Raises:
        InputError: the solver does not handle the problem; an optimizer cannot move its variable.
    """
    if not constraints:
        refuse_constraints(solver, problem)
    if not lower_constraints:
        refuse_lower_constraints(solver, problem)
    if not (lower_sets or moving_sets):
        refuse_lower_sets(solver, problem)
    if not moving_sets:
        refuse_moving_sets(solver, problem)
    check_problem(solver, problem, u, v, batch)
    if lower_sets:
        fixed_points.require_projection(type(solver).__name__, "project_lower", problem, u, v, COMPARES)
    check_optimizers(solver, problem, u, v, batch, upper, lower)


def check_problem(solver: Any, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
    """Refuse what no solver can treat, a `project_upper` that is no projection included."""
    problem.check(u, v, batch)
    fixed_points.require_idempotent(type(solver).__name__, problem, u)


def start(solver: Any, u: PyTree, v: PyTree, memory: Any = ()) -> State:
    """Return the state at (u, v) of a solver with an `upper_optimizer` and a `lower_optimizer`."""
    return State(u, v, solver.upper_optimizer.init(u), solver.lower_optimizer.init(v), memory)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether every entry of a tree of floating arrays is finite."""
    # x - x is 0 or NaN, and its sum is one pass over x. XLA's CPU compiler writes isfinite(x) to memory, then reads it.
    return jnp.all(jnp.stack([jnp.isfinite(jnp.sum(x - x)) for x in jax.tree.leaves(tree)]))


def keep_finite(solver: Solver, before: State, after: State, info: Info) -> tuple[State, Bool[Array, ""]]:
    """Return the state to continue from after a step, and whether to continue.

    These are `after` and True if the iterates and losses are finite, otherwise `before` and False. A solver for many
    problems at once decides for each problem, by its own method `keep_finite(before, after, info)`.
    """
    of_its_own = own_keep_finite(solver)
    if of_its_own is not None:
        return of_its_own(before, after, info)
    alive = is_finite(after, info)
    return optax.tree.where(alive, after, before), alive


def own_keep_finite(solver: Solver) -> Callable[[State, State, Info], tuple[State, Bool[Array, ""]]] | None:
    """Return the solver's own method `keep_finite`, or None if it has none."""
    return getattr(solver, "keep_finite", None)


def over_members(solver: Solver, function: Callable[..., Any], state: State, *rest: Any) -> Any:
    """Return function(state, *rest); for a solver with a method `over_members`, the results of all members."""
    return getattr(solver, "over_members", _once)(function, state, *rest)


def _once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def is_finite(state: State, info: Info) -> Bool[Array, ""]:
    """Return whether the iterates and losses of a step are finite."""
    return all_finite((state.u, state.v, info.upper_loss, info.lower_loss))


def move(
    optimizer: optax.GradientTransformation,
    opt_state: optax.OptState,
    x: PyTree,
    gradient: PyTree,
    project: Callable[[PyTree], PyTree],
    scale: Any = None,
    objective: Objective | None = None,
) -> tuple[PyTree, Any]:
    """Return a variable after one update by an optax optimizer, times `scale`, and the projection; and its state."""
    updates, opt_state = update(optimizer, gradient, opt_state, x, objective)
    if scale is not None:
        updates = jax.tree.map(lambda d: (scale * d).astype(d.dtype), updates)
    moved: Any = optax.apply_updates(x, updates)
    return project(moved), opt_state


def stationarity(x: PyTree, gradient: PyTree, project: Callable[[PyTree], PyTree]) -> Float[Array, ""]:
    """Return |x - project(x - gradient)|^2, which is |gradient|^2 without a projection."""
    if project is identity:
        return optax.tree.norm(gradient, squared=True)
    moved = project(optax.tree.sub(x, gradient))
    return optax.tree.norm(optax.tree.sub(x, moved), squared=True)


def lower_data(batch: Batch, move: Int[ArrayLike, ""]) -> PyTree:
    """Return the lower batch of one move: that of the step, or the move's slice of a PerMove."""
    if isinstance(batch.lower, PerMove):
        return jax.tree.map(lambda x: x[move], batch.lower.data)
    return batch.lower


@dataclass(frozen=True)
class Descent:
    """Moves of v at a fixed u, along grad_v g or along another direction.

    Args:
        problem: the problem; each move ends with its `project_lower`.
        u: the fixed upper variable.
        optimizer: any optax optimizer.
        direction: (v, data, key) -> the gradient for the optimizer, shaped like v; None for grad_v g.
        scale: factor on the optimizer's updates; None for 1.
    """

    problem: Problem
    u: PyTree
    optimizer: optax.GradientTransformation
    direction: Callable[[PyTree, PyTree, Any], PyTree] | None = None
    scale: Any = None

    def moves(self, v: PyTree, opt_state: Any, batch: Batch, steps: int, key: PRNGKeyArray) -> tuple[PyTree, Any, Any]:
        """Return v after `steps` moves, the optimizer's state, and (g, |grad_v g|) before the last move.

        With a `direction`, the last result is ().
        """

        def one(carry: Any, t: Any) -> tuple[Any, Any]:
            return self.move(carry, lower_data(batch, t), jax.random.fold_in(key, t))

        (v, opt_state), losses = jax.lax.scan(one, (v, opt_state), jnp.arange(steps))
        return v, opt_state, jax.tree.map(lambda x: x[-1], losses)

    def move(self, carry: tuple[PyTree, Any], data: PyTree, key: PRNGKeyArray) -> tuple[tuple[PyTree, Any], Any]:
        """Return v and its optimizer's state after one move, and (g, |grad_v g|) before it, or () with a direction."""
        v, opt_state = carry
        if self.direction is not None:
            gradient = self.direction(v, data, key)
            return move(self.optimizer, opt_state, v, gradient, self.problem.lower_set(self.u), self.scale), ()
        loss, gradient = derivatives.lower_gradient(self.problem, self.u, v, data, key)
        size, objective = optax.tree.norm(gradient), self.objective(v, data, key, loss)
        moved = move(self.optimizer, opt_state, v, gradient, self.problem.lower_set(self.u), self.scale, objective)
        return moved, (loss, size)

    def objective(self, v: PyTree, data: PyTree, key: PRNGKeyArray, loss: Any) -> Objective:
        """Return the lower loss on this batch as a function of v; `loss` is its value at the current v."""
        return Objective(
            loss,
            lambda v: self.problem.lower(self.u, v, data, key),
            lambda v: derivatives.lower_gradient(self.problem, self.u, v, data, key)[1],
        )


def move_upper(
    solver: Any,
    problem: Problem,
    state: State,
    direction: PyTree,
    objective: Objective | None = None,
    scale: Any = None,
) -> tuple[PyTree, Any]:
    """Return u and its optimizer's state after one update by the solver's `upper_optimizer`, and the projection."""
    return move(solver.upper_optimizer, state.upper_opt, state.u, direction, problem.project_upper, scale, objective)


def start_of_step(problem: Problem, state: State, batch: Batch, key: PRNGKeyArray) -> PyTree:
    """Return the start of v in a step: that of `lower_start` if the problem has one, otherwise the v of the state."""
    if problem.lower_start is None:
        return state.v
    return problem.lower_start(state.u, batch, key)
