"""CSV, Parquet and NPZ files as columns, not yet interpreted: columns that are not all numbers stay text."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from bilevax._checks import InputError, listed, short_reason, suggestion
from bilevax.data.archives import UnreadableError, check_expansion, check_regular, read_npz
from bilevax.data.csv_text import SEPARATORS, check_text, first_records, opened

SUFFIXES = ".csv, .csv.gz, .parquet and .npz"
PARQUET_EXPANSION = 2000  # a column of few values is stored in very few bytes
TURN_DATES = "Turn it into numbers, such as days since a first date, or drop it."


class Raw(NamedTuple):
    """The columns of one file, as stored.

    Attributes:
        name: how messages call the file.
        features: columns of numbers and of text; text of a CSV file is as written, with empty cells as "".
        labels: text as written, or numbers.
        target: how messages call the labels.
        image_shape: of one sample where the samples are images, else None.
        as_text: takes names of numeric columns and returns them as text, as written in the file.
        typed: whether the file says which columns are text.
        notes: what was done, in sentences.
    """

    name: str
    features: pd.DataFrame
    labels: pd.Series | Shaped[np.ndarray, " n"]
    target: str
    image_shape: tuple[int, ...] | None
    as_text: Callable[[Sequence[str]], pd.DataFrame]
    typed: bool
    notes: tuple[str, ...] = ()


def read_raw(path: Path, target: str | None, role: str) -> Raw:
    """The columns of a file, with the labels separate.

    Raises:
        InputError: it is not a regular file, its format is unknown, it is damaged or too large or lacks the target, or
            a column holds neither numbers nor text.
    """
    name = f"{role} ({path})"
    check_regular(path, name, f"Pass a file that ends in one of {SUFFIXES}.")
    suffix = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
    if suffix not in (".csv", ".csv.gz", ".parquet", ".npz"):
        raise InputError(
            f"{name} ends in {path.suffix!r}, an unknown format. Convert it to one of {SUFFIXES}."
            if path.suffix
            else f"{name} has no suffix, so its format is not known. Rename it to end in one of {SUFFIXES}."
        )
    if suffix == ".npz":
        return _read_npz(path, "y" if target is None else target, name)
    if target is None:
        raise InputError(f"{name} needs --target, the name of the column that holds the labels.")
    read = _read_parquet if suffix == ".parquet" else _read_csv
    try:
        return read(path, target.strip(), name)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} cannot be read as {suffix}: it is not UTF-8 text (byte {error.object[error.start]:#04x}). Save it "
            f"as UTF-8; one from Windows, in Python: p = pathlib.Path({str(path)!r}); "
            "p.write_text(p.read_text('cp1252'), 'utf-8')."
        ) from error
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(f"{name} cannot be read as {suffix}: {short_reason(error)}. Check the file.") from error


def _read_csv(path: Path, target: str, name: str) -> Raw:
    check_text(path, name)
    with opened(path) as stream:
        header, first, separator = first_records(stream, target, name)
    names = [column.strip() for column in header]
    if twice := [column for column, n in Counter(names).items() if n > 1 and column]:
        raise InputError(f"{name} has more than one column of the name {listed(twice)}. Rename them apart.")
    if target not in names:
        raise InputError(_without_target(name, names, target))
    if len(first) > len(names):
        raise InputError(
            f"{name} has {len(names)} column names and {len(first)} values in its first row. Name every column in the "
            "first line, and do not end rows with a separator."
        )
    settings: Any = {"sep": separator, "low_memory": False, "keep_default_na": False, "encoding": "utf-8"}
    written = header[names.index(target)]
    with opened(path) as stream:
        frame = pd.read_csv(stream, dtype={written: str}, **settings)
    frame.columns = frame.columns.astype(str)
    places = {column.strip(): column for column in frame.columns}

    def as_text(columns: Sequence[str]) -> pd.DataFrame:
        chosen = [places[column] for column in columns]
        with opened(path) as stream:
            text = pd.read_csv(stream, dtype=str, usecols=chosen, **settings)[chosen]
        return text.set_axis(list(columns), axis=1)

    frame.columns = list(places)
    notes = () if separator == "," else (f"{name} is read as columns separated by {SEPARATORS[separator]}.",)
    features = frame.copy()  # one block of memory per dtype; read_csv makes one per column
    labels = features.pop(target)
    return Raw(name, features, labels, repr(target), None, as_text, False, notes)


def _without_target(name: str, names: list[str], target: str) -> str:
    sentence = f"{name} has no column {target!r} (--target). Its columns are {listed(names)}."
    marks = [name for mark, name in SEPARATORS.items() if mark != "," and len(names) == 1 and mark in names[0]]
    if marks:
        return f"{sentence} It seems to be separated by {marks[0]}: check the name of the target."
    if any(_is_number(column) for column in names):
        return f"{sentence} These look like values: make the first line one of column names."
    return sentence + suggestion(target, names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, target: str, name: str) -> Raw:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows, width = file.metadata.num_rows, len(file.schema_arrow.names)
        check_expansion(path.stat().st_size, 8 * rows * width, PARQUET_EXPANSION)
        names = [column.strip() for column in file.schema_arrow.names]
        if twice := [column for column, n in Counter(names).items() if n > 1]:
            raise InputError(f"{name} has more than one column of the name {listed(twice)}. Rename them apart.")
        metadata: Any = file.schema_arrow.pandas_metadata or {}
        content = file.read().rename_columns(names)
    index = [column for column in metadata.get("index_columns", ()) if isinstance(column, str) and column != target]
    notes = [
        f"Column {column!r} is the saved row index and left out." for column in index if not column.startswith("__")
    ]
    if target not in names:
        raise InputError(_without_target(name, [column for column in names if column not in index], target))
    arrays = {}
    for column, values in zip(names, content.columns, strict=True):
        if column in index:
            continue
        kind = values.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            values = values.cast(kind)
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            values = values.cast(pa.float64())
        elif pa.types.is_temporal(kind):
            raise InputError(f"Column {column!r} of {name} holds dates or times ({kind}). {TURN_DATES}")
        elif not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_string_view(kind)
        ):
            raise InputError(
                f"Column {column!r} of {name} holds values of type {kind}, and numbers or text are needed. Turn it "
                "into columns of numbers, or drop it."
            )
        arrays[column] = values
    frame = pa.table(arrays).to_pandas()
    features = frame.drop(columns=target)

    as_text = partial(_numbers_as_text, features)
    return Raw(name, features, frame[target], repr(target), None, as_text, True, tuple(notes))


def _numbers_as_text(features: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {column: number_text(values) for column, values in features[list(columns)].items()}, dtype=object
    )


def number_text(values: pd.Series | Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Numbers as text, integers without a decimal point; None for missing values."""

    def text(value: Any) -> str | None:
        if pd.isna(value):
            return None
        if isinstance(value, str | bool | np.bool_) or value in (np.inf, -np.inf) or value != int(value):
            return str(value)
        return str(int(value))

    codes, found = pd.factorize(values)
    return np.array([*map(text, found.tolist()), None], dtype=object)[codes]


