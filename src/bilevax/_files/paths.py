"""Checks of paths that a user passed."""

import os
import re
from pathlib import Path
from typing import Any

from bilevax._checks import InputError

LONGEST_NAME = 255  # bytes; the limit of every common file system


def local_path(where: str, path: Any) -> Path:
    """A path that a user passed, as an absolute Path. Nothing is created.

    Args:
        where: name of the argument in an error, such as "JsonLines: path".
        path: the argument.

    Raises:
        InputError: it is not a str or a path, or is empty, a URL or not a valid name of a file.

    Example:
        >>> local_path("JsonLines: path", "/logs/../logs/log.jsonl").name
        'log.jsonl'
        >>> local_path("JsonLines: path", "s3://bucket/log.jsonl")
        Traceback (most recent call last):
        bilevax.InputError: JsonLines: path is 's3://bucket/log.jsonl', a URL. Only local folders can be ...
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise InputError(f"{where} is {path!r}, and must be a path: a str or a pathlib.Path.")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r}, bytes. Pass a str; os.fsdecode converts it.")
    if not text.strip():
        raise InputError(f"{where} is {text!r}, an empty path. Name a file or a folder.")
    if "\0" in text:
        raise InputError(f"{where} is {text!r}, which holds a NUL character. File names cannot contain it.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # one slash, since pathlib collapses two
        raise InputError(
            f"{where} is {text!r}, a URL. Only local folders can be written to: mount the bucket, or write to a "
            "local folder and copy it."
        )
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{where} is {text!r}, and that home folder does not exist. Pass the full path.") from error
    try:
        too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in found.parts)
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is {text!r}, which cannot be encoded as a file name on this system.") from error
    if too_long:
        raise InputError(f"{where} holds a name of more than {LONGEST_NAME} bytes: {text[:60]!r}... Shorten it.")
    try:
        return Path(os.path.abspath(found))
    except FileNotFoundError as error:
        raise InputError(
            f"{where} is {text!r}, relative to a current folder that was removed. Pass the full path."
        ) from error


def reason(error: OSError) -> str:
    """The reason that the operating system gives."""
    return error.strerror or str(error) or type(error).__name__


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are the same file, also through links, or would be if they existed."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
