"""Folders with a subfolder of pictures for each class, and columns of paths of pictures."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bilevax._checks import InputError, listed
from bilevax.data.folders import visible
from bilevax.data.samples.content import Content, without_labels
from bilevax.data.samples.numbers import NO_CELL
from bilevax.data.samples.pictures import SUFFIXES
from bilevax.data.samples.text import Records, counted

MOSTLY = 0.9


def folder_content(folder: Path, name: str) -> Content:
    """The pictures of a folder; the names of its subfolders are the labels.

    Raises:
        InputError: it has no subfolders, or no pictures in them.
    """
    classes = [path for path in visible(folder) if path.is_dir()]
    if not classes:
        raise InputError(f"{name} has no subfolders. Make one for each class, with its pictures in it.")
    files, labels, ignored, digest = [], [], 0, hashlib.sha256()
    for subfolder in classes:
        for path in sorted(subfolder.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
                continue
            if path.suffix.lower() not in SUFFIXES:
                ignored += 1
                continue
            files.append(path)
            labels.append(subfolder.name)
            digest.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape"))
            digest.update(path.read_bytes() if path.is_file() else b"")
    if not files:
        raise InputError(f"{name} has no pictures in its subfolders ({listed([path.name for path in classes])}).")
    notes = [f"{name} has {counted(ignored, 'file')} whose suffix is not of a picture: ignored."] * bool(ignored)
    splits = [path.name for path in classes if path.name.lower() in ("train", "test", "val", "valid", "validation")]
    if len(splits) == len(classes):
        raise InputError(
            f"{name} has the parts {listed(splits)}, and a subfolder for each class is needed. Pass one of the parts."
        )
    names = [path.relative_to(folder).as_posix() for path in files]
    places = np.arange(len(files))
    rows: Any = pd.DataFrame({"file": pd.Series(names, dtype="str"), "label": pd.Series(labels, dtype="str")})
    records = Records(rows[["file"]], places, places, len(files), notes=tuple(notes))
    return Content(
        name, folder, "folder", None, rows["label"], records, rows, digest.hexdigest(), None, list(files), names
    )


def pictures_in(folder: Path, name: str) -> Content:
    """The pictures of a folder and its subfolders, without labels.

    Raises:
        InputError: there are none.
    """
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [path for path in shown if path.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(f"{name} has no pictures. Pass a folder of pictures, or a file.")
    ignored = len(shown) - len(files)
    notes = [f"{name} has {counted(ignored, 'file')} whose suffix is not of a picture: ignored."] * bool(ignored)
    return of_pictures(files, [path.relative_to(folder).as_posix() for path in files], folder, name, tuple(notes))


def of_pictures(files: list[Path], names: list[str], path: Path, name: str, notes: tuple[str, ...] = ()) -> Content:
    """Files of pictures without labels."""
    places = np.arange(len(files))
    rows = pd.DataFrame({"file": pd.Series(names, dtype="str")})
    content = without_labels(Records(rows, places, places, len(files), notes=notes), path, name, "folder")
    return content._replace(pictures=list(files), identifiers=names)


def with_pictures(content: Content) -> Content:
    """The content with the pictures that a column of paths names, where there is such a column.

    Paths are relative to the folder of the file. A column whose cells mostly end as the names of pictures do is one,
    if some of the files exist.
    """
    missing: list[str] = []
    for column, values in content.records.frame.items():
        if not pd.api.types.is_string_dtype(values.dtype):
            continue
        first = [text for cell in values.head(200) if isinstance(cell, str) and (text := cell.strip()) not in NO_CELL]
        if not first or np.mean([Path(text).suffix.lower() in SUFFIXES for text in first]) < MOSTLY:
            continue
        paths = values.astype("str").fillna("").str.strip()
        present = ~paths.isin(NO_CELL)
        folder = content.path.parent
        files = [
            folder / text.replace("\\", "/") if is_path else None for text, is_path in zip(paths, present, strict=True)
        ]
        if any(file.is_file() for file in files[:1000] if file is not None):
            others = [c for c in content.records.frame.columns if c != column]
            more = f" The other columns are not features: {listed(others)}." if others else ""
            notes = (*content.records.notes, f"The features are the pictures that column {column!r} names.{more}")
            return content._replace(
                pictures=files, identifiers=paths.tolist(), records=content.records._replace(notes=notes)
            )
        missing.append(str(column))
    if missing and len(missing) == len(content.records.frame.columns):
        raise InputError(
            f"{content.name} has a column of paths, {missing[0]!r}, and none of the first files is in "
            f"{content.path.parent}. Paths are relative to the folder of the file."
        )
    return content
