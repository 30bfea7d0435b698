"""Folders of class folders with other labels: copies in the folder of the class."""

import shutil
from collections import Counter
from pathlib import Path, PurePosixPath

from bilevax._checks import InputError
from bilevax.applications.denoising.review.edits import Edits, settled
from bilevax.data.samples.types import Source


def write_folder(source: Source, edits: Edits, out: Path) -> dict[int, str]:
    """Write copies of all files: those of corrected samples to the folder of their class, none of dropped ones.

    Returns:
        The new paths of the corrected samples, relative to the folder.

    Raises:
        InputError: as `settled`; a decision has no identifier, or one that is not the path of a picture in the folder.
    """
    classes = Counter(path.name for path in source.path.iterdir() if path.is_dir() and not path.name.startswith("."))
    places = {row: _place(row, edits, source.path) for row in edits.given}
    new = settled(edits, classes, ((row, place.parts[0]) for row, place in places.items()), str(source.path))
    out.mkdir()
    gone = {places[row] for row in (*edits.dropped, *new)}
    for path in sorted(source.path.rglob("*")):
        place = PurePosixPath(path.relative_to(source.path).as_posix())
        if path.is_dir():
            (out / place).mkdir(parents=True, exist_ok=True)
        elif place not in gone:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / place)
    moved = {}
    for row in sorted(new):
        place = _free(out, PurePosixPath(new[row], *places[row].parts[1:]), places[row].parts[0])
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source.path / places[row], out / place)
        moved[row] = str(place)
    return moved


def _place(row: int, edits: Edits, folder: Path) -> PurePosixPath:
    identifier = edits.identifiers.get(row)
    if identifier is None:
        raise InputError(f"{edits.name}: row {row} has no id, the path of the picture in {folder}. Export it again.")
    place = PurePosixPath(identifier)
    if place.is_absolute() or ".." in place.parts or len(place.parts) < 2 or not (folder / place).is_file():
        raise InputError(f"{edits.name}: the id of row {row} is {identifier!r}, which is no picture in {folder}.")
    return place


def _free(out: Path, place: PurePosixPath, origin: str) -> PurePosixPath:
    """The place, or one beside it where a file has its name."""
    tried, n = place, 1
    while (out / tried).exists():
        tried = place.with_name(f"{place.stem}-from-{origin}{'' if n == 1 else f'-{n}'}{place.suffix}")
        n += 1
    return tried
