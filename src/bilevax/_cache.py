"""The user's cache, for what can be made again: downloads, embeddings, compiled programs."""

import os
from pathlib import Path

from bilevax._checks import InputError


def cache_folder() -> Path:
    """The user's cache: $XDG_CACHE_HOME/bilevax, or ~/.cache/bilevax."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "bilevax"
    except RuntimeError as error:
        raise InputError(
            "There is no home directory to look for a cache in. Set XDG_CACHE_HOME or BILEVAX_DATA to a directory."
        ) from error
