"""Numbers that change by stage: plain callables of the integer stage k = 0, 1, 2, ..."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bilevax.problem import InputError

Schedule = Callable[[Any], Any]
STAGES_LOOKED_AT = 50


@dataclass(frozen=True)
class Geometric:
    """`initial * factor**k`, held between `low` and `high` so that late stages stay finite.

    Example:
        >>> from bilevax.schedules import Geometric
        >>> gamma = Geometric(initial=1.0, factor=1.1)
        >>> [round(float(gamma(k)), 2) for k in (0, 1, 10)]
        [1.0, 1.1, 2.59]
    """

    initial: float
    factor: float
    low: float = 1e-12
    high: float = 1e12

    def __post_init__(self) -> None:
        for name in ("initial", "factor"):
            if not getattr(self, name) > 0:
                raise InputError(f"Geometric: {name} is {getattr(self, name)}, and must be positive.")

    def __call__(self, stage: Any) -> Any:
        """The value at a stage."""
        return jnp.clip(self.initial * self.factor**stage, self.low, self.high)


def at(schedule: Schedule | float, stage: Any) -> Any:
    """The value of a schedule, or of a plain number, at a stage."""
    return schedule(stage) if callable(schedule) else schedule


def _looked_at(schedule: Schedule | float) -> list[float]:
    stages = range(STAGES_LOOKED_AT) if callable(schedule) else range(1)
    with jax.ensure_compile_time_eval():  # a solver may be made inside a function that is being traced
        return [float(at(schedule, k)) for k in stages]


def require_positive(owner: str, name: str, schedule: Schedule | float, zero: bool = False) -> None:
    """Refuse a schedule with a value that is not positive (or zero, where that is allowed)."""
    for k, value in enumerate(_looked_at(schedule)):
        if not (value > 0 or (zero and value == 0)):
            kind = "zero or positive" if zero else "positive"
            raise InputError(f"{owner}: {name} is {value:g} at stage {k}, and must be {kind} at every stage.")


def require_rising(owner: str, name: str, schedule: Schedule | float) -> None:
    """Refuse a schedule that falls."""
    values = _looked_at(schedule)
    for k, (now, then) in enumerate(itertools.pairwise(values)):
        if then < now:
            raise InputError(
                f"{owner}: {name} decreases from {now:g} at stage {k} to {then:g} at stage {k + 1}. "
                "It weighs the lower level's optimality and must not decrease: use a factor of at least 1."
            )
