"""Which targets are wrong: a mixture of right ones, near the prediction, and of wrong ones, anywhere."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special
from sklearn.ensemble import ExtraTreesRegressor

from bilevax.applications.denoising.experts import no_score

FREEDOMS = (3.0, 5.0, 10.0, 50.0)  # of the Student distribution of right residuals
USUAL = 5.0
RATES = np.concatenate([[1e-4], np.linspace(0.005, 0.6, 120)])
TREES = 100  # of the forest of residuals
STEPS = 50  # of expectation maximisation
PRIOR = (0.03, 1.0)  # counts of wrong and of right targets for each target, without trusted ones
WEAK = (3.0, 18.0)  # counts of wrong and of right targets in all
DROP = 1.35  # of the log-likelihood within the interval
PART = 2.0  # prior count of each density of wrong targets
TINY = 1e-12


class Explained(NamedTuple):
    """The explanation of n targets.

    Attributes:
        wrong: the probability that each target is wrong; 0 for trusted samples.
        rate: of wrong ones among those in doubt.
        scale: of the right residuals, relative to the expected one.
        freedom: degrees of freedom of their distribution.
        least, most: the ends of an interval of 90% for the rate.
    """

    wrong: Float[np.ndarray, " n"]
    rate: float
    scale: float
    freedom: float
    least: float
    most: float


class _Fit(NamedTuple):
    """A mixture.

    Attributes:
        prior: counts of wrong and of right targets.
        rate: of wrong targets.
        parts: of their three densities.
        scale, freedom: of the residuals of right ones.
        likelihood: of the targets, with the prior.
    """

    prior: tuple[float, float]
    rate: float
    parts: Float[np.ndarray, " 3"]
    scale: float
    freedom: float
    likelihood: float


class _Targets(NamedTuple):
    """What a mixture explains: residuals over their deviation, its logarithm, and the densities of wrong targets."""

    z: Float[np.ndarray, " n"]
    logs: Float[np.ndarray, " n"]
    anywhere: Float[np.ndarray, "3 n"]
    trusted: Bool[np.ndarray, " n"]

    def wrong(self, fit: _Fit) -> Float[np.ndarray, " n"]:
        """The probability that each target is wrong."""
        found = np.log(fit.parts @ self.anywhere) - self.right(fit)
        odds = np.log(fit.rate) - np.log1p(-fit.rate) + found
        return np.where(self.trusted, 0.0, special.expit(odds))

    def right(self, fit: _Fit) -> Float[np.ndarray, " n"]:
        """The logarithm of the density of each target, if it is right."""
        return _student(self.z, fit.scale, fit.freedom) - self.logs

    def likelihood(self, fit: _Fit) -> float:
        """The logarithm of the likelihood and of the prior."""
        right, wrong = self.right(fit), np.log(fit.parts @ self.anywhere)
        both = np.logaddexp(np.log(fit.rate) + wrong, np.log1p(-fit.rate) + right)
        prior = fit.prior[0] * np.log(fit.rate) + fit.prior[1] * np.log1p(-fit.rate)
        return float(np.sum(np.where(self.trusted, right, both)) + prior)


def explained(
    y: Float[np.ndarray, " n"],
    predicted: Float[np.ndarray, " n"],
    deviation: Float[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
) -> Explained:
    """The mixture with the largest likelihood of the targets.

    A right target has a Student residual with the expected deviation. A wrong one is that of any sample, or lies
    anywhere around the median or around the prediction (Cauchy distributions), for targets in other units or with other
    noise. Without trusted samples, the given targets do not say whether large residuals are of wrong targets or of a
    distribution with heavy tails: usual tails are assumed, and a prior by which most targets are right. The interval is
    that of all tails, with this prior and with a weak one.

    Args:
        y: as given, of trusted samples the right ones.
        predicted: out of sample.
        deviation: expected of each residual, up to a factor.
        trusted: which targets are right.
    """
    targets = _Targets((y - predicted) / deviation, np.log(deviation), wrong_densities(y, predicted), trusted)
    certain, doubted = bool(trusted.any()), int(np.sum(~trusted))
    weak = [_fit(targets, freedom, WEAK) for freedom in FREEDOMS]
    if certain:
        best, fits = max(weak, key=lambda fit: fit.likelihood), weak
    else:
        strong = [_fit(targets, freedom, (doubted * PRIOR[0], doubted * PRIOR[1])) for freedom in FREEDOMS]
        best, fits = strong[FREEDOMS.index(USUAL)], [*weak, *strong]
    curves = np.array([[targets.likelihood(fit._replace(rate=rate)) for rate in RATES.tolist()] for fit in fits])
    top = best.likelihood if certain else curves.max(1, keepdims=True)
    likely = np.append(RATES[(curves >= top - DROP).any(0)], best.rate)
    return Explained(targets.wrong(best), best.rate, best.scale, best.freedom, float(likely.min()), float(likely.max()))


def _fit(targets: _Targets, freedom: float, prior: tuple[float, float]) -> _Fit:
    """The rate, the parts and the scale by expectation maximisation."""
    z, doubted = targets.z, int(np.sum(~targets.trusted))
    scale = float(np.median(np.abs(z))) * 1.2 + TINY
    fit = _Fit(prior, 0.1, np.full(3, 1 / 3), scale, freedom, 0.0)
    for _ in range(STEPS):
        wrong = targets.wrong(fit)
        rate = float(np.clip((wrong.sum() + prior[0]) / (doubted + sum(prior)), 1e-4, 0.9))
        shares = fit.parts[:, None] * targets.anywhere
        counts = (wrong * shares / shares.sum(0)).sum(1) + PART
        pull = (1 - wrong) * (freedom + 1) / (freedom + (z / fit.scale) ** 2)
        scale = float(np.sqrt(np.sum(pull * z**2) / np.sum(1 - wrong))) + TINY
        fit = _Fit(prior, rate, counts / counts.sum(), scale, freedom, 0.0)
    return fit._replace(likelihood=targets.likelihood(fit))


def _student(z: Float[np.ndarray, " n"], scale: float, freedom: float) -> Float[np.ndarray, " n"]:
    """The logarithm of the density of z."""
    constant = special.gammaln((freedom + 1) / 2) - special.gammaln(freedom / 2) - 0.5 * np.log(freedom * np.pi)
    return constant - np.log(scale) - (freedom + 1) / 2 * np.log1p((z / scale) ** 2 / freedom)


def wrong_densities(y: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]) -> Float[np.ndarray, "3 n"]:
    """Densities of wrong targets: that of all targets, one around their median, and one around the prediction."""
    low, middle, high = np.quantile(y, [0.25, 0.5, 0.75])
    spread = max(high - low, 1e-3 * float(np.std(y)), TINY)
    width = 0.9 * spread / 1.34 * len(y) ** -0.2
    ordered = np.sort(y)
    near = np.searchsorted(ordered, y + 2 * width, "right") - np.searchsorted(ordered, y - 2 * width)
    return np.stack([near / (len(y) * 4 * width), _cauchy(y - middle, 5 * spread), _cauchy(y - predicted, spread)])


def _cauchy(z: Float[np.ndarray, " n"], scale: float) -> Float[np.ndarray, " n"]:
    return 1 / (np.pi * scale * (1 + (z / scale) ** 2))


def expected_deviation(
    X: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    predicted: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    seed: int,
) -> Float[np.ndarray, " n"]:
    """The deviation that is expected of each residual, out of sample: that of all, moved by features and prediction.

    A forest predicts the logarithm of absolute residuals. How much of what it predicts is used is decided by the
    weighted likelihood of the residuals.
    """
    error = np.abs(y - predicted)
    typical = _weighted_median(error, weights)
    if typical == 0:
        typical = float(np.average(error, weights=weights + 1e-12)) or 1.0
    logs = np.log(np.clip(error / typical, 0.05, 20))
    kind: Any = ExtraTreesRegressor
    forest = kind(
        TREES, bootstrap=True, oob_score=no_score, min_samples_leaf=10, max_features=0.5, random_state=seed, n_jobs=-1
    )
    forest.fit(np.column_stack([X, predicted]), logs, sample_weight=weights + 1e-6)
    found = forest.oob_prediction_ - np.average(forest.oob_prediction_, weights=weights + 1e-12)
    best, chosen = -np.inf, 0.0
    for part in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25):
        z = error / (typical * np.exp(part * found))
        scale = _weighted_median(z, weights) * 1.4 or 1.0
        value = float(np.sum(weights * (_student(z, scale, 5.0) - part * found)))
        if value > best:
            best, chosen = value, part
    return typical * np.exp(chosen * found)


def _weighted_median(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][min(np.searchsorted(total, total[-1] / 2), len(values) - 1)])
