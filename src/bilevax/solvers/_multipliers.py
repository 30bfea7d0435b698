"""Multipliers of lower constraints: the Lagrangian of the lower level, plain and augmented, and updates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bilevax.problem import Equality, Inequality, Problem
from bilevax.solvers.base import Info

Multipliers = tuple[Array, ...]
Constraint = Inequality | Equality
FEW_STEPS, GREW, STEADILY = 40, 1.1, 0.95  # when `caution` speaks


def lagrangian_of(problem: Problem, penalty: float, multipliers: Multipliers) -> Problem:
    """Return the problem whose lower loss is the augmented Lagrangian; its gradients weigh those of c by `raised`."""

    def term(constraint: Constraint, m: Array, c: Array) -> Array:
        return jnp.sum(_new(constraint, penalty, m, c) ** 2 - m**2) / (2 * penalty)

    return _with_terms(problem, term, multipliers)


def pulled_lagrangian_of(
    problem: Problem, penalty: float, multipliers: Multipliers, weight: float, upper_data: PyTree
) -> Problem:
    """Return the problem whose lower loss is (augmented Lagrangian + weight f) / (1 + |multipliers|).

    The divisor keeps learning rates right, since the curvature of a Lagrangian grows with its multipliers.
    """
    lagrangian, size = lagrangian_of(problem, penalty, multipliers), 1 + optax.tree.norm(multipliers)
    random = problem.random_lower or (problem.random_upper and weight > 0)

    def loss(u: PyTree, v: PyTree, data: PyTree, key: Any = None) -> Any:
        own = lagrangian.lower_loss(u, v, data, **({"key": key} if problem.random_lower else {}))
        if weight:
            own += weight * problem.upper(u, v, upper_data, key)
        return (own / size).astype(own.dtype)

    called = (lambda u, v, data, *, key: loss(u, v, data, key)) if random else (lambda u, v, data: loss(u, v, data))
    return replace(lagrangian, lower_loss=called, random_lower=random)


def plain_lagrangian_of(problem: Problem, multipliers: Multipliers) -> Problem:
    """Return the problem whose lower loss is the Lagrangian, g + multipliers c."""
    return _with_terms(problem, lambda constraint, m, c: jnp.sum(m * c), multipliers)


def _with_terms(
    problem: Problem, term: Callable[[Constraint, Array, Array], Array], multipliers: Multipliers
) -> Problem:
    def lower_loss(u: PyTree, v: PyTree, data: PyTree, **random: Any) -> Any:
        loss = problem.lower_loss(u, v, data, **random)
        values = problem.lower_constraint_values(u, v, data)
        for constraint, m, c in zip(problem.lower_constraints, multipliers, values, strict=True):
            loss += term(constraint, m, c)
        return loss

    if problem.random_lower:
        return replace(problem, lower_loss=lambda u, v, data, *, key: lower_loss(u, v, data, key=key))
    return replace(problem, lower_loss=lambda u, v, data: lower_loss(u, v, data))


def raised(problem: Problem, penalty: float, u: PyTree, v: PyTree, data: PyTree, multipliers: Multipliers) -> Any:
    """Return the multipliers after one update: m + penalty c, at least zero for an inequality."""
    values = problem.lower_constraint_values(u, v, data)
    each = zip(problem.lower_constraints, multipliers, values, strict=True)
    return tuple(_new(constraint, penalty, m, c) for constraint, m, c in each)


def bounded(problem: Problem, bound: float, multipliers: Multipliers) -> Multipliers:
    """Return the multipliers clipped to [-bound, bound], or to [0, bound] for an inequality."""
    each = zip(problem.lower_constraints, multipliers, strict=True)
    return tuple(jnp.clip(m, 0 if isinstance(constraint, Inequality) else -bound, bound) for constraint, m in each)


def violation(problem: Problem, u: PyTree, v: PyTree, data: PyTree) -> Float[Array, ""]:
    """Return the largest violation of any entry of a lower constraint; zero without one."""
    values = problem.lower_constraint_values(u, v, data)
    largest = jnp.zeros(())
    for constraint, c in zip(problem.lower_constraints, values, strict=True):
        largest = jnp.maximum(largest, jnp.max(c if isinstance(constraint, Inequality) else jnp.abs(c), initial=0))
    return largest


def caution(owner: str, info: Info) -> str | None:
    """Return a sentence if the multipliers grow up to the end of a solve; None otherwise, and for few steps."""
    sizes, outside = (np.asarray(info.extra[name]) for name in ("multiplier_norm", "violation"))
    late = sizes[len(sizes) // 2 :]
    if len(sizes) < FEW_STEPS or not (late[-1] > GREW * late[0] and np.mean(np.diff(late) > 0) > STEADILY):
        return None
    return (
        f"{owner}: the multipliers of the lower constraints grow steadily, from {late[0]:.3g} half-way to "
        f"{late[-1]:.3g} in the last step, in which the largest violation is {outside[-1]:.3g}. If u has settled, the "
        "lower set is empty at this u, or has no inner point (Slater's condition fails), and (u, v) is not a solution. "
        "Restrict u to where the set has inner points by project_upper; if u still moves, take more steps."
    )


def _new(constraint: Constraint, penalty: float, m: Any, c: Any) -> Any:
    found = m + penalty * c
    return (jnp.maximum(found, 0) if isinstance(constraint, Inequality) else found).astype(m.dtype)
