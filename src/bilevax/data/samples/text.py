"""Text files as records: decompressed, decoded, and split by the separator that fits."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.csv_text import SEPARATORS, check_start
from bilevax.data.samples.packing import unpacked

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "bar": "|", "pipe": "|", "space": " "}
SAMPLE = 1 << 16  # characters that the separator is found by
LONGEST_CELL = 1 << 28  # characters
CHUNK = 4096  # records that are split at once
NAMED_LINES = 5


class Records(NamedTuple):
    """The records of one file.

    Attributes:
        frame: the columns, of text as written or, where the file has types, of its types.
        record: the number of each record in the file, from 0.
        lines: the line where each record begins, from 1; elsewhere `record`.
        total: how many records the file has, those that were left out included.
        encoding, separator, compression: of a text file.
        notes: what was done, in sentences.
    """

    frame: pd.DataFrame
    record: Int[np.ndarray, " n"]
    lines: Int[np.ndarray, " n"]
    total: int
    encoding: str = ""
    separator: str = ""
    compression: str = ""
    notes: tuple[str, ...] = ()


def read_records(
    path: Path, name: str, target: str | None, *, encoding: str | None, separator: str | None, strict: bool
) -> Records:
    """The records of a text file with a line of names.

    Args:
        path: of a regular file.
        name: of the file, for messages.
        target: a column that is expected; it helps to find the separator.
        encoding: as Python names it; None finds it out.
        separator: a character, or `tab`, `comma`, `semicolon`, `bar` or `space`; None finds it out.
        strict: whether records of another length than the line of names, and text that is not Unicode, are refused.

    Raises:
        InputError: it is not text, not in this encoding, or empty; a quotation mark is never closed; with `strict`, as
            above.
    """
    content, compression = unpacked(path, name)
    text, found, notes = decoded(content, name, encoding, strict)
    if separator is None:
        mark = likely_separator(text, target, name)
        if mark != ",":
            notes.append(f"{name} is read as columns separated by {SEPARATORS[mark]}.")
    else:
        mark = WORDS.get(separator.lower(), separator)
        if len(mark) != 1 or mark in '"\r\n':
            raise InputError(f"The separator is {separator!r}, and must be one character, or one of {listed(WORDS)}.")
    try:
        header, columns, places, lines, total = _split(text, mark, name, notes, strict)
    except csv.Error as error:
        raise InputError(f"{name} cannot be split into records: {short_reason(error)}. Check the file.") from error
    names = _apart(header, name, notes)
    frame = pd.DataFrame(dict(zip(names, columns, strict=True)), columns=names)
    if names and names[-1] == f"column {len(names)}" and frame[names[-1]].str.strip().eq("").all():
        frame = frame.drop(columns=names[-1])  # a separator at the end of each line
    return Records(frame, places, lines, total, found, mark, compression, tuple(notes))


def decoded(content: bytes, name: str, encoding: str | None, strict: bool) -> tuple[str, str, list[str]]:
    """Bytes as text, the encoding, and notes.

    Without `encoding`: the mark at the beginning decides, then UTF-8 where it fits, then CP1252, then Latin-1.

    Raises:
        InputError: the encoding is unknown or does not fit; the bytes are not text, or, with `strict`, not Unicode.
    """
    if encoding is not None:
        try:
            return _without_nul(content.decode(encoding).removeprefix("\ufeff"), name), encoding, []
        except LookupError as error:
            raise InputError(
                f"The encoding {encoding!r} is unknown. Pass one such as utf-8, cp1252, utf-16."
            ) from error
        except UnicodeError as error:
            where = f" (byte {getattr(error, 'start', 0):,})"
            raise InputError(
                f"{name} is not text in the encoding {encoding}{where}. Pass another, or leave it out to find it out."
            ) from error
    for mark, marked in MARKS.items():
        if content.startswith(mark):
            try:
                return _without_nul(content.decode(marked), name), marked, []
            except UnicodeError as error:
                raise InputError(f"{name} begins as {marked} text and is damaged: {short_reason(error)}.") from error
    check_start(content[:4096], name)
    start = np.frombuffer(content[: len(content) // 2 * 2][:SAMPLE], np.uint8).reshape(-1, 2) == 0
    for column, wide in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(start) and start[:, column].mean() > 0.4 and not start[:, 1 - column].any():
            try:
                return content.decode(wide), wide, [f"{name} is read as {wide.upper()} text."]
            except UnicodeError:
                break
    try:
        return _without_nul(content.decode("utf-8"), name), "utf-8", []
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"{name} is not UTF-8 text (byte {content[error.start]:#04x} in line {line})"
        if strict:
            raise InputError(f"{where}. Save it as UTF-8, or pass its encoding.") from error
    try:
        text, found = content.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        text, found = content.decode("latin-1"), "latin-1"
    known = {"cp1252": "CP1252", "latin-1": "Latin-1"}[found]
    return _without_nul(text, name), found, [f"{where}: it is read as {known}. If letters look wrong, pass --encoding."]


def _without_nul(text: str, name: str) -> str:
    place = text.find("\0")
    if place >= 0:
        line = text.count("\n", 0, place) + 1
        raise InputError(f"{name} holds NUL bytes (line {line}), so it is damaged or not text. Save it again as CSV.")
    return text


def likely_separator(text: str, target: str | None, name: str) -> str:
    """The separator by which most records have the length of the line of names; one that finds the target first.

    Raises:
        InputError: the text is empty.
    """
    start = text[:SAMPLE]
    if len(text) > SAMPLE:
        start = start[: start.rfind("\n") + 1] or start
    best, found = (False, 0.0, 0), ","
    for mark in SEPARATORS:
        try:
            records = [record for record in csv.reader(io.StringIO(start, newline=""), delimiter=mark) if any(record)]
        except csv.Error:
            continue
        if not records:
            raise InputError(f"{name} is empty. Check the file.")
        width = len(records[0])
        agreement = float(np.mean([len(record) == width for record in records]))
        with_target = target is not None and target in map(str.strip, records[0])
        if width > 1 and (with_target, agreement, width) > best:
            best, found = (with_target, agreement, width), mark
    return found


def _split(
    text: str, mark: str, name: str, notes: list[str], strict: bool
) -> tuple[list[str], list[pd.Series], Int[np.ndarray, " n"], Int[np.ndarray, " n"], int]:
    """The line of names; the columns; the record's number and its line for each row; the number of records."""
    import pyarrow as pa

    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        numbered = _numbered(text, mark, name)
        _, header = next(numbered, (0, []))
        if not header:
            raise InputError(f"{name} is empty. Check the file.")
        first = next(numbered, None)
        if first is not None and len(first[1]) == len(header) + 1 and first[1][-1].strip():
            header = ["", *header]  # names of rows without a name of their own, as R writes them
        width = len(header)
        places, lines, chunk, chunks = [], [], [], []
        short, long, total = [], [], 0
        for line, record in _with(first, numbered):
            total += 1
            if len(record) != width:
                if len(record) > width and any(cell.strip() for cell in record[width:]):
                    long.append(line)
                    continue
                if len(record) < width:
                    short.append(line)
                    record = record + [""] * (width - len(record))
                record = record[:width]
            places.append(total - 1)
            lines.append(line)
            chunk.append(record)
            if len(chunk) == CHUNK:
                chunks.append([pa.array(cells, pa.string()) for cells in zip(*chunk, strict=True)])
                chunk = []
    finally:
        csv.field_size_limit(limit)
    if chunk:
        chunks.append([pa.array(cells, pa.string()) for cells in zip(*chunk, strict=True)])
    _note_lengths(short, long, width, name, notes, strict)
    columns = [
        pa.chunked_array([part[i] for part in chunks], pa.string()).to_pandas().astype("str") for i in range(width)
    ]
    return header, columns, np.array(places, int), np.array(lines, int), total


