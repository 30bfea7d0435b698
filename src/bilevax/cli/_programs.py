"""Compiled programs of the commands, kept in the user's cache, so that the same command compiles them once."""

import importlib.util
import os
from contextlib import suppress
from pathlib import Path

from bilevax._cache import cache_folder
from bilevax._checks import InputError

MOST_KEPT = 1 << 30  # bytes; JAX removes the programs that were not used for longest, under a lock
SHORTEST = 0.2  # seconds; programs that compile faster are not kept
ENTRY, STAMP = "-cache", "-atime"  # what JAX writes for each program


def keep_programs() -> None:
    """Let JAX keep compiled programs in the user's cache.

    Call it before JAX is imported: it sets environment variables, for this process and those that it starts. Nothing is
    kept if JAX_COMPILATION_CACHE_DIR names another folder, the folder cannot be written, or the package filelock is
    missing. Importing bilevax never sets this.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or importlib.util.find_spec("filelock") is None:
        return
    try:
        folder = cache_folder() / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, InputError):
        return
    if not os.access(folder, os.W_OK):
        return
    _remove_unfinished(folder)
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(MOST_KEPT)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(SHORTEST)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left: a program without its time of use, which stops JAX from removing others."""
    for path in folder.glob(f"*{ENTRY}"):
        stamp = path.with_name(path.name.removesuffix(ENTRY) + STAMP)
        with suppress(OSError):
            if not stamp.exists():
                path.unlink()
