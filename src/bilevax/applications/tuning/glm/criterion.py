"""The cross-validated loss as a function of the log strengths, and its exact gradient.

    F(u) = sum over folds k of  f_k(v_k(u)),    v_k(u) = argmin over v of  g_k(v) + sum_j exp(u_j) P_j(v)

f_k is the loss on the samples that fold k holds out, g_k that on its training samples. By the implicit function theorem
dF/du_j = - sum_k exp(u_j) q_k' dP_j/dv (v_k), with H_k q_k = grad f_k(v_k) and H_k the Hessian of the lower loss: one
linear system for each fold, which shares the factor of Newton's last step. For norms the system is that of the
coefficients that are not zero (Bertrand et al. 2020).
"""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from bilevax.applications.tuning.glm.curvature import Coefficients
from bilevax.applications.tuning.glm.data import Data
from bilevax.applications.tuning.glm.losses import Loss
from bilevax.applications.tuning.glm.newton import Fit
from bilevax.applications.tuning.glm.penalties import Term


class Lower(Protocol):
    """Solves the lower problems of all folds."""

    def solve(self, strength: Coefficients, start: Coefficients) -> Fit:
        """The coefficients for strengths, from a start."""
        ...

    def adjoint(self, fit: Fit, strength: Coefficients, r: Coefficients) -> Coefficients:
        """The solution of the linear system of the Hessian at the solution."""
        ...


class Evaluation(NamedTuple):
    """The cross-validated loss at one u.

    Attributes:
        value, gradient: F, and its gradient (strengths,).
        values: the part of each fold, (folds,).
        gradients: the gradient of each fold's part, (folds, strengths).
    """

    value: float
    gradient: Float[np.ndarray, " strengths"]
    values: Float[np.ndarray, " folds"]
    gradients: Float[np.ndarray, "folds strengths"]


class Criterion:
    """The cross-validated loss. It starts each lower problem from the last solution.

    Args:
        loss, data, term: of the lower problems.
        codes: the strength of each coefficient, (features, outputs), 0, 1, ...
        lower: the solver.
        start: coefficients to start from.
    """

    def __init__(
        self,
        loss: Loss,
        data: Data,
        term: Term,
        codes: Int[np.ndarray, "features outputs"],
        lower: Lower,
        start: Coefficients,
    ):
        self.loss, self.data, self.term, self.codes, self.lower = loss, data, term, codes, lower
        self.strengths = int(codes.max()) + 1
        self.start = start
        self.evaluations = 0
        self.unsolved = 0

    def strength(self, u: Float[np.ndarray, " strengths"]) -> Coefficients:
        """The strength of each coefficient in each fold; zero for the intercept."""
        found = np.exp(u)[self.codes][:, :, None] * self.data.boost
        return np.concatenate([found, np.zeros_like(found[:1])]) if self.data.intercept else found

    def fit(self, u: Float[np.ndarray, " strengths"]) -> Fit:
        """The solutions of the lower problems."""
        fit = self.lower.solve(self.strength(u), self.start)
        self.start = fit.w
        self.unsolved += not fit.converged
        return fit

    def held_out(self, fit: Fit) -> Float[np.ndarray, " folds"]:
        """The loss of each fold on the samples that it holds out, times their part of the weight."""
        return (self.data.held * self.loss.value(fit.eta, self.data.y)).sum(0)

    def __call__(self, u: Float[np.ndarray, " strengths"]) -> Evaluation:
        """F and its gradient."""
        self.evaluations += 1
        data, fit = self.data, self.fit(u)
        strength = self.strength(u)
        values = self.held_out(fit)
        r = data.transposed(self.loss.slope(fit.eta, data.y) * data.held[:, None, :])
        q = self.lower.adjoint(fit, strength, r)
        flat = fit.w.reshape(-1, fit.w.shape[2])
        slopes = np.stack([self.term.slope(w) for w in flat.T], axis=1).reshape(fit.w.shape)
        parts = -(q * strength * slopes)[: data.features]
        flat_codes = self.codes.ravel()
        gradients = np.stack(
            [np.bincount(flat_codes, part.ravel(), self.strengths) for part in np.moveaxis(parts, 2, 0)]
        )
        return Evaluation(float(values.sum()), gradients.sum(0), values, gradients)
