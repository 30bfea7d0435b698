"""Parquet files, and folders of Hugging Face's `datasets`, with other labels."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevax._checks import InputError, short_reason
from bilevax.applications.denoising.review.edits import Edits, settled
from bilevax.data.samples.types import Source

if TYPE_CHECKING:
    import pyarrow as pa

STATE, INFO = "state.json", "dataset_info.json"


def write_parquet(source: Source, edits: Edits, out: Path) -> dict[int, str]:
    """Write a copy of a Parquet file, with its schema, metadata, row groups and compression.

    Raises:
        InputError: as `settled`.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(source.path) as file:
        schema, groups = file.schema_arrow, file.num_row_groups
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        place = _place(schema, source)
        labels = [file.read_row_group(i, [schema.names[place]]).column(0).combine_chunks() for i in range(groups)]
        edited = _edited(labels, edits, _class_names(described.get("info", {}), source), str(source.path))
        packed = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
        codecs: Any = {c.path_in_schema: c.compression.replace("UNCOMPRESSED", "NONE") for c in packed}
        start = 0
        with pq.ParquetWriter(out, schema, compression=codecs) as writer:
            for i, values in enumerate(edited):
                table = file.read_row_group(i)
                table = table.set_column(place, schema.field(place), values)
                writer.write_table(_kept(table, edits, start), row_group_size=max(1, table.num_rows))
                start += table.num_rows
    return {}


def write_datasets(source: Source, edits: Edits, out: Path) -> dict[int, str]:
    """Write a copy of a folder that `save_to_disk` wrote, with its schema and its division into files.

    Raises:
        InputError: as `settled`.
    """
    import pyarrow as pa

    state = json.loads((source.path / STATE).read_text("utf-8"))
    info = json.loads((source.path / INFO).read_text("utf-8"))
    names = [Path(part["filename"]).name for part in state["_data_files"]]
    tables = []
    for name in names:
        with pa.memory_map(str(source.path / name)) as stream:
            tables.append(pa.ipc.open_stream(stream).read_all())
    place = _place(tables[0].schema, source)
    labels = [table.column(place).combine_chunks() for table in tables]
    edited = _edited(labels, edits, _class_names(info, source), str(source.path))
    shutil.copytree(source.path, out, ignore=lambda _, found: [name for name in found if name in names])
    start, digest = 0, hashlib.sha256()
    for name, table, values in zip(names, tables, edited, strict=True):
        copy = _kept(table.set_column(place, table.schema.field(place), values), edits, start)
        with pa.OSFile(str(out / name), "wb") as stream, pa.ipc.new_stream(stream, copy.schema) as writer:
            writer.write_table(copy, max_chunksize=1000)
        digest.update((out / name).read_bytes())
        start += table.num_rows
    state["_fingerprint"] = digest.hexdigest()[:16]  # datasets keeps what it computes by it
    (out / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    return {}


def _place(schema: "pa.Schema", source: Source) -> int:
    names = [name.strip() for name in schema.names]
    if source.target not in names:
        raise InputError(f"{source.path} has no column {source.target!r}, which held the labels. Review it again.")
    return names.index(source.target)


def _class_names(info: dict[str, Any], source: Source) -> list[str] | None:
    """The names of the classes, where the column holds their numbers."""
    kind = (info.get("features") or {}).get(source.target)
    if not isinstance(kind, dict) or kind.get("_type") != "ClassLabel":
        return None
    return list(kind.get("names") or []) or None


def _kept(table: "pa.Table", edits: Edits, start: int) -> "pa.Table":
    rows = range(start, start + table.num_rows)
    if edits.dropped.isdisjoint(rows):
        return table
    import pyarrow as pa

    return table.filter(pa.array([row not in edits.dropped for row in rows]))


def _edited(parts: list["pa.Array"], edits: Edits, classes: list[str] | None, where: str) -> list["pa.Array"]:
    """The parts of the column of labels with the new ones."""
    values = [value for part in parts for value in part.to_pylist()]
    if classes:
        named = [classes[i] if i is not None and 0 <= i < len(classes) else None for i in values]
        counts = Counter(classes) + Counter(name for name in named if name is not None)
        texts = settled(edits, counts, ((row, named[row]) for row in edits.given), where)
        new: dict[int, Any] = {row: classes.index(name) for row, name in texts.items()}
    else:
        new = settled(edits, Counter(values), ((row, values[row]) for row in edits.given), where)
    import pyarrow as pa

    start, edited = 0, []
    for part in parts:
        rows = {row - start: value for row, value in new.items() if start <= row < start + len(part)}
        try:
            edited.append(_replaced(part, rows) if rows else part)
        except (pa.ArrowInvalid, OverflowError) as error:
            raise InputError(
                f"{edits.name}: a label cannot be written as {part.type}, the type of {where}: {short_reason(error)}."
            ) from error
        start += len(part)
    return edited


def _replaced(part: "pa.Array", rows: dict[int, Any]) -> "pa.Array":
    import pyarrow as pa

    if not pa.types.is_dictionary(part.type):
        values = part.to_pylist()
        for row, value in rows.items():
            values[row] = value
        return pa.array(values, part.type)
    words, codes = part.dictionary.to_pylist(), part.indices.to_pylist()  # keeps categories that no row has
    for row, value in rows.items():
        if value not in words:
            words.append(value)
        codes[row] = words.index(value)
    indices, dictionary = pa.array(codes, part.type.index_type), pa.array(words, part.type.value_type)
    return pa.DictionaryArray.from_arrays(indices, dictionary, ordered=part.type.ordered)
