"""What each part of the ranking adds: the average precision of what `ranking.rank` would be without the later parts."""

import numpy as np
from jaxtyping import Float
from sklearn.metrics import average_precision_score

from bilevax.applications.denoising import noise
from bilevax.applications.denoising.calibration import calibrated
from bilevax.applications.denoising.experts import TABLES, FittedStack, stack
from bilevax.applications.denoising.ranking import REFITS, REFITS_ALONE
from experiments.denoising.public_tables import Draw

PARTS = (
    "classifiers alone",
    "+ T by EM",
    "+ trusted rows as labels",
    "+ T by the trusted loss",
    "+ refits",
    "+ calibration (all)",
    "all, T by EM",
)


def precisions_of_parts(drawn: Draw, seed: int) -> dict[str, float]:
    """The average precision of each of `PARTS`.

    Classifiers and T are those of the labels in doubt, except in the third row, whose classifiers also learn trusted
    rows; `rank` leaves these out of the first fit, since they are what T is tuned on. Each row from the fourth on has
    T by the trusted loss; the last has all but that. Without trusted rows, rows two to four are the same ranking.
    """
    doubted, labels = ~drawn.trusted, drawn.labels
    one_hot = np.eye(drawn.classes)[labels]
    first = stack(TABLES, drawn.X[doubted], one_hot[doubted], seed)
    p = np.zeros(one_hot.shape)
    p[doubted] = first.out_of_sample
    by_em = noise.from_given_labels(p[doubted], labels[doubted])
    parts = {"classifiers alone": p, "+ T by EM": noise.posterior(p, by_em, labels)}
    if drawn.trusted.any():
        with_trusted = stack(TABLES, drawn.X, one_hot, seed).out_of_sample
        matrix = noise.from_given_labels(with_trusted[doubted], labels[doubted])
        parts["+ trusted rows as labels"] = noise.posterior(with_trusted, matrix, labels)
        p[drawn.trusted] = first.predict(drawn.X[drawn.trusted])
        tuned = noise.from_trusted_labels(p[drawn.trusted], labels[drawn.trusted], by_em)
    else:
        parts["+ trusted rows as labels"], tuned = parts["+ T by EM"], by_em
    parts["+ T by the trusted loss"] = noise.posterior(p, tuned, labels)
    parts["+ refits"], whole = _refitted(drawn, first, p, tuned, seed)
    parts["+ calibration (all)"] = whole
    parts["all, T by EM"] = _refitted(drawn, first, p, by_em, seed)[1] if drawn.trusted.any() else whole
    return {part: precision(drawn, parts[part]) for part in PARTS}


def _refitted(
    drawn: Draw,
    first: FittedStack,
    p: Float[np.ndarray, "n classes"],
    matrix: Float[np.ndarray, "classes classes"],
    seed: int,
) -> tuple[Float[np.ndarray, "n classes"], Float[np.ndarray, "n classes"]]:
    """The posterior after the refits of `rank`, and the one that it returns, for a first estimate of T."""

    def soft_labels(
        q: Float[np.ndarray, "n classes"], noise_matrix: Float[np.ndarray, "classes classes"]
    ) -> Float[np.ndarray, "n classes"]:
        found = noise.posterior(q, noise_matrix, drawn.labels)
        return np.where(drawn.trusted[:, None], np.eye(drawn.classes)[drawn.labels], found)

    q, found = p, soft_labels(p, matrix)
    start = soft = found
    for _ in range(REFITS if drawn.trusted.any() else REFITS_ALONE):
        soft = found
        q = stack(TABLES, drawn.X, soft, seed, first.weights).out_of_sample
        found = soft_labels(q, matrix)
    last = calibrated(q, drawn.labels, drawn.trusted, matrix, soft)
    whole = found.copy()
    whole[~drawn.trusted] = ((start + found)[~drawn.trusted] + 2 * last.evidence) / 4
    return found, whole


def precision(drawn: Draw, posterior: Float[np.ndarray, "n classes"]) -> float:
    """The average precision of rows in doubt, ranked by the probability of other classes than the given one."""
    doubted = ~drawn.trusted
    suspicion = noise.other_than(posterior[doubted], drawn.labels[doubted])
    return float(average_precision_score(drawn.wrong[doubted], suspicion))
