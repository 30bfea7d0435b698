"""Checks of what users pass to the applications: samples and labels.

The estimators of tables, `TunedGLM` and `TunedLasso`, use scikit-learn's `validate_data`. These checks are
for what it does not accept: images, which may stay bytes, labels of any one type, and pairs of data sets with the same
features.
"""

import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int, Shaped
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import validate_data

from bilevax._checks import InputError, listed
from bilevax.applications._units import require_sizes
from bilevax.nn.model import pixels
from bilevax.nn.training import require_finite

REAL = numbers.Real | np.bool_


def sample_shape(shape: tuple[int, ...]) -> str:
    """Return the shape of one sample, for a message."""
    return " x ".join(str(n) for n in shape)


def numeric(name: str, X: Any) -> Shaped[np.ndarray, "..."]:
    """Return an array of finite real numbers in the dtype of X; objects become floats.

    Raises:
        InputError: text, dates, complex numbers, missing values, a sparse matrix, rows of different lengths.
    """
    if sparse.issparse(X) or type(X).__module__.partition(".")[0] == "sparse":
        raise InputError(f"{name} is a sparse matrix, and must be a dense array. Pass {name}.toarray().")
    if hasattr(X, "columns") and hasattr(X, "select_dtypes"):
        others = X.columns.difference(X.select_dtypes(["number", "bool"]).columns, sort=False)
        if len(others):
            raise InputError(
                f"{name} has columns that hold no numbers: {listed(others)}. Encode them as numbers, for example by "
                "scikit-learn's OneHotEncoder, or leave them out."
            )
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise InputError(f"{name} is a masked array with {np.ma.count_masked(X)} masked values. Fill them first.")
    try:
        x = np.asarray(X)
        if x.dtype == object:
            text = next((value for value in x.flat if isinstance(value, str | bytes)), None)
            if text is not None:
                raise TypeError(f"for example {text!r}")
            has_complex = any(isinstance(v, numbers.Complex) and not isinstance(v, REAL) for v in x.flat)
            x = np.asarray(x, complex if has_complex else float)
    except Exception as error:  # whatever the object's own conversion raises
        raise InputError(
            f"{name} holds values that are not numbers ({str(error).strip().rstrip('.')}). Pass an array of numbers, "
            "one row per sample, without missing values."
        ) from error
    if x.dtype.kind == "c":
        raise InputError(
            f"{name} holds complex numbers, whose imaginary parts would be lost. Complex data not supported: pass real "
            "numbers, for example both parts as columns."
        )
    if x.dtype.kind not in "biuf" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"{name} holds values that are not numbers (dtype {x.dtype}). Encode them as numbers first.")
    require_finite(name, x)
    return x


def features(name: str, X: Any) -> Shaped[np.ndarray, "n ..."]:
    """Return samples (n, ...) as floats of JAX's default precision; images (n, h, w, ...) of uint8 stay bytes.

    Raises:
        InputError: as `numeric`; a rank below 2; no samples or no features; numbers beyond the range of the floats.
    """
    x = numeric(name, X)
    if x.ndim == 2 and x.shape[1] == 0:
        raise InputError(
            f"{name} has shape {x.shape}: 0 feature(s) (shape={x.shape}) while a minimum of 1 is required. Pass at "
            "least one column."
        )
    if x.ndim < 2 or 0 in x.shape:
        hint = f" Reshape your data: {name}.reshape(1, -1) is one sample." if x.ndim == 1 else ""
        raise InputError(
            f"{name} has shape {x.shape}, and must have one row per sample and at least one of each.{hint}"
        )
    if x.dtype == np.uint8 and x.ndim > 2:
        return x
    dtype = jnp.result_type(float)
    with np.errstate(over="ignore"):
        floats = x.astype(dtype)
    if not np.isfinite(floats).all():
        largest = float(np.abs(x.astype(np.float64)).max())
        raise InputError(f"{name} holds numbers up to {largest:g}, beyond the range of {np.dtype(dtype)}. Scale them.")
    return floats


