"""The data of an audit on one scale, and the models that it compares with."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevax.applications.poisoning.points import Points
from bilevax.applications.poisoning.rows import Rows
from bilevax.nn.model import Method, Model, initial, logits

REFERENCE_SAMPLES = 5000  # for logistic regression


class Scaled(NamedTuple):
    """Samples with entries in 0..1, and labels as indices of the classes.

    Attributes:
        x, y, x_val, y_val: of training and validation.
        classes: the user's labels.
        low, scale: a sample in the units of X is low + scale * x.
        rows: of the user's data frame; None for an array.
    """

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"]
    x_val: Float[np.ndarray, "n_val ..."]
    y_val: Int[np.ndarray, " n_val"]
    classes: Shaped[np.ndarray, " classes"]
    low: Float[np.ndarray, "*d"]
    scale: Float[np.ndarray, "*d"]
    rows: Rows | None

    def in_units(self, points: Points) -> Points:
        """Points in the units and with the labels of the user."""
        return Points(self.low + self.scale * np.asarray(points.x), self.classes[points.y])

    def valid(self, x: Float[np.ndarray, "m ..."]) -> Float[np.ndarray, "m ..."]:
        """Points that each have one of the values of X in every column of text."""
        if self.rows is None or not self.rows.groups:
            return x
        return ((self.rows.snapped(self.low + self.scale * x) - self.low) / self.scale).astype(x.dtype)


@dataclass(frozen=True)
class _Standardised:
    """A model of standardised columns. Means and deviations are tuples, so that equal models compare equal."""

    model: Model
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def init(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> PyTree:
        return initial(self.model, key, x)

    def apply(
        self, params: PyTree, x: Float[Array, "n d"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "n classes"]:
        scaled = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.deviation, x.dtype)
        return logits(self.model, params, scaled, key)


def standardised(model: Model, x: Float[np.ndarray, "n d"]) -> Model:
    """The model of standardised columns, by the means and deviations of x."""
    deviation = x.std(0)
    network = _Standardised(model, tuple(x.mean(0).tolist()), tuple(np.where(deviation > 0, deviation, 1).tolist()))
    return model._replace(init=Method(network, "init"), apply=Method(network, "apply"))


def references(data: Scaled) -> tuple[float, float]:
    """Return the accuracies of the most frequent class, and of logistic regression on at most 5,000 samples."""
    x, x_val = (a.reshape(len(a), -1) for a in (data.x, data.x_val))
    some = np.random.default_rng(0).permutation(len(x))[:REFERENCE_SAMPLES]
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic.fit(x[some], data.y[some])
    return float((data.y_val == np.bincount(data.y).argmax()).mean()), float(logistic.score(x_val, data.y_val))
