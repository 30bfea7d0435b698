"""Calibrated probabilities of the true class, and an interval for the number of wrong labels.

Predictions of a classifier that was fitted to soft labels are too cautious. A power of them, normalised, is used in
their place. Trusted labels determine the power, and with it the noise matrix T and the number of wrong labels. Without
trusted labels, soft predictions and few wrong labels explain the given labels as well as sharp predictions and many
wrong labels do; the interval then holds both.

T supposes that a wrong label depends on the true class alone. Labels that people gave depend on the features too: what
is hard for the classifier is hard for them. Therefore a part of the given labels counts as no evidence, and the
interval reaches half of the way to the number for given labels that depend on the features alone.

The constants were chosen on tables other than those reported (experiments/denoising/tables.py, DEVELOPMENT), and on a
draw of CIFAR-10N.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bilevax.applications.denoising.noise import (
    expectation_maximisation,
    floored,
    other_than,
    own,
    posterior,
    sharpened,
)

Z_90 = 1.645
POWERS = np.geomspace(0.5, 8, 33)
MOST_FOR_POWER = 5_000  # samples from which the power is estimated
MULTIPLES = np.geomspace(1, 6, 8)  # of the power that fits the soft labels best
ALONE = 1.75  # without trusted samples: the power, as a multiple of the one that fits the soft labels best
DEVIATION = 0.5  # of the logarithm of the power, before trusted samples are seen
DROP = Z_90**2 / 2  # of the logarithm of a posterior density, to the ends of an interval of 90%
NOISE_COUNT = 10.0  # pseudo-counts of each row of T when it is estimated again
UNEXPLAINED = 0.1  # the part of the given labels that are no evidence
FEATURES_ALONE = 0.5  # how far the interval reaches to the number for given labels that depend on the features alone
CONFUSION_COUNT = 5.0  # pseudo-counts of the true classes of the samples with the same predicted class
NOISE_DRAWS, SKIPPED = 400, 100  # of the number of wrong labels, and how many of the first are left out
TINY = 1e-12


class Calibrated(NamedTuple):
    """The explanation of the given labels by predictions of the true class.

    Attributes:
        power: by which the predictions are sharpened.
        noise: the noise matrix.
        posterior: the probability of each true class of the samples in doubt.
        evidence: for the order of the samples in doubt. With trusted samples it is `posterior`; without, it is that of
            the power with the largest likelihood of the given labels, which ranks well and finds too few wrong labels.
        least, most: the ends of an interval of 90% for the number of labels in doubt that are wrong.
    """

    power: float
    noise: Float[np.ndarray, "classes classes"]
    posterior: Float[np.ndarray, "doubted classes"]
    evidence: Float[np.ndarray, "doubted classes"]
    least: float
    most: float


def calibrated(
    q: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
    noise: Float[np.ndarray, "classes classes"],
    soft: Float[np.ndarray, "n classes"],
) -> Calibrated:
    """The power of q, the noise matrix, the posterior of the true class, and the number of wrong labels.

    With trusted samples the power has the largest likelihood of their labels, and the interval holds what likely
    powers and likely confusions of the predicted class give (`numbers_of_wrong_labels`). Without, it reaches from
    predictions that are as sure as those of the soft labels, to predictions that are certain: then all labels but the
    predicted ones are wrong.

    Args:
        q: out-of-sample predictions of the true class.
        labels: given labels, the right ones for trusted samples.
        trusted: which labels are right.
        noise: an earlier estimate of T, the mean of its prior.
        soft: the soft labels to which the classifier of q was fitted.
    """
    doubted, given = q[~trusted], labels[~trusted]
    some = slice(None, None, max(1, len(q) // MOST_FOR_POWER))
    fits = likeliest_power(q[some], soft[some])
    explain = lambda power: _explained(sharpened(doubted, power), given, noise)  # noqa: E731
    if trusted.any():
        low, power, high = _powers_of_trusted(q[trusted], labels[trusted], ALONE * fits)
    else:
        low, power, high = fits, ALONE * fits, np.inf
    found, matrix = explain(power)
    sharp = sharpened(q, power)
    least, most = _number(explain(low)[0], given, -1), 0.0
    if trusted.any():
        draws = numbers_of_wrong_labels(sharp, labels, trusted, matrix)
        least = min(least, float(np.quantile(draws, 0.05)))
        most = max(_number(explain(high)[0], given, 1), float(np.quantile(draws, 0.95)))
        most += FEATURES_ALONE * max(0.0, float(other_than(sharp[~trusted], given).sum()) - most)
    else:
        most = float(np.sum(doubted.argmax(1) != given))
    mixed = evidence = (1 - UNEXPLAINED) * found + UNEXPLAINED * sharp[~trusted]
    if not trusted.any():
        evidence, _ = explain(_power_of_given(q[some], labels[some], noise, fits))
    return Calibrated(power, matrix, mixed, evidence, least, most)


def likeliest_power(q: Float[np.ndarray, "n classes"], soft: Float[np.ndarray, "n classes"]) -> float:
    """The power of predictions with the largest likelihood of soft labels."""
    return float(POWERS[np.argmax([np.sum(soft * np.log(sharpened(q, power))) for power in POWERS])])


def _powers_of_trusted(
    q: Float[np.ndarray, "m classes"], right: Int[np.ndarray, " m"], usual: float
) -> tuple[float, float, float]:
    """The lower end of an interval of 90%, the most probable power, and the upper end.

    The logarithm of the power is normally distributed around that of `usual` before labels are seen.
    """
    distance = (np.log(POWERS) - np.log(usual)) / DEVIATION
    fit = np.array([np.sum(np.log(own(sharpened(q, power), right))) for power in POWERS]) - distance**2 / 2
    likely = POWERS[fit >= fit.max() - DROP]
    return float(likely.min()), float(POWERS[fit.argmax()]), float(likely.max())


def _power_of_given(
    q: Float[np.ndarray, "n classes"],
    given: Int[np.ndarray, " n"],
    noise: Float[np.ndarray, "classes classes"],
    least: float,
) -> float:
    """The power, at least that of the soft labels, with the largest likelihood of given labels."""

    def likelihood(power: float) -> float:
        sharp = sharpened(q, power)
        return float(np.sum(np.log(own(sharp @ _explained(sharp, given, noise)[1], given))))

    return max((least * multiple for multiple in MULTIPLES), key=likelihood)


def _explained(
    q: Float[np.ndarray, "n classes"], given: Int[np.ndarray, " n"], noise: Float[np.ndarray, "classes classes"]
) -> tuple[Float[np.ndarray, "n classes"], Float[np.ndarray, "classes classes"]]:
    """The posterior of the true class, and T."""
    matrix = expectation_maximisation(q, given, NOISE_COUNT * noise)
    return posterior(q, matrix, given), matrix


def _number(found: Float[np.ndarray, "n classes"], given: Int[np.ndarray, " n"], sign: int) -> float:
    """The number of wrong labels, less or more the half of an interval of 90% for independent labels."""
    wrong = other_than(found, given)
    return float(wrong.sum() + sign * Z_90 * np.sqrt(np.sum(wrong * (1 - wrong))))


def numbers_of_wrong_labels(
    q: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
    noise: Float[np.ndarray, "classes classes"],
) -> Float[np.ndarray, " draws"]:
    """Draws of the number of wrong labels in doubt, from the predicted class alone.

    Of the samples with the same predicted class l, those that are trusted show the true classes, C[l, k], and those in
    doubt the given labels, of which sum_k C[l, k] T[k, j] are j. Both C and T are unknown, with Dirichlet priors; their
    posterior is sampled (Gibbs). Unlike the likelihood of each sample, this needs no calibrated predictions.

    Args:
        q: predictions of the true class, the means of the prior of C.
        labels: given labels, the right ones for trusted samples.
        trusted: which labels are right.
        noise: the mean of the prior of T.
    """
    rng, classes = np.random.default_rng(0), q.shape[1]
    one_hot, predicted = np.eye(classes)[labels], np.eye(classes)[q.argmax(1)]
    counts = (predicted[~trusted].T @ one_hot[~trusted]).astype(int)
    prior = predicted[~trusted].T @ floored(q[~trusted]) + TINY
    prior = predicted[trusted].T @ one_hot[trusted] + CONFUSION_COUNT * prior / prior.sum(1, keepdims=True)
    rows, given = np.nonzero(counts)
    confusion, matrix = prior / prior.sum(1, keepdims=True), noise
    numbers = np.empty(NOISE_DRAWS)
    for i in range(NOISE_DRAWS):
        share = confusion[rows] * matrix[:, given].T + TINY
        drawn = rng.multinomial(counts[rows, given], share / share.sum(1, keepdims=True))  # by the true class
        numbers[i] = drawn.sum() - np.take_along_axis(drawn, given[:, None], 1).sum()
        by_predicted, by_given = np.zeros((classes, classes)), np.zeros((classes, classes))
        np.add.at(by_predicted, rows, drawn)
        np.add.at(by_given, given, drawn)
        confusion = _dirichlet(rng, prior + by_predicted)
        matrix = _dirichlet(rng, CONFUSION_COUNT * noise + by_given.T)
    return numbers[SKIPPED:]


def _dirichlet(
    rng: np.random.Generator, counts: Float[np.ndarray, "rows classes"]
) -> Float[np.ndarray, "rows classes"]:
    drawn = rng.gamma(counts) + TINY
    return drawn / drawn.sum(1, keepdims=True)
