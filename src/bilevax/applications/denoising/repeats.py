"""Samples in doubt that a trusted set repeats: their right labels are known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bilevax.applications.denoising.experts import Expert
from bilevax.applications.denoising.network import Network
from bilevax.applications.denoising.ranking import Ranking, rank


class Settled(NamedTuple):
    """What is known about n samples, of which k are left when repeats are removed.

    Attributes:
        rows: the samples that are left.
        labels: their labels, the right ones where they are known.
        trusted: whose labels are right.
        place: for each of the n samples the one of `rows` that it is or repeats.
        contradicted: which of the n samples have another label than the trusted one.
    """

    rows: Int[np.ndarray, " k"]
    labels: Int[np.ndarray, " k"]
    trusted: Bool[np.ndarray, " k"]
    place: Int[np.ndarray, " n"]
    contradicted: Bool[np.ndarray, " n"]


def settle(labels: Int[np.ndarray, " n"], trusted: Bool[np.ndarray, " n"], twin: Int[np.ndarray, " n"]) -> Settled:
    """Give samples in doubt the labels of the trusted samples that repeat them.

    A sample that is trusted itself, or whose trusted repeats have different labels, is left as it is.

    Args:
        labels: as given, of trusted samples the right ones.
        trusted: which labels are right.
        twin: for a trusted sample the sample that it repeats; -1 for the others.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising.repeats import settle
        >>> known = settle(np.array([0, 1, 0]), np.array([False, False, True]), np.array([-1, -1, 1]))
        >>> known.labels.tolist(), known.trusted.tolist(), known.contradicted.tolist()
        ([0, 0], [False, True], [False, True, False])
    """
    right: dict[int, set[int]] = {}
    for i in np.flatnonzero(twin >= 0).tolist():
        right.setdefault(int(twin[i]), set()).add(int(labels[i]))
    settled = {i: next(iter(found)) for i, found in right.items() if len(found) == 1 and not trusted[i]}
    known, is_known, contradicted = labels.copy(), trusted.copy(), np.zeros(len(labels), bool)
    for i, label in settled.items():
        known[i], is_known[i], contradicted[i] = label, True, label != labels[i]
    repeats = np.isin(twin, list(settled))
    rows = np.flatnonzero(~repeats)
    number = np.cumsum(~repeats) - 1
    place = np.where(repeats, number[twin], number)
    return Settled(rows, known[rows], is_known[rows], place, contradicted)


def rank_settled(
    X: Shaped[np.ndarray, "n ..."], known: Settled, classes: int, experts: Sequence[Expert] | Network, seed: int
) -> Ranking:
    """Rank the samples in doubt by classifiers as `rank` does, or by a network.

    Returns:
        the ranking of all n samples. Samples with a trusted label have probability 0; those whose given label it
        contradicts have probability 1, and are counted among the wrong ones.
    """
    samples = X[known.rows], known.labels, known.trusted, classes
    found = experts.rank(*samples, seed) if isinstance(experts, Network) else rank(*samples, experts, seed)
    probability, expected = with_contradicted(known, found.probability_wrong, found.expected_wrong)
    return found._replace(
        probability_wrong=probability,
        expected_wrong=expected,
        posterior=found.posterior[known.place],
        sure=known.contradicted | found.sure[known.place],
        predicted=found.predicted[known.place],
    )


def with_contradicted(
    known: Settled, probability: Float[np.ndarray, " k"], expected: tuple[float, float, float]
) -> tuple[Float[np.ndarray, " n"], tuple[float, float, float]]:
    """The results of a ranking with the samples that a trusted label contradicts, which are wrong.

    Args:
        known: what a ranking gets, k of n samples.
        probability: of these, that the given label is wrong.
        expected: the number of wrong labels among them, and the ends of its interval.

    Returns:
        the same of all n samples.
    """
    count = float(known.contradicted.sum())
    likely, low, high = expected
    return np.where(known.contradicted, 1.0, probability[known.place]), (likely + count, low + count, high + count)