def _with(
    first: tuple[int, list[str]] | None, rest: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    if first is not None:
        yield first
    yield from rest


def _numbered(text: str, mark: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line where it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    begin = last = 0
    for record in reader:
        begin, last = last + 1, reader.line_num
        if any(record) and not (len(record) == 1 and not record[0].strip()):
            yield begin, record
    if last > begin and text.count('"') % 2:
        raise InputError(
            f"{name}: the quotation mark in line {begin} is never closed. Correct that line, or double the mark."
        )


def _note_lengths(short: list[int], long: list[int], width: int, name: str, notes: list[str], strict: bool) -> None:
    for lines, less, done in (
        (short, "fewer", "the cells that they lack are missing"),
        (long, "more", "they are left out"),
    ):
        if not lines:
            continue
        found = f"{name} has {counted(len(lines), 'record')} with {less} than {width} cells ({in_lines(lines)})"
        if strict:
            raise InputError(f"{found}. Correct or remove them.")
        notes.append(f"{found}: {done}.")


def counted(n: int, noun: str) -> str:
    """A number of things: 1 record, 2 records."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def in_lines(lines: list[int]) -> str:
    """The first few lines, for a message."""
    more = len(lines) - NAMED_LINES
    shown = ", ".join(map(str, lines[:NAMED_LINES]))
    return f"line {shown}" if len(lines) == 1 else f"lines {shown}" + (f" and {more:,} more" if more > 0 else "")


def _apart(header: list[str], name: str, notes: list[str]) -> list[str]:
    """Names of columns, each different."""
    names = [column.strip() or f"column {i + 1}" for i, column in enumerate(header)]
    twice = [column for column, n in Counter(names).items() if n > 1]
    if twice:
        notes.append(f"{name} has more than one column of the name {listed(twice)}: the later ones get a number.")
    apart: dict[str, None] = {}
    for column in names:
        new, i = column, 1
        while new in apart or (i > 1 and new in names):
            i += 1
            new = f"{column} ({i})"
        apart[new] = None
    return list(apart)
