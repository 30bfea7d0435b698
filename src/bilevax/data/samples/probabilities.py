"""Predicted probabilities and embeddings of samples, from files of their own."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64, Int, Shaped

from bilevax._checks import InputError, listed, short_reason, suggestion
from bilevax.data.archives import UnreadableError, check_regular, read_npz
from bilevax.data.kinds import NUMBER
from bilevax.data.readers import native
from bilevax.data.samples.arrays import read_array
from bilevax.data.samples.packing import unpacked
from bilevax.data.samples.text import decoded, likely_separator
from bilevax.data.samples.types import Samples

FORMS = "Pass a CSV, Parquet, NPY or NPZ file."
TOLERANCE = 1e-3  # by which a row may sum to something else than 1
LIKELIEST, CERTAIN = 0.998, 0.9  # share of given labels that are the likeliest class, and their mean probability
ENOUGH = 50  # samples by which probabilities look in-sample
VECTORS = ("embeddings", "X", "features")  # names of the array of vectors in an NPZ file


class Probabilities(NamedTuple):
    """The probability of each class for each sample.

    Attributes:
        values: rows that sum to 1.
        classes: of the columns.
        notes: in sentences.
    """

    values: Float64[np.ndarray, "n k"]
    classes: Shaped[np.ndarray, " k"]
    notes: tuple[str, ...]


class NamedMatrix(NamedTuple):
    """A matrix as it is in a file; `names` are those of its columns, None where it has none."""

    values: Float64[np.ndarray, "n k"]
    names: list[str] | None


def read_probabilities(path: Path, samples: Samples) -> Probabilities:
    r"""The probabilities that a classifier predicted for the samples of TRAIN, out of sample.

    A row for each record of TRAIN, or for each sample that was not left out. Columns are found by the names of the
    classes; without names they are in the sorted order of the classes. Samples of a trusted file have no row.

    Args:
        path: of a text or Parquet file of K columns, an NPY file (n, K), or an NPZ file with an array `pred_probs`, and
            possibly `classes`.
        samples: of `read_samples`.

    Raises:
        InputError: the file cannot be read; it has other classes or another length; values are missing, negative, or
            larger than 1; rows do not sum to 1.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.samples.probabilities import read_probabilities
        >>> from bilevax.data.samples.read import read_samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train, file = pathlib.Path(folder) / "pets.csv", pathlib.Path(folder) / "p.csv"
        ...     _ = train.write_text("size,label\n1,dog\n2,cat\n"), file.write_text("dog,cat\n0.9,0.1\n0.2,0.8\n")
        ...     found = read_probabilities(file, read_samples(train))
        >>> found.classes.tolist(), found.values.tolist()
        (['cat', 'dog'], [[0.1, 0.9], [0.8, 0.2]])
    """
    name = f"--pred-probs ({path})"
    labels = samples.labels[: samples.own]
    classes = np.array(sorted(set(samples.labels.tolist())), dtype=samples.labels.dtype)
    matrix = read_matrix(path, name, ("pred_probs", "probabilities", "probs"), "classes")
    values, notes = _by_class(matrix, classes, name)
    values = _rows_of(values, samples, name)
    _check_values(values, samples, name)
    sums = values.sum(axis=1)
    off = np.abs(sums - 1)
    if (bad := np.flatnonzero(off > TOLERANCE)).size:
        first = bad[0]
        raise InputError(
            f"{name}: {bad.size:,} of {len(sums):,} rows do not sum to 1 (such as {_where(samples, first)}: "
            f"{sums[first]:.4g}). Pass probabilities, such as those of predict_proba or a softmax."
        )
    values = values / sums[:, None]
    places = {label: i for i, label in enumerate(classes.tolist())}
    given = values[np.arange(len(labels)), [places[label] for label in labels.tolist()]]
    first_guess = float(np.mean(given >= values.max(axis=1)))
    if len(labels) >= ENOUGH and first_guess >= LIKELIEST and float(given.mean()) >= CERTAIN:
        notes.append(
            f"{name} looks in-sample: the given label is the likeliest class for {first_guess:.1%} of the samples, "
            f"with a mean probability of {given.mean():.3f}. A model that was trained on these labels repeats the "
            "wrong ones. Predict each sample by a model that was not trained on it, such as by cross_val_predict."
        )
    codes = np.array([places[label] for label in labels.tolist()])
    if len(labels) >= ENOUGH and (note := _by_chance(values, codes, name)):
        notes.append(note)
    return Probabilities(values, classes, tuple(notes))


def read_embeddings(path: Path, samples: Samples) -> Float32[np.ndarray, "n d"]:
    """Features of the samples of TRAIN that another model computed, a row for each, as `read_probabilities` reads them.

    Raises:
        InputError: the file cannot be read, has another length, or values are missing or infinite.
    """
    name = f"--embeddings ({path})"
    matrix = read_matrix(path, name, VECTORS, None)
    single, bad = singles(_rows_of(matrix.values, samples, name))
    if bad.size:
        raise InputError(
            f"{name}: {bad.size:,} rows have missing, infinite or immense values (the first is "
            f"{_where(samples, bad[0])}). Compute them again, or remove those samples from both files."
        )
    return single


def singles(values: Float64[np.ndarray, "n d"]) -> tuple[Float32[np.ndarray, "n d"], Int[np.ndarray, " bad"]]:
    """A matrix in single precision, and the rows whose values are not finite then."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return single, np.flatnonzero(~np.isfinite(single).all(axis=1))


