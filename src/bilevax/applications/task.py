"""What an application passes to a solver."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import PyTree

from bilevax.loop.sources import Source
from bilevax.problem import Batch, Problem


class Task(NamedTuple):
    """A bilevel problem with its start and its data: `solve(solver, task.problem, *task.start, task.batches, ...)`.

    Attributes:
        problem: the losses, constraints and projections.
        start: (u, v).
        batches: a Batch, a source of batches, or None for a problem without data.
        metrics: (u, v) -> numbers by name, computed on the host.
    """

    problem: Problem
    start: tuple[PyTree, PyTree]
    batches: Batch | Source | None
    metrics: Callable[[PyTree, PyTree], dict[str, float]]
