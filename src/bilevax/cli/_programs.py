"""Compiled programs of the commands, kept in the user's cache, so that the same command compiles them once."""

import importlib.util
import os
from contextlib import suppress
from pathlib import Path

import jax

from bilevax._checks import InputError
from bilevax.data.fetch import cache_folder

MOST_KEPT = 1 << 30  # bytes; JAX removes the programs that were not used for longest, under a lock
SHORTEST = 0.2  # seconds; programs that compile faster are not kept
ENTRY, STAMP = "-cache", "-atime"  # what JAX writes for each program


def keep_programs() -> None:
    """Let JAX keep compiled programs in the user's cache.

    Nothing is kept if JAX_COMPILATION_CACHE_DIR names another folder, the folder cannot be written, or the package
    filelock is missing. Importing bilevax never sets this.
    """
    if jax.config.jax_compilation_cache_dir or importlib.util.find_spec("filelock") is None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = cache_folder() / "programs"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, InputError):
        return
    if not os.access(folder, os.W_OK):
        return
    _remove_unfinished(folder)
    jax.config.update("jax_compilation_cache_max_size", MOST_KEPT)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left: a program without its time of use, which stops JAX from removing others."""
    for path in folder.glob(f"*{ENTRY}"):
        stamp = path.with_name(path.name.removesuffix(ENTRY) + STAMP)
        with suppress(OSError):
            if not stamp.exists():
                path.unlink()