def read_matrix(path: Path, name: str, arrays: Sequence[str], names: str | None) -> NamedMatrix:
    """The matrix in a file.

    Args:
        path: of the file.
        name: of it, for messages.
        arrays: names of the array in an NPZ file, the best first; a single array may have any name.
        names: the array of the names of the columns.
    """
    check_regular(path, name, FORMS)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return NamedMatrix(_matrix(read_array(path, name), name), None)
    if suffix == ".npz":
        return _from_npz(path, name, arrays, names)
    if suffix in (".parquet", ".pq"):
        try:
            frame = pd.read_parquet(path)
        except Exception as error:  # a damaged file raises whatever its decoder runs into
            raise InputError(f"{name} cannot be read as .parquet: {short_reason(error)}. Check the file.") from error
        return _numeric(frame.rename(columns=str), name)
    return _from_text(path, name)


def _from_npz(path: Path, name: str, arrays: Sequence[str], names: str | None) -> NamedMatrix:
    try:
        _, present = read_npz(path, ())
        others = [key for key in present if key != names]
        chosen = next((key for key in arrays if key in present), others[0] if len(others) == 1 else None)
        if chosen is None:
            raise InputError(f"{name} has the arrays {listed(present)}, and one of the name {arrays[0]!r} is needed.")
        found, _ = read_npz(path, [key for key in (chosen, names) if key is not None])
    except UnreadableError as error:
        raise InputError(f"{name} cannot be read as .npz: {short_reason(error)}. Save it by numpy.savez.") from error
    values = _matrix(native(found[chosen], chosen, name), name)
    if names is None or names not in found:
        return NamedMatrix(values, None)
    return NamedMatrix(values, [str(value) for value in native(found[names], names, name).tolist()])


def _from_text(path: Path, name: str) -> NamedMatrix:
    """Numbers of a text file, with or without a line of names."""
    content, _ = unpacked(path, name)
    text, _, _ = decoded(content, name, None, strict=False)
    mark = likely_separator(text, None, name)
    first = next((line for line in text.splitlines() if line.strip()), "")
    cells = [cell.strip().strip('"') for cell in first.split(mark)]
    unnamed = all(NUMBER.fullmatch(cell) for cell in cells) and any("." in cell or "e" in cell for cell in cells)
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=mark, header=None if unnamed else 0, skipinitialspace=True, low_memory=False
        )
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(f"{name} cannot be read as CSV: {short_reason(error)}. Check the file.") from error
    if unnamed:
        return NamedMatrix(_matrix(frame.to_numpy(), name), None)
    return _numeric(frame.rename(columns=lambda column: str(column).strip()), name)