def labels(name: str, y: Any) -> Shaped[np.ndarray, " n"]:
    """Return one label for each sample, (n,), all of one type.

    Raises:
        InputError: another shape; missing labels; labels of several types; fractions or complex numbers.
    """
    if y is None:
        raise InputError(f"{name} is missing: this requires {name} to be passed, but the target {name} is None.")
    if sparse.issparse(y):
        raise InputError(f"{name} is a sparse matrix, and must be an array of labels (n,).")
    # NumPy converts a list that mixes strings and numbers to strings.
    values = list(y) if isinstance(y, list | tuple) else None
    try:
        found = np.asarray(y)
    except Exception as error:
        raise InputError(f"{name} is not an array of labels ({error}). Pass one label per sample: (n,).") from error
    if found.ndim != 1:
        hint = f" Pass {name}.ravel()." if found.ndim == 2 and 1 in found.shape else ""
        raise InputError(f"{name} has shape {found.shape}, and must have one label per sample: (n,).{hint}")
    mixed = values is not None and found.dtype.kind in "US" and not all(isinstance(v, str | bytes) for v in values)
    if mixed or found.dtype == object:
        found = np.empty(len(found), object)
        found[:] = y if values is None else values
    if np.ma.is_masked(y):
        missing = int(np.ma.count_masked(y))
    else:
        missing = sum(_missing(v) for v in found) if found.dtype == object else int((found != found).sum())
    if missing:
        raise InputError(f"{name} has {missing} missing labels. Leave those samples out, or label them first.")
    if found.dtype == object:
        kinds = {"text" if isinstance(v, str) else type(v).__name__ for v in found if not isinstance(v, REAL)}
        if kinds and (len(kinds) > 1 or any(isinstance(v, REAL) for v in found)):
            kinds |= {"numbers"} if any(isinstance(v, REAL) for v in found) else set()
            raise InputError(
                f"{name} mixes labels of several types ({', '.join(sorted(kinds))}). Make them all strings, or all "
                "numbers."
            )
        if not kinds:
            found = np.asarray([v.item() if isinstance(v, np.generic) else v for v in found])
        elif kinds == {"text"}:
            found = found.astype(str)
    if found.dtype.kind in "cV" or found.dtype == object:
        raise InputError(f"{name} holds labels of type {found.dtype}. Make them all strings, or all integers.")
    if jnp.issubdtype(found.dtype, jnp.floating):
        fractions = found[found != np.round(found)] if np.isfinite(found).all() else found[~np.isfinite(found)]
        if len(fractions):
            raise InputError(
                f"{name} holds fractions (for example {fractions[0]:g}): a continuous quantity, not labels. Pass "
                "classes."
            )
    return found


def _missing(label: Any) -> bool:
    """Return whether a label is None, NaN, or pandas' NA or NaT, which do not compare as true or false."""
    if label is None or type(label).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(label, float | np.floating) and bool(label != label)


def samples(x_name: str, X: Any, y_name: str, y: Any) -> tuple[Shaped[np.ndarray, "n ..."], Shaped[np.ndarray, " n"]]:
    """Return samples and labels; raises as `features` and `labels`, and where lengths differ."""
    x, found = features(x_name, X), labels(y_name, y)
    require_label_each(x_name, x, y_name, found)
    return x, found


def flat_labels(name: str, y: Any) -> Any:
    """Return y, or a column (n, 1) as (n,) with a warning."""
    if len(getattr(y, "shape", ())) != 2 or y.shape[1] != 1:
        return y
    warnings.warn(
        f"A column-vector {name} was passed when a 1d array was expected: {name} is read as {name}.ravel().",
        DataConversionWarning,
        stacklevel=3,
    )
    return np.asarray(y).ravel()


def require_label_each(x_name: str, x: np.ndarray, y_name: str, found: np.ndarray) -> None:
    """Refuse samples and labels of different numbers."""
    if len(x) != len(found):
        raise InputError(f"{x_name} has {len(x)} samples and {y_name} {len(found)} labels. One label each is needed.")


def coded_samples(
    x_name: str, X: Any, y_name: str, y: Any
) -> tuple[Shaped[np.ndarray, "n ..."], Int[np.ndarray, " n"]]:
    """Return samples, and their labels 0, 1, ... as integers.

    Raises:
        InputError: as `samples`; labels that are not numbers, or negative.
    """
    x, found = samples(x_name, X, y_name, y)
    if found.dtype.kind not in "biuf":
        raise InputError(
            f"{y_name} holds labels of type {found.dtype}, and the numbers 0, 1, ... of the classes are needed: "
            f"np.unique({y_name}, return_inverse=True)[1]."
        )
    if found.min() < 0:
        raise InputError(f"{y_name} has a label {found.min()}. Labels are 0, 1, ...: leave those samples out.")
    return x, found.astype(np.int32 if found.max() < 2**31 else np.int64)


def integer_samples(
    x_name: str, X: Any, y_name: str, y: Any
) -> tuple[Shaped[np.ndarray, "n ..."], Int[np.ndarray, " n"]]:
    """Return samples in the dtype of X, and their integer labels.

    Raises:
        InputError: as `numeric` and `labels`; labels that are not integers; lengths that differ.
    """
    x, found = numeric(x_name, X), labels(y_name, y)
    if not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"{y_name} has shape {found.shape} and dtype {found.dtype}, and must have one integer label per sample: "
            "(n,) of 0..classes-1."
        )
    if x.ndim < 2 or len(x) != len(found) or 0 in x.shape:
        raise InputError(
            f"{x_name} has shape {x.shape} and {y_name} {len(found)} labels. One row and one label per sample are "
            "needed."
        )
    return x, found


def floats(x: Any, name: str = "X") -> Float[np.ndarray, "..."]:
    """Return samples as floats of JAX's default precision; images of bytes as 0..1. Raises as `numeric`."""
    dtype = jnp.result_type(float)
    return np.asarray(pixels(numeric(name, x), dtype)).astype(dtype)


