"""Quadratic problems with absolute values: sweeps over the entries, and Newton steps on those that are not zero.

    min over x of  x' H x / 2 - q' x + sum_j weight_j |x_j|

A sweep of coordinate descent (Friedman, Hastie and Tibshirani 2010) chooses which entries leave zero. Newton steps then
solve the problem of these entries with their signs; an entry that would change its sign becomes zero, and the next step
is of the others (the active sets of Osborne, Presnell and Turlach 2000).
"""

import numpy as np
from jaxtyping import Bool, Float

from bilevax.applications.tuning.glm.curvature import factorised, solved

MOST_SWEEPS = 500
ROUNDING = 1e-14


def absolute_minimum(
    hessian: Float[np.ndarray, "q q"],
    target: Float[np.ndarray, " q"],
    weight: Float[np.ndarray, " q"],
    start: Float[np.ndarray, " q"],
    tolerance: float,
) -> Float[np.ndarray, " q"]:
    """The minimum, to a tolerance of the optimality conditions.

    Args:
        hessian: positive semidefinite.
        target: q.
        weight: of each absolute value; 0 for entries without one.
        start: where to start from.
        tolerance: of the largest violation of the optimality conditions.
    """
    x = start.copy()
    sizes = np.maximum(hessian.diagonal(), 1e-300)
    r = target - hessian @ x  # minus the gradient of the smooth part
    for _ in range(MOST_SWEEPS):
        _sweep(hessian, r, x, weight, sizes)
        while _newton_step(hessian, target, weight, x):
            pass
        r = target - hessian @ x
        wrong = np.where(x != 0, np.abs(r - weight * np.sign(x)), np.maximum(np.abs(r) - weight, 0))
        if wrong.max(initial=0.0) <= tolerance:
            break
    return x


def _sweep(hessian: np.ndarray, r: np.ndarray, x: np.ndarray, weight: np.ndarray, sizes: np.ndarray) -> None:
    """One pass of coordinate descent, in place."""
    for j, (w, size) in enumerate(zip(weight.tolist(), sizes.tolist(), strict=True)):
        old = x[j]
        z = r[j] + size * old
        new = (z - w if z > w else z + w if z < -w else 0.0) / size
        if new != old:
            x[j] = new
            r -= hessian[j] * (new - old)


def _newton_step(hessian: np.ndarray, target: np.ndarray, weight: np.ndarray, x: np.ndarray) -> bool:
    """A Newton step on the entries that are not zero, in place; whether it ended at an entry that became zero."""
    at = np.flatnonzero((x != 0) | (weight == 0))
    if not len(at):
        return False
    matrix, now = hessian[at[:, None], at], x[at]
    slope = target[at] - weight[at] * np.sign(now)
    step = solved(factorised(matrix), slope - matrix @ now)
    crossing: Bool[np.ndarray, " at"] = (weight[at] > 0) & (np.sign(now + step) != np.sign(now))
    ratios = np.where(crossing, -now / np.where(step == 0, 1.0, step), np.inf)
    first = min(float(ratios.min()), 1.0)
    new = now + first * step
    new[ratios <= first * (1 + 1e-12)] = 0.0
    # Along the step the objective of these entries and signs is a parabola.
    fall = (slope - matrix @ (now + new) / 2) @ (new - now)
    if fall < -ROUNDING * abs(slope @ now):
        return False
    x[at] = new
    return first < 1.0
