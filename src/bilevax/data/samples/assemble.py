"""Samples made of the contents of files: features on one scale, and the samples of all files together."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from bilevax._checks import InputError, listed
from bilevax.data.samples.columns import (
    NAMED,
    Column,
    array_columns,
    matrix_of,
    number_columns,
    scaled_array,
    settle_columns,
)
from bilevax.data.samples.content import Content, chosen, column_of
from bilevax.data.samples.labels import Labels
from bilevax.data.samples.notes import notes_on_cells, notes_on_columns
from bilevax.data.samples.numbers import LARGEST, Style
from bilevax.data.samples.pictures import read_pictures, resized
from bilevax.data.samples.trusted import notes_on_trusted, twins_of
from bilevax.data.samples.types import Kind, Options, Samples, Source


class Part(NamedTuple):
    """The samples of one file.

    Attributes:
        features: of the samples that are kept.
        kept: which of the records these are.
        texts: the free text of each.
        notes: what was done, in sentences.
    """

    features: Shaped[np.ndarray, "k ..."] | list[str]
    kept: Bool[np.ndarray, " n"]
    texts: list[str] | None
    notes: list[str]


def features_of(
    contents: Sequence[Content], labels: Sequence[Shaped[np.ndarray, " _n"]], kind: Kind, options: Options
) -> tuple[Kind, tuple[Column, ...], list[Part]]:
    """The features of each file, on a scale that the first one decides.

    Raises:
        InputError: there are none; an option names a column that does not exist; pictures cannot be used; with
            `options.strict`, something would be left out.
    """
    if kind == "images":
        return kind, (), _pictures(contents, options)
    if kind == "features":
        return _arrays(contents, options)
    return _tables(contents, labels[0], options)


def _pictures(contents: Sequence[Content], options: Options) -> list[Part]:
    parts: list[Part] = []
    for content in contents:
        size = None if not parts else np.shape(parts[0].features)[1:3]
        if content.pictures is None:
            assert content.array is not None
            images = resized(content.array, options.side, size)
            parts.append(Part(images, np.ones(len(images), bool), None, []))
            continue
        names = content.identifiers or [f"picture {i}" for i in content.records.record.tolist()]
        found = read_pictures(
            content.pictures, names, content.name, side=options.side, size=size, strict=options.strict
        )
        parts.append(Part(found.images, found.readable, None, list(found.notes)))
    return parts


def _arrays(contents: Sequence[Content], options: Options) -> tuple[Kind, tuple[Column, ...], list[Part]]:
    arrays = [content.array for content in contents if content.array is not None]
    widths = [array.shape[1] for array in arrays]
    if len(set(widths)) > 1:
        raise InputError(
            f"{contents[1].name} has {widths[1]} features and {contents[0].name} has {widths[0]}. Pass as many in both."
        )
    if all(np.abs(array).max() <= LARGEST for array in arrays):  # NaN, too, goes the long way
        columns = array_columns(arrays[0])
        scaled = [scaled_array(columns, array) for array in arrays]
        return "features", tuple(columns), [Part(x, np.ones(len(x), bool), None, []) for x in scaled]
    frames = [pd.DataFrame(array, columns=[f"X[{i}]" for i in range(array.shape[1])]) for array in arrays]
    columns = number_columns(frames[0])
    parts = [_matrix_part(columns, frame, c, options) for frame, c in zip(frames, contents, strict=True)]
    return "features", tuple(columns), parts


def _tables(
    contents: Sequence[Content], labels: Shaped[np.ndarray, " n"], options: Options
) -> tuple[Kind, tuple[Column, ...], list[Part]]:
    train = contents[0]
    frame = train.records.frame
    names = [str(name) for name in frame.columns]
    dropped = [*options.aside, *((name, "--drop") for name in options.drop)]
    drop = [column_of(names, name, train.name, option) for name, option in dropped]
    keep = [column_of(names, name, train.name, "--keep") for name in options.keep]
    columns = settle_columns(frame, labels, drop=drop, keep=keep, separator=train.records.separator)
    notes = notes_on_columns(columns, train.name)
    used = [column for column in columns if column.role in ("number", "category", "text")]
    if not used and not options.elsewhere:
        raise InputError(" ".join([f"{train.name} has no column that can be used as a feature.", *notes]))
    for content in contents[1:]:
        if lacking := [column.name for column in used if column.name not in content.records.frame.columns]:
            raise InputError(f"{content.name} lacks columns that {train.name} has: {listed(lacking)}.")
    texts = [column.name for column in used if column.role == "text"]
    words = bool(texts) and len(texts) == len(used)
    parts = []
    for content in contents:
        free = texts_of(content.records.frame, texts) if texts else None
        if words and free is not None:
            parts.append(Part(free, np.ones(len(free), bool), None, []))
        else:
            parts.append(_matrix_part(columns, content.records.frame, content, options)._replace(texts=free))
    parts[0].notes[:0] = notes
    return "text" if words else "table", tuple(columns), parts


def texts_of(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The texts of a row, one after another."""
    found = [frame[name].astype("str").fillna("").str.strip().tolist() for name in names]
    return ["\n".join(filter(None, row)) for row in zip(*found, strict=True)]


