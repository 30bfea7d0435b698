"""Parquet files, and folders that `Dataset.save_to_disk` of Hugging Face's `datasets` writes, read by pyarrow alone."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.archives import check_expansion
from bilevax.data.readers import PARQUET_EXPANSION
from bilevax.data.samples.content import Content, digest_of, target_of
from bilevax.data.samples.text import Records

if TYPE_CHECKING:
    import pyarrow as pa

STATE, INFO, PARTS = "state.json", "dataset_info.json", "dataset_dict.json"


class _Features(NamedTuple):
    """What `datasets` says of the columns: the names of classes by column, and the columns of pictures."""

    classes: dict[str, list[str]]
    pictures: list[str]


def parquet_content(path: Path, name: str, target: str | None, labelled: bool = True) -> Content:
    """The content of a Parquet file; without labels where it is not `labelled`.

    Raises:
        InputError: it is damaged or too large, or lacks the target.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows, width = file.metadata.num_rows, len(file.schema_arrow.names)
            check_expansion(path.stat().st_size, 8 * rows * width, PARQUET_EXPANSION)
            table = file.read()
            index = (file.schema_arrow.pandas_metadata or {}).get("index_columns", ())
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(f"{name} cannot be read as .parquet: {short_reason(error)}. Check the file.") from error
    saved = [column for column in index if isinstance(column, str) and column != target]
    notes = [f"Column {column!r} is the saved row index and left out." for column in saved if column[:2] != "__"]
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = _features(described.get("info", {}).get("features", {}) or {})
    table = table.drop_columns([column for column in saved if column in table.column_names])
    return _content(table, path, name, "parquet", target, features, digest_of(path), notes, labelled)


def is_datasets_folder(folder: Path) -> bool:
    """Whether a folder is one that `save_to_disk` writes."""
    return (folder / PARTS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


def datasets_content(folder: Path, name: str, target: str | None, labelled: bool = True) -> Content:
    """The content of a folder that `save_to_disk` wrote; without labels where it is not `labelled`.

    Raises:
        InputError: it is a `DatasetDict` (its parts are named), damaged, or lacks the target.
    """
    import pyarrow as pa

    notes: list[str] = []
    if (folder / PARTS).is_file():
        parts = _json(folder / PARTS, name).get("splits", [])
        if "train" not in parts:
            raise InputError(f"{name} holds several parts ({listed(parts)}). Pass the folder of one of them.")
        if len(parts) > 1:
            notes.append(f"{name} holds the parts {listed(parts)}: 'train' is read.")
        folder = folder / "train"
    state, info = _json(folder / STATE, name), _json(folder / INFO, name)
    if state.get("_indices_data_files"):
        raise InputError(f"{name} was saved by an old version of datasets, with an index. Save it again by a new one.")
    digest = hashlib.sha256()
    tables = []
    for part in state.get("_data_files", ()):
        file = folder / Path(str(part.get("filename"))).name
        try:
            with pa.memory_map(str(file)) as source:
                tables.append(pa.ipc.open_stream(source).read_all())
            digest.update(digest_of(file).encode())
        except Exception as error:  # a damaged file raises whatever its decoder runs into
            raise InputError(f"{name} cannot be read: {file.name}: {short_reason(error)}. Save it again.") from error
    if not tables:
        raise InputError(f"{name} names no data files in {STATE}. Save it again.")
    features = _features(info.get("features") or {})
    table = pa.concat_tables(tables)
    return _content(table, folder, name, "datasets", target, features, digest.hexdigest(), notes, labelled)


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {path.name} cannot be read ({short_reason(error)}). Save it again.") from error
    return content if isinstance(content, dict) else {}


def _features(features: dict[str, Any]) -> _Features:
    kinds = {column: kind for column, kind in features.items() if isinstance(kind, dict)}
    classes = {column: list(kind.get("names") or []) for column, kind in kinds.items() if kind["_type"] == "ClassLabel"}
    return _Features(classes, [column for column, kind in kinds.items() if kind["_type"] == "Image"])


def _content(
    table: "pa.Table",
    path: Path,
    name: str,
    form: str,
    target: str | None,
    features: _Features,
    digest: str,
    notes: list[str],
    labelled: bool,
) -> Content:
    table = table.rename_columns([column.strip() for column in table.column_names])
    names = table.column_names
    if twice := [column for column, n in Counter(names).items() if n > 1]:
        raise InputError(f"{name} has more than one column of the name {listed(twice)}. Rename them apart.")
    if table.num_rows == 0:
        raise InputError(f"{name} has no rows. Check it.")
    if target is None and len(features.classes) == 1:
        target = next(iter(features.classes))
    chosen = target_of(names, target, name) if labelled else None
    pictures, where = None, None
    if features.pictures:
        where = features.pictures[0]
        pictures = [_picture(cell, path) for cell in table.column(where).to_pylist()]
    array, vectors = (
        _vectors(table, [column for column in names if column != chosen]) if pictures is None else (None, [])
    )
    skipped = [*features.pictures, *vectors]
    frame: Any = pd.DataFrame({c: _column(table.column(c), features.classes.get(c)) for c in names if c not in skipped})
    places = np.arange(table.num_rows)
    features_alone = frame if chosen is None else frame.drop(columns=chosen)
    records = Records(features_alone, places, places, table.num_rows, notes=tuple(notes))
    if vectors:
        others = list(records.frame.columns)
        more = f" The other columns are not features: {listed(others)}." if others else ""
        records = records._replace(notes=(*notes, f"The features are the vectors in {vectors[0]!r}.{more}"))
    labels = pd.Series(dtype=object) if chosen is None else frame[chosen]
    return Content(name, path, form, chosen, labels, records, frame, digest, array, pictures)


def _column(values: Any, classes: list[str] | None) -> pd.Series:
    """A column as pandas has it; the numbers of classes as their names, -1 as missing."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        values = values.cast(kind)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        values = values.cast(pa.float64())
    elif pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        values = values.cast(pa.string())
    if classes and pa.types.is_integer(kind):
        numbers = values.to_pandas()
        named = [classes[int(i)] if pd.notna(i) and 0 <= i < len(classes) else None for i in numbers]
        return pd.Series(named, dtype="str")
    if pa.types.is_boolean(kind) and values.null_count:
        return values.cast(pa.int8()).to_pandas()
    return values.to_pandas()


def _picture(cell: Any, folder: Path) -> Path | bytes | None:
    """The bytes of a picture, or its path."""
    if not isinstance(cell, dict):
        return None
    if cell.get("bytes"):
        return cell["bytes"]
    path = cell.get("path")
    return None if not path else folder / path


def _vectors(table: "pa.Table", names: list[str]) -> tuple[Shaped[np.ndarray, "n d"] | None, list[str]]:
    """The one column of vectors of numbers of one length, as a matrix."""
    import pyarrow as pa

    found = []
    for column in names:
        kind = table.schema.field(column).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            continue
        if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            continue
        values = table.column(column).combine_chunks()
        flat = values.flatten().to_numpy(zero_copy_only=False)
        if values.null_count == 0 and len(flat) and len(flat) % table.num_rows == 0:
            width = len(flat) // table.num_rows
            lengths = {width} if pa.types.is_fixed_size_list(kind) else set(np.diff(values.offsets.to_numpy()).tolist())
            if lengths == {width}:
                found.append((column, flat.reshape(table.num_rows, width)))
    return (found[0][1], [found[0][0]]) if len(found) == 1 else (None, [])
