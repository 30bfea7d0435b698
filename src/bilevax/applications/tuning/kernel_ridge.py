"""Kernel ridge regression, or a Gaussian process, whose length-scales are tuned by leave-one-out or by folds.

With C the inverse of K + noise I, and a = C y, the residuals of the samples B of a fold by a model of the others are
C_BB^-1 a_B (Rasmussen and Williams 2006, section 5.4.2, for folds of one sample). So the cross-validated loss and its
exact gradient by all length-scales take one factorisation and two products of matrices.
"""

from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import KFold, check_cv
from sklearn.utils.validation import check_is_fitted

from bilevax._checks import InputError
from bilevax.applications._inputs import validated
from bilevax.applications._pickling import Picklable
from bilevax.applications._units import require_sizes
from bilevax.applications.tuning.glm.inputs import require_numbers

CONSTANT = 100.0  # variance of the unknown mean, in units of that of y
SHORTEST, LONGEST = np.log(1e-2), np.log(1e4)  # log length-scales, in standard deviations of the columns
QUIETEST, LOUDEST = np.log(1e-8), np.log(1e3)  # log noise, in units of the kernel at distance zero
DEVIATION = 2.0  # of log ratios of length-scales under their prior
STARTS = [(scale, noise) for scale in (0.5, 1.0, 3.0) for noise in (0.01, 0.1, 1.0)]
MOST_SAMPLES = 5000
KINDS = ("feature", "scalar")


class Held(NamedTuple):
    """The cross-validated loss, half the mean squared residual, and its gradient by the log parameters."""

    value: float
    gradient: Float[np.ndarray, " parameters"]


class _Posterior(NamedTuple):
    """What a kernel says about the samples.

    Attributes:
        kernel: without noise and constant, (n, n).
        inverse: of the kernel with both, (n, n).
        dual: the inverse times y, (n,).
        scaled: features over their length-scales, (n, d).
    """

    kernel: Float[np.ndarray, "n n"]
    inverse: Float[np.ndarray, "n n"]
    dual: Float[np.ndarray, " n"]
    scaled: Float[np.ndarray, "n d"]


def _kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.exp(-np.maximum(squares, 0) / 2)


def _posterior(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], theta: np.ndarray) -> _Posterior:
    scaled = x / np.exp(theta[:-1])
    kernel = _kernel(scaled, scaled)
    whole = kernel + CONSTANT
    whole[np.diag_indices(len(y))] += np.exp(theta[-1]) + 1e-10
    inverse = cho_solve(cho_factor(whole, lower=True), np.eye(len(y)))
    return _Posterior(kernel, inverse, inverse @ y, scaled)


def held_out(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], blocks: list[Int[np.ndarray, " size"]], theta: np.ndarray
) -> Held:
    """The loss on samples that are held out block by block.

    Args:
        x, y: features and targets.
        blocks: the samples of each fold.
        theta: the logarithms of the length-scales and of the noise, (d + 1,).
    """
    found = _posterior(x, y, theta)
    n = sum(map(len, blocks))
    value, a = 0.0, np.zeros(len(y))
    outer = np.zeros_like(found.inverse)  # the derivative by the blocks of the inverse
    for block in blocks:
        part = found.inverse[np.ix_(block, block)]
        residual = np.linalg.solve(part, found.dual[block])
        value += residual @ residual / (2 * n)
        a[block] = np.linalg.solve(part, residual) / n
        outer[np.ix_(block, block)] = -np.outer(a[block], residual)
    pulled = found.inverse @ a
    by_kernel = -np.outer(pulled, found.dual) - found.inverse @ outer @ found.inverse
    by_kernel = (by_kernel + by_kernel.T) / 2
    m = by_kernel * found.kernel
    z = found.scaled
    scales = 2 * (m.sum(1) @ (z * z)) - 2 * (z * (m @ z)).sum(0)
    noise = np.exp(theta[-1]) * np.trace(by_kernel)
    return Held(float(value), np.append(scales, noise))


