"""The direction in which one step of a solver moves u."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.problem import Batch, Problem
from bilevax.solvers.base import Solver


def _zeros(params: PyTree) -> PyTree:
    return optax.tree.zeros_like(params)


def _kept(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
    return optax.tree.zeros_like(updates), updates


# This optimizer returns zero updates and keeps the gradient as its state, so one step of a solver leaves the solver's
# direction there.
_CAPTURE = optax.GradientTransformation(_zeros, _kept)


def direction_of(
    solver: Any, problem: Problem, state: Any, u: PyTree, v: PyTree, batch: Batch, key: PRNGKeyArray
) -> PyTree:
    """The direction of u in one step of the solver from (u, v), shaped like u.

    Raises:
        InputError: the solver has no `upper_optimizer`, or `state` is not a state of it on this problem.
    """
    fields = [f.name for f in dataclasses.fields(solver)] if dataclasses.is_dataclass(solver) else []
    if "upper_optimizer" not in fields:
        raise InputError(
            f"report: solver is a {type(solver).__name__}, which has no field upper_optimizer, so its direction cannot "
            "be read. For Vectorized, pass the solver of one member with that member's u, v and batch."
        )
    watched: Any = dataclasses.replace(
        solver,  # type: ignore[type-var]
        upper_optimizer=_CAPTURE,
    )
    watched.check(problem, u, v, batch)
    if state is None:
        state = watched.init(problem, u, v, batch)
    try:
        state = state._replace(u=u, v=v, upper_opt=_CAPTURE.init(u))
    except (AttributeError, ValueError):
        raise InputError(
            f"report: state is a {type(state).__name__}, and must be a state of {type(solver).__name__}, "
            "as in `result.state`; leave it out to start from a fresh one."
        ) from None
    wanted, found = (jax.tree.map(jnp.shape, x) for x in (watched.init(problem, u, v, batch), state))
    if wanted != found:
        raise InputError(
            f"report: state is not a state of this {type(solver).__name__} on this problem. Pass `result.state` of a "
            "solve with the same solver, problem and shapes, or leave it out."
        )
    return _step(watched, problem, state, batch, key).upper_opt


@compiled("solver", "problem")
def _step(solver: Solver, problem: Problem, state: Any, batch: Batch, key: PRNGKeyArray) -> Any:
    return solver.step(problem, state, batch, key)[0]
