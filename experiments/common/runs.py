"""Timed solves, and what `results.json` records of a solver."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from bilevax import Implicit, LearningToReweight, LookAhead, Penalty, solve
from bilevax.applications import Task


class Solved(NamedTuple):
    """The end of a solve: u, v, the state, and the wall seconds, compilation included."""

    u: PyTree
    v: PyTree
    state: Any
    seconds: float


def run_solver(solver: Any, task: Task, steps: int, seed: int) -> Solved:
    """Solve a task and measure the time."""
    began = time.perf_counter()
    result = solve(solver, task.problem, *task.start, task.batches, steps=steps, key=jax.random.key(seed))
    jax.block_until_ready(result.v)
    return Solved(result.u, result.v, result.state, time.perf_counter() - began)


class Look(NamedTuple):
    """Figures during a solve, with the steps and seconds so far; compilation and evaluation are not counted."""

    step: int
    seconds: float
    seen: dict[str, float]


def watched_solve(
    solver: Any, task: Task, steps: int, every: int, seed: int, look: Callable[[PyTree, PyTree], dict[str, float]]
) -> list[Look]:
    """Solve a task and call `look(u, v)` after each `every` steps; these calls are not timed."""
    key = jax.random.key(seed)
    solve(solver, task.problem, *task.start, task.batches, steps=1, every=every, key=key)  # compiles the stretch
    looks: list[Look] = []
    standing = 0.0

    def visit(visit: Any) -> None:
        nonlocal standing
        began = time.perf_counter()
        looks.append(Look(visit.step, visit.seconds - standing, look(visit.state.u, visit.state.v)))
        standing += time.perf_counter() - began

    solve(solver, task.problem, *task.start, task.batches, steps=steps, every=every, key=key, callbacks=[visit])
    return looks


def readable(solver: Any) -> dict[str, Any]:
    """A solver's fields as JSON values, without its optimizers, which are closures."""
    fields = {name: value for name, value in vars(solver).items() if not hasattr(value, "update")}
    shown = {
        n: x if isinstance(x, int | float | None) else getattr(x, "__name__", re.sub(r" at 0x\w+", "", repr(x)))
        for n, x in fields.items()
    }
    return {"method": type(solver).__name__, **shown}


def evaluations(solver: Any, steps: int) -> dict[str, int]:
    """Counts of gradients of f and g, and of products with second derivatives of g, that `steps` steps take."""
    moves = getattr(solver, "lower_steps", 1)
    if isinstance(solver, LearningToReweight):
        counts = {"f": 1, "g": 2, "products": 1}
    elif isinstance(solver, LookAhead):
        counts = {"f": 1, "g": moves + 1, "products": 1}
    elif isinstance(solver, Penalty):
        counts = {"f": moves + 1, "g": moves + 1, "products": moves + 1}
    elif isinstance(solver, Implicit):
        counts = {"f": 1, "g": moves + 1, "products": 1 + getattr(solver.linear_solve, "steps", 0)}
    else:  # reverse mode: forward through the moves and back
        counts = {"f": 1, "g": moves, "products": 2 * moves}
    return {kind: count * steps for kind, count in counts.items()}
