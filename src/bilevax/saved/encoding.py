"""Models as JSON values and arrays.

A value becomes a JSON value: numbers, texts, None and truth values as they are, anything else as an object with one
key that says what it is. Arrays are stored apart, and so are those estimators of scikit-learn whose attributes are not
known here: skops writes and reads them.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.interpolate import BSpline
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from bilevax.applications.denoising.estimator import DenoisingClassifier
from bilevax.applications.denoising.experts import FittedFolds, FittedForest, FittedStack
from bilevax.applications.denoising.network import FittedNetwork
from bilevax.applications.denoising.preparing import Preparation
from bilevax.applications.denoising.regressor import DenoisingRegressor
from bilevax.applications.denoising.regressors import FittedFoldRegressors, FittedForestRegressor, FittedRegressorStack
from bilevax.applications.denoising.softmax import FittedSoftmax
from bilevax.applications.tuning.glm import (
    L1,
    L2,
    ElasticNet,
    Gamma,
    GroupLasso,
    Huber,
    Logistic,
    Multinomial,
    Poisson,
    Quantile,
    Squared,
    SquaredHinge,
    TunedGLM,
    TunedLasso,
    TunedLogisticRegression,
    TunedPoissonRegressor,
    TunedRidge,
    TunedSVC,
    Tweedie,
)
from bilevax.applications.tuning.glm.choice import Candidate
from bilevax.applications.tuning.glm.estimator import History
from bilevax.data.samples.columns import Column
from bilevax.data.samples.new import Form
from bilevax.data.samples.numbers import Style
from bilevax.nn.adapters import as_model
from bilevax.nn.training import Training
from bilevax.saved.files import Denoised, FileModel
from bilevax.saved.folders import Content, versions
from bilevax.saved.forests import StoredForest, fitted_forest, stored_forest
from bilevax.saved.networks import StoredNetwork, code_of, is_network, model_by, network_of, stored_network
from bilevax.saved.objects import read_objects, written_objects

TUNED = (
    TunedGLM,
    TunedRidge,
    TunedLasso,
    TunedLogisticRegression,
    TunedPoissonRegressor,
    TunedSVC,
)
ESTIMATORS: dict[str, type] = {kind.__name__: kind for kind in (DenoisingClassifier, DenoisingRegressor, *TUNED)}
# Of scikit-learn, those that the default models hold: their attributes are numbers, arrays and each other.
PLAIN: dict[str, type] = {
    kind.__name__: kind
    for kind in (Pipeline, StandardScaler, SplineTransformer, LogisticRegression, RidgeCV, DummyClassifier)
}
RECORDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        FileModel,
        Form,
        Column,
        Style,
        Preparation,
        Denoised,
        FittedStack,
        FittedFolds,
        FittedForest,
        FittedSoftmax,
        FittedRegressorStack,
        FittedFoldRegressors,
        FittedForestRegressor,
        StoredForest,
        StoredNetwork,
        Training,
        *(Squared, Logistic, Multinomial, Poisson, Gamma, Tweedie, Huber, Quantile, SquaredHinge),
        *(L1, L2, ElasticNet, GroupLasso),
        *(Candidate, History),
    )
}


def encoded(model: Any) -> Content:
    """A model as the content of a folder.

    Raises:
        InputError: it holds an object that cannot be written without pickle.
    """
    encoder = _Encoder()
    described = encoder.of(model)
    return Content(described, encoder.arrays, written_objects(encoder.objects), versions())


class _Encoder:
    """The arrays and the estimators that were met so far."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.objects: list[Any] = []

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return float(value) if isinstance(value, np.floating) else value
        if isinstance(value, np.generic | np.ndarray):
            return self._array(np.asarray(value), isinstance(value, np.generic))
        if isinstance(value, BSpline):
            return {"spline": [self.of(part) for part in (value.t, value.c, value.k, value.extrapolate)]}
        if isinstance(value, FittedNetwork):
            return self.of(stored_network(value))
        if isinstance(value, FittedForest | FittedForestRegressor):
            return self.of(stored_forest(value))
        if type(value).__name__ in RECORDS and isinstance(value, RECORDS[type(value).__name__]):
            return self._record(value)
        for group, kinds in (("estimator", ESTIMATORS), ("sklearn", PLAIN)):
            if kinds.get(type(value).__name__) is type(value):
                return {group: type(value).__name__, "attributes": self._attributes(value)}
        if isinstance(value, dict):
            return {"dict": [[self.of(key), self.of(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.of(item) for item in value]}
        self.objects.append(value)
        return {"object": len(self.objects) - 1}

    def _array(self, value: np.ndarray, scalar: bool) -> Any:
        if value.dtype == object:
            return {"texts": [self.of(text) for text in value.tolist()]}
        name = str(len(self.arrays))
        self.arrays[name] = value
        return {"scalar" if scalar else "array": name}

    def _record(self, value: Any) -> Any:
        names = (
            [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else value._fields
        )
        fields = {name: getattr(value, name) for name in names}
        if "out_of_sample" in fields:  # the samples of the fit are not needed
            fields["out_of_sample"] = fields["out_of_sample"][:0]
        return {"record": type(value).__name__, "fields": {name: self.of(item) for name, item in fields.items()}}

    def _attributes(self, estimator: BaseEstimator) -> dict[str, Any]:
        attributes = dict(vars(estimator))
        if isinstance(estimator, DenoisingClassifier):
            if is_network(estimator.model):  # {} where its code cannot be saved
                attributes["model"] = code_of(as_model(estimator.model, len(estimator.classes_))) or {}
            if estimator.training is not None and callable(estimator.training.rate):
                attributes["training"] = None
        return {name: self.of(value) for name, value in attributes.items()}


def decoded(content: Content, network: Any = None, trusted: Collection[str] = ()) -> Any:
    """The model that a folder describes.

    Args:
        content: of the folder.
        network: takes the place of a network whose code is not saved.
        trusted: names of types that skops may load, beside those of scikit-learn.

    Raises:
        InputError: types are not trusted; a network is needed.
    """
    decoder = _Decoder(content, read_objects(content, trusted), network)
    return decoder.of(content.model)


class _Decoder:
    def __init__(self, content: Content, objects: list[Any], network: Any):
        self.content, self.objects, self.network = content, objects, network

    def of(self, value: Any) -> Any:
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise ValueError("a list has no kind")
            return value
        if "array" in value:
            return self.content.arrays[value["array"]]
        if "scalar" in value:
            return self.content.arrays[value["scalar"]][()]
        if "texts" in value:
            return np.array([self.of(text) for text in value["texts"]] + [None], dtype=object)[:-1]
        if "spline" in value:
            return BSpline(*(self.of(part) for part in value["spline"]))
        if "list" in value:
            return [self.of(item) for item in value["list"]]
        if "tuple" in value:
            return tuple(self.of(item) for item in value["tuple"])
        if "dict" in value:
            return {self.of(key): self.of(item) for key, item in value["dict"]}
        if "object" in value:
            return self.objects[value["object"]]
        if "record" in value:
            return self._record(value["record"], {name: self.of(item) for name, item in value["fields"].items()})
        kind: Any = ESTIMATORS[value["estimator"]] if "estimator" in value else PLAIN[value["sklearn"]]
        estimator = kind.__new__(kind)
        estimator.__dict__.update({name: self.of(item) for name, item in value["attributes"].items()})
        if isinstance(estimator, DenoisingClassifier) and isinstance(estimator.model, dict):
            estimator.model = model_by(estimator.model) if estimator.model else self.network
        return estimator

    def _record(self, name: str, fields: dict[str, Any]) -> Any:
        made = RECORDS[name](**fields)
        if isinstance(made, StoredForest):
            return fitted_forest(made)
        return network_of(made, self.network) if isinstance(made, StoredNetwork) else made
