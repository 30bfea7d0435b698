"""Results on disk, cell by cell: a stopped run resumes with the cells that are missing."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Key = TypeVar("Key")
Rows = dict[str, dict[str, Any]]  # a cell's figures by row label


def kept_cell(path: Path, labels: Sequence[str], run: Callable[[list[str]], Rows]) -> Rows:
    """A cell's rows, from its file. `run(missing labels)` computes the rows that the file lacks; they are added to it.

    Args:
        path: the cell's file; it need not exist yet.
        labels: the rows that are needed.
        run: computes rows by label.
    """
    kept = read_cell(path)
    missing = [label for label in labels if label not in kept]
    if missing:
        kept |= run(missing)
        write_cell(path, kept)
    return kept


def kept_cells(
    paths: Mapping[Key, Path], labels: Sequence[str], run: Callable[[str, list[Key]], Sequence[dict[str, Any]]]
) -> dict[Key, Rows]:
    """The rows of many cells, if one run computes a row of all cells that lack it.

    Args:
        paths: the cells' files by key.
        labels: the rows that are needed.
        run: `run(label, missing keys)` returns the row of each of these cells, in their order.
    """
    found = {key: read_cell(path) for key, path in paths.items()}
    for label in labels:
        missing = [key for key, rows in found.items() if label not in rows]
        if missing:
            for key, row in zip(missing, run(label, missing), strict=True):
                found[key][label] = row
                write_cell(paths[key], found[key])
    return found


def read_cell(path: Path) -> Rows:
    """The rows in a cell's file; empty if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write_cell(path: Path, kept: Rows) -> None:
    """Replace a cell's file atomically: a run that is stopped while it writes loses no finished row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1) + "\n")
    part.replace(path)
