"""What an audit found."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from bilevax.applications.poisoning.points import Points

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        fractions: (k,) added samples over training samples.
        clean: (s,) test accuracy of the model without added samples, by seed.
        flipped: (k, s) with as many random samples of wrong labels: what carelessness would cost.
        attacked: (k, s) with the samples that the attack found.
        points: those of the largest fraction and the first seed, in the units of X, with labels as in y.
        base: (m, ...) the samples of X that they started from.
        base_labels: (m,) these samples' own labels.
        l2, l_inf: (m,) how far each point is from its base: of tables in units of each column's range, of images in
            the units of X.
        nearest: (m,) the distance (l2) of each point from the nearest sample of X, in the same units.
        usual_nearest: the median distance of a sample of X from its nearest other one; points much further out than
            this are easy to filter.
        majority: the accuracy of always naming the most frequent class of y, on the validation samples.
        logistic: that of scikit-learn's logistic regression on standardised features.
        held_out: how many samples the accuracies are measured on; the attack has not seen them.
        seconds: wall time.

    Example: see `audit`.
    """

    fractions: np.ndarray
    clean: np.ndarray
    flipped: np.ndarray
    attacked: np.ndarray
    points: Points
    base: np.ndarray
    base_labels: np.ndarray
    l2: np.ndarray
    l_inf: np.ndarray
    nearest: np.ndarray
    usual_nearest: float
    majority: float
    logistic: float
    held_out: int
    seconds: float

    def lost(self, accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy lost against the clean model, (k,), and half the width of its 95% confidence interval, (k,).

        The mean over the seeds, and Student's t; with one seed the width is NaN.
        """
        lost = self.clean[None] - accuracies
        count = lost.shape[1]
        if count < 2:
            return lost.mean(1), np.full(len(lost), np.nan)
        width = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * lost.std(1, ddof=1) / np.sqrt(count)
        return lost.mean(1), width

    def as_dict(self) -> dict[str, Any]:
        """The accuracies and the points, for a JSON file."""
        means = {name: self.lost(getattr(self, name)) for name in ("flipped", "attacked")}
        return {
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
        """The findings in a few sentences."""
        lost, _ = self.lost(self.attacked)
        of = "" if self.points.x.ndim > 2 else ", columns in units of their ranges"
        further = float((self.nearest > 2 * self.usual_nearest).mean())
        return (
            f"Without added samples the model is right on {100 * self.clean.mean():.1f}% of {self.held_out} held-out "
            f"samples (always the most frequent class: {100 * self.majority:.1f}%; logistic regression: "
            f"{100 * self.logistic:.1f}%). {len(self.points.y)} added samples ({100 * self.fractions[-1]:.1f}%) cost "
            f"up to {100 * lost[-1]:.1f} points. How visible they are: the median one is {np.median(self.l2):.3g} "
            f"(l2{of}) from where it started and {np.median(self.nearest):.3g} from its nearest clean neighbour; clean "
            f"samples are {self.usual_nearest:.3g} from theirs. {100 * further:.0f}% of them lie more than twice as "
            "far out, where a filter by distance would find them."
        )
