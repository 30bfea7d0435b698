"""Checks of a user's files before they are opened: reading must not hang, fill the memory or run code."""

import math
import os
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped

from bilevax._checks import InputError, listed

MOST_EXPANSION = 200  # content beyond LARGE may be at most this many times larger than its compressed file
LARGE = 1 << 30  # bytes
MEMORY_UNKNOWN = 16 << 30  # bytes, where the system does not report how much it has
SPECIAL = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


class UnreadableError(ValueError):
    """A file does not match its format; the message is the reason, a sentence without its full stop."""


def check_regular(path: Path, name: str, wanted: str) -> None:
    """Refuse a path that is not a regular file, before it is opened: a pipe blocks, and a device may never end.

    Args:
        path: symbolic links are followed.
        name: of the file, for messages.
        wanted: what to pass instead, as a sentence.

    Raises:
        InputError: there is no such file, it cannot be examined, or it is a directory, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{name} does not exist. {wanted}") from error
    except (OSError, ValueError) as error:  # a loop of links, no permission, an invalid name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name} cannot be opened: {reason}. {wanted}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{name} is a directory. {wanted}")
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in SPECIAL.items() if test(mode)), "not a regular file")
        raise InputError(f"{name} is {kind}, which cannot be read twice. Write its content to a file first. {wanted}")


def memory() -> int:
    """The machine's main memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return MEMORY_UNKNOWN


def check_expansion(packed: int | None, unpacked: int, most: int = MOST_EXPANSION) -> None:
    """Refuse content that does not fit into memory, or that is much larger than its compressed file.

    Args:
        packed: bytes of the compressed file; None for a file that is not compressed.
        unpacked: bytes of its content.
        most: content beyond `LARGE` may be at most this many times larger than the file.

    Raises:
        UnreadableError: the content is larger than the memory, or than both limits.
    """
    if unpacked > memory():
        raise UnreadableError(f"it holds {_size(unpacked)}, and this machine's memory is {_size(memory())}")
    if packed is not None and unpacked > LARGE and unpacked > most * packed:
        raise UnreadableError(
            f"its {_size(packed)} expand to {_size(unpacked)} or more, which is unlikely to be intended (if it "
            "is, save the data uncompressed)"
        )


def _size(count: int) -> str:
    for unit, size in (("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,} bytes"


def read_npz(path: Path, wanted: Collection[str]) -> tuple[dict[str, Shaped[np.ndarray, "..."]], list[str]]:
    """The wanted arrays that an NPZ file has, and the names of all its arrays.

    The size of each array is checked against the bytes in the archive before memory is allocated.

    Raises:
        UnreadableError: not an NPZ file, damaged, encrypted, too large, or a wanted array is of objects or records.
    """
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UnreadableError("it is a single array, as numpy.save writes it, and named arrays are needed")
        with zipfile.ZipFile(path) as archive:
            members = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
            names = [name for name, _ in members]
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise UnreadableError(f"it has more than one array of the name {listed(twice)}")
            chosen = {name: info for name, info in members if name in wanted}
            check_expansion(os.path.getsize(path), sum(info.file_size for info in chosen.values()))
            for name, info in chosen.items():
                _check_member(archive, name, info)
            return {name: _array(archive, info) for name, info in chosen.items()}, names
    except UnreadableError:
        raise
    except Exception as error:  # a damaged archive raises whatever its decoder runs into
        raise UnreadableError(str(error).strip().rstrip(".") or type(error).__name__) from error


def read_single(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array of an NPY file.

    Raises:
        UnreadableError: not an NPY file, damaged, too large, or an array of objects or records.
    """
    try:
        size = os.path.getsize(path)
        check_expansion(None, size)
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise UnreadableError("it is not an array, as numpy.save writes it")
            file.seek(0)
            _check_header(file, "the array", size)
            file.seek(0)
            array: Any = np.lib.format.read_array(file, allow_pickle=False)
            return array
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise UnreadableError(str(error).strip().rstrip(".") or type(error).__name__) from error


def _check_member(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise UnreadableError(f"the array {name!r} is encrypted")
    with archive.open(info) as stream:
        _check_header(stream, f"the array {name!r}", info.file_size)


def _check_header(stream: IO[bytes], name: str, size: int) -> None:
    """Compare the shape and type that the header of an array gives with the bytes that are there."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:  # written only for field names beyond Latin-1
        raise UnreadableError(f"{name} has named fields")
    held = size - stream.tell()
    if dtype.hasobject:
        raise UnreadableError(
            f"{name} has Python objects, which are never loaded, since that can run code (allow_pickle)"
        )
    if dtype.names is not None or dtype.kind == "V":
        raise UnreadableError(f"{name} has named fields or raw bytes ({dtype})")
    if math.prod(shape) * dtype.itemsize != held or min(shape, default=0) < 0:
        raise UnreadableError(f"the header of {name} says shape {shape} of {dtype}, but the file has {held:,} bytes")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Shaped[np.ndarray, "..."]:
    with archive.open(info) as stream:
        array: Any = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # to the end, where zipfile compares the checksum
        return array
