"""The report of an audit."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Shaped
from scipy import stats

from bilevax.applications.poisoning.points import Points

CONFIDENCE = 0.95


class Surrogate(NamedTuple):
    """The network that an attack used in place of the model, and its accuracy without added samples."""

    name: str
    accuracy: float


@dataclass(frozen=True)
class Report:
    """The report of an audit, with k numbers of added samples, s seeds and m points.

    Attributes:
        model: the name of the audited model, of which all accuracies are.
        surrogate: what the attack used in its place; None if it used the model's own gradient.
        fractions: number of added samples over number of training samples.
        clean: held-out accuracy of the model without added samples, by seed.
        flipped: held-out accuracy with random samples of wrong labels, as a baseline.
        attacked: held-out accuracy with the samples that the attack found.
        points: the added samples for the largest fraction and the first seed, in the units of X, with labels as in y.
        base: the samples of X that the points started from.
        base_labels: the labels of these samples.
        l2, l_inf: distance of each point from its base sample; for tables in units of each column's range, for images
            in the units of X.
        nearest: distance (l2) of each point from the nearest sample of X, in the same units.
        usual_nearest: median distance of a sample of X from its nearest neighbour in X. A filter by distance finds
            points whose distance is much larger.
        majority: accuracy of always predicting the most frequent class of y, on the validation samples.
        logistic: the same for scikit-learn's logistic regression on standardised features.
        held_out: number of samples on which the accuracies are measured; the attack does not see them.
        seconds: wall time.

    Example: see `audit`.
    """

    model: str
    surrogate: Surrogate | None
    fractions: Float[np.ndarray, " k"]
    clean: Float[np.ndarray, " s"]
    flipped: Float[np.ndarray, "k s"]
    attacked: Float[np.ndarray, "k s"]
    points: Points
    base: Float[np.ndarray | Array, "m ..."]
    base_labels: Shaped[np.ndarray, " m"]
    l2: Float[np.ndarray, " m"]
    l_inf: Float[np.ndarray, " m"]
    nearest: Float[np.ndarray, " m"]
    usual_nearest: float
    majority: float
    logistic: float
    held_out: int
    seconds: float

    def lost(self, accuracies: Float[np.ndarray, "k s"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return the loss of accuracy against the clean model, and half the width of its 95% confidence interval.

        Both are taken over the seeds, the width by Student's t-distribution; for one seed the width is NaN.
        """
        lost = self.clean[None] - accuracies
        count = lost.shape[1]
        if count < 2:
            return lost.mean(1), np.full(len(lost), np.nan)
        width = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * lost.std(1, ddof=1) / np.sqrt(count)
        return lost.mean(1), width

    def as_dict(self) -> dict[str, Any]:
        """Return the accuracies and the points, for a JSON file."""
        means = {name: self.lost(getattr(self, name)) for name in ("flipped", "attacked")}
        return {
            "model": self.model,
            "surrogate": None if self.surrogate is None else self.surrogate._asdict(),
            "clean_accuracy": self.clean.tolist(),
            "references": {"most_frequent_class": self.majority, "logistic_regression": self.logistic},
            "levels": [
                {
                    "fraction": float(self.fractions[i]),
                    **{
                        name: {
                            "accuracy": getattr(self, name)[i].tolist(),
                            "lost": float(mean[i]),
                            "half_width_95": None if np.isnan(width[i]) else float(width[i]),
                        }
                        for name, (mean, width) in means.items()
                    },
                }
                for i in range(len(self.fractions))
            ],
            "points": {
                "label": [str(label) for label in self.points.y],
                "base_label": [str(label) for label in self.base_labels],
                "l2": self.l2.tolist(),
                "l_inf": self.l_inf.tolist(),
                "nearest_clean": self.nearest.tolist(),
                "usual_nearest": self.usual_nearest,
                "x": np.asarray(self.points.x, float).round(6).tolist(),
            },
        }

    def in_words(self) -> str:
        """Return the findings in a few sentences."""
        lost, _ = self.lost(self.attacked)
        units = "" if self.points.x.ndim > 2 else ", columns in units of their ranges"
        further = float((self.nearest > 2 * self.usual_nearest).mean())
        through = ""
        if self.surrogate is not None:
            through = (
                f" {self.model} has no gradient: the samples were found by an attack on a surrogate, "
                f"{self.surrogate.name} (accuracy {100 * self.surrogate.accuracy:.1f}%). All other accuracies are of "
                f"{self.model}, trained again with them; an attack on it directly could cost more."
            )
        return (
            f"Without added samples the model has an accuracy of {100 * self.clean.mean():.1f}% on {self.held_out} "
            f"held-out samples (always the most frequent class: {100 * self.majority:.1f}%; logistic regression: "
            f"{100 * self.logistic:.1f}%). {len(self.points.y)} added samples ({100 * self.fractions[-1]:.1f}% of the "
            f"training samples) cost {100 * lost[-1]:.1f} percentage points. The median distance (l2{units}) of an "
            f"added sample is {np.median(self.l2):.3g} from its start and {np.median(self.nearest):.3g} from the "
            f"nearest clean sample; between clean neighbours it is {self.usual_nearest:.3g}. {100 * further:.0f}% of "
            "the added samples are more than twice as far from the clean ones, where a filter by distance finds them."
            + through
        )
