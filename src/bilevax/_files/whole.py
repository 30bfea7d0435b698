"""Files written completely or not at all."""

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.bilevax-[0-9a-f]{12}(\..*)?")


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all: under a temporary name in the same folder, then renamed.

    A symlink at `path` is replaced, not its target. If writing fails, the previous file stays.

    Args:
        path: the file.
        write: called with the path to write to, which has the same suffix.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "numbers.csv")
        ...     replace(path, lambda temporary: temporary.write_text("1,2"))
        ...     path.read_text()
        '1,2'
    """
    temporary = temporary_name(path)
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not supported by some file systems
        sync(path.parent)


def temporary_name(path: Path) -> Path:
    """An unused path in the same folder, with the same suffix."""
    suffix = path.suffix if len(path.suffix) < 20 else ""
    return path.with_name(f".bilevax-{secrets.token_hex(6)}{suffix}")


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged(path: Path, hashes: list[str]) -> bool:
    """Whether a path is a regular file with one of these hashes; any hash if the list is empty."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    return not hashes or digest(path) in hashes
