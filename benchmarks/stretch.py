"""The time of a stretch of a solve, without compilation, and calls measured in turn."""

import statistics
from collections.abc import Callable, Mapping, Sequence
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


def in_turn(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The results of calls that are made in turn, `rounds` times, after one round that compiles."""
    for call in calls.values():
        call()
    found = [{name: call() for name, call in calls.items()} for _ in range(rounds)]
    return {name: [each[name] for each in found] for name in calls}


def middle(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratios of the pairs of each round."""
    return [a / b for a, b in zip(values, others, strict=True)]
