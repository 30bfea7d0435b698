"""The time of a stretch of a solve, without compilation."""

from typing import Any

from jaxtyping import PRNGKeyArray

from bilevax import solve
from bilevax.applications import Task


def seconds_of_a_step(solver: Any, task: Task, steps: int, key: PRNGKeyArray) -> float:
    """Seconds of a step, over the second stretch of `steps` steps."""
    seconds: list[float] = []
    solve(
        solver,
        task.problem,
        *task.start,
        task.batches,
        steps=2 * steps,
        every=steps,
        key=key,
        callbacks=[lambda visit: seconds.append(visit.seconds)],
    )
    return (seconds[1] - seconds[0]) / steps