def table(name: str, X: Any) -> Float64[np.ndarray, "n d"]:
    """Return a table in double precision.

    Raises:
        InputError: as `numeric`; another rank, or empty; values whose squares leave double precision.
    """
    x = numeric(name, X).astype(np.float64)
    if x.ndim != 2 or x.size == 0:
        raise InputError(f"{name} has shape {x.shape}, and must be (samples, features), neither of them zero.")
    require_sizes(name, x)
    return x


def validated(estimator: BaseEstimator, *arrays: ArrayLike, **settings: Any) -> Any:
    """Return what scikit-learn's `validate_data` returns for X, or X and y, in double precision."""
    validate: Any = validate_data  # its annotations are inferred from default values
    return validate(estimator, *arrays, dtype=np.float64, **settings)


def require_both(x_name: str, X: ArrayLike | None, y_name: str, y: ArrayLike | None) -> None:
    """Refuse samples without labels, and labels without samples."""
    if (X is None) != (y is None):
        raise InputError(f"{x_name} and {y_name} go together: pass both, or neither.")


def require_classes(scores: int, **found: Int[np.ndarray, " n"]) -> None:
    """Refuse labels that a model with `scores` logits cannot predict."""
    for name, codes in found.items():
        if codes.max() >= scores:
            raise InputError(
                f"There is a label {codes.max()} in {name} and the model gives {scores} logits. Widen its last layer."
            )


def classes_of(name: str, found: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " classes"]:
    """Return the classes, sorted.

    Raises:
        InputError: there are fewer than two.
    """
    classes = np.unique(found)
    if not len(classes):
        raise InputError(f"{name} has no labels. Pass at least one sample of each of two classes.")
    if len(classes) < 2:
        raise InputError(
            f"{name} has one class only ({listed(classes)}). At least two are needed to learn from: "
            "check the labels, or add samples of the other classes."
        )
    return classes


def places(
    name: str, found: Shaped[np.ndarray, " n"], classes: Sequence[Any] | Shaped[np.ndarray, " classes"]
) -> Int[np.ndarray, " n"]:
    """Return the index of each label among the sorted classes of y.

    Raises:
        InputError: labels that are not among the classes.
    """
    classes = np.asarray(classes)
    known = set(classes.tolist())
    unknown = [c for c in np.unique(found).tolist() if c not in known]
    if unknown:
        raise InputError(
            f"{name} has labels that y lacks: {listed(unknown)}. y has {listed(classes)}. "
            "Spell them alike, or leave those samples out."
        )
    return np.searchsorted(classes, found.astype(classes.dtype))


def columns_of(X: Any) -> list[Any] | None:
    """Return the names of a data frame's columns; None for an array."""
    return list(X.columns) if hasattr(X, "columns") else None


def record_features(estimator: BaseEstimator, X: Any) -> None:
    """Set `n_features_in_`, and `feature_names_in_` where X is a data frame with names of columns."""
    validate: Any = validate_data
    validate(estimator, X, skip_check_array=True)


def require_features(estimator: BaseEstimator, X: Any, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse samples x, converted from X, of another shape or with other columns than `fit` had."""
    if x.shape[1:] != shape:
        raise InputError(
            f"X has {sample_shape(x.shape[1:])} features, but {type(estimator).__name__} is expecting "
            f"{sample_shape(shape)} features as input. Pass the same features as to fit."
        )
    validate: Any = validate_data
    try:
        validate(estimator, X, skip_check_array=True, reset=False)
    except ValueError as error:
        raise InputError(str(error)) from error


def require_alike(name: str, X: Any, x: np.ndarray, other_name: str, other: Any, x_other: np.ndarray) -> None:
    """Refuse two data sets whose samples differ in shape or in columns."""
    if x.shape[1:] != x_other.shape[1:]:
        raise InputError(
            f"{other_name} has {sample_shape(x_other.shape[1:])} features and {name} has {sample_shape(x.shape[1:])}. "
            "Give both the same features."
        )
    columns, others = columns_of(X), columns_of(other)
    if columns is not None and others is not None and columns != others:
        raise InputError(
            f"{other_name} has columns {listed(others)}, and {name} has {listed(columns)}. "
            "Give both the same columns in the same order."
        )


def on_one_scale(
    name: str, x: Shaped[np.ndarray, "n ..."], other_name: str, other: Shaped[np.ndarray, "m ..."]
) -> tuple[Shaped[np.ndarray, "n ..."], Shaped[np.ndarray, "m ..."]]:
    """Return both unchanged, or both as floats where only one holds images of bytes.

    Raises:
        InputError: the floats are outside 0..1, the range of the bytes.
    """
    if (x.dtype == np.uint8) == (other.dtype == np.uint8):
        return x, other
    require_unit(name, x, other_name)
    require_unit(other_name, other, name)
    return np.asarray(pixels(x)), np.asarray(pixels(other))


def require_unit(name: str, x: np.ndarray, other_name: str) -> None:
    """Refuse floats outside 0..1 where the other data set holds images of bytes."""
    if x.dtype != np.uint8 and (x.min() < 0 or x.max() > 1):
        raise InputError(
            f"{name} holds floats from {x.min():g} to {x.max():g}, and {other_name} bytes, which are read as 0..1. "
            "Give both as bytes, or both as floats on one scale."
        )
