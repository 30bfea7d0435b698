"""Numbers that change by stage: plain callables of the integer stage k = 0, 1, 2, ..."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bilevax._checks import InputError, described, require_number

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
        for name in ("initial", "factor", "low", "high"):
            value = require_number("Geometric", name, getattr(self, name))
            if not value > 0:
                raise InputError(f"Geometric: {name} is {value:g}, and must be positive.")
            object.__setattr__(self, name, value)
        if self.low > self.high:
            raise InputError(f"Geometric: low is {self.low:g}, and must not be above high, which is {self.high:g}.")

    def __call__(self, stage: Any) -> Any:
        """The value at a stage."""
        return jnp.clip(self.initial * self.factor**stage, self.low, self.high)


@dataclass(frozen=True)
class Power:
    """The schedule `initial * (k + 1)**power`.

    Example:
        >>> from bilevax.schedules import Power
        >>> print(round(float(Power(2.0, 0.5)(3)), 2))
        4.0
    """

    initial: float
    power: float

    def __call__(self, stage: Any) -> Any:
        """The value at a stage."""
        return self.initial * (stage + 1.0) ** self.power


def at(schedule: Schedule | float, stage: Any) -> Any:
    """The value of a schedule, or of a plain number, at a stage."""
    return schedule(stage) if callable(schedule) else float(schedule)  # a NumPy number would promote


def _looked_at(owner: str, name: str, schedule: Schedule | float) -> list[float]:
    """The values at the first stages.

    Raises:
        InputError: it is neither a number nor a function from a traced stage to one.
    """
    if not callable(schedule):
        return [require_number(owner, name, schedule)]
    if isinstance(schedule, type):
        raise InputError(f"{owner}: {name} is {described(schedule)}. Pass an instance of it, a number or a function.")
    try:
        value = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
        kind: Any = getattr(value, "dtype", None)
        if getattr(value, "shape", None) != () or kind.kind not in "iuf":
            found = type(value).__name__ if kind is None else f"{kind} of shape {value.shape}"
            raise InputError(f"{owner}: {name} returns {found}, and must return one number for each stage.")
        with jax.ensure_compile_time_eval():  # a solver may be made inside a function that is being traced
            values = [float(schedule(k)) for k in range(STAGES_LOOKED_AT)]
    except InputError:
        raise
    except Exception as error:  # whatever the caller's function raises
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{owner}: {name} cannot be evaluated ({type(error).__name__}: {reason}). It is called with the stage "
            "k inside a compiled loop, where k has no value yet: take jnp.where for if, and jnp's functions for "
            "those of math."
        ) from error
    for k, value in enumerate(values):
        if not math.isfinite(value):
            raise InputError(f"{owner}: {name} is {value:g} at stage {k}, and must be finite at every stage.")
    return values


def require_positive(owner: str, name: str, schedule: Schedule | float, zero: bool = False) -> None:
    """Refuse a schedule with a value that is not positive (or zero, where that is allowed)."""
    for k, value in enumerate(_looked_at(owner, name, schedule)):
        if not (value > 0 or (zero and value == 0)):
            kind = "zero or positive" if zero else "positive"
            raise InputError(f"{owner}: {name} is {value:g} at stage {k}, and must be {kind} at every stage.")


def require_rising(owner: str, name: str, schedule: Schedule | float) -> None:
    """Refuse a schedule that falls."""
    values = _looked_at(owner, name, schedule)
    for k, (now, then) in enumerate(itertools.pairwise(values)):
        if then < now:
            raise InputError(
                f"{owner}: {name} decreases from {now:g} at stage {k} to {then:g} at stage {k + 1}. "
                "It weighs the lower level's optimality and must not decrease: use a factor of at least 1."
            )
