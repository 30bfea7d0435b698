"""The probability that a given label is wrong, for samples of which few or none are trusted."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bilevax._checks import InputError
from bilevax.applications.denoising import noise
from bilevax.applications.denoising.calibration import Calibrated, calibrated
from bilevax.applications.denoising.experts import TABLES, Expert, FittedStack, stack

LEAST_IN_DOUBT = 10
UNIFORM = 0.92  # a larger `noise.spread` of wrong labels is no structure


def require_doubt(kind: str, certain: Bool[np.ndarray, " n"], name: str | None = None) -> None:
    """Refuse to review fewer than `LEAST_IN_DOUBT` labels.

    Args:
        kind: what is reviewed, "labels" or "targets".
        certain: which ones are not in doubt.
        name: of the file.
    """
    doubted, n = int((~certain).sum()), len(certain)
    if doubted < LEAST_IN_DOUBT:
        raise InputError(
            f"{'' if name is None else f'{name}: '}{doubted} {kind} are in doubt, of {n} sample{'s' * (n != 1)}. "
            f"Pass at least {LEAST_IN_DOUBT} samples that are not trusted."
        )


class Ranking(NamedTuple):
    """The result of a review.

    Attributes:
        probability_wrong: that the given label is not the right one; 0 for trusted samples.
        expected_wrong: the number of wrong labels, and the ends of an interval for it of 90%.
        posterior: the probability of each class to be the right one, with the given label as evidence.
        sure: whether another label than the given one is to be taken, so that the most labels are right. Without
            trusted samples the given labels can be read as many wrong ones, whose number is `expected_wrong`, or as
            few, which is likelier (`Calibrated.evidence`): then it is the most probable label in the mean of both.
        noise_matrix: the probability of each given label (column) for each true class (row).
        power: by which predictions of the model are sharpened.
        predicted: the probability of each true class from the features alone, out of sample.
        model: what predicts other samples; None where probabilities were given.
    """

    probability_wrong: Float[np.ndarray, " n"]
    expected_wrong: tuple[float, float, float]
    posterior: Float[np.ndarray, "n classes"]
    sure: Bool[np.ndarray, " n"]
    noise_matrix: Float[np.ndarray, "classes classes"]
    power: float
    predicted: Float[np.ndarray, "n classes"]
    model: FittedStack | None


def rank(
    X: Shaped[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
    classes: int,
    experts: Sequence[Expert] = TABLES,
    seed: int = 0,
) -> Ranking:
    """Rank labels with classifiers that are fitted to the samples.

    1. A stack of experts learns the given labels of the samples in doubt; out of sample, it estimates p = q T.
    2. T comes from p and the given labels, then from the trusted samples if there are some (see `noise`).
    3. With trusted samples, the experts are fitted again, to these too. T is from the fit without them, because their
       right labels make p a mixture of q T and q.
    4. The posterior of the true class is a soft label; the experts are fitted to it, on all samples. Where trusted
       samples show that wrong labels have a structure (`noise.spread`), this is repeated with the new posterior.
    5. The predictions of the last fit are calibrated, and T is estimated once more (see `calibration.calibrated`).
    The calibrated posterior gives the probabilities. Their order is that of a weighted mean of three posteriors: before
    step 4, after it, and calibrated. The first is better where wrong labels have no structure, the last where they
    have.

    Args:
        X: samples.
        labels: given labels 0..classes-1, the right ones for trusted samples.
        trusted: which labels are known to be right.
        classes: number of classes.
        experts: the classifiers.
        seed: of their folds and their randomness.
    """
    one_hot = np.eye(classes)[labels]
    doubted = ~trusted
    first = stack(experts, X[doubted], one_hot[doubted], seed)
    p = np.zeros((len(X), classes))
    p[doubted] = first.out_of_sample
    if trusted.any():
        p[trusted] = first.predict(X[trusted])
    matrix = noise_matrix(p, labels, trusted)
    if trusted.any():
        first = stack(experts, X, one_hot, seed)
    found = refitted(experts, X, labels, trusted, first, matrix, seed)
    q = found.model.out_of_sample
    return ordered(found.evidence, found.last, q, labels, trusted, found.model)


class Refitted(NamedTuple):
    """The result of `refitted`.

    Attributes:
        model: the last fit.
        posterior: of the true class by the last fit, before the calibration.
        last: after it.
        evidence: of the samples in doubt, for their order; not normalised.
    """

    model: FittedStack
    posterior: Float[np.ndarray, "n classes"]
    last: Calibrated
    evidence: Float[np.ndarray, "doubted classes"]


def refitted(
    experts: Sequence[Expert],
    X: Shaped[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
    first: FittedStack,
    matrix: Float[np.ndarray, "classes classes"],
    seed: int,
) -> Refitted:
    """Steps 4 and 5 of `rank`.

    Args:
        experts, X, labels, trusted, seed: as for `rank`.
        first: the fit of given labels on all samples.
        matrix: T.
    """
    uniform = trusted.any() and noise.spread(matrix) > UNIFORM
    start = found = settled_posterior(first.out_of_sample, matrix, labels, trusted)
    model, soft = first, start
    for _ in range(2 if trusted.any() and not uniform else 1):
        soft = found
        model = stack(experts, X, soft, seed, first.weights)
        found = settled_posterior(model.out_of_sample, matrix, labels, trusted)
    last = calibrated(model.out_of_sample, labels, trusted, matrix, soft)
    before, after = (2, 1) if uniform else (1, 2)
    evidence = (before * start + found)[~trusted] + after * last.evidence
    return Refitted(model, found, last, evidence)


def rank_probabilities(
    p: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], trusted: Bool[np.ndarray, " n"]
) -> Ranking:
    """Rank labels with given out-of-sample probabilities of the given label; else as `rank`, without fits."""
    matrix = noise_matrix(p, labels, trusted)
    start = settled_posterior(p, matrix, labels, trusted)
    q = noise.deconvolved(p, matrix)
    last = calibrated(q, labels, trusted, matrix, start)
    return ordered(start[~trusted] + 2 * last.evidence, last, q, labels, trusted, None)


def noise_matrix(
    p: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], trusted: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "classes classes"]:
    """The noise matrix from given labels, and from trusted samples if there are some."""
    matrix = noise.from_given_labels(p[~trusted], labels[~trusted])
    return noise.from_trusted_labels(p[trusted], labels[trusted], matrix) if trusted.any() else matrix


def settled_posterior(
    q: Float[np.ndarray, "n classes"],
    matrix: Float[np.ndarray, "classes classes"],
    labels: Int[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, "n classes"]:
    """The posterior of the true class, of which trusted labels are certain."""
    found = noise.posterior(q, matrix, labels)
    found[trusted] = np.eye(len(matrix))[labels[trusted]]
    return found


def ordered(
    evidence: Float[np.ndarray, "doubted classes"],
    last: Calibrated,
    q: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
    model: FittedStack | None,
) -> Ranking:
    """The calibrated probabilities in the order of other ones."""
    doubted = np.flatnonzero(~trusted)
    order = np.argsort(noise.other_than(evidence, labels[doubted]), kind="stable")
    wrong, found = np.zeros(len(labels)), np.eye(q.shape[1])[labels]
    wrong[doubted[order]] = np.sort(noise.other_than(last.posterior, labels[doubted]))
    found[doubted] = last.posterior
    best, sure = last.posterior.argmax(1), np.zeros(len(labels), bool)
    sure[doubted] = (best != labels[doubted]) & (best == (last.posterior + last.evidence).argmax(1))
    likely = float(wrong.sum())
    interval = (likely, min(likely, max(0.0, last.least)), max(likely, min(float(len(doubted)), last.most)))
    return Ranking(wrong, interval, found, sure, last.noise, last.power, q, model)
