"""What an application hands to a solver."""

from collections.abc import Callable
from typing import NamedTuple

from bilevax._checks import PyTree
from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem


class Task(NamedTuple):
    """A job, ready for any solver: `solve(solver, task.problem, *task.start, task.batches, ...)`.

    Attributes:
        problem: what to solve.
        start: (u, v).
        batches: what feeds the solve.
        metrics: (u, v) -> named figures, computed on the host.
    """

    problem: Problem
    start: tuple[PyTree, PyTree]
    batches: Batch | Source | None
    metrics: Callable[[PyTree, PyTree], dict[str, float]]
