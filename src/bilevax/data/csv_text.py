"""CSV files as text: recognised, decompressed, and split into columns."""

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bilevax._checks import InputError, short_reason
from bilevax.data.archives import MOST_EXPANSION, UnreadableError, check_expansion, check_regular

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LONGEST_LINE = 1 << 26  # characters of the line with the column names
BEGINNING = 1 << 26  # bytes; a file with a usual compression ratio up to there is read without further checks
HEAD = 4096  # bytes read to recognise the format of a file
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


def read_words(path: Path, name: str) -> pd.DataFrame:
    """A CSV file whose cells are all text, stripped of blanks.

    Raises:
        InputError: it is not a regular file, or not CSV text.
    """
    check_regular(path, name, "Pass a CSV file.")
    try:
        check_text(path, name)
        with opened(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False, encoding="utf-8", index_col=False)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text. Save it as UTF-8.") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(f"{name} cannot be read as CSV: {short_reason(error)}. Check the file.") from error
    frame.columns = frame.columns.astype(str).str.strip()
    return pd.DataFrame({column: frame[column].str.strip() for column in frame})


class _Metered(io.RawIOBase):
    """A decompressed stream that raises where it grows beyond `check_expansion`."""

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


def opened(path: Path) -> Any:
    """A CSV file as bytes, decompressed."""
    if path.suffix.lower() != ".gz":
        return open(path, "rb")
    return io.BufferedReader(_Metered(gzip.open(path), path.stat().st_size), 1 << 20)


def check_text(path: Path, name: str) -> None:
    """Refuse a file that is not CSV text, whatever its name."""
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
        with opened(path) as stream:
            start = stream.read(HEAD)
    check_start(start, name)
    if b"\0" in start:
        raise InputError(
            f"{name} cannot be read as .csv: it holds NUL bytes, so it is not UTF-8 text. Save the table as UTF-8 CSV."
        )


def check_start(start: bytes, name: str) -> None:
    """Refuse a file that starts as another format than text does."""
    for magic, found in FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{name} cannot be read as .csv: it is {found}.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(HTML):
        raise InputError(
            f"{name} cannot be read as .csv: it is an HTML page, such as an error or a login page instead of a "
            "download. Fetch the file again."
        )


def _check_beginning(path: Path) -> None:
    """Decompress the beginning, or all of a file that expands unusually, before it is parsed into memory."""
    packed, count = path.stat().st_size, 0
    with open(path, "rb") as file, gzip.open(file) as stream:
        while block := stream.read(1 << 20):
            count += len(block)
            check_expansion(packed, count)
            if count > BEGINNING and count < MOST_EXPANSION * file.tell():
                return


def first_records(stream: Any, target: str, name: str) -> tuple[list[str], list[str], str]:
    """The names of the columns, the first row, and the separator: one with which the target is a column."""
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
    """Enough lines for the names and the first row, with line breaks within quotation marks."""
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
