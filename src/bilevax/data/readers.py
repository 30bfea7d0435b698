"""CSV, Parquet and NPZ files as columns, not yet interpreted: one that holds no numbers alone keeps its text."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.archives import MOST_EXPANSION, UnreadableError, check_expansion, check_regular, read_npz

SUFFIXES = ".csv, .csv.gz, .parquet and .npz"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LONGEST_LINE = 1 << 26  # characters of the line of column names
PARQUET_EXPANSION = 2000  # a column of few values takes next to nothing there
BEGINNING = 1 << 26  # bytes after which a compressed file that shrank as usual is trusted to go on so
HEAD = 4096  # bytes looked at to recognise a file's format
FORMATS = {
    b"PAR1": "a Parquet file. Rename it to end in .parquet",
    b"PK\x03\x04": "a zip archive, as NPZ and Excel files are. Rename it to end in .npz, or save it as CSV",
    b"\x1f\x8b": "a gzip file. Rename it to end in .csv.gz",
    b"\x93NUMPY": "a NumPy array. Save it by numpy.savez(path, X=..., y=...) as .npz",
    b"%PDF": "a PDF document. Save the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel file. Save it as CSV",
    b"\x89HDF": "an HDF5 file. Save the table as CSV or Parquet",
    b"\x80\x04": "a Python pickle, which is never loaded, since that can run code. Save the table as CSV or Parquet",
    b"\x80\x05": "a Python pickle, which is never loaded, since that can run code. Save the table as CSV or Parquet",
    b"\xff\xfe": "UTF-16 text. Save it as UTF-8",
    b"\xfe\xff": "UTF-16 text. Save it as UTF-8",
}
HTML = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")


class Raw(NamedTuple):
    """One file's columns as they stand there.

    Attributes:
        name: how messages call the file.
        features: columns of numbers and of text; text of a CSV file is as written, empty where a cell is.
        labels: (n,), text as written or numbers.
        target: how messages call the labels.
        image_shape: of one sample where the samples are images, else None.
        as_text: the given numeric columns, as the file writes them.
        typed: whether the file says which columns are text.
        notes: what was done, in sentences.
    """

    name: str
    features: pd.DataFrame
    labels: Any
    target: str
    image_shape: tuple[int, ...] | None
    as_text: Callable[[Sequence[str]], pd.DataFrame]
    typed: bool
    notes: tuple[str, ...] = ()


def read_raw(path: Path, target: str | None, role: str) -> Raw:
    """A file's columns, the labels apart.

    Raises:
        InputError: it is not a regular file, of no known format, damaged, too large, without the target, or a column
            holds what is neither number nor text.
    """
    name = f"{role} ({path})"
    check_regular(path, name, f"Pass a file that ends in one of {SUFFIXES}.")
    suffix = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
    if suffix not in (".csv", ".csv.gz", ".parquet", ".npz"):
        raise InputError(
            f"{name} ends in {path.suffix!r}, which is not known. Convert it to one of {SUFFIXES}."
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
    except Exception as error:  # a damaged file raises what its decoder happens to run into
        raise InputError(f"{name} cannot be read as {suffix}: {short_reason(error)}. Check the file.") from error


def read_words(path: Path, name: str) -> pd.DataFrame:
    """A CSV file whose cells are all text, without the blanks around them.

    Raises:
        InputError: it is not a regular file, or not CSV text.
    """
    check_regular(path, name, "Pass a CSV file.")
    try:
        _check_text(path, name)
        with _opened(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False, encoding="utf-8", index_col=False)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text. Save it as UTF-8.") from error
    except InputError:
        raise
    except Exception as error:  # as in read_raw
        raise InputError(f"{name} cannot be read as CSV: {short_reason(error)}. Check the file.") from error
    frame.columns = frame.columns.astype(str).str.strip()
    return pd.DataFrame({column: frame[column].str.strip() for column in frame})


class _Metered(io.RawIOBase):
    """A decompressed stream that ends in an error where it grows beyond all measure."""

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream, self._packed, self._count = stream, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._count += count
        check_expansion(self._packed, self._count)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _opened(path: Path) -> Any:
    """A CSV file as bytes, decompressed."""
    if path.suffix.lower() != ".gz":
        return open(path, "rb")
    return io.BufferedReader(_Metered(gzip.open(path), path.stat().st_size), 1 << 20)


def _read_csv(path: Path, target: str, name: str) -> Raw:
    _check_text(path, name)
    with _opened(path) as stream:
        header, first, separator = _first_records(stream, target, name)
    names = [column.strip() for column in header]
    if twice := [column for column, n in Counter(names).items() if n > 1 and column]:
        raise InputError(f"{name} has more than one column of the name {listed(twice)}. Rename them apart.")
    if target not in names:
        raise InputError(_without_target(name, names, target))
    if len(first) > len(names):
        raise InputError(
            f"{name} has {len(names)} column names and {len(first)} values in its first row. Name every column in the "
            "first line, and end no row with a separator."
        )
    settings: Any = {"sep": separator, "low_memory": False, "keep_default_na": False, "encoding": "utf-8"}
    written = header[names.index(target)]
    with _opened(path) as stream:
        frame = pd.read_csv(stream, dtype={written: str}, **settings)
    frame.columns = frame.columns.astype(str)
    places = {column.strip(): column for column in frame.columns}

    def as_text(columns: Sequence[str]) -> pd.DataFrame:
        chosen = [places[column] for column in columns]
        with _opened(path) as stream:
            text = pd.read_csv(stream, dtype=str, usecols=chosen, **settings)[chosen]
        return text.set_axis(list(columns), axis=1)

    frame.columns = list(places)
    notes = () if separator == "," else (f"{name} is read as columns separated by {SEPARATORS[separator]}.",)
    features = frame.copy()  # one block of memory for each dtype, where read_csv makes one for each column
    labels = features.pop(target)
    return Raw(name, features, labels, repr(target), None, as_text, False, notes)


def _check_text(path: Path, name: str) -> None:
    """Recognise what is no CSV text whatever the file is called."""
    check_expansion(None, path.stat().st_size)
    with open(path, "rb") as file:
        start = file.read(HEAD)
    if path.suffix.lower() == ".gz":
        if start[:2] != b"\x1f\x8b":
            raise InputError(
                f"{name} cannot be read as .csv.gz: it is not compressed by gzip. If it is plain text, rename it to "
                "end in .csv."
            )
        _check_beginning(path)
        with _opened(path) as stream:
            start = stream.read(HEAD)
    for magic, found in FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{name} cannot be read as .csv: it is {found}.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(HTML):
        raise InputError(
            f"{name} cannot be read as .csv: it is an HTML page, such as an error or a log-in page in place of a "
            "download. Fetch the file again."
        )
    if b"\0" in start:
        raise InputError(
            f"{name} cannot be read as .csv: it holds NUL bytes, so it is no UTF-8 text. Save the table as UTF-8 CSV."
        )


def _check_beginning(path: Path) -> None:
    """Decompress the beginning, and all of a file that expands beyond measure, before it is parsed into memory."""
    packed, count = path.stat().st_size, 0
    with open(path, "rb") as file, gzip.open(file) as stream:
        while block := stream.read(1 << 20):
            count += len(block)
            check_expansion(packed, count)
            if count > BEGINNING and count < MOST_EXPANSION * file.tell():
                return


def _first_records(stream: Any, target: str, name: str) -> tuple[list[str], list[str], str]:
    """The names of the columns, the first row, and the separator: the one that sets the target apart."""
    found = ([""], [""], ",")
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        lines = list(_some_lines(text))
    for separator in SEPARATORS:
        records = (record for record in csv.reader(lines, delimiter=separator) if any(map(str.strip, record)))
        try:
            header, first = next(records, []), next(records, [])
        except csv.Error as error:
            raise InputError(
                f"{name} cannot be read as .csv: {short_reason(error)}. Look for a quotation mark that is never closed."
            ) from error
        if target in [column.strip() for column in header]:
            return header, first, separator
        if separator == ",":
            found = header, first, separator
    if not found[0]:
        raise InputError(f"{name} cannot be read as .csv: it is empty. Check the file.")
    return found


def _some_lines(stream: io.TextIOWrapper) -> Iterator[str]:
    """Enough lines for the names and the first row, where quotation marks may hold line breaks."""
    filled = 0
    for _ in range(200):
        line = stream.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise UnreadableError(f"a line is longer than {LONGEST_LINE:,} characters")
        if not line:
            return
        yield line
        filled += bool(line.strip())
        if filled > 1 and len(line) > LONGEST_LINE // 200:
            return


def _without_target(name: str, names: list[str], target: str) -> str:
    sentence = f"{name} has no column {target!r} (--target). Its columns are {listed(names)}."
    marks = [name for mark, name in SEPARATORS.items() if mark != "," and len(names) == 1 and mark in names[0]]
    if marks:
        return f"{sentence} It seems to be separated by {marks[0]}: check the name of the target."
    if any(_is_number(column) for column in names):
        return f"{sentence} These look like values: make the first line one of column names."
    near = [column for column in names if column.lower() == target.lower()]
    return f"{sentence} Did you mean {near[0]!r}?" if near else sentence


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

    def as_text(columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({column: number_text(features[column]) for column in columns}, dtype=object)

    return Raw(name, features, frame[target], repr(target), None, as_text, True, tuple(notes))


TURN_DATES = "Turn it into numbers, such as days since a first date, or drop it."


def number_text(values: Any) -> np.ndarray:
    """Numbers as text, integers without a decimal point; None where one is missing."""

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
    X, y = _native(found["X"], "X", name), _native(found[target], target, name)
    if X.ndim < 2 or y.shape != X.shape[:1]:
        hint = ""
        if y.ndim == 2 and y.shape[0] == X.shape[0] and y.dtype.kind in "biuf":
            hint = f" Where {target} is one-hot encoded, save {target}.argmax(axis=1)."
        elif X.ndim == 1:
            hint = " Where there is one feature, save X.reshape(-1, 1)."
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
        image_shape = (side, side)  # bytes in square rows: flat grey images, as MNIST is often kept
    else:
        image_shape = None

    def as_text(columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({column: number_text(features[column]) for column in columns}, dtype=object)

    return Raw(name, features, y, "the labels", image_shape, as_text, True)


def _native(array: np.ndarray, key: str, name: str) -> np.ndarray:
    """The array in this machine's byte order, bytes as text."""
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