def _by_chance(values: Float64[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], name: str) -> str | None:
    """A note where the predicted classes are those given no more often than by chance."""
    guessed, classes = values.argmax(axis=1), values.shape[1]
    chance = float(np.bincount(guessed, minlength=classes) @ np.bincount(labels, minlength=classes)) / len(labels) ** 2
    agree = float(np.mean(guessed == labels))
    if agree > chance + 2 * np.sqrt(chance * (1 - chance) / len(labels)):
        return None
    return (
        f"{name} predicts the given label for {agree:.1%} of the samples, no more than by chance. Its rows or its "
        "columns may be in another order than those of TRAIN."
    )


def _numeric(frame: pd.DataFrame, name: str) -> NamedMatrix:
    """The columns of numbers; one of text, or a saved index, is no part of the matrix."""
    used = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame.dtypes[c]) and c != "Unnamed: 0"]
    if not used:
        raise InputError(f"{name} has no columns of numbers (its columns are {listed(frame.columns)}). {FORMS}")
    return NamedMatrix(_matrix(frame[used].to_numpy(), name), list(used))


def _matrix(values: Any, name: str) -> Float64[np.ndarray, "n k"]:
    if values.ndim != 2 or values.dtype.kind not in "biuf" or 0 in values.shape:
        raise InputError(f"{name} has shape {values.shape} of {values.dtype}, and must be (samples, ...) of numbers.")
    return values.astype(np.float64)


def _by_class(
    matrix: NamedMatrix, classes: Shaped[np.ndarray, " k"], name: str
) -> tuple[Float64[np.ndarray, "n k"], list[str]]:
    """The columns in the order of the classes."""
    wanted = [str(label) for label in classes.tolist()]
    if matrix.names is not None:
        bare = [column.removesuffix(".0") if column not in wanted else column for column in matrix.names]
        if set(wanted) <= set(bare):
            return matrix.values[:, [bare.index(label) for label in wanted]], []
        if set(wanted) & set(bare):
            lacking = [label for label in wanted if label not in bare]
            raise InputError(
                f"{name} has no column of the classes {listed(lacking)}. Its columns are {listed(matrix.names)}."
                f"{suggestion(lacking[0], matrix.names)}"
            )
    if matrix.values.shape[1] != len(wanted):
        columns = "" if matrix.names is None else f" ({listed(matrix.names)})"
        raise InputError(
            f"{name} has {matrix.values.shape[1]} columns{columns}, and there are {len(wanted)} classes: "
            f"{listed(wanted)}. Pass a column for each."
        )
    return matrix.values, [
        f"The columns of {name} have no names of classes: they are read in sorted order, {listed(wanted)}."
    ]


def _rows_of(values: Float64[np.ndarray, "n k"], samples: Samples, name: str) -> Float64[np.ndarray, "own k"]:
    """The rows of the samples of TRAIN."""
    total = samples.source.records
    if len(values) == total:
        return values[samples.record[: samples.own]]
    if len(values) == samples.own:
        return values
    left = "" if total == samples.own else f" ({samples.own:,} of them with a label)"
    raise InputError(
        f"{name} has {len(values):,} rows, and {samples.name} has {total:,} records{left}. Pass a row for each, in the "
        "same order."
    )


def _check_values(values: Float64[np.ndarray, "n k"], samples: Samples, name: str) -> None:
    if (bad := np.flatnonzero(~np.isfinite(values).all(axis=1))).size:
        raise InputError(
            f"{name}: {bad.size:,} rows have missing or infinite values (the first is {_where(samples, bad[0])}). "
            "Predict them again, or remove those samples from both files."
        )
    low, high = values.min(), values.max()
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        logarithms = high <= 0 and np.allclose(np.exp(values).sum(axis=1), 1, atol=1e-2)
        percents = low >= 0 and np.allclose(values.sum(axis=1), 100, atol=1)
        hint = " They look like logarithms: pass their exponentials." if logarithms else ""
        hint = " They look like percents: divide them by 100." if percents else hint
        raise InputError(
            f"{name} has values {low:.4g}..{high:.4g}, which are not probabilities.{hint or ' Pass a softmax of them.'}"
        )
    np.clip(values, 0, 1, out=values)


def _where(samples: Samples, i: int) -> str:
    unit = "line" if samples.source.encoding else "record"
    return f"that of {unit} {samples.lines[i]} of TRAIN"
