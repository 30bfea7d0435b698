"""Tables as matrices of numbers on a common scale."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32
from sklearn.preprocessing import StandardScaler

from bilevax._checks import InputError, listed
from bilevax.data.kinds import MOST_CATEGORIES
from bilevax.data.readers import TURN_DATES
from bilevax.data.tables import Table, columns_of

EXTREME = 1e100  # squares of such numbers overflow
EXACT = 2.0**53  # float64 represents each integer up to this one


class Encoded(NamedTuple):
    """Tables as matrices, in the order of the tables, and notes on what was done."""

    matrices: tuple[Float32[np.ndarray, "_n d"], ...]
    notes: tuple[str, ...]


def encode(train: Table, *others: Table) -> Encoded:
    """Features as numbers on a common scale, learned from `train` alone.

    Numeric columns are centred and divided by their standard deviation; images by one mean and one deviation of all
    pixels. Columns of text are one-hot encoded; where there are more than 50 values, the least frequent share a column.
    A column `Unnamed: 0` (a saved row index) is left out.

    Raises:
        InputError: the columns, or the shapes of images, differ between the tables; a column holds dates or complex
            numbers; a value is too large for single precision on the scale of `train`.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from bilevax.data.encoding import encode
        >>> from bilevax.data.tables import Table
        >>> table = Table("TRAIN", pd.DataFrame({"size": [1.0, 3.0], "kind": ["a", "b"]}), np.array([0, 1]), None)
        >>> encode(table).matrices[0]
        array([[-1.,  1.,  0.],
               [ 1.,  0.,  1.]], dtype=float32)
    """
    tables = (train, *others)
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    if "Unnamed: 0" in train.features.columns:
        notes.append("Column 'Unnamed: 0' is taken for a saved row index and left out.")
    numbers, text = _numbers_and_text(train)
    if not numbers and not text:
        raise InputError(f"{train.name} has no feature columns besides a row index. Check the file.")
    for table in tables:
        _check_alike(table, train, numbers, text)
    if train.image_shape is not None:
        scaled = _scaled_images(tables)
        return Encoded(tuple(_single(x, t, list(t.features.columns)) for x, t in zip(scaled, tables, strict=True)), ())
    parts = [[_single(x, t, numbers)] for x, t in zip(_standardised(tables, numbers), tables, strict=True)]
    if text:
        sizes = [f"{c} ({train.features[c].nunique()} values)" for c in text]
        notes.append(f"One-hot encoded columns of text: {listed(sizes, quote=False)}.")
        categories = _categories(train, text)
        for part, table in zip(parts, tables, strict=True):
            part.append(_one_hot(table, text, categories))
    return Encoded(tuple(np.concatenate(part, axis=1) for part in parts), tuple(notes))


def encoded_names(train: Table) -> tuple[list[str], list[str]]:
    """The names of the columns that `encode` makes of the training table, and the column each is made of.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from bilevax.data.encoding import encoded_names
        >>> from bilevax.data.tables import Table
        >>> table = Table("TRAIN", pd.DataFrame({"kind": ["a", "b"], "size": [1.0, 3.0]}), np.array([0, 1]), None)
        >>> encoded_names(table)
        (['size', 'kind = a', 'kind = b'], ['size', 'kind', 'kind'])
    """
    numbers, text = _numbers_and_text(train)
    names, columns = list(numbers), list(numbers)
    if text:
        for column, found in zip(text, _categories(train, text), strict=True):
            new = [f"{column} = {value}" for value in found.frequent]
            new += [f"{column} = any other"] * found.others
            names += new
            columns += [column] * len(new)
    return names, columns


def _numbers_and_text(train: Table) -> tuple[list[str], list[str]]:
    """The columns of numbers and the columns of text, without a saved row index."""
    kinds = {c: _is_numeric(kind) for c, kind in train.features.dtypes.items() if c != "Unnamed: 0"}
    return [c for c, numeric in kinds.items() if numeric], [c for c, numeric in kinds.items() if not numeric]


def _check_alike(table: Table, train: Table, numbers: Sequence[str], text: Sequence[str]) -> None:
    """Refuse a table whose columns, or image shape, differ from the training table."""
    if table.image_shape != train.image_shape:
        raise InputError(
            f"{table.name} has samples of shape {table.image_shape} and {train.name} of shape {train.image_shape}. "
            "Both must be the same."
        )
    kinds = {c: kind for c, kind in table.features.dtypes.items() if c != "Unnamed: 0"}
    wanted = {*numbers, *text}
    lacking = [c for c in (*numbers, *text) if c not in kinds]
    extra = [c for c in kinds if c not in wanted]
    if lacking or extra:
        faults = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(extra)} in addition"] * bool(extra)
        raise InputError(
            f"{table.name} {' and '.join(faults)}, compared with {train.name}. Give both the same feature columns."
        )
    for column, kind in kinds.items():
        if pd.api.types.is_datetime64_any_dtype(kind) or pd.api.types.is_timedelta64_dtype(kind):
            raise InputError(f"Column {column!r} of {table.name} holds dates or times. {TURN_DATES}")
        if pd.api.types.is_complex_dtype(kind):
            raise InputError(f"Column {column!r} of {table.name} holds complex numbers. Split them into real columns.")
    for column in numbers:
        if not _is_numeric(kinds[column]):
            raise InputError(
                f"Column {column!r} holds numbers in {train.name} and text in {table.name} "
                f"(such as {table.features[column].tolist()[0]!r}). Give both the same kind of values."
            )


def _is_numeric(kind: Any) -> bool:
    return pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)


def _standardised(tables: Sequence[Table], columns: Sequence[str]) -> list[Float[np.ndarray, "_n d"]]:
    """Numeric columns scaled by the means and deviations of the first table.

    The first row is subtracted first, so that a small spread around a large offset keeps its digits. Columns of very
    large or small numbers are scaled near 1 by a power of two, so that no square overflows.
    """
    if not columns:
        return [np.empty((len(table.features), 0)) for table in tables]
    differences, start, powers = [], None, None
    for table in tables:
        values = columns_of(table.features, columns).to_numpy(np.float64)
        origin = start = values[0] if start is None else start
        if powers is None:
            largest = np.abs(values).max(axis=0)
            extreme = (largest > EXTREME) | ((largest < 1 / EXTREME) & (largest > 0))
            powers = np.where(extreme, -np.frexp(largest)[1], 0)
        if powers.any():
            with np.errstate(over="ignore"):
                values, origin = np.ldexp(values, powers), np.ldexp(origin, powers)
        difference = values - origin
        # Integers beyond 2^53 are not exact in float64; their differences are.
        for i in np.flatnonzero(np.abs(values).max(axis=0) > EXACT).tolist():
            column = table.features[columns[i]]
            if column.dtype.kind in "iu":
                first = int(tables[0].features[columns[i]].iloc[0])
                difference[:, i] = [float(value - first) for value in column.tolist()]
        differences.append(difference)
    scaler = StandardScaler().fit(differences[0])
    return [np.asarray(scaler.transform(difference)) for difference in differences]


def _scaled_images(tables: Sequence[Table]) -> list[Float[np.ndarray, "_n d"]]:
    """All pixels scaled by the mean and deviation of the pixels of the first table."""
    pixels = [table.features.to_numpy(np.float64) for table in tables]
    largest = np.abs(pixels[0]).max()
    power = -int(np.frexp(largest)[1]) if largest > EXTREME or 0 < largest < 1 / EXTREME else 0
    if power:
        with np.errstate(over="ignore"):
            pixels = [np.ldexp(x, power) for x in pixels]
    middle, spread = pixels[0].mean(), pixels[0].std() or 1.0
    return [(x - middle) / spread for x in pixels]


def _single(scaled: Float[np.ndarray, "n d"], table: Table, columns: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """In single precision; raises where a value does not fit."""
    with np.errstate(over="ignore"):
        values = scaled.astype(np.float32)
    beyond = np.argwhere(~np.isfinite(values)).tolist()
    if beyond:
        row, place = beyond[0]
        column = columns[place]
        raise InputError(
            f"Column {column!r} of {table.name} holds {table.features[column].iloc[row]:g} in row {row}, which is too "
            "far from the values of the training samples. Correct or drop that row; rows are counted from 0."
        )
    return values


class _Categories(NamedTuple):
    """The values of a column of text that get a column each, and whether all others share one more."""

    frequent: tuple[str, ...]
    others: bool


def _categories(train: Table, text: Sequence[str]) -> list[_Categories]:
    """For each column of text its values, sorted; of more than `MOST_CATEGORIES` only the most frequent."""
    chosen = []
    for words in _words(train, text):
        counts = Counter(words)
        found = sorted(counts)
        if others := len(found) > MOST_CATEGORIES:
            found = sorted(sorted(found, key=counts.__getitem__)[1 - MOST_CATEGORIES :])
        chosen.append(_Categories(tuple(found), others))
    return chosen


def _one_hot(table: Table, text: Sequence[str], categories: Sequence[_Categories]) -> Float32[np.ndarray, "n d"]:
    """1 in the column of each cell's value, 0 elsewhere.

    A value that the training table lacks goes to the column shared by the others, if there is one.
    """
    starts = np.cumsum([0, *(len(found.frequent) + found.others for found in categories)])
    matrix = np.zeros((len(table.features), int(starts[-1])), np.float32)
    for words, found, start in zip(_words(table, text), categories, starts.tolist(), strict=False):
        places = {value: start + i for i, value in enumerate(found.frequent)}
        other = start + len(found.frequent) if found.others else -1
        chosen = np.array([places.get(word, other) for word in words])
        rows = np.flatnonzero(chosen >= 0)
        matrix[rows, chosen[rows]] = 1
    return matrix


def _words(table: Table, text: Sequence[str]) -> Iterator[list[str]]:
    """The cells of each column of text, as str."""
    for column in columns_of(table.features, text).to_numpy(object).T:
        yield [str(value) for value in column.tolist()]
