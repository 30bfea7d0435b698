"""The review of numeric targets as they were read, and how their numbers are written."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevax._checks import InputError
from bilevax.applications.denoising.ranking import require_doubt
from bilevax.applications.denoising.regressors import FORESTS, Regressor, defaults
from bilevax.applications.denoising.repeats import settle, with_contradicted
from bilevax.applications.denoising.reviewing import Model, require_all_rows
from bilevax.applications.denoising.targets import TargetRanking, rank_targets
from bilevax.data.samples.numbers import Style
from bilevax.data.samples.types import Samples

MOST_DECIMALS = 6  # of suggestions where the targets have more
DIGITS = 6  # significant ones of such suggestions
METHODS = {
    Model.auto: "Ridge regression, splines and two forests",
    Model.linear: "Ridge regression and splines",
    Model.trees: "Two forests",
}


class ReviewedTargets(NamedTuple):
    """The result of a review of n targets.

    Attributes:
        ranking: of all samples, those of a trusted file at the end.
        suggested: the predicted target; of a sample that a trusted one contradicts, that of the latter.
        method: what was done, in a line.
        vectors: that replaced the features of the samples; None where none did.
    """

    ranking: TargetRanking
    suggested: Float[np.ndarray, " n"]
    method: str
    vectors: Float[np.ndarray, "n d"] | None = None

    def suspects(self) -> Bool[np.ndarray, " n"]:
        """Whether a target is more probably wrong than right."""
        return self.ranking.probability_wrong > 0.5


def review_quantities(
    samples: Samples,
    model: Model = Model.auto,
    embeddings: Float[np.ndarray, "n d"] | None = None,
    seed: int = 0,
) -> ReviewedTargets:
    """Rank the targets of samples.

    A sample in doubt that the trusted file repeats is not in doubt: if its target is another one, it is wrong.

    Args:
        samples: as they were read.
        model: the regressors.
        embeddings: features that replace those of the samples of TRAIN.
        seed: of the regressors.

    Raises:
        InputError: fewer than ten targets are in doubt; the model does not predict quantities; embeddings come with a
            trusted file, for whose samples they have no rows.
    """
    if embeddings is not None:
        require_all_rows("--embeddings", samples)
    values, codes = np.unique(samples.labels, return_inverse=True)
    known = settle(codes, samples.trusted, samples.twin)
    require_doubt("targets", known.trusted, samples.name)
    X = np.asarray(samples.features if embeddings is None else embeddings, np.float64)
    found = rank_targets(
        X[known.rows], values[known.labels], known.trusted, _regressors(model, X.shape[1], samples.name), seed
    )
    probability, expected = with_contradicted(known, found.probability_wrong, found.expected_wrong)
    placed = found._replace(
        probability_wrong=probability,
        expected_wrong=expected,
        predicted=found.predicted[known.place],
        deviation=found.deviation[known.place],
    )
    right = values[known.labels][known.place]
    suggested = np.where(known.contradicted, right, placed.predicted)
    evidence = int(known.trusted.sum())
    said = f"with {evidence:,} trusted targets" if evidence else "from the given targets alone"
    method = f"{METHODS[model]}; large residuals are explained by wrong targets, {said}."
    return ReviewedTargets(placed, suggested, method, embeddings)


def _regressors(model: Model, columns: int, name: str) -> tuple[Regressor, ...]:
    chosen = {Model.auto: slice(None), Model.linear: slice(-len(FORESTS)), Model.trees: slice(-len(FORESTS), None)}
    if model in chosen:
        return defaults(columns)[chosen[model]]
    raise InputError(
        f"--model {model.value} does not predict quantities, and the target of {name} is one. Pass auto, linear or "
        "trees; vectors of a network are taken as --embeddings."
    )


def written(values: Float[np.ndarray, " n"], like: Float[np.ndarray, " m"], style: Style) -> list[str]:
    """Numbers as text, with as many decimals as other numbers have, in the style of a column.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising.quantities import written
        >>> from bilevax.data.samples.numbers import Style
        >>> written(np.array([3.14159, 20.0]), np.array([1.25, 3.5]), Style(decimal=","))
        ['3,14', '20,00']
        >>> written(np.array([3.7]), np.array([1.0, 12.0]), Style())
        ['4']
    """
    enough = (d for d in range(MOST_DECIMALS + 1) if np.allclose(like, np.round(like, d), rtol=0, atol=1e-9))
    decimals = next(enough, None)
    if decimals is None:
        texts = [f"{value:.{DIGITS}g}" for value in values.tolist()]
    else:
        texts = [f"{value + 0.0:.{decimals}f}" for value in np.round(values, decimals).tolist()]
    mark = "%" if style.sign == "%" else ""
    return [text.replace(".", style.decimal) + mark for text in texts]
