"""Text files with other labels: only the cells of these labels change, and the records of dropped samples go."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bilevax._checks import InputError
from bilevax.applications.denoising.review.edits import Edits, settled
from bilevax.data.samples.packing import unpacked
from bilevax.data.samples.types import Source

LONGEST_CELL = 1 << 28  # characters
MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]


def write_text(source: Source, edits: Edits, out: Path) -> dict[int, str]:
    """Write a copy of a text file, in its separator, encoding, compression, quotation marks and line ends.

    Raises:
        InputError: as `settled`; a record has no cell of the label; a label cannot be written in the encoding.
    """
    content, _ = unpacked(source.path, str(source.path))
    mark, encoding = next(
        ((mark, name) for mark, name in MARKS if content.startswith(mark)), (b"", source.encoding.lower())
    )
    text = content[len(mark) :].decode(encoding)
    try:
        written = _edited(text, source, edits).encode(encoding)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{edits.name}: a label cannot be written in the encoding of {source.path}, {encoding} "
            f"({error.object[error.start : error.end]!r}). Save the file as UTF-8, and review it again."
        ) from error
    _pack(mark + written, source, out)
    return {}


def _edited(text: str, source: Source, edits: Edits) -> str:
    place, counts, spans, values = -1, Counter[str](), dict[int, tuple[int, int]](), dict[int, str]()
    for row, (start, end, record, header) in enumerate(_records(text, source)):
        if place < 0:
            place = _column(header, source)
        cell = record[place] if place < len(record) else ""
        counts[cell] += 1
        if row in edits.given:
            spans[row], values[row] = (start, end), cell
    new = settled(edits, counts, values.items(), str(source.path))
    parts, last = [], 0
    for row in sorted(spans):
        start, end = spans[row]
        if row in edits.dropped:
            replaced = ""
        elif row in new:
            replaced = _with_cell(text[start:end], place, new[row], values[row], source, f"{edits.name}: row {row}")
        else:
            continue
        parts += [text[last:start], replaced]
        last = end
    return "".join([*parts, text[last:]])


def _records(text: str, source: Source) -> Iterator[tuple[int, int, list[str], list[str]]]:
    """Where each record begins and ends in the text, its cells, and the names of the columns."""
    ends = [0]

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            ends.append(ends[-1] + len(line))
            yield line

    header: list[str] | None = None
    reader, start, first = csv.reader(lines(), delimiter=source.separator), 0, True
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        for record in reader:
            end = ends[reader.line_num]
            blank = not any(record) or (len(record) == 1 and not record[0].strip())
            if header is None and not blank:
                header = record
            elif header is not None and not blank:
                if first and len(record) == len(header) + 1 and record[-1].strip():
                    header = ["", *header]  # names of rows without a name of their own, as R writes them
                first = False
                yield start, end, record, header
            start = end
    finally:
        csv.field_size_limit(limit)


def _column(header: list[str], source: Source) -> int:
    names = [name.strip() or f"column {i + 1}" for i, name in enumerate(header)]
    if source.target not in names:
        raise InputError(f"{source.path} has no column {source.target!r}, which held the labels. Review it again.")
    return names.index(source.target)


def _with_cell(record: str, place: int, new: str, old: str, source: Source, where: str) -> str:
    """The text of a record with another cell, quoted as the previous one or as it must be."""
    mark = re.escape(source.separator)
    field = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"[^{mark}\r\n]*|[^{mark}\r\n]*)')
    at, raw = 0, ""
    for n in range(place + 1):
        if n and record[at : at + 1] != source.separator:
            raise InputError(f"{where} of {source.path} has no cell for the label. Correct that record.")
        at += bool(n)
        found = field.match(record, at)
        raw = found.group() if found else ""
        at += len(raw)
    if next(csv.reader([raw], delimiter=source.separator), []) != ([old] if raw else []):
        raise InputError(f"{where} of {source.path} could not be found as text. Correct that record.")
    if raw.startswith('"') or any(c in new for c in (source.separator, '"', "\r", "\n")):
        new = '"' + new.replace('"', '""') + '"'
    return record[: at - len(raw)] + new + record[at:]


def _pack(content: bytes, source: Source, out: Path) -> None:
    kind = source.compression
    if kind == "zst":
        import pyarrow as pa

        with pa.output_stream(str(out), compression="zstd") as stream:
            stream.write(content)
    elif kind == "zip":
        with zipfile.ZipFile(source.path) as archive:
            member = next(i for i in archive.infolist() if not i.is_dir() and "__MACOSX" not in i.filename)
        with zipfile.ZipFile(out, "w", member.compress_type) as archive:
            archive.writestr(member.filename, content)
    else:
        compress = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind]
        out.write_bytes(compress(content))
