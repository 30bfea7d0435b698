"""The bytes of a file, decompressed where it is compressed."""

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.archives import UnreadableError, check_expansion

BLOCK = 1 << 22  # bytes


def _zstandard(path: Path) -> Any:
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


MAGIC: dict[bytes, tuple[str, Callable[[Path], Any]]] = {
    b"\x1f\x8b": ("gz", gzip.open),
    b"BZh": ("bz2", bz2.open),
    b"\xfd7zXZ": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zst", _zstandard),
}
ZIP = b"PK\x03\x04"


def unpacked(path: Path, name: str) -> tuple[bytes, str]:
    """The content of a file, and how it is compressed: `gz`, `bz2`, `xz`, `zst`, `zip` or, where it is not, empty.

    The compression is recognised by the first bytes, whatever the name is.

    Raises:
        InputError: the file is damaged, or expands unusually; a zip archive has more than one file, or is encrypted.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
    try:
        check_expansion(None, size)
        if start.startswith(ZIP):
            return _single_member(path, name), "zip"
        for magic, (kind, opened) in MAGIC.items():
            if start.startswith(magic):
                with opened(path) as stream:
                    return _all_of(stream, size), kind
        return path.read_bytes(), ""
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        raise InputError(f"{name} cannot be decompressed: {short_reason(error)}. Check the file.") from error


def _all_of(stream: IO[bytes], packed: int) -> bytes:
    blocks, count = [], 0
    while block := stream.read(BLOCK):
        count += len(block)
        check_expansion(packed, count)
        blocks.append(block)
    return b"".join(blocks)


def _single_member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
        names = [info.filename for info in members]
        if any(member.endswith(".npy") for member in names):
            raise InputError(f"{name} is an NPZ file. Rename it to end in .npz.")
        if "[Content_Types].xml" in names:
            raise InputError(f"{name} is an Excel file. Save the sheet as CSV.")
        if len(members) != 1:
            raise InputError(f"{name} is a zip archive of {len(members)} files ({listed(names)}). Unpack it first.")
        if members[0].flag_bits & 1:
            raise UnreadableError("it is encrypted")
        with archive.open(members[0]) as stream:
            return _all_of(stream, path.stat().st_size)