def _matrix_part(columns: Sequence[Column], frame: pd.DataFrame, content: Content, options: Options) -> Part:
    matrix = matrix_of(columns, frame)
    texts = {
        name: [str(cell) for cell in frame[name].to_numpy(object)[np.flatnonzero(mask)[:20]]]
        for name, mask in matrix.malformed.items()
    }
    notes = notes_on_cells(matrix.malformed, texts, content.records, content.name, options.strict)
    return Part(matrix.features, np.ones(len(frame), bool), None, notes)


def joined(
    kind: Kind,
    columns: tuple[Column, ...],
    contents: Sequence[Content],
    labels: Sequence[Labels],
    parts: Sequence[Part],
    truth: Bool[np.ndarray, " n"] | None,
    numbers: Style | None = None,
) -> Samples:
    """The samples of all files as one; those of the second file are trusted; `numbers` is that of `Source`."""
    total = contents[0].records.total
    kept = [chosen(content, part.kept) for content, part in zip(contents, parts, strict=True)]
    known = [found.labels[part.kept] for found, part in zip(labels, parts, strict=True)]
    own = len(known[0])
    twin = np.full(sum(map(len, known)), -1)
    trusted = np.zeros(len(twin), bool)
    identifiers = [identifiers_of(content, columns) for content in kept]
    if truth is not None:
        trusted[:own] = truth[parts[0].kept]
    if len(kept) > 1:
        trusted[own:] = True
        sides = [
            (_as_bytes(part.features), named, own_labels)
            for part, named, own_labels in zip(parts, identifiers, known, strict=True)
        ]
        twin[own:] = twins_of(sides[0], sides[1])
    features: Any = parts[0].features
    if len(parts) > 1:
        whole: list[Any] = [part.features for part in parts]
        features = [text for part in whole for text in part] if kind == "text" else np.concatenate(whole)
    texts = None if parts[0].texts is None else [text for part in parts for text in part.texts or ()]
    every_label = np.concatenate(known)
    notes = [
        note
        for content, found, part in zip(contents, labels, parts, strict=True)
        for note in (*content.records.notes, *found.notes, *part.notes)
    ]
    if trusted.any():
        notes += notes_on_trusted(every_label, trusted, twin, quantity=numbers is not None)
    train = contents[0]
    records = train.records
    return Samples(
        kind=kind,
        name=train.name,
        features=features,
        labels=every_label,
        trusted=trusted,
        own=own,
        record=np.concatenate([content.records.record for content in kept]),
        lines=np.concatenate([content.records.lines for content in kept]),
        identifiers=None if None in identifiers else [name for part in identifiers for name in part or ()],
        rows=kept[0].rows if len(kept) == 1 else pd.concat([content.rows for content in kept], ignore_index=True),
        texts=texts,
        twin=twin,
        columns=columns,
        source=Source(
            train.path,
            train.form,
            train.target,
            total,
            train.digest,
            records.encoding,
            records.separator,
            records.compression,
            numbers,
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def identifiers_of(content: Content, columns: Sequence[Column]) -> list[str] | None:
    """The identifiers of the samples: those of the form of the file, or a column of them, by its name if possible."""
    if content.identifiers is not None:
        return content.identifiers
    names = [c.name for c in columns if c.role == "identifier" and c.name in content.records.frame.columns]
    names.sort(key=lambda name: NAMED.fullmatch(name) is None)
    return None if not names else content.records.frame[names[0]].astype("str").fillna("").str.strip().tolist()


def _as_bytes(features: Shaped[np.ndarray, "n ..."] | list[str]) -> list[bytes]:
    if isinstance(features, list):
        return [text.encode("utf-8", "surrogatepass") for text in features]
    return [hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in features]