class TunedKernelRidge(RegressorMixin, Picklable, BaseEstimator):
    """Kernel ridge regression by a Gaussian kernel, or a Gaussian process, tuned by cross-validation.

    A length-scale for each feature (automatic relevance determination) is found by L-BFGS-B from the exact gradient of
    the cross-validated squared error. Log ratios of length-scales have a normal prior of standard deviation 2: a
    feature that does not matter gets a long one, and few samples do not set many of them apart.

    Args:
        length_scales: "feature" for one for each feature, "scalar" for one.
        cv: "loo" to leave one sample out, a number of folds, or a splitter whose folds do not overlap.
        max_iter: iterations of L-BFGS-B.

    Attributes:
        length_scales_: (d,), in units of the columns of X; infinite for constant columns.
        noise_: the variance of the noise in units of the kernel, which is the strength of the ridge.
        held_out_loss_: half the mean squared error on samples held out.
        n_iter_: evaluations of that loss.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.tuning import TunedKernelRidge
        >>> rng = np.random.default_rng(0)
        >>> X = rng.uniform(-2, 2, size=(80, 3))
        >>> y = np.sin(2 * X[:, 0]) + 0.1 * rng.normal(size=80)
        >>> model = TunedKernelRidge().fit(X, y)
        >>> int(model.length_scales_.argmin()), bool(model.score(X, y) > 0.9)
        (0, True)
    """

    def __init__(self, length_scales: str = "feature", cv: Any = "loo", max_iter: int = 100):
        self.length_scales = length_scales
        self.cv = cv
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Tune by cross-validation, then fit all samples.

        Raises:
            InputError: an unknown kind of length-scales; targets that are texts or dates; more than 5,000 samples;
                folds that overlap.
            ValueError: as scikit-learn's `validate_data`.
        """
        if self.length_scales not in KINDS:
            raise InputError(f"length_scales is {self.length_scales!r}. Pass 'feature' or 'scalar'.")
        require_numbers(y)
        features, targets = validated(self, X, y, y_numeric=True, ensure_min_samples=3)
        if len(targets) > MOST_SAMPLES:
            raise InputError(
                f"X has {len(targets):,} samples, and the kernel a number for each pair of them. Pass at most "
                f"{MOST_SAMPLES:,}, or choose a linear model such as TunedRidge."
            )
        require_sizes("X", features)
        require_sizes("y", targets)
        blocks = _blocks(self.cv, features, targets)
        mean, deviation = features.mean(0), features.std(0)
        self._mean, self._scale = mean, np.where(deviation > 1e-12 * np.abs(features).max(0), deviation, np.inf)
        self._centre, self._unit = float(targets.mean()), float(targets.std()) or 1.0
        x, y_scaled = (features - mean) / self._scale, (targets - self._centre) / self._unit
        theta, loss = self._tuned(x, y_scaled, blocks)
        found = _posterior(x, y_scaled, theta)
        self._x, self._theta, self._dual, self._inverse = x, theta, found.dual, found.inverse
        # The residual of a sample left out has the variance amplitude / C_ii.
        diagonal = np.diag(found.inverse)
        self._amplitude = float((found.dual**2 / diagonal).mean())
        self.length_scales_, self.noise_ = np.exp(theta[:-1]) * self._scale, float(np.exp(theta[-1]))
        self.held_out_loss_ = loss * self._unit**2
        return self

    def _tuned(self, x: np.ndarray, y: np.ndarray, blocks: list[np.ndarray]) -> tuple[np.ndarray, float]:
        d = x.shape[1]
        self.n_iter_ = 0

        def evaluate(theta: np.ndarray) -> Held:
            self.n_iter_ += 1
            return held_out(x, y, blocks, theta)

        def of_one(pair: np.ndarray) -> tuple[float, np.ndarray]:
            found = evaluate(np.append(np.full(d, pair[0]), pair[1]))
            return found.value, np.array([found.gradient[:-1].sum(), found.gradient[-1]])

        starts = [np.log([scale * np.sqrt(d), noise]) for scale, noise in STARTS]
        first = min(starts, key=lambda pair: of_one(pair)[0])
        limits = [(SHORTEST, LONGEST), (QUIETEST, LOUDEST)]
        one = minimize(of_one, first, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": self.max_iter})
        theta = np.append(np.full(d, one.x[0]), one.x[1])
        if self.length_scales == "scalar" or d == 1:
            return theta, float(one.fun)
        unit = max(2 * float(one.fun), 1e-12) / len(y)

        def of_each(theta: np.ndarray) -> tuple[float, np.ndarray]:
            found = evaluate(theta)
            ratios = theta[:-1] - theta[:-1].mean()
            gradient = found.gradient / unit
            gradient[:-1] += ratios / DEVIATION**2
            return found.value / unit + ratios @ ratios / (2 * DEVIATION**2), gradient

        limits = [(SHORTEST, LONGEST)] * d + [(QUIETEST, LOUDEST)]
        options = {"maxiter": self.max_iter, "ftol": 1e-7}
        each = minimize(of_each, theta, jac=True, method="L-BFGS-B", bounds=limits, options=options)
        return each.x, evaluate(each.x).value

    def predict(
        self, X: ArrayLike, return_std: bool = False
    ) -> Float[np.ndarray, " n"] | tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The predicted mean of samples X (n, d); with `return_std` also the standard deviation of new targets."""
        check_is_fitted(self)
        x = (validated(self, X, reset=False) - self._mean) / self._scale
        scales = np.exp(self._theta[:-1])
        kernel = _kernel(x / scales, self._x / scales) + CONSTANT
        mean = kernel @ self._dual * self._unit + self._centre
        if not return_std:
            return mean
        explained = np.einsum("ij,jk,ik->i", kernel, self._inverse, kernel, optimize=True)
        variance = np.maximum(1 + CONSTANT - explained, 0) + self.noise_
        return mean, np.sqrt(self._amplitude * variance) * self._unit


def _blocks(cv: Any, x: np.ndarray, y: np.ndarray) -> list[Int[np.ndarray, " size"]]:
    n = len(y)
    if isinstance(cv, str) and cv == "loo":
        return list(np.arange(n)[:, None])
    if isinstance(cv, str | bool):
        raise InputError(f"cv is {cv!r}, and must be 'loo', a number of folds, or a splitter.")
    if isinstance(cv, int | np.integer):
        if not 2 <= cv <= n:
            raise InputError(f"cv is {cv}, and there are n_samples={n}: choose 2 to {n} folds, or 'loo'.")
        cv = KFold(int(cv), shuffle=True, random_state=0)
    splitter: Any = check_cv(cv, y)
    pairs = list(splitter.split(x, y))
    counts = np.bincount(np.concatenate([held for _, held in pairs]), minlength=n)
    if counts.max() > 1 or any(len(train) + len(held) < n for train, held in pairs):
        raise InputError("cv has folds that overlap, or that leave samples out. Choose KFold, or 'loo'.")
    return [np.asarray(held) for _, held in pairs]
