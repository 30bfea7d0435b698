"""Checks of the settings that users pass to the applications: seeds, batches, solvers, trainings."""

import inspect
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from bilevax._checks import InputError, require_count
from bilevax.nn.training import Training

LARGEST_SEED = 2**32 - 1


def seed_key(name: str, seed: Any) -> PRNGKeyArray:
    """Return the jax.random key of a seed, an integer in 0..2^32-1."""
    wrong = isinstance(seed, bool) or not isinstance(seed, int | np.integer)
    if wrong or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"{name} is {seed!r}, and must be a non-negative integer, at most 2^32 - 1.")
    return jax.random.key(int(seed))


def require_batch(owner: str, name: str, size: Any, data: str, n: int) -> int | None:
    """Return the size of a minibatch as an int, or None for all samples.

    Raises:
        InputError: it is not a positive integer, or is larger than the number of samples.
    """
    if size is None:
        return None
    size = require_count(owner, name, size)
    if n < size:
        raise InputError(
            f"{data} has {n} samples, fewer than one batch of {size}. "
            f"Lower {name}, or pass None to use all of them at each step."
        )
    return size


def require_solver(solver: Any) -> None:
    """Refuse what is not a solver: a name, a class, a function that was not called."""
    if isinstance(solver, type):
        raise InputError(
            f"solver is the class {solver.__name__}, which is not a solver. Pass an instance, "
            f"{solver.__name__}{inspect.signature(solver)!s}."
        )
    if not all(callable(getattr(solver, name, None)) for name in ("check", "init", "step")):
        hint = " Call it." if callable(solver) else ""
        raise InputError(f"solver is {solver!r}, which is not a solver.{hint} Pass penalty_solver(100), for example.")


def require_training(training: Any) -> None:
    """Refuse what is not a Training."""
    if not isinstance(training, Training):
        raise InputError(f"training is {training!r}. Pass a bilevax.nn.Training.")
