"""Classifiers in the form of scikit-learn as the model of an audit."""

import copy
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.exceptions import ConvergenceWarning

from bilevax._checks import InputError, first_line
from bilevax.applications.poisoning.points import Points
from bilevax.applications.poisoning.rows import Rows
from bilevax.nn.model import Model
from bilevax.nn.networks import mlp, softmax_head

HIDDEN = 64  # units of the surrogate of a classifier that is not linear


def is_estimator(model: Any) -> bool:
    """Whether a model has methods `fit` and `predict`, as scikit-learn's have; a Keras model is a network.

    Raises:
        InputError: it is a regressor.
    """
    keras = sys.modules.get("keras")
    if isinstance(model, type) or (keras is not None and isinstance(model, keras.Model)):
        return False
    if not (callable(getattr(model, "fit", None)) and callable(getattr(model, "predict", None))):
        return False
    if isinstance(model, BaseEstimator) and is_regressor(model):
        raise InputError(f"model is {type(model).__name__}, a regressor. Pass a classifier.")
    return True


@dataclass(frozen=True)
class Estimator:
    """A classifier with methods `fit` and `predict`, and the data of an audit in the user's units.

    Attributes:
        model: the classifier; copies of it are fitted.
        x, y: training samples, a table or a data frame, and their labels.
        x_val, y_val: the same for validation.
        rows: of the data frame; None for a table.
    """

    model: Any
    x: Any
    y: Shaped[np.ndarray, " n"]
    x_val: Any
    y_val: Shaped[np.ndarray, " n_val"]
    rows: Rows | None

    @property
    def name(self) -> str:
        """The class of the classifier, of a pipeline its last step."""
        return type(_last_step(self.model)).__name__

    def fitted(self, points: Points | None, seed: int) -> Any:
        """A copy of the classifier, fitted to the samples and the points.

        Raises:
            InputError: it cannot be fitted.
        """
        x, y = self.x, self.y
        if points is not None:
            added = np.asarray(points.x).reshape(len(points.x), -1)
            y = np.concatenate([y, np.asarray(points.y)])
            if self.rows is None:
                x = np.concatenate([x, added.astype(x.dtype)])
            else:
                x = pd.concat([x, self.rows.frame(added)], ignore_index=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                return seeded(self.model, seed).fit(x, y)
        except Exception as error:  # from the user's classifier
            raise InputError(f"model {self.name} cannot be fitted to X and y: {first_line(error)}") from error

    def accuracy(self, points: Points | None, chosen: Int[np.ndarray, " k"], seed: int) -> float:
        """The accuracy on some validation samples after training with the points.

        Raises:
            InputError: it cannot be fitted, or does not predict labels.
        """
        fitted = self.fitted(points, seed)
        try:
            some = self.x_val[chosen] if self.rows is None else self.x_val.iloc[chosen]
            found = np.asarray(fitted.predict(some))
        except Exception as error:
            raise InputError(f"model {self.name} cannot predict X_val: {first_line(error)}") from error
        if found.shape != (len(chosen),) or not np.isin(found, self.y).all():
            raise InputError(
                f"model {self.name} predicts an array of shape {found.shape} for {len(chosen)} samples, and must "
                "predict a label of y for each."
            )
        return float((found == self.y_val[chosen]).mean())

    def surrogate(self) -> tuple[str, Any]:
        """The name and the network, a function of the number of classes, that an attack uses in place of this one.

        A linear classifier has softmax regression, any other a multilayer perceptron.
        """
        if hasattr(_last_step(self.fitted(None, 0)), "coef_"):
            return "softmax regression", softmax_head
        return f"a multilayer perceptron with a hidden layer of {HIDDEN}", _perceptron


def estimator_of(
    model: Any, tables: tuple[Any, Any], frames: tuple[Any, Any], y: Any, y_val: Any, rows: Rows | None
) -> Estimator:
    """The estimator of an audit: of data frames where X was one, unless it cannot be fitted to their columns of text.

    Args:
        model: the classifier.
        tables: the samples of training and validation as numbers.
        frames: the same as the user has passed them.
        y, y_val: labels.
        rows: of the data frame; None for an array.
    """
    table = Estimator(model, tables[0], y, tables[1], y_val, None)
    if rows is None:
        return table
    x, x_val = (pd.DataFrame(x, columns=pd.Index(rows.columns)) for x in frames)
    framed = Estimator(model, x, y, x_val, y_val, rows)
    if rows.groups:
        try:
            framed.fitted(None, 0)
        except InputError:
            return table
    return framed


def _perceptron(classes: int) -> Model:
    return mlp(classes, (HIDDEN,))


def _last_step(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = model.steps[-1][1]
    return model


def seeded(model: Any, seed: int) -> Any:
    """A copy of a classifier that was not fitted; where `random_state` is None it is the seed."""
    if not hasattr(model, "get_params"):
        return copy.deepcopy(model)
    found: Any = clone(model)
    free = [name for name, x in found.get_params().items() if name.split("__")[-1] == "random_state" and x is None]
    return found.set_params(**dict.fromkeys(free, seed % 2**32)) if free else found
