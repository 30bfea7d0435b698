"""The search for the strengths that minimise the cross-validated loss."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from bilevax.applications.tuning.glm.criterion import Evaluation

FLAT = 1e-6  # relative differences of the loss that do not count: the stronger strength is taken
REFINEMENTS = 12


class Point(NamedTuple):
    """One evaluation of a search: the log strengths, the cross-validated loss, and its part of each fold."""

    u: Float[np.ndarray, " strengths"]
    value: float
    values: Float[np.ndarray, " folds"]


class Path(NamedTuple):
    """All evaluations of a search, and the best."""

    points: list[Point]
    best: Point


def scalar_search(
    evaluate: Callable[[float], Evaluation], low: float, high: float, spacing: float, turns: int, precision: float
) -> Path:
    """The best log strength: along a grid from strong to weak, then within the best interval by its derivative.

    The path ends early where the loss has risen at several points in a row. Each solution starts from the last one.

    Args:
        evaluate: the cross-validated loss at a log strength.
        low, high: bounds.
        spacing: of the grid.
        turns: grid points of rising loss after which weaker strengths are not tried.
        precision: of the log strength.
    """
    grid = np.arange(high, low - spacing / 2, -spacing).clip(low)
    found: list[tuple[float, Evaluation]] = []
    rising = 0
    for t in grid:
        found.append((float(t), evaluate(float(t))))
        best = min(one.value for _, one in found)
        rising = rising + 1 if len(found) > 1 and found[-1][1].value >= found[-2][1].value > best - 1e-12 else 0
        if rising >= turns:
            break
    values = np.array([one.value for _, one in found])
    at = int(np.argmax(values <= values.min() + FLAT * abs(values.min())))
    left = found[at + 1] if at + 1 < len(found) else found[at]  # weaker
    right = found[at - 1] if at else found[at]
    found += _refined(evaluate, left, found[at], right, precision)
    points = [Point(np.array([t]), one.value, one.values) for t, one in found]
    refined = [points[at], *points[len(values) :]]
    return Path(points, min(refined, key=lambda p: p.value))


def near_search(
    evaluate: Callable[[float], Evaluation], near: float, low: float, high: float, step: float, precision: float
) -> Path | None:
    """The local minimum next to a log strength: downhill by its derivative, then within the last step.

    None where the derivative is zero at the start, as it is where a norm keeps all coefficients at zero.

    Args:
        evaluate: the cross-validated loss at a log strength.
        near: where to start.
        low, high: bounds.
        step: of the first moves; each is twice as long as the last.
        precision: of the log strength.
    """
    t = float(np.clip(near, low, high))
    found = [(t, evaluate(t))]
    sign = -np.sign(float(found[0][1].gradient[0]))
    if not sign:
        return None
    bracket = None
    while bracket is None:
        t = float(np.clip(found[-1][0] + sign * step, low, high))
        if t == found[-1][0]:
            break
        found.append((t, evaluate(t)))
        step *= 2
        if sign * float(found[-1][1].gradient[0]) >= 0 or found[-1][1].value > found[-2][1].value:
            bracket = sorted(found[-2:], key=lambda one: one[0])
    if bracket is not None:
        left, right = bracket
        found += _refined(evaluate, left, right, right, precision)
    points = [Point(np.array([t]), one.value, one.values) for t, one in found]
    return Path(points, min(points, key=lambda point: point.value))


def _refined(
    evaluate: Callable[[float], Evaluation],
    left: tuple[float, Evaluation],
    middle: tuple[float, Evaluation],
    right: tuple[float, Evaluation],
    precision: float,
) -> list[tuple[float, Evaluation]]:
    """A root of the derivative between the neighbours of the best grid point (regula falsi, Illinois)."""
    low, high = (left, middle) if middle[1].gradient[0] > 0 else (middle, right)
    found = []
    da, db = float(low[1].gradient[0]), float(high[1].gradient[0])
    a, b = low[0], high[0]
    for _ in range(REFINEMENTS):
        if b - a <= precision or not (da < 0 < db):
            break
        t = (a * db - b * da) / (db - da)
        t = float(np.clip(t, a + 0.01 * (b - a), b - 0.01 * (b - a)))
        one = evaluate(t)
        found.append((t, one))
        slope = float(one.gradient[0])
        # Half the slope of an end that stays, so that it does not stay for long.
        if slope > 0:
            a, da, b, db = a, da / 2 if len(found) > 1 and found[-2][1].gradient[0] > 0 else da, t, slope
        else:
            a, da, b, db = t, slope, b, db / 2 if len(found) > 1 and found[-2][1].gradient[0] <= 0 else db
        if abs(slope) * (b - a) < 1e-13 * abs(one.value):
            break
    return found


def gradient_search(
    evaluate: Callable[[Float[np.ndarray, " strengths"]], Evaluation],
    start: Float[np.ndarray, " strengths"],
    low: float,
    high: float,
    *,
    unit: float,
    deviation: float,
    fold: int | None = None,
    most: int = 100,
    tolerance: float = 1e-2,
) -> Path:
    """The best log strengths by L-BFGS-B (Byrd et al. 1995) from the hypergradient, with a normal prior on ratios.

    Minimises  F(u) / unit + sum_j (u_j - mean(u))^2 / (2 deviation^2).

    Args:
        evaluate: the cross-validated loss.
        start: log strengths.
        low, high: bounds.
        unit: the loss that counts as one unit of log-likelihood.
        deviation: of the log ratios under the prior; infinite for none.
        fold: a fold whose part is left out; None for all.
        most: iterations.
        tolerance: of the objective's fall in one iteration, in units of log-likelihood.
    """
    points: list[Point] = []
    totals: list[float] = []

    def objective(u: Float[np.ndarray, " strengths"]) -> tuple[float, Float[np.ndarray, " strengths"]]:
        one = evaluate(u)
        value, gradient = one.value, one.gradient
        if fold is not None:
            value, gradient = value - one.values[fold], gradient - one.gradients[fold]
        points.append(Point(u.copy(), one.value, one.values))
        ratios = u - u.mean()
        totals.append(value / unit + (ratios @ ratios) / (2 * deviation**2))
        return totals[-1], gradient / unit + ratios / deviation**2

    minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, high)] * len(start),
        options={"maxiter": most, "ftol": 0.0, "gtol": 1e-3, "maxcor": 20},
        callback=_Stop(totals, tolerance),
    )
    return Path(points, points[int(np.argmin(totals))])


class _Stop:
    """Stops where an iteration has changed the objective by less than a tolerance."""

    def __init__(self, totals: list[float], tolerance: float):
        self.totals, self.tolerance = totals, tolerance
        self.last = np.inf

    def __call__(self, intermediate_result: object) -> None:
        best = min(self.totals)
        if self.last - best < self.tolerance:
            raise StopIteration
        self.last = best
