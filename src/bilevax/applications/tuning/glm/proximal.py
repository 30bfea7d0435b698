"""Proximal Newton with active sets, for penalties with norms (Lee, Sun and Saunders 2014; Massias et al. 2018).

Each fold keeps the coefficients that are not zero, and those whose optimality conditions are violated most: the active
set. On it the loss is replaced by its quadratic model, solved by `quadratic_minimum`, and a line search follows. The
other coefficients are looked at through the gradient alone, so wide and sparse tables cost what their active sets cost.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from bilevax.applications.tuning.glm.curvature import Coefficients, factorised, solved
from bilevax.applications.tuning.glm.data import CHUNK, Data
from bilevax.applications.tuning.glm.losses import Loss
from bilevax.applications.tuning.glm.newton import Fit
from bilevax.applications.tuning.glm.penalties import Blocks, Term
from bilevax.applications.tuning.glm.quadratic import norm_curvature, quadratic_minimum, violations

MOST_ROUNDS = 200
MOST_STEPS = 50
FEWEST_NEW = 10  # blocks that join the active set at a time, at least
MOST_HALVINGS = 40
ROUNDING = 1e-13


class Proximal:
    """The lower problem of all folds with norms.

    Args:
        loss, data, term: of the problem.
        null: the coefficients of the model of the intercepts alone, (p, outputs, folds).
        tolerance: of the optimality conditions, relative to the gradient of that model.
    """

    def __init__(self, loss: Loss, data: Data, term: Term, null: Coefficients, tolerance: float):
        self.loss, self.data, self.term, self.tolerance = loss, data, term, tolerance
        p, outputs, folds = data.shape
        self.outputs = outputs
        inner = np.arange(data.features * outputs)
        self.blocks: Blocks = [inner[i : i + 1] for i in inner] if term.blocks is None else list(term.blocks)
        self.singles = term.blocks is None
        self.roots = np.array([np.sqrt(len(b)) for b in self.blocks]) if not self.singles else np.ones(len(inner))
        self.firsts = inner if self.singles else np.array([b[0] for b in self.blocks])
        self.free = np.arange(data.features * outputs, p * outputs)  # the intercepts
        self.folds = [data.of_fold(k) for k in range(folds)]
        slope = loss.slope(data.times(null) + data.offset, data.y) * data.train[:, None, :]
        sizes = np.abs(data.transposed(slope)).max((0, 1))
        self.scale = np.maximum(sizes, 1e-12 * max(sizes.max(), 1e-300))

    def solve(self, strength: Coefficients, start: Coefficients) -> Fit:
        """Minimise from a start."""
        w, steps, converged = start.copy(), 0, True
        for k, data in enumerate(self.folds):
            found = _Fold(self, data, strength[:, :, k].ravel(), self.tolerance * self.scale[k])
            w[:, :, k], taken, good = found.solve(start[:, :, k])
            steps, converged = steps + taken, converged and good
        return Fit(w, self.data.times(w) + self.data.offset, steps, converged)

    def adjoint(self, fit: Fit, strength: Coefficients, r: Coefficients) -> Coefficients:
        """The solution of the linear system of the coefficients that are not zero; zero for the others."""
        found = np.zeros_like(r)
        for k, data in enumerate(self.folds):
            fold = _Fold(self, data, strength[:, :, k].ravel(), 0.0)
            w = fit.w[:, :, k].ravel()
            at = np.concatenate([np.flatnonzero(w[: data.features * self.outputs]), self.free])
            matrix = fold.curved(fit.eta[:, :, [k]], w, at)
            whole = np.zeros_like(w)
            whole[at] = solved(factorised(matrix), r[:, :, k].ravel()[at]) if len(at) else 0.0
            found[:, :, k] = whole.reshape(r.shape[:2])
        return found


class _Fold:
    """The lower problem of one fold, in flat coefficients: entry j * outputs + c is that of feature j, output c."""

    def __init__(self, lower: Proximal, data: Data, strength: Float[np.ndarray, " q"], tolerance: float):
        self.lower, self.data, self.strength, self.tolerance = lower, data, strength, tolerance
        term = lower.term
        self.weight = term.norm * strength[lower.firsts] * lower.roots  # of each block's norm
        self.ridge = term.square * strength

    def slope(self, eta: np.ndarray, w: np.ndarray) -> Float[np.ndarray, " q"]:
        """The gradient of the smooth part."""
        data = self.data
        return data.transposed(self.lower.loss.slope(eta, data.y) * data.train[:, None, :]).ravel() + self.ridge * w

    def smooth(self, eta: np.ndarray, at: Int[np.ndarray, " active"]) -> Float[np.ndarray, "active active"]:
        """The Hessian of the smooth part for some entries."""
        data, loss, outputs = self.data, self.lower.loss, self.lower.outputs
        features, classes = at // outputs, at % outputs
        train = data.train[:, 0]
        rows: Any = data.x[:, features]
        if not loss.coupled and outputs == 1:
            weight = loss.curvature(eta, data.y)[:, 0, 0] * train
            found = _gram(rows, weight)
        else:
            mean = loss.mean(eta)[:, :, 0]
            diagonal = loss.curvature(eta, data.y)[:, :, 0]
            found = np.zeros((len(at), len(at)))
            dense = rows.toarray() if sparse.issparse(rows) else rows
            for c in np.unique(classes):
                for other in np.unique(classes) if loss.coupled else [c]:
                    a, b = classes == c, classes == other
                    weight = diagonal[:, c] if c == other else -mean[:, c] * mean[:, other]
                    found[np.ix_(a, b)] = dense[:, a].T @ (dense[:, b] * (weight * train)[:, None])
        found[np.diag_indices_from(found)] += self.ridge[at]
        if loss.coupled and self.data.intercept:
            shared = np.isin(at, self.lower.free)
            found[np.ix_(shared, shared)] += 1 / outputs  # a shift of all intercepts changes nothing
        return found

    def curved(self, eta: np.ndarray, w: np.ndarray, at: Int[np.ndarray, " active"]) -> np.ndarray:
        """The Hessian of the whole objective for entries that are not zero."""
        found = self.smooth(eta, at)
        if not self.lower.singles:
            blocks, weight = self._within(at)
            found += norm_curvature(w[at], blocks, weight)
        return found

    def _within(self, at: Int[np.ndarray, " active"]) -> tuple[Blocks, Float[np.ndarray, " blocks"]]:
        """The blocks among some entries, in the places of those entries."""
        place = np.full(len(self.strength), -1)
        place[at] = np.arange(len(at))
        chosen = np.flatnonzero(place[self.lower.firsts] >= 0)
        blocks = [place[self.lower.blocks[i]] for i in chosen]
        free = [place[[i]] for i in self.lower.free]
        return blocks + free, np.concatenate([self.weight[chosen], np.zeros(len(free))])

    def solve(self, start: Float[np.ndarray, "p outputs"]) -> tuple[np.ndarray, int, bool]:
        """The coefficients, the number of steps, and whether the optimality conditions hold."""
        w, lower = start.ravel().copy(), self.lower
        eta = self.data.times(start[:, :, None]) + self.data.offset
        steps, inner, worst = 0, len(w) - len(lower.free), np.inf
        for _ in range(MOST_ROUNDS):
            g = self.slope(eta, w)
            wrong = violations(-g, w, lower.blocks, self.weight)
            free = np.abs(g[inner:]).max(initial=0.0)
            worst = max(float(wrong.max(initial=0.0)), float(free))
            if worst <= self.tolerance:
                return w.reshape(start.shape), steps, True
            kept = self._nonzero(w)
            fresh = np.flatnonzero((wrong > self.tolerance) & ~kept)
            room = max(FEWEST_NEW, int(kept.sum()))
            kept[fresh[np.argsort(-wrong[fresh])[:room]]] = True
            chosen = [lower.blocks[i] for i in np.flatnonzero(kept)]
            at = np.sort(np.concatenate([*chosen, lower.free]).astype(int))
            w, eta, taken = self._restricted(w, eta, at, max(self.tolerance, 0.1 * worst))
            steps += taken
            if taken == 0:
                break
        return w.reshape(start.shape), steps, worst <= 1e3 * self.tolerance

    def _nonzero(self, w: np.ndarray) -> np.ndarray:
        if self.lower.singles:
            return w[self.lower.firsts] != 0
        return np.array([w[b].any() for b in self.lower.blocks])

    def _restricted(
        self, w: np.ndarray, eta: np.ndarray, at: Int[np.ndarray, " active"], tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Proximal Newton on the active set."""
        blocks, weight = self._within(at)
        hessian = None
        for steps in range(MOST_STEPS):
            g = self.slope(eta, w)[at]
            if steps and violations(-g, w[at], blocks, weight).max(initial=0.0) <= 0.5 * tolerance:
                return w, eta, steps
            if hessian is None or not self.lower.loss.quadratic:
                hessian = self.smooth(eta, at)
            target = hessian @ w[at] - g
            new = quadratic_minimum(hessian, target, blocks, weight, w[at], 0.1 * tolerance)
            w, eta, moved = self._searched(w, eta, at, new - w[at], g, blocks, weight)
            if not moved:
                return w, eta, steps
        return w, eta, MOST_STEPS

    def _searched(
        self, w: np.ndarray, eta: np.ndarray, at: np.ndarray, step: np.ndarray, g: np.ndarray, blocks: Blocks, weight
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """A step by halving, until the objective falls enough."""
        data, loss = self.data, self.lower.loss
        whole = np.zeros_like(w)
        whole[at] = step
        along = data.times(whole.reshape(data.x.shape[1], -1, 1))
        start, ridge = w[at], self.ridge[at]

        def rest(x: np.ndarray) -> float:
            if self.lower.singles:
                norms = float((weight * np.abs(x[np.concatenate(blocks)])).sum())
            else:
                norms = float(sum(v * np.linalg.norm(x[b]) for b, v in zip(blocks, weight, strict=True)))
            return norms + float((ridge * x * x).sum()) / 2

        def smooth(e: np.ndarray) -> float:
            with np.errstate(over="ignore", invalid="ignore"):
                return float((data.train * loss.value(e, data.y)).sum())

        before, old = smooth(eta), rest(start)
        model = float(((g - ridge * start) * step).sum()) + rest(start + step) - old
        if not step.any():
            return w, eta, False
        if abs(model) <= ROUNDING * (abs(before) + abs(old)):  # the values no longer decide: a last step of Newton
            return w + whole, eta + along, True
        if model > 0:
            return w, eta, False
        t = 1.0
        for _ in range(MOST_HALVINGS):
            new = w.copy()
            new[at] = start + t * step
            change = smooth(eta + t * along) - before + rest(new[at]) - old
            if change <= 1e-4 * t * model + 1e-14 * (abs(before) + abs(old)):
                return new, eta + t * along, True
            t /= 2
        return w, eta, False


def _gram(rows: Any, weight: Float[np.ndarray, " n"]) -> Float[np.ndarray, "active active"]:
    if sparse.issparse(rows):
        return np.asarray((rows.T @ rows.multiply(weight[:, None]).tocsr()).todense())
    total: Any = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        total = total + part.T @ (part * weight[start : start + CHUNK, None])
    return total
