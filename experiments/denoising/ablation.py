"""What each part of the ranking adds: the average precision of what `ranking.rank` would be without the later parts."""

import numpy as np
from jaxtyping import Float
from sklearn.metrics import average_precision_score

from bilevax.applications.denoising import noise
from bilevax.applications.denoising.experts import TABLES, stack
from bilevax.applications.denoising.ranking import Refitted, refitted
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

    T is always estimated from classifiers that have not learned the trusted rows, as in `rank`: by EM up to the third
    row, from the fourth on by the trusted loss. The last row is the whole ranking with T by EM. Without trusted rows,
    rows two to four are the same ranking.
    """
    doubted, labels, trusted = ~drawn.trusted, drawn.labels, drawn.trusted
    one_hot = np.eye(drawn.classes)[labels]
    first = stack(TABLES, drawn.X[doubted], one_hot[doubted], seed)
    p = np.zeros(one_hot.shape)
    p[doubted] = first.out_of_sample
    by_em = tuned = noise.from_given_labels(p[doubted], labels[doubted])
    parts = {"classifiers alone": p, "+ T by EM": noise.posterior(p, by_em, labels)}
    if trusted.any():
        p[trusted] = first.predict(drawn.X[trusted])
        tuned = noise.from_trusted_labels(p[trusted], labels[trusted], by_em)
        first = stack(TABLES, drawn.X, one_hot, seed)
    parts["+ trusted rows as labels"] = noise.posterior(first.out_of_sample, by_em, labels)
    parts["+ T by the trusted loss"] = noise.posterior(first.out_of_sample, tuned, labels)
    found = refitted(TABLES, drawn.X, labels, trusted, first, tuned, seed)
    parts["+ refits"], parts["+ calibration (all)"] = found.posterior, _whole(drawn, found)
    alone = refitted(TABLES, drawn.X, labels, trusted, first, by_em, seed) if trusted.any() else found
    parts["all, T by EM"] = _whole(drawn, alone)
    return {part: precision(drawn, parts[part]) for part in PARTS}


def _whole(drawn: Draw, found: Refitted) -> Float[np.ndarray, "n classes"]:
    """The posterior by which `rank` orders rows in doubt."""
    whole = found.posterior.copy()
    whole[~drawn.trusted] = found.evidence / found.evidence.sum(1, keepdims=True)
    return whole


def precision(drawn: Draw, posterior: Float[np.ndarray, "n classes"]) -> float:
    """The average precision of rows in doubt, ranked by the probability of other classes than the given one."""
    doubted = ~drawn.trusted
    suspicion = noise.other_than(posterior[doubted], drawn.labels[doubted])
    return float(average_precision_score(drawn.wrong[doubted], suspicion))