def _read_npz(path: Path, target: str, name: str) -> Raw:
    try:
        found, names = read_npz(path, ("X", target))
    except UnreadableError as error:
        raise InputError(
            f"{name} cannot be read as .npz: {short_reason(error)}. Save it by numpy.savez(path, X=..., y=...), "
            "with arrays of numbers or strings, not of objects."
        ) from error
    for key in ("X", target):
        if key not in found:
            raise InputError(f"{name} has no array {key!r}. Its arrays are {listed(names)}; X and {target} are needed.")
    X, y = native(found["X"], "X", name), native(found[target], target, name)
    if X.ndim < 2 or y.shape != X.shape[:1]:
        hint = ""
        if y.ndim == 2 and y.shape[0] == X.shape[0] and y.dtype.kind in "biuf":
            hint = f" If {target} is one-hot encoded, save {target}.argmax(axis=1)."
        elif X.ndim == 1:
            hint = " If there is one feature, save X.reshape(-1, 1)."
        raise InputError(
            f"{name}: X has shape {X.shape} and {target} has shape {y.shape}. "
            f"X must be (samples, ...) and the labels (samples,), of the same length.{hint}"
        )
    if X.dtype.kind not in "biuf":
        raise InputError(f"{name}: X has dtype {X.dtype}, and must hold numbers.")
    flat = X.reshape(len(X), -1) if X.size else X.reshape(len(X), 0)
    features = pd.DataFrame(flat, columns=[f"X[{i}]" for i in range(flat.shape[1])])
    side = int(np.sqrt(flat.shape[1]))
    if X.ndim in (3, 4):
        image_shape = X.shape[1:]
    elif X.ndim == 2 and X.dtype == np.uint8 and side >= 8 and side * side == flat.shape[1]:
        image_shape = (side, side)  # rows of a square number of bytes: flat grey images, as MNIST is often stored
    else:
        image_shape = None

    return Raw(name, features, y, "the labels", image_shape, partial(_numbers_as_text, features), True)


def native(array: Shaped[np.ndarray, "..."], key: str, name: str) -> Shaped[np.ndarray, "..."]:
    """The array in native byte order, bytes as text."""
    kind = array.dtype.kind
    if kind == "c":
        raise InputError(
            f"{name}: {key} has dtype {array.dtype}, and complex numbers would lose their imaginary part. Save real "
            "numbers, such as the real and the imaginary part side by side."
        )
    if kind in "mM":
        raise InputError(f"{name}: {key} has dtype {array.dtype}, which is dates or times. {TURN_DATES}")
    if kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: {key} holds bytes that are not UTF-8 text. Save it as strings.") from error
    if kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
