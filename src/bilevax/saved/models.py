"""Saving a fitted model, and loading it."""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bilevax import _files
from bilevax._checks import InputError
from bilevax.saved import folders
from bilevax.saved.encoding import ESTIMATORS, decoded, encoded
from bilevax.saved.files import FileModel


def save_model(path: Path | str, model: Any) -> None:
    """Write a fitted model into a folder, without pickle.

    The folder holds `model.json` (settings, classes and columns), `arrays.npz` (the parameters of networks, forests and
    linear models) and, where the model has other estimators of scikit-learn, `estimators.skops`. `load_model` reads it
    back, and predicts the same bits on the same machine.

    The code of a network is saved for those of `bilevax.nn`; for others, `load_model` takes the network again. A
    learning rate that is a schedule is not saved.

    Args:
        path: of the folder; made if needed. Files in it that bilevax did not write are not touched.
        model: a fitted `DenoisingClassifier` or `DenoisingRegressor`, a tuned linear model such as `TunedRidge`, or a
            `FileModel`.

    Raises:
        InputError: the model is another one or is not fitted; it holds an object that cannot be written without pickle;
            the folder cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from bilevax.applications.denoising import DenoisingClassifier
        >>> from bilevax.saved import load_model, save_model
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = DenoisingClassifier().fit(X, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(pathlib.Path(folder, "iris"), classifier)
        ...     again = load_model(pathlib.Path(folder, "iris"))
        >>> bool(np.array_equal(again.predict_proba(X), classifier.predict_proba(X)))
        True
    """
    if not isinstance(model, (FileModel, *ESTIMATORS.values())):
        raise InputError(
            f"save_model: model is a {type(model).__name__}, and must be a FileModel or one of {', '.join(ESTIMATORS)}."
        )
    if not isinstance(model, FileModel) and not any(name.endswith("_") for name in vars(model)):
        raise InputError(f"save_model: {type(model).__name__} is not fitted. Call fit first.")
    files = files_of(model)
    outputs = _files.Outputs(Path(path), files, where="save_model")
    for name, content in files.items():
        outputs.write(name, lambda temporary, content=content: temporary.write_bytes(content))


def files_of(model: Any) -> dict[str, bytes]:
    """The files of a model's folder, in the order in which they are to be written.

    Raises:
        InputError: the model holds an object that cannot be written without pickle.
    """
    return folders.packed(encoded(model))


def load_model(path: Path | str, network: Any = None, trusted: Collection[str] = ()) -> Any:
    """The fitted model that `save_model`, or a command of bilevax, wrote into a folder.

    No code of the folder is run. Of scikit-learn, its estimators are known; types of other libraries are refused by
    name, unless they are listed.

    Args:
        path: of the folder.
        network: what was passed as `model`, where that is a network that is not of `bilevax.nn`.
        trusted: full names of types of other libraries that may be loaded, such as "xgboost.sklearn.XGBClassifier".
            Their own code runs then: list them only if you trust whoever made the folder.

    Returns:
        What was saved: an estimator, or the `FileModel` of a command.

    Raises:
        InputError: the folder is none of a model, is damaged, or was written by a newer version; it holds types that
            are not trusted, or a network that is not passed.
    """
    content = folders.unpacked(Path(path))
    if changed := folders.changes(content):
        warnings.warn(
            f"The model {path} was saved with {changed}: predictions may differ, or fail.", UserWarning, stacklevel=2
        )
    return folders.intact(Path(path), lambda: decoded(content, network, trusted))
