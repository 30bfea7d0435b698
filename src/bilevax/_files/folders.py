"""Folders that this program makes, marked by an owner file."""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bilevax._checks import InputError
from bilevax._files.locks import LOCK, lock
from bilevax._files.paths import reason
from bilevax._files.whole import TEMPORARY, replace, temporary_name, unchanged

OWNER = ".bilevax"


def make(folder: Path) -> None:
    """Make a folder, with its parents, and mark it. One that is already there is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        return
    write_mark(folder, {"made": True, "files": {}})


def make_writable(folder: Path) -> None:
    """`make`, and try the folder with a file that leaves no trace.

    Raises:
        OSError: it cannot be made or written.
    """
    make(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass


def claim(folder: Path, where: str) -> None:
    """Make a folder that is to hold nothing of a user's: a new one, an empty one, or one marked before.

    Args:
        folder: the folder.
        where: what names it in an error, such as "--out".

    Raises:
        InputError: it holds files and no mark, is a file, or cannot be written.
    """
    try:
        if folder.is_dir() and not is_ours(folder) and any(folder.iterdir()):
            raise InputError(
                f"{where}: {str(folder)!r} holds files that bilevax did not write. Name a folder that is new or empty."
            )
        make_writable(folder)
        if not is_ours(folder):
            write_mark(folder, {"made": False, "files": {}})
    except OSError as error:
        raise InputError(
            f"{where}: {str(folder)!r} cannot be written ({reason(error)}). Name a folder that you can write to."
        ) from error


def is_ours(folder: Path) -> bool:
    """Whether the folder holds an owner file."""
    return read_mark(folder) is not None


def remove_ours(folder: Path) -> bool:
    """Remove from a marked folder what this program wrote, folders below it that are marked included.

    Files that the owner file does not list, or that were changed since, stay, and so do the folders they lie in.

    Returns:
        Whether the folder is gone.

    Raises:
        LockedError: a solve is writing to it.
        OSError: something could not be removed.
    """
    mark = read_mark(folder)
    if mark is None:
        return not os.path.lexists(folder)
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            remove_ours(child)
    left = {}
    for name, hashes in mark["files"].items():
        path = folder / name
        if not os.path.lexists(path):
            continue
        if unchanged(path, hashes):
            path.unlink()
        else:
            left[name] = hashes
        for parent in path.relative_to(folder).parents:
            with suppress(OSError):  # it holds more
                if parent.parts:
                    (folder / parent).rmdir()
    for path in folder.iterdir():  # left by a process that was killed
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
    if os.path.lexists(folder / LOCK):
        lock(folder, "The folder")()
    if mark["made"] and not folder.is_symlink() and {path.name for path in folder.iterdir()} <= {OWNER}:
        (folder / OWNER).unlink()
        folder.rmdir()
        return True
    write_mark(folder, {**mark, "files": left})
    return False


def read_mark(folder: Path) -> dict[str, Any] | None:
    """What the owner file of a folder holds; None where there is none, or one that this program did not write."""
    path = folder / OWNER
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        mark = json.loads(path.read_bytes())
        files = mark["files"]
        good = mark["program"] == "bilevax" and isinstance(mark["made"], bool)
        good = good and all(isinstance(x, list) and _is_below(name) for name, x in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return mark if good else None


def _is_below(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


def write_mark(folder: Path, mark: dict[str, Any]) -> None:
    """Write the owner file of a folder."""
    text = json.dumps({"program": "bilevax", **mark}, indent=1) + "\n"
    replace(folder / OWNER, lambda path: path.write_text(text, encoding="utf-8"))


def scratch(folder: Path, names: Iterable[str], **more: Any) -> Path:
    """A new marked folder with a temporary name in `folder`, for files of these names; `more` goes into the mark.

    Renamed once its files are written, it is a folder that is there whole or not at all.
    """
    part = temporary_name(folder / "x")
    part.mkdir()
    try:
        write_mark(part, {"made": True, "files": {name: [] for name in names}, **more})
    except BaseException:
        with suppress(OSError):
            part.rmdir()
        raise
    return part


def sweep(folder: Path) -> None:
    """Remove the scratch folders that killed processes have left."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if not is_ours(path) and all(TEMPORARY.fullmatch(p.name) for p in path.iterdir()):
                write_mark(path, {"made": True, "files": {}})  # killed before it was marked
            remove_ours(path)


def remove_whole(folder: Path) -> bool:
    """Remove a marked folder at once, as seen from outside; not if it holds a file that its mark does not list.

    Returns:
        Whether it was removed.
    """
    mark = read_mark(folder)
    if mark is None or {path.name for path in folder.iterdir()} - {OWNER, *mark["files"]}:
        return False
    part = temporary_name(folder.parent / "x")
    folder.rename(part)
    return remove_ours(part)
