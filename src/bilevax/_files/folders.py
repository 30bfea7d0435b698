"""Folders with an owner file, which marks what this program wrote."""

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
    """Make a folder with its parents, and mark it. An existing one stays unchanged.

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
    """`make`, then test that files can be written.

    Raises:
        OSError: it cannot be made or written.
    """
    make(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass


def claim(folder: Path, where: str) -> None:
    """Make and mark a folder for this program alone: it must be new, empty, or marked already.

    Args:
        folder: the folder.
        where: its name in an error, such as "--out".

    Raises:
        InputError: it holds files but no mark, is a file, or cannot be written.
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
    """Remove what this program wrote from a marked folder, including marked folders inside it.

    Files that the owner file does not list, or that were changed since, stay, and so do their folders.

    Returns:
        Whether the folder is gone.

    Raises:
        LockedError: a solve is writing to the folder.
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
            with suppress(OSError):  # not empty
                if parent.parts:
                    (folder / parent).rmdir()
    for path in folder.iterdir():  # left by killed processes
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
    """The content of the owner file; None where there is none, or one that this program did not write."""
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
    """A new marked folder with a temporary name in `folder`, for files with these names; `more` is added to the mark.

    Renaming it once its files are written makes a complete folder, or none.
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
    """Remove the scratch folders left by killed processes."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if not is_ours(path) and all(TEMPORARY.fullmatch(p.name) for p in path.iterdir()):
                write_mark(path, {"made": True, "files": {}})  # its process was killed before marking it
            remove_ours(path)


def remove_whole(folder: Path) -> bool:
    """Remove a marked folder atomically, unless it holds a file that its mark does not list.

    Returns:
        Whether it was removed.
    """
    mark = read_mark(folder)
    if mark is None or {path.name for path in folder.iterdir()} - {OWNER, *mark["files"]}:
        return False
    part = temporary_name(folder.parent / "x")
    folder.rename(part)
    return remove_ours(part)
