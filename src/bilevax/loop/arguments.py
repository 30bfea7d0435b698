"""The arguments of `solve`, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax._arrays import check_key, check_variable
from bilevax._checks import InputError, described, require_count, require_function
from bilevax.loop.layout import Layout
from bilevax.loop.placement import OneDevice, OnMesh
from bilevax.loop.result import Callback, Result, Resumable, Run, Visit
from bilevax.problem import Problem
from bilevax.solvers import base
from bilevax.solvers.base import Solver

MOST_STEPS = 2**31 - 1
LONGEST_STRETCH = 1000  # steps, by default


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of `solve`, each of its type; `every` is set, and `batches` is checked later."""

    solver: Solver
    problem: Problem
    u: PyTree[Float[Array, "..."]]
    v: PyTree[Float[Array, "..."]]
    batches: Any
    steps: int
    key: PRNGKeyArray
    every: int
    stop: Callable[[Visit], bool]
    callbacks: Sequence[Callback]
    resume: Resumable | None
    placement: OneDevice | OnMesh

    @property
    def saver(self) -> Callback | None:
        """The callback that saves the state; None if there is none."""
        return next((c for c in self.callbacks if isinstance(c, Resumable)), None)


def checked(
    solver: Any,
    problem: Any,
    u: PyTree,
    v: PyTree,
    batches: Any,
    steps: Any,
    key: Any,
    every: Any,
    stop: Any,
    callbacks: Any,
    resume: Any,
    mesh: Any,
) -> Arguments:
    """Check the arguments of `solve`, except the batches.

    Raises:
        InputError: an argument cannot be used.
    """
    base.require_solver("solve", solver)
    if not isinstance(problem, Problem):
        raise InputError(f"solve: problem is {described(problem)}, and must be a bilevax.Problem.")
    _require_hashable(solver, problem)
    steps = require_count("solve", "steps", steps)
    if steps > MOST_STEPS:
        raise InputError(f"solve: steps is {steps}, and may be at most {MOST_STEPS}.")
    every = min(LONGEST_STRETCH, max(1, steps // 100)) if every is None else require_count("solve", "every", every)
    # Up to LONGEST_STRETCH the length does not depend on `steps`: solves of different lengths share one program.
    every = min(every, max(steps, LONGEST_STRETCH))
    check_key("solve", key)
    if stop is not None:
        require_function("solve", "stop", stop, "stop(visit) -> bool")
    if resume is not None and (isinstance(resume, type | Result) or not isinstance(resume, Resumable)):
        raise InputError(
            f"solve: resume is {described(resume)}. Pass a callback of the earlier solve, such as "
            "bilevax.Checkpoint(directory)."
        )
    listeners, placement = _listeners(callbacks), _placement(mesh)
    check_variable("u", u)
    check_variable("v", v)
    stop = _never if stop is None else stop
    return Arguments(solver, problem, u, v, batches, steps, key, every, stop, listeners, resume, placement)


def _require_hashable(solver: Solver, problem: Problem) -> None:
    try:
        hash((solver, problem))
    except TypeError as error:
        raise InputError(
            f"The solver or the problem holds a field that cannot be hashed ({error}). "
            "Pass arrays in u, v or the batches instead."
        ) from error


def _placement(mesh: Any) -> OneDevice | OnMesh:
    if mesh is None:
        return OneDevice()
    if isinstance(mesh, Mesh):
        return OnMesh(Layout(mesh))
    if isinstance(mesh, Layout):
        return OnMesh(mesh)
    raise InputError(f"mesh is {described(mesh)}, and must be a jax.sharding.Mesh or a bilevax.Layout.")


def _never(visit: Visit) -> bool:
    return False


class _OnVisit:
    """A plain function as a Callback."""

    def __init__(self, function: Callable[[Visit], None]):
        self._function = function

    def start(self, run: Run) -> None:
        pass

    def visit(self, visit: Visit) -> None:
        self._function(visit)

    def finish(self, result: Result | None) -> None:
        pass


def _listeners(callbacks: Any) -> list[Callback]:
    """The callbacks, with each plain function wrapped as a Callback."""
    if not isinstance(callbacks, list | tuple):
        raise InputError(f"solve: callbacks is {described(callbacks)}. Pass a list of callbacks.")
    for c in callbacks:
        methods = [callable(getattr(c, name, None)) for name in ("start", "visit", "finish")]
        if isinstance(c, type) or not (all(methods) or (callable(c) and not any(methods))):
            raise InputError(
                f"solve: callbacks holds {described(c)}. Each must be a function of a Visit, or an object with the "
                "methods start, visit and finish, such as bilevax.Progress()."
            )
    return [c if isinstance(c, Callback) else _OnVisit(c) for c in callbacks]
