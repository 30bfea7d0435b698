"""Solves with their wall time, and what `results.json` records of a solver."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bilevax import Implicit, LearningToReweight, LookAhead, Penalty, solve
from bilevax.applications import Task


class Solved(NamedTuple):
    """A solve's end: u, v, the state, and its wall seconds, compilation included."""

    u: Any
    v: Any
    state: Any
    seconds: float


def run_solver(solver: Any, task: Task, steps: int, seed: int) -> Solved:
    """Solve a task and tell the time."""
    began = time.perf_counter()
    result = solve(solver, task.problem, *task.start, task.batches, steps=steps, key=jax.random.key(seed))
    jax.block_until_ready(result.v)
    return Solved(result.u, result.v, result.state, time.perf_counter() - began)


class Look(NamedTuple):
    """What was seen of a solve on its way: after so many steps and seconds, compilation and looking apart."""

    step: int
    seconds: float
    seen: dict[str, float]


def watched_solve(
    solver: Any, task: Task, steps: int, every: int, seed: int, look: Callable[[Any, Any], dict[str, float]]
) -> list[Look]:
    """Solve a task and look at (u, v) after every so many steps; the clock stands still meanwhile."""
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
    """A solver's fields in a form that JSON takes; optimizers are closures and are told in the experiment's file."""
    fields = {name: value for name, value in vars(solver).items() if not hasattr(value, "update")}
    told = {
        n: x if isinstance(x, int | float | None) else getattr(x, "__name__", re.sub(r" at 0x\w+", "", repr(x)))
        for n, x in fields.items()
    }
    return {"method": type(solver).__name__, **told}


def evaluations(solver: Any, steps: int) -> dict[str, int]:
    """Gradients of f and of g, and products with the second derivatives of g, that `steps` steps take on a batch."""
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
