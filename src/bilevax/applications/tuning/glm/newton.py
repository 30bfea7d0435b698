"""Newton's method for smooth penalised losses of all folds at once (Nocedal and Wright 2006, chapters 3 and 7).

The folds are columns of one matrix of coefficients, so that each pass over the samples serves all of them. Newton's
equations are solved by conjugate gradients, preconditioned by a factorised Hessian: that of the same point, then one
iteration is exact, or that of an earlier point where forming it costs more than a few passes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevax.applications.tuning.glm.curvature import Coefficients, curvature_of
from bilevax.applications.tuning.glm.data import Data, train_loss
from bilevax.applications.tuning.glm.losses import Loss

MOST_STEPS = 100
MOST_HALVINGS = 40
MOST_ITERATIONS = 500  # of conjugate gradients
STALE = 8  # conjugate gradients above which the Hessian is formed anew
CHEAP = 40.0  # a Hessian is formed at each step where that costs fewer passes over the samples
SLOW = 0.1  # of the gradient left by a step with an earlier Hessian, above which the Hessian is formed anew
SUFFICIENT = 1e-4
# Of large problems, whose strengths are not needed to more digits, the derivative has fewer.
LARGE_TOLERANCE, ROUGH_ADJOINT = 5e-7, 1e-4


class Fit(NamedTuple):
    """Coefficients of all folds.

    Attributes:
        w: (p, outputs, folds).
        eta: the linear predictor, (n, outputs, folds).
        steps: of Newton's method.
        converged: whether the gradients are below the tolerance.
    """

    w: Coefficients
    eta: Float[np.ndarray, "n outputs folds"]
    steps: int
    converged: bool


class Newton:
    """The lower problem of all folds with the penalty strength w^2 / 2.

    Args:
        loss, data: of the problem.
        null: the coefficients of the model of the intercepts alone, (p, outputs, folds).
        tolerance: of the largest entry of the gradient, relative to that of the model of the intercepts alone.
    """

    def __init__(self, loss: Loss, data: Data, null: Coefficients, tolerance: float):
        self.loss, self.data, self.tolerance = loss, data, tolerance
        self.curvature = curvature_of(loss, data)
        _, outputs, folds = data.shape
        entries = data.x.nnz if hasattr(data.x, "nnz") else data.x.size
        self.cheap = self.curvature.flops <= CHEAP * 4.0 * entries * outputs * folds or self.curvature.flops < 2e7
        self.direct = self.curvature.exact and (self.cheap or loss.quadratic)
        self.at: Coefficients | None = None  # the coefficients at which the Hessian was formed
        self.factored: Coefficients | None = None  # the strengths of the factors
        null = np.abs(self.gradient(data.times(null) + data.offset, np.zeros_like(null), null)).max((0, 1))
        self.scale = np.maximum(null, 1e-12 * max(null.max(), 1e-300))

    def product(self, eta: Coefficients, curvature: Coefficients, strength: Coefficients, p: Coefficients):
        """The Hessian of the penalised training losses times p."""
        data = self.data
        inner = self.loss.product(curvature, eta, data.times(p)) * data.train[:, None, :]
        return data.transposed(inner) + strength * p

    def gradient(self, eta: Coefficients, strength: Coefficients, w: Coefficients) -> Coefficients:
        """The gradient of the penalised training losses."""
        data = self.data
        return data.transposed(self.loss.slope(eta, data.y) * data.train[:, None, :]) + strength * w

    def _form(self, w: Coefficients, eta: Coefficients, strength: Coefficients, anew: bool) -> None:
        if self.at is None or (anew and self.at is not w and not self.loss.quadratic):
            self.curvature.refresh(eta)
            self.at, self.factored = w, None
        if self.factored is None or not np.array_equal(self.factored, strength):
            self.curvature.factor(strength)
            self.factored = strength

    def conjugate_gradients(
        self,
        eta: Coefficients,
        strength: Coefficients,
        r: Coefficients,
        tolerance: Float[np.ndarray, " folds"],
        active: Bool[np.ndarray, " folds"],
    ) -> tuple[Coefficients, int]:
        """Solve H x = r for each active fold, to an energy of `tolerance` relative to the start."""
        curvature = self.loss.curvature(eta, self.data.y)
        x, r = np.zeros_like(r), np.where(active, r, 0.0)
        z = self.curvature.solve(r)
        p, energy = z.copy(), (r * z).sum((0, 1))
        first = energy.copy()
        for iteration in range(MOST_ITERATIONS):
            going = active & (energy > tolerance**2 * first) & (energy > 0)
            if not going.any():
                return x, iteration
            h = self.product(eta, curvature, strength, p)
            bend = (p * h).sum((0, 1))
            step = np.where(going & (bend > 0), energy / np.where(bend > 0, bend, 1.0), 0.0)
            x, r = x + step * p, r - step * h
            z = self.curvature.solve(r)
            new = (r * z).sum((0, 1))
            p = z + np.where(going, new / np.where(energy > 0, energy, 1.0), 0.0) * p
            energy = np.where(going, new, energy)
        return x, MOST_ITERATIONS

    def solve(self, strength: Coefficients, start: Coefficients) -> Fit:
        """Minimise from a start."""
        w = start
        eta = self.data.times(w) + self.data.offset
        stale, last = self.cheap and not self.direct, np.full(start.shape[2], np.inf)
        for steps in range(MOST_STEPS):
            g = self.gradient(eta, strength, w)
            size = np.abs(g).max((0, 1)) / self.scale
            active = size > self.tolerance
            if not active.any():
                return Fit(w, eta, steps, True)
            if self.direct:
                # The search moves by small steps, so the Hessian of the last solution often serves until the next.
                stale, last = bool((active & (size > SLOW * last)).any()), size
            self._form(w, eta, strength, stale)
            if self.direct:
                p = np.where(active, self.curvature.solve(-g), 0.0)
            else:
                p, iterations = self.conjugate_gradients(eta, strength, -g, np.minimum(0.1, np.sqrt(size)), active)
                stale = self.cheap or iterations > STALE
            exact = not self.direct or self.loss.quadratic or self.at is w
            w, eta, moved = self._searched(w, eta, p, g, strength)
            if not moved and not exact:
                last = np.zeros_like(last)  # so that the Hessian is formed here
            elif not moved:
                return Fit(w, eta, steps + 1, bool((size <= 1e3 * self.tolerance).all()))
        return Fit(w, eta, MOST_STEPS, False)

    def _searched(
        self, w: Coefficients, eta: Coefficients, p: Coefficients, g: Coefficients, strength: Coefficients
    ) -> tuple[Coefficients, Coefficients, bool]:
        """A step along p for each fold by halving, until the loss falls enough."""
        loss, data = self.loss, self.data
        along = data.times(p)
        slope = (p * g).sum((0, 1))
        bend, cross = (strength * p * p).sum((0, 1)), (strength * w * p).sum((0, 1))
        before = train_loss(loss, data, eta)
        t = np.where(slope < 0, 1.0, 0.0)
        rounding = 1e-14 * (np.abs(before) + (strength * w * w).sum((0, 1)))
        bad = np.zeros(len(t), bool)
        for _ in range(MOST_HALVINGS):
            with np.errstate(over="ignore", invalid="ignore"):
                after = train_loss(loss, data, eta + t * along)
                change = after - before + t * cross + t * t * bend / 2
            bad = ~(change <= SUFFICIENT * t * slope + rounding) & (t > 0)
            if not bad.any():
                break
            t = np.where(bad, t / 2, t)
        else:
            t = np.where(bad, 0.0, t)
        return w + t * p, eta + t * along, bool((t > 0).any())

    def adjoint(self, fit: Fit, strength: Coefficients, r: Coefficients) -> Coefficients:
        """H^-1 r at the solution, one linear system for each fold."""
        self._form(fit.w, fit.eta, strength, self.cheap)
        if self.direct:
            return self.curvature.solve(r)
        active = np.ones(r.shape[2], bool)
        tolerance = np.full(r.shape[2], 0.1 * self.tolerance if self.tolerance < LARGE_TOLERANCE else ROUGH_ADJOINT)
        return self.conjugate_gradients(fit.eta, strength, r, tolerance, active)[0]
